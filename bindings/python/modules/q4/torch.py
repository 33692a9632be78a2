"""q4 for PyTorch: Linear, an nn.Module over a 4-bit matrix, and replace_linears. Imports torch."""

from q4._torch_linear import Linear
from q4._torch_replace import replace_linears

__all__ = ["Linear", "replace_linears"]
