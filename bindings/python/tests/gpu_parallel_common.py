"""What gpu_parallel.py measures with: its cases, lines, checkpoints, graphs and times."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

DRY = "--dry-run" in sys.argv
MODELS = {  # hidden, query heads, key heads, columns of a head, inner
    "llama-3-8b": (4096, 32, 8, 128, 14336),
    "llama-2-70b": (8192, 64, 8, 128, 28672),
}
EXPERTS = {  # experts, of which a token has, hidden, inner
    "mixtral-8x7b": (8, 2, 4096, 14336),
    "qwen3-30b-a3b": (128, 8, 2048, 768),
}
LAYERS = 4  # copies with memory of their own: a rank's part of one would stay in the cache
ROWS = (1, 16, 256, 2048)
STEPS = 1000  # replays of a graph whose results must stay the same
if DRY:
    MODELS, EXPERTS = {"small": (256, 8, 2, 32, 512)}, {"small": (6, 2, 256, 256)}
    LAYERS, ROWS, STEPS = 2, (1, 16), 3
PREFIX = "model.layers.0.mlp.experts"
wrong: "list[str]" = []


def report(part: str, what: str, ranks: int, rows: int, name: str, value: float, limit: "float | None" = None) -> None:
    """One line; with a limit also whether the value keeps it, which decides the exit status."""
    verdict = "" if limit is None else "ok" if value <= limit else "WRONG"
    if verdict == "WRONG":
        wrong.append(name)
    line = f"{part},{what},{ranks},{rows},{name},{value:.6g},{verdict}"
    print(line, flush=True)
    if os.environ.get("Q4_PARALLEL_CSV"):
        with open(os.environ["Q4_PARALLEL_CSV"], "a") as file:
            file.write(line + "\n")


# ---- checkpoints -------------------------------------------------------------------------------------------------------------


def write(folder: Path, shapes: "dict[str, tuple[int, int, int]]") -> None:
    """Random GPTQ matrices k x n in groups of 128; the third number: the seed of an act-order, or 0.

    Zeros are 8 and 7 in turn. With 8 alone every column has a mean below 0, which a few layers in a row make infinite."""
    rng = np.random.default_rng(5)
    tensors: dict[str, Any] = {}
    for name, (k, n, order) in shapes.items():
        tensors[name + ".qweight"] = np.frombuffer(rng.bytes(k // 2 * n), np.int32).reshape(k // 8, n)
        tensors[name + ".qzeros"] = np.full((k // 128, n // 8), 0x76767676, np.int32)
        tensors[name + ".scales"] = (rng.uniform(0.5, 1.5, (k // 128, n)) / 4.6 / np.sqrt(k)).astype(np.float16)
        g_idx = np.arange(k, dtype=np.int32) // 128
        tensors[name + ".g_idx"] = np.random.default_rng(order).permutation(g_idx) if order else g_idx
    header, at = {}, 0
    for name, array in tensors.items():
        kind = {"int32": "I32", "float16": "F16"}[array.dtype.name]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir(parents=True)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array))
    (folder / "config.json").write_text('{"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}')


def write_layer(folder: Path, model: str, act_order: bool) -> None:
    """With act_order o and down have one, which row slices keep."""
    hidden, heads, kv, head, inner = MODELS[model]
    order = int(act_order)
    q, k, v = (hidden, heads * head, 0), (hidden, kv * head, 0), (hidden, kv * head, 0)
    o, gate, down = (heads * head, hidden, order), (hidden, inner, 0), (inner, hidden, 2 * order)
    write(folder, {"q": q, "k": k, "v": v, "o": o, "gate": gate, "up": gate, "down": down})


def write_experts(folder: Path, model: str, act_order: bool) -> None:
    experts, _, hidden, inner = EXPERTS[model]
    shapes: dict[str, tuple[int, int, int]] = {}
    for e in range(experts):
        order = act_order * (e + 1)
        for name in ("gate_proj", "up_proj"):
            shapes[f"{PREFIX}.{e}.{name}"] = (hidden, inner, order)
        shapes[f"{PREFIX}.{e}.down_proj"] = (inner, hidden, order)
    write(folder, shapes)


def cases(models: Any) -> "list[tuple[str, bool, str]]":
    """Model, act-order, and the name that folders and lines have."""
    return [(model, order, model + ("-act-order" if order else "")) for model in models for order in (False, True)]


# ---- time ---------------------------------------------------------------------------------------------------------------------


def synchronize() -> None:
    if not DRY:
        torch.cuda.synchronize()


class Eager:
    def __init__(self, work: "Callable[[], None]") -> None:
        self.replay = work


def captured(work: "Callable[[], None]") -> Any:
    """A CUDA graph of the work."""
    if DRY:
        return Eager(work)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def microseconds(graph: Any, group: Any, replays: int) -> float:
    """Median of seven series, each begun together."""
    times = []
    for _ in range(7):
        dist.barrier(group)
        synchronize()
        begin = time.perf_counter()
        for _ in range(replays):
            graph.replay()
        synchronize()
        times.append((time.perf_counter() - begin) * 1e6 / replays)
    return sorted(times)[3]


def normal(device: str, seed: int, *shape: int) -> torch.Tensor:
    """The same on each rank, whatever its device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).half().to(device)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())
