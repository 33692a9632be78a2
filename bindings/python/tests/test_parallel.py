"""The parallel modules of q4.torch in real processes over gloo on the CPU; skipped without torch."""

import json
import os
import subprocess
import sys
import time
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


def checkpoint(folder: Path, kind: str) -> Path:
    """Two attention layers: where act-order is asked for, q, k and v of `a` share a g_idx, those of `b` do not."""
    matrices: dict[str, Sample] = {}
    for number, layer in enumerate("ab"):
        for name, k, n in (("q_proj", K, Q), ("k_proj", K, KV), ("v_proj", K, KV), ("o_proj", Q, K)):
            seed = 10 * number + len(matrices)
            if kind == "awq":
                matrices[f"{layer}.{name}"] = awq(k, n, 32, seed)
                continue
            sample = gptq(k, n, -1 if kind == "one group" else 32, act_order=kind == "act-order", seed=seed)
            if layer == "a" and name in ("k_proj", "v_proj"):
                sample.g_idx = matrices["a.q_proj"].g_idx
            matrices[f"{layer}.{name}"] = sample
    if kind == "awq":
        return save_checkpoint(folder, matrices, 32, quant_method="awq", version="gemm", zero_point=True)
    bias = {name: activations(1, sample.scales.shape[1], 3)[0] for name, sample in matrices.items() if kind == "bias"}
    return save_checkpoint(folder, matrices, -1 if kind == "one group" else 32, bias=bias)


def compressed(folder: Path) -> Path:
    """The tensors of a GPTQ checkpoint with zeros of 8 as compressed-tensors has them."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(checkpoint(folder, "gptq") / "model.safetensors")
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


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("kind", ["gptq", "act-order", "bias", "one group", "awq", "compressed"])
def test_modules(tmp_path: Path, kind: str, world: int) -> None:
    if kind == "compressed":
        pytest.importorskip("safetensors")
        compressed(tmp_path)
    else:
        checkpoint(tmp_path, kind)
    for status, output in run(tmp_path, world, "modules"):
        assert status == 0 and "done" in output, output


def test_replace_linears_over_a_mesh(tmp_path: Path) -> None:
    for status, output in run(checkpoint(tmp_path, "act-order"), 2, "replace"):
        assert status == 0, output


@pytest.mark.parametrize("world", [2, 4])
def test_a_killed_rank_gives_the_others_an_error(tmp_path: Path, world: int) -> None:
    start = time.monotonic()
    ended = run(checkpoint(tmp_path, "gptq"), world, "killed")
    assert [status for status, _ in ended] == [7] * (world - 1) + [-9], ended
    assert all("error after" in output for _, output in ended[:-1]), ended
    assert time.monotonic() - start < 60
