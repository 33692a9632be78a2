"""MoE, an nn.Module over the experts of a layer, and where a checkpoint and a model have them. Imports torch."""

import os
import re
from typing import Any, NamedTuple

import torch

import q4
from q4 import _moe
from q4._native import Checkpoint, Experts, MatrixEntry
from q4._torch_linear import torch_device

_PARTS = ("qweight", "qzeros", "scales", "g_idx", "bias")
# Names of gate, up and down, behind "...experts.E.".
_NAMES = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
_EXPERT = re.compile(r"^(?P<prefix>.*\.experts)\.(?P<number>\d+)\.(?P<part>\w+)$")
# Classes of transformers whose forward is that of MoE and whose activation is named by config.hidden_act.
_ACTIVATIONS = {
    "silu": "silu_mul",
    "swish": "silu_mul",
    "gelu": "gelu_mul",
    "gelu_pytorch_tanh": "gelu_tanh_mul",
    "gelu_new": "gelu_tanh_mul",
}


class Layer(NamedTuple):
    """The experts of one layer of a checkpoint."""

    prefix: str  # "model.layers.0.mlp.experts"
    names: "tuple[str, str, str]"  # of gate, up and down
    entries: "list[MatrixEntry]"
    experts: int

    def patterns(self) -> "tuple[tuple[str, str], str]":
        """Of gate and up, and of down."""
        gate, up, down = (f"{self.prefix}.{{}}.{name}" for name in self.names)
        return (gate, up), down


def expert_layers(entries: "list[MatrixEntry]") -> "list[Layer]":
    """The layers of experts among a checkpoint's matrices; LookupError where one is incomplete."""
    found: "dict[str, dict[int, dict[str, MatrixEntry]]]" = {}
    for entry in entries:
        match = _EXPERT.match(entry.name)
        if match:
            experts = found.setdefault(match["prefix"], {})
            experts.setdefault(int(match["number"]), {})[match["part"]] = entry
    layers = []
    for prefix, experts in found.items():
        names = next((names for names in _NAMES if names[0] in experts[min(experts)]), None)
        if names is None:
            continue
        for number in range(len(experts)):
            missing = [name for name in names if name not in experts.get(number, {})]
            if missing:
                raise q4.NotFound(
                    f"MoE: the checkpoint has {len(experts)} experts '{prefix}.*', but no '{prefix}.{number}.{missing[0]}'"
                )
        members = [experts[number][name] for number in range(len(experts)) for name in names]
        layers.append(Layer(prefix, names, members, len(experts)))
    return layers


def layer_of(checkpoint: Checkpoint, prefix: str) -> Layer:
    """The experts whose names begin with `prefix`; LookupError where there are none."""
    for layer in expert_layers(checkpoint.matrices):
        if layer.prefix == prefix:
            return layer
    raise q4.NotFound(f"MoE: the checkpoint has no experts '{prefix}.*'")


def module_of(model: torch.nn.Module, prefix: str, names: "dict[str, torch.nn.Module]") -> "str | None":
    """The name of the module that holds a layer's experts in one tensor (transformers 5), where there is one."""
    base = getattr(model, "base_model_prefix", "") + "."
    # transformers calls Mixtral's block mlp, its checkpoints block_sparse_moe.
    for name in (prefix, prefix.replace(".block_sparse_moe.", ".mlp.")):
        for candidate in (name, base + name, name.removeprefix(base)):
            if hasattr(names.get(candidate), "gate_up_proj") and hasattr(names[candidate], "down_proj"):
                return candidate
    return None


