"""Decoder layers and layers of experts divided over the GPUs of a host, by NCCL: right, in captured graphs, and how fast.

    python gpu_parallel.py [--ranks 2] [--parts layers,experts] [--csv FILE] [--dry-run]

Runs its parts one after the other, each in processes of its own and with a time limit, and writes CSV lines as they are
found, also where a part fails later: part, what, ranks, rows, name, value, verdict. Attention itself is left out: a layer
is q/k/v, o, gate/up and down with both all-reduces and the elementwise operations between. Exit status 1 where something is
wrong. --dry-run: small matrices on the CPU over gloo, without graphs: whether this file works."""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import q4
import q4.torch as q4_torch

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


# ---- a layer ------------------------------------------------------------------------------------------------------------------


class Layer(torch.nn.Module):
    def __init__(self, checkpoint: Any, model: str, group: Any, device: str, reduce: "str | None" = "sum") -> None:
        super().__init__()
        more: dict[str, Any] = {"group": group, "device": device}
        self.qkv = q4_torch.QKVParallelLinear(checkpoint, ["q", "k", "v"], head=MODELS[model][3], **more)
        self.o = q4_torch.RowParallelLinear(checkpoint, "o", reduce=reduce, **more)
        self.mlp = q4_torch.MergedColumnParallelLinear(checkpoint, ["gate", "up"], **more)
        self.down = q4_torch.RowParallelLinear(checkpoint, "down", reduce=reduce, **more)

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(self.qkv.split(self.qkv(x))[0])

    def feed(self, h: torch.Tensor) -> torch.Tensor:
        gate, up = self.mlp.split(self.mlp(h))
        return self.down(torch.nn.functional.silu(gate) * up)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x + self.attention(x)
        return h + self.feed(h)


def check_layer(folder: Path, model: str, case: str, rank: int, world: int, device: str) -> None:
    """Each product before the reduction rounds again, and the layer as a whole, against undivided matrices."""
    checkpoint = q4.Checkpoint(folder)
    layer, parts = (Layer(checkpoint, model, None, device, reduce) for reduce in ("sum", None))
    whole = {name: q4_torch.Linear(checkpoint.load(name, device)) for name in ("q", "k", "v", "o", "gate", "up", "down")}

    def own(y: torch.Tensor) -> torch.Tensor:
        return y.chunk(world, -1)[rank]

    for rows in (1, 5, 64, 300):
        x = normal(device, rows, rows, MODELS[model][0])
        products = 0.0
        for module, names in ((parts.qkv, ["q", "k", "v"]), (parts.mlp, ["gate", "up"])):
            for got, name in zip(module.split(module(x)), names):
                products = max(products, difference(got, own(whole[name](x))))
        for row, name in ((parts.o, "o"), (parts.down, "down")):
            h = normal(device, rows, rows, whole[name].in_features)
            total = row(own(h)).double()
            dist.all_reduce(total)
            products = max(products, difference(total, whole[name](h)))
        h = x + whole["o"](whole["q"](x))
        y = h + whole["down"](torch.nn.functional.silu(whole["gate"](h)) * whole["up"](h))
        errors: "list[Any]" = [None] * world
        dist.all_gather_object(errors, (products, difference(layer(x), y)))
        if rank == 0:
            report("layers", case, world, rows, "error of products", max(e[0] for e in errors), 5e-4)
            report("layers", case, world, rows, "error of the layer", max(e[1] for e in errors), 1e-3)


def overlapped(layers: "list[Layer]", x: torch.Tensor, group: Any) -> torch.Tensor:
    """Two halves of the rows in turn: one is added up over the ranks while the other is multiplied. Layers: reduce=None."""
    halves: list[Any] = list(x.chunk(2))
    parts: list[Any] = [None, None]
    works: list[Any] = [None, None]

    def arrived(i: int) -> torch.Tensor:
        if works[i] is not None:
            works[i].wait()
            halves[i] = halves[i] + parts[i]
        return halves[i]

    for layer in layers:
        for stage in (layer.attention, layer.feed):
            for i in range(2):
                parts[i] = stage(arrived(i))
                works[i] = dist.all_reduce(parts[i], group=group, async_op=True)
    return torch.cat([arrived(0), arrived(1)])


