#!/usr/bin/env python3
"""Turns a page into scripts that do what it says: each block with a title is a step. title="as root" is run as root, a block
of sh with another title as a user, and any other block is a file of the name in its title.

    steps.py PAGE FOLDER    writes FOLDER/00-user.sh, 01-root.sh, ... to be run in this order in one working folder
"""
import pathlib
import re
import sys

BLOCK = re.compile(r'^```(\w+) title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def steps(page: str) -> list[tuple[str, str]]:
    """(root or user, script); what is for the same one and follows each other is one script."""
    found: list[tuple[str, str]] = []
    for language, title, text in BLOCK.findall(page):
        who = "root" if language == "sh" and title == "as root" else "user"
        if language != "sh":
            text = f"cat >'{title}' <<'END_OF_THE_BLOCK'\n{text}END_OF_THE_BLOCK\n"
        if found and found[-1][0] == who:
            found[-1] = (who, found[-1][1] + text)
        else:
            found.append((who, text))
    return found


def main() -> None:
    page, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    found = steps(page.read_text())
    if not found:
        sys.exit(f"{page}: no block with a title: nothing to run")
    folder.mkdir(parents=True)
    for number, (who, text) in enumerate(found):
        (folder / f"{number:02}-{who}.sh").write_text(text)


if __name__ == "__main__":
    main()
