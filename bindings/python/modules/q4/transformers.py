"""q4 for Hugging Face transformers (5 or later): GPTQ, AWQ, AutoRound and compressed-tensors checkpoints run on q4.

Imports transformers and torch.

    AutoModelForCausalLM.from_pretrained(folder, quantization_config=q4.transformers.Q4Config())

for one model, or q4.transformers.install() once and from_pretrained(folder) for all.
"""

import os
import re
from collections.abc import Callable
from typing import Any

import torch
from transformers import conversion_mapping as hf_conversion
from transformers import core_model_loading as hf_loading
from transformers import quantizers
from transformers.utils import quantization_config as hf_config

import q4
from q4._native import Checkpoint, MatrixEntry
from q4._torch_linear import Linear, torch_device
from q4._torch_moe import Layer, MoE, activation_of
from q4._torch_replace import bias_to_keep, check_shape, moe_layers, text_config

_auto: Any = quantizers.auto
_conversion: Any = hf_conversion
_loading: Any = hf_loading
_Mixin: Any = hf_config.QuantizationConfigMixin
_HfQuantizer: Any = quantizers.base.HfQuantizer
_nothing: Any = torch.empty(0)
_nothing._is_hf_initialized = True
METHODS = ("gptq", "awq", "auto-round", "compressed-tensors")
_PARTS = {"qweight", "qzeros", "scales", "g_idx", "bias"}
_COMPRESSED_PARTS = {"weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape"}


class Q4Config(_Mixin):  # type: ignore[misc,unused-ignore]
    """Runs a quantized checkpoint on q4; keeps what the checkpoint's own quantization_config says.

    save_pretrained() writes GPTQ or AWQ tensors. Where the checkpoint had them in another packing (compressed-tensors,
    Marlin, AWQ gemv, words of 8 or 16 bits), the configuration that is saved says gptq_v2, which they are then.

    device: where all matrices go ("cuda:0"); None: where transformers puts the layers that they belong to.
    """

    def __init__(self, device: Any = None, **checkpoint: Any) -> None:
        self.quant_method = "q4"
        self.device = device
        self.checkpoint = {key: value for key, value in checkpoint.items() if value is not None}

    def to_dict(self) -> "dict[str, Any]":
        """What config.json holds: a configuration that every loader knows."""
        return dict(self.checkpoint) or {"quant_method": "q4"}

    def __iter__(self) -> Any:
        yield from self.to_dict().items()

    def to_diff_dict(self) -> "dict[str, Any]":
        return self.to_dict()


class Q4Quantizer(_HfQuantizer):  # type: ignore[misc,unused-ignore]
    """Puts a q4.torch.Linear in the place of each module that the checkpoint has a matrix for, a MoE for experts."""

    requires_calibration = True  # q4 reads quantized checkpoints; it makes none

    def validate_environment(self, *args: Any, **options: Any) -> None:
        if options.get("from_tf") or options.get("from_flax"):
            raise q4.Unsupported("Q4Config: only safetensors checkpoints are read, none of TensorFlow or Flax")

    def _process_model_before_weight_loading(self, model: Any, checkpoint_files: Any = None, **options: Any) -> Any:
        """Empty Linears, so that transformers neither makes nor expects dense weights."""
        if not checkpoint_files:
            raise q4.InvalidArgument("Q4Config: from_pretrained() gave no checkpoint files; pass a folder or a hub name")
        folder = os.path.dirname(os.fspath(checkpoint_files[0]))  # a hub cache's links, not what they lead to
        self._checkpoint = Checkpoint(folder)
        modules = dict(model.named_modules(remove_duplicate=False))
        renamed = _renaming(model)
        self._layers = moe_layers(model, self._checkpoint.matrices, modules, renamed)
        self._entries = _modules_of(model, self._checkpoint, self._layers, renamed)
        names = _PARTS | _COMPRESSED_PARTS
        ignored = set(model._keys_to_ignore_on_load_unexpected or ())
        for name, entry in self._entries.items():
            module = model.get_submodule(name)
            check_shape(entry, module)
            linear = Linear.empty(entry.k, entry.n)
            if bias_to_keep(module, entry, loaded_later=True) is not None:
                linear.bias = module.bias
            linear.weight = _nothing  # what the model's own initialization of a layer's parts passes over
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, linear)
            parts = names if linear.bias is None else names - {"bias"}
            ignored.add(rf"(^|\.){re.escape(name)}\.({'|'.join(sorted(parts))})$")
        for name, layer in self._layers.items():
            empty = MoE(None, None, activation_of(modules[name], text_config(model)), names=layer.names)
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, empty)
            ignored.add(rf"(^|\.){re.escape(name)}\.\d+\.\w+\.({'|'.join(sorted(names))})$")
        model._keys_to_ignore_on_load_unexpected = ignored
        return model

    def _process_model_after_weight_loading(self, model: Any, **options: Any) -> Any:
        for name, entry in self._entries.items():
            device = self.quantization_config.device
            place = torch_device(str(device)) if device is not None else _device_around(model, name)
            linear = model.get_submodule(name)
            del linear.weight
            linear._take(self._checkpoint.load(entry.name, place))
        for name, layer in self._layers.items():
            device = self.quantization_config.device
            place = torch_device(str(device)) if device is not None else _device_around(model, name)
            model.get_submodule(name).load(self._checkpoint, layer, place)
        self.quantization_config.checkpoint = saved_config(self.quantization_config.checkpoint, model, self._entries)
        del self._checkpoint, self._entries, self._layers  # the model keeps this object, and is copied and pickled with it
        return model

    def is_serializable(self, *args: Any, **options: Any) -> bool:
        return True

    def get_state_dict_and_metadata(self, model: Any, *args: Any, **options: Any) -> Any:
        """Before the configuration is saved: quantize_linears may have made the output layer one of 4 bits since."""
        config, head = self.quantization_config.checkpoint, model.get_output_embeddings()
        if isinstance(head, Linear) and head.matrix is not None and config.get("quant_method") == "gptq":
            config = {**config, "lm_head": True}
            if head.matrix.group_size != config.get("group_size"):
                name = next(name for name, module in model.named_modules() if module is head)
                rule = {f"+:^{re.escape(name)}$": {"group_size": head.matrix.group_size}}
                config["dynamic"] = {**(config.get("dynamic") or {}), **rule}
            self.quantization_config.checkpoint = config
        return super().get_state_dict_and_metadata(model, *args, **options)

    @property
    def is_trainable(self) -> bool:
        return True  # adapters over frozen weights

    @property
    def is_compileable(self) -> bool:
        return True


