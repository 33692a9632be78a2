"""Matrices unpacked, updated in place, memory counted, and the runtime sealed."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import q4
from samples import activations, assert_close, awq, gptq


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("zeros", ["v1", "v2"])
@pytest.mark.parametrize("shape", [(256, 64, 64), (264, 72, 128), (200, 40, -1)])
def test_unpack(shape: Any, zeros: Any, act_order: bool) -> None:
    k, n, group = shape
    sample = gptq(k, n, group, act_order=act_order, zeros=zeros)
    bias = np.arange(n, dtype=np.float16)
    W = q4.Matrix.from_gptq(*sample.tensors(), sample.g_idx, bias, zeros=zeros, group_size=group)
    again = W.unpack()
    for name in ("qweight", "qzeros", "scales", "g_idx"):
        assert again[name].dtype == getattr(sample, name).dtype, name
        assert (again[name] == getattr(sample, name)).all(), name
    assert (again["bias"] == bias).all()
    assert (again["format"], again["zeros"]) == ("gptq", zeros)
    names = ("qweight", "qzeros", "scales", "g_idx", "bias", "group_size", "zeros")
    same = q4.Matrix.from_gptq(**{name: again[name] for name in names})
    x = activations(2, k)
    assert (x @ same == x @ W).all()
    assert q4.Matrix.from_gptq(*sample.tensors(), group_size=group).unpack()["g_idx"] is None


def test_unpack_awq() -> None:
    sample = awq(128, 64, 32)
    again = q4.Matrix.from_awq(*sample.tensors()).unpack()
    for name in ("qweight", "qzeros", "scales"):
        assert (again[name] == getattr(sample, name)).all(), name
    assert again["format"] == "awq" and again["g_idx"] is None and again["bias"] is None


def test_update() -> None:
    first, second = (gptq(256, 64, 64, seed=seed) for seed in (1, 2))
    W = q4.Matrix.from_gptq(*first.tensors(), zeros="v1")
    plan = W.plan(4, dtype="float16")
    x, out = activations(4, 256), np.empty((4, 64), np.float16)
    before = q4.memory()["cpu"]
    for _ in range(3):
        for sample in (second, first):
            W.update(*sample.tensors(), zeros="v1")
            plan.run(x, out)
            assert_close(out, x, sample.dense)
            assert_close(x @ W, x, sample.dense)
    assert q4.memory()["cpu"]["weights"] == before["weights"]
    other = gptq(256, 72, 64)
    with pytest.raises(q4.InvalidArgument, match="n is 72, that of the matrix is 64"):
        W.update(*other.tensors())
    with pytest.raises(q4.InvalidArgument, match="act-order"):
        W.update(*first.tensors(), gptq(256, 64, 64, act_order=True).g_idx)
    assert (W.unpack()["qweight"] == first.qweight).all()
    A = q4.Matrix.from_awq(*awq(128, 64, 32, 1).tensors())
    A.update(*awq(128, 64, 32, 2).tensors())
    x = activations(2, 128)
    assert_close(x @ A, x, awq(128, 64, 32, 2).dense)
    with pytest.raises(q4.InvalidArgument, match="AWQ matrix has none"):
        A.update(*awq(128, 64, 32, 2).tensors(), np.zeros(128, np.int32))


def test_reuse_on_the_cpu_copies() -> None:
    for make, sample in ((q4.Matrix.from_gptq, gptq(256, 64, 64)), (q4.Matrix.from_awq, awq(128, 64, 32))):
        tensors = [t.copy() for t in sample.tensors()]
        W = make(*tensors, reuse=True)
        assert not W.in_place and not W.scales_in_place  # the CPU's layout has scales between the codes
        for now, then in zip(tensors, sample.tensors()):
            assert (now == then).all()
        x = activations(3, W.k)
        assert_close(x @ W, x, sample.dense)
        W.restore()
        assert (W.unpack()["qweight"] == sample.qweight).all()
        tensors[2].setflags(write=False)
        with pytest.raises(q4.InvalidArgument, match="scales is read-only, but reuse writes to it"):
            make(*tensors, reuse=True)


def test_allocator() -> None:
    import ctypes

    blocks: dict[int, tuple[Any, int]] = {}
    failing = False

    def allocate(size: int, alignment: int, device: str, stream: int) -> int | None:
        assert alignment == 256 and device == "cpu" and stream == 0
        if failing:
            raise ValueError("no more")
        raw = ctypes.create_string_buffer(size + alignment)
        address = -(-ctypes.addressof(raw) // alignment) * alignment
        blocks[address] = (raw, size)
        return address

    def release(address: int, size: int, device: str, stream: int) -> None:
        assert blocks.pop(address)[1] == size

    sample = gptq(256, 64, 64)
    x = activations(4, 256)
    q4.set_allocator(allocate, release)
    try:
        W = q4.Matrix.from_gptq(*sample.tensors(), zeros="v1")
        assert len(blocks) == 1
        plan = W.plan(4)
        assert len(blocks) == 2
        out = np.empty((4, 64), np.float16)
        plan.run(x, out)
        assert_close(out, x, sample.dense)
        failing = True
        with pytest.raises(q4.OutOfMemory, match="no more"):
            q4.Matrix.from_gptq(*sample.tensors())
    finally:
        q4.set_allocator(None, None)
    del plan, W
    assert not blocks  # each piece goes back to who gave it
    with pytest.raises(q4.InvalidArgument, match="release is None alone"):
        q4.set_allocator(allocate, None)
    with pytest.raises(TypeError, match="callable"):
        q4.set_allocator(1, 2)  # type: ignore[arg-type]


SEALED = """
import numpy as np, q4, sys
sys.path.insert(0, sys.argv[1])
from samples import activations, gptq
W = q4.Matrix.from_gptq(*gptq(256, 64, 64).tensors())
W.warmup(10)  # that is 16
x = activations(16, 256)
{seal}
for m in range(1, 17):
    assert (x[:m] @ W).shape == (m, 64)
    q4.matmul(x[:m], W, bias=np.ones(64, np.float16))
try:
    q4.Matrix.from_gptq(*gptq(128, 64, 64).tensors())
    print("allowed")
except q4.Unsupported as error:
    print("refused:", error)
q4.seal("off")
q4.Matrix.from_gptq(*gptq(128, 64, 64).tensors())
"""


@pytest.mark.parametrize(
    "seal,environment,out,err",
    [
        ("q4.seal()", "", "refused: the runtime is sealed", ""),
        ("q4.seal()", "warn", "allowed", "sealed runtime: "),
        ("q4.seal('warn')", "", "allowed", "bytes of weights are to be allocated on cpu"),
        ("q4.seal()", "off", "allowed", ""),
    ],
)
def test_seal(seal: str, environment: str, out: str, err: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path

    if environment:
        monkeypatch.setenv("Q4_SEAL", environment)
    script = SEALED.replace("{seal}", seal)
    done = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(out), done.stdout
    assert err in done.stderr
    with pytest.raises(q4.InvalidArgument, match="seal: mode = 'maybe'"):
        q4.seal("maybe")  # type: ignore[arg-type]
