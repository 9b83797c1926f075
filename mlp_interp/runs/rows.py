"""Rows: one stream vector of one branch each, for all branches of a group in a row."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from mlp_interp.runs.patched import Branch

__all__ = ["Rows"]


@dataclass(frozen=True)
class Rows:
    """Some rows, branch after branch, and where their queries stand.

    Attributes:
        index: Which rows, counted over all branches of the group.
        item: The branch of each.
        pos: The position of each.
        column: Where each row's position stands among `positions`.
        positions: The positions at which queries are asked.
    """

    index: Int[Tensor, " row"]
    item: Int[Tensor, " row"]
    pos: Int[Tensor, " row"]
    column: Int[Tensor, " row"]
    positions: Int[Tensor, " column"]

    @classmethod
    def every(cls, branches: Sequence[Branch], length: int, device: torch.device) -> "Rows":
        """A row for each branch and position from its first changed one on."""
        start = torch.tensor([b.start for b in branches], device=device)
        counts = length - start
        item = torch.repeat_interleave(torch.arange(len(branches), device=device), counts)
        index = torch.arange(len(item), device=device)
        pos = index - (counts.cumsum(0) - counts)[item] + start[item]
        first = min(b.start for b in branches)
        return cls(index, item, pos, pos - first, torch.arange(first, length, device=device))

    def at(self, read: Sequence[int]) -> "Rows":
        """The rows at some positions, of the branches that have come so far there."""
        positions = torch.tensor(read, dtype=torch.long, device=self.pos.device)
        row, column = (self.pos[:, None] == positions).nonzero(as_tuple=True)
        return Rows(self.index[row], self.item[row], self.pos[row], column, positions)

    def between(self, first: int, last: int) -> "Rows":
        """The rows of branches `first` to `last` (not included)."""
        ends = torch.searchsorted(self.item, self.item.new_tensor([first, last]))
        return self.where(slice(*ends.tolist()))

    def where(self, some: Tensor | slice) -> "Rows":
        """Some of these rows, by a mask or a slice."""
        return Rows(
            self.index[some], self.item[some], self.pos[some], self.column[some], self.positions
        )
