"""Runs every Python snippet of docs/python.md, parallel.md, memory.md and lora.md, each file's in order and in one namespace; those
that need CUDA where it is."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from samples import gptq, save_checkpoint

FOLDER = Path(os.environ.get("Q4_DOCS", str(Path(__file__).parents[3] / "docs")))
DOCS = FOLDER / "python.md"
PARALLEL = FOLDER / "parallel.md"
BEGIN = FOLDER / "getting-started" / "python.md"


def cuda() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


def snippets(docs: Path = DOCS) -> list[tuple[str, str]]:
    """(needs, code): ```python, or ```python and a package or cuda after the language, for what must be there."""
    return re.findall(r"^```python ?(\w*)\n(.*?)^```$", docs.read_text(), re.MULTILINE | re.DOTALL)


def run(code: str, names: dict[str, Any], docs: Path = DOCS) -> None:
    line = docs.read_text().count("\n", 0, docs.read_text().index(code))
    exec(compile("\n" * line + code, str(docs), "exec"), names)


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
        if needs in ("torch", "transformers", "peft", "gptqmodel") and importlib.util.find_spec(needs) is None or needs == "cuda" and not cuda():
            continue
        run(code, names)
        ran += 1
    assert ran >= 3


@pytest.mark.parametrize("page", ["memory.md", "lora.md"])
def test_pages_that_go_on_from_the_first_example(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the names of the first example of docs/python.md."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    run(snippets()[0][1], names)
    found = snippets(FOLDER / page)
    assert found
    for needs, code in found:
        if not needs or importlib.util.find_spec(needs):
            run(code, names, FOLDER / page)


def test_the_programs_of_the_first_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a file of the page's own, in its order."""
    monkeypatch.chdir(tmp_path)
    programs = re.findall(r'^```python title="([^"]+)"\n(.*?)^```$', BEGIN.read_text(), re.MULTILINE | re.DOTALL)
    assert [name for name, _ in programs] == ["first.py", "make_model.py", "load.py"]
    for _, code in programs:
        run(code, {}, BEGIN)


@pytest.fixture
def layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In a folder with the checkpoint that docs/parallel.md reads: a layer of 128, 4 heads of 32, 256 inside; four experts."""
    attention = {"q_proj": (128, 128), "k_proj": (128, 64), "v_proj": (128, 64), "o_proj": (128, 128)}
    mlp = {"gate_proj": (128, 256), "up_proj": (128, 256), "down_proj": (256, 128)}
    prefix = "model.layers.0."
    samples = {f"{prefix}self_attn.{name}": gptq(*shape, 32, seed=1) for name, shape in attention.items()}
    samples |= {f"{prefix}mlp.{name}": gptq(*shape, 32, seed=2) for name, shape in mlp.items()}
    for e in range(4):
        for name, k, n in (("gate_proj", 128, 64), ("up_proj", 128, 64), ("down_proj", 64, 128)):
            samples[f"model.layers.1.mlp.experts.{e}.{name}"] = gptq(k, n, 32, seed=3 + e)
    save_checkpoint(tmp_path / "checkpoint", samples, 32)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_slices_of_parallel_md(layer: Path) -> None:
    found = [code for needs, code in snippets(PARALLEL) if needs == ""]
    assert len(found) == 2
    names: dict[str, Any] = {}
    for code in found:
        run(code, names, PARALLEL)


def test_the_program_of_parallel_md(layer: Path) -> None:
    """By torchrun, as it says; both ranks get the same sum."""
    torch = pytest.importorskip("torch")
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    [code] = [code for needs, code in snippets(PARALLEL) if needs == "ranks"]
    (layer / "parallel.py").write_text(code)
    assert "torchrun --nproc-per-node 2 parallel.py" in PARALLEL.read_text()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "parallel.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(torchrun, capture_output=True, text=True, timeout=180, env=environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    sums = re.findall(r"rank \d: (-?\d+\.\d+)", ended.stdout)  # lines of two processes can be joined
    assert len(sums) == 2 and sums[0] == sums[1], ended.stdout
