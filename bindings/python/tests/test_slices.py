"""Slices and fused matrices from Python, on NumPy arrays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import q4
from samples import Sample, activations, assert_close, awq, gptq, save_checkpoint


def part(sample: Sample, **more: Any) -> "dict[str, Any]":
    names = {"qweight": sample.qweight, "qzeros": sample.qzeros, "scales": sample.scales, "g_idx": sample.g_idx}
    return {**{name: value for name, value in names.items() if value is not None}, **more}


@pytest.fixture
def layer(tmp_path: Path) -> "tuple[Path, dict[str, Sample]]":
    q, k, v = gptq(128, 64, 32, act_order=True), gptq(128, 32, 32, seed=1), gptq(128, 32, 32, act_order=True, seed=2)
    k = Sample(k.qweight, k.qzeros, k.scales, q.g_idx, dense_of(k, q.g_idx))
    samples = {"q": q, "k": k, "v": v}
    return save_checkpoint(tmp_path / "layer", samples, 32, bias={"k": activations(1, 32)[0]}), samples


def dense_of(sample: Sample, g_idx: Any) -> Any:
    nibbles = np.arange(0, 32, 4, dtype=np.uint32)
    codes = (sample.qweight.view(np.uint32)[:, None] >> nibbles[:, None] & 15).reshape(-1, sample.scales.shape[1])
    zeros = (sample.qzeros.view(np.uint32)[:, :, None] >> nibbles & 15).reshape(sample.scales.shape) + 1 & 15
    return sample.scales.astype(np.float64)[g_idx] * (codes - zeros[g_idx].astype(np.float64))


def test_checkpoint(layer: "tuple[Path, dict[str, Sample]]") -> None:
    path, samples = layer
    checkpoint = q4.Checkpoint(path)
    x = activations(3, 128)
    whole = checkpoint.load(["q", "k"], "cpu")
    bias = np.concatenate([np.zeros(64), activations(1, 32)[0]])
    dense = np.concatenate([samples["q"].dense, samples["k"].dense], 1)
    assert_close(x @ whole - bias, x, dense, 5e-3)

    for rank in range(2):
        half = checkpoint.load(["q", "k"], "cpu", slice=q4.Slice.columns(rank, 2, unit=16))
        columns = np.r_[32 * rank : 32 * rank + 32, 64 + 16 * rank : 80 + 16 * rank]
        assert_close(x @ half - bias[columns], x, dense[:, columns], 5e-3)
    rows = [checkpoint.load("q", "cpu", slice=q4.Slice.rows(rank, 4)) for rank in range(4)]
    total = sum((x[:, 32 * r : 32 * r + 32] @ w).astype(np.float64) for r, w in enumerate(rows))
    assert_close(total, x, samples["q"].dense, 3e-3)

    with pytest.raises(q4.Unsupported, match="g_idx differs"):
        checkpoint.load(["q", "v"], "cpu")
    assert [w.n for w in checkpoint.load_together(["q", "v"], "cpu")] == [64, 32]
    assert [w.n for w in checkpoint.load_together(["q", "k"], "cpu")] == [96]
    seen: "list[tuple[int, int]]" = []
    loaded = checkpoint.load_all("cpu", progress=lambda done, total: seen.append((done, total)))
    total_bytes = sum(entry.bytes for entry in checkpoint.matrices)
    assert len(loaded) == 3 and seen[0] == (0, total_bytes) and seen[-1] == (total_bytes, total_bytes) and len(seen) == 4
    assert [w.n for w in checkpoint.load_all("cpu", names=["k"])] == [32] and checkpoint.load_all("cpu", names=[]) == []

    def stop(done: int, total: int) -> None:
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        checkpoint.load_all("cpu", progress=stop)


def test_bad_slices(layer: "tuple[Path, dict[str, Sample]]") -> None:
    checkpoint = q4.Checkpoint(layer[0])
    for slice, text in [
        (q4.Slice.columns(2, 2), "slice.rank = 2"),
        (q4.Slice.rows(0, 3), "16 units, which 3 ranks cannot share evenly: set slice.pad"),
        (q4.Slice.heads(0, 3, 32), "3 ranks cannot share 2 units"),
    ]:
        with pytest.raises(ValueError, match=text):
            checkpoint.load("q", "cpu", slice=slice)
    assert checkpoint.load("q", "cpu", slice=q4.Slice.rows(2, 3, pad=True)).k == 48
    assert repr(q4.Slice.heads(1, 2, 64, [2, 1])) == "q4.Slice.columns(1, 2, unit=64, parts=[128, 64], share=True)"
    with pytest.raises(TypeError):
        checkpoint.load(5, "cpu")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        checkpoint.load("q", "cpu", slice="rows")  # type: ignore[arg-type]


def test_tensors() -> None:
    a, b = gptq(128, 64, 32, act_order=True), gptq(128, 32, 32, zeros="v2", seed=1)
    b = Sample(b.qweight, b.qzeros, b.scales, a.g_idx, None)
    x = activations(2, 128)
    fused = q4.fuse_gptq([part(a, zeros="v1"), part(b, zeros="v2", bias=np.ones(32, np.float16))])
    alone = q4.Matrix.from_gptq(*b.tensors(), a.g_idx, zeros="v2")
    assert_close((x @ fused)[:, :64], x, a.dense)
    assert np.abs((x @ fused)[:, 64:] - (x @ alone) - 1).max() < 5e-3
    half = q4.fuse_gptq([part(a, zeros="v1")], slice=q4.Slice.columns(1, 2))
    assert_close(x @ half, x, a.dense[:, 32:])
    c, d = awq(128, 64, 32), awq(128, 32, 32, seed=4)
    assert_close(x @ q4.fuse_awq([part(c), part(d)]), x, np.concatenate([c.dense, d.dense], 1))
    for parts, text in [
        ([], "no tensors are given"),
        ([{"qweight": a.qweight}], "no 'qzeros'"),
        ([part(a, colour=1)], "a matrix has 'colour'"),
    ]:
        with pytest.raises(q4.InvalidArgument, match=text):
            q4.fuse_gptq(parts)


def test_numerics_id(layer: "tuple[Path, dict[str, Sample]]") -> None:
    shapes = [(128, 64), (64, 128)]
    first = q4.numerics_id(shapes, 16, device="cpu")
    assert len(first) == 16 and first == q4.numerics_id(shapes[::-1], 16, device="cpu")
    assert first != q4.numerics_id(shapes, 16, "bfloat16", device="cpu")
    assert q4.numerics_id(layer[0], 16, device="cpu") == q4.numerics_id(q4.Checkpoint(layer[0]), 16, device="cpu")
    with pytest.raises(TypeError, match="numerics_id: what must be"):
        q4.numerics_id(5, 16, device="cpu")  # type: ignore[arg-type]
