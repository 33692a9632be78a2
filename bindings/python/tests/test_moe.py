"""q4.Experts, q4.moe and q4.grouped_matmul on NumPy arrays, and on torch's where it is."""

from math import erf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import q4
from samples import Sample, awq, gptq, save_checkpoint

EXPERTS, TOPK, K, WIDTH, N = 5, 2, 64, 48, 72


def layer(**options: Any) -> tuple[list[Sample], list[Sample]]:
    first = [gptq(K, 2 * WIDTH, 32, seed=e, **options) for e in range(EXPERTS)]
    return first, [gptq(WIDTH, N, 16, seed=100 + e, **options) for e in range(EXPERTS)]


def tensors(samples: list[Sample]) -> list[tuple[Any, ...]]:
    return [(*s.tensors(), s.g_idx) for s in samples]


def routing(tokens: int, experts: int = EXPERTS) -> tuple[Any, Any]:
    rng = np.random.default_rng(tokens)
    ids = np.argsort(rng.random((tokens, experts)), 1)[:, :TOPK].astype(np.int32)
    return ids, rng.random((tokens, TOPK)).astype(np.float32)


def activated(name: str, y: Any) -> Any:
    if name == "none":
        return y
    gate, up = np.split(y, 2, -1)
    if name == "swiglu_clamp":
        gate, up = np.minimum(gate, 7), np.clip(up, -7, 7) + 1
        return gate / (1 + np.exp(-1.702 * gate)) * up
    if name == "silu_mul":
        return gate / (1 + np.exp(-gate)) * up
    if name == "gelu_mul":
        return gate * (1 + np.vectorize(erf)(gate / np.sqrt(2))) / 2 * up
    return gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) / 2 * up


def reference(x: Any, ids: Any, weights: Any, w13: list[Sample], w2: list[Sample], activation: str = "silu_mul") -> Any:
    out = np.zeros((len(x), N))
    for t, row in enumerate(np.asarray(x, np.float64)):
        for e, weight in zip(ids[t], weights[t]):
            if 0 <= e < len(w13):
                hidden = activated(activation, row @ w13[e].dense).astype(x.dtype).astype(np.float64)
                out[t] += float(weight) * (hidden @ w2[e].dense)
    return out


def near(out: Any, expected: Any, limit: float = 5e-4) -> None:
    out = np.asarray(out, np.float64)
    assert np.linalg.norm(out - expected) <= limit * np.linalg.norm(expected)


def x_of(tokens: int, dtype: Any = np.float16) -> Any:
    return np.random.default_rng(7).standard_normal((tokens, K)).astype(dtype)


@pytest.mark.parametrize("gate_up", [False, True])
@pytest.mark.parametrize("tokens", [1, 9])
def test_a_layer(tokens: int, gate_up: bool) -> None:
    first, second = layer(act_order=True)
    w13 = q4.Experts.from_gptq(tensors(first), gate_up=gate_up)
    w2 = q4.Experts.from_gptq(tensors(second))
    assert (len(w13), w13.k, w13.n, w13.device, w13.act_order) == (EXPERTS, K, 2 * WIDTH, "cpu", True)
    assert w13.gate_up == gate_up and "5, k=64, n=96, group_size=32, act_order" in repr(w13)
    x, (ids, weights) = x_of(tokens), routing(tokens)
    expected = reference(x, ids, weights, first, second)
    near(q4.moe(x, ids, weights, w13, w2, activation="silu_mul"), expected)
    assert w13.gate_up  # packed anew where it was not
    near(q4.moe(x, ids.astype(np.int64), weights.astype(np.float64), w13, w2), expected)
    out = np.full((tokens, N), np.nan, np.float16)
    assert q4.moe(x, ids, weights, w13, w2, out=out) is out
    near(out, expected)
    near(q4.moe(x.astype(np.float32), ids, weights, w13, w2), reference(x.astype(np.float32), ids, weights, first, second), 2e-6)
    three = q4.moe(x[None], ids[None], weights[None], w13, w2)
    assert three.shape == (1, tokens, N)
    near(three[0], expected)
    assert q4.moe(x[:0], ids[:0], weights[:0], w13, w2).shape == (0, N)


