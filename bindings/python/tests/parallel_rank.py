"""One rank of test_parallel.py: `parallel_rank.py RANK WORLD FOLDER WHAT`. FOLDER has the checkpoint and the store."""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import q4
import q4.torch as q4_torch

RANK, WORLD, FOLDER = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
HEAD = 16


def whole(checkpoint: Any, name: str, x: Any) -> Any:
    return q4_torch.Linear(checkpoint.load(name, "cpu"))(x)


def near(a: Any, b: Any) -> None:
    assert a.shape == b.shape, (a.shape, b.shape)
    error = float((a - b).norm() / b.norm())
    assert error < 1e-5, error


def own(y: Any, width: int) -> Any:
    return y[..., RANK * width : (RANK + 1) * width]


def modules(checkpoint: Any) -> None:
    """Each module against the whole matrix, and the gradients of x."""
    torch.manual_seed(1)
    names = [m.name for m in checkpoint.matrices if m.name.endswith("q_proj")]
    for q in names:
        layer = q.removesuffix("q_proj")
        k, v, o = (layer + part for part in ("k_proj", "v_proj", "o_proj"))
        x = torch.randn(4, checkpoint.find(q).k)
        expected = [whole(checkpoint, name, x) for name in (q, k, v)]

        column = q4_torch.ColumnParallelLinear(checkpoint, q, device="cpu", unit=HEAD)
        near(column(x), own(expected[0], expected[0].shape[1] // WORLD))
        near(q4_torch.ColumnParallelLinear(checkpoint, q, device="cpu", gather_output=True)(x), expected[0])
        padded = q4_torch.ColumnParallelLinear(checkpoint, k, device="cpu", unit=32, pad=True, gather_output=True)
        near(padded(x), expected[1])

        merged = q4_torch.MergedColumnParallelLinear(checkpoint, [q, k], device="cpu")
        for part, e in zip(merged.split(merged(x)), expected):
            near(part, own(e, e.shape[1] // WORLD))

        qkv = q4_torch.QKVParallelLinear(checkpoint, [q, k, v], head=HEAD, device="cpu")
        parts = qkv.split(qkv(x))
        near(parts[0], own(expected[0], expected[0].shape[1] // WORLD))
        for part, e in zip(parts[1:], expected[1:]):  # heads that ranks share, where there are too few
            heads = e.shape[1] // HEAD
            first = RANK // (WORLD // heads) if heads < WORLD else RANK * (heads // WORLD)
            near(part, e[:, first * HEAD : first * HEAD + max(heads // WORLD, 1) * HEAD])

        h = torch.randn(4, checkpoint.find(o).k)
        y = whole(checkpoint, o, h)
        local = own(h, h.shape[1] // WORLD)
        near(q4_torch.RowParallelLinear(checkpoint, o, device="cpu")(local), y)
        near(q4_torch.RowParallelLinear(checkpoint, o, device="cpu", input_is_parallel=False)(h), y)
        scattered = q4_torch.RowParallelLinear(checkpoint, o, device="cpu", reduce="scatter")(local)
        near(scattered, y[RANK * (4 // WORLD) : (RANK + 1) * (4 // WORLD)])
        part = q4_torch.RowParallelLinear(checkpoint, o, device="cpu", reduce=None)(local)
        dist.all_reduce(part)
        near(part, y)

        # The gradient of x through a column-parallel and a row-parallel layer is that of the whole layers.
        row = q4_torch.RowParallelLinear(checkpoint, o, device="cpu")
        gradients = []
        for parallel in (True, False):
            xs = x.clone().requires_grad_()
            out = row(column(xs)) if parallel else whole(checkpoint, o, whole(checkpoint, q, xs))
            out.square().sum().backward()
            gradients.append(xs.grad)
        near(*gradients)
    q4_torch.check_ranks_agree(q4.numerics_id(checkpoint, 16, "float32", device="cpu"))
    try:
        q4_torch.check_ranks_agree(RANK)
        raise AssertionError("no error")
    except q4.InvalidArgument as error:
        assert "the ranks differ: [0, 1" in str(error), error


class Block(torch.nn.Module):
    def __init__(self, checkpoint: Any) -> None:
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            entry = checkpoint.find("a." + name)
            setattr(self, name, torch.nn.Linear(entry.k, entry.n, bias=False))

    def forward(self, x: Any) -> Any:
        return self.o_proj(torch.nn.functional.silu(self.q_proj(x)))


def replace(checkpoint: Any) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard

    mesh = init_device_mesh("cpu", (WORLD,))
    x = torch.randn(3, checkpoint.find("a.q_proj").k, generator=torch.Generator().manual_seed(3))
    expected: Any = None
    for placements in (False, None, {"a.q_proj": Shard(0), "a.o_*": Shard(1), "*": Replicate()}):
        model = torch.nn.ModuleDict({"a": Block(checkpoint)})
        more: dict[str, Any] = {} if placements is False else {"device_mesh": mesh, "placements": placements}
        with torch.no_grad():
            q4_torch.replace_linears(model, checkpoint, device="cpu", strict=False, **more)
            y = model["a"](x)
        expected = y if expected is None else expected
        near(y, expected)
        if placements is not False:
            assert type(model["a"].o_proj) is q4_torch.RowParallelLinear
            assert (type(model["a"].k_proj) is q4_torch.Linear) == (placements is not None)
    try:
        q4_torch.replace_linears(
            torch.nn.ModuleDict({"a": Block(checkpoint)}), checkpoint, device_mesh=mesh, strict=False, placements={"*": 5}
        )
        raise AssertionError("no error")
    except q4.InvalidArgument as error:
        assert "it must be Shard(0), Shard(1) or Replicate()" in str(error), error


def killed(checkpoint: Any) -> None:
    """The last rank dies between two steps; the others must get an error, and say when."""
    row = q4_torch.RowParallelLinear(checkpoint, "a.o_proj", device="cpu")
    x = torch.randn(2, row.in_features)
    for step in range(1000):
        if RANK == WORLD - 1 and step == 5:
            os.kill(os.getpid(), 9)
        start = time.monotonic()
        try:
            row(x)
        except RuntimeError as error:
            print(f"error after {time.monotonic() - start:.1f} s: {str(error)[:120]}")
            os._exit(7)
    raise AssertionError("the dead rank was not noticed")


dist.init_process_group(
    "gloo", init_method=f"file://{FOLDER}/store", rank=RANK, world_size=WORLD, timeout=timedelta(seconds=20)
)
{"modules": modules, "replace": replace, "killed": killed}[sys.argv[4]](q4.Checkpoint(FOLDER))
dist.destroy_process_group()
print("done")
