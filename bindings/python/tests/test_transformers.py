"""q4.transformers against the real package: a tiny random Llama, loaded, generated with, trained over and saved again."""

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any, Iterator

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")

import q4  # noqa: E402
import q4.torch  # noqa: E402
import q4.transformers as q4_transformers  # noqa: E402
from samples import Sample, gptq  # noqa: E402

LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, VOCABULARY = 2, 64, 128, 4, 2, 96


def llama(**options: Any) -> Any:
    return transformers.LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        vocab_size=VOCABULARY,
        max_position_embeddings=64,
        dtype=torch.float32,
        **options,
    )


def save(folder: Path, config: Any, *, shards: int = 1, zeros: str = "v1", **quantization: Any) -> Any:
    """A dense model, and in the folder its 4-bit checkpoint; the dense model has the dequantized weights."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    tensors = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = model.lm_head.weight.detach()
    samples: dict[str, Sample] = {}
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        sample = samples[name] = gptq(
            module.in_features, module.out_features, 32, act_order=True, zeros=zeros, seed=len(samples)
        )
        module.weight.data.copy_(torch.from_numpy(sample.dense.T))
        del tensors[f"{name}.weight"]
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            tensors[f"{name}.{part}"] = torch.from_numpy(getattr(sample, part))
    folder.mkdir(exist_ok=True)
    names = sorted(tensors)
    files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)] if shards > 1 else ["model.safetensors"]
    for i, file in enumerate(files):
        save_file({name: tensors[name].contiguous() for name in names[i::shards]}, folder / file, {"format": "pt"})
    if shards > 1:
        index = {"metadata": {}, "weight_map": {name: files[i % shards] for i, name in enumerate(names)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    written = json.loads(config.to_json_string(use_diff=False))
    written["architectures"] = ["LlamaForCausalLM"]
    written["quantization_config"] = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 32,
        "desc_act": True,
        "sym": False,
        "checkpoint_format": "gptq_v2" if zeros == "v2" else "gptq",
        **quantization,
    }
    (folder / "config.json").write_text(json.dumps(written))
    return model


def repack(folder: Path, quantization: "dict[str, Any]") -> None:
    """The GPTQ v2 checkpoint of a folder as compressed-tensors stores it, the transposes, or with another config alone."""
    from safetensors.torch import load_file, save_file

    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    if quantization["quant_method"] != "compressed-tensors":
        return
    tensors = load_file(folder / "model.safetensors")
    for name in [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]:
        words, scales = tensors.pop(f"{name}.qweight"), tensors.pop(f"{name}.scales")
        tensors[f"{name}.weight_packed"] = words.T.contiguous()
        tensors[f"{name}.weight_scale"] = scales.T.contiguous()
        tensors[f"{name}.weight_zero_point"] = tensors.pop(f"{name}.qzeros").T.contiguous()
        tensors[f"{name}.weight_g_idx"] = tensors.pop(f"{name}.g_idx")
        tensors[f"{name}.weight_shape"] = torch.tensor([words.shape[1], 8 * words.shape[0]])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


_WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32, "actorder": "group"}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": _WEIGHTS, "input_activations": None}},
    "ignore": ["lm_head"],
}
AUTO_ROUND = {
    "quant_method": "auto-round",
    "packing_format": "auto_round:gptqmodel",
    "bits": 4,
    "group_size": 32,
    "sym": False,
}


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    q4_transformers.uninstall()


def same(model: Any, dense: Any) -> None:
    ids = torch.arange(10)[None] * 7 % VOCABULARY
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, dense(ids).logits, rtol=1e-3, atol=1e-3)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **options), dense.generate(ids, **options))


def check_linears(model: Any) -> None:
    linears = [m for m in model.modules() if isinstance(m, q4.torch.Linear)]
    assert len(linears) == 7 * LAYERS and all(m.matrix is not None for m in linears)
    assert not any(p.device.type == "meta" for p in model.parameters())


@pytest.mark.parametrize("shards, zeros, tied", [(1, "v1", False), (3, "v2", True)])
def test_one_model_by_its_config(tmp_path: Path, shards: int, zeros: str, tied: bool) -> None:
    dense = save(tmp_path / "m", llama(tie_word_embeddings=tied), shards=shards, zeros=zeros)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", quantization_config=q4_transformers.Q4Config(), output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    check_linears(model)
    same(model, dense)
    model.save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "gptq" and config["bits"] == 4 and "device" not in config
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "again", quantization_config=q4_transformers.Q4Config(device="cpu")
    )
    same(again, dense)
    assert all(torch.equal(again.state_dict()[k], v) for k, v in model.state_dict().items())


def test_every_model_after_install(tmp_path: Path) -> None:
    dense = save(tmp_path / "four", llama())
    save(tmp_path / "eight", llama(), bits=8)
    q4_transformers.install()
    q4_transformers.install()
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "four")
    check_linears(model)
    same(model, dense)
    base = transformers.AutoModel.from_pretrained(tmp_path / "four")
    ids = torch.arange(6)[None]
    with torch.no_grad():
        torch.testing.assert_close(base(ids)[0], dense.model(ids)[0], rtol=1e-3, atol=1e-3)
    # 8 bits are left to transformers, and after uninstall() 4 too. It asks for packages of its own, if they are absent.
    alone = importlib.util.find_spec("gptqmodel") is None or importlib.util.find_spec("optimum") is None
    if alone:
        with pytest.raises(ImportError):
            transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "eight")
    q4_transformers.uninstall()
    if alone:
        with pytest.raises(ImportError):
            transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "four")


@pytest.mark.parametrize("quantization", [COMPRESSED, AUTO_ROUND], ids=lambda q: q["quant_method"])
def test_other_tools_after_install(tmp_path: Path, quantization: "dict[str, Any]") -> None:
    dense = save(tmp_path / "m", llama(), zeros="v2")
    repack(tmp_path / "m", quantization)
    q4_transformers.install()
    model, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    check_linears(model)
    same(model, dense)
    model.save_pretrained(tmp_path / "again")  # as GPTQ tensors, and said to be
    config = json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]
    if quantization is COMPRESSED:
        assert config["quant_method"] == "gptq" and config["checkpoint_format"] == "gptq_v2" and config["desc_act"]
        assert config["group_size"] == 32 and not config["lm_head"]
    else:
        assert config["quant_method"] == "auto-round"
    same(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again"), dense)


def test_which_configurations_are_read() -> None:
    def group(**weights: Any) -> "dict[str, Any]":
        return {**COMPRESSED, "config_groups": {"group_0": {"targets": ["Linear"], "weights": {**_WEIGHTS, **weights}}}}

    for config in (
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "gptq", "bits": 4, "dynamic": {"-:.*o_proj": {}, "+:.*up_proj": {"group_size": 64}}},
        {"quant_method": "awq", "w_bit": 4},
        {**AUTO_ROUND, "extra_config": {"lm_head": {"bits": 16}}},
        COMPRESSED,
    ):
        assert q4_transformers.reads(config), config
    for config in (
        {"quant_method": "gptq", "bits": 8},
        {"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*down_proj": {"bits": 8}}},
        {**AUTO_ROUND, "extra_config": {"model.layers.0.mlp.down_proj": {"bits": 8}}},
        {**AUTO_ROUND, "data_type": "mx_fp"},
        {**COMPRESSED, "format": "float-quantized"},
        {**COMPRESSED, "config_groups": {}},
        group(num_bits=8),
        group(type="float"),
        {
            **COMPRESSED,
            "config_groups": {"group_0": {"weights": _WEIGHTS, "input_activations": {"num_bits": 8, "type": "int"}}},
        },
    ):
        assert not q4_transformers.reads(config), config


def test_through_links_as_a_hub_cache_has_them(tmp_path: Path) -> None:
    dense = save(tmp_path / "blobs", llama())
    folder = tmp_path / "snapshot"
    folder.mkdir()
    for i, file in enumerate(sorted((tmp_path / "blobs").iterdir())):
        blob = file.rename(file.with_name(f"{i:064x}"))
        (folder / file.name).symlink_to(blob)
    same(transformers.AutoModelForCausalLM.from_pretrained(folder, quantization_config=q4_transformers.Q4Config()), dense)


def test_static_cache_and_compile(tmp_path: Path) -> None:
    dense = save(tmp_path / "m", llama())
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", quantization_config=q4_transformers.Q4Config()
    )
    ids = torch.arange(10)[None]
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = dense.generate(ids, **options)
    assert torch.equal(model.generate(ids, cache_implementation="static", disable_compile=True, **options), expected)
    model.forward = torch.compile(model.forward, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, dense(ids).logits, rtol=1e-3, atol=1e-3)


def test_gradients_reach_what_is_trained(tmp_path: Path) -> None:
    """As adapters need it: the gradient of the embeddings, through every frozen 4-bit layer, is the dense model's."""
    dense = save(tmp_path / "m", llama())
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", quantization_config=q4_transformers.Q4Config()
    )
    ids = torch.arange(10)[None]
    for each in (model, dense):
        each(ids, labels=ids).loss.backward()
    got, expected = model.model.embed_tokens.weight.grad, dense.model.embed_tokens.weight.grad
    assert float(expected.abs().max()) > 0
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("zeros", ["v1", "v2"])
def test_a_quantized_head_is_saved_as_the_rest_is(tmp_path: Path, zeros: str) -> None:
    save(tmp_path / "m", llama(), zeros=zeros)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", quantization_config=q4_transformers.Q4Config()
    )
    assert q4.torch.quantize_linears(model, group_size=16) == ["lm_head"]
    model.save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]
    assert config["lm_head"] and config["dynamic"] == {"+:^lm_head$": {"group_size": 16}}
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "again", quantization_config=q4_transformers.Q4Config()
    )
    same(again, model)


