"""Linear, an nn.Module over a 4-bit matrix. Imports torch."""

import os
from typing import Any

import torch

import q4
from q4 import _matrix, _torch_ops
from q4._native import Matrix

_TENSORS = ("qweight", "qzeros", "scales", "g_idx", "bias")


def torch_device(name: str) -> torch.device:
    """A device of q4's as torch calls it (AMD GPUs are cuda there)."""
    return torch.device(name.replace("hip", "cuda"))


class Linear(torch.nn.Module):
    """y = x @ W + bias, W in 4 bits and frozen, any leading dimensions.

    bias: a tensor or Parameter, added by torch; None: the matrix's own, if it has one. Gradients flow to x and to
    `bias`. x is fp16 or bf16 (fp32 on the CPU), and the result has its dtype; under autocast x is cast as nn.Linear's
    is, and after .half() or .bfloat16() every x is cast to that dtype. state_dict() holds the GPTQ (or AWQ) tensors, on
    the CPU, and load_state_dict() takes them; .to(device), copy.deepcopy, pickle and torch.save work. Under
    torch.compile it is one operator, q4::matmul.
    """

    matrix: "Matrix | None"

    def __init__(self, matrix: Matrix, bias: "torch.Tensor | None" = None) -> None:
        super().__init__()
        self._begin(matrix.k, matrix.n, matrix.zeros, torch_device(matrix.device))
        if bias is not None and (matrix.has_bias or tuple(bias.shape) != (matrix.n,)):
            raise q4.InvalidArgument(
                f"Linear: bias has shape {list(bias.shape)}"
                + (", but the matrix has a bias of its own: leave one away" if matrix.has_bias else "")
                + f"; it must be [{matrix.n}]"
            )
        if bias is None or isinstance(bias, torch.nn.Parameter):
            self.register_parameter("bias", bias)
        else:
            self.register_buffer("bias", bias)
        self._take(matrix)

    def _begin(self, k: int, n: int, zeros: Any, device: torch.device) -> None:
        self.in_features, self.out_features = k, n
        self.zeros = zeros
        self.device = device
        self.dtype: "torch.dtype | None" = None
        self.matrix = None

    def _take(self, matrix: "Matrix | None") -> None:
        self.matrix = matrix
        if matrix is not None:
            self.device = torch_device(matrix.device)
            self.zeros = matrix.zeros
            self._number = _torch_ops.number_of(matrix)
            self._lasting_number = _torch_ops.number_of(matrix, random=True)

    @classmethod
    def empty(
        cls, in_features: int, out_features: int, *, zeros: "str | None" = "auto", device: Any = "cpu"
    ) -> "Linear":
        """Without weights: load_state_dict() brings them, to `device`. zeros: how qzeros are to be read (from_gptq)."""
        self = cls.__new__(cls)
        torch.nn.Module.__init__(self)
        self._begin(in_features, out_features, zeros, torch.device(device))
        self.register_parameter("bias", None)
        return self

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
        matrix = self.matrix
        if matrix is None:
            raise q4.InvalidArgument("Linear: there are no weights yet: call load_state_dict() first")
        kind = self.device.type
        if torch.is_autocast_enabled(kind) and x.is_floating_point() and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(kind))
        elif self.dtype is not None:
            x = x.to(self.dtype)
        y: torch.Tensor
        if torch.compiler.is_compiling():
            number = self._lasting_number if torch.compiler.is_exporting() else self._number
            y = torch.ops.q4.matmul(x, number, self.out_features)
        else:
            y = matrix.matmul(x if x.is_contiguous() else x.contiguous())
        bias: Any = self._parameters.get("bias")  # not self.bias, whose look-up takes half as long as a small product
        if bias is None:
            bias = self._buffers.get("bias")
        return y if bias is None else y + bias.to(y.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> "Linear":
        """Where fn would move a tensor of this module, the matrix follows; what it makes of fp16 is the new dtype."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call,unused-ignore]
        device = torch.device("cpu") if self.device.type == "meta" else self.device  # meta tensors cannot be moved
        for given in (torch.float16, torch.float32):  # .to(dtype) makes one dtype of both, .to(device) keeps them
            probe = fn(torch.empty(0, dtype=given, device=device))
            if probe.dtype != given:
                self.dtype = probe.dtype
        if probe.device != device:
            self.device = probe.device
            if probe.device.type == "meta":
                self.matrix = None
            elif self.matrix is not None:
                self._take(_matrix.restore(self.matrix.unpack(), str(probe.device)))
        return self

    @property
    def qweight(self) -> torch.Tensor:
        """Unpacked anew each time: adapters (PEFT) ask for it, to learn where the module is."""
        if self.matrix is None:
            raise AttributeError("Linear: there are no tensors to give")
        found: torch.Tensor = self._tensors()["qweight"].to(self.device)
        return found

    def _tensors(self) -> "dict[str, Any]":
        """As unpack(), torch tensors on the CPU in place of arrays; the bias in fp16 where that is exact."""
        assert self.matrix is not None
        tensors = self.matrix.unpack()
        for part in _TENSORS:
            if tensors[part] is not None:
                tensors[part] = torch.from_numpy(tensors[part])
        if tensors["bias"] is not None and torch.equal(tensors["bias"].half().float(), tensors["bias"]):
            tensors["bias"] = tensors["bias"].half()
        return tensors

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.matrix is None:
            return
        tensors = self._tensors()
        for part in _TENSORS:
            if tensors[part] is not None:
                destination[prefix + part] = tensors[part]
        metadata = getattr(destination, "_metadata", {}).get(prefix[:-1])
        if metadata is not None:
            metadata["zeros"], metadata["group_size"] = tensors["zeros"], tensors["group_size"]

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
        own = ("qweight", "qzeros", "scales", "g_idx") + (() if self.bias is not None else ("bias",))
        tensors = {part: given.pop(part, None) for part in own}
        rest = {prefix + key: value for key, value in given.items()}
        super()._load_from_state_dict(
            rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        absent = [part for part in ("qweight", "qzeros", "scales") if tensors[part] is None]
        if absent:
            missing_keys.extend(prefix + part for part in absent)
            return
        shape = tuple(tensors["qweight"].shape)
        k, n = self.in_features, self.out_features
        layouts = {(k // 8, n): "gptq", (k, n // 8): "awq"}
        if shape not in layouts:
            error_msgs.append(
                f"{prefix}qweight has shape {list(shape)}; for {k} -> {n} features it must be [{k // 8}, {n}] (GPTQ) or"
                f" [{k}, {n // 8}] (AWQ)"
            )
            return
        options = {
            "format": layouts[shape],
            "zeros": local_metadata.get("zeros", self.zeros),
            "group_size": local_metadata.get("group_size", 0),
            "g_idx": None,
            "bias": None,
        }
        device = None if self.device.type == "meta" else str(self.device)
        try:
            self._take(_matrix.restore({**options, **tensors}, device))
        except q4.Error as error:
            error_msgs.append(f"{prefix[:-1] or 'Linear'}: {error}")

    def __getstate__(self) -> Any:
        state = {**self.__dict__}
        for name in ("_number", "_lasting_number"):
            state.pop(name, None)
        if self.matrix is not None:  # as torch tensors, on the module's device: torch.load(map_location=...) moves them
            state["matrix"] = {
                key: value.to(self.device) if isinstance(value, torch.Tensor) else value
                for key, value in self._tensors().items()
            }
        return state

    def __setstate__(self, state: Any) -> None:
        tensors = state["matrix"]
        super().__setstate__({**state, "matrix": None})  # type: ignore[no-untyped-call,unused-ignore]
        if tensors is not None:
            self._take(_matrix.restore(tensors, None))

    def extra_repr(self) -> str:
        """For print(model)."""
        w = self.matrix
        parts = [f"in_features={self.in_features}, out_features={self.out_features}"]
        parts.append(f"bias={self.bias is not None or (w is not None and w.has_bias)}")
        parts.append("no weights" if w is None else f"group_size={w.group_size}")
        parts.append(f"device={self.device}")
        if self.dtype is not None:
            parts.append(f"dtype={str(self.dtype).removeprefix('torch.')}")
        return ", ".join(parts)


Linear.__module__ = "q4.torch"
