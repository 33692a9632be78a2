"""Decoder layers and layers of experts divided over the GPUs of a host, by NCCL: right, in captured graphs, and how fast.

    python gpu_parallel.py [--ranks 2] [--parts layers,experts] [--csv FILE] [--dry-run]

Runs its parts one after the other, each in processes of its own and with a time limit, and writes CSV lines as they are
found, also where a part fails later: part, what, ranks, rows, name, value, verdict. Attention itself is left out: a layer
is q/k/v, o, gate/up and down with both all-reduces and the elementwise operations between. Exit status 1 where something is
wrong. --dry-run: small matrices on the CPU over gloo, without graphs: whether this file works."""

import argparse
import os
import resource
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

import torch
import torch.distributed as dist
from gpu_parallel_common import (
    DRY,
    EXPERTS,
    LAYERS,
    MODELS,
    PREFIX,
    ROWS,
    STEPS,
    Eager,
    captured,
    cases,
    difference,
    microseconds,
    normal,
    report,
    synchronize,
    write_experts,
    write_layer,
    wrong,
)
from gpu_parallel_layer import Layer, layers

import q4
import q4.torch as q4_torch


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


def warm(folder: Path, case: str, share: int, world: int, device: str, brief: bool) -> None:
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
        for rows in [1] if brief else sorted({*ROWS, *(r // 2 for r in ROWS if r > 1), 1, 5, 64, 300}):
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
        warm(args.folder, args.case, args.share, args.ranks, device, args.brief)
        return False
    if args.what == "process":
        one_process(args.folder, ["cpu"] if DRY else [f"cuda:{i}" for i in range(args.ranks)])
        return bool(wrong)
    limit = timedelta(seconds=10 if args.what == "killed" else 100)
    if args.what.startswith("killed"):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if args.what == "killed":  # else the watchdog gives PyTorch up to a minute to write what it knows, after the time limit
        os.environ.setdefault("TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC", "1000")
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
    parser.add_argument("--brief", action="store_true", help=argparse.SUPPRESS)
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
        brief = ["--brief"] if "layers" not in args.parts else []  # the others multiply few rows

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
        wanted = cases(MODELS) if "layers" in args.parts else [cases(MODELS)[0]] * ("killed" in args.parts)
        wanted += [cases(MODELS)[-1]] * ("process" in args.parts and cases(MODELS)[-1] not in wanted)
        makers = [threading.Thread(target=write_layer, args=(folder / c, m, o)) for m, o, c in wanted]
        names = [case for _, _, case in wanted]
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
            start(command, "--what", "warm", "--case", case, "--share", str(share), "--device", str(i % args.ranks), *brief)
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
