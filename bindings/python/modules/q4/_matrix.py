"""Matrices as their tensors: pickle and deepcopy, and dense values for the gradient. Nothing is imported before use."""

import copyreg
from typing import Any

from q4._native import Matrix

AWQ_SHIFTS = (0, 16, 4, 20, 8, 24, 12, 28)  # of column 8 w + j in word w


def restore(tensors: "dict[str, Any]", device: Any) -> Matrix:
    """The matrix that Matrix.unpack() gave these tensors of, on a device."""
    options = {name: tensors[name] for name in ("qweight", "qzeros", "scales", "bias", "group_size")}
    options["gate_up"] = tensors.get("gate_up", False)
    if tensors["format"] == "awq":
        return Matrix.from_awq(**options, device=device)
    return Matrix.from_gptq(**options, g_idx=tensors["g_idx"], zeros=tensors["zeros"], device=device)


def _reduce(matrix: Matrix) -> Any:
    return restore, (matrix.unpack(), matrix.device)


def _deepcopy(matrix: Matrix, memo: Any) -> Matrix:
    return restore(matrix.unpack(), matrix.device)


copyreg.pickle(Matrix, _reduce)
_type: Any = Matrix
_type.__deepcopy__ = _deepcopy


def dense_rows(tensors: "dict[str, Any]", first: int, last: int) -> Any:
    """W[first:last] in fp32, as a NumPy array; first and last are multiples of 8."""
    import numpy as np

    awq = tensors["format"] == "awq"
    shifts = np.array(AWQ_SHIFTS if awq else range(0, 32, 4), np.uint32)
    words = tensors["qweight"].view(np.uint32)
    groups, n = tensors["scales"].shape
    if awq:
        codes = (words[first:last, :, None] >> shifts & 15).reshape(last - first, n)
    else:
        codes = (words[first // 8 : last // 8, None] >> shifts[:, None] & 15).reshape(last - first, n)
    zeros = (tensors["qzeros"].view(np.uint32)[:, :, None] >> shifts & 15).reshape(groups, n)
    if tensors["zeros"] == "v1":
        zeros = zeros + 1 & 15
    scales = tensors["scales"].astype(np.float32)
    g_idx = tensors["g_idx"]
    rows = np.arange(first, last) // tensors["group_size"] if g_idx is None else g_idx[first:last]
    dense = codes.astype(np.float32)
    dense -= zeros.astype(np.float32)[rows]
    dense *= scales[rows]
    return dense