@pytest.mark.parametrize("activation", ["none", "silu_mul", "gelu_mul", "gelu_tanh_mul", "swiglu_clamp"])
def test_activations(activation: str) -> None:
    first, second = layer()
    if activation == "none":
        first = [gptq(K, WIDTH, 32, seed=e) for e in range(EXPERTS)]
    w13 = q4.Experts.from_gptq(tensors(first), gate_up=activation != "none")
    w2 = q4.Experts.from_gptq(tensors(second))
    x, (ids, weights) = x_of(6), routing(6)
    near(q4.moe(x, ids, weights, w13, w2, activation), reference(x, ids, weights, first, second, activation))


def test_ids_without_an_expert_and_a_map() -> None:
    first, second = layer()
    w13, w2 = q4.Experts.from_gptq(tensors(first), gate_up=True), q4.Experts.from_gptq(tensors(second))
    x, (ids, weights) = x_of(4), routing(4)
    ids[0], ids[1, 0], weights[1, 0] = -1, EXPERTS, np.nan
    out = q4.moe(x, ids, weights, w13, w2)
    assert (out[0] == 0).all() and np.isfinite(out).all()
    near(out[1:], reference(x[1:], ids[1:], weights[1:], first, second))
    places = [-1, 4, 0, -1, 2, 1, 3]
    model_ids, weights = routing(8, 7)
    local = np.array(places)[model_ids]
    x = x_of(8)
    for given in (places, np.array(places)):
        near(q4.moe(x, model_ids, weights, w13, w2, expert_map=given), reference(x, local, weights, first, second))


def test_stacked_awq_checkpoint_update_and_unpack(tmp_path: Path) -> None:
    first, second = layer(act_order=True)
    stacked = q4.Experts.from_stacked(
        *(np.stack([getattr(s, part) for s in first]) for part in ("qweight", "qzeros", "scales", "g_idx")), gate_up=True
    )
    for e, sample in enumerate(first):
        again = stacked.unpack(e)
        assert (again["qweight"] == sample.qweight).all() and (again["g_idx"] == sample.g_idx).all()
        assert again["format"] == "gptq" and again["zeros"] == "v1"
    stacked.update(3, *first[1].tensors(), first[1].g_idx)
    assert (stacked.unpack(3)["qweight"] == first[1].qweight).all()
    packed = [awq(K, 32, 32, seed=e) for e in range(3)]
    again = q4.Experts.from_awq([s.tensors() for s in packed]).unpack(2)
    assert again["format"] == "awq" and (again["qweight"] == packed[2].qweight).all()

    matrices = {}
    for e in range(3):
        for name, seed in (("gate_proj", 10 + e), ("up_proj", 20 + e), ("down_proj", 30 + e)):
            shape = (WIDTH, N) if name == "down_proj" else (K, WIDTH)
            matrices[f"model.layers.0.mlp.experts.{e}.{name}"] = gptq(*shape, 16, seed=seed)
    save_checkpoint(tmp_path, matrices, 16)
    prefix = "model.layers.0.mlp.experts.{}."
    w13 = q4.Experts.from_checkpoint(tmp_path, [prefix + "gate_proj", prefix + "up_proj"])
    w2 = q4.Experts.from_checkpoint(q4.Checkpoint(tmp_path), prefix + "down_proj")
    assert w13.gate_up and len(w13) == len(w2) == 3
    both = [
        Sample(None, None, None, None, np.hstack([matrices[prefix.format(e) + part].dense for part in ("gate_proj", "up_proj")]))
        for e in range(3)
    ]
    x, (ids, weights) = x_of(5), routing(5, 3)
    down = [matrices[prefix.format(e) + "down_proj"] for e in range(3)]
    near(q4.moe(x, ids, weights, w13, w2), reference(x, ids, weights, both, down))
    last = q4.Experts.from_checkpoint(tmp_path, prefix + "down_proj", first=1, count=2)
    assert len(last) == 2 and (last.unpack(0)["qweight"] == down[1].qweight).all()


