"""A Llama decoder layer's matrices divided over the GPUs of a host, by NCCL: right, in captured graphs, and how fast.

    python gpu_parallel.py [--ranks 2] [--out FOLDER]

Starts a process a GPU. Attention itself is left out: the layer is q/k/v, o, gate/up and down with both all-reduces and the
elementwise operations between. Prints the table of docs/parallel.md and exits with 1 where something is wrong."""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import q4
import q4.torch as q4_torch

MODELS = {  # hidden, query heads, key heads, columns of a head, inner
    "llama-3-8b": (4096, 32, 8, 128, 14336),
    "llama-2-70b": (8192, 64, 8, 128, 28672),
}
LAYERS = 4  # copies with memory of their own: a rank's part of one would stay in the cache
ROWS = (1, 16, 2048)


def write_checkpoint(folder: Path, model: str, act_order: bool) -> None:
    """One layer of random GPTQ matrices in groups of 128; with act_order o and down have a random g_idx."""
    hidden, heads, kv, head, inner = MODELS[model]
    shapes = {"q": (hidden, heads * head), "k": (hidden, kv * head), "v": (hidden, kv * head), "o": (heads * head, hidden)}
    shapes |= {"gate": (hidden, inner), "up": (hidden, inner), "down": (inner, hidden)}
    rng = np.random.default_rng(5)
    tensors: dict[str, Any] = {}
    for name, (k, n) in shapes.items():
        tensors[name + ".qweight"] = np.frombuffer(rng.bytes(k // 2 * n), np.int32).reshape(k // 8, n)
        tensors[name + ".qzeros"] = np.full((k // 128, n // 8), 0x77777777, np.int32)
        tensors[name + ".scales"] = (rng.uniform(0.5, 1.5, (k // 128, n)) / 4.6 / np.sqrt(k)).astype(np.float16)
        g_idx = np.arange(k, dtype=np.int32) // 128
        if act_order and name in ("o", "down"):
            rng.shuffle(g_idx)
        tensors[name + ".g_idx"] = g_idx
    header, at = {}, 0
    for name, array in tensors.items():
        kind = {"int32": "I32", "float16": "F16"}[array.dtype.name]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(array.tobytes())
    (folder / "config.json").write_text('{"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}')


class Layer(torch.nn.Module):
    def __init__(self, checkpoint: Any, model: str, group: Any, device: Any, reduce: "str | None" = "sum") -> None:
        super().__init__()
        self.head = MODELS[model][3]
        more: dict[str, Any] = {"group": group, "device": device}
        self.qkv = q4_torch.QKVParallelLinear(checkpoint, ["q", "k", "v"], head=self.head, **more)
        self.o = q4_torch.RowParallelLinear(checkpoint, "o", reduce=reduce, **more)
        self.mlp = q4_torch.MergedColumnParallelLinear(checkpoint, ["gate", "up"], **more)
        self.down = q4_torch.RowParallelLinear(checkpoint, "down", reduce=reduce, **more)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x + self.o(self.qkv.split(self.qkv(x))[0])
        gate, up = self.mlp.split(self.mlp(h))
        return h + self.down(torch.nn.functional.silu(gate) * up)


def captured(work: Any) -> torch.cuda.CUDAGraph:
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


def microseconds(graph: torch.cuda.CUDAGraph, group: Any, replays: int) -> float:
    """Median of ten series, each begun together."""
    times = []
    for _ in range(10):
        dist.barrier(group)
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(replays):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / replays)
    return sorted(times)[5]


def measure(folder: Path, model: str, act_order: bool, group: Any, world: int, device: Any, steps: int) -> "list[dict[str, Any]]":
    """On the ranks of `group`; the first number of steps also checks that graphs give the same bits each time."""
    checkpoint = q4.Checkpoint(folder)
    layers = [Layer(checkpoint, model, group, device) for _ in range(LAYERS)]
    parts = [Layer(checkpoint, model, group, device, reduce=None) for _ in range(LAYERS)]
    hidden = MODELS[model][0]
    results = []
    for rows in ROWS:
        x = torch.randn(rows, hidden, dtype=torch.half, device=device, generator=torch.Generator(device).manual_seed(7))

        def chain(of: Any, x: torch.Tensor = x) -> torch.Tensor:
            y = x
            for layer in of:
                y = layer(y) * 0.5
            return y

        replays = max(2, 200 // rows)
        out: list[torch.Tensor] = [x]

        def step() -> None:
            out[0] = chain(layers)

        graph = captured(step)
        graph.replay()
        torch.cuda.synchronize()
        first = out[0].clone()
        assert torch.isfinite(first).all()
        for _ in range(steps if rows == 1 else 3):
            graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out[0], first), "a replay gave other bits"
        total = microseconds(graph, group, replays) / LAYERS
        matmuls = microseconds(captured(lambda: chain(parts)), group, replays) / LAYERS
        buffer = torch.zeros(rows, hidden, dtype=torch.half, device=device)

        def reduce() -> None:
            for _ in range(2 * LAYERS):
                dist.all_reduce(buffer, group=group)

        reduces = microseconds(captured(reduce), group, replays) / LAYERS if world > 1 else 0.0
        results.append({"model": model, "act_order": act_order, "ranks": world, "rows": rows, "layer_us": total,
                        "without_reduce_us": matmuls, "two_reduces_us": reduces})
    return results


def correct(folder: Path, model: str, device: Any) -> float:
    """Error of the divided layer against the whole matrices, in fp16."""
    checkpoint = q4.Checkpoint(folder)
    layer = Layer(checkpoint, model, None, device)
    hidden, heads, _, head, inner = MODELS[model]
    worst = 0.0
    for rows in (1, 5, 64, 300):
        x = torch.randn(rows, hidden, dtype=torch.half, device=device, generator=torch.Generator(device).manual_seed(rows))
        q, o, gate, up, down = (q4_torch.Linear(checkpoint.load(n, device)) for n in ("q", "o", "gate", "up", "down"))
        h = x + o(q(x))
        y = h + down(torch.nn.functional.silu(gate(h)) * up(h))
        got = layer(x)
        worst = max(worst, float((got.double() - y.double()).norm() / y.double().norm()))
    return worst


def one_process(folder: Path) -> None:
    """Sixteen threads use both GPUs through one runtime; afterwards nothing is held."""
    checkpoint = q4.Checkpoint(folder)
    start = {device: use["weights"] for device, use in q4.memory().items()}
    devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    matrices = {device: checkpoint.load("o", device) for device in devices}
    x = torch.randn(3, matrices[devices[0]].k, dtype=torch.half)
    expected = {device: x.to(device) @ matrices[device] for device in devices}
    wrong: list[str] = []

    def work(number: int) -> None:
        device = devices[number % len(devices)]
        torch.cuda.set_device(device)
        with torch.cuda.stream(torch.cuda.Stream(device)):
            mine = x.to(device)
            for _ in range(100):
                y = mine @ matrices[device]
            torch.cuda.current_stream().synchronize()
            if not torch.equal(y, expected[device]):
                wrong.append(device)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong
    matrices.clear()
    q4.trim()
    for device, use in q4.memory().items():
        assert use["weights"] == start.get(device, 0), (device, use)
    print("one process, 16 threads, one runtime:", ", ".join(devices), "- right, and no weights held afterwards")


def load_speed(folder: Path) -> None:
    """Of matrices in the page cache, against copies of as many bytes from pinned memory."""
    checkpoint = q4.Checkpoint(folder)
    total = sum(entry.bytes for entry in checkpoint.matrices)
    rates = []
    for _ in range(4):  # the first compiles what packs
        start = time.perf_counter()
        matrices = checkpoint.load_all("cuda:0")
        torch.cuda.synchronize()
        rates.append(total / (time.perf_counter() - start) / 1e9)
        del matrices
    pinned = torch.empty(256 << 20, dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(pinned, device="cuda:0")
    copies = []
    for _ in range(4):
        torch.cuda.synchronize()
        start = time.perf_counter()
        there.copy_(pinned, non_blocking=True)
        torch.cuda.synchronize()
        copies.append(pinned.numel() / (time.perf_counter() - start) / 1e9)
    print(f"loads of {total / 1e6:.0f} MB: {', '.join(f'{r:.1f}' for r in rates[1:])} GB/s;"
          f" a copy from pinned memory: {max(copies):.1f} GB/s", flush=True)


def rank_main(rank: int, world: int, folder: Path, what: str) -> None:
    torch.cuda.set_device(rank)
    device = f"cuda:{rank}"
    dist.init_process_group("nccl", init_method=f"file://{folder}/store-{what}", rank=rank, world_size=world,
                            timeout=timedelta(seconds=15 if what == "killed" else 200), device_id=torch.device(device))
    torch.set_grad_enabled(False)
    if what == "killed":
        layer = Layer(q4.Checkpoint(folder / "llama-3-8b-False"), "llama-3-8b", None, device)
        x = torch.ones(1, 4096, dtype=torch.half, device=device)
        for step in range(10**6):
            if rank == world - 1 and step == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            layer(x)
            torch.cuda.synchronize()
    groups = [dist.new_group([r]) for r in range(world)]
    results: list[Any] = []
    for model in MODELS:
        for act_order in (False, True):
            made = folder / f"{model}-{act_order}"
            error = correct(made, model, device)
            assert error < 1e-3, error
            ids = q4.numerics_id(q4.Checkpoint(made), 64, device=device)
            q4_torch.check_ranks_agree(ids)
            if rank == 0:
                print(f"{model}, act-order {act_order}: error against the undivided layer {error:.1e}, numerics {ids}", flush=True)
            if rank == 0:
                results += measure(made, model, act_order, groups[0], 1, device, 10)
            dist.barrier()
            results += measure(made, model, act_order, None, world, device, 1000)
            torch.cuda.empty_cache()
    if rank == 0:
        (folder / "results.json").write_text(json.dumps(results))
    dist.barrier()
    os._exit(0)  # graphs hold the communicator


def start(world: int, folder: Path, what: str) -> "list[subprocess.Popen[str]]":
    command = [sys.executable, __file__, "--folder", str(folder), "--what", what, "--ranks", str(world), "--rank"]
    return [subprocess.Popen([*command, str(rank)], text=True) for rank in range(world)]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--what", default="measure")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.rank is not None:
        rank_main(args.rank, args.ranks, args.folder, args.what)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for model in MODELS:
            for act_order in (False, True):
                write_checkpoint(folder / f"{model}-{act_order}", model, act_order)
        load_speed(folder / "llama-2-70b-False")
        one_process(folder / "llama-3-8b-True")
        statuses = [process.wait() for process in start(args.ranks, folder, "measure")]
        if any(statuses):
            print("failed:", statuses)
            return 1
        results = json.loads((folder / "results.json").read_text())
        if args.out:
            (args.out / "parallel.json").write_text(json.dumps(results))
        alone = {(r["model"], r["act_order"], r["rows"]): r["layer_us"] for r in results if r["ranks"] == 1}
        print("| model | act-order | rows | ranks | layer, us | without all-reduce, us | two all-reduces alone, us | speed-up |")
        print("|---|---|---|---|---|---|---|---|")
        for r in results:
            speed_up = alone[r["model"], r["act_order"], r["rows"]] / r["layer_us"]
            print(f"| {r['model']} | {'o, down' if r['act_order'] else 'no'} | {r['rows']} | {r['ranks']} | {r['layer_us']:.1f} |"
                  f" {r['without_reduce_us']:.1f} | {r['two_reduces_us']:.1f} | {speed_up:.2f} |")
        begin = time.monotonic()
        statuses = [process.wait() for process in start(args.ranks, folder, "killed")]
        took = time.monotonic() - begin
        print(f"one rank killed: the ranks ended with {statuses} after {took:.0f} s")
        return 0 if all(statuses) and took < 90 else 1


if __name__ == "__main__":
    sys.exit(main())
