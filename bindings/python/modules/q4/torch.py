"""q4 for PyTorch: Linear and MoE, modules over a 4-bit matrix and over experts, parallel forms, LoRA, and replace_linears."""

from q4._torch_expert_parallel import ExpertParallelMoE
from q4._torch_fuse import FusedLinear, fuse_linears
from q4._torch_linear import Linear
from q4._torch_lora import LoraLinear, load_peft
from q4._torch_moe import MoE
from q4._torch_parallel import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
    check_ranks_agree,
)
from q4._torch_quantize import quantize_linears
from q4._torch_replace import replace_linears

__all__ = [
    "ColumnParallelLinear",
    "ExpertParallelMoE",
    "FusedLinear",
    "Linear",
    "LoraLinear",
    "MergedColumnParallelLinear",
    "MoE",
    "QKVParallelLinear",
    "RowParallelLinear",
    "check_ranks_agree",
    "fuse_linears",
    "load_peft",
    "quantize_linears",
    "replace_linears",
]