def test_a_grouped_product() -> None:
    first, _ = layer()
    experts = q4.Experts.from_gptq(tensors(first))
    x = x_of(7)
    ids = np.array([0, 0, 2, 2, 2, 4, 4])
    expected = np.stack([x[r].astype(np.float64) @ first[e].dense for r, e in enumerate(ids)])
    near(q4.grouped_matmul(x, experts, expert_ids=ids), expected)
    near(q4.grouped_matmul(x, experts, offsets=np.array([0, 2, 2, 5, 5, 7])), expected)
    hidden = q4.grouped_matmul(x, experts, expert_ids=ids, activation="silu_mul")
    near(hidden, activated("silu_mul", expected))
    with pytest.raises(ValueError, match="both None"):
        q4.grouped_matmul(x, experts)


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    first, second = layer()
    w13 = q4.Experts.from_gptq([tuple(map(torch.from_numpy, t)) for t in tensors(first)], gate_up=True)
    w2 = q4.Experts.from_gptq([tuple(map(torch.from_numpy, t)) for t in tensors(second)])
    x, (ids, weights) = x_of(6), routing(6)
    expected = reference(x, ids, weights, first, second)
    given = torch.from_numpy(x), torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(weights)
    out = q4.moe(*given, w13, w2)
    assert isinstance(out, torch.Tensor) and out.dtype == torch.float16
    near(out.numpy(), expected)
    near(q4.moe(given[0].bfloat16(), given[1], given[2].half(), w13, w2).float().numpy(), expected, 1e-2)
    with pytest.raises(RuntimeError, match="experts compute no gradient"):
        q4.moe(given[0].float().requires_grad_(), *given[1:], w13, w2)


def test_bad_input() -> None:
    first, second = layer()
    w13, w2 = q4.Experts.from_gptq(tensors(first), gate_up=True), q4.Experts.from_gptq(tensors(second))
    x, (ids, weights) = x_of(4), routing(4)

    def rejects(match: str, *args: Any, kind: Any = ValueError, **options: Any) -> None:
        with pytest.raises(kind, match=match):
            q4.moe(*args, **options)

    rejects("last dimension must be k = 64", x[:, :32], ids, weights, w13, w2)
    rejects("topk_ids has shape", x, ids[:3], weights, w13, w2)
    rejects(r"topk_ids has shape \[4, 2\] and topk_weights \[4, 1\]", x, ids, weights[:, :1], w13, w2)
    rejects("activation = 'relu'; it must be one of none, silu_mul", x, ids, weights, w13, w2, activation="relu")
    rejects("activation is none, but the experts were made with gate_up", x, ids, weights, w13, w2, activation="none")
    rejects(r"expert_map\[0\] = 9", x, ids, weights, w13, w2, expert_map=[9])
    rejects("limit = 0", x, ids, weights, w13, w2, activation="swiglu_clamp", limit=0.0)
    rejects("w2 was made with gate_up", x, ids, weights, w13, w13)
    other = q4.Experts.from_gptq([gptq(64, N, 16).tensors()] * EXPERTS)
    rejects("w2 has k = 64; the product with w13 gives it 48", x, ids, weights, w13, other)
    rejects("out has shape", x, ids, weights, w13, w2, out=np.empty((4, 8), np.float16))
    rejects("out has dtype fp32", x, ids, weights, w13, w2, out=np.empty((4, N), np.float32))
    with pytest.raises(ValueError, match="there are no experts"):
        q4.Experts.from_gptq([])
    with pytest.raises(TypeError, match="expert 1 is .*it must be a tuple"):
        q4.Experts.from_gptq([first[0].tensors(), first[1].qweight])
    with pytest.raises(ValueError, match="expert 0 has 2 tensors"):
        q4.Experts.from_gptq([first[0].tensors()[:2]])
    with pytest.raises(ValueError, match="k of expert 1 is 48, that of the others is 64"):
        q4.Experts.from_gptq([first[0].tensors(), second[0].tensors()])
    with pytest.raises(ValueError, match="must have 3 dimensions"):
        q4.Experts.from_stacked(*first[0].tensors())
    with pytest.raises(ValueError, match=r"expert = 5 is outside \[0, 5\)"):
        w13.unpack(5)


def test_warmup_makes_the_plan_and_refuses_what_no_plan_accepts() -> None:
    first, second = layer()
    w13 = q4.Experts.from_gptq(tensors(first), gate_up=True, device="cpu")
    w2 = q4.Experts.from_gptq(tensors(second), device="cpu")
    w13.warmup(w2, 4, TOPK, np.float32)
    x = x_of(4, np.float32)
    ids, weights = routing(4)
    near(q4.moe(x, ids, weights, w13, w2), reference(x, ids, weights, first, second), 1e-5)
    for bad, text in (((0, TOPK), "max_tokens = 0"), ((4, 33), "topk = 33")):
        with pytest.raises(q4.InvalidArgument, match=text):
            w13.warmup(w2, *bad)
    with pytest.raises(q4.InvalidArgument, match=r"expert_map\[0\] = 9"):
        w13.warmup(w2, 4, TOPK, expert_map=[9])
