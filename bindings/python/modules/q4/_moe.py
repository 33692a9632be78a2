"""q4.moe and q4.grouped_matmul, and experts as their tensors. Nothing is imported before use."""

import copyreg
from collections.abc import Sequence
from typing import Any

from q4 import _native
from q4._native import Experts

_library: Any = _native

_NO_MAP: "list[int]" = []
_TENSORS = ("qweight", "qzeros", "scales", "g_idx", "bias")


def unpack(experts: Experts) -> "list[dict[str, Any]]":
    """Each expert's tensors, as Experts.unpack() gives them."""
    return [experts.unpack(e) for e in range(len(experts))]


def restore(tensors: "list[dict[str, Any]]", gate_up: bool, device: Any) -> Experts:
    """The experts that unpack() gave these tensors of, on a device."""
    size: int = tensors[0]["group_size"]
    zeros: Any = tensors[0]["zeros"]
    awq = tensors[0]["format"] == "awq"
    tuples = [tuple(t[part] for part in _TENSORS if not (awq and part == "g_idx")) for t in tensors]
    if awq:
        return Experts.from_awq(tuples, group_size=size, gate_up=gate_up, device=device)
    return Experts.from_gptq(tuples, group_size=size, zeros=zeros, gate_up=gate_up, device=device)


def _reduce(experts: Experts) -> Any:
    return restore, (unpack(experts), experts.gate_up, experts.device)


def _deepcopy(experts: Experts, memo: Any) -> Experts:
    return restore(unpack(experts), experts.gate_up, experts.device)


copyreg.pickle(Experts, _reduce)
_type: Any = Experts
_type.__deepcopy__ = _deepcopy


def _as(array: Any, dtype: str) -> Any:
    """The array with this dtype and without gaps, itself where it is so already."""
    if hasattr(array, "detach"):  # torch
        import torch

        kind = getattr(torch, dtype)
        given = array.detach()
        return (given if given.dtype == kind else given.to(kind)).contiguous()
    if hasattr(array, "astype"):  # NumPy, CuPy
        given = array if array.dtype.name == dtype else array.astype(dtype)
        return given if given.flags.c_contiguous else given.copy()
    return array


def _map(expert_map: Any) -> "list[int]":
    if expert_map is None:
        return _NO_MAP
    return expert_map.tolist() if hasattr(expert_map, "tolist") else list(expert_map)


def moe(
    x: Any,
    topk_ids: Any,
    topk_weights: Any,
    w13: Experts,
    w2: Experts,
    activation: str = "silu_mul",
    *,
    expert_map: "Sequence[int] | Any | None" = None,
    alpha: float = 1.702,
    limit: float = 7.0,
    out: Any = None,
    stream: Any = None,
    batch_invariant: bool = False,
) -> Any:
    """out[t] = sum over s of topk_weights[t, s] * (act(x[t] @ w13[e]) @ w2[e]), e = topk_ids[t, s], in x's dtype.

    x [..., K]; topk_ids and topk_weights [..., topk], integers and floats (int32 and float32 are used as they are).
    w13: experts K x 2 I, the columns gate, then up; w2: I x n. activation: "silu_mul", "gelu_mul", "gelu_tanh_mul",
    "swiglu_clamp" (gpt-oss, with alpha and limit), or "none" for a w13 of K x I. expert_map: for each of the model's
    experts its place in w13 and w2, or -1 where another rank has it: a list, which is read at each call. Ids that name
    no expert add nothing. out, stream and batch_invariant as for matmul. There is no gradient.
    """
    return _library._moe(
        x,
        _as(topk_ids, "int32"),
        _as(topk_weights, "float32"),
        w13,
        w2,
        activation,
        _map(expert_map),
        alpha,
        limit,
        batch_invariant,
        out,
        stream,
    )


def grouped_matmul(
    x: Any,
    experts: Experts,
    *,
    expert_ids: Any = None,
    offsets: Any = None,
    activation: str = "none",
    alpha: float = 1.702,
    limit: float = 7.0,
    out: Any = None,
    stream: Any = None,
    batch_invariant: bool = False,
) -> Any:
    """Each row of x by the matrix of one expert: out[r] = act(x[r] @ W[e]), n columns, n / 2 with an activation.

    expert_ids [rows]: the expert of each row; or, for rows that are sorted by expert, offsets [experts + 1]: expert e
    has the rows from offsets[e] to offsets[e + 1]. Rows of no expert are zeros. The rest as for moe.
    """
    return _library._grouped(
        x,
        experts,
        None if expert_ids is None else _as(expert_ids, "int32"),
        None if offsets is None else _as(offsets, "int32"),
        activation,
        alpha,
        limit,
        batch_invariant,
        out,
        stream,
    )