def test_whole_models_are_copied_and_pickled(tmp_path: Path) -> None:
    dense = save(tmp_path / "m", llama())
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", quantization_config=q4_transformers.Q4Config()
    )
    torch.save(model, tmp_path / "whole.pt")
    for other in (copy.deepcopy(model), torch.load(tmp_path / "whole.pt", weights_only=False)):
        check_linears(other)
        same(other, dense)


def save_quantized(folder: Path, dense: Any, endings: "tuple[str, ...]") -> None:
    """What save_pretrained() writes of a model, the layers whose names in the file end so in 4 bits, and their weights here too."""
    from safetensors.torch import load_file, save_file

    dense.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    modules = {name[name.find(".") + 1 :]: module for name, module in dense.named_modules()}
    for i, name in enumerate([key.removesuffix(".weight") for key in tensors if key.endswith(endings)]):
        module = next(module for other, module in modules.items() if other.endswith(name[name.find(".") + 1 :]))
        transposed = isinstance(module, torch.nn.Linear)
        k, n = tensors.pop(f"{name}.weight").shape[:: -1 if transposed else 1]
        sample = gptq(k, n, 32, seed=i)
        module.weight.data.copy_(torch.from_numpy(sample.dense.T if transposed else sample.dense))
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            tensors[f"{name}.{part}"] = torch.from_numpy(getattr(sample, part))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq"}
    (folder / "config.json").write_text(json.dumps(config))


