"""The modern module on NumPy arrays."""

import importlib.metadata
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import q4
from samples import activations, assert_close, awq, gptq, save_checkpoint


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group", [8, 16, 32, 64, 128, 384, -1])
def test_from_gptq(group: int, act_order: bool) -> None:
    sample = gptq(768, 104, group, act_order=act_order)
    W = q4.Matrix.from_gptq(*sample.tensors(), sample.g_idx, zeros="v1")
    assert (W.k, W.n, W.shape, W.device, W.has_bias) == (768, 104, (768, 104), "cpu", False)
    assert W.act_order == (act_order and group != -1) and W.groups == len(sample.scales) and W.nbytes > 768 * 104 // 2
    for m in (1, 5, 64):
        x = activations(m, 768)
        assert_close(x @ W, x, sample.dense)


def test_x_in_the_order_of_the_matrix() -> None:
    samples = [gptq(256, 48, 32, act_order=True, seed=seed) for seed in (0, 1)]
    W, V = (q4.Matrix.from_gptq(*s.tensors(), samples[0].g_idx, zeros="v1") for s in samples)
    order = np.array(W.x_order())
    assert sorted(order) == list(range(256)) and list(order) != sorted(order)
    assert W.same_x_order(V) and V.x_order() == W.x_order()
    assert not W.same_x_order(q4.Matrix.from_gptq(*samples[1].tensors(), zeros="v1"))
    x = activations(5, 256)
    permuted = np.ascontiguousarray(x[:, order])
    for matrix in (W, V):
        out = np.empty((5, 48), np.float16)
        matrix.plan(5, gather="given").run(permuted, out)
        assert np.array_equal(out, x @ matrix)
    with pytest.raises(ValueError, match="given"):
        W.plan(5, gather="mine")


def test_last_group_may_be_shorter() -> None:
    sample = gptq(200, 16, 64)
    x = activations(3, 200)
    assert_close(x @ q4.Matrix.from_gptq(*sample.tensors(), group_size=64), x, sample.dense)


def test_awq() -> None:
    sample = awq(256, 64, 32)
    x = activations(9, 256)
    W = q4.Matrix.from_awq(*sample.tensors())
    assert_close(x @ W, x, sample.dense)
    assert W.zeros == "v2" and "k=256, n=64, group_size=32" in repr(W)


def test_zeros_and_bias() -> None:
    x = activations(3, 64)
    for zeros in ("v1", "v2"):
        sample = gptq(64, 16, 32, zeros=zeros)
        W = q4.Matrix.from_gptq(*sample.tensors(), zeros=zeros)
        assert W.zeros == zeros and not W.zeros_detected
        assert_close(x @ W, x, sample.dense)
    symmetric = gptq(64, 16, 32, zeros="v2", stored=8)
    W = q4.Matrix.from_gptq(*symmetric.tensors())
    assert W.zeros == "v2" and W.zeros_detected
    bias = activations(1, 16)[0]
    with_bias = q4.Matrix.from_gptq(*symmetric.tensors(), bias=bias)
    expected = np.float64(x) @ symmetric.dense + bias
    assert with_bias.has_bias
    assert np.abs(x @ with_bias - expected).max() < 5e-3
    assert np.abs(q4.matmul(x, W, bias=bias) - expected).max() < 5e-3


def test_shapes_dtypes_and_out() -> None:
    sample = gptq(64, 16, 32)
    W = q4.Matrix.from_gptq(*sample.tensors())
    x = activations(24, 64)
    for shape in ((24, 64), (2, 12, 64), (2, 3, 4, 64)):
        out = x.reshape(shape) @ W
        assert out.shape == (*shape[:-1], 16) and out.dtype == np.float16
        assert_close(out.reshape(24, 16), x, sample.dense)
    assert (x[0] @ W).shape == (16,)
    assert (x[:0] @ W).shape == (0, 16)
    single = x.astype(np.float32)
    assert_close(single @ W, x, sample.dense, 1e-5)
    out = np.full((24, 32), np.nan, np.float16)
    assert q4.matmul(x, W, out=out[:, 8:24]).base is out
    assert_close(out[:, 8:24], x, sample.dense)
    assert np.isnan(out[:, :8]).all() and np.isnan(out[:, 24:]).all()


def test_batch_invariant() -> None:
    sample = gptq(512, 64, 128)
    W = q4.Matrix.from_gptq(*sample.tensors())
    x = activations(40, 512)
    whole = q4.matmul(x, W, batch_invariant=True)
    for row in range(40):
        assert (q4.matmul(x[row : row + 1], W, batch_invariant=True) == whole[row]).all()


