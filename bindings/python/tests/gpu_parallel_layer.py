"""The decoder layer of gpu_parallel.py: whether it is right, and its times."""

import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from gpu_parallel_common import (
    DRY,
    LAYERS,
    MODELS,
    ROWS,
    STEPS,
    captured,
    cases,
    difference,
    microseconds,
    normal,
    report,
    synchronize,
)

import q4
import q4.torch as q4_torch


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