def check_loaded(cls: Any, folder: Path, dense: Any, linears: int) -> Any:
    model, info = cls.from_pretrained(
        folder, dtype=torch.float32, quantization_config=q4_transformers.Q4Config(), output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert sum(isinstance(module, q4.torch.Linear) for module in model.modules()) == linears
    same(model, dense)
    return model


def test_layers_that_initialize_their_parts(tmp_path: Path) -> None:
    """GPT-2: Conv1D in place of nn.Linear, and modules whose initialization writes to the weights of what they hold."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, vocab_size=VOCABULARY, n_positions=64)
    dense = transformers.GPT2LMHeadModel(config).eval()
    save_quantized(tmp_path, dense, ("c_attn.weight", "c_proj.weight", "c_fc.weight"))
    check_loaded(transformers.AutoModelForCausalLM, tmp_path, dense, 4 * LAYERS)


def test_names_that_transformers_changes(tmp_path: Path) -> None:
    """A model that sees: the checkpoint's model.layers are the model's model.language_model.layers."""
    text = llama().to_dict()
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": HIDDEN}
    keep = ("rope_parameters", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "vocab_size", "max_position_embeddings")  # fmt: skip
    torch.manual_seed(0)
    config = transformers.Qwen2_5_VLConfig(text_config={k: text[k] for k in keep}, vision_config=vision)
    dense = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    parts = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    save_quantized(tmp_path / "m", dense, tuple(f"layers.{i}.{b}.{p}.weight" for i in range(LAYERS) for b in ("self_attn", "mlp") for p in parts))
    cls = transformers.AutoModelForImageTextToText
    model = check_loaded(cls, tmp_path / "m", dense, 7 * LAYERS)
    assert isinstance(model.model.language_model.layers[0].mlp.up_proj, q4.torch.Linear)
    model.save_pretrained(tmp_path / "again")
    check_loaded(cls, tmp_path / "again", dense, 7 * LAYERS)


def test_what_cannot_be_loaded_says_so(tmp_path: Path) -> None:
    save(tmp_path / "m", llama())
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["num_hidden_layers"] = 1
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(LookupError, match="no modules for 7 of the checkpoint's matrices, 'model.layers.1"):
        transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "m", quantization_config=q4_transformers.Q4Config()
        )
    config["num_hidden_layers"], config["intermediate_size"] = LAYERS, 256
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is Linear of 256 -> 64 features, but the checkpoint's matrix is 128 x 64"):
        transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "m", quantization_config=q4_transformers.Q4Config()
        )
    with pytest.raises(ValueError, match="calibrat|pre_quantized|pre-quantized"):
        plain = tmp_path / "plain"
        transformers.LlamaForCausalLM(llama()).save_pretrained(plain)
        transformers.AutoModelForCausalLM.from_pretrained(plain, quantization_config=q4_transformers.Q4Config())
