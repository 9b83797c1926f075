"""How often units are active."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from mlp_interp.corpus.reducers.base import (
    Batch,
    Shape,
    State,
    add,
    mean_and_error_of_sums,
    pieces,
)
from mlp_interp.corpus.reducers.units import UnitReducer
from mlp_interp.models.indices import finite_number
from mlp_interp.results import to_numpy
from mlp_interp.sites import Site

__all__ = ["Fraction"]


@dataclass(frozen=True, kw_only=True)
class Fraction(UnitReducer):
    """How often an activation is above a threshold: by unit, and by position of the sequence.

    Args:
        above: The threshold; an activation of just this does not count.
        site: As in `SiteReducer`.
        layers: As in `SiteReducer`.
        first: As in `SiteReducer`.
        units: As in `UnitReducer`.

    Its result has ``fraction`` (layer and unit; share of positions), ``by_position`` (layer and
    position; share of units), each with the standard error over sequences ``*_se``, and ``count``.

    Example:
        >>> import torch
        >>> from mlp_interp import load_model
        >>> from mlp_interp.corpus import sweep
        >>> tokens = torch.arange(40).reshape(4, 10)
        >>> found = sweep(load_model("nano"), tokens, Fraction())["fraction.pre"]
        >>> found["fraction"].dims, found["by_position"].dims
        (('layer', 'neuron'), ('layer', 'pos'))
    """

    above: float = 0.0
    takes_padding: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        finite_number("above", self.above)

    def empty(self, shape: Shape) -> State:
        """Counts, and the sums that standard errors need."""
        layers, units = len(self.chosen(shape)), tuple(self.sizes(shape).values())
        positions = self.positions(shape)
        return {
            "sequences": torch.zeros((), dtype=torch.int64),
            "entries": torch.zeros((), dtype=torch.int64),
            "entries_squares": torch.zeros((), dtype=torch.int64),
            "reached": torch.zeros(positions, dtype=torch.int64),
            "count": torch.zeros(layers, *units, dtype=torch.int64),
            "squares": torch.zeros(layers, *units, dtype=torch.int64),
            "by_entries": torch.zeros(layers, *units, dtype=torch.int64),
            "by_position": torch.zeros(layers, positions, dtype=torch.int64),
            "by_position_squares": torch.zeros(layers, positions, dtype=torch.int64),
        }

    def see(self, state: State, site: Site, x: Tensor, batch: Batch) -> None:
        """Count, sequence by sequence."""
        row, done = self.row(site), 0
        entries = batch.counted(self.first).to(x.device)
        x = batch.filled(self.picked(x).flatten(2), -torch.inf, self.first)
        for part in pieces(x):
            # Sums of floats, as products with ones, are several times faster than sums of truth
            # values, and as exact: a sequence has fewer positions, and a layer fewer units, than
            # the 2^24 up to which single precision counts.
            active = torch.gt(part, self.above, out=batch.scratch(part))
            units = (active.new_ones(active.shape[1]) @ active).to(torch.int64)
            positions = (active @ active.new_ones(active.shape[2])).to(torch.int64)
            add(state["count"][row].view(-1), units.sum(0))
            add(state["squares"][row].view(-1), units.square().sum(0))
            each = entries[done : done + len(part), None]
            add(state["by_entries"][row].view(-1), (units * each).sum(0))
            done += len(part)
            add(state["by_position"][row], positions.sum(0))
            add(state["by_position_squares"][row], positions.square().sum(0))

    def finish(self, state: State, batch: Batch) -> None:
        """Count sequences and their tokens."""
        entries = batch.counted(self.first)
        state["sequences"] += len(batch.tokens)
        state["entries"] += entries.sum()
        state["entries_squares"] += entries.square().sum()
        state["reached"] += batch.reached(self.first)

    def result(self, state: State, shape: Shape) -> xr.Dataset:
        """Shares, with standard errors over sequences."""
        units = self.sizes(shape)
        sequences, positions = int(state["sequences"]), self.positions(shape)
        share = {"unit": "fraction of positions"}
        among = {"unit": "fraction of units"}
        size = int(np.prod(list(units.values())))
        by_unit = _share_and_error(state)
        of_layer = state["by_position"], state["by_position_squares"], state["reached"]
        by_position = [found / size for found in mean_and_error_of_sums(*of_layer)]
        dims, places = ("layer", *units), ("layer", "pos")
        variables: dict[str, Any] = {
            "fraction": (dims, by_unit[0], share),
            "fraction_se": (dims, by_unit[1], share),
            "count": (dims, to_numpy(state["count"]), {"unit": "positions"}),
            "by_position": (places, by_position[0], among),
            "by_position_se": (places, by_position[1], among),
        }
        coords = {**self.coords(shape), "pos": np.arange(self.first, shape.length)}
        attrs = {
            "long_name": f"share of activations at {self.site} above {self.above:g}",
            "unit": "fraction",
            "above": self.above,
            "sequences": sequences,
            "positions": positions,
            "entries": int(state["entries"]),
        }
        return xr.Dataset(variables, coords=coords, attrs=attrs)


def _share_and_error(state: State) -> tuple[np.ndarray, np.ndarray]:
    """Share of all tokens, and its standard error: a ratio of sums over sequences."""
    sequences, entries = int(state["sequences"]), max(1, int(state["entries"]))
    count, share = state["count"].double(), state["count"].double() / entries
    # The sum over sequences of (count - share * tokens)^2, times entries^2: of integers, exact.
    spread = entries**2 * state["squares"].double() + count.square() * state["entries_squares"]
    spread -= 2 * entries * count * state["by_entries"].double()
    spread = spread.clamp_min(0) * sequences / max(1, sequences - 1)
    error = spread.sqrt() / entries**2
    if sequences < 2:
        error = torch.full_like(error, torch.nan)
    return to_numpy(share), to_numpy(error)
