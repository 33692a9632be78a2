"""q4 for PyTorch: Linear, an nn.Module over a 4-bit matrix, and replace_linears. Imports torch."""

import itertools
import os
import weakref
from typing import Any

import torch
from torch import library as torch_library

import q4
from q4._native import Checkpoint, Matrix

# The operator gets a number, because a graph cannot hold a Matrix. A Linear keeps its matrix alive.
_matrices: "weakref.WeakValueDictionary[int, Matrix]" = weakref.WeakValueDictionary()
_numbers = itertools.count(1)

_torch_library: Any = torch_library  # hardly annotated
_library = _torch_library.Library("q4", "FRAGMENT")
_library.define("matmul(Tensor x, int matrix, int n) -> Tensor")


def _matmul(x: torch.Tensor, matrix: int, n: int) -> torch.Tensor:
    found = _matrices.get(matrix)
    if found is None:
        raise RuntimeError(f"q4.matmul: matrix {matrix} no longer exists: the Linear that held it was freed")
    result: torch.Tensor = found.matmul(x if x.is_contiguous() else x.contiguous())
    return result


def _fake(x: torch.Tensor, matrix: int, n: int) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], n))


for _key in ("CPU", "CUDA"):
    _library.impl("matmul", _matmul, _key)
_torch_library.register_fake("q4::matmul", _fake)


class Linear(torch.nn.Module):
    """y = x @ W (+ bias of W), W in 4 bits: inference only, fp16 or bf16 (fp32 on the CPU), any leading dimensions.

    Works under torch.compile (one operator, q4::matmul) and in CUDA graphs. The weights are no parameters: they are not
    in state_dict, and .to() does not move them.
    """

    def __init__(self, matrix: Matrix) -> None:
        super().__init__()
        self.matrix = matrix
        self.in_features = matrix.k
        self.out_features = matrix.n
        self._number = next(_numbers)
        _matrices[self._number] = matrix

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
        if torch.compiler.is_compiling():
            y: torch.Tensor = torch.ops.q4.matmul(x, self._number, self.out_features)
            return y
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("q4.torch.Linear has no backward: call the model under torch.no_grad()")
        z: torch.Tensor = self.matrix.matmul(x if x.is_contiguous() else x.contiguous())
        return z

    def extra_repr(self) -> str:
        """For print(model)."""
        w = self.matrix
        return f"in_features={w.k}, out_features={w.n}, group_size={w.group_size}, device={w.device}"


def _device_of(module: torch.nn.Module) -> "torch.device | None":
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        if tensor.device.type != "meta":
            return tensor.device
    return None


def replace_linears(
    model: torch.nn.Module,
    checkpoint: "Checkpoint | str | os.PathLike[str]",
    *,
    device: Any = None,
    strict: bool = True,
) -> list[str]:
    """Puts a Linear in the place of each module that the checkpoint has a matrix for; returns their names.

    device: where the matrices go; None: where the module is (on the meta device: where the model is, else the best
    device). Shapes must match. An Embedding is left as it is.
    strict: a matrix whose name the model lacks, or that q4 does not support (entry.unsupported says why), is an error,
    else it is left out. Everything is checked before the first module is replaced.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint(checkpoint)
    modules = dict(model.named_modules())
    entries = [
        entry
        for entry in checkpoint.matrices
        if (strict or (entry.name in modules and not entry.unsupported))
        and not isinstance(modules.get(entry.name), torch.nn.Embedding)
    ]
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
        shape = (getattr(module, "in_features", None), getattr(module, "out_features", None))
        if shape != (entry.k, entry.n):
            raise q4.InvalidArgument(
                f"replace_linears: '{entry.name}' is {type(module).__name__} of {shape[0]} -> {shape[1]} features, but"
                f" the checkpoint's matrix is {entry.k} x {entry.n}"
            )
    for entry in entries:
        parent, _, last = entry.name.rpartition(".")
        place = device if device is not None else _device_of(modules[entry.name]) or _device_of(model)
        setattr(model.get_submodule(parent), last, Linear(checkpoint.load(entry.name, place)))
    return [entry.name for entry in entries]


__all__ = ["Linear", "replace_linears"]
