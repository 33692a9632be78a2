"""q4.torch.Linear as torch treats any module: state_dict, copies, devices, dtypes, autocast, export; skipped without torch."""

import copy
import io
import pickle
from typing import Any, Iterator

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import q4  # noqa: E402
import q4.torch as q4_torch  # noqa: E402
from samples import Sample, activations, assert_close, awq, gptq  # noqa: E402

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
KINDS = ["gptq", "act-order", "v2", "bias", "awq"]


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def make(kind: str, k: int = 128, n: int = 48) -> tuple[Any, dict[str, Any], Sample]:
    """A Linear, the tensors that it was made of, and the sample."""
    if kind == "awq":
        sample = awq(k, n, 32)
        names = dict(zip(("qweight", "qzeros", "scales"), map(torch.from_numpy, sample.tensors())))
        return q4_torch.Linear(q4.Matrix.from_awq(*names.values())), names, sample
    zeros = "v2" if kind == "v2" else "v1"
    sample = gptq(k, n, 32, act_order=kind == "act-order", zeros=zeros)
    names = dict(zip(("qweight", "qzeros", "scales"), map(torch.from_numpy, sample.tensors())))
    names["g_idx"] = torch.from_numpy(sample.g_idx)
    if kind == "bias":
        names["bias"] = torch.from_numpy(activations(1, n, 7)[0])
    return q4_torch.Linear.from_gptq(*names.values(), zeros=zeros), names, sample


def x_of(linear: Any, dtype: Any = torch.float32) -> Any:
    return torch.from_numpy(activations(5, linear.in_features)).to(dtype)


class Net(torch.nn.Module):
    def __init__(self, first: Any, last: Any) -> None:
        super().__init__()
        self.first, self.norm, self.last = first, torch.nn.LayerNorm(48), last

    def forward(self, x: Any) -> Any:
        return self.last(self.norm(self.first(x)))


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_is_the_tensors(kind: str) -> None:
    linear, tensors, _ = make(kind)
    state = linear.state_dict()
    assert set(state) == set(tensors)
    for name, tensor in tensors.items():
        assert state[name].dtype == tensor.dtype and torch.equal(state[name], tensor), name
    empty = q4_torch.Linear.empty(128, 48)
    assert "no weights" in repr(empty) and not empty.state_dict()
    with pytest.raises(ValueError, match="load_state_dict"):
        empty(x_of(empty))
    assert str(empty.load_state_dict(state)) == "<All keys matched successfully>"
    assert torch.equal(empty(x_of(linear)), linear(x_of(linear)))
    plain = dict(state)  # as a safetensors file gives it: without torch's metadata
    again = q4_torch.Linear.empty(128, 48, zeros="v2" if kind == "v2" else "v1")
    again.load_state_dict(plain)
    assert torch.equal(again(x_of(linear)), linear(x_of(linear)))
    other = make(kind if kind != "bias" else "gptq")[0]
    other.load_state_dict(state)  # over weights
    assert torch.equal(other(x_of(linear)), linear(x_of(linear)))


def test_state_dict_of_a_model() -> None:
    model = Net(make("act-order")[0], q4_torch.Linear(make("gptq", 48, 16)[0].matrix, torch.nn.Parameter(torch.ones(16))))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file)  # tensors alone: weights_only
    again = Net(q4_torch.Linear.empty(128, 48), make("gptq", 48, 16)[0])
    again.last = q4_torch.Linear(again.last.matrix, torch.nn.Parameter(torch.zeros(16)))
    again.load_state_dict(state)
    x = torch.from_numpy(activations(3, 128)).float()
    assert torch.equal(again(x), model(x))
    prefixed = torch.nn.ModuleList([again])
    assert "0.first.qweight" in prefixed.state_dict() and "0.last.bias" in prefixed.state_dict()
    assert [name for name, _ in model.named_parameters()] == ["norm.weight", "norm.bias", "last.bias"]
    assert torch.nn.utils.parameters_to_vector(model.parameters()).numel() == 48 + 48 + 16
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert model.eval() is model and not model.first.training
    for wrong, text in (
        ({k: v for k, v in state.items() if k != "first.scales"}, r"Missing key.*first\.scales"),
        ({**state, "first.more": torch.ones(1)}, r"Unexpected key.*first\.more"),
        ({**state, "first.qweight": state["first.qweight"][:8]}, r"first\.qweight has shape \[8, 48\]"),
        ({**state, "first.qzeros": state["first.qzeros"][:1]}, "first: "),
    ):
        with pytest.raises(RuntimeError, match=text):
            again.load_state_dict(wrong)
    assert torch.equal(again(x), model(x))
    missing, _ = again.load_state_dict({"norm.weight": torch.zeros(48)}, strict=False)
    assert "first.qweight" in missing and torch.equal(again.first(x), model.first(x))


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_pickles(kind: str) -> None:
    linear, _, _ = make(kind)
    linear.bfloat16()
    file = io.BytesIO()
    torch.save(linear, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False, map_location="cpu")
    for again in (loaded, copy.deepcopy(linear), pickle.loads(pickle.dumps(linear))):
        assert again.matrix is not linear.matrix and again.dtype == torch.bfloat16
        assert repr(again) == repr(linear)
        assert torch.equal(again(x_of(linear)), linear(x_of(linear)))
        assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in linear.state_dict().items())
    model = Net(linear, make("gptq", 48, 16)[0])
    twin = copy.deepcopy(model)
    del model
    assert twin.last(torch.ones(1, 48)).shape == (1, 16)


