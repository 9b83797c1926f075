"""Counts, sums and sums of squares of activations, by label and half of a corpus."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import xarray as xr
from jaxtyping import Bool, Int
from torch import Tensor

from mlp_interp.corpus.reducers.base import Batch, Shape, SiteReducer, State
from mlp_interp.models._checksum import checksum
from mlp_interp.results import to_numpy
from mlp_interp.sites import Site

__all__ = ["HALVES", "ClassMoments", "Labels"]

HALVES = 2
"""Every other sequence is of one half."""


@dataclass(frozen=True, eq=False, repr=False)
class Labels:
    """Labels of the tokens of a corpus, several ways.

    Attributes:
        truth: Of every token.
        order: For each labelling, whose labels each sequence gets.
    """

    truth: Bool[Tensor, "sequence pos"]
    order: Int[Tensor, "labelling sequence"]

    def __repr__(self) -> str:
        """With digits of its contents: two sweeps are one where these agree."""
        return f"Labels({checksum(self.truth)}, {checksum(self.order)})"


@dataclass(frozen=True, kw_only=True)
class ClassMoments(SiteReducer):
    """Moments of tokens with a label and without, in both halves of a corpus.

    Args:
        labels: Which tokens have it.
        site: As in `SiteReducer`.
        layers: As in `SiteReducer`.
        first: As in `SiteReducer`.

    Its result has, along ``labelling half with``, `count`, and `sum` and `square` of every unit.
    """

    labels: Labels
    takes_padding: ClassVar[bool] = True

    def empty(self, shape: Shape) -> State:
        """Zeros."""
        size = (len(self.chosen(shape)), len(self.labels.order), HALVES, 2)
        (units,) = shape.units(self.site).values()
        return {
            "count": torch.zeros(size, dtype=torch.float64),
            "sum": torch.zeros(*size, units, dtype=torch.float64),
            "square": torch.zeros(*size, units, dtype=torch.float64),
        }

    def see(self, state: State, site: Site, x: Tensor, batch: Batch) -> None:
        """Add the tokens of a batch, in double precision: differences of squares lose digits."""
        which, row, done = self._which(batch), self.row(site), 0
        state["count"][row] += which.sum(1).cpu().view_as(state["count"][row])
        for part in batch.rows(x, self.first):
            mine, part = which[:, done : done + len(part)], part.double()
            done += len(part)
            for name, values in (("sum", part), ("square", part.square())):
                state[name][row] += (mine @ values).cpu().view_as(state[name][row])

    def _which(self, batch: Batch) -> Tensor:
        """Ones where a token that counts is of a labelling, half and label: ``[group, token]``."""
        if self not in batch.notes:
            counts = batch.counts(self.first)
            here = torch.arange(batch.first, batch.first + len(batch.tokens))
            truth = self.labels.truth[self.labels.order[:, here]]  # [labelling, batch, pos]
            group = 2 * (here % HALVES)[:, None] + truth.long()
            group = group.to(counts.device)[:, counts]
            each = torch.arange(2 * HALVES, device=group.device)
            batch.notes[self] = (group[:, None] == each[:, None]).double().flatten(0, 1)
        return batch.notes[self]

    def result(self, state: State, shape: Shape) -> xr.Dataset:
        """The sums."""
        dims = ("layer", "labelling", "half", "with")
        (unit,) = shape.units(self.site)
        variables: dict[str, Any] = {"count": (dims, to_numpy(state["count"]))}
        for name in ("sum", "square"):
            variables[name] = ((*dims, unit), to_numpy(state[name]))
        return xr.Dataset(variables, coords=self.coords(shape), attrs={"unit": "activation"})
