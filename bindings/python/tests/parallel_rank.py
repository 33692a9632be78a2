"""One rank of test_parallel.py: `parallel_rank.py RANK WORLD FOLDER WHAT`. FOLDER has the store, and a folder for each checkpoint."""

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
    error = float((a - b).norm() / b.norm()) if b.any() else float(a.norm())
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


def experts(checkpoint: Any) -> None:
    """ExpertParallelMoE against all experts on one rank; also with ids that name no expert, and other tokens a rank."""
    prefix, total, topk = "model.layers.0.mlp.experts", 5, 2
    whole = q4_torch.MoE.from_checkpoint(checkpoint, prefix, device="cpu")
    made = torch.Generator().manual_seed(4)  # the same on each rank
    x = torch.randn(WORLD, 3, 2, checkpoint.find(prefix + ".0.gate_proj").k, generator=made)
    ids = torch.rand(WORLD, 3, 2, total, generator=made).argsort(-1)[..., :topk]
    ids[0, 0, 0], ids[1, 2, 1, 0] = torch.tensor([-1, 7]), total
    weights = torch.rand(WORLD, 3, 2, topk, generator=made)
    expected = whole(x, ids, weights)
    assert not expected[0, 0, 0].any()

    layer = {t: q4_torch.ExpertParallelMoE(checkpoint, prefix, device="cpu", tokens=t) for t in ("same", "gather", "exchange")}
    held = [None] * WORLD
    dist.all_gather_object(held, len(layer["same"].experts.w13))
    assert sum(held) == total and max(held) - min(held) <= 1, held
    near(layer["same"](x, ids, weights), expected)
    for tokens in ("gather", "exchange"):
        near(layer[tokens](x[RANK], ids[RANK], weights[RANK]), expected[RANK])
    few = slice(0, RANK)  # none at all on rank 0
    near(layer["exchange"](x[0, few], ids[0, few], weights[0, few]), expected[0, few])
    assert f"rank {RANK} of {WORLD}, tokens='gather'" in repr(layer["gather"])

    for options, kind, text in (
        ({"tokens": "all"}, q4.InvalidArgument, "it must be 'same', 'gather' or 'exchange'"),
        ({"prefix": "model.layers.7.mlp.experts"}, q4.NotFound, "has no experts 'model.layers.7.mlp.experts.*'"),
    ):
        try:
            q4_torch.ExpertParallelMoE(checkpoint, options.pop("prefix", prefix), device="cpu", **options)
            raise AssertionError("no error")
        except kind as error:
            assert text in str(error), error


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


def replace_experts(checkpoint: Any) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard

    prefix = "model.layers.0.mlp.experts"
    gate, down = checkpoint.find(prefix + ".0.gate_proj"), checkpoint.find(prefix + ".0.down_proj")
    mesh = init_device_mesh("cpu", (WORLD,))
    made = torch.Generator().manual_seed(4)
    x, weights = torch.randn(3, gate.k, generator=made), torch.rand(3, 2, generator=made)
    ids = torch.tensor([[0, 4], [1, 3], [2, 0]])
    expected = q4_torch.MoE.from_checkpoint(checkpoint, prefix, device="cpu")(x, ids, weights)
    for placements in (None, {"*.experts": Shard(0)}, {"*.experts": Replicate()}, {"*.experts": Shard(1)}):
        fused = torch.nn.Module()  # as transformers 5 has experts
        fused.gate_up_proj = torch.nn.Parameter(torch.empty(5, 2 * gate.n, gate.k, device="meta"))
        fused.down_proj = torch.nn.Parameter(torch.empty(5, down.n, down.k, device="meta"))
        fused.act_fn = torch.nn.SiLU()
        layer = torch.nn.ModuleDict({"mlp": torch.nn.ModuleDict({"experts": fused})})
        model = torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"layers": torch.nn.ModuleList([layer])})})
        try:
            q4_torch.replace_linears(model, checkpoint, device="cpu", device_mesh=mesh, placements=placements)
        except q4.InvalidArgument as error:
            assert "placed as Shard(0), each whole on one rank" in str(error) and "(dim=1)" in str(placements), error
            continue
        assert "(dim=1)" not in str(placements)
        whole_ones = placements is not None and type(placements["*.experts"]) is Replicate
        assert type(layer["mlp"].experts) is (q4_torch.MoE if whole_ones else q4_torch.ExpertParallelMoE)
        near(layer["mlp"].experts(x, ids, weights), expected)


def killed(step_of: Any) -> None:
    """The last rank dies between two steps; the others must get an error, and say when."""
    for step in range(1000):
        if RANK == WORLD - 1 and step == 5:
            os.kill(os.getpid(), 9)
        start = time.monotonic()
        try:
            step_of()
        except RuntimeError as error:
            print(f"error after {time.monotonic() - start:.1f} s: {str(error)[:120]}")
            os._exit(7)
    raise AssertionError("the dead rank was not noticed")


def killed_row(checkpoint: Any) -> None:
    row = q4_torch.RowParallelLinear(checkpoint, "a.o_proj", device="cpu")
    x = torch.randn(2, row.in_features)
    killed(lambda: row(x))


def killed_experts(checkpoint: Any) -> None:
    layer = q4_torch.ExpertParallelMoE(checkpoint, "model.layers.0.mlp.experts", device="cpu", tokens="exchange")
    x, weights = torch.randn(4, layer.experts.w13.k), torch.ones(4, 2)
    killed(lambda: layer(x, torch.tensor([[0, 4], [1, 3], [2, 0], [4, 1]]), weights))


dist.init_process_group(
    "gloo", init_method=f"file://{FOLDER}/store", rank=RANK, world_size=WORLD, timeout=timedelta(seconds=20)
)
what = {f.__name__: f for f in (modules, replace, experts, replace_experts, killed_row, killed_experts)}[sys.argv[4]]
for folder in sorted(path for path in FOLDER.iterdir() if path.is_dir()):
    print(folder.name, flush=True)
    what(q4.Checkpoint(folder))
dist.destroy_process_group()
print("done")