def activation_of(module: torch.nn.Module, config: Any) -> str:
    """What q4.moe calls the activation of a module of experts."""
    name = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None) or "silu"
    if name not in _ACTIVATIONS or not hasattr(module, "act_fn"):
        raise q4.Unsupported(
            f"MoE: {type(module).__name__} has the activation '{name}'; q4 multiplies gate and up after "
            f"{', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def check_layer(layer: Layer, module: torch.nn.Module) -> None:
    """That the experts can stand in the place of the module."""
    gate_up = tuple(getattr(module, "gate_up_proj").shape)
    experts, columns, k = gate_up if len(gate_up) == 3 else (0, 0, 0)
    entry = layer.entries[0]
    if (experts, columns, k) != (layer.experts, 2 * entry.n, entry.k):
        raise q4.InvalidArgument(
            f"replace_linears: '{layer.prefix}' is {type(module).__name__} with gate_up_proj {list(gate_up)}, but the"
            f" checkpoint has {layer.experts} experts of {entry.k} x {entry.n}"
        )
    if getattr(module, "gate_up_proj_bias", None) is not None:
        raise q4.Unsupported(f"replace_linears: '{layer.prefix}' is {type(module).__name__}, which has biases")


class MoE(torch.nn.Module):
    """The experts of a layer: stands where transformers has MixtralExperts, Qwen3MoeExperts and the like.

    w13: experts of K x 2 I, gate columns before up columns; w2: I x n. activation and expert_map as for q4.moe. There
    is no gradient: call under torch.no_grad(). x is fp16 or bf16 (fp32 on the CPU). state_dict() holds each expert's
    GPTQ (or AWQ) tensors as checkpoints name them, "0.gate_proj.qweight" and so on, on the CPU, and load_state_dict()
    takes them.
    """

    def __init__(
        self,
        w13: "Experts | None",
        w2: "Experts | None",
        activation: str = "silu_mul",
        *,
        expert_map: "list[int] | None" = None,
        names: "tuple[str, str, str]" = _NAMES[0],
    ) -> None:
        super().__init__()
        if w13 is not None and w2 is not None and (len(w13) != len(w2) or w13.device != w2.device):
            raise q4.InvalidArgument(
                f"MoE: w13 has {len(w13)} experts on {w13.device}, w2 {len(w2)} on {w2.device}; both must be the same"
            )
        self.w13, self.w2 = w13, w2
        self.activation = activation
        self.expert_map = expert_map
        self.names = names
        self.dtype: "torch.dtype | None" = None

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: "Checkpoint | str | os.PathLike[str]",
        prefix: str,
        activation: str = "silu_mul",
        *,
        first: int = 0,
        count: int = -1,
        device: Any = None,
    ) -> "MoE":
        """The experts whose names begin with `prefix`, "model.layers.0.mlp.experts"; or only some of them.

        With `first` and `count` the module holds the experts from `first` on, and an expert_map that takes the model's
        numbers: other ranks' experts add nothing.
        """
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = Checkpoint(checkpoint)
        layer = layer_of(checkpoint, prefix)
        self = cls(None, None, activation, names=layer.names)
        self.load(checkpoint, layer, device, first, count)
        return self

    def load(
        self, checkpoint: Checkpoint, layer: Layer, device: Any = None, first: int = 0, count: int = -1
    ) -> None:
        """The weights of a layer of a checkpoint."""
        last = layer.experts if count < 0 else first + count
        if not 0 <= first < last <= layer.experts:
            raise q4.InvalidArgument(
                f"MoE: first = {first} and count = {count} are no part of the {layer.experts} experts '{layer.prefix}.*'"
            )
        gate_up, down = layer.patterns()
        options = {"first": first, "count": last - first, "device": device}
        self.w13 = Experts.from_checkpoint(checkpoint, gate_up, **options)
        self.w2 = Experts.from_checkpoint(checkpoint, down, **options)
        if (first, last) != (0, layer.experts):
            self.expert_map = [e - first if first <= e < last else -1 for e in range(layer.experts)]

    def warmup(self, max_tokens: int, topk: int, dtype: Any = None) -> None:
        """Finds or compiles what up to max_tokens tokens of topk experts each need; dtype: x's (fp16 where unset)."""
        if self.w13 is None or self.w2 is None:
            raise q4.InvalidArgument("MoE: there are no weights yet: call load_state_dict() first")
        kind = dtype or self.dtype or torch.float16
        self.w13.warmup(self.w2, max_tokens, topk, kind, self.activation, expert_map=self.expert_map)

    @property
    def device(self) -> torch.device:
        """Where the experts are."""
        return torch.device("meta") if self.w13 is None else torch_device(self.w13.device)

    @torch.compiler.disable  # type: ignore[misc,untyped-decorator,unused-ignore]  # a graph holds no experts
    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """x [..., K], ids and weights [..., topk] -> [..., n]"""
        if self.w13 is None or self.w2 is None:
            raise q4.InvalidArgument("MoE: there are no weights yet: call load_state_dict() first")
        x, kind = hidden_states, hidden_states.device.type
        if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(kind))
        elif self.dtype is not None:
            x = x.to(self.dtype)
        y: torch.Tensor = q4.moe(
            x.contiguous(),
            top_k_index,
            top_k_weights,
            self.w13,
            self.w2,
            self.activation,
            expert_map=self.expert_map,
        )
        return y

    def _apply(self, fn: Any, recurse: bool = True) -> "MoE":
        """What fn makes of fp16 is the new dtype; the experts move where fn moves a tensor."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call,unused-ignore]
        place = torch.device("cpu") if self.device.type == "meta" else self.device
        for given in (torch.float16, torch.float32):
            probe = fn(torch.empty(0, dtype=given, device=place))
            if probe.dtype != given:
                self.dtype = probe.dtype
        if probe.device.type == "meta":
            self.w13 = self.w2 = None
        elif probe.device != place and self.w13 is not None and self.w2 is not None:
            self.w13, self.w2 = (
                _moe.restore(_moe.unpack(experts), experts.gate_up, str(probe.device)) for experts in (self.w13, self.w2)
            )
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.w13 is None or self.w2 is None:
            return
        gate, up, down = self.names
        for e in range(len(self.w13)):
            both = self.w13.unpack(e)
            columns = both["scales"].shape[1]
            halves = (slice(0, columns // 2), slice(columns // 2, columns)) if self.activation != "none" else (slice(None),)
            for name, half in zip((gate, up), halves):
                for part, value in _columns(both, half).items():
                    destination[f"{prefix}{e}.{name}.{part}"] = value
            for part, value in _columns(self.w2.unpack(e), slice(None)).items():
                destination[f"{prefix}{e}.{down}.{part}"] = value
        metadata = getattr(destination, "_metadata", {}).get(prefix[:-1])
        if metadata is not None:
            metadata["zeros"] = both["zeros"]

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: "list[str]",
        unexpected_keys: "list[str]",
        error_msgs: "list[str]",
    ) -> None:
        given = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
        numbers = sorted({int(key.split(".", 1)[0]) for key in given if key.split(".", 1)[0].isdigit()})
        if not numbers:
            missing_keys.append(f"{prefix}0.{self.names[0]}.qweight")
            return
        gated = self.activation != "none"
        lists: "dict[str, list[Any]]" = {name: [] for name in self.names}
        for e in numbers:
            for name in self.names if gated else (self.names[0], self.names[2]):
                parts = [given.get(f"{e}.{name}.{part}") for part in _PARTS]
                absent = [f"{prefix}{e}.{name}.{part}" for part, value in zip(_PARTS[:3], parts) if value is None]
                missing_keys.extend(absent)
                lists[name].append(tuple(parts))
        if missing_keys:
            return
        device = None if self.device.type == "meta" else str(self.device)
        zeros = local_metadata.get("zeros", "auto")
        try:
            first = [_joined(a, b) for a, b in zip(lists[self.names[0]], lists[self.names[1]])] if gated else lists[self.names[0]]
            self.w13 = _experts(first, zeros, gated, device)
            self.w2 = _experts(lists[self.names[2]], zeros, False, device)
        except q4.Error as error:
            error_msgs.append(f"{prefix[:-1] or 'MoE'}: {error}")

    def extra_repr(self) -> str:
        """For print(model)."""
        w = self.w13
        parts = ["no weights" if w is None else f"{len(w)} experts, {w.k} -> {w.n} -> {getattr(self.w2, 'n', '?')}"]
        parts += [] if w is None else [f"group_size={w.group_size}"]
        return ", ".join([*parts, f"activation={self.activation}, device={self.device}"])


def _columns(tensors: "dict[str, Any]", columns: slice) -> "dict[str, torch.Tensor]":
    """The GPTQ or AWQ tensors of some columns, a multiple of 8 each."""
    words = slice(None if columns.start is None else columns.start // 8, None if columns.stop is None else columns.stop // 8)
    awq = tensors["format"] == "awq"
    parts = {
        "qweight": tensors["qweight"][:, words if awq else columns],
        "qzeros": tensors["qzeros"][:, words],
        "scales": tensors["scales"][:, columns],
    }
    if tensors["g_idx"] is not None:
        parts["g_idx"] = tensors["g_idx"]
    if tensors["bias"] is not None:
        parts["bias"] = tensors["bias"][columns]
    return {name: torch.from_numpy(part).contiguous().clone() for name, part in parts.items()}


def _joined(gate: "tuple[Any, ...]", up: "tuple[Any, ...]") -> "tuple[Any, ...]":
    """The columns of gate and up side by side; both have one order of rows."""
    if gate[3] is not None and not torch.equal(gate[3], up[3]):
        raise q4.InvalidArgument("MoE: gate and up have different g_idx, so that their rows are in different orders")
    bias = None if gate[4] is None else torch.cat([gate[4], up[4]])
    return (*(torch.cat([a, b], 1) for a, b in zip(gate[:3], up[:3])), gate[3], bias)


def _experts(tensors: "list[tuple[Any, ...]]", zeros: Any, gate_up: bool, device: Any) -> Experts:
    qweight, qzeros, scales = tensors[0][:3]
    if qweight.shape[1] != scales.shape[1]:  # AWQ packs along the columns
        return Experts.from_awq([(*t[:3], t[4]) for t in tensors], gate_up=gate_up, device=device)
    return Experts.from_gptq(tensors, zeros=zeros, gate_up=gate_up, device=device)


MoE.__module__ = "q4.torch"
