"""Both modules on torch tensors: on the CPU wherever torch is, on CUDA where a GPU is; skipped without torch."""

import threading
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import exllama_kernels as ek  # noqa: E402
import q4  # noqa: E402
import q4.torch as q4_torch  # noqa: E402
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
    for other in (x.to_sparse(), x.float().to_sparse_csr(), torch.nested.nested_tensor([x, x])):
        with pytest.raises(TypeError, match=r"q4_matmul: x is a (nested|torch\.sparse_\w+) tensor; .*\(\) returns"):
            ek.q4_matmul(other, handle, out)


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
