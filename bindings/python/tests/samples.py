"""Random quantized matrices for the tests, with their dense values in fp64; nothing but NumPy."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble j of a word holds column _AWQ_ORDER[j]


@dataclass
class Sample:
    qweight: Any
    qzeros: Any
    scales: Any
    g_idx: Any
    dense: Any  # fp64 [k, n]

    def tensors(self) -> tuple[Any, Any, Any]:
        return self.qweight, self.qzeros, self.scales


def _pack(values: Any, axis: int) -> Any:
    """Eight 4-bit values a word along the axis, the first in the lowest bits."""
    values = np.moveaxis(values, axis, -1).astype(np.uint32)
    values = values.reshape(*values.shape[:-1], -1, 8)
    words = (values << (4 * np.arange(8, dtype=np.uint32))).sum(-1, dtype=np.uint32)
    return np.ascontiguousarray(np.moveaxis(words, -1, axis)).view(np.int32)


def gptq(
    k: int, n: int, group: int, *, act_order: bool = False, zeros: str = "v1", seed: int = 0, stored: int | None = None
) -> Sample:
    """`group` -1: one group. `stored`: this stored zero everywhere instead of random ones."""
    rng = np.random.default_rng(seed)
    group = k if group == -1 else group
    groups = -(-k // group)
    codes = rng.integers(0, 16, (k, n))
    zero = rng.integers(0, 16, (groups, n)) if stored is None else np.full((groups, n), stored)
    scales = (rng.uniform(0.5, 1.5, (groups, n)) / (8 * np.sqrt(k))).astype(np.float16)
    g_idx = (np.arange(k) // group).astype(np.int32)
    if act_order:
        rng.shuffle(g_idx)
    effective = (zero + 1) & 15 if zeros == "v1" else zero
    dense = scales.astype(np.float64)[g_idx] * (codes - effective[g_idx])
    return Sample(_pack(codes, 0), _pack(zero, 1), scales, g_idx, dense)


def awq(k: int, n: int, group: int, seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    groups = k // group
    codes, zero = rng.integers(0, 16, (k, n)), rng.integers(0, 16, (groups, n))
    scales = (rng.uniform(0.5, 1.5, (groups, n)) / (8 * np.sqrt(k))).astype(np.float16)
    rows = np.arange(k) // group

    def shuffled(values: Any) -> Any:
        return _pack(values.reshape(len(values), -1, 8)[:, :, _AWQ_ORDER].reshape(len(values), -1), 1)

    dense = scales.astype(np.float64)[rows] * (codes - zero[rows])
    return Sample(shuffled(codes), shuffled(zero), scales, None, dense)


def activations(m: int, k: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal((m, k)).astype(np.float16)


def assert_close(out: Any, x: Any, dense: Any, relative: float = 1e-3) -> None:
    """Within `relative` of x @ dense in fp64, plus what fp32 sums may lose to cancellation."""
    x, out = np.asarray(x, np.float64), np.asarray(out, np.float64)
    expected = x @ dense
    limit = relative * np.abs(expected) + 1e-4 * (np.abs(x) @ np.abs(dense)) + 1e-6
    error = np.abs(out - expected)
    assert np.isfinite(out).all(), "not finite"
    assert (error <= limit).all(), f"off by {error.max():.3g}, {np.max(error / limit):.2f} of the limit"


_TYPES = {"float16": "F16", "int32": "I32", "int64": "I64", "float32": "F32"}


def save_checkpoint(
    folder: Path, matrices: dict[str, Sample], group: int, *, bias: dict[str, Any] = {}, **config: Any
) -> Path:
    """A GPTQ checkpoint: model.safetensors and config.json."""
    header: dict[str, Any] = {}
    blobs: list[bytes] = []
    at = 0
    for name, sample in matrices.items():
        parts = {part: getattr(sample, part) for part in ("qweight", "qzeros", "scales", "g_idx")}
        if name in bias:
            parts["bias"] = bias[name]
        for part, array in parts.items():
            if array is None:
                continue
            array = np.ascontiguousarray(array)
            header[f"{name}.{part}"] = {
                "dtype": _TYPES[array.dtype.name],
                "shape": list(array.shape),
                "data_offsets": [at, at + array.nbytes],
            }
            at += array.nbytes
            blobs.append(array.tobytes())
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": False, **config}
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    return folder
