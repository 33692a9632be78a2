"""Hooks of mkdocs: adds pages that do not lie in docs/, makes links to them lead to them, and those to other files of the repository
(sources, folders) into plain text. A link to a file that does not exist is a warning, which tools/docs-site makes an error."""
import logging
import os
import pathlib
import posixpath
import re
import shutil
import subprocess
import sys

from mkdocs.structure.files import File

sys.path.append(os.path.dirname(__file__))
import python_api  # noqa: E402  (beside this file)

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Path in the repository: page of the site.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "kernels/README.md": "lab/kernels.md",
    "runtime/README.md": "lab/runtime.md",
    "runtime/cache/README.md": "lab/cache.md",
    "runtime/checkpoint/README.md": "lab/checkpoint.md",
    "runtime/backends/cpu/README.md": "lab/cpu.md",
    "autotune/README.md": "lab/autotune.md",
}
CSS = """.md-typeset table:not([class]) { font-size: .64rem; } .md-typeset table:not([class]) td, .md-typeset table:not([class]) th { padding: .4em .7em; min-width: 0; }
.md-typeset td:first-child code { white-space: nowrap; }
.md-typeset thead:not(:has(th:not(:empty))) { display: none; }
.md-grid { max-width: 76rem; } .md-typeset { overflow-wrap: break-word; }
@media (max-width: 44em) { .md-typeset p:has(> img) { overflow-x: auto; } .md-typeset p > img { max-width: none; width: 36rem; } }
"""
LINK = re.compile(r"(!?)\[([^\]\[]*)\]\(([^)\s]+)\)")
OTHER = re.compile(r"^(https?:|mailto:|#)")


def api():
    """The headers, which say all there is to say: their first line, then themselves."""
    parts = ["# C++ and C\n\nThe public headers, which are the reference: `#include <q4/q4.hpp>` has all of C++, `q4.h` all of C.\n"]
    if shutil.which("doxygen"):  # tools/docs-site runs it
        parts.append('With an index and links: <a href="../api/annotated.html">classes</a>, <a href="../api/globals_func.html">functions of C</a>, <a href="../api/files.html">headers</a>.\n')
    for header in sorted((ROOT / "include" / "q4").iterdir(), key=lambda path: (path.suffix != ".h", path.name)):
        text = header.read_text()
        parts.append(f"## {header.name}\n\n```{'c' if header.suffix == '.h' else 'cpp'}\n{text}```\n")
    return "\n".join(parts)


def helps():
    """What the tools say of themselves: of the release build, where there is one."""
    parts = ["# The tools' --help\n\nAs the commands print it. What each is for: [tools](tools.md).\n"]
    folder = ROOT / "build/release/bin"
    for tool in ("q4-info", "q4-verify", "q4-convert", "q4-autotune", "q4-bench", "q4-cache"):
        if not (folder / tool).exists():
            return parts[0] + "\nThis site was built without them: `tools/quickstart`, then `tools/docs-site` again.\n"
        text = subprocess.run([folder / tool, "--help"], capture_output=True, text=True, check=True).stdout
        parts.append(f"## {tool}\n\n```text\n{text.strip()}\n```\n")
        for command in re.findall(r"^  (\w+) ", text.partition("\nSubcommands:\n")[2].partition("\n\n")[0], re.MULTILINE):
            text = subprocess.run([folder / tool, command, "--help"], capture_output=True, text=True, check=True).stdout
            parts.append(f"### {tool} {command}\n\n```text\n{text.partition('Examples:')[0].strip()}\n```\n")
    return "\n".join(parts)


log = logging.getLogger("mkdocs.hooks.pages")


def on_page_content(html, page, config, files):
    if "```" in re.sub(r"<(pre|code)\b.*?</\1>", "", html, flags=re.DOTALL):
        log.warning("%s: a block of code is drawn as text", page.file.src_uri)
    return html


def on_files(files, config):
    for path, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    files.append(File.generated(config, "site.css", content=CSS))
    files.append(File.generated(config, "reference/api.md", content=api()))
    files.append(File.generated(config, "reference/help.md", content=helps()))
    files.append(File.generated(config, "reference/python.md", content=python_api.page()))
    return files


def on_page_markdown(markdown, page, config, files):
    uri = page.file.src_uri
    source = next((path for path, at in PAGES.items() if at == uri), "docs/" + uri)
    pages = {**PAGES, **{"docs/" + file.src_uri: file.src_uri for file in files if not file.generated_by}}

    def link(found):
        picture, text, target = found.groups()
        if OTHER.match(target):
            return found[0]
        path, mark, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if path in pages:
            return f"{picture}[{text}]({os.path.relpath(pages[path], posixpath.dirname(uri) or '.')}{mark}{anchor})"
        if not (ROOT / path).exists():
            log.warning("%s: the link [%s](%s) leads nowhere", source, text, target)
        return text if text.strip("`") == path else f"{text} (`{path}`)"

    # A second word after the language tells a test what a block needs ("python torch"); here it would end the block's being one.
    markdown = re.sub(r"^```(\w+) \w+$", r"```\1", markdown, flags=re.MULTILINE)
    if uri in ("reference/api.md", "reference/python.md") or uri.startswith("lab/"):  # found in a search after the pages for users
        page.meta["search"] = {"boost": 0.3}
    blocks = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)  # not in code
    return "".join(part if part.startswith("```") else LINK.sub(link, part) for part in blocks)
