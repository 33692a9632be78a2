"""Experts of transformers on q4: tiny random Mixtral and Qwen3-MoE models generate what the dequantized ones do."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")

import q4  # noqa: E402
import q4.torch  # noqa: E402
import q4.transformers as q4_transformers  # noqa: E402
from samples import Sample, gptq  # noqa: E402

HIDDEN, INNER, EXPERTS, TOPK, LAYERS, VOCABULARY = 64, 48, 6, 2, 2, 96
COMMON = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "num_experts_per_tok": TOPK,
    "dtype": torch.float32,
}


def dense_model(kind: str) -> tuple[Any, str, tuple[str, str, str]]:
    """A model, where its experts are in a checkpoint, and what gate, up and down are called there."""
    torch.manual_seed(0)
    if kind == "mixtral":
        config = transformers.MixtralConfig(intermediate_size=INNER, num_local_experts=EXPERTS, **COMMON)
        return transformers.MixtralForCausalLM(config).eval(), "block_sparse_moe", ("w1", "w3", "w2")
    config = transformers.Qwen3MoeConfig(
        intermediate_size=INNER, moe_intermediate_size=INNER, num_experts=EXPERTS, norm_topk_prob=True, head_dim=16, **COMMON
    )
    return transformers.Qwen3MoeForCausalLM(config).eval(), "mlp", ("gate_proj", "up_proj", "down_proj")


def save(folder: Path, kind: str, act_order: bool = False) -> Any:
    """A dense model and its 4-bit checkpoint, as quantizers write it; the model has the dequantized weights."""
    from safetensors.torch import save_file

    model, block, names = dense_model(kind)
    samples: dict[str, Sample] = {}
    tensors: dict[str, Any] = {}
    for name, module in model.named_modules():
        if hasattr(module, "gate_up_proj"):
            prefix = name.replace(".mlp.", f".{block}.")
            with torch.no_grad():
                for e in range(EXPERTS):
                    gate, up = (gptq(HIDDEN, INNER, 32, seed=len(samples) + i) for i in range(2))
                    if act_order:  # gate and up have one order: their input is the same
                        gate = gptq(HIDDEN, INNER, 32, seed=len(samples), act_order=True)
                        up = with_order(up, gate.g_idx)
                    down = gptq(INNER, HIDDEN, 16, seed=len(samples) + 2, act_order=act_order)
                    module.gate_up_proj[e] = torch.cat([torch.from_numpy(s.dense.T) for s in (gate, up)])
                    module.down_proj[e] = torch.from_numpy(down.dense.T)
                    samples.update({f"{prefix}.{e}.{n}": s for n, s in zip(names, (gate, up, down))})
        elif isinstance(module, torch.nn.Linear) and name != "lm_head":
            samples[name] = gptq(module.in_features, module.out_features, 32, seed=len(samples))
            module.weight.data.copy_(torch.from_numpy(samples[name].dense.T))
    for name, value in model.state_dict().items():
        if ".experts." not in name and name.removesuffix(".weight") not in samples:
            tensors[name.replace(".mlp.gate.", f".{block}.gate.")] = value.contiguous()
    for name, sample in samples.items():
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            tensors[f"{name}.{part}"] = torch.from_numpy(getattr(sample, part)).contiguous()
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    written = json.loads(model.config.to_json_string(use_diff=False))
    written["architectures"] = [type(model).__name__]
    written["quantization_config"] = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 32,
        "desc_act": act_order,
        "sym": False,
        "checkpoint_format": "gptq",
    }
    (folder / "config.json").write_text(json.dumps(written))
    return model


def with_order(sample: Sample, g_idx: Any) -> Sample:
    """The same codes, scales and zeros with another order of rows."""
    import numpy as np

    codes = sample.qweight.view(np.uint32)[:, None, :] >> (4 * np.arange(8, dtype=np.uint32))[:, None] & 15
    codes = codes.reshape(-1, codes.shape[-1]).astype(np.int64)
    zeros = sample.qzeros.view(np.uint32)[:, :, None] >> (4 * np.arange(8, dtype=np.uint32)) & 15
    zeros = (zeros.reshape(len(zeros), -1).astype(np.int64) + 1) & 15
    dense = sample.scales.astype(np.float64)[g_idx] * (codes - zeros[g_idx])
    return Sample(sample.qweight, sample.qzeros, sample.scales, g_idx.copy(), dense)


def same(model: Any, dense: Any) -> None:
    ids = torch.arange(10)[None] * 7 % VOCABULARY
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, dense(ids).logits, rtol=1e-3, atol=1e-3)
    options = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **options), dense.generate(ids, **options))


def check_moes(model: Any) -> None:
    moes = [m for m in model.modules() if isinstance(m, q4.torch.MoE)]
    assert len(moes) == LAYERS and all(m.w13 is not None and len(m.w13) == EXPERTS for m in moes)
    assert not any(p.device.type == "meta" for p in model.parameters())


@pytest.mark.parametrize("kind", ["mixtral", "qwen3"])
@pytest.mark.parametrize("act_order", [False, True])
def test_replaced_experts_generate_the_same_tokens(tmp_path: Path, kind: str, act_order: bool) -> None:
    dense = save(tmp_path / "m", kind, act_order)
    model = copy.deepcopy(dense)
    replaced = q4.torch.replace_linears(model, tmp_path / "m")
    assert len(replaced) == LAYERS * (4 + 3 * EXPERTS)
    check_moes(model)
    same(model, dense)
    assert "6 experts, 64 -> 96 -> 64, group_size=32" in repr(model)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3"])
def test_from_pretrained(tmp_path: Path, kind: str) -> None:
    dense = save(tmp_path / "m", kind, True)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", quantization_config=q4_transformers.Q4Config(), output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    check_moes(model)
    same(model, dense)
    model.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "again", quantization_config=q4_transformers.Q4Config()
    )
    check_moes(again)
    same(again, dense)


def test_module(tmp_path: Path) -> None:
    save(tmp_path / "m", "qwen3", True)
    prefix = "model.layers.1.mlp.experts"
    moe = q4.torch.MoE.from_checkpoint(tmp_path / "m", prefix)
    x = torch.randn(3, 4, HIDDEN)
    ids, weights = torch.randint(EXPERTS, (3, 4, TOPK)), torch.rand(3, 4, TOPK)
    expected = moe(x, ids, weights)
    assert expected.shape == x.shape and moe.device == torch.device("cpu")

    empty = q4.torch.MoE(None, None)
    with pytest.raises(ValueError, match="no weights yet"):
        empty(x, ids, weights)
    state = moe.state_dict()
    assert state["5.up_proj.qweight"].shape == (HIDDEN // 8, INNER)
    empty.load_state_dict(state)
    assert torch.equal(empty(x, ids, weights), expected)
    with pytest.raises(RuntimeError, match="2.down_proj.scales"):
        del state["2.down_proj.scales"]
        q4.torch.MoE(None, None).load_state_dict(state)
    assert torch.equal(copy.deepcopy(moe)(x, ids, weights), expected)
    assert moe.half()(x, ids, weights).dtype == torch.float16
    moe.float()

    # Two ranks' experts add up to all.
    ranks = [q4.torch.MoE.from_checkpoint(tmp_path / "m", prefix, first=f, count=c) for f, c in ((0, 2), (2, 4))]
    torch.testing.assert_close(sum(rank(x, ids, weights) for rank in ranks), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="no part of the 6 experts"):
        q4.torch.MoE.from_checkpoint(tmp_path / "m", prefix, first=4, count=3)
    with pytest.raises(LookupError, match="no experts 'model.layers.9.mlp.experts"):
        q4.torch.MoE.from_checkpoint(tmp_path / "m", "model.layers.9.mlp.experts")


def test_what_does_not_fit_says_so(tmp_path: Path) -> None:
    save(tmp_path / "m", "qwen3")
    model, _, _ = dense_model("qwen3")
    model.config.hidden_act = "relu"
    with pytest.raises(RuntimeError, match="Qwen3MoeExperts has the activation 'relu'"):
        q4.torch.replace_linears(model, tmp_path / "m")
    config = model.config
    config.hidden_act, config.moe_intermediate_size = "silu", 32
    other = transformers.Qwen3MoeForCausalLM(config)
    with pytest.raises(ValueError, match=r"Qwen3MoeExperts with gate_up_proj \[6, 64, 64\], but the checkpoint has 6"):
        q4.torch.replace_linears(other, tmp_path / "m")
