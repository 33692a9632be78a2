#!/usr/bin/env python3
"""Checks of the documents that need nothing but Python; each prints what is wrong and exits 1.

    check.py links       every link between files of the repository leads to a file, and to a heading in it
    check.py variables   docs/reference/environment.md lists what the sources read, no more and no less
    check.py versions    what names a version names that of include/q4/version.h
    check.py figures     the README's count of points is a sentence of docs/performance.md
    check.py errors      docs/reference/errors.md has the codes of q4.h
    check.py options BIN every command of a tool, in a block or in a line, has options that its --help in BIN knows
    check.py fragments CXX  blocks of C++ that are no programs compile, with what they leave undeclared
"""
import fnmatch
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def tracked(*patterns: str) -> list[pathlib.Path]:
    """Files of the repository; all that lie there where this is no clone."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z", "-co", "--exclude-standard", "--", *patterns], capture_output=True, text=True)
    if listed.returncode == 0:
        return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).exists()]
    files = [path for path in ROOT.rglob("*") if path.is_file() and not {"build", ".git"} & set(path.relative_to(ROOT).parts)]
    return [path for path in files if any(fnmatch.fnmatch(str(path.relative_to(ROOT)), pattern) for pattern in patterns)]  # in git's patterns too * takes a /


def headings(page: pathlib.Path) -> set[str]:
    """The anchors that a page's headings have."""
    found: set[str] = set()
    for title in re.findall(r"^#+ (.*)$", CODE.sub("", page.read_text()), re.MULTILINE):
        title = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title)
        found.add(re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-"))
    return found


def links() -> list[str]:
    wrong = []
    for page in tracked("*.md"):
        text = CODE.sub("", page.read_text())
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
            if re.match(r"https?:|mailto:", target):
                continue
            name, _, anchor = target.partition("#")
            path = (page.parent / name) if name else page
            if not path.exists():
                wrong.append(f"{page.relative_to(ROOT)}: ({target}): no such file")
            elif anchor and path.suffix == ".md" and anchor not in headings(path):
                wrong.append(f"{page.relative_to(ROOT)}: ({target}): no such heading")
    return wrong


def variables() -> list[str]:
    page = (ROOT / "docs/reference/environment.md").read_text()
    listed = set(re.findall(r"`(Q4_\w+)`", "\n".join(re.findall(r"^\|([^|]*)\|", page, re.MULTILINE))))
    read = set()
    for folder in ("runtime", "autotune", "tools", "bindings/python/src", "bindings/python/modules"):
        for path in tracked(f"{folder}/*"):
            if path.suffix in (".cpp", ".hpp", ".py"):
                read |= set(re.findall(r'"(Q4_[A-Z0-9_]+)"', path.read_text()))
    for path in tracked(".ci/run", "tools/*", "tests/*.sh", "tests/*.cpp", "tests/*.hpp", "bindings/python/tests/*"):
        if path.suffix in (".cpp", ".hpp"):  # of tests: those that only they read
            read |= set(re.findall(r'(?:getenv|setting)\("(Q4_[A-Z0-9_]+)"\)', path.read_text()))
        elif path.suffix == ".py":
            read |= set(re.findall(r'environ(?:\.get\(|\[)"(Q4_[A-Z0-9_]+)"', path.read_text()))
        elif "." not in path.name or path.suffix == ".sh":
            read |= set(re.findall(r"\$\{?(Q4_[A-Z0-9_]+)", path.read_text()))
    read -= {"Q4_FRESH_INSIDE", "Q4_FAULTY_DRIVER", "Q4_AMDGPU_TARGETS", "Q4_TEST_OF_SETTINGS", "Q4_PARALLEL_CSV"}  # what a script or a test says to its own child
    return [f"{name} is read, and not in docs/reference/environment.md" for name in sorted(read - listed)] + [
        f"{name} is in docs/reference/environment.md, and nothing reads it" for name in sorted(listed - read)
    ]


def versions() -> list[str]:
    found = re.search(r'define Q4_VERSION "(.*)"', (ROOT / "include/q4/version.h").read_text())
    assert found
    version, minor = found[1], found[1].rpartition(".")[0]
    wrong = []
    numbers = [re.search(rf"define Q4_VERSION_{part} (\d+)", (ROOT / "include/q4/version.h").read_text())[1] for part in ("MAJOR", "MINOR", "PATCH")]
    if ".".join(numbers) != version:
        wrong.append(f"include/q4/version.h: {'.'.join(numbers)} and {version}")
    patterns = {r"find_package\(q4 ([\d.]+)": minor, r"q4-packs/[\w-]+:([\d.]+)-": version, r"\bq4-([\d.]+\d)[.-](?:tar|cp|linux)": version, r'^  "version": "(.*)"': version}
    for path in tracked("*.md", "*/CMakeLists.txt", "*/conanfile.py", "*/vcpkg.json"):
        text = path.read_text()
        for pattern, wanted in patterns.items():
            wrong += [f"{path.relative_to(ROOT)}: {is_} instead of {wanted}" for is_ in re.findall(pattern, text, re.MULTILINE) if is_ != wanted]
    if f"## {version} - " not in (ROOT / "CHANGELOG.md").read_text():
        wrong.append(f"CHANGELOG.md has no section of {version}")
    return wrong


def figures() -> list[str]:
    said = re.findall(r"q4 is ahead of the best of the other 4-bit kernels [^.]*\.", (ROOT / "README.md").read_text())
    assert len(said) == 1, said
    return [] if said[0] in (ROOT / "docs/performance.md").read_text() else [f"README.md says '{said[0]}', which docs/performance.md does not"]


def errors() -> list[str]:
    header, page = (ROOT / "include/q4/q4.h").read_text(), (ROOT / "docs/reference/errors.md").read_text()
    [statuses] = re.findall(r"\{\s*Q4_OK = 0,(.*?)\}", header, re.DOTALL)
    codes = {(number, name) for name, number in re.findall(r"(Q4_\w+) = (\d+)", statuses)}
    listed = set(re.findall(r"^\| (\d+) [^|]*\|[^|]*\| `(\w+)`", page, re.MULTILINE))
    assert len(codes) > 5, statuses
    return [f"docs/reference/errors.md and q4.h differ: {code}" for code in sorted(codes ^ listed)]


def options() -> list[str]:
    wrong, count = [], 0
    helps: dict[tuple[str, ...], str] = {}
    for page in tracked("*.md"):
        text = page.read_text()
        blocks = "\n".join(re.findall(r"^```(?:sh|yaml)\b[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
        lines = [line.split(" #")[0] for line in blocks.splitlines()] + re.findall(r"`([^`\n]*)`", CODE.sub("", text))
        for line in lines:
            for tool, words in re.findall(r"\b(q4-(?:info|verify|autotune|bench|cache|convert))((?: [^|;&<>]*)?)", line):
                first = words.split()[:1] if tool == "q4-cache" and re.match(r" [a-z]+( |$)", words) else []
                key = (tool, *first)
                if key not in helps:
                    command = [str(pathlib.Path(sys.argv[2]) / tool), *first, "--help"]
                    helps[key] = subprocess.run(command, capture_output=True, text=True).stdout
                    if not helps[key]:
                        wrong.append(f"{page.relative_to(ROOT)}: {' '.join(key)}: no such command")
                for option in re.findall(r"(?<=[ \[])--[a-z][a-z-]*", words):
                    count += 1
                    if option not in re.findall(r"^  (?:-h,)?(--[a-z-]+)", helps[key], re.MULTILINE):
                        wrong.append(f"{page.relative_to(ROOT)}: {' '.join(key)} has no {option}")
    assert count > 50, count
    return wrong


# What fragments of the documents take from the program around them.
AROUND = """#include <q4/q4.hpp>
#include <stdexcept>
#include <string>
extern const q4::Runtime runtime;
extern const q4::Device device;
extern void *stream, *x, *h, *out, *workspace;
extern const std::int32_t* topk_ids;
extern const float* topk_weights;
extern const std::int64_t tokens;
extern const q4::QuantizedMatrix W, V;
extern const q4::TensorView a, b;
extern const std::int32_t* adapter_of_row;
template <class... Values>
void metrics(Values...);
"""


def fragments() -> list[str]:
    wrong, count = [], 0
    for page in tracked("docs/*.md"):
        for code in re.findall(r"^```cpp\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
            if page.name == "embedding.md":  # is compiled and run as a program
                continue
            count += 1
            body = re.sub(r"^#include .*$", "", code, flags=re.MULTILINE)
            command = [sys.argv[2], "-std=c++20", "-fsyntax-only", f"-I{ROOT}/include", "-x", "c++", "-"]
            ended = subprocess.run(command, input=f"{AROUND}void fragment() {{\n{body}}}\n", capture_output=True, text=True)
            if ended.returncode != 0:
                wrong.append(f"{page.relative_to(ROOT)}: {ended.stderr}")
    assert count >= 2, count
    return wrong


def main() -> None:
    wrong = {"links": links, "variables": variables, "versions": versions, "figures": figures, "errors": errors, "options": options, "fragments": fragments}[sys.argv[1]]()
    print("\n".join(wrong))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
