"""q4 for PyTorch: Linear, an nn.Module over a 4-bit matrix, its parallel forms, and replace_linears. Imports torch."""

from q4._torch_linear import Linear
from q4._torch_parallel import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
    check_ranks_agree,
)
from q4._torch_replace import replace_linears

__all__ = [
    "ColumnParallelLinear",
    "Linear",
    "MergedColumnParallelLinear",
    "QKVParallelLinear",
    "RowParallelLinear",
    "check_ranks_agree",
    "replace_linears",
]
