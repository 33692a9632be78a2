"""mypy --strict on the installed modules, their stubs and these tests; and every name that the stubs promise exists."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import q4

PACKAGE = Path(q4.__file__).parent
HERE = Path(__file__).parent


def test_mypy() -> None:
    pytest.importorskip("mypy")
    files = ["-p", "q4", "-p", "exllama_kernels", "-p", "exllamav2_kernels", "-p", "punica_kernels"]
    # torch, where it is not installed; and where it is, some of its releases do not type Function.apply.
    silent = ["--disable-error-code=import-not-found", "--disable-error-code=no-untyped-call"]
    if importlib.util.find_spec("torch") is None:
        silent += [
            "--disable-error-code=misc",
            "--disable-error-code=no-any-return",
        ]
    environment = {"PATH": os.environ["PATH"]}
    if PACKAGE.parent.name != "site-packages":
        environment["MYPYPATH"] = str(PACKAGE.parent)
    command = [sys.executable, "-m", "mypy", "--strict", *silent, "--cache-dir=/dev/null", *files]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")
    assert result.returncode == 0, result.stdout + result.stderr


def names(node: Any) -> list[str]:
    found = []
    for item in node.body:
        if isinstance(item, (ast.FunctionDef, ast.ClassDef)):
            found.append(item.name)
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            found.append(item.target.id)
    return found


@pytest.mark.parametrize("stub", ["_native/__init__.pyi", "_native/exllama.pyi", "_native/exllamav2.pyi", "_native/punica.pyi"])
def test_stubs_name_what_is_there(stub: str) -> None:
    tree = ast.parse((PACKAGE / stub).read_text())
    native: Any = importlib.import_module("q4._native")
    name_of = Path(stub).stem
    module = native if name_of == "__init__" else getattr(native, name_of)
    promised = set(names(tree))
    assert promised == {n for n in dir(module) if not n.startswith(("_", "exllama", "punica"))}
    for item in tree.body:
        if not isinstance(item, ast.ClassDef):
            continue
        members = {n for n in names(item) if not n.startswith("_")}
        assert members == {n for n in dir(getattr(module, item.name)) if not n.startswith("_")}, item.name
    for name in promised - {"version"}:
        assert getattr(module, name).__doc__, f"{name} has no docstring"
