"""The parallel modules of q4.torch in real processes over gloo on the CPU; skipped without torch."""

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import Sample, activations, awq, gptq, save_checkpoint

torch = pytest.importorskip("torch")
pytest.importorskip("torch.distributed")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this torch has no gloo", allow_module_level=True)

HERE = Path(__file__).parent
K = 192  # of the input; q has 8 heads of 16, k and v have 2
Q, KV = 128, 32


def run(folder: Path, world: int, what: str) -> "list[tuple[int, str]]":
    """Starts all ranks and gives the status and the output of each."""
    (folder / "store").unlink(missing_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(HERE / "parallel_rank.py"), str(rank), str(world), str(folder), what],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for rank in range(world)
    ]
    try:
        return [(process.wait(timeout=120), process.stdout.read()) for process in ranks if process.stdout]
    finally:
        for process in ranks:
            process.kill()


def save(folder: Path, matrices: "dict[str, Sample]", kind: str) -> Path:
    if kind == "awq":
        return save_checkpoint(folder, matrices, 32, quant_method="awq", version="gemm", zero_point=True)
    bias = {name: activations(1, sample.scales.shape[1], 3)[0] for name, sample in matrices.items() if kind == "bias"}
    save_checkpoint(folder, matrices, -1 if kind == "one group" else 32, bias=bias)
    return as_compressed(folder) if kind == "compressed" else folder


def sample(kind: str, k: int, n: int, seed: int) -> Sample:
    if kind == "awq":
        return awq(k, n, 32, seed)
    stored = 7 if kind == "compressed" else None
    return gptq(k, n, -1 if kind == "one group" else 32, act_order=kind == "act-order", seed=seed, stored=stored)


def expert_checkpoint(folder: Path, kind: str) -> Path:
    """A layer of five experts, 64 -> 96 -> 64, a pair of gate and up in one order of rows."""
    matrices: dict[str, Sample] = {}
    for e in range(5):
        prefix = f"model.layers.0.mlp.experts.{e}."
        for name, k, n in (("gate_proj", 64, 96), ("up_proj", 64, 96), ("down_proj", 96, 64)):
            matrices[prefix + name] = sample(kind, k, n, len(matrices))
        matrices[prefix + "up_proj"].g_idx = matrices[prefix + "gate_proj"].g_idx
    return save(folder, matrices, kind)


def checkpoint(folder: Path, kind: str) -> Path:
    """Two attention layers: where act-order is asked for, q, k and v of `a` share a g_idx, those of `b` do not."""
    matrices: dict[str, Sample] = {}
    for number, layer in enumerate("ab"):
        for name, k, n in (("q_proj", K, Q), ("k_proj", K, KV), ("v_proj", K, KV), ("o_proj", Q, K)):
            made = sample(kind, k, n, 10 * number + len(matrices))
            if layer == "a" and name in ("k_proj", "v_proj"):
                made.g_idx = matrices["a.q_proj"].g_idx
            matrices[f"{layer}.{name}"] = made
    return save(folder, matrices, kind)


def as_compressed(folder: Path) -> Path:
    """Turns a GPTQ checkpoint with zeros of 8 into what compressed-tensors would have written."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    packed: dict[str, Any] = {}
    for name in {key.rpartition(".")[0] for key in tensors}:
        packed[name + ".weight_packed"] = np.ascontiguousarray(tensors[name + ".qweight"].T)
        packed[name + ".weight_scale"] = np.ascontiguousarray(tensors[name + ".scales"].T)
    save_file(packed, folder / "model.safetensors")
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    return folder


def kinds() -> "list[str]":
    return ["gptq", "act-order", "bias", "one group", "awq"] + ["compressed"] * (find_spec("safetensors") is not None)


@pytest.mark.parametrize("world", [2, 4])
def test_modules(tmp_path: Path, world: int) -> None:
    for kind in kinds():
        checkpoint(tmp_path / kind, kind)
    for status, output in run(tmp_path, world, "modules"):
        assert status == 0 and "done" in output, output


@pytest.mark.parametrize("world", [2, 4])
def test_experts(tmp_path: Path, world: int) -> None:
    for kind in kinds():
        expert_checkpoint(tmp_path / kind, kind)
    for status, output in run(tmp_path, world, "experts"):
        assert status == 0 and "done" in output, output


def test_fewer_experts_than_ranks(tmp_path: Path) -> None:
    expert_checkpoint(tmp_path / "gptq", "gptq")
    for status, output in run(tmp_path, 6, "experts"):
        assert status != 0 and "5 experts, fewer than the 6 ranks of the group: use a smaller group" in output, output


def test_replace_linears_over_a_mesh(tmp_path: Path) -> None:
    checkpoint(tmp_path / "linears" / "act-order", "act-order")
    expert_checkpoint(tmp_path / "experts" / "gptq", "gptq")
    for folder, what in (("linears", "replace"), ("experts", "replace_experts")):
        for status, output in run(tmp_path / folder, 2, what):
            assert status == 0, output


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("what", ["killed_row", "killed_experts"])
def test_a_killed_rank_gives_the_others_an_error(tmp_path: Path, what: str, world: int) -> None:
    start = time.monotonic()
    (checkpoint if what == "killed_row" else expert_checkpoint)(tmp_path / "gptq", "gptq")
    ended = run(tmp_path, world, what)
    assert [status for status, _ in ended] == [7] * (world - 1) + [-9], ended
    assert all("error after" in output for _, output in ended[:-1]), ended
    assert time.monotonic() - start < 60
