"""The drop-in module on NumPy arrays: what clients call, what it computes, what it refuses."""

import gc
import threading
from typing import Any, Iterator

import exllama_kernels as ek
import numpy as np
import pytest
from samples import Sample, activations, assert_close, gptq


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    ek.cleanup()
    ek.set_zero_format("v1")
    ek.reset_tuning_params()


def make(sample: Sample, g_idx: Any = None, device: Any = None) -> int:
    return ek.make_q4(*sample.tensors(), g_idx, device)


def multiply(handle: int, x: Any, n: int) -> Any:
    out = np.full((len(x), n), np.nan, np.float16)
    ek.q4_matmul(x, handle, out)
    return out


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group", [8, 16, 24, 32, 64, 128, 256, -1])
def test_group_sizes(group: int, act_order: bool) -> None:
    sample = gptq(768, 72, group, act_order=act_order)
    handle = make(sample, sample.g_idx if act_order else None)
    for m in (1, 3, 9, 33):
        x = activations(m, 768)
        assert_close(multiply(handle, x, 72), x, sample.dense)


@pytest.mark.parametrize("k,n", [(8, 8), (8, 256), (264, 8), (2752, 40), (1184, 1000), (3456, 24)])
@pytest.mark.parametrize("m", [1, 2, 7, 8, 17, 129])
def test_odd_shapes(k: int, n: int, m: int) -> None:
    sample = gptq(k, n, 8)
    x = activations(m, k)
    assert_close(multiply(make(sample), x, n), x, sample.dense)


@pytest.mark.parametrize("threshold", [0, 1, 8])
@pytest.mark.parametrize("fused_remap", [False, True])
@pytest.mark.parametrize("no_half2", [False, True])
def test_tuning_params(threshold: int, fused_remap: bool, no_half2: bool) -> None:
    ek.set_tuning_params(threshold, fused_remap, no_half2)
    sample = gptq(256, 64, 32, act_order=True)
    handle = make(sample, sample.g_idx)
    for m in (1, 8, 20):
        x = activations(m, 256)
        assert_close(multiply(handle, x, 64), x, sample.dense)


def test_zero_formats() -> None:
    x = activations(4, 128)
    for zeros in ("v1", "v2"):
        sample = gptq(128, 32, 32, zeros=zeros)
        ek.set_zero_format(zeros)
        assert_close(multiply(make(sample), x, 32), x, sample.dense)
    symmetric = gptq(128, 32, 32, zeros="v2", stored=8)
    ek.set_zero_format("auto")
    assert_close(multiply(make(symmetric), x, 32), x, symmetric.dense)
    old = gptq(128, 32, 32, zeros="v1", stored=8)
    ek.set_zero_format("v1")  # the default reads even this as the old module did
    assert_close(multiply(make(old), x, 32), x, old.dense)


def test_keywords_and_both_orders() -> None:
    sample = gptq(64, 16, 32, act_order=True)
    x = activations(3, 64)
    state, dq = np.zeros((3, 64), np.float16), np.zeros((1, 64 * 16), np.float16)
    ek.set_tuning_params(thd=8, fused_remap=False, no_half2=False)
    before = ek.make_q4(
        qweight=sample.qweight, qzeros=sample.qzeros, scales=sample.scales, g_idx=sample.g_idx, device=None
    )
    ek.prepare_buffers(device=None, temp_state=state, temp_dq=dq)
    after = make(sample, sample.g_idx, "cpu")
    assert before != after
    for handle in (before, after):
        out = np.empty((3, 16), np.float16)
        ek.q4_matmul(x=x, handle=handle, out=out)
        assert_close(out, x, sample.dense)
    ek.cleanup_buffers_cuda()
    assert_close(multiply(after, x, 16), x, sample.dense)


def test_g_idx_forms() -> None:
    sample = gptq(64, 16, 32)
    x = activations(2, 64)
    first = multiply(make(sample), x, 16)
    for g_idx in (np.empty(0, np.int32), sample.g_idx, sample.g_idx.astype(np.int64)):
        assert (multiply(make(sample, g_idx, -1), x, 16) == first).all()


