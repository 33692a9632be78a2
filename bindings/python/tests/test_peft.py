"""q4.integrations.peft against the real package: adapters over a Llama in 4 bits, beside the same over its dense weights."""

import copy
from pathlib import Path
from typing import Any, Iterator

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")
peft = pytest.importorskip("peft")

import q4  # noqa: E402
import q4.integrations.peft as adapter  # noqa: E402
import q4.torch  # noqa: E402
import q4.transformers as q4_transformers  # noqa: E402
from test_transformers import LAYERS, llama, same, save  # noqa: E402


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    adapter.install()
    adapter.install()
    yield
    adapter.uninstall()


def load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=q4_transformers.Q4Config()
    )


def config(**options: Any) -> Any:
    return peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **options)


def adapted(base: Any) -> Any:
    torch.manual_seed(1)
    model = peft.get_peft_model(base, config())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return model


def test_gradients_are_those_over_dense_weights(tmp_path: Path) -> None:
    dense = save(tmp_path / "m", llama())
    ids = torch.arange(10)[None]
    gradients = []
    for base in (load(tmp_path / "m"), dense):
        model = adapted(base).train()
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(ids, labels=ids).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert len(gradients[0]) == 2 * 2 * LAYERS and gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert float(gradient.abs().max()) > 0
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-5)


def test_adapters_from_a_folder(tmp_path: Path) -> None:
    """As PEFT and as transformers load them, with no configuration at hand that could name q4's class."""
    dense = save(tmp_path / "m", llama())
    expected = adapted(copy.deepcopy(dense))
    model = adapted(load(tmp_path / "m"))
    same(model, expected)
    with model.disable_adapter():
        same(model, dense)
    model.save_pretrained(tmp_path / "adapter")
    same(peft.PeftModel.from_pretrained(load(tmp_path / "m"), tmp_path / "adapter"), expected)
    other = load(tmp_path / "m")
    other.load_adapter(str(tmp_path / "adapter"))
    same(other, expected)
    bare = model.unload()
    same(bare, dense)
    assert isinstance(bare.model.layers[0].self_attn.q_proj, q4.torch.Linear)


def test_what_needs_dense_weights_is_refused(tmp_path: Path) -> None:
    dense = save(tmp_path / "m", llama())
    model = adapted(load(tmp_path / "m"))
    with pytest.raises(q4.Unsupported, match="cannot be merged into weights of 4 bits"):
        model.merge_adapter()
    same(model, adapted(copy.deepcopy(dense)))
    with pytest.raises(q4.Unsupported, match="use_dora=False"):
        model.add_adapter("other", config(use_dora=True))
    adapter.uninstall()
    with pytest.raises(ValueError, match="not supported"):
        peft.get_peft_model(load(tmp_path / "m"), config())
