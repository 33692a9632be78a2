"""exllamav2_kernels: make_q_matrix and gemm_half_q_half as LoRAX, TGI and AutoGPTQ call them, computed by q4."""

import q4 as _q4  # noqa: F401  (finds the CUDA libraries, holds the exceptions)
from q4._native import exllamav2 as _native

cleanup = _native.cleanup
free_q_matrix = _native.free_q_matrix
gemm_half_q_half = _native.gemm_half_q_half
make_q_matrix = _native.make_q_matrix

__all__ = ["cleanup", "free_q_matrix", "gemm_half_q_half", "make_q_matrix"]
