"""exllama_kernels: the functions of ExLlama v1, AutoGPTQ, LoRAX and TGI, computed by q4."""

import q4 as _q4  # noqa: F401  (finds the CUDA libraries, holds the exceptions)
from q4._native import exllama as _native

cleanup = _native.cleanup
cleanup_buffers_cuda = _native.cleanup_buffers_cuda
column_remap = _native.column_remap
finish_compiling = _native.finish_compiling
make_q4 = _native.make_q4
prepare_buffers = _native.prepare_buffers
q4_matmul = _native.q4_matmul
reset_tuning_params = _native.reset_tuning_params
set_tuning_params = _native.set_tuning_params
set_zero_format = _native.set_zero_format

__all__ = [
    "cleanup",
    "cleanup_buffers_cuda",
    "column_remap",
    "finish_compiling",
    "make_q4",
    "prepare_buffers",
    "q4_matmul",
    "reset_tuning_params",
    "set_tuning_params",
    "set_zero_format",
]
