"""Both modules on torch tensors: on the CPU wherever torch is, on CUDA where a GPU is; skipped without torch."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import exllama_kernels as ek  # noqa: E402
import q4  # noqa: E402
import q4.torch as q4_torch  # noqa: E402
from q4 import _torch_ops  # noqa: E402
from torch import library as torch_library  # noqa: E402
from samples import Sample, activations, assert_close, gptq, save_checkpoint  # noqa: E402

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
DEVICES = [torch.device("cpu"), pytest.param(torch.device("cuda", 0), marks=needs_cuda)]


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    with torch.no_grad():
        yield
    ek.cleanup()
    ek.reset_tuning_params()


def tensors(sample: Sample, device: Any) -> list[Any]:
    return [torch.from_numpy(t).to(device) for t in sample.tensors()]


def close(out: Any, x: Any, sample: Sample, relative: float = 1e-3) -> None:
    assert_close(out.float().cpu().numpy(), x.float().cpu().numpy(), sample.dense, relative)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group", [32, 128, -1])
def test_drop_in(device: Any, act_order: bool, group: int) -> None:
    sample = gptq(512, 96, group, act_order=act_order)
    meta = torch.empty((1, 1), dtype=torch.int32, device="meta")
    g_idx = torch.from_numpy(sample.g_idx)
    forms = [g_idx, g_idx.to(device)] if act_order else [None, meta, g_idx, torch.empty(0, dtype=torch.int32)]
    index = device.index if device.type == "cuda" else None
    ek.prepare_buffers(
        device,
        torch.zeros((64, 512), dtype=torch.half, device=device),
        torch.zeros((1, 8), dtype=torch.half, device=device),
    )
    for form in forms:
        handle = ek.make_q4(*tensors(sample, device), form, index)
        for m in (1, 7, 40):
            x = torch.from_numpy(activations(m, 512)).to(device)
            out = torch.full((m, 96), float("nan"), dtype=torch.half, device=device)
            ek.q4_matmul(x, handle, out)
            close(out, x, sample)


@pytest.mark.parametrize("device", DEVICES)
def test_drop_in_refuses(device: Any) -> None:
    handle = ek.make_q4(*tensors(gptq(64, 16, 32), device), None, device)
    x, out = (
        torch.zeros((2, 64), dtype=torch.half, device=device),
        torch.zeros((2, 16), dtype=torch.half, device=device),
    )
    cases: list[Any] = [
        (x.double(), out, "x has dtype torch.float64"),
        (x.to("meta"), out, "meta"),
        (x, out.to("meta"), "meta"),
        (x.bfloat16(), out, "x has dtype bf16"),
        (x, out[:, :8], "out has shape"),
        (x.t().contiguous().t(), out, "contiguous"),
    ]
    if device.type == "cuda":
        cases += [(x.cpu(), out, "x is on cpu"), (x, out.cpu(), "out is on cpu")]
    for from_, to, text in cases:
        with pytest.raises(RuntimeError, match=text):
            ek.q4_matmul(from_, handle, to)
    with pytest.raises((RuntimeError, TypeError)):
        ek.q4_matmul(x.to_sparse(), handle, out)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_modern(device: Any, dtype: Any) -> None:
    sample = gptq(512, 96, 64, act_order=True)
    W = q4.Matrix.from_gptq(*tensors(sample, device), torch.from_numpy(sample.g_idx))
    assert W.device == ("cpu" if device.type == "cpu" else str(device))
    relative = 1e-3 if dtype == torch.float16 else 8e-3
    for m in (1, 6, 33):
        x = torch.from_numpy(activations(m, 512)).to(device, dtype)
        out = x @ W
        assert out.dtype == dtype and out.device == x.device and out.shape == (m, 96)
        close(out, x, sample, relative)
        assert torch.equal(torch.matmul(x, W), out) and torch.equal(q4.matmul(x[None], W)[0], out)
        bias = torch.ones(96, device=device, dtype=dtype)
        assert torch.equal(q4.matmul(x, W, bias=bias), out + 1)
    with pytest.raises(TypeError):
        W @ x  # type: ignore[operator]
    with pytest.raises(TypeError):
        x + W


@pytest.mark.parametrize("device", DEVICES)
def test_linear(device: Any) -> None:
    sample = gptq(256, 64, 32)
    linear = q4_torch.Linear.from_gptq(*tensors(sample, device))
    x = torch.from_numpy(activations(6, 256)).to(device).view(2, 3, 256)
    y = linear(x)
    close(y.view(6, 64), x.view(6, 256), sample)
    assert torch.equal(linear(x.transpose(0, 1)).transpose(0, 1), y)
    assert torch.equal(torch.ops.q4.matmul(x, linear._number, 64), y)
    assert "in_features=256" in repr(linear) and not list(linear.parameters())
    number = linear._number
    del linear
    with pytest.raises(RuntimeError, match="freed"):
        torch.ops.q4.matmul(x, number, 64)


@pytest.mark.parametrize("device", DEVICES)
def test_compile_makes_one_graph(device: Any) -> None:
    linear = q4_torch.Linear.from_gptq(*tensors(gptq(256, 256, 32), device))
    backend = "inductor" if device.type == "cuda" else "aot_eager"

    def twice(x: Any) -> Any:
        return linear(torch.relu(linear(x))) + 1

    compiled = torch.compile(twice, fullgraph=True, backend=backend)
    for m in (2, 5, 9):
        x = torch.from_numpy(activations(m, 256)).to(device)
        torch.testing.assert_close(compiled(x), twice(x))
    torch_library.opcheck(
        torch.ops.q4.matmul.default, (x, linear._number, 256), test_utils=("test_schema", "test_faketensor")
    )


def dense(sample: Sample, device: Any, dtype: Any = torch.float32) -> Any:
    return torch.from_numpy(sample.dense).to(device, dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bias", [False, True])
def test_gradients(device: Any, bias: bool) -> None:
    """By x @ W, q4.matmul, torch.matmul, Linear, compiled and in functional form: dx = dy @ W^T, never a silent nothing."""
    sample = gptq(600, 64, 32, act_order=True)
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    own = torch.linspace(-1, 1, 64, device=device) if bias else None
    W = q4.Matrix.from_gptq(*tensors(sample, device), torch.from_numpy(sample.g_idx), own)
    linear = q4_torch.Linear(W)
    x0 = torch.from_numpy(activations(6, 600)).to(device, dtype).view(2, 3, 600)
    weights = torch.randn(2, 3, 64, device=device, dtype=dtype)
    expected = (weights.float() @ dense(sample, device).T).to(dtype)
    extra = torch.ones(64, device=device, dtype=dtype, requires_grad=True)
    with torch.enable_grad():
        ways: list[Any] = [
            lambda x: x @ W,
            lambda x: torch.matmul(x, W),
            lambda x: q4.matmul(x, W),
            lambda x: q4.matmul(x, W, bias=extra),
            lambda x: q4.matmul(x, W, batch_invariant=True),
            lambda x: W.matmul(x),
            linear,
            lambda x: linear(x.transpose(0, 1)).transpose(0, 1),
            torch.compile(linear, backend="aot_eager", fullgraph=True),
        ]
        for i, way in enumerate(ways):
            x = x0.clone().requires_grad_()
            y = way(x)
            assert y.requires_grad and y.grad_fn is not None, i
            (y * weights).sum().backward()
            torch.testing.assert_close(x.grad, expected, rtol=2e-3, atol=2e-3)
            torch.testing.assert_close(y.detach(), linear(x0) + (1 if i == 3 else 0), rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(extra.grad, weights.sum((0, 1)), rtol=2e-3, atol=2e-3)
        functional = torch.func.grad(lambda x: ((x @ W) * weights).sum())(x0)
        torch.testing.assert_close(functional, expected, rtol=2e-3, atol=2e-3)
        each = torch.func.vmap(torch.func.grad(lambda x, w: ((x @ W) * w).sum()))(x0[0], weights[0])
        torch.testing.assert_close(each, expected[0], rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(torch.func.vmap(lambda x: x @ W, in_dims=1)(x0).transpose(0, 1), x0 @ W)
        tangent = torch.randn_like(x0)
        _, derivative = torch.func.jvp(lambda x: x @ W, (x0,), (tangent,))
        torch.testing.assert_close(derivative, tangent @ dense(sample, device, dtype), rtol=2e-3, atol=2e-3)
        with torch.autograd.forward_ad.dual_level():
            dual = linear(torch.autograd.forward_ad.make_dual(x0, tangent))
            torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, derivative)
        x = x0.clone().requires_grad_()
        through = torch.utils.checkpoint.checkpoint(linear, x, use_reentrant=False)
        (through * weights).sum().backward()
        torch.testing.assert_close(x.grad, expected, rtol=2e-3, atol=2e-3)
        number = _torch_ops.number_of(W)
        torch_library.opcheck(torch.ops.q4.matmul.default, (x0.clone().requires_grad_(), number, 64))
        assert not (x0 @ W).requires_grad  # nothing to record


def test_what_has_no_gradient_says_so() -> None:
    sample = gptq(64, 16, 32)
    W = q4.Matrix.from_gptq(*tensors(sample, "cpu"))
    plan, out = W.plan(4, dtype=torch.float32), torch.empty(4, 16)
    with torch.enable_grad():
        x = torch.ones(4, 64, requires_grad=True)
        history = torch.ones(4, 16, requires_grad=True) * 2
        for call, text in (
            (lambda: q4.matmul(x, W, out=out), "out= does not go with an x that requires grad"),
            (lambda: q4.matmul(x.detach(), W, out=history), "out requires grad"),
            (lambda: q4.matmul(x, W, stream=0), "stream="),
            (lambda: plan.run(x, out), "Plan.run: x requires grad"),
            (lambda: plan.run(x.detach(), history), "Plan.run: out requires grad"),
        ):
            with pytest.raises(ValueError, match=text):
                call()
        y = x @ W
        (first,) = torch.autograd.grad((y * y).sum(), x, create_graph=True)
        with pytest.raises(NotImplementedError, match="second derivatives"):
            first.sum().backward()
    plan.run(x, out)  # under no_grad
    assert torch.equal(out, x.detach() @ W)


def test_trace_and_fake_tensors(tmp_path: Path) -> None:
    sample = gptq(64, 16, 32)
    linear = q4_torch.Linear.from_gptq(*tensors(sample, "cpu"))
    x = torch.from_numpy(activations(4, 64))
    for function in (linear, lambda x: x @ linear.matrix):
        traced = torch.jit.trace(function, x)
        for m in (1, 4, 9):
            given = torch.from_numpy(activations(m, 64, m))
            close(traced(given), given, sample)
    torch.jit.save(torch.jit.trace(linear, x), tmp_path / "traced.pt")
    close(torch.jit.load(tmp_path / "traced.pt")(x), x, sample)
    script = "import sys, torch, q4.torch; torch.jit.load(sys.argv[1])(torch.ones(4, 64, dtype=torch.half))"
    result = subprocess.run([sys.executable, "-c", script, tmp_path / "traced.pt"], capture_output=True, text=True)
    assert result.returncode != 0 and "no longer exists" in result.stderr
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for fake in (mode.from_tensor(x), torch.empty(4, 64, dtype=torch.half)):
            for y in (linear(fake), fake @ linear.matrix):
                assert type(y) is type(fake) and y.shape == (4, 16)


class Named(torch.Tensor):
    """A subclass of Tensor, as libraries make them."""


def test_subclasses_keep_their_class() -> None:
    sample = gptq(64, 16, 32)
    W = q4.Matrix.from_gptq(*tensors(sample, "cpu"))
    x = torch.from_numpy(activations(4, 64)).as_subclass(Named)
    assert type(x @ W) is Named
    close((x @ W).as_subclass(torch.Tensor), x.as_subclass(torch.Tensor), sample)
    parameter = torch.nn.Parameter(torch.from_numpy(activations(4, 64)))
    close(parameter @ W, parameter.detach(), sample)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(64, 32, bias=False)
        self.block = torch.nn.ModuleDict({"second": torch.nn.Linear(32, 16, bias=False)})

    def forward(self, x: Any) -> Any:
        return self.block["second"](torch.relu(self.first(x)))


@pytest.mark.parametrize("device", DEVICES)
def test_replace_linears(device: Any, tmp_path: Path) -> None:
    samples = {"first": gptq(64, 32, 32), "block.second": gptq(32, 16, 32)}
    save_checkpoint(tmp_path, samples, 32)
    model = Model().half().to(device)
    assert sorted(q4_torch.replace_linears(model, tmp_path)) == ["block.second", "first"]
    assert isinstance(model.first, q4_torch.Linear)
    x = torch.from_numpy(activations(4, 64)).to(device)
    hidden = np.maximum(x.cpu().double().numpy() @ samples["first"].dense, 0)
    expected = torch.from_numpy(hidden @ samples["block.second"].dense).float()
    torch.testing.assert_close(model(x).float().cpu(), expected, rtol=5e-3, atol=5e-3)

    other = torch.nn.ModuleDict({"inner": Model()})
    with pytest.raises(LookupError, match="block.second"):
        q4_torch.replace_linears(other, tmp_path)
    assert q4_torch.replace_linears(other, q4.Checkpoint(tmp_path), strict=False) == []
    wrong = Model()
    wrong.first = torch.nn.Linear(64, 40)
    with pytest.raises(ValueError, match="'first' is Linear of 64 -> 40"):
        q4_torch.replace_linears(wrong, tmp_path)
    assert isinstance(wrong.block["second"], torch.nn.Linear)


def test_replace_linears_leaves_what_is_not_supported(tmp_path: Path) -> None:
    samples = {"first": gptq(64, 32, 32), "block.second": gptq(32, 16, 32)}
    samples["block.second"].qzeros = samples["block.second"].qzeros[:, :0]  # and sym is not said
    save_checkpoint(tmp_path, samples, 32)
    entries = {entry.name: entry for entry in q4.Checkpoint(tmp_path).matrices}
    assert entries["first"].unsupported == "" and entries["first"].bits == 4
    assert "no configuration says sym" in entries["block.second"].unsupported
    model = Model().half()
    with pytest.raises(q4.Unsupported, match="no configuration says sym.*strict=False"):
        q4_torch.replace_linears(model, tmp_path)
    assert q4_torch.replace_linears(model, tmp_path, strict=False) == ["first"]
    assert isinstance(model.block["second"], torch.nn.Linear)


class WithBias(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(64, 32)
        self.second = torch.nn.Linear(32, 16)
        self.table = torch.nn.Embedding(32, 16)
        self.twin = self.first

    def forward(self, x: Any) -> Any:
        return self.second(self.first(x))


@pytest.mark.parametrize("device", DEVICES)
def test_replace_linears_keeps_the_bias(device: Any, tmp_path: Path) -> None:
    """The checkpoint's where it has one, else the module's own; embeddings and second names of a module."""
    samples = {name: gptq(64, 32, 32, seed=i) for i, name in enumerate(("first", "twin"))}
    samples["second"] = gptq(32, 16, 32, seed=3)
    samples["table"] = gptq(32, 16, 32, seed=4)
    save_checkpoint(tmp_path, samples, 32, bias={"second": np.linspace(0, 1, 16).astype(np.float16)})
    model = WithBias().half().to(device)
    own = model.first.bias
    assert sorted(q4_torch.replace_linears(model, tmp_path)) == ["first", "second", "twin"]
    assert isinstance(model.table, torch.nn.Embedding) and isinstance(model.twin, q4_torch.Linear)
    assert model.first.bias is own and "bias=True" in repr(model.second) and model.second.bias is None
    x = torch.from_numpy(activations(4, 64)).to(device)
    expected = x.float() @ dense(samples["first"], device) + own.float()
    torch.testing.assert_close(model.first(x).float(), expected, rtol=5e-3, atol=5e-3)
    expected = expected @ dense(samples["second"], device) + torch.linspace(0, 1, 16, device=device)
    torch.testing.assert_close(model(x).float(), expected, rtol=5e-3, atol=5e-3)
    with torch.enable_grad():
        model.first(x).sum().backward()
    torch.testing.assert_close(own.grad, torch.full_like(own, 4))
    with torch.device("meta"):
        empty = WithBias()
    with pytest.raises(ValueError, match="'first' has a bias, but the checkpoint has none"):
        q4_torch.replace_linears(empty, tmp_path)
    with pytest.raises(ValueError, match=r"bias has shape \[3\]"):
        q4_torch.Linear(model.first.matrix, torch.zeros(3))


@needs_cuda
@pytest.mark.parametrize("module", ["drop-in", "modern"])
def test_streams_and_graphs(module: str) -> None:
    device = torch.device("cuda", 0)
    sample = gptq(512, 512, 128, act_order=True)
    parts = [*tensors(sample, device), torch.from_numpy(sample.g_idx)]
    handle, W = ek.make_q4(*parts, 0), q4.Matrix.from_gptq(*parts)

    def multiply(x: Any) -> Any:
        if module == "modern":
            return x @ W
        out = torch.empty((len(x), 512), dtype=torch.half, device=device)
        ek.q4_matmul(x, handle, out)
        return out

    for m in (1, 16, 64):
        x = torch.from_numpy(activations(m, 512)).to(device)
        expected = multiply(x).clone()
        streams = [torch.cuda.Stream() for _ in range(4)]
        results = []
        for i in range(40):
            with torch.cuda.stream(streams[i % 4]):
                streams[i % 4].wait_stream(torch.cuda.default_stream())
                results.append(multiply(x))
        torch.cuda.synchronize()
        assert all(torch.equal(r, expected) for r in results)
        graph, still = torch.cuda.CUDAGraph(), x.clone()
        with torch.cuda.graph(graph):
            captured = multiply(still)
        for seed in range(3):
            still.copy_(torch.from_numpy(activations(m, 512, seed)))
            graph.replay()
            close(captured, still, sample)


@needs_cuda
def test_cleanup_gives_the_memory_back() -> None:
    sample = gptq(4096, 4096, 128)
    parts = tensors(sample, "cuda")
    x = torch.zeros((64, 4096), dtype=torch.half, device="cuda")
    out = torch.zeros_like(x)

    def cycle() -> int:
        handles = [ek.make_q4(*parts, None, 0) for _ in range(4)]
        for handle in handles:
            ek.q4_matmul(x, handle, out)
        ek.cleanup()
        torch.cuda.synchronize()
        return int(torch.cuda.mem_get_info()[0])

    cycle()
    free = cycle()
    assert min(cycle() for _ in range(20)) >= free - (1 << 20)


@pytest.mark.parametrize("device", DEVICES)
def test_threads(device: Any) -> None:
    sample = gptq(256, 64, 32, act_order=True)
    W = q4.Matrix.from_gptq(*tensors(sample, device), torch.from_numpy(sample.g_idx))
    problems: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for i in range(30):
                x = torch.from_numpy(activations(1 + i, 256, seed)).to(device)
                close(W.matmul(x), x, sample)
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems, problems[0]
