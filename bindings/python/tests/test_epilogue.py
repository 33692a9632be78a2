"""Epilogues and adapters through q4.matmul, q4.Plan, LoraLinear and load_peft."""

import json
import pickle

import numpy as np
import pytest

import q4
from samples import gptq


def _activated(name, sums):
    if name is None:
        return sums
    n = sums.shape[1] // 2
    silu = lambda v: v / (1 + np.exp(-v))  # noqa: E731
    relu2 = lambda v: np.maximum(v, 0) ** 2  # noqa: E731
    of = {"silu": silu, "relu2": relu2}[name.removesuffix("_mul")]
    return of(sums[:, :n]) * sums[:, n:] if name.endswith("_mul") else of(sums)


def _error(out, expected):
    return np.linalg.norm(out - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("activation", [None, "silu", "silu_mul", "relu2_mul"])
@pytest.mark.parametrize("with_residual", [False, True])
def test_matmul(activation, with_residual):
    sample = gptq(256, 96, 64)
    pairs = activation is not None and activation.endswith("_mul")
    W = q4.Matrix.from_gptq(*sample.tensors(), gate_up=pairs)
    assert W.gate_up == pairs
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 5, 256)).astype(np.float16)
    n = 48 if pairs else 96
    residual = rng.standard_normal((2, 5, n)).astype(np.float16)
    out = q4.matmul(x, W, activation=activation, residual=residual if with_residual else None)
    assert out.shape == (2, 5, n) and out.dtype == np.float16
    expected = _activated(activation, x.reshape(10, 256).astype(np.float64) @ sample.dense)
    if with_residual:
        expected += residual.reshape(10, n)
    assert _error(out.reshape(10, n), expected) < 1e-3
    if with_residual:  # in place
        again = residual.copy()
        assert q4.matmul(x, W, activation=activation, residual=again, out=again) is again
        assert np.array_equal(again, out)
    plan = W.plan(16, activation=activation, residual=with_residual)
    planned = np.zeros((10, n), np.float16)
    given = {"residual": residual.reshape(10, n)} if with_residual else {}
    plan.run(x.reshape(10, 256), planned, **given)
    assert np.array_equal(planned, out.reshape(10, n))


def test_gate_up_survives_pickling():
    W = q4.Matrix.from_gptq(*gptq(64, 32, 32).tensors(), gate_up=True)
    again = pickle.loads(pickle.dumps(W))
    x = np.ones((1, 64), np.float16)
    assert again.gate_up
    assert np.array_equal(q4.matmul(x, again, activation="silu_mul"), q4.matmul(x, W, activation="silu_mul"))


def test_what_is_refused():
    W = q4.Matrix.from_gptq(*gptq(64, 32, 32).tensors())
    x = np.ones((2, 64), np.float16)
    for words, arguments in [
        (["activation = 'swish'", "silu_mul"], {"activation": "swish"}),
        (["silu_mul", "gate_up"], {"activation": "silu_mul"}),
        (["residual has shape [2, 31]"], {"residual": np.ones((2, 31), np.float16)}),
        (["residual", "fp32"], {"residual": np.ones((2, 32), np.float32)}),
        (["bias=", "residual"], {"residual": np.ones((2, 32), np.float16), "bias": np.ones(32, np.float16)}),
        (["adapter_of_row"], {"adapter_of_row": np.zeros(2, np.int32)}),
    ]:
        with pytest.raises(q4.InvalidArgument) as error:
            q4.matmul(x, W, **arguments)
        assert all(word in str(error.value) for word in words), str(error.value)
    with pytest.raises(TypeError, match="LoraAdapters"):
        q4.matmul(x, W, adapters=3)


def test_adapters():
    sample = gptq(256, 96, 64)
    W = q4.Matrix.from_gptq(*sample.tensors())
    rng = np.random.default_rng(2)
    x = rng.standard_normal((6, 256)).astype(np.float16)
    ranks = [16, 4, 40]
    A = [rng.standard_normal((r, 256)).astype(np.float16) for r in ranks]
    B = [rng.standard_normal((96, r)).astype(np.float32) for r in ranks]
    table = q4.LoraAdapters(W, adapters=3, max_rank=40)
    assert len(table) == 3 and table.max_rank == 40 and table.rank(0) == 0
    for i in range(3):
        table.set(i, A[i], B[i], 0.01 * (i + 1))
    rows = np.array([0, 1, 2, -1, 99, 1], np.int32)

    def expected(there):
        sums = x.astype(np.float64) @ sample.dense
        for t, i in enumerate(rows):
            if i in there:
                sums[t] += 0.01 * (i + 1) * (x[t].astype(np.float64) @ A[i].T.astype(np.float64)) @ B[i].T
        return sums

    assert _error(q4.matmul(x, W, adapters=table, adapter_of_row=rows), expected({0, 1, 2})) < 1e-3
    table.remove(1)
    assert _error(q4.matmul(x, W, adapters=table, adapter_of_row=rows), expected({0, 2})) < 1e-3
    for words, call in [
        (["index = 3"], lambda: table.set(3, A[0], B[0])),
        (["max_rank = 40"], lambda: table.set(0, np.ones((48, 256), np.float16), np.ones((96, 48), np.float16))),
        (["b has shape"], lambda: table.set(0, A[0], A[0])),
        (["int32"], lambda: q4.matmul(x, W, adapters=table, adapter_of_row=rows.astype(np.int64))),
        (["6 rows"], lambda: q4.matmul(x, W, adapters=table, adapter_of_row=rows[:5])),
        (["bf16"], lambda: q4.matmul(x, W, adapters=q4.LoraAdapters(W, dtype="bfloat16"), adapter_of_row=rows)),
    ]:
        with pytest.raises(q4.InvalidArgument) as error:
            call()
        assert all(word in str(error.value) for word in words), str(error.value)


