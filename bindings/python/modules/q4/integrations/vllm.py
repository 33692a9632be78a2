"""q4 as a kernel of vLLM for 4-bit weights, as a plugin: vLLM calls register() when it starts (vllm.general_plugins).

Never run on a GPU with vLLM: written against the interface in its source of autumn 2026 (MPLinearKernel in
vllm/model_executor/kernels/linear/mixed_precision, to 0.33), and tested with a stand-in of that interface on the CPU.

Q4_VLLM says where q4 stands among vLLM's kernels:

    last (default)   where vLLM's own refuse: act-order that is divided by rows (before 0.33, which reads no act-order),
                     group sizes, zeros, or the CPU
    first            wherever q4 can
    off              nowhere

Weights of GPTQ (symmetric, with or without act-order), AWQ and compressed-tensors (also with zeros). Experts of mixtures are
left to vLLM: their kernels cannot be registered from outside.
"""

import os
from typing import Any

import torch

from q4._native import Matrix
from q4._torch_linear import Linear
from q4.errors import InvalidArgument

try:  # where it is since the end of 2025
    from vllm.model_executor.kernels import linear as _kernels
except ImportError:  # before
    from vllm.model_executor.layers.quantization.kernels import mixed_precision as _kernels
try:
    from vllm.platforms import PlatformEnum
except ImportError:
    from vllm.backends.platform import PlatformEnum
from vllm.model_executor.parameter import permute_param_layout_

_PLACES = ("last", "first", "off")
_Base: Any = _kernels.MPLinearKernel


class Q4LinearKernel(_Base):  # type: ignore[misc,unused-ignore]
    """One linear layer: the packed parameters become a q4.Matrix after loading, and are dropped."""

    linear: "Linear | None" = None

    @classmethod
    def get_min_capability(cls) -> int:
        return 75

    @classmethod
    def can_implement(cls, c: Any) -> "tuple[bool, str | None]":
        k, n = c.partition_weight_shape
        kind = c.weight_type
        if kind.size_bits != 4 or str(kind) not in ("uint4", "uint4b8"):
            return False, f"q4 multiplies by uint4 and uint4b8, not by {kind}"
        if (str(kind) == "uint4") != bool(c.zero_points):
            return False, f"q4 needs zero points with uint4 and none with uint4b8, not zero_points={c.zero_points}"
        if c.act_type not in (torch.float16, torch.bfloat16, torch.float32):
            return False, f"q4 multiplies fp16, bf16 and, on the CPU, fp32, not {c.act_type}"
        if getattr(c, "out_type", None) not in (None, c.act_type):
            return False, f"q4 gives the type of its input, not {c.out_type}"
        if k % 8 or n % 8:
            return False, f"q4 needs sizes that are multiples of 8, not {k} x {n}"
        if c.group_size != -1 and (c.group_size < 8 or c.group_size % 8):
            return False, f"q4 needs a group size of -1 or a multiple of 8, not {c.group_size}"
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        w_q, w_s, w_zp, *order = self._get_weight_params(layer)  # vLLM 0.33 and later know no act-order
        c = self.config
        act_order = bool(getattr(c, "has_g_idx", False))
        k, n = c.partition_weight_shape
        permute_param_layout_(w_q, input_dim=0, output_dim=1, packed_dim=0)
        permute_param_layout_(w_s, input_dim=0, output_dim=1)
        if tuple(w_q.shape) != (k // 8, n) or w_s.shape[1] != n:
            raise InvalidArgument(
                f"Q4LinearKernel: weights of {list(w_q.shape)} and scales of {list(w_s.shape)} for {k} x {n}; they must be"
                f" [{k // 8}, {n}] and [groups, {n}]"
            )
        groups = w_s.shape[0]
        if c.zero_points:
            permute_param_layout_(w_zp, input_dim=1, output_dim=0, packed_dim=0)  # [n/8, groups]
            zeros = w_zp.data.t().contiguous()
        else:  # every zero is 8
            zeros = torch.full((groups, n // 8), 0x88888888 - (1 << 32), dtype=torch.int32, device=w_q.device)
        matrix = Matrix.from_gptq(
            w_q.data.contiguous(),
            zeros,
            w_s.data.contiguous(),
            order[0].data.contiguous() if act_order and order[0] is not None else None,
            # Divided by rows, a matrix with act-order keeps all scales, and its g_idx names groups of the whole.
            group_size=0 if act_order else k if groups == 1 else c.group_size,
            zeros="v2",
            device=str(w_q.device),
        )
        self.linear = Linear(matrix)
        for name in (self.w_q_name, self.w_s_name, self.w_zp_name, getattr(self, "w_gidx_name", None)):
            if name is not None and getattr(layer, name, None) is not None:
                empty = torch.empty(0, dtype=getattr(layer, name).dtype, device=w_q.device)
                setattr(layer, name, torch.nn.Parameter(empty, requires_grad=False))

    def apply_weights(self, layer: torch.nn.Module, x: torch.Tensor, bias: "torch.Tensor | None" = None) -> torch.Tensor:
        assert self.linear is not None, "process_weights_after_loading() comes first"
        y: torch.Tensor = self.linear(x)
        return y if bias is None else y + bias


def register() -> None:
    """What vLLM calls. Throws InvalidArgument where Q4_VLLM is none of last, first, off."""
    place = os.environ.get("Q4_VLLM", "last")
    if place not in _PLACES:
        raise InvalidArgument(f"Q4_VLLM = {place!r}: it must be one of {', '.join(_PLACES)}")
    if place == "off":
        return
    for platform in (PlatformEnum.CUDA, PlatformEnum.ROCM, PlatformEnum.CPU):
        known = _kernels._POSSIBLE_KERNELS.setdefault(platform, [])
        if Q4LinearKernel not in known:
            known.insert(0 if place == "first" else len(known), Q4LinearKernel)


__all__ = ["Q4LinearKernel", "register"]
