"""q4.torch.fuse_linears: q, k and v, and gate and up, as one product; skipped without torch."""

import copy
import pickle
from typing import Any

import pytest
from samples import awq, gptq

torch = pytest.importorskip("torch")

import q4  # noqa: E402
import q4.torch as q4_torch  # noqa: E402

SHAPES = {"q_proj": (64, 96), "k_proj": (64, 32), "v_proj": (64, 32), "gate_proj": (64, 80), "up_proj": (64, 80)}


class Block(torch.nn.Module):  # type: ignore[misc,name-defined,unused-ignore]
    def forward(self, x: Any) -> Any:
        parts = self.attention.q_proj(x), self.attention.k_proj(x), self.attention.v_proj(x)
        mlp = torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x)
        return torch.cat([*parts, mlp], -1)


def linear(kind: str, name: str, number: int) -> Any:
    k, n = SHAPES[name]
    if kind == "awq":
        return q4_torch.Linear(q4.Matrix.from_awq(*map(torch.from_numpy, awq(k, n, 32, number).tensors())))
    made = gptq(k, n, 32, seed=number, act_order=kind != "gptq", zeros="v2")
    if kind == "act-order":  # one for all, without which rows are in different groups
        made.g_idx = gptq(64, 32, 32, seed=3, act_order=True).g_idx
    bias = torch.randn(n) if kind == "bias" else None
    return q4_torch.Linear(
        q4.Matrix.from_gptq(*map(torch.from_numpy, made.tensors()), torch.from_numpy(made.g_idx), bias, zeros="v2")
    )


def block(kind: str) -> Any:
    torch.manual_seed(1)
    made = Block()
    made.attention = torch.nn.Module()
    for number, name in enumerate(SHAPES):
        setattr(made.attention if number < 3 else made, name, linear(kind, name, number))
    return made


@pytest.mark.parametrize("kind", ["gptq", "act-order", "awq"])
def test_the_same_results_and_tensors(kind: str) -> None:
    model = block(kind)
    state, x = copy.deepcopy(model.state_dict()), torch.randn(3, 5, 64)
    expected = model(x)
    assert q4_torch.fuse_linears(model) == [
        "gate_proj", "up_proj", "attention.q_proj", "attention.k_proj", "attention.v_proj"
    ]  # fmt: skip
    assert type(model.up_proj) is q4_torch.FusedLinear and "of the product for gate_proj, up_proj" in repr(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-6, atol=1e-6)
    assert model.gate_proj.product.found is None
    again = model.state_dict()
    rest = {key for key in state if kind == "act-order" or not key.endswith("g_idx")}  # which is left out where it is in order
    assert again.keys() == rest and all(torch.equal(again[key], state[key]) for key in rest)
    fresh = block(kind)
    fresh.load_state_dict(again)
    torch.testing.assert_close(fresh(x), expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(RuntimeError, match="it takes no state_dict"):
        model.load_state_dict(state)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(x), expected, rtol=1e-6, atol=1e-6)
        assert other.gate_proj.product is other.up_proj.product is not model.up_proj.product
    assert q4_torch.fuse_linears(model) == []
    assert model.half()(x).dtype == torch.float16
    with pytest.raises(q4.Unsupported, match="move the model before fuse_linears"):
        model.to("meta")


def test_a_product_is_found_only_for_the_same_unchanged_tensor() -> None:
    model = block("gptq")
    plain = copy.deepcopy(model)
    q4_torch.fuse_linears(model)
    x = torch.randn(2, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), plain(x))
        torch.testing.assert_close(model(x * 2), plain(x * 2))
    q = model.attention.q_proj(x)
    assert model.attention.q_proj(x).data_ptr() != q.data_ptr()  # its own only once
    x += 1
    torch.testing.assert_close(model.attention.k_proj(x), plain.attention.k_proj(x))
    torch.testing.assert_close(model.attention.v_proj(x + 1), plain.attention.v_proj(x + 1))

    gradients = []
    for each in (model, plain):
        given = torch.ones(2, 64, requires_grad=True)
        each(given).square().sum().backward()
        gradients.append(given.grad)
    torch.testing.assert_close(*gradients)
    with torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), plain(x))


def test_what_stays_as_it_is() -> None:
    assert q4_torch.fuse_linears(block("other orders")) == []
    model = block("gptq")
    model.attention.k_proj = torch.nn.Linear(64, 32)
    model.up_proj.bias = torch.nn.Parameter(torch.zeros(80))
    assert q4_torch.fuse_linears(model) == []
    model = block("bias")
    x = torch.randn(2, 64)
    expected = model(x)
    for name in ("k_proj", "v_proj"):
        setattr(model.attention, name, linear("bias", name, 3))
    assert len(q4_torch.fuse_linears(block("act-order"))) == 5 and expected.shape == (2, 240)