def time_layer(folder: Path, model: str, case: str, group: Any, world: int, device: str, tell: bool) -> None:
    """On the ranks of `group`. With one row also that so many replays of one graph give the same bits."""
    checkpoint = q4.Checkpoint(folder)
    layers, parts = ([Layer(checkpoint, model, group, device, r) for _ in range(LAYERS)] for r in ("sum", None))
    for rows in ROWS:
        x = normal(device, 7, rows, MODELS[model][0])

        def chain(of: "list[Layer]", x: torch.Tensor = x) -> torch.Tensor:
            for layer in of:
                x = layer(x) * 0.4
            return x

        out = [x]

        def step() -> None:
            out[0] = chain(layers)

        graph = captured(step)
        graph.replay()
        synchronize()
        first = out[0].clone()
        begin = time.perf_counter()
        for _ in range(STEPS if rows == 1 else 3):
            graph.replay()
        synchronize()
        seconds = time.perf_counter() - begin
        other, size = float(not torch.equal(out[0], first)), float(first.abs().max())
        replays = 2 if DRY else max(3, 60 // rows)
        found = {"layer us": microseconds(graph, group, replays) / LAYERS}
        found["without all-reduce us"] = microseconds(captured(lambda: chain(parts)), group, replays) / LAYERS
        if world > 1:
            buffer = torch.zeros(rows, MODELS[model][0], dtype=torch.half, device=device)

            def reduce() -> None:
                for _ in range(2 * LAYERS):
                    dist.all_reduce(buffer, group=group)

            found["two all-reduces us"] = microseconds(captured(reduce), group, replays) / LAYERS
            if rows > 1:
                found["overlapped us"] = microseconds(captured(lambda: overlapped(parts, x, group)), group, replays) / LAYERS
        if tell:
            report("layers", case, world, rows, "replays with other bits", other, 0)
            report("layers", case, world, rows, "largest result", size, 1e4)
            if rows == 1:
                report("layers", case, world, rows, f"seconds of {STEPS} replays", seconds)
            for name, value in found.items():
                report("layers", case, world, rows, name, value)


def layers(folder: Path, rank: int, world: int, device: str) -> None:
    groups = [dist.new_group([r]) for r in range(world)]
    for model, _, case in cases(MODELS):
        check_layer(folder / case, model, case, rank, world, device)
        q4_torch.check_ranks_agree(q4.numerics_id(q4.Checkpoint(folder / case), 64, device=device))
        time_layer(folder / case, model, case, groups[rank], 1, device, rank == 0)  # each rank on its own, at once
        dist.barrier()
        time_layer(folder / case, model, case, None, world, device, rank == 0)


# ---- experts ------------------------------------------------------------------------------------------------------------------


def experts(folder: Path, rank: int, world: int, device: str) -> None:
    """ExpertParallelMoE against all experts on each rank."""
    for model, _, case in cases(EXPERTS):
        total, topk, hidden, _ = EXPERTS[model]
        checkpoint = q4.Checkpoint(folder / ("experts-" + case))
        whole = q4_torch.MoE.from_checkpoint(checkpoint, PREFIX, device=device)
        make = q4_torch.ExpertParallelMoE
        divided = {t: make(checkpoint, PREFIX, device=device, tokens=t) for t in ("same", "gather", "exchange")}
        for rows in ROWS:
            given = []
            for number in range(LAYERS):  # other experts each time, so that weights are cold
                scores = torch.rand(rows * world, total, generator=torch.Generator().manual_seed(rows + number))
                weights, ids = (part.to(device) for part in scores.topk(topk))
                given.append((normal(device, number, rows * world, hidden), ids.int(), weights / weights.sum(-1, keepdim=True)))
            same = [tuple(t[:rows] for t in each) for each in given]
            own = [tuple(t[rank * rows : (rank + 1) * rows] for t in each) for each in given]

            expected = whole(*given[0])
            part = divided["same"].experts(*given[0]).double()
            dist.all_reduce(part)
            errors = {"error of the ranks' sum": (difference(part, expected), 5e-4)}
            errors["error of same"] = (difference(divided["same"](*given[0]), expected), 1e-3)
            mine = expected[rank * rows : (rank + 1) * rows]
            for tokens in ("gather", "exchange"):
                errors[f"error of {tokens}"] = (difference(divided[tokens](*own[0]), mine), 1e-3)

            def chain(module: Any, inputs: Any, out: "list[Any]") -> "Callable[[], None]":
                def work() -> None:
                    out[:] = [module(*each) for each in inputs]

                return work

            out: list[Any] = []
            graph = captured(chain(divided["same"], same, out))
            graph.replay()
            synchronize()
            first = [y.clone() for y in out]
            for _ in range(STEPS if rows == 1 else 3):
                graph.replay()
            synchronize()
            errors["replays with other bits"] = (float(not all(map(torch.equal, out, first))), 0)

            replays = 2 if DRY else max(3, 60 // rows)
            found = {"same us": microseconds(graph, None, replays)}
            for name, module, inputs in (
                ("one rank us", whole, same),
                ("same without all-reduce us", divided["same"].experts, same),
                ("gather us", divided["gather"], own),
                ("one rank with the tokens of all us", whole, given),
            ):
                found[name] = microseconds(captured(chain(module, inputs, [])), None, replays)
            found["exchange us"] = microseconds(Eager(chain(divided["exchange"], own, [])), None, 2 if DRY else 5)
            for name, (value, limit) in errors.items():
                values: "list[Any]" = [None] * world
                dist.all_gather_object(values, value)
                if rank == 0:
                    report("experts", case, world, rows, name, max(values), limit)
            if rank == 0:
                for name, value in found.items():
                    report("experts", case, world, rows, name, value / LAYERS)
        del whole, divided


# ---- what else can go wrong -------------------------------------------------------------------------------------------------


def killed(folder: Path, rank: int, world: int, device: str) -> None:
    """The last rank dies; the others must end with an error within the time limit of the process group."""
    model, _, case = cases(MODELS)[0]
    layer = Layer(q4.Checkpoint(folder / case), model, None, device)
    x = normal(device, 1, 1, MODELS[model][0])
    for step in range(10**6):
        if rank == world - 1 and step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        layer(x)
        synchronize()


def killed_graph(folder: Path, rank: int, world: int, device: str) -> None:
    """The same while a captured graph is replayed, which nothing in NCCL watches: torchrun must end the others."""
    model, _, case = cases(MODELS)[0]
    layer = Layer(q4.Checkpoint(folder / case), model, None, device)
    x = normal(device, 1, 1, MODELS[model][0])
    graph = captured(lambda: layer(x))
    for step in range(10**6):
        if rank == world - 1 and step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        graph.replay()
        synchronize()


def one_process(folder: Path, devices: "list[str]") -> None:
    """Sixteen threads use every GPU through one runtime; afterwards nothing is held that the first round did not need."""
    checkpoint = q4.Checkpoint(folder / cases(MODELS)[-1][2])
    start = {device: use["weights"] for device, use in q4.memory().items()}
    free: "list[list[int]]" = []

    def one_round() -> None:
        matrices = {device: checkpoint.load("o", device) for device in devices}
        x = normal("cpu", 3, 3, matrices[devices[0]].k)
        expected = {device: x.to(device) @ matrices[device] for device in devices}
        bad: list[str] = []

        def work(number: int) -> None:
            device = devices[number % len(devices)]
            mine = x.to(device)
            if DRY:
                y = mine @ matrices[device]
            else:
                torch.cuda.set_device(device)
                with torch.cuda.stream(torch.cuda.Stream(device)):
                    for _ in range(100):
                        y = mine @ matrices[device]
                    torch.cuda.current_stream().synchronize()
            if not torch.equal(y, expected[device]):
                bad.append(device)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        report("process", "16 threads", len(devices), 3, "threads with other results", len(bad), 0)

    for _ in range(4):
        one_round()
        q4.trim()
        if not DRY:
            torch.cuda.empty_cache()
            free.append([torch.cuda.mem_get_info(device)[0] for device in devices])
    held = sum(use["weights"] - start.get(device, 0) for device, use in q4.memory().items())
    report("process", "16 threads", len(devices), 3, "bytes of weights held afterwards", held, 0)
    if free:
        lost = max(a - b for a, b in zip(free[0], free[-1]))
        report("process", "16 threads", len(devices), 3, "bytes lost from the first to the last round", lost, 2 << 20)


def warm(folder: Path, case: str, share: int, world: int, device: str) -> None:
    """Compiles what a rank's part of a case needs into the cache that all processes share."""
    checkpoint = q4.Checkpoint(folder / case)
    if case.startswith("experts-"):
        total, topk, hidden, _ = EXPERTS[case.removeprefix("experts-").removesuffix("-act-order")]
        count = total // share
        moe = q4_torch.MoE.from_checkpoint(checkpoint, PREFIX, first=0, count=count, device=device)
        for rows in sorted({r * f for r in ROWS for f in (1, world)}):
            ids = torch.arange(rows * topk, device=device).reshape(rows, topk).int() % total
            moe(normal(device, 1, rows, hidden), ids, torch.ones(rows, topk, device=device))
        return
    head = MODELS[case.removesuffix("-act-order")][3]
    columns, rows_of = q4.Slice.columns(0, share), q4.Slice.rows(0, share)
    loads: list[Any] = [(["q", "k", "v"], q4.Slice.heads(0, share, head)), (["gate", "up"], columns)]
    loads += [("o", rows_of), ("down", rows_of)]
    loads += [(name, q4.Slice.columns(0, 1)) for name in ("q", "k", "v", "gate", "up")] if share == 1 else []

    def work(names: Any, slice: Any) -> None:
        matrix = checkpoint.load(names, device, slice=slice)
        for rows in sorted({*ROWS, *(r // 2 for r in ROWS if r > 1), 1, 5, 64, 300}):
            normal(device, 1, rows, matrix.k) @ matrix
        synchronize()

    threads = [threading.Thread(target=work, args=load) for load in loads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# ---- parts --------------------------------------------------------------------------------------------------------------------

LIMITS = {"process": 60, "layers": 120, "experts": 120, "killed": 60, "killed_graph": 60}  # seconds


def rank_main(args: Any) -> bool:
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    torch.set_grad_enabled(False)
    rank = args.rank if args.rank >= 0 else int(os.environ.get("RANK", "0"))  # torchrun's
    device = "cpu" if DRY else f"cuda:{args.device if args.device >= 0 else max(rank, 0)}"
    if not DRY:
        torch.cuda.set_device(device)
    if args.what == "warm":
        warm(args.folder, args.case, args.share, args.ranks, device)
        return False
    if args.what == "process":
        one_process(args.folder, ["cpu"] if DRY else [f"cuda:{i}" for i in range(args.ranks)])
        return bool(wrong)
    limit = timedelta(seconds=10 if args.what == "killed" else 100)
    more = {} if DRY else {"device_id": torch.device(device)}
    if args.what != "killed_graph":
        more["init_method"] = f"file://{args.folder}/store-{args.what}"
    dist.init_process_group("gloo" if DRY else "nccl", rank=rank, world_size=args.ranks, timeout=limit, **more)
    {"layers": layers, "experts": experts, "killed": killed, "killed_graph": killed_graph}[args.what](
        args.folder, rank, args.ranks, device
    )
    dist.barrier()
    sys.stdout.flush()
    os._exit(bool(wrong))  # not through destructors: graphs hold the communicator


def ended(processes: "list[subprocess.Popen[bytes]]", limit: float) -> "list[int | None]":
    """Their statuses; None where one ran past the limit."""
    until = time.monotonic() + limit
    statuses: "list[int | None]" = []
    for process in processes:
        try:
            statuses.append(process.wait(max(0.1, until - time.monotonic())))
        except subprocess.TimeoutExpired:
            statuses.append(None)
    for process in processes:
        process.kill()
    return statuses


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--parts", default="layers,experts,process,killed+killed_graph", help="+: at the same time")
    parser.add_argument("--csv", type=Path, default=None)
    parser.add_argument("--dry-run", action="store_true")
    for name, default in (("rank", -1), ("device", -1), ("share", 1)):
        parser.add_argument(f"--{name}", type=int, default=default, help=argparse.SUPPRESS)
    for name in ("what", "case"):
        parser.add_argument(f"--{name}", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.what:
        return rank_main(args)
    os.environ["NCCL_NVLS_ENABLE"] = "0"
    if args.csv:
        os.environ["Q4_PARALLEL_CSV"] = str(args.csv.resolve())
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        command = [sys.executable, os.path.abspath(__file__), "--folder", temporary, "--ranks", str(args.ranks)]
        command += ["--dry-run"] if DRY else []

        def start(launch: "list[str]", *more: str) -> "subprocess.Popen[bytes]":
            return subprocess.Popen([*launch, *more])

        def start_part(part: str) -> "list[subprocess.Popen[bytes]]":
            if part == "process":
                return [start(command, "--what", part)]
            if part == "killed_graph":
                torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={args.ranks}", "--standalone"]
                return [start([*torchrun, *command[1:]], "--what", part)]
            ranks = range(args.ranks)
            return [start(command, "--what", part, "--rank", str(rank), "--device", str(rank)) for rank in ranks]

        begin = time.monotonic()
        makers = [threading.Thread(target=write_layer, args=(folder / c, m, o)) for m, o, c in cases(MODELS)]
        names = [case for _, _, case in cases(MODELS)]
        if "experts" in args.parts:
            makers += [threading.Thread(target=write_experts, args=(folder / f"experts-{c}", m, o)) for m, o, c in cases(EXPERTS)]
            names += [f"experts-{case}" for _, _, case in cases(EXPERTS)]
        for maker in makers:
            maker.start()
        for maker in makers:
            maker.join()
        print(f"checkpoints after {time.monotonic() - begin:.0f} s", flush=True)
        jobs = [(case, share) for case in names for share in {1, args.ranks}]
        warmers = [
            start(command, "--what", "warm", "--case", case, "--share", str(share), "--device", str(i % args.ranks))
            for i, (case, share) in enumerate(jobs)
        ]
        statuses = ended(warmers, 120)
        print(f"warm-up: {statuses} after {time.monotonic() - begin:.0f} s", flush=True)
        failed += ["warm-up"] if any(statuses) or None in statuses else []
        print("part,what,ranks,rows,name,value,verdict", flush=True)
        for together in args.parts.split(","):
            begin = time.monotonic()
            running = {part: start_part(part) for part in together.split("+")}
            for part, processes in running.items():
                statuses = ended(processes, LIMITS[part])
                # What was killed must have ended by itself, with an error.
                good = None not in statuses and (all(statuses) if part.startswith("killed") else not any(statuses))
                failed += [] if good else [part]
                said = " ".join(str(status) for status in statuses)
                report(part, f"statuses {said}", args.ranks, 0, "seconds", time.monotonic() - begin, None if good else -1)
    print("failed: " + ", ".join(failed) if failed else "all parts ended as they should", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
