"""replace_linears: a checkpoint's matrices in the place of a model's layers. Imports torch."""

import fnmatch
import itertools
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

import q4
from q4._native import Checkpoint, MatrixEntry
from q4._torch_linear import Linear, torch_device
from q4._torch_moe import Layer, MoE, activation_of, check_layer, expert_layers, module_of


def _device_of(module: torch.nn.Module) -> "torch.device | None":
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        if tensor.device.type != "meta":
            return tensor.device
    return None


def features_of(module: torch.nn.Module) -> "tuple[Any, Any]":
    """(in, out) of an nn.Linear or of what is like one; transformers' Conv1D has them as nx and nf."""
    names = ("in_features", "out_features") if hasattr(module, "in_features") else ("nx", "nf")
    return getattr(module, names[0], None), getattr(module, names[1], None)


def check_shape(entry: MatrixEntry, module: torch.nn.Module) -> None:
    """That the matrix can stand in the place of the module."""
    shape = features_of(module)
    if shape != (entry.k, entry.n):
        raise q4.InvalidArgument(
            f"replace_linears: '{entry.name}' is {type(module).__name__} of {shape[0]} -> {shape[1]} features, but"
            f" the checkpoint's matrix is {entry.k} x {entry.n}"
        )


def bias_to_keep(
    module: torch.nn.Module, entry: MatrixEntry, *, loaded_later: bool = False
) -> "torch.Tensor | None":
    """The module's bias, where the checkpoint has none for it. loaded_later: it may still be on the meta device."""
    bias: "torch.Tensor | None" = getattr(module, "bias", None)
    if bias is None or entry.has_bias:
        return None
    if bias.device.type == "meta" and not loaded_later:
        raise q4.InvalidArgument(
            f"replace_linears: '{entry.name}' has a bias, but the checkpoint has none for it and the module's is on the"
            " meta device, without values: load the model's biases first, or make the module with bias=False"
        )
    return bias


def moe_layers(
    model: torch.nn.Module,
    entries: "list[MatrixEntry]",
    modules: "dict[str, torch.nn.Module]",
    renamed: "Callable[[str], str]" = str,
) -> "dict[str, Layer]":
    """The layers of experts that the model holds in one module each, by that module's name.

    renamed: from a name in the checkpoint to one in the model.
    """
    if not any(hasattr(module, "gate_up_proj") and hasattr(module, "down_proj") for module in modules.values()):
        return {}
    found: "dict[str, Layer]" = {}
    for layer in expert_layers(entries):
        name = module_of(model, renamed(layer.prefix), modules) or module_of(model, layer.prefix, modules)
        if name is not None:
            check_layer(layer, modules[name])
            found[name] = layer
    return found


def text_config(model: torch.nn.Module) -> Any:
    """Of the language model, which may be a part of the model."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _moved(bias: torch.Tensor, device: torch.device) -> torch.Tensor:
    if bias.device == device:
        return bias
    if isinstance(bias, torch.nn.Parameter):
        return torch.nn.Parameter(bias.detach().to(device), bias.requires_grad)
    return bias.to(device)


_COLUMNS = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "w1", "w3"}
_ROWS = {"o_proj", "down_proj", "w2"}


def _dimension(name: str, placements: "Mapping[str, Any] | None") -> "int | None":
    """Which dimension of an nn.Linear's weight is divided: 0, 1 or None."""
    if placements is None:
        last = name.rpartition(".")[2]
        return 0 if last in _COLUMNS else 1 if last in _ROWS else None
    for pattern, placement in placements.items():
        if fnmatch.fnmatchcase(name, pattern):
            dimension: Any = getattr(placement, "dim", None)
            if dimension not in (0, 1, None) or (dimension is None and type(placement).__name__ != "Replicate"):
                raise q4.InvalidArgument(
                    f"replace_linears: placements['{pattern}'] = {placement}; it must be Shard(0), Shard(1) or Replicate()"
                )
            return dimension if dimension is None else int(dimension)
    return None


def _divides_experts(layer: Layer, placements: "Mapping[str, Any] | None") -> bool:
    if placements is None:
        return True
    dimension = _dimension(layer.prefix, placements)
    if dimension == 1:
        raise q4.InvalidArgument(
            f"replace_linears: '{layer.prefix}' are experts, which are placed as Shard(0), each whole on one rank, or Replicate()"
        )
    return dimension == 0