def test_plans() -> None:
    sample = gptq(256, 64, 32, act_order=True)
    W = q4.Matrix.from_gptq(*sample.tensors(), sample.g_idx)
    x = activations(20, 256)
    out = np.empty((20, 64), np.float16)
    first = W.plan(20)
    assert first.max_m == 20 and first.dtype == "fp16" and first.tactic(1) in first.tactics(1)
    for plan in (first, W.plan(32, reconstruct_from=1), *(W.plan(20, tactic=t) for t in first.tactics(20))):
        out[:] = np.nan
        plan.run(x, out)
        assert_close(out, x, sample.dense, 5e-3 if "bf16" in plan.tactic(20) else 1e-3)
    W.plan(20, math="int8").run(x, out)
    exact = x.astype(np.float64) @ sample.dense
    assert np.linalg.norm(out - exact) <= 1e-2 * np.linalg.norm(exact)
    W.warmup(64, "float32")
    with pytest.raises(ValueError, match="max_m = 20"):
        first.run(activations(21, 256), np.empty((21, 64), np.float16))
    with pytest.raises(ValueError, match="the plan is for fp16"):
        first.run(x.astype(np.float32), out.astype(np.float32))
    for options, text in (
        ({"max_m": 0}, "max_m"),
        ({"max_m": 1, "dtype": "int8"}, "dtype = 'int8'"),
        ({"max_m": 1, "math": "int"}, "math"),
        ({"max_m": 1, "gather": "no"}, "gather"),
        ({"max_m": 1, "reconstruct_from": -2}, "reconstruct_from"),
        ({"max_m": 1, "tactic": "nonsense"}, "nonsense"),
    ):
        with pytest.raises(ValueError, match=text):
            W.plan(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_m"):
        W.warmup(0)


class BFloat16:
    """As ml_dtypes.bfloat16 and torch.bfloat16 call themselves."""

    name = "bfloat16"


@pytest.mark.parametrize(
    "dtype, expected",
    [
        ("float16", "fp16"),
        ("fp16", "fp16"),
        (np.float16, "fp16"),
        (np.dtype("float16"), "fp16"),
        ("half", "fp16"),
        (np.float32, "fp32"),
        (np.dtype("<f4"), "fp32"),
        ("float32", "fp32"),
        (np.str_("bf16"), "bf16"),
        (BFloat16(), "bf16"),
        ("torch.bfloat16", "bf16"),
    ],
)
def test_dtypes_by_any_name(dtype: Any, expected: str) -> None:
    W = q4.Matrix.from_gptq(*gptq(64, 16, 32).tensors())
    assert W.plan(16, dtype=dtype).dtype == expected
    W.warmup(2, dtype)
    q4.warmup([(64, 16)], 2, dtype, device="cpu")


def test_what_is_no_dtype() -> None:
    W = q4.Matrix.from_gptq(*gptq(64, 16, 32).tensors())
    for wrong in (None, 3, float, np.float64, np.dtype("int8"), "float", "float64", object()):
        for call in (
            lambda dtype: W.plan(16, dtype=dtype),
            lambda dtype: W.warmup(16, dtype),
            lambda dtype: q4.warmup([(64, 16)], 2, dtype, device="cpu"),
        ):
            with pytest.raises(ValueError, match="dtype = .*; it must be float16, bfloat16 or float32"):
                call(wrong)
    for options in ({"math": None}, {"math": 3}, {"gather": np.float16}):
        with pytest.raises(TypeError, match="; it must be a str"):
            W.plan(16, **options)  # type: ignore[arg-type]


def test_paths_and_devices_of_any_kind(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model", {"a": gptq(64, 16, 32)}, 32)
    (tmp_path / "tuning.jsonl").write_text("")
    for form in (Path, str, lambda path: os.fsencode(path)):
        folder = form(tmp_path / "cache")
        q4.configure(cache_dir=folder, tuning_files=[form(tmp_path / "tuning.jsonl")], cache_folders=(folder,))
        assert q4.cache_dir() == str(tmp_path / "cache")
        if form is not str:
            q4.configure(tuning_files=form(tmp_path / "tuning.jsonl"), record_untuned=form(tmp_path / "untuned"))
    q4.configure()
    odd = tmp_path / os.fsdecode(b"m\xff del")  # no UTF-8
    (tmp_path / "model").rename(odd)
    assert q4.Checkpoint(odd).matrices[0].name == "a" and q4.Checkpoint(os.fsencode(odd)).matrices[0].k == 64
    q4.configure(cache_dir=odd / "cache")
    assert q4.cache_dir() == str(odd / "cache")
    q4.configure()
    odd.rename(tmp_path / "model")
    with pytest.raises(LookupError, match=r"m\\xff del"):
        q4.Checkpoint(odd)
    with pytest.raises(ValueError, match="null"):
        q4.Checkpoint("a\0b")
    for device in ("cpu", -1):
        assert q4.warmup(tmp_path / "model", 2, device=device)["complete"]
    with pytest.raises(TypeError, match="PathLike"):
        q4.configure(cache_dir=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="list of shapes"):
        q4.warmup([(64, 16, 3)], 2, device="cpu")  # type: ignore[list-item]


class Exported:
    """An array of no framework that q4 knows."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


def test_dlpack_of_anything() -> None:
    sample = gptq(64, 16, 32)
    W = q4.Matrix.from_gptq(*(Exported(t) for t in sample.tensors()))
    x, out = activations(4, 64), np.empty((4, 16), np.float16)
    q4.matmul(Exported(x), W, out=Exported(out))
    assert_close(out, x, sample.dense)
    assert_close(q4.matmul(Exported(x), W), x, sample.dense)


def test_errors() -> None:
    w, z, s = gptq(64, 16, 32).tensors()
    W = q4.Matrix.from_gptq(w, z, s)
    x = activations(2, 64)
    out = np.empty((2, 16), np.float16)
    invalid: list[Any] = [
        (lambda: q4.Matrix.from_gptq(w[:, :12], z, s), "n = 12"),
        (lambda: q4.Matrix.from_gptq(w, z, s, group_size=24), "group"),
        (lambda: q4.Matrix.from_gptq(w, z, s, group_size=-1), "one group"),
        (lambda: q4.Matrix.from_gptq(w, z, s, zeros="v3"), "v3"),  # type: ignore[arg-type]
        (lambda: q4.Matrix.from_gptq(w, z, s, np.full(64, 9, np.int32)), "g_idx"),
        (lambda: q4.Matrix.from_gptq(w, z, s, bias=s[0, :8]), "bias"),
        (lambda: q4.Matrix.from_gptq(w, z, s, device="gpu"), "gpu"),
        (lambda: q4.Matrix.from_awq(w, z, s), "scales|qzeros|n ="),
        (lambda: x[:, :56] @ W, "k = 64"),
        (lambda: x.astype(np.int32) @ W, "x has dtype int32"),
        (lambda: x.astype(np.float64) @ W, "x has dtype float64; .* convert it"),
        (lambda: x.astype(np.complex64) @ W, "x has dtype complex64"),
        (lambda: (x > 0) @ W, "x has dtype bool"),
        (lambda: x.astype(np.int8) @ W, "x has dtype int8"),
        (lambda: q4.Matrix.from_gptq(w.astype(np.uint16), z, s), "qweight has dtype uint16"),
        (lambda: q4.matmul(x, W, out=out[:1]), "out has shape"),
        (lambda: q4.matmul(x, W, out=out[None]), "dimensions"),
        (lambda: q4.matmul(x, W, out=out.astype(np.float32)), "out has dtype"),
        (
            lambda: q4.matmul(np.ones((2, 3, 128), np.float16)[:, ::2, :64].transpose(1, 0, 2), W),
            "evenly spaced|contig",
        ),
        (lambda: q4.matmul(x, W, bias=s[0, :8]), r"bias is of shape \(8,\); it must be an array of shape \[16\]"),
        (lambda: q4.matmul(x, W, bias=s[0, :1]), "bias is of shape"),  # not broadcast
        (lambda: q4.matmul(x, W, bias=1.0), "bias is <class 'float'>"),
        (lambda: q4.configure(cache_mode="maybe"), "maybe"),  # type: ignore[arg-type]
    ]
    for call, text in invalid:
        with pytest.raises(ValueError, match=text) as caught:
            call()
        assert isinstance(caught.value, q4.InvalidArgument) and isinstance(caught.value, RuntimeError)
    with pytest.raises(TypeError):
        W @ x  # type: ignore[operator]
    for wrong in (None, "x", 3, object()):
        with pytest.raises(TypeError, match="x is <class"):
            q4.matmul(wrong, W)
    with pytest.raises(TypeError, match="'>f2'"):
        x.astype(">f2") @ W
    with pytest.raises(TypeError, match="qzeros is <class 'NoneType'>"):
        q4.Matrix.from_gptq(w, None, s)
    with pytest.raises(TypeError, match=r"filled\(\)"):
        np.ma.masked_array(x, x > 0) @ W
    with pytest.raises(TypeError, match="stream"):
        q4.matmul(x, W, stream="0")
    if not any(d.device.startswith("cuda") for d in q4.devices()):
        with pytest.raises(LookupError, match="cuda:0"):
            q4.Matrix.from_gptq(w, z, s, device="cuda:0")


def test_checkpoint(tmp_path: Path) -> None:
    samples = {f"model.layers.{i}.q_proj": gptq(64, 16, 32, seed=i) for i in range(3)}
    save_checkpoint(tmp_path, samples, 32)
    checkpoint = q4.Checkpoint(tmp_path)
    assert [e.name for e in checkpoint.matrices] == list(samples)
    assert (checkpoint.format, checkpoint.group_size, checkpoint.find("model.layers.1.q_proj").k) == ("gptq", 32, 64)
    x = activations(3, 64)
    for name, sample in samples.items():
        assert_close(x @ checkpoint.load(name, "cpu"), x, sample.dense)
        assert_close(x @ q4.Matrix.from_checkpoint(str(tmp_path), name, device="cpu"), x, sample.dense)
    with pytest.raises(LookupError, match="model.layers.2.q_proj"):
        checkpoint.load("model.layers.9.q_proj", "cpu")
    with pytest.raises(LookupError):
        q4.Checkpoint(tmp_path / "missing")
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(q4.CorruptFile):
        q4.Checkpoint(tmp_path)
    with pytest.raises(TypeError):
        q4.Checkpoint(3)  # type: ignore[arg-type]


def test_queries() -> None:
    cpu = q4.devices()[-1]
    assert cpu.device == "cpu" and cpu.compute_units >= 1 and cpu.memory_bytes > 0 and "cpu" in repr(cpu)
    assert {"cpu", "cuda"} <= {b.kind for b in q4.backends()}
    assert all(b.available or b.reason for b in q4.backends())
    assert q4.best_device() == q4.devices()[0].device
    assert isinstance(q4.tuning(), list) and isinstance(q4.cache_dir(), str) and q4.__version__


def test_warmup_and_the_cache() -> None:
    calls: list[tuple[int, int]] = []
    report = q4.warmup([(256, 64), (64, 256)], 16, device="cpu", progress=lambda done, total, kernel: calls.append((done, total)))
    assert report["complete"] and report["kernels"] == [] and calls == []  # the CPU compiles nothing
    assert {"memory", "pack", "compiled", "failed"} <= set(q4.cache_counters())
    with pytest.raises(q4.InvalidArgument, match="k = 7"):
        q4.warmup([(7, 64)], 1, device="cpu")
    with pytest.raises(q4.InvalidArgument, match="dtype"):
        q4.warmup([(64, 64)], 1, "int8", device="cpu")  # type: ignore[arg-type]


def test_threads_release_the_gil() -> None:
    """Python runs on while a long multiplication does: a counter advances during it."""
    sample = gptq(4096, 4096, 128)
    W = q4.Matrix.from_gptq(*sample.tensors())
    x = activations(256, 4096)
    W.warmup(256)
    ticks, done = [0], threading.Event()

    def count() -> None:
        while not done.is_set():
            ticks[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    start = ticks[0]
    x @ W
    during = ticks[0] - start
    done.set()
    thread.join()
    assert during > 1000


def test_no_framework_is_imported() -> None:
    code = "import q4, exllama_kernels, sys; print({'torch', 'numpy', 'cupy', 'jax'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_command(tmp_path: Path) -> None:
    def run(*arguments: str, **options: Any) -> Any:
        return subprocess.run([sys.executable, "-m", "q4", *arguments], capture_output=True, text=True, **options)

    for arguments in ((), ("info",)):
        result = run(*arguments)
        assert result.returncode == 0 and "cpu: available" in result.stdout
    for option in ("--help", "-h", "help"):
        result = run(option)
        assert result.returncode == 0 and "usage: q4" in result.stdout and not result.stderr
    assert run("--version").stdout == f"q4 {q4.__version__}\n"
    assert importlib.metadata.version("q4") == q4.__version__
    for wrong in (("nonsense",), ("--nonsense",), ("info", "more")):
        result = run(*wrong)
        assert result.returncode == 2 and " ".join(wrong) in result.stderr and "usage" in result.stderr
    result = run("bench", env=dict(os.environ, PATH=str(tmp_path)))
    assert result.returncode == 1 and "q4-bench is neither" in result.stderr


def test_command_into_what_does_not_read_it() -> None:
    """`q4 info | head -1`, with the reader gone before the first line, and a full disk."""
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run([sys.executable, "-m", "q4", "info"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert result.returncode == -signal.SIGPIPE and result.stderr == ""
    for arguments in (["info"], ["--help"]):
        with open("/dev/full", "w") as full:
            result = subprocess.run([sys.executable, "-m", "q4", *arguments], stdout=full, stderr=subprocess.PIPE, text=True)
        assert result.returncode == 1 and "No space left" in result.stderr and "Traceback" not in result.stderr
