"""q4: fp16, bf16 and (on the CPU) fp32 activations times 4-bit GPTQ or AWQ weights, on CUDA GPUs and the CPU.

    W = q4.Matrix.from_gptq(qweight, qzeros, scales)
    out = x @ W

Arrays are torch tensors, NumPy or CuPy arrays, or anything with __dlpack__; none of them is imported here.
"""

from typing import Any as _Any

from q4 import _libraries

_libraries.find()  # before the first device is opened

from q4._native import (  # noqa: E402
    BackendStatus,
    Checkpoint,
    DeviceInfo,
    Experts,
    LoraAdapters,
    Matrix,
    MatrixEntry,
    Plan,
    Slice,
    backends,
    best_device,
    cache_counters,
    cache_dir,
    configure,
    devices,
    fuse_awq,
    fuse_gptq,
    memory,
    numerics_id,
    release_workspaces,
    seal,
    set_allocator,
    trim,
    tuning,
    warmup,
)
from q4._moe import grouped_matmul, moe  # noqa: E402
from q4 import _matrix as _matrix  # noqa: E402  (matrices can be pickled from now on)
from q4._native import version as __version__  # noqa: E402
from q4.errors import (  # noqa: E402
    CompileError,
    CorruptFile,
    DeviceError,
    Error,
    InvalidArgument,
    IoError,
    NotFound,
    OutOfMemory,
    Unsupported,
)


def matmul(
    x: _Any,
    W: Matrix,
    *,
    out: _Any = None,
    bias: _Any = None,
    stream: _Any = None,
    batch_invariant: bool = False,
    residual: _Any = None,
    activation: "str | None" = None,
    adapters: "LoraAdapters | None" = None,
    adapter_of_row: _Any = None,
) -> _Any:
    """x[..., k] @ W -> [..., n], in x's dtype and x's kind of array.

    out: written instead of a new array. bias [n]: added to the result by x's framework (a bias given to the matrix is
    added in the kernel, before rounding). stream: None for the one that is current in x's framework, an address, or a
    stream object of torch or CuPy. batch_invariant: a row's bits do not depend on the other rows.

    residual and activation are part of the kernel: residual + activation(x @ W), rounded once (a bias of the matrix comes
    before the activation). residual: of the result's shape, dtype and device; it may be out. activation: "silu",
    "gelu_tanh", "gelu" (erf) or "relu2", or with "_mul" that of the first n / 2 columns times the others, which gives
    [..., n / 2] and wants a matrix loaded with gate_up=True. Neither has a gradient.

    adapters and adapter_of_row (int32, one number a row of x, on its device): row t gets the product of adapter
    adapter_of_row[t] added before bias and activation; a number outside the table, -1 for one, adds nothing.
    """
    return W.matmul(
        x,
        out=out,
        bias=bias,
        stream=stream,
        batch_invariant=batch_invariant,
        residual=residual,
        activation=activation,
        adapters=adapters,
        adapter_of_row=adapter_of_row,
    )


__all__ = [
    "BackendStatus",
    "Checkpoint",
    "CompileError",
    "CorruptFile",
    "DeviceError",
    "DeviceInfo",
    "Error",
    "Experts",
    "InvalidArgument",
    "IoError",
    "LoraAdapters",
    "Matrix",
    "MatrixEntry",
    "NotFound",
    "OutOfMemory",
    "Plan",
    "Slice",
    "Unsupported",
    "__version__",
    "backends",
    "best_device",
    "cache_counters",
    "cache_dir",
    "configure",
    "devices",
    "fuse_awq",
    "fuse_gptq",
    "grouped_matmul",
    "matmul",
    "memory",
    "moe",
    "numerics_id",
    "release_workspaces",
    "seal",
    "set_allocator",
    "trim",
    "tuning",
    "warmup",
]