def test_inputs_are_not_modified_and_not_needed_afterwards() -> None:
    sample = gptq(64, 16, 32, act_order=True)
    copies = [t.copy() for t in (*sample.tensors(), sample.g_idx)]
    handles = [make(sample, sample.g_idx) for _ in range(2)]  # the old module sorted qweight in place
    for tensor, copy in zip((*sample.tensors(), sample.g_idx), copies):
        assert (tensor == copy).all()
        tensor[:] = 0
    x = activations(5, 64)
    for handle in handles:
        assert_close(multiply(handle, x, 16), x, sample.dense)


def test_strided_and_empty_x() -> None:
    sample = gptq(64, 16, 32)
    handle = make(sample)
    wide = activations(6, 96)
    assert_close(multiply(handle, wide[:, :64], 16), wide[:, :64], sample.dense)
    assert_close(multiply(handle, wide[::2, 8:72], 16), wide[::2, 8:72], sample.dense)
    assert multiply(handle, wide[:0, :64], 16).shape == (0, 16)
    x = wide[:, :64].copy()
    x.flags.writeable = False
    assert_close(multiply(handle, x, 16), x, sample.dense)


def test_temp_state_too_small() -> None:
    sample = gptq(64, 16, 32, act_order=True)
    handle, plain = make(sample, sample.g_idx), make(gptq(64, 16, 32))
    x = activations(4, 64)
    multiply(handle, x, 16)  # nothing was prepared: nothing can be too small
    ek.prepare_buffers(-1, np.zeros((3, 64), np.float16), np.zeros((1, 1), np.float16))
    with pytest.raises(RuntimeError, match="temp_state buffer is too small"):
        multiply(handle, x, 16)
    multiply(handle, x[:3], 16)
    multiply(plain, x, 16)
    ek.set_tuning_params(8, True, False)  # gathered by the kernel: no temp_state
    multiply(handle, x, 16)
    with pytest.raises(RuntimeError, match="temp_state buffer is too small"):
        multiply(handle, activations(8, 64), 16)  # reconstructed: it is copied after all
    ek.prepare_buffers(-1, np.zeros((8, 64), np.float16), np.zeros((1, 1), np.float16))
    multiply(handle, activations(8, 64), 16)


def test_what_tuning_params_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """(8, False, False) leaves the choice; everything else, and all under Q4_TUNING_PARAMS=obey, is obeyed."""
    sample = gptq(256, 64, 32)
    x = activations(8, 256)

    def bits() -> Any:
        return multiply(make(sample), x, 64)

    ek.reset_tuning_params()
    tuned = bits()
    ek.set_tuning_params(1, False, False)
    reconstructed = bits()  # by the BLAS, whose sums are in another order
    if (tuned == reconstructed).all():
        pytest.skip("the BLAS adds as the kernels do")
    ek.set_tuning_params(8, False, False)
    assert (bits() == tuned).all()
    monkeypatch.setenv("Q4_TUNING_PARAMS", "obey")
    ek.set_tuning_params(8, False, False)
    assert (bits() == reconstructed).all()
    ek.set_tuning_params(9, False, False)
    assert (bits() == tuned).all()
    monkeypatch.setenv("Q4_TUNING_PARAMS", "ignore")
    with pytest.raises(RuntimeError, match="Q4_TUNING_PARAMS = 'ignore'"):
        ek.set_tuning_params(8, False, False)


def test_stale_and_wrong_handles() -> None:
    sample = gptq(64, 16, 32)
    x = activations(1, 64)
    stale = make(sample)
    ek.cleanup()
    with pytest.raises(RuntimeError, match="stale"):
        multiply(stale, x, 16)
    valid = make(sample)
    with pytest.raises(RuntimeError, match="stale"):
        multiply(stale, x, 16)
    for wrong in (0, -1, 1, valid + 1, valid + (1 << 32), 1 << 62):
        with pytest.raises(RuntimeError, match="handle"):
            multiply(wrong, x, 16)
    for wrong in (None, "1", 1.5, x, 1 << 70):
        with pytest.raises(TypeError):
            multiply(wrong, x, 16)  # type: ignore[arg-type]


