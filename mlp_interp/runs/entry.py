"""What runs that leave their base run by one position compute at that position, all at once."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.models.rotary import Rotary
from mlp_interp.runs.patched_run import PatchedRun
from mlp_interp.runs.recorded import Run

__all__ = ["Entries"]


@dataclass(frozen=True)
class Entries:
    """The one changed position of each run in the block at which it leaves the base run.

    A few rows at a time would read the block's matrices from memory for each few. Of runs that
    leave by several positions, or after the last block, there is nothing: their rows are zeros.

    Attributes:
        stream: The new stream there.
        q: Its queries, rotated.
        k: Its keys, rotated.
        v: Its values.
        mlp_out: What the MLP writes there; in sequential blocks, where the MLP reads what the
            attention wrote, zeros.
    """

    stream: Float[Tensor, "run d_model"]
    q: Float[Tensor, "run head d_head"]
    k: Float[Tensor, "run kv_head d_head"]
    v: Float[Tensor, "run kv_head d_head"]
    mlp_out: Float[Tensor, "run d_model"]

    @classmethod
    def of(cls, base: Run, runs: Sequence[PatchedRun], *, rows: int) -> "Entries":
        """Compute them, about `rows` together."""
        weights, like = base.weights, base.final
        heads = (weights.n_heads, weights.n_kv_heads, weights.n_kv_heads)
        q, k, v = (like.new_zeros(len(runs), n, weights.d_head) for n in heads)
        stream, mlp_out = (like.new_zeros(len(runs), like.shape[-1]) for _ in range(2))
        every = cls(stream, q, k, v, mlp_out)
        of_layer: dict[int, list[int]] = defaultdict(list)
        for i, run in enumerate(runs):
            if run.narrow and run.layer < base.n_layers:
                of_layer[run.layer].append(i)
        # Of all positions, as the base run's are: some tables depend on how far they reach.
        positions = torch.arange(base.length, device=like.device)
        rotary = base.lean.rotary(positions, like=like)
        for layer, some in of_layer.items():
            for first in range(0, len(some), rows):
                every._fill(base, runs, layer, some[first : first + rows], rotary)
        return every

    def _fill(
        self, base: Run, runs: Sequence[PatchedRun], layer: int, some: list[int], every: Rotary
    ) -> None:
        forward, at = base.lean, torch.tensor(some, device=self.stream.device)
        rotary = every[at.new_tensor([runs[i].start for i in some])]
        stream = torch.cat([runs[i].stream for i in some])
        normalized = forward.normalize(stream)
        q, k, v = forward.heads(layer, normalized)
        self.stream[at], self.v[at] = stream, v
        self.q[at] = forward.turned(layer, "q", q, rotary)
        self.k[at] = forward.turned(layer, "k", k, rotary)
        if base.weights.parallel:
            self.mlp_out[at] = forward.mlp_of(layer, normalized)

    def __getitem__(self, some: Tensor | slice) -> "Entries":
        """Those of some runs."""
        return Entries(
            self.stream[some], self.q[some], self.k[some], self.v[some], self.mlp_out[some]
        )
