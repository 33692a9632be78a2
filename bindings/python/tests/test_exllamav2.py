"""The second drop-in, called exactly as LoRAX, TGI and AutoGPTQ call it, on NumPy arrays and (where it is) torch."""

import importlib
from typing import Any, Iterator

import exllama_kernels as ek
import exllamav2_kernels as ek2
import numpy as np
import pytest
from samples import Sample, activations, assert_close, gptq


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    ek2.cleanup()
    ek.cleanup()


def dq(sample: Sample) -> Any:
    """temp_dq, as clients size it."""
    k, n = sample.dense.shape
    return np.empty((k * n + 64,), np.float16)


def call_11(sample: Sample, none: Any = None, perms: Any = (None, None), g_idx: Any = None) -> int:
    """LoRAX and earlier TGI."""
    w, z, s = sample.tensors()
    return ek2.make_q_matrix(w, *perms, none, none, none, none, z, s, none if g_idx is None else g_idx, dq(sample))


def call_10(sample: Sample, none: Any = None, perms: Any = (None, None), g_idx: Any = None) -> int:
    """AutoGPTQ: without q_group_map."""
    w, z, s = sample.tensors()
    return ek2.make_q_matrix(w, *perms, none, none, none, z, s, none if g_idx is None else g_idx, dq(sample))


def call_13(sample: Sample, none: Any = None, perms: Any = (None, None), g_idx: Any = None, bias: Any = None) -> int:
    """TGI with exllamav2_ext: bias and max_dq_rows."""
    w, z, s = sample.tensors()
    return ek2.make_q_matrix(
        w, *perms, none, none, none, none, z, s, none if g_idx is None else g_idx, none if bias is None else bias,
        dq(sample), 0
    )  # fmt: skip


def multiply(handle: int, x: Any, n: int, force_cuda: bool = False) -> Any:
    out = np.full((len(x), n), np.nan, np.float16)
    ek2.gemm_half_q_half(x, handle, out, force_cuda)
    return out


@pytest.mark.parametrize("make", [call_10, call_11, call_13])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("force_cuda", [False, True])
def test_clients(make: Any, act_order: bool, force_cuda: bool) -> None:
    sample = gptq(256, 96, 64, act_order=act_order)
    perms: Any = (np.empty(256, np.int16), np.empty(256, np.int16)) if act_order else (None, None)
    handle = make(sample, None, perms, sample.g_idx if act_order else None)
    for m in (1, 3, 33, 64):
        x = activations(m, 256)
        assert_close(multiply(handle, x, 96, force_cuda), x, sample.dense)
    if act_order:  # stable sort by group, as the old module
        order = np.argsort(sample.g_idx, kind="stable")
        assert (perms[0] == order).all()
        assert (perms[1][order] == np.arange(256)).all()


def test_bias() -> None:
    sample = gptq(128, 32, 32)
    bias = np.linspace(-2, 2, 32).astype(np.float16)
    x = activations(5, 128)
    out = multiply(call_13(sample, bias=bias), x, 32)
    assert np.abs(out - (x @ sample.dense + bias)).max() < 5e-3
    assert multiply(call_13(sample), x[:0], 32).shape == (0, 32)


def test_trivial_g_idx_fills_identities() -> None:
    sample = gptq(64, 32, 32)
    perms = (np.empty(64, np.int16), np.empty(64, np.int16))
    call_11(sample, perms=perms, g_idx=sample.g_idx)
    assert (perms[0] == np.arange(64)).all() and (perms[1] == np.arange(64)).all()


