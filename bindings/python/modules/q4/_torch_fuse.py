"""fuse_linears: several layers of one input as one product. Imports torch."""

from typing import Any

import torch

import q4
from q4 import _matrix, _native, _torch_ops
from q4._native import Matrix
from q4._torch_linear import Linear, torch_device
from q4._torch_moe import _columns

# Names of layers that models call one after the other with the same x.
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))


class _Product:
    """x @ W for several layers: who asks first computes it, the others find it as long as x is the same unchanged tensor."""

    def __init__(self, matrix: Matrix, layers: int) -> None:
        self.matrix, self.columns, self.layers = matrix, matrix.n, layers
        self.number = _torch_ops.number_of(matrix)
        self.found: "tuple[torch.Tensor, int, torch.Tensor, int] | None" = None  # x, its version, the product, who had it

    def of(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        """For the layer of this number. Threads may call: `found` is replaced as a whole."""
        compiling = torch.compiler.is_compiling()
        version = 0 if compiling or x.is_inference() else x._version
        found, own = self.found, 1 << layer
        if found is not None and found[0] is x and found[1] == version and not found[3] & own:
            y, had = found[2], found[3] | own
        elif compiling:
            y, had = torch.ops.q4.matmul(x, self.number, self.columns), own
        else:
            y, had = self.matrix.matmul(x if x.is_contiguous() else x.contiguous()), own
        self.found = None if had == (1 << self.layers) - 1 else (x, version, y, had)
        return y

    def __getstate__(self) -> Any:
        return {"tensors": self.matrix.unpack(), "device": self.matrix.device, "layers": self.layers}

    def __setstate__(self, state: Any) -> None:
        self.__init__(_matrix.restore(state["tensors"], state["device"]), state["layers"])  # type: ignore[misc,unused-ignore]


class FusedLinear(torch.nn.Module):
    """Columns of a product that it shares with the layers beside it: what fuse_linears puts in the place of a Linear.

    forward() gives a view of those columns. The first of the layers that is called with a tensor multiplies for all. Its
    gradient, dtype and state_dict() are as Linear's; it cannot be moved to another device or take a state_dict(): do that
    before fusing. Under torch.compile x must not be changed in place between the layers' calls.
    """

    def __init__(self, product: _Product, layer: int, first: int, last: int, names: "tuple[str, ...]") -> None:
        super().__init__()
        self.product, self.layer, self.first, self.last, self.names = product, layer, first, last, names
        self.in_features, self.out_features = product.matrix.k, last - first
        self.dtype: "torch.dtype | None" = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x[..., in_features] -> [..., out_features]"""
        kind = x.device.type
        if torch.is_autocast_enabled(kind) and x.is_floating_point() and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(kind))
        elif self.dtype is not None:
            x = x.to(self.dtype)
        return self.product.of(x, self.layer)[..., self.first : self.last]

    def _apply(self, fn: Any, recurse: bool = True) -> "FusedLinear":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call,unused-ignore]
        device = torch_device(self.product.matrix.device)
        for given in (torch.float16, torch.float32):
            probe = fn(torch.empty(0, dtype=given, device=device))
            if probe.dtype != given:
                self.dtype = probe.dtype
        if probe.device != device:
            raise q4.Unsupported(
                f"FusedLinear: {' and '.join(self.names)} are one matrix on {device}, which cannot be moved to"
                f" {probe.device}: move the model before fuse_linears()"
            )
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        tensors = self.product.matrix.unpack()
        for part, value in _columns(tensors, slice(self.first, self.last)).items():
            destination[prefix + part] = value
        metadata = getattr(destination, "_metadata", {}).get(prefix[:-1])
        if metadata is not None:
            metadata["zeros"], metadata["group_size"] = tensors["zeros"], tensors["group_size"]

    def _load_from_state_dict(self, *args: Any) -> None:
        args[-1].append(f"{args[1][:-1] or 'FusedLinear'}: it takes no state_dict(): load it before fuse_linears()")

    def extra_repr(self) -> str:
        """For print(model)."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, of the product for"
            f" {', '.join(self.names)}"
        )


def fuse_linears(model: torch.nn.Module) -> "list[str]":
    """Makes one matrix of the q4.torch.Linear layers that have one input, q_proj, k_proj, v_proj, and gate_proj, up_proj (w1, w3).

    Returns the names of the layers, which become FusedLinear. Decoding on the CPU gains most, where a product of a small
    model takes as long as the call. Layers stay as they are where one of them is no Linear, has a bias of its own beside
    its matrix, is on another device, or has other groups or another g_idx.
    """
    fused: "list[str]" = []
    for parent_name, parent in list(model.named_modules()):
        for names in _SIBLINGS:
            linears = [getattr(parent, name, None) for name in names]
            if not all(type(linear) is Linear and linear.matrix is not None for linear in linears):
                continue
            if any(linear.bias is not None or linear.dtype != linears[0].dtype for linear in linears):  # type: ignore[union-attr]
                continue
            matrix = _fused([linear.matrix for linear in linears])  # type: ignore[union-attr]
            if matrix is None:
                continue
            product, first = _Product(matrix, len(names)), 0
            for number, (name, linear) in enumerate(zip(names, linears)):
                last = first + linear.out_features  # type: ignore[union-attr]
                layer = FusedLinear(product, number, first, last, names)
                layer.dtype = linear.dtype  # type: ignore[union-attr]
                setattr(parent, name, layer.train(linear.training))  # type: ignore[union-attr]
                fused.append(f"{parent_name}.{name}" if parent_name else name)
                first = last
    return fused


def _fused(matrices: "list[Any]") -> "Matrix | None":
    if any(m.device != matrices[0].device or m.has_bias != matrices[0].has_bias for m in matrices):
        return None
    tensors = [matrix.unpack() for matrix in matrices]
    if len({each["format"] for each in tensors}) > 1 or any(each.get("gate_up") for each in tensors):
        return None
    parts = [{key: value for key, value in each.items() if key not in ("format", "gate_up")} for each in tensors]
    try:
        if tensors[0]["format"] == "awq":
            for part in parts:
                del part["g_idx"], part["zeros"]
            return _native.fuse_awq(parts, device=matrices[0].device)
        return _native.fuse_gptq(parts, device=matrices[0].device)
    except q4.Unsupported:  # their rows are in different groups
        return None


FusedLinear.__module__ = fuse_linears.__module__ = "q4.torch"
