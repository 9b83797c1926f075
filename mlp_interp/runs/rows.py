"""Rows: one stream vector of one patched run each, for all runs of a group in a row."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.runs.patched_run import PatchedRun

__all__ = ["Rows"]


@dataclass(frozen=True)
class Rows:
    """Some rows, run after run, and where their queries stand.

    Attributes:
        index: Which rows, counted over all runs of the group.
        item: The patched run of each.
        pos: The position of each.
        column: Where each row's position stands among `positions`.
        positions: The positions at which queries are asked.
    """

    index: Int[Tensor, " row"]
    item: Int[Tensor, " row"]
    pos: Int[Tensor, " row"]
    column: Int[Tensor, " row"]
    positions: Int[Tensor, " column"]

    @property
    def place(self) -> Int[Tensor, " row"]:
        """Where each row's query stands when every run has one at each of `positions`."""
        return self.item * len(self.positions) + self.column

    @classmethod
    def every(cls, runs: Sequence[PatchedRun], length: int, device: torch.device) -> "Rows":
        """A row for each run and position from its first changed one on."""
        start = torch.tensor([run.start for run in runs], device=device)
        counts = length - start
        item = torch.repeat_interleave(torch.arange(len(runs), device=device), counts)
        index = torch.arange(len(item), device=device)
        pos = index - (counts.cumsum(0) - counts)[item] + start[item]
        first = min(run.start for run in runs)
        return cls(index, item, pos, pos - first, torch.arange(first, length, device=device))

    def at(self, read: Sequence[int]) -> "Rows":
        """The rows at some positions, of the runs that have come so far there."""
        positions = torch.tensor(read, dtype=torch.long, device=self.pos.device)
        row, column = (self.pos[:, None] == positions).nonzero(as_tuple=True)
        return Rows(self.index[row], self.item[row], self.pos[row], column, positions)

    def between(self, first: int, last: int) -> "Rows":
        """The rows of runs `first` to `last` (not included)."""
        ends = torch.searchsorted(self.item, self.item.new_tensor([first, last]))
        return self.where(slice(*ends.tolist()))

    def padded(self, x: Float[Tensor, "row *rest width"], runs: int) -> Tensor:
        """What stands in each row by run and position, zeros where a run has no row."""
        shape = runs, len(self.positions)
        zeros = x.new_zeros(shape[0] * shape[1], *x.shape[1:])
        return zeros.index_copy_(0, self.place, x).unflatten(0, shape)

    def where(self, some: Tensor | slice) -> "Rows":
        """Some of these rows, by a mask or a slice."""
        return Rows(
            self.index[some], self.item[some], self.pos[some], self.column[some], self.positions
        )