def _parallel(
    checkpoint: Checkpoint,
    entry: MatrixEntry,
    model: Any,
    mesh: Any,
    placements: "Mapping[str, Any] | None",
    device: Any,
    bias: "torch.Tensor | None",
) -> "torch.nn.Module | None":
    from q4._torch_parallel import ColumnParallelLinear, RowParallelLinear

    dimension = _dimension(entry.name, placements)
    if dimension is None:
        return None
    if bias is not None:
        raise q4.Unsupported(
            f"replace_linears: '{entry.name}' has a bias that is not in the checkpoint, and it is divided over ranks: put"
            " the bias into the checkpoint, or place the module as Replicate()"
        )
    group = mesh.get_group()
    if dimension == 1:
        return RowParallelLinear(checkpoint, entry.name, group=group, device=device)
    unit = 8
    config = getattr(model, "config", None)
    if entry.name.rpartition(".")[2] in ("q_proj", "k_proj", "v_proj") and config is not None:
        heads = getattr(config, "num_attention_heads", None)
        unit = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else unit)
    return ColumnParallelLinear(checkpoint, entry.name, group=group, device=device, unit=unit)


def replace_linears(
    model: torch.nn.Module,
    checkpoint: "Checkpoint | str | os.PathLike[str]",
    *,
    device: Any = None,
    strict: bool = True,
    device_mesh: Any = None,
    placements: "Mapping[str, Any] | None" = None,
) -> list[str]:
    """Puts a Linear in the place of each module that the checkpoint has a matrix for; returns the matrices' names.

    Experts that the model holds as one tensor (transformers 5: Mixtral, Qwen3-MoE and the like) get a MoE in the place
    of their module.

    device: where the matrices go; None: where the module is (on the meta device: where the model is, else the best
    device). Shapes must match. A bias comes from the checkpoint; where that has none, the module's own stays. Embeddings
    are left alone. strict: a matrix whose name the model lacks, or that q4 does not support (entry.unsupported says
    why), is an error, else it is left out. Everything is checked before the first module is replaced.

    device_mesh: a DeviceMesh of one dimension, over whose ranks the matrices are divided; placements: pattern of names
    (as fnmatch has them) -> the DTensor placement of an nn.Linear's weight, Shard(0) (out_features), Shard(1)
    (in_features) or Replicate(); for "...experts" Shard(0) (an ExpertParallelMoE) or Replicate(). None: q, k, v, gate and
    up projections are Shard(0), o and down projections Shard(1), as transformers divides them, experts Shard(0), and the
    others whole. A head of model.config is never divided.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint(checkpoint)
    modules = dict(model.named_modules(remove_duplicate=False))
    layers = moe_layers(model, [entry for entry in checkpoint.matrices if strict or not entry.unsupported], modules)
    in_layers = {entry.name for layer in layers.values() for entry in layer.entries}
    for entry in checkpoint.matrices:
        if entry.name in in_layers and entry.unsupported:
            raise q4.Unsupported(f"replace_linears: {entry.unsupported}")
    entries = [
        entry
        for entry in checkpoint.matrices
        if entry.name not in in_layers
        and (strict or (entry.name in modules and not entry.unsupported))
        and not isinstance(modules.get(entry.name), torch.nn.Embedding)
    ]
    kept: "dict[str, torch.Tensor | None]" = {}
    for entry in entries:
        if entry.unsupported:
            raise q4.Unsupported(
                f"replace_linears: {entry.unsupported}; pass strict=False to leave such modules as they are"
            )
        module = modules.get(entry.name)
        if module is None:
            raise q4.NotFound(
                f"replace_linears: the model has no module '{entry.name}'; pass the model whose module names begin"
                " as the checkpoint's, or strict=False"
            )
        check_shape(entry, module)
        kept[entry.name] = bias_to_keep(module, entry)
    for entry in entries:
        parent, _, last = entry.name.rpartition(".")
        place = device if device is not None else _device_of(modules[entry.name]) or _device_of(model)
        bias = kept[entry.name]
        if device_mesh is not None:
            parallel = _parallel(checkpoint, entry, model, device_mesh, placements, place, bias)
            if parallel is not None:
                setattr(model.get_submodule(parent), last, parallel)
                continue
        matrix = checkpoint.load(entry.name, place)
        if bias is not None:
            bias = _moved(bias, torch_device(matrix.device))
        setattr(model.get_submodule(parent), last, Linear(matrix, bias))
    for name, layer in layers.items():
        parent, _, last = name.rpartition(".")
        place = device if device is not None else _device_of(modules[name]) or _device_of(model)
        activation = activation_of(modules[name], text_config(model))
        moe: torch.nn.Module
        if device_mesh is not None and _divides_experts(layer, placements):
            from q4._torch_expert_parallel import ExpertParallelMoE

            group = device_mesh.get_group()
            moe = ExpertParallelMoE(checkpoint, layer.prefix, activation, group=group, device=place)
        else:
            moe = MoE(None, None, activation, names=layer.names)
            moe.load(checkpoint, layer, place)
        setattr(model.get_submodule(parent), last, moe)
    return [entry.name for entry in checkpoint.matrices if entry.name in in_layers or entry in entries]
