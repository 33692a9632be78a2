"""q4.integrations.gptqmodel against the real GPTQModel on the CPU: it is chosen, and gives the numbers of GPTQModel's own."""

import json
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("gptqmodel", minversion="7.0")
transformers = pytest.importorskip("transformers")

import q4.integrations.gptqmodel as adapter  # noqa: E402
from gptqmodel import BACKEND, GPTQModel  # noqa: E402
from samples import Sample, awq, gptq  # noqa: E402

LAYERS, HIDDEN, INNER, VOCABULARY, GROUP = 2, 64, 128, 96, 32


def save(folder: Path, method: str, zeros: str) -> Any:
    """A checkpoint of random weights; returns the dense model that has them."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=64,
        dtype=torch.float16,
    )
    model = transformers.LlamaForCausalLM(config).half().eval()
    tensors = dict(model.state_dict())
    for i, (name, module) in enumerate(model.named_modules()):
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        k, n = module.in_features, module.out_features
        made: Sample = awq(k, n, GROUP, i) if method == "awq" else gptq(k, n, GROUP, act_order=True, zeros=zeros, seed=i)
        module.weight.data.copy_(torch.from_numpy(made.dense.T))
        del tensors[f"{name}.weight"]
        for part in ("qweight", "qzeros", "scales") + (() if method == "awq" else ("g_idx",)):
            value = getattr(made, part)
            if part == "qzeros" and zeros == "v1":  # GPTQModel's v1: the subtraction goes over whole words
                value = (real_zeros(value) - np.uint32(0x11111111)).view(np.int32)
            tensors[f"{name}.{part}"] = torch.from_numpy(value)
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    quantization = {"quant_method": method, "bits": 4, "group_size": GROUP, "sym": False}
    if method == "awq":
        quantization |= {"zero_point": True, "version": "gemm", "checkpoint_format": "gemm"}
    else:
        quantization |= {"desc_act": True, "checkpoint_format": "gptq_v2" if zeros == "v2" else "gptq"}
        quantization |= {"meta": {"quantizer": ["gptqmodel:7.7.0"]}, "pack_dtype": "int32"}
    written = {**json.loads(config.to_json_string(use_diff=False)), "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps({**written, "architectures": ["LlamaForCausalLM"]}))
    from tokenizers import Tokenizer, models  # GPTQModel loads no model without one

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", pad_token="w0").save_pretrained(folder)
    return model


def real_zeros(stored: Any) -> Any:
    """Words of zeros as they are, of words of zeros less one in each nibble."""
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    codes = ((stored.view(np.uint32)[..., None] >> shifts) + 1) & 15
    return np.bitwise_or.reduce(codes.astype(np.uint32) << shifts, axis=-1)


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    adapter.install()
    adapter.install()
    yield
    adapter.uninstall()


def kernels(model: Any) -> "set[str]":
    return {type(module).__name__ for module in model.modules() if hasattr(module, "qzero_format") or hasattr(module, "QUANT_TYPE")}


@pytest.mark.parametrize("method, zeros, kernel", [("gptq", "v1", "Q4GptqLinear"), ("gptq", "v2", "Q4GptqLinear"), ("awq", "", "Q4AwqLinear")])
def test_it_is_chosen_and_right(tmp_path: Path, method: str, zeros: str, kernel: str) -> None:
    dense = save(tmp_path / "m", method, zeros)
    model = GPTQModel.load(str(tmp_path / "m"), device="cpu", dtype=torch.float16).model
    assert kernels(model) == {kernel}
    ids = torch.arange(10)[None] * 7 % VOCABULARY
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, dense(ids).logits, rtol=2e-2, atol=5e-3)
    generated = model.generate(ids, min_new_tokens=4, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert generated.shape == (1, 14)
    names = [name for name, module in model.named_modules() if type(module).__name__ == kernel]
    assert len(names) == 7 * LAYERS
    module = model.get_submodule(names[0])
    assert not module._buffers and module.qweight.device.type == "cpu"
    state = module.state_dict()
    assert {"qweight", "qzeros", "scales"} <= set(state) and module.half() is module
    x = torch.randn(3, module.in_features, dtype=torch.float16, requires_grad=True)
    module(x).sum().backward()
    expected = dense.get_submodule(names[0]).weight.sum(0).expand(3, -1)
    torch.testing.assert_close(x.grad, expected, rtol=2e-2, atol=5e-3)


def test_other_kernels_are_there_when_asked_for(tmp_path: Path) -> None:
    save(tmp_path / "m", "gptq", "v2")
    model = GPTQModel.load(str(tmp_path / "m"), device="cpu", dtype=torch.float16, backend=BACKEND.GPTQ_TORCH).model
    assert kernels(model) == {"TorchLinear"}
    adapter.uninstall()
    model = GPTQModel.load(str(tmp_path / "m"), device="cpu", dtype=torch.float16).model
    assert "Q4GptqLinear" not in kernels(model)


def test_other_kernels_are_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of GPTQModel's own compile an extension to say whether they could serve, for minutes on a GPU."""
    from gptqmodel.quantization import FORMAT, METHOD
    from gptqmodel.utils import importer
    from gptqmodel.utils import model as loading

    asked = []
    for kernel in importer.AUTO_BACKEND_KERNEL_MAPPING[METHOD.GPTQ][FORMAT.GPTQ_V2].values():
        monkeypatch.setattr(kernel, "validate", classmethod(lambda c, _v=kernel.validate, **o: asked.append(c) or _v(**o)))
    save(tmp_path / "m", "gptq", "v2")
    model = GPTQModel.load(str(tmp_path / "m"), device="cpu", dtype=torch.float16).model
    assert kernels(model) == {"Q4GptqLinear"} and set(asked) == {adapter.Q4GptqLinear}

    options: Any = {"bits": 4, "group_size": 32, "desc_act": True, "sym": False, "device": "cpu", "format": FORMAT.GPTQ}
    options |= {"pack_dtype": torch.int32, "dtype": torch.float16, "multi_select": True, "quant_method": METHOD.GPTQ}
    rules = {"+:.*down_proj": {"group_size": 64}, "-:.*up_proj": {}}
    assert loading.select_quant_linear(**options, dynamic=rules) == [adapter.Q4GptqLinear]
    for rule in {"bits": 8}, {"group_size": 24}, {"pack_dtype": torch.int16}:
        found = loading.select_quant_linear(**options, dynamic={"+:.*down_proj": rule})
        assert found[0] is adapter.Q4GptqLinear and len(found) > 1
    assert adapter.Q4GptqLinear not in loading.select_quant_linear(**{**options, "bits": 8})
    named = loading.select_quant_linear(**options, backend=BACKEND.GPTQ_TORCH)
    assert [kernel.__name__ for kernel in named] == ["TorchLinear"]
    adapter.uninstall()
    assert loading.select_quant_linear is importer.select_quant_linear


def test_transformers_asks_gptqmodel_for_it(tmp_path: Path) -> None:
    pytest.importorskip("optimum")
    dense = save(tmp_path / "m", "gptq", "v2")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float16, device_map="cpu")
    assert kernels(model) == {"Q4GptqLinear"}
    ids = torch.arange(10)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, dense(ids).logits, rtol=2e-2, atol=5e-3)
