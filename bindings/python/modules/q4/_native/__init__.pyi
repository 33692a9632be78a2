"""Types of the extension module. An array is a torch tensor or anything with __dlpack__; see the docstrings."""

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

from q4._native import exllama as exllama
from q4._native import exllamav2 as exllamav2
from q4._native import punica as punica

_Dtype = Any  # "float16", "bfloat16", "float32", or a dtype of NumPy or torch that is called so
_Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
_Zeros = Literal["auto", "v1", "v2"]

version: str

class Plan:
    def __copy__(self) -> Plan: ...
    def __deepcopy__(self, memo: Any) -> Plan: ...
    def run(
        self, x: Any, out: Any, stream: Any = None, repeat: int = 1, *, residual: Any = None, norm_weight: Any = None
    ) -> None: ...
    def tactic(self, m: int) -> str: ...
    def tactics(self, m: int) -> list[str]: ...
    @property
    def max_m(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def workspace_bytes(self) -> int: ...

class Matrix:
    def __copy__(self) -> Matrix: ...
    __array_ufunc__: None
    @staticmethod
    def from_gptq(
        qweight: Any,
        qzeros: Any,
        scales: Any,
        g_idx: Any = None,
        bias: Any = None,
        *,
        group_size: int = 0,
        zeros: _Zeros | None = "auto",
        device: Any = None,
        reuse: bool = False,
        gate_up: bool = False,
    ) -> Matrix: ...
    @staticmethod
    def from_awq(
        qweight: Any,
        qzeros: Any,
        scales: Any,
        bias: Any = None,
        *,
        group_size: int = 0,
        device: Any = None,
        reuse: bool = False,
        gate_up: bool = False,
    ) -> Matrix: ...
    @staticmethod
    def from_checkpoint(
        path: str | os.PathLike[str], name: str, *, device: Any = None, zeros: _Zeros | None = None
    ) -> Matrix: ...
    def matmul(
        self,
        x: Any,
        *,
        out: Any = None,
        bias: Any = None,
        stream: Any = None,
        batch_invariant: bool = False,
        residual: Any = None,
        activation: str | None = None,
        adapters: LoraAdapters | None = None,
        adapter_of_row: Any = None,
    ) -> Any: ...
    def _compute(self, x: Any, batch_invariant: bool) -> Any: ...
    def __rmatmul__(self, x: Any) -> Any: ...
    def plan(
        self,
        max_m: int,
        *,
        dtype: _Dtype = "float16",
        math: Literal["auto", "half2", "fp32", "int8"] = "auto",
        gather: Literal["auto", "fused", "separate", "given"] = "auto",
        reconstruct_from: int = 0,
        batch_invariant: bool = False,
        overlap_previous: bool = False,
        tactic: str = "",
        activation: str | None = None,
        residual: bool = False,
        norm_epsilon: float | None = None,
        spare_units: int = 0,
    ) -> Plan: ...
    def unpack(self) -> dict[str, Any]: ...
    def restore(self) -> None: ...
    @property
    def in_place(self) -> bool: ...
    @property
    def scales_in_place(self) -> bool: ...
    def update(
        self,
        qweight: Any,
        qzeros: Any,
        scales: Any,
        g_idx: Any = None,
        bias: Any = None,
        *,
        group_size: int = 0,
        zeros: _Zeros = "auto",
    ) -> None: ...
    def warmup(self, max_m: int, dtype: _Dtype = "float16", stream: Any = None) -> None: ...
    @property
    def k(self) -> int: ...
    @property
    def n(self) -> int: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def group_size(self) -> int: ...
    @property
    def groups(self) -> int: ...
    @property
    def act_order(self) -> bool: ...
    def x_order(self) -> list[int]: ...
    def same_x_order(self, other: Matrix) -> bool: ...
    @property
    def gate_up(self) -> bool: ...
    @property
    def has_bias(self) -> bool: ...
    @property
    def zeros(self) -> str: ...
    @property
    def zeros_detected(self) -> bool: ...
    @property
    def device(self) -> str: ...
    @property
    def nbytes(self) -> int: ...

class Slice:
    @staticmethod
    def columns(
        rank: int, world: int, *, unit: int = 8, parts: Sequence[int] = (), share: bool = False, pad: bool = False
    ) -> Slice: ...
    @staticmethod
    def rows(rank: int, world: int, *, unit: int = 8, pad: bool = False) -> Slice: ...
    @staticmethod
    def heads(rank: int, world: int, head: int, fused: Sequence[int] = ()) -> Slice: ...
    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...

class Experts:
    def __copy__(self) -> Experts: ...
    @staticmethod
    def from_gptq(
        experts: Sequence[tuple[Any, ...]],
        *,
        group_size: int = 0,
        zeros: _Zeros = "auto",
        gate_up: bool = False,
        slice: Slice | None = None,
        device: Any = None,
    ) -> Experts: ...
    @staticmethod
    def from_awq(
        experts: Sequence[tuple[Any, ...]], *, group_size: int = 0, gate_up: bool = False, device: Any = None
    ) -> Experts: ...
    @staticmethod
    def from_stacked(
        qweight: Any,
        qzeros: Any,
        scales: Any,
        g_idx: Any = None,
        bias: Any = None,
        *,
        group_size: int = 0,
        zeros: _Zeros = "auto",
        gate_up: bool = False,
        device: Any = None,
    ) -> Experts: ...
    @staticmethod
    def from_checkpoint(
        checkpoint: Checkpoint | str | os.PathLike[str],
        patterns: str | Sequence[str],
        *,
        first: int = 0,
        count: int = -1,
        gate_up: bool = False,
        slice: Slice | None = None,
        device: Any = None,
    ) -> Experts: ...
    def unpack(self, expert: int) -> dict[str, Any]: ...
    def update(
        self,
        expert: int,
        qweight: Any,
        qzeros: Any,
        scales: Any,
        g_idx: Any = None,
        bias: Any = None,
        *,
        group_size: int = 0,
        zeros: _Zeros = "auto",
    ) -> None: ...
    def warmup(
        self,
        w2: Experts,
        max_tokens: int,
        topk: int,
        dtype: _Dtype = "float16",
        activation: str = "silu_mul",
        *,
        expert_map: Sequence[int] | None = None,
        alpha: float = 1.702,
        limit: float = 7.0,
        batch_invariant: bool = False,
        stream: Any = None,
    ) -> None: ...
    def __len__(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def n(self) -> int: ...
    @property
    def group_size(self) -> int: ...
    @property
    def groups(self) -> int: ...
    @property
    def act_order(self) -> bool: ...
    @property
    def has_bias(self) -> bool: ...
    @property
    def gate_up(self) -> bool: ...
    @property
    def device(self) -> str: ...
    @property
    def nbytes(self) -> int: ...

class LoraAdapters:
    def __init__(self, W: Matrix, *, adapters: int = 8, max_rank: int = 64, dtype: _Dtype = "float16") -> None: ...
    def set(self, index: int, a: Any, b: Any, scale: float = 1.0) -> None: ...
    def remove(self, index: int) -> None: ...
    def rank(self, index: int) -> int: ...
    def __len__(self) -> int: ...
    @property
    def max_rank(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def nbytes(self) -> int: ...

class MatrixEntry:
    @property
    def name(self) -> str: ...
    @property
    def k(self) -> int: ...
    @property
    def n(self) -> int: ...
    @property
    def groups(self) -> int: ...
    @property
    def group_size(self) -> int: ...
    @property
    def bits(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def unsupported(self) -> str: ...
    @property
    def has_g_idx(self) -> bool: ...
    @property
    def has_bias(self) -> bool: ...

class Checkpoint:
    def __init__(self, path: str | os.PathLike[str]) -> None: ...
    @property
    def matrices(self) -> list[MatrixEntry]: ...
    def find(self, name: str) -> MatrixEntry: ...
    def load(
        self,
        name: str | Sequence[str],
        device: Any = None,
        *,
        zeros: str | None = None,
        slice: Slice | None = None,
        gate_up: bool = False,
    ) -> Matrix: ...
    def load_together(
        self, names: Sequence[str], device: Any = None, *, zeros: str | None = None, slice: Slice | None = None
    ) -> list[Matrix]: ...
    def load_all(
        self,
        device: Any = None,
        *,
        names: Sequence[str] | None = None,
        zeros: str | None = None,
        slice: Slice | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> list[Matrix]: ...
    @property
    def format(self) -> str: ...
    @property
    def group_size(self) -> int: ...

class DeviceInfo:
    @property
    def device(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def arch(self) -> str: ...
    @property
    def compute_units(self) -> int: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def l2_bytes(self) -> int: ...
    @property
    def driver(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...

class BackendStatus:
    @property
    def kind(self) -> str: ...
    @property
    def available(self) -> bool: ...
    @property
    def reason(self) -> str: ...
    @property
    def components(self) -> list[tuple[str, str]]: ...

def fuse_gptq(
    parts: Sequence[dict[str, Any]], *, slice: Slice | None = None, device: Any = None, gate_up: bool = False
) -> Matrix: ...
def fuse_awq(
    parts: Sequence[dict[str, Any]], *, slice: Slice | None = None, device: Any = None, gate_up: bool = False
) -> Matrix: ...
def release_workspaces() -> None: ...
def memory() -> dict[str, dict[str, int]]: ...
def trim() -> None: ...
def set_allocator(
    allocate: Callable[[int, int, str, int], int | None] | None,
    release: Callable[[int, int, str, int], object] | None,
) -> None: ...
def seal(mode: Literal["off", "warn", "error"] | None = None) -> None: ...
def devices() -> list[DeviceInfo]: ...
def backends() -> list[BackendStatus]: ...
def best_device() -> str: ...
def cache_dir() -> str: ...
def configure(
    *,
    cache_dir: _Path = "",
    cache_mode: Literal["read-write", "read-only", "off", "require-prebuilt"] = "read-write",
    tuning_files: _Path | Sequence[_Path] = (),
    cpu_threads: int = 0,
    cache_folders: _Path | Sequence[_Path] = (),
    packs: _Path | Sequence[_Path] = (),
    pack_public_key: str = "",
    cache_max_bytes: int = 1 << 30,
    dump_dir: _Path = "",
    record_untuned: _Path = "",
) -> None: ...
def warmup(
    what: Checkpoint | _Path | list[tuple[int, int]],
    max_m: int,
    dtype: _Dtype = "float16",
    *,
    device: Any = None,
    act_order: bool = False,
    bias: bool = False,
    group_size: int = 128,
    threads: int = 0,
    deadline: float = 0.0,
    progress: Callable[[int, int, dict[str, Any]], object] | None = None,
    in_place: bool = False,
) -> dict[str, Any]: ...
def numerics_id(
    what: Checkpoint | _Path | list[tuple[int, int]],
    max_m: int,
    dtype: _Dtype = "float16",
    *,
    device: Any = None,
    act_order: bool = False,
    bias: bool = False,
    group_size: int = 128,
) -> str: ...
def cache_counters() -> dict[str, float]: ...
def tuning() -> list[dict[str, Any]]: ...