def test_dtypes() -> None:
    linear, _, sample = make("gptq")
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert linear(x_of(linear, dtype)).dtype == dtype  # x's own
    for move, dtype in (
        (lambda m: m.half(), torch.float16),
        (lambda m: m.bfloat16(), torch.bfloat16),
        (lambda m: m.to(torch.float32), torch.float32),
        (lambda m: m.to(torch.float16), torch.float16),
        (lambda m: m.cpu(), torch.float16),  # stays
    ):
        move(linear)
        assert linear.dtype == dtype and f"dtype={str(dtype)[6:]}" in repr(linear)
        y = linear(x_of(linear))
        assert y.dtype == dtype
        assert_close(y.float().numpy(), x_of(linear, dtype).float().numpy(), sample.dense, 1e-2)
    with pytest.raises(ValueError, match="float64"):
        linear.double()(x_of(linear))
    with pytest.raises(ValueError, match="float64"):
        make("gptq")[0](x_of(linear, torch.float64))


@pytest.mark.parametrize("bias", [False, True])
def test_autocast_is_that_of_nn_linear(bias: bool) -> None:
    linear, _, sample = make("gptq")
    if bias:
        linear = q4_torch.Linear(linear.matrix, torch.nn.Parameter(torch.linspace(0, 1, 48)))
    usual = torch.nn.Linear(128, 48, bias=bias)
    usual.weight.copy_(torch.from_numpy(sample.dense.T))
    if bias:
        usual.bias.copy_(linear.bias)
    for dtype in (torch.bfloat16, torch.float16):
        for given in (torch.float32, torch.bfloat16, torch.float16):
            x = x_of(linear, given)
            with torch.autocast("cpu", dtype):
                y, expected = linear(x), usual(x)
            assert y.dtype == expected.dtype == dtype
            torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)
    with torch.autocast("cpu", torch.bfloat16), torch.enable_grad():
        x = x_of(linear).requires_grad_()
        y = torch.compile(linear, backend="aot_eager", fullgraph=True)(x)
        assert y.dtype == torch.bfloat16
        y.float().sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(5, 48) @ usual.weight, rtol=2e-2, atol=2e-2)


def test_meta_and_lazy_load() -> None:
    linear, _, _ = make("bias")
    state, x, expected = linear.state_dict(), x_of(linear), linear(x_of(linear))
    linear.to("meta")
    assert linear.device.type == "meta" and "no weights" in repr(linear) and not linear.state_dict()
    linear.half().to_empty(device="cpu")
    linear.load_state_dict(state)
    assert linear.device == torch.device("cpu") and linear.dtype == torch.float16
    assert torch.equal(linear.float()(x), expected)
    lazy = q4_torch.Linear.empty(128, 48, device="meta")
    lazy.load_state_dict(state)
    assert torch.equal(lazy(x), expected)


def test_compile_with_dynamic_shapes_and_export() -> None:
    model = Net(make("act-order")[0], q4_torch.Linear(make("gptq", 48, 16)[0].matrix, torch.nn.Parameter(torch.ones(16))))
    compiles = 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal compiles
        compiles += 1
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for m in (2, 5, 9, 33):
        x = torch.from_numpy(activations(m, 128)).float()
        torch.testing.assert_close(compiled(x), model(x))
    assert compiles == 1
    for strict in (False, True):
        dynamic = ({0: torch.export.Dim("m", min=2, max=64)},)
        program = torch.export.export(model, (x,), dynamic_shapes=dynamic, strict=strict)
        for m in (2, 7):
            x = torch.from_numpy(activations(m, 128)).float()
            torch.testing.assert_close(program.module()(x), model(x))


@needs_cuda
def test_to_a_gpu_and_back() -> None:
    linear, _, _ = make("act-order")
    x, state = x_of(linear, torch.half), linear.state_dict()
    expected = linear(x)
    linear.cuda()
    assert linear.device == torch.device("cuda", 0) and linear.matrix.device == "cuda:0"
    torch.testing.assert_close(linear(x.cuda()).cpu(), expected, rtol=2e-3, atol=2e-3)
    assert all(torch.equal(linear.state_dict()[name], tensor) for name, tensor in state.items())
    assert copy.deepcopy(linear).matrix.device == "cuda:0"
    assert torch.equal(linear.to("cpu")(x), expected)


def test_dense_rows_are_the_weights() -> None:
    """What the gradient on the CPU multiplies by, for every layout."""
    from q4 import _matrix

    for kind in KINDS:
        linear, names, sample = make(kind)
        tensors = {name: tensor.numpy() for name, tensor in names.items()}
        tensors = {"g_idx": None, **tensors, "format": "awq" if kind == "awq" else "gptq", "group_size": 32}
        tensors["zeros"] = linear.matrix.zeros
        rows = np.concatenate([_matrix.dense_rows(tensors, 0, 64), _matrix.dense_rows(tensors, 64, 128)])
        assert np.allclose(rows, sample.dense, rtol=1e-6, atol=0), kind
