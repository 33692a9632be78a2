"""punica_kernels, called as LoRAX calls it, on NumPy arrays: addresses of weights, segments of rows, decode batches."""

from typing import Any

import numpy as np
import punica_kernels as pk
import pytest

Pair = tuple[list[Any], Any]


def weights(seed: int, layers: int, a: int, b: int, count: int = 3) -> Pair:
    """Stacked matrices, and their addresses as int64."""
    rng = np.random.default_rng(seed)
    all = [rng.standard_normal((layers, a, b)).astype(np.float16) for _ in range(count)]
    return all, np.array([w.ctypes.data for w in all], np.int64)


def close(got: Any, want: Any) -> None:
    error = np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want)
    assert error < 2e-3, error


@pytest.mark.parametrize("rank", [16, 24])
@pytest.mark.parametrize(("k", "n"), [(256, 264), (100, 52)])
def test_prefill(rank: int, k: int, n: int) -> None:
    """v = x A, y += v B in segments, as lora_a_sgmv_cutlass and lora_b_sgmv_cutlass call them."""
    rng = np.random.default_rng(0)
    rows, layer = 23, 1
    x = rng.standard_normal((rows, k)).astype(np.float16)
    y = rng.standard_normal((rows, n)).astype(np.float16)
    a, a_ptr = weights(1, 2, rank, k)
    b, b_ptr = weights(2, 2, rank, n)
    start, end = np.array([0, 5, 5], np.int32), np.array([5, 5, 20], np.int32)
    v = np.zeros((rows, rank), np.float16)
    pk.sgmv_shrink(v, x, a_ptr, start, end, np.empty(8, np.uint8), layer)
    want_v = np.zeros((rows, rank))
    for i in range(3):
        s = slice(start[i], end[i])
        want_v[s] = x[s].astype(np.float64) @ a[i][layer].astype(np.float64).T
    close(v, want_v)
    want = y.astype(np.float64)
    for i in range(3):
        s = slice(start[i], end[i])
        want[s] += v[s].astype(np.float64) @ b[i][layer].astype(np.float64)
    tmp = np.empty(pk.sgmv_cutlass_tmp_size(3), np.uint8)
    pk.sgmv_cutlass(y, v, b_ptr, start, end, tmp, layer)
    close(y, want)


def test_prefill_of_small_ranks() -> None:
    """Below rank 16 LoRAX shrinks by sgmv_cutlass, with A [layers, k, rank]."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 128)).astype(np.float16)
    a, a_ptr = weights(1, 1, 128, 8, 1)
    v = np.zeros((6, 8), np.float16)
    pk.sgmv_cutlass(v, x, a_ptr, np.array([0], np.int32), np.array([6], np.int32), None, 0)
    close(v, x.astype(np.float64) @ a[0][0].astype(np.float64))


@pytest.mark.parametrize(("k", "n", "rank"), [(256, 512, 16), (90, 30, 5)])
def test_decode(k: int, n: int, rank: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, k)).astype(np.float16)
    y = rng.standard_normal((4, n)).astype(np.float16)
    before = y.copy()
    a, a_ptr = weights(1, 3, rank, k)
    b, b_ptr = weights(2, 3, n, rank)
    indices = np.array([2, -1, 0, 2], np.int64)
    v = np.zeros((4, rank), np.float16)
    pk.dispatch_bgmv(v, x, a_ptr, indices, 2, 1.0)
    pk.dispatch_bgmv(y, v, b_ptr, indices, 2, 0.5)
    want = before.astype(np.float64)
    for row, i in enumerate(indices):
        if i >= 0:
            want[row] += 0.5 * (v[row].astype(np.float64) @ b[i][2].astype(np.float64).T)
    close(y, want)
    assert (v[1] == 0).all() and (y[1] == before[1]).all()
    close(v[0], x[0].astype(np.float64) @ a[2][2].astype(np.float64).T)


def test_bad_input() -> None:
    x, y = np.zeros((2, 16), np.float16), np.zeros((2, 8), np.float16)
    pointers, indices = np.zeros(1, np.int64), np.full(2, -1, np.int64)
    pk.dispatch_bgmv(y, x, pointers, indices, 0, 1.0)
    for words, call in {
        ("dispatch_bgmv", "x has dtype fp32"): (y, x.astype(np.float32), pointers, indices),
        ("y has shape [3, 8]", "2 rows"): (np.zeros((3, 8), np.float16), x, pointers, indices),
        ("w_ptr has dtype int32",): (y, x, pointers.astype(np.int32), indices),
        ("indicies has shape [1]", "2 rows"): (y, x, pointers, indices[:1]),
        ("y of shape [2, 8]", "contiguous"): (np.zeros((2, 16), np.float16)[:, ::2], x, pointers, indices),
    }.items():
        with pytest.raises(RuntimeError) as error:
            pk.dispatch_bgmv(*call, 0, 1.0)
        assert all(word in str(error.value) for word in words), str(error.value)
    with pytest.raises(RuntimeError, match="layer_idx = -1"):
        pk.dispatch_bgmv(y, x, pointers, indices, -1, 1.0)
    ends = np.zeros(2, np.int32)
    with pytest.raises(RuntimeError, match="s_start has shape"):
        pk.sgmv_shrink(y, x, pointers, ends, ends, None, 0)
