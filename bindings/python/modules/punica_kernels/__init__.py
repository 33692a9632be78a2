"""punica_kernels: the LoRA products of LoRAX's batches, as LoRAX calls them, for any feature size, computed by q4."""

import q4 as _q4  # noqa: F401  (finds the CUDA libraries, holds the exceptions)
from q4._native import punica as _native

dispatch_bgmv = _native.dispatch_bgmv
sgmv_cutlass = _native.sgmv_cutlass
sgmv_cutlass_tmp_size = _native.sgmv_cutlass_tmp_size
sgmv_shrink = _native.sgmv_shrink

__all__ = ["dispatch_bgmv", "sgmv_cutlass", "sgmv_cutlass_tmp_size", "sgmv_shrink"]
