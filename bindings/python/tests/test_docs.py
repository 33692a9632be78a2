"""Runs every Python snippet of docs/python.md, in order, in one namespace; those that need CUDA where it is."""

import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import pytest
from samples import gptq, save_checkpoint

DOCS = Path(os.environ.get("Q4_DOCS", str(Path(__file__).parents[3] / "docs"))) / "python.md"


def cuda() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


def snippets() -> list[tuple[str, str]]:
    """(needs, code): ```python, or ```python torch / transformers / cuda after the language for what must be there."""
    return re.findall(r"^```python ?(\w*)\n(.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL)


def run(code: str, names: dict[str, Any]) -> None:
    line = DOCS.read_text().count("\n", 0, DOCS.read_text().index(code))
    exec(compile("\n" * line + code, str(DOCS), "exec"), names)


def test_the_first_snippet_needs_nothing_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    needs, code = snippets()[0]
    assert needs == "" and "q4" in code
    run(code, {})


def test_snippets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, with nothing but the checkpoint that they read."""
    samples = {f"model.layers.{i}.mlp": gptq(64, 64, 32, seed=i) for i in range(2)}
    save_checkpoint(tmp_path / "checkpoint", samples, 32)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    found = snippets()
    assert len(found) >= 5
    ran = 0
    for needs, code in found:
        if needs in ("torch", "transformers") and importlib.util.find_spec(needs) is None or needs == "cuda" and not cuda():
            continue
        run(code, names)
        ran += 1
    assert ran >= 3
