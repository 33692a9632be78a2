"""q4.torch.Linear as a layer that PEFT's LoRA adapts, without a word of it in each LoraConfig.

    import q4.integrations.peft
    q4.integrations.peft.install()
    model = peft.get_peft_model(model, peft.LoraConfig(...))  # PeftModel.from_pretrained(), model.load_adapter() too

Adapters are trained and run over the frozen matrix. What would need its dense weights is refused: merging, and DoRA.
"""

from typing import Any

import peft

import q4
from q4._torch_linear import Linear

_lora: Any = peft.tuners.lora
_LoraConfig: Any = peft.LoraConfig


class Q4LoraLinear(_lora.Linear):  # type: ignore[misc,unused-ignore]
    """PEFT's layer over an nn.Linear, over a q4.torch.Linear."""

    def resolve_lora_variant(self, **options: Any) -> Any:
        """Of each adapter, when it is added."""
        if options.get("use_dora") or getattr(options.get("config"), "use_dora", False):
            raise q4.Unsupported("Q4LoraLinear: DoRA needs the dense weights, which 4 bits are not: set use_dora=False")
        return super().resolve_lora_variant(**options)

    def merge(self, *args: Any, **options: Any) -> None:
        raise q4.Unsupported(
            "Q4LoraLinear: an adapter cannot be merged into weights of 4 bits: keep it beside them, or merge it into the"
            " dense model and quantize that"
        )


def install() -> None:
    """From now on every LoraConfig, also one that is read from a folder, knows q4.torch.Linear, in this process."""
    if hasattr(_LoraConfig.__post_init__, "before"):
        return
    before = _LoraConfig.__post_init__

    def __post_init__(self: Any) -> None:
        before(self)
        self._register_custom_module({Linear: Q4LoraLinear})

    __post_init__.before = before  # type: ignore[attr-defined,unused-ignore]
    _LoraConfig.__post_init__ = __post_init__


def uninstall() -> None:
    """Undoes install(), for configurations that are made from now on."""
    now = _LoraConfig.__post_init__
    _LoraConfig.__post_init__ = getattr(now, "before", now)


__all__ = ["Q4LoraLinear", "install", "uninstall"]