def test_torch_meta_tensors() -> None:
    torch = pytest.importorskip("torch")
    none = torch.empty((1, 1), device="meta")
    sample = gptq(128, 64, 32, act_order=True)
    w, z, s, g = (torch.from_numpy(t) for t in (*sample.tensors(), sample.g_idx))
    perm = torch.empty((128,), dtype=torch.short)
    inverse = torch.empty_like(perm)
    temp = torch.empty(128 * 64 + 64, dtype=torch.half)
    for handle in (
        ek2.make_q_matrix(w, perm, inverse, none, none, none, none, z, s, g, temp),
        ek2.make_q_matrix(w, perm, inverse, none, none, none, none, z, s, g, none, temp, 0),
        ek2.make_q_matrix(w, perm, inverse, none, none, none, z, s, g, temp),
    ):
        x = activations(4, 128)
        out = torch.empty((4, 64), dtype=torch.half)
        ek2.gemm_half_q_half(torch.from_numpy(x), handle, out, False)
        assert_close(out.numpy(), x, sample.dense)
    assert (perm.numpy() == np.argsort(sample.g_idx, kind="stable")).all()
    plain = gptq(128, 64, 32)
    w, z, s = (torch.from_numpy(t) for t in plain.tensors())
    handle = ek2.make_q_matrix(w, none, none, none, none, none, none, z, s, none, temp)
    ek2.gemm_half_q_half(torch.from_numpy(x), handle, out, False)
    assert_close(out.numpy(), x, plain.dense)


@pytest.mark.parametrize("alias", ["exllamav2_ext", "gptqmodel_exllamav2_kernels"])
def test_other_names(alias: str) -> None:
    assert importlib.import_module(alias) is ek2
    assert importlib.import_module("gptqmodel_exllama_kernels") is ek


def test_refuses() -> None:
    sample = gptq(64, 32, 32)
    w, z, s = sample.tensors()
    half, short = np.ones(1, np.float16), np.zeros(64, np.int16)
    scale = np.zeros((2, 4), np.int32)
    good = dq(sample)
    cases: list[Any] = [
        ((w, short, short, scale, half, short, short, None, None, None, good), "EXL2"),
        ((w, None, None, None, None, None, None, None, None, None, good), "EXL2"),
        ((w, None, None, None, None, None, None, z, s, None, good[: 64 * 32 - 1]), "Insufficient size of temp_dq"),
        ((w, None, None, None, None, None, None, z, s, None, None, good[: 8 * 32 - 1], 8), "Insufficient size"),
        ((w, None, None, None, None, None, None, z, s, None, None, good, -1), "max_dq_rows = -1"),
        ((w, None, None, None, None, None, None, z, s, None, good.astype(np.float32)), "temp_dq has dtype"),
        ((w, short[:8], None, None, None, None, None, z, s, sample.g_idx, good), "q_perm has 8 elements"),
        ((w[0], None, None, None, None, None, None, z, s, None, good), "q_weight has shape"),
        ((w, None, None, None, None, None, None, z, s[:, :8], None, good), "scales has shape"),
        ((w, None, None, None, None, None, None, z, s, sample.g_idx[:8], good), "g_idx has shape"),
        ((w, None, None, None, None, None, None, z, s, None, half, good, 0), "bias has shape"),
    ]
    for arguments, text in cases:
        with pytest.raises(RuntimeError, match=text):
            ek2.make_q_matrix(*arguments)
    ek2.make_q_matrix(w, None, None, None, None, None, None, z, s, None, None, good[: 8 * 32], 8)  # eight rows at a time
    for count in (0, 9, 12, 14):
        with pytest.raises(TypeError, match="arguments"):
            ek2.make_q_matrix(*[None] * count)


def test_handles() -> None:
    sample = gptq(64, 32, 32)
    x, out = activations(2, 64), np.empty((2, 32), np.float16)
    first, second = call_11(sample), call_11(sample)
    old = ek.make_q4(*sample.tensors(), None, None)
    with pytest.raises(RuntimeError, match="is of exllama_kernels"):
        ek2.gemm_half_q_half(x, old, out, False)
    with pytest.raises(RuntimeError, match="is of exllamav2_kernels"):
        ek.q4_matmul(x, first, out)
    ek2.free_q_matrix(first)
    with pytest.raises(RuntimeError, match="was freed"):
        ek2.gemm_half_q_half(x, first, out, False)
    with pytest.raises(RuntimeError, match="was freed"):
        ek2.free_q_matrix(first)
    assert_close(multiply(second, x, 32), x, sample.dense)
    ek2.cleanup()
    with pytest.raises(RuntimeError, match="stale"):
        multiply(second, x, 32)
    ek.q4_matmul(x, old, out)  # each module frees its own
    assert_close(out, x, sample.dense)
    for wrong in (0, -1, 1, 1 << 40, (1 << 62) + (9 << 32) + 1):
        with pytest.raises(RuntimeError, match="handle"):
            multiply(wrong, x, 32)
