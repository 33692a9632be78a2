"""Linear layers whose weights are divided over the ranks of a process group. Imports torch."""

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

import q4
from q4._native import Checkpoint, Slice
from q4._torch_linear import Linear

# As in Megatron-LM: what is identity forward is a sum over ranks backward, and the other way round.


class _Enter(torch.autograd.Function):
    """Every rank has x; each rank's gradient is a part of it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, group: Any) -> torch.Tensor:
        y = y.clone() if y.requires_grad else y
        dist.all_reduce(y, group=group)
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return grad, None


def _gathered(y: torch.Tensor, group: Any, dim: int) -> torch.Tensor:
    parts = [torch.empty_like(y) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, y.contiguous(), group=group)
    return torch.cat(parts, dim)


class _Gather(torch.autograd.Function):
    """The columns of all ranks, side by side."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.rank, ctx.width = dist.get_rank(group), y.shape[-1]
        return _gathered(y, group, -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return grad.narrow(-1, ctx.rank * ctx.width, ctx.width), None


def _sum_and_scatter(y: torch.Tensor, group: Any) -> torch.Tensor:
    """The sum over ranks, of which each rank keeps its rows (of the first dimension)."""
    rank, rows = dist.get_rank(group), y.shape[0] // dist.get_world_size(group)
    if dist.get_backend(group) == "gloo":  # which has no reduce_scatter
        y = y.clone()
        dist.all_reduce(y, group=group)
        return y.narrow(0, rank * rows, rows).clone()
    part = y.new_empty((rows, *y.shape[1:]))
    dist.reduce_scatter_tensor(part, y.contiguous(), group=group)
    return part


class _SumAndScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return _sum_and_scatter(y, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return _gathered(grad, ctx.group, 0), None


def _ranks(call: str, group: Any) -> "tuple[int, int]":
    if not dist.is_available() or not dist.is_initialized():
        raise q4.InvalidArgument(
            f"{call}: torch.distributed is not initialized: call torch.distributed.init_process_group first"
        )
    rank = dist.get_rank(group)
    if rank < 0:
        raise q4.InvalidArgument(f"{call}: this process is not in the process group that was passed")
    return rank, dist.get_world_size(group)


def _open(checkpoint: Any) -> Checkpoint:
    return checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)


class _Columns(torch.nn.Module):
    """Matrices of one input, divided by columns: one Linear where they could be fused, else one each."""

    def __init__(
        self, checkpoint: Any, names: Sequence[str], slice: Slice, group: Any, device: Any, gather_output: bool
    ) -> None:
        super().__init__()
        checkpoint = _open(checkpoint)
        self.group, self.gather_output = group, gather_output
        self.names = list(names)
        self.in_features = checkpoint.find(self.names[0]).k
        matrices = checkpoint.load_together(self.names, device, slice=slice)
        self.linears = torch.nn.ModuleList(Linear(matrix) for matrix in matrices)
        self.out_features = sum(matrix.n for matrix in matrices)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x[..., in_features], the same on every rank -> [..., this rank's columns], or all with gather_output."""
        x = _Enter.apply(x, self.group) if x.requires_grad else x
        parts = [linear(x) for linear in self.linears]
        y: torch.Tensor = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return _Gather.apply(y, self.group) if self.gather_output else y

    def extra_repr(self) -> str:
        """For print(model)."""
        rank, world = dist.get_rank(self.group), dist.get_world_size(self.group)
        return f"{', '.join(self.names)}: rank {rank} of {world}, gather_output={self.gather_output}"


class ColumnParallelLinear(_Columns):
    """The rank's columns of x @ W + bias. Loads only the rank's part of the checkpoint's matrix `name`.

    unit: columns that stay together (a head's). pad: where units do not divide, the last ranks get zero columns, which
    gather_output cuts off again. gather_output: every rank gets all columns.
    """

    def __init__(
        self,
        checkpoint: "Checkpoint | str | os.PathLike[str]",
        name: str,
        *,
        group: Any = None,
        device: Any = None,
        unit: int = 8,
        pad: bool = False,
        gather_output: bool = False,
    ) -> None:
        rank, world = _ranks("ColumnParallelLinear", group)
        checkpoint = _open(checkpoint)
        self._columns = checkpoint.find(name).n
        super().__init__(checkpoint, [name], Slice.columns(rank, world, unit=unit, pad=pad), group, device, gather_output)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x[..., in_features], the same on every rank -> [..., this rank's columns], or all with gather_output."""
        y = super().forward(x)
        return y[..., : self._columns] if self.gather_output else y


class MergedColumnParallelLinear(_Columns):
    """The rank's columns of several matrices of one input (gate, up), side by side: `sizes` of each.

    `names`: as many matrices, or one that holds them fused, with `parts`, the columns of each.
    """

    def __init__(
        self,
        checkpoint: "Checkpoint | str | os.PathLike[str]",
        names: "str | Sequence[str]",
        *,
        parts: Sequence[int] = (),
        group: Any = None,
        device: Any = None,
        unit: int = 8,
    ) -> None:
        rank, world = _ranks("MergedColumnParallelLinear", group)
        checkpoint = _open(checkpoint)
        names = [names] if isinstance(names, str) else list(names)
        slice = Slice.columns(rank, world, unit=unit, parts=parts)
        super().__init__(checkpoint, names, slice, group, device, False)
        self.sizes = [n // world for n in parts or [checkpoint.find(name).n for name in names]]

    def split(self, y: torch.Tensor) -> "tuple[torch.Tensor, ...]":
        """The result of forward(), a tensor for each matrix."""
        return torch.split(y, self.sizes, -1)


class QKVParallelLinear(_Columns):
    """The rank's heads of query, key and value, side by side: `sizes` of each. Key and value heads are shared by ranks
    where there are fewer of them than ranks.

    `names`: the three matrices, or one that holds them fused, with `heads`, the heads of each. head: columns of a head.
    """

    def __init__(
        self,
        checkpoint: "Checkpoint | str | os.PathLike[str]",
        names: "str | Sequence[str]",
        *,
        head: int,
        heads: Sequence[int] = (),
        group: Any = None,
        device: Any = None,
    ) -> None:
        rank, world = _ranks("QKVParallelLinear", group)
        checkpoint = _open(checkpoint)
        names = [names] if isinstance(names, str) else list(names)
        super().__init__(checkpoint, names, Slice.heads(rank, world, head, heads), group, device, False)
        counts = heads or [checkpoint.find(name).n // head for name in names]
        self.sizes = [max(count // world, 1) * head for count in counts]

    def split(self, y: torch.Tensor) -> "tuple[torch.Tensor, ...]":
        """The result of forward(), a tensor for each matrix."""
        return torch.split(y, self.sizes, -1)


class RowParallelLinear(torch.nn.Module):
    """x @ W + bias from the rank's rows of W: the results of all ranks are added up. The bias is in rank 0's alone.

    x holds the rank's columns, in their own order, which is what the column-parallel layers before it give; so it is
    with act-order too: the rank's rows keep their groups, and no rank needs another's columns. input_is_parallel=False:
    x is whole on every rank, and the rank takes its columns. reduce: "sum" (all-reduce), "scatter" (each rank keeps
    its rows of the sum, of x's first dimension), or None (the rank's own part). unit, pad: as in q4.Slice.rows.
    """

    def __init__(
        self,
        checkpoint: "Checkpoint | str | os.PathLike[str]",
        name: str,
        *,
        group: Any = None,
        device: Any = None,
        unit: int = 8,
        pad: bool = False,
        input_is_parallel: bool = True,
        reduce: "str | None" = "sum",
    ) -> None:
        super().__init__()
        rank, world = _ranks("RowParallelLinear", group)
        if reduce not in ("sum", "scatter", None):
            raise q4.InvalidArgument(f"RowParallelLinear: reduce = {reduce!r}; it must be 'sum', 'scatter' or None")
        checkpoint = _open(checkpoint)
        self.group, self.reduce, self.input_is_parallel, self.name = group, reduce, input_is_parallel, name
        self.rank, self.world = rank, world
        matrix = checkpoint.load(name, device, slice=Slice.rows(rank, world, unit=unit, pad=pad))
        self.linear = Linear(matrix)
        self.in_features, self.out_features = matrix.k, matrix.n

    def _own(self, x: torch.Tensor) -> torch.Tensor:
        first = self.rank * self.in_features
        part = x[..., first : first + self.in_features]
        return torch.nn.functional.pad(part, (0, self.in_features - part.shape[-1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x[..., this rank's columns] (or all) -> [..., out_features]"""
        if not self.input_is_parallel:
            x = self._own(_Enter.apply(x, self.group) if x.requires_grad else x)
        y: torch.Tensor = self.linear(x)
        if self.reduce == "scatter":
            if y.shape[0] % self.world != 0:
                raise q4.InvalidArgument(
                    f"RowParallelLinear: x has {y.shape[0]} rows, which {self.world} ranks cannot share evenly: pad x,"
                    " or use reduce='sum'"
                )
            y = _SumAndScatter.apply(y, self.group)
        elif self.reduce == "sum":
            y = _Sum.apply(y, self.group)
        return y

    def extra_repr(self) -> str:
        """For print(model)."""
        return f"{self.name}: rank {self.rank} of {self.world}, reduce={self.reduce!r}"


def check_ranks_agree(value: Any, *, group: Any = None) -> None:
    """Raises on every rank where `value` is not the same on all: what each has is in the text."""
    _, world = _ranks("check_ranks_agree", group)
    values: "list[Any]" = [None] * world
    dist.all_gather_object(values, value, group=group)
    if any(other != values[0] for other in values):
        raise q4.InvalidArgument(f"check_ranks_agree: the ranks differ: {values}")


for _class in (ColumnParallelLinear, MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear):
    _class.__module__ = "q4.torch"
