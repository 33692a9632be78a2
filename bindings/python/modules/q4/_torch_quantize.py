"""quantize_linears: dense layers as 4-bit ones, by rounding. Imports torch."""

import fnmatch
from collections.abc import Sequence
from typing import Any

import torch

import q4
from q4._matrix import AWQ_SHIFTS
from q4._native import Matrix
from q4._torch_linear import Linear

_COLUMNS = 4096  # of which dense numbers are held at a time


def round_to_nearest(weight: torch.Tensor, group_size: int = 32, device: Any = None, form: Any = "v2") -> Matrix:
    """The matrix of an nn.Linear's weight [n, k]: in each column and group of rows 16 even steps from the least to the largest.

    k and n are multiples of 8, as is group_size. The error of a weight is at most half a step, and a little more from the
    rounding of steps to fp16. form: of the tensors that unpack() gives, GPTQ's "v1" or "v2", or "awq".
    """
    n, k = weight.shape
    if k % 8 or n % 8 or group_size % 8 or group_size <= 0:
        raise q4.InvalidArgument(
            f"round_to_nearest: a weight [{n}, {k}] in groups of {group_size}; all three must be multiples of 8"
        )
    groups = -(-k // group_size)
    awq = form == "awq"
    shifts = torch.tensor(AWQ_SHIFTS if awq else range(0, 32, 4), dtype=torch.int32)
    qweight = torch.empty((k, n // 8) if awq else (k // 8, n), dtype=torch.int32)
    qzeros = torch.empty(groups, n // 8, dtype=torch.int32)
    scales = torch.empty(groups, n, dtype=torch.float16)
    for first in range(0, n, _COLUMNS):
        part = slice(first, min(first + _COLUMNS, n))
        w = weight.detach()[part].to("cpu", torch.float32).T
        missing = groups * group_size - k  # rows of a last group that is shorter: they repeat its last row
        w = torch.cat([w, w[-1:].expand(missing, -1)]).reshape(groups, group_size, -1)
        low, high = w.amin(1).clamp(max=0), w.amax(1).clamp(min=0)  # zero is always a step
        if form == "v1":  # it stores a zero less one, so that there is none of 0
            low = torch.minimum(low, high / -14)
        step = ((high - low) / 15).clamp(min=2**-24).half()
        zero = (-low / step.float()).round().clamp(1 if form == "v1" else 0, 15)
        codes = (w / step.float()[:, None] + zero[:, None]).round().clamp(0, 15).int().reshape(groups * group_size, -1)[:k]
        words = slice(part.start // 8, part.stop // 8)
        if awq:
            qweight[:, words] = (codes.reshape(k, -1, 8) << shifts).sum(2, dtype=torch.int32)
        else:
            qweight[:, part] = (codes.reshape(k // 8, 8, -1) << shifts[:, None]).sum(1, dtype=torch.int32)
        stored = zero.int() - (1 if form == "v1" else 0)
        qzeros[:, words] = (stored.reshape(groups, -1, 8) << shifts).sum(2, dtype=torch.int32)
        scales[:, part] = step
    if awq:
        return Matrix.from_awq(qweight, qzeros, scales, group_size=group_size, device=device)
    return Matrix.from_gptq(qweight, qzeros, scales, zeros=form, group_size=group_size, device=device)


def _form_of(model: torch.nn.Module) -> str:
    """Of the matrices that the model has: one configuration describes all that is saved with them."""
    matrix = next((m.matrix for m in model.modules() if isinstance(m, Linear) and m.matrix is not None), None)
    if matrix is None:
        return "v2"
    return "awq" if matrix.unpack()["format"] == "awq" else matrix.zeros


def quantize_linears(
    model: torch.nn.Module, names: "str | Sequence[str]" = "lm_head", *, group_size: int = 32, device: Any = None
) -> "list[str]":
    """Puts a 4-bit Linear in the place of dense nn.Linear modules whose names match (as fnmatch has it); returns their names.

    For what a checkpoint left dense and decoding reads whole at each token: the output layer of a small model. Rounding
    to nearest loses more than GPTQ or AWQ do; a weight that is tied to an embedding stays dense there. device: None: where
    the weight is. Nothing is replaced where one of the layers cannot be.
    """
    patterns = [names] if isinstance(names, str) else list(names)
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }
    if not found:
        raise q4.NotFound(f"quantize_linears: the model has no nn.Linear named {' or '.join(patterns)}")
    made, form = {}, _form_of(model)
    for name, module in found.items():
        if module.weight.device.type == "meta":
            raise q4.InvalidArgument(f"quantize_linears: '{name}' is on the meta device: load the model's weights first")
        place = device if device is not None else module.weight.device
        bias = None if module.bias is None else module.bias.to(place)
        made[name] = Linear(round_to_nearest(module.weight, group_size, place, form), bias)
    for name, linear in made.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, linear)
    return list(made)


quantize_linears.__module__ = "q4.torch"