def bad_tensors() -> list[Any]:
    good = gptq(64, 16, 32)
    w, z, s = good.tensors()
    return [
        ((w.astype(np.int64), z, s, None), "qweight has dtype int64"),
        ((w, z.astype(np.float32), s, None), "qzeros has dtype fp32"),
        ((w, z, s.astype(np.int32), None), "scales has dtype int32"),
        ((w, z, s.astype(np.float64), None), "scales has dtype float64"),
        ((w[0], z, s, None), "qweight has shape"),
        ((w[None], z, s, None), "qweight has shape"),
        ((w[:, :12], z, s, None), "n = 12"),
        ((w.T, z, s, None), "contiguous"),
        ((w[:, ::2], z, s, None), "contiguous"),
        ((w[:0], z, s, None), "at least 8"),
        ((w, z[:1], s, None), "qzeros has shape"),
        ((w, z[:, :1], s, None), "qzeros has shape"),
        ((w, z, s[:, :8], None), "scales has shape"),
        ((w, z[:0], s[:0], None), "scales has shape"),
        ((w, np.repeat(z, 3, 0)[:3], np.repeat(s, 3, 0)[:3], None), "group"),
        ((w, z, s, good.g_idx[:8]), "g_idx has shape"),
        ((w, z, s, good.g_idx.astype(np.float16)), "g_idx has dtype"),
        ((w, z, s, np.full(64, 2, np.int32)), "g_idx"),
        ((w, z, s, np.full(64, -2, np.int32)), "g_idx"),
    ]


@pytest.mark.parametrize("case", range(len(bad_tensors())))
def test_make_q4_refuses(case: int) -> None:
    tensors, text = bad_tensors()[case]
    with pytest.raises(RuntimeError, match=text):
        ek.make_q4(*tensors, None)


def test_make_q4_type_errors() -> None:
    w, z, s = gptq(64, 16, 32).tensors()
    for arguments in ((None, z, s, None, None), (w, "z", s, None, None), (w, z, 1.0, None, None), (w, z, s, [0], None)):
        with pytest.raises(TypeError, match="array"):
            ek.make_q4(*arguments)
    for device in (1.5, [0], object()):
        with pytest.raises(TypeError, match="device"):
            ek.make_q4(w, z, s, None, device)
    for count in (w, z), (w, z, s, None, None, 0):
        with pytest.raises(TypeError):
            ek.make_q4(*count)
    for device in (0, "cuda:0"):
        with pytest.raises(RuntimeError, match="qweight is on cpu"):
            ek.make_q4(w, z, s, None, device)
    with pytest.raises(RuntimeError, match="nonsense"):
        ek.make_q4(w, z, s, None, "nonsense")


def test_q4_matmul_refuses() -> None:
    handle = make(gptq(64, 16, 32))
    x, out = activations(4, 64), np.empty((4, 16), np.float16)
    both = np.empty(4 * 64 + 4 * 16, np.float16)
    cases: list[Any] = [
        (x.astype(np.float32), out, "x has dtype"),
        (x, out.astype(np.float32), "out has dtype"),
        (x[0], out, "two dimensions"),
        (x, out[0], "two dimensions"),
        (x[None], out, "two dimensions"),
        (x[:, :56], out, "k = 64"),
        (x, out[:, :8], "out has shape"),
        (x, out[:3], "out has shape"),
        (x, np.empty((5, 16), np.float16), "out has shape"),
        (np.asfortranarray(x), out, "contiguous"),
        (x, np.empty((16, 4), np.float16).T, "contiguous"),
        (np.broadcast_to(x[:1], (4, 64)), out, "overlap"),
        (both[: 4 * 64].reshape(4, 64), both[4 * 60 : 4 * 76].reshape(4, 16), "overlaps"),
    ]
    for from_, to, text in cases:
        with pytest.raises(RuntimeError, match=text):
            ek.q4_matmul(from_, handle, to)
    frozen = out.copy()
    frozen.flags.writeable = False
    with pytest.raises(RuntimeError, match="read-only"):
        ek.q4_matmul(x, handle, frozen)
    for from_, to in ((None, out), (x, None), ([1.0], out), (x, 3)):
        with pytest.raises(TypeError):
            ek.q4_matmul(from_, handle, to)


