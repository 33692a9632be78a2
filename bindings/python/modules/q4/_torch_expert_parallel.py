"""ExpertParallelMoE: the experts of a layer divided over the ranks of a process group. Imports torch."""

import os
from typing import Any

import torch
import torch.distributed as dist

import q4
from q4._native import Checkpoint
from q4._torch_moe import MoE, layer_of
from q4._torch_parallel import _gathered, _open, _ranks, _sum_and_scatter

_TOKENS = ("same", "gather", "exchange")


class ExpertParallelMoE(torch.nn.Module):
    """The experts of a layer, each whole on one rank: rank r of `world` holds those from E r // world on.

    Loads only the rank's experts; `experts` is its MoE, whose expert_map takes the model's numbers. tokens says what x
    is on each rank, and how it comes to the experts:

    "same": the same tokens on every rank (after a row-parallel layer). Each rank adds up what its experts give, and one
        all-reduce adds the ranks.
    "gather": each rank's own tokens, as many on each: all ranks' tokens are gathered, and a reduce-scatter gives each rank
        the sums of its own. Sizes are fixed, so that a CUDA graph can hold it.
    "exchange": each rank's own tokens, any number: each token goes to the ranks that have one of its experts and nowhere else
        (all-to-all), and comes back. The host waits for the counts, so no graph can hold it.

    There is no gradient: call under torch.no_grad(). In fp16 and bf16 each rank's part is rounded before the sum. An
    error where there are fewer experts than ranks.
    """

    _owners: torch.Tensor  # the rank of each expert, and at the end no rank, for ids that name none

    def __init__(
        self,
        checkpoint: "Checkpoint | str | os.PathLike[str]",
        prefix: str,
        activation: str = "silu_mul",
        *,
        group: Any = None,
        device: Any = None,
        tokens: str = "same",
    ) -> None:
        super().__init__()
        self.rank, self.world = _ranks("ExpertParallelMoE", group)
        if tokens not in _TOKENS:
            raise q4.InvalidArgument(f"ExpertParallelMoE: tokens = {tokens!r}; it must be 'same', 'gather' or 'exchange'")
        self.group, self.tokens, self.prefix = group, tokens, prefix
        checkpoint = _open(checkpoint)
        layer = layer_of(checkpoint, prefix)
        total = layer.experts
        if total < self.world:
            raise q4.InvalidArgument(
                f"ExpertParallelMoE: '{prefix}.*' are {total} experts, fewer than the {self.world} ranks of the group: use a"
                " smaller group"
            )
        first = [total * r // self.world for r in range(self.world + 1)]
        self.experts = MoE(None, None, activation, names=layer.names)
        self.experts.load(checkpoint, layer, device, first[self.rank], first[self.rank + 1] - first[self.rank])
        owners = [*(sum(e >= f for f in first[1:]) for e in range(total)), self.world]
        self.register_buffer("_owners", torch.tensor(owners, device=self.experts.device), persistent=False)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """x [..., K], ids (the model's numbers) and weights [..., topk] -> [..., n], of the same tokens."""
        given = (hidden_states, top_k_index, top_k_weights)
        if self.tokens == "same":
            y: torch.Tensor = self.experts(*given)
            dist.all_reduce(y, group=self.group)
            return y
        x, ids, weights = (t.reshape(-1, t.shape[-1]).contiguous() for t in given)
        if self.tokens == "gather":
            y = self.experts(*(_gathered(t, self.group, 0) for t in (x, ids, weights)))
            y = _sum_and_scatter(y, self.group)
        else:
            y = self._exchanged(x, ids, weights)
        return y.reshape(*hidden_states.shape[:-1], y.shape[-1])

    @torch.compiler.disable  # type: ignore[misc,untyped-decorator,unused-ignore]  # sizes depend on values
    def _exchanged(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        known = (ids >= 0) & (ids < len(self._owners) - 1)
        wanted = torch.zeros(len(x), self.world + 1, dtype=torch.bool, device=x.device)
        wanted.scatter_(1, self._owners[torch.where(known, ids, -1).long()], True)
        rank, token = wanted[:, : self.world].T.nonzero(as_tuple=True)  # sorted by rank
        counts = torch.bincount(rank, minlength=self.world)
        arriving = torch.empty_like(counts)
        dist.all_to_all_single(arriving, counts, group=self.group)
        sent, received = counts.tolist(), arriving.tolist()

        def exchange(part: torch.Tensor, to: "list[int]", back: "list[int]") -> torch.Tensor:
            result = part.new_empty((sum(back), part.shape[1]))
            dist.all_to_all_single(result, part, back, to, group=self.group)
            return result

        there = self.experts(*(exchange(t[token], sent, received) for t in (x, ids, weights)))
        here = exchange(there, received, sent)
        y = torch.zeros(len(x), here.shape[1], dtype=torch.float32, device=x.device)
        y.index_add_(0, token, here.float())
        return y.to(here.dtype)

    def extra_repr(self) -> str:
        """For print(model)."""
        return f"{self.prefix}: rank {self.rank} of {self.world}, tokens={self.tokens!r}"


ExpertParallelMoE.__module__ = "q4.torch"
