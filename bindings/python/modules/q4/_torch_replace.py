"""replace_linears: a checkpoint's matrices in the place of a model's layers. Imports torch."""

import itertools
import os
from typing import Any

import torch

import q4
from q4._native import Checkpoint, MatrixEntry
from q4._torch_linear import Linear, torch_device


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


def _moved(bias: torch.Tensor, device: torch.device) -> torch.Tensor:
    if bias.device == device:
        return bias
    if isinstance(bias, torch.nn.Parameter):
        return torch.nn.Parameter(bias.detach().to(device), bias.requires_grad)
    return bias.to(device)


def replace_linears(
    model: torch.nn.Module,
    checkpoint: "Checkpoint | str | os.PathLike[str]",
    *,
    device: Any = None,
    strict: bool = True,
) -> list[str]:
    """Puts a Linear in the place of each module that the checkpoint has a matrix for; returns their names.

    device: where the matrices go; None: where the module is (on the meta device: where the model is, else the best
    device). Shapes must match. A bias comes from the checkpoint; where that has none, the module's own stays. Embeddings
    are left alone. strict: a matrix whose name the model lacks, or that q4 does not support (entry.unsupported says
    why), is an error, else it is left out. Everything is checked before the first module is replaced.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint(checkpoint)
    modules = dict(model.named_modules(remove_duplicate=False))
    entries = [
        entry
        for entry in checkpoint.matrices
        if (strict or (entry.name in modules and not entry.unsupported))
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
        matrix = checkpoint.load(entry.name, place)
        bias = kept[entry.name]
        if bias is not None:
            bias = _moved(bias, torch_device(matrix.device))
        setattr(model.get_submodule(parent), last, Linear(matrix, bias))
    return [entry.name for entry in entries]
