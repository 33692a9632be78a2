"""q4 for PyTorch: Linear, an nn.Module over a 4-bit matrix, and replace_linears. Imports torch."""

import itertools
import os
from typing import Any

import torch

import q4
from q4 import _torch_ops
from q4._native import Checkpoint, Matrix, MatrixEntry


class Linear(torch.nn.Module):
    """y = x @ W + bias, W in 4 bits and frozen: fp16 or bf16 (fp32 on the CPU), any leading dimensions.

    bias: a tensor or Parameter, added by torch; None: the matrix's own, if it has one. Gradients flow to x and to
    `bias`. Works under torch.compile (one operator, q4::matmul), torch.jit.trace and in CUDA graphs. The weights are no
    parameters: they are not in state_dict, and .to() does not move them.
    """

    def __init__(self, matrix: Matrix, bias: "torch.Tensor | None" = None) -> None:
        super().__init__()
        if bias is not None and (matrix.has_bias or tuple(bias.shape) != (matrix.n,)):
            raise q4.InvalidArgument(
                f"Linear: bias has shape {list(bias.shape)}"
                + (", but the matrix has a bias of its own: leave one away" if matrix.has_bias else "")
                + f"; it must be [{matrix.n}]"
            )
        self.matrix = matrix
        self.in_features = matrix.k
        self.out_features = matrix.n
        if bias is None or isinstance(bias, torch.nn.Parameter):
            self.register_parameter("bias", bias)
        else:
            self.register_buffer("bias", bias)
        self._number = _torch_ops.number_of(matrix)

    @classmethod
    def from_checkpoint(cls, path: "str | os.PathLike[str]", name: str, *, device: Any = None) -> "Linear":
        """The matrix `name` of a GPTQ or AWQ checkpoint."""
        return cls(Matrix.from_checkpoint(path, name, device=device))

    @classmethod
    def from_gptq(cls, *tensors: Any, **options: Any) -> "Linear":
        """From tensors and options as q4.Matrix.from_gptq takes them."""
        return cls(Matrix.from_gptq(*tensors, **options))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x[..., in_features] -> [..., out_features]"""
        y: torch.Tensor
        if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
            y = torch.ops.q4.matmul(x, self._number, self.out_features)
        else:
            y = self.matrix.matmul(x if x.is_contiguous() else x.contiguous())
        bias: "torch.Tensor | None" = self.bias
        return y if bias is None else y + bias.to(y.dtype)

    def extra_repr(self) -> str:
        """For print(model)."""
        w = self.matrix
        bias = self.bias is not None or w.has_bias
        return f"in_features={w.k}, out_features={w.n}, bias={bias}, group_size={w.group_size}, device={w.device}"


def _device_of(module: torch.nn.Module) -> "torch.device | None":
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        if tensor.device.type != "meta":
            return tensor.device
    return None


def _features(module: torch.nn.Module) -> "tuple[Any, Any]":
    """(in, out) of an nn.Linear or of what is like one; transformers' Conv1D has them as nx and nf."""
    names = ("in_features", "out_features") if hasattr(module, "in_features") else ("nx", "nf")
    return getattr(module, names[0], None), getattr(module, names[1], None)


def _bias_to_keep(module: torch.nn.Module, entry: MatrixEntry) -> "torch.Tensor | None":
    """The module's bias, where the checkpoint has none for it."""
    bias: "torch.Tensor | None" = getattr(module, "bias", None)
    if bias is None or entry.has_bias:
        return None
    if bias.device.type == "meta":
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
        shape = _features(module)
        if shape != (entry.k, entry.n):
            raise q4.InvalidArgument(
                f"replace_linears: '{entry.name}' is {type(module).__name__} of {shape[0]} -> {shape[1]} features, but"
                f" the checkpoint's matrix is {entry.k} x {entry.n}"
            )
        kept[entry.name] = _bias_to_keep(module, entry)
    for entry in entries:
        parent, _, last = entry.name.rpartition(".")
        place = device if device is not None else _device_of(modules[entry.name]) or _device_of(model)
        matrix = checkpoint.load(entry.name, place)
        bias = kept[entry.name]
        if bias is not None:
            bias = _moved(bias, torch_device(matrix))
        setattr(model.get_submodule(parent), last, Linear(matrix, bias))
    return [entry.name for entry in entries]


def torch_device(matrix: Matrix) -> torch.device:
    """Where a matrix is, as torch calls it (which calls AMD GPUs cuda)."""
    return torch.device(matrix.device.replace("hip", "cuda"))


__all__ = ["Linear", "replace_linears"]