def _renaming(model: Any) -> "Callable[[str], str]":
    """What transformers calls a module of the checkpoint: models that see have their parts under other names there."""
    transforms = _conversion.get_model_conversion_mapping(model)
    renamings = [each for each in transforms if isinstance(each, _loading.WeightRenaming)]

    def renamed(name: str) -> str:
        key: str = _loading.rename_source_key(f"{name}.weight", renamings, [])[0]
        return key.removesuffix(".weight")

    return renamed


def _modules_of(
    model: Any, checkpoint: Checkpoint, layers: "dict[str, Layer]", renamed: "Callable[[str], str]"
) -> "dict[str, MatrixEntry]":
    """Each matrix outside the layers of experts by the name of its module.

    That may have the base model's prefix more or less than the checkpoint.
    """
    experts = {entry.name for layer in layers.values() for entry in layer.entries}
    unsupported = [e.unsupported for e in checkpoint.matrices if e.name in experts and e.unsupported]
    if unsupported:
        raise q4.Unsupported(f"Q4Config: {unsupported[0]}")
    modules = dict(model.named_modules(remove_duplicate=False))
    prefix = f"{model.base_model_prefix}."
    # A base model (AutoModel) has no prefix, and no place for what stands beside it in the checkpoint, such as lm_head.
    base = not any(name.startswith(prefix) for name in modules)
    prefixed = any(entry.name.startswith(prefix) for entry in checkpoint.matrices)
    found: "dict[str, MatrixEntry]" = {}
    lost = []
    for entry in checkpoint.matrices:
        if entry.name in experts:
            continue
        begins = (renamed(entry.name), entry.name)
        names = [name for each in begins for name in (each, prefix + each, each.removeprefix(prefix))]
        name = next((name for name in names if name in modules), None)
        if name is not None:
            if isinstance(modules[name], torch.nn.Embedding):
                continue
            if entry.unsupported:
                raise q4.Unsupported(f"Q4Config: {entry.unsupported}")
            found[name] = entry
        elif not (base and prefixed and not entry.name.startswith(prefix)):
            lost.append(entry.name)
    if lost:
        raise q4.NotFound(
            f"Q4Config: {type(model).__name__} has no modules for {len(lost)} of the checkpoint's matrices, '{lost[0]}'"
            " among them: their layers would be without weights"
        )
    return found


def _device_around(model: Any, name: str) -> torch.device:
    """Where transformers put what is nearest to a module."""
    while name:
        name = name.rpartition(".")[0]
        for parameter in model.get_submodule(name).parameters():
            if parameter.device.type != "meta":
                return torch.device(parameter.device)
    return torch.device("cpu")


def _rules(config: "dict[str, Any]") -> "list[Any]":
    """What a configuration says of single modules, in the words of each tool."""
    dynamic, extra = config.get("dynamic") or {}, config.get("extra_config") or {}
    rules = [rule for key, rule in dynamic.items() if not key.startswith("-:")] + list(extra.values())
    return [rule for rule in rules if isinstance(rule, dict)]