def _model(torch, parts=False):
    """A small model with dense layers, and its twin of 4-bit layers with the same weights."""
    import q4.torch as qt

    shapes = {"q_proj": (64, 64), "k_proj": (64, 32), "up_proj": (64, 128)}
    dense, quantized, samples = torch.nn.Module(), torch.nn.Module(), {}
    for seed, (name, (k, n)) in enumerate(shapes.items()):
        samples[name] = gptq(k, n, 32, seed=seed)
        layer = torch.nn.Linear(k, n, bias=False)
        layer.weight.data = torch.from_numpy(samples[name].dense.T.copy()).float()
        setattr(dense, name, layer)
        linear = qt.Linear.from_gptq(*samples[name].tensors())
        setattr(quantized, name, qt.LoraLinear(linear, adapters=4, max_rank=16, dtype=torch.float32))
    dense.forward = lambda x: torch.cat([getattr(dense, name)(x) for name in shapes], -1)
    quantized.forward = lambda x: torch.cat([getattr(quantized, name)(x) for name in shapes], -1)
    return dense, quantized, samples


@pytest.mark.parametrize("rslora", [False, True])
def test_peft(tmp_path, rslora):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    import q4.torch as qt

    dense, quantized, _ = _model(torch)
    config = peft.LoraConfig(
        r=8, lora_alpha=12, use_rslora=rslora, target_modules=["q_proj", "k_proj", "up_proj"],
        rank_pattern={"k_proj": 4}, alpha_pattern={"up_proj": 32}, init_lora_weights=False,
    )  # fmt: skip
    tuned = peft.get_peft_model(dense, config)
    tuned.save_pretrained(tmp_path / "adapter")
    x = torch.randn(2, 3, 64)
    with torch.no_grad():
        merged = tuned.merge_and_unload()(x)
    assert qt.load_peft(quantized, tmp_path / "adapter", 2) == ["k_proj", "q_proj", "up_proj"]
    plain = quantized(x)
    for layer in quantized.children():
        layer.rows = torch.tensor([2, -1], dtype=torch.int32)  # one a sequence
    out = quantized(x)
    assert torch.allclose(out[0], merged[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(out[1], plain[1])
    assert not torch.allclose(out[0], plain[0], rtol=1e-2, atol=1e-2)


def test_peft_of_a_fused_layer(tmp_path):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    import q4.torch as qt

    dense, _, samples = _model(torch)
    tuned = peft.get_peft_model(
        dense, peft.LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "k_proj"], init_lora_weights=False)
    )
    tuned.save_pretrained(tmp_path)
    x = torch.randn(5, 64)
    with torch.no_grad():
        merged = tuned.merge_and_unload()
        expected = torch.cat([merged.q_proj(x), merged.k_proj(x)], -1)
    both = [np.concatenate([getattr(samples[n], t) for n in ("q_proj", "k_proj")], 1) for t in ("qweight", "qzeros", "scales")]
    model = torch.nn.Module()
    model.qkv_proj = qt.LoraLinear(
        qt.Linear.from_gptq(*both), max_rank=8, dtype=torch.float32, parts={"q_proj": 64, "k_proj": 32}
    )
    qt.load_peft(model, tmp_path, 0)
    model.qkv_proj.rows = torch.zeros(5, dtype=torch.int32)
    assert torch.allclose(model.qkv_proj(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change, word",
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "IA3"),
    ],
)
def test_peft_refuses(tmp_path, change, word):
    torch = pytest.importorskip("torch")
    import q4.torch as qt

    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 8, "bias": "none", **change})
    )
    with pytest.raises(q4.Unsupported, match=word):
        qt.load_peft(torch.nn.Module(), tmp_path, 0)


def test_peft_of_other_modules_changes_nothing(tmp_path):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    import q4.torch as qt

    dense, quantized, _ = _model(torch)
    tuned = peft.get_peft_model(
        dense, peft.LoraConfig(r=4, target_modules=["q_proj", "k_proj"], init_lora_weights=False)
    )
    tuned.save_pretrained(tmp_path)
    del quantized.k_proj
    with pytest.raises(q4.InvalidArgument, match="k_proj"):
        qt.load_peft(quantized, tmp_path, 0)
    assert quantized.q_proj.table.rank(0) == 0


def test_plans_normalize_x():
    sample = gptq(256, 64, 32, act_order=True)
    W = q4.Matrix.from_gptq(*sample.tensors(), sample.g_idx)
    rng = np.random.default_rng(3)
    x, weight = (3 * rng.standard_normal((5, 256))).astype(np.float16), rng.standard_normal(256).astype(np.float16)
    exact = x.astype(np.float64)
    exact = exact / np.sqrt((exact * exact).mean(1, keepdims=True) + 0.01) * weight
    plan = W.plan(5, norm_epsilon=0.01)
    out = np.full((5, 64), np.nan, np.float16)
    plan.run(x, out, norm_weight=weight)
    assert _error(out, exact @ sample.dense) < 1e-3
    with pytest.raises(ValueError, match="norm_weight"):
        plan.run(x, out)
    with pytest.raises(ValueError, match="of k = 256 elements"):
        plan.run(x, out, norm_weight=weight[:128])
    with pytest.raises(ValueError, match="norm = false"):
        W.plan(5).run(x, out, norm_weight=weight)