def test_prepare_buffers_and_tuning_refuse() -> None:
    half = np.zeros((4, 8), np.float16)
    for arguments, text in (
        ((None, half.astype(np.float32), half), "temp_state has dtype"),
        ((None, half, half.astype(np.int32)), "temp_dq has dtype"),
        ((None, half[:, ::2], half), "contiguous"),
        ((None, half, half[:, :4]), "contiguous"),
        ((0, half, half), "device = "),
    ):
        with pytest.raises(RuntimeError, match=text):
            ek.prepare_buffers(*arguments)
    with pytest.raises(TypeError):
        ek.prepare_buffers(None, None, half)
    with pytest.raises(RuntimeError, match="thd = -1"):
        ek.set_tuning_params(-1, False, False)
    with pytest.raises(TypeError):
        ek.set_tuning_params("8", False, False)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="v3"):
        ek.set_zero_format("v3")  # type: ignore[arg-type]


def test_column_remap() -> None:
    for k in (1, 8, 100, 257, 1024):
        x, x_map = activations(5, k), np.random.default_rng(k).permutation(k).astype(np.int32)
        x_new = np.full((5, k), np.nan, np.float16)
        ek.column_remap(x, x_new, x_map)
        assert (x_new == x[:, x_map]).all()
    x, x_new, x_map = activations(2, 8), np.empty((2, 8), np.float16), np.arange(8, dtype=np.int32)
    for arguments, text in (
        ((x.astype(np.float32), x_new, x_map), "x has dtype"),
        ((x, x_new, x_map.astype(np.int64)), "x_map has dtype"),
        ((x, x_new, x_map[:4]), "x_new has shape"),
        ((x, x_new[:1], x_map), "x_new has shape"),
        ((x, x_new, x_map[::-1]), "contiguous"),
        ((x, x_new, x_map + 1), "outside"),
        ((x, x, x_map), "overlaps"),
    ):
        with pytest.raises(RuntimeError, match=text):
            ek.column_remap(*arguments)


def resident_kib() -> int:
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4


def test_no_leak_over_make_and_cleanup() -> None:
    sample = gptq(256, 64, 32, act_order=True)
    x, state = activations(2, 256), np.zeros((4, 256), np.float16)

    def cycles(count: int) -> None:
        for _ in range(count):
            ek.prepare_buffers(None, state, state)
            handle = make(sample, sample.g_idx)
            multiply(handle, x, 64)
            ek.cleanup()

    cycles(500)
    before = resident_kib()
    cycles(10_000)
    assert resident_kib() - before < 1024  # a leak of the smallest part, x_map's 1 KiB, would be 10 MiB


def test_refused_calls_do_not_leak() -> None:
    handle = make(gptq(64, 16, 32))
    x, out = activations(4, 64), np.empty((3, 16), np.float16)

    def refused(count: int) -> None:
        for _ in range(count):
            with pytest.raises(RuntimeError):
                ek.q4_matmul(x, handle, out)

    refused(1000)
    before = resident_kib()
    refused(10_000)
    assert resident_kib() - before < 1024


def test_threads() -> None:
    """Many threads share two matrices, while others come and go."""
    samples = [gptq(256, 64, 32, act_order=bool(i), seed=i) for i in range(2)]
    handles = [make(s, s.g_idx) for s in samples]
    problems: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for i in range(30):
                which = (seed + i) % 2
                x = activations(1 + (seed + i) % 20, 256, seed=seed * 100 + i)
                assert_close(multiply(handles[which], x, 64), x, samples[which].dense)
                if i % 10 == 0:
                    make(samples[which])
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems, problems[0]