def reads(config: "dict[str, Any]") -> bool:
    """Whether q4 has every matrix that a quantization_config describes: 4 bits, integers, weights alone."""
    method = config.get("quant_method")
    if method == "compressed-tensors":
        groups = config.get("config_groups") or {}
        weights = [group.get("weights") or {} for group in groups.values() if isinstance(group, dict)]
        activations = [group.get("input_activations") for group in groups.values() if isinstance(group, dict)]
        packed = config.get("format") in ("pack-quantized", "mixed-precision")
        four = all(w.get("num_bits") == 4 and w.get("type", "int") == "int" for w in weights)
        return packed and bool(weights) and four and not any(activations)
    if method == "auto-round" and not str(config.get("data_type", "int")).startswith("int"):
        return False
    bits = [config.get("bits", config.get("w_bit", 4))] + [rule.get("bits", 4) for rule in _rules(config)]
    return all(each == 4 or (each or 16) >= 16 for each in bits) and bits[0] == 4  # 16: such modules are not quantized


def saved_config(config: "dict[str, Any]", model: Any, names: Any) -> "dict[str, Any]":
    """What describes the tensors that state_dict() gives: `config`, or gptq_v2 where they are packed otherwise there.

    names: of the modules that are q4.torch.Linear.
    """
    method, packing = config.get("quant_method"), str(config.get("packing_format", ""))
    form = str(config.get("checkpoint_format", config.get("version", "")) or "")
    words = str(config.get("pack_dtype", "int32")) == "int32"
    as_it_was = {
        "gptq": form in ("", "gptq", "gptq_v2") and words and not config.get("is_marlin_format"),
        "awq": form.lower() in ("", "gemm"),
        "auto-round": "llm_compressor" not in packing,
    }
    if not names:
        return config
    if method == "gptq" and as_it_was["gptq"] and all(model.get_submodule(name).matrix.zeros == "v2" for name in names):
        # Also where the checkpoint said v1: GPTQModel's zeros that are not symmetric are read into v2.
        said: "dict[str, Any]" = {key: "gptq_v2" for key in ("checkpoint_format", "format") if key in config}
        return {**config, "checkpoint_format": "gptq_v2", **said}
    if as_it_was.get(str(method), False):
        return config
    linears = {name: model.get_submodule(name) for name in names}
    sizes = [m.matrix.group_size if m.matrix.groups > 1 else -1 for m in linears.values()]
    common = max(set(sizes), key=sizes.count)
    dynamic = {
        f"+:^{re.escape(name)}$": {"group_size": size} for name, size in zip(linears, sizes) if size != common
    }
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] != "lm_head":
            dynamic[f"-:^{re.escape(name)}$"] = {}
    return {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": common,
        "desc_act": any(m.matrix.act_order for m in linears.values()),
        "sym": False,
        "checkpoint_format": "gptq_v2",
        "lm_head": any(name.rpartition(".")[2] == "lm_head" for name in linears),
        **({"dynamic": dynamic} if dynamic else {}),
    }


class _Either:
    """In the place of a configuration class of transformers: q4 where it can, else the class that was there."""

    def __init__(self, before: Any) -> None:
        self.before = before

    def __getattr__(self, name: str) -> Any:
        return getattr(self.before, name)

    def from_dict(self, config: "dict[str, Any]", **options: Any) -> Any:
        chosen = Q4Config if reads(config) else self.before
        return chosen.from_dict(config, **options)


def install() -> None:
    """From now on from_pretrained() runs on q4, in this process, every 4-bit checkpoint of the METHODS that `reads` says it can."""
    mapping = _auto.AUTO_QUANTIZATION_CONFIG_MAPPING
    for method in METHODS:
        if not isinstance(mapping[method], _Either):
            mapping[method] = _Either(mapping[method])


def uninstall() -> None:
    """Undoes install()."""
    mapping = _auto.AUTO_QUANTIZATION_CONFIG_MAPPING
    for method in METHODS:
        if isinstance(mapping[method], _Either):
            mapping[method] = mapping[method].before


def _register() -> None:
    """Names q4 to transformers. Its merge of two configurations takes the checkpoint's alone: ours must come through."""
    if "q4" in _auto.AUTO_QUANTIZER_MAPPING:
        return
    _auto.register_quantization_config("q4")(Q4Config)
    _auto.register_quantizer("q4")(Q4Quantizer)
    merge = _auto.AutoHfQuantizer.merge_quantization_configs

    def merge_quantization_configs(checkpoint: Any, given: Any) -> Any:
        if not isinstance(given, Q4Config):
            return merge(checkpoint, given)
        own = checkpoint if isinstance(checkpoint, dict) else checkpoint.to_dict()
        return Q4Config(given.device, **{key: value for key, value in own.items() if key != "device"})

    _auto.AutoHfQuantizer.merge_quantization_configs = staticmethod(merge_quantization_configs)


_register()

__all__ = ["METHODS", "Q4Config", "Q4Quantizer", "install", "reads", "saved_config", "uninstall"]
