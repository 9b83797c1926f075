"""What a sweep sums up of the layers' predictions, sequence by sequence."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.corpus.reducers import Batch, Reducer, Shape, State
from mlp_interp.corpus.reducers.base import mean_and_error_of_sums
from mlp_interp.lens.columns import Columns
from mlp_interp.lens.decoding import Decoded
from mlp_interp.lens.distributions import Distributions, rows_at_once
from mlp_interp.lens.lens import Lens
from mlp_interp.metrics.rows import next_tokens
from mlp_interp.results import to_numpy
from mlp_interp.sites import Site

__all__ = ["EACH", "QUANTILES", "LensMeans"]

EACH = ("kl_output", "kl_input", "entropy", "agrees", "logp_next", "logp_output", "logp_input")
"""What is averaged, with errors."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

_DECADES = (-9, 7)
_A_DECADE = 100
"""Bins of the histograms of KLs and ranks: quantiles are right to 2.3% of themselves."""

_RANKS = ("next", "output", "input")

_SUMMED = ("bins.", "positions.")


@dataclass(frozen=True, kw_only=True)
class LensMeans(Reducer):
    """What one lens reads, as means over each sequence.

    Args:
        lens: The lens.
        named: Tells it from others (`Lens.digest`).
        layers: Which layers it reads.
        first: Position from which on tokens count.
        by_position: Whether means at each position are wanted, beside those over positions.
    """

    lens: Lens = field(repr=False, compare=False)
    named: str
    layers: tuple[int, ...]
    first: int = 1
    by_position: bool = False
    wants_final: bool = True
    takes_padding: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The lens."""
        return f"lens.{self.named}"

    def sites(self, shape: Shape) -> tuple[Site, ...]:
        """The stream at every block's input."""
        return tuple(Site("resid_pre", layer) for layer in range(shape.n_layers))

    def empty(self, shape: Shape) -> State:
        """No sequences, and empty histograms."""
        bins = (_DECADES[1] - _DECADES[0]) * _A_DECADE + 2
        names = ("kl_output", *(f"rank_{name}" for name in _RANKS))
        size = len(self.layers), bins
        state = {f"bins.{name}": torch.zeros(size, dtype=torch.int64) for name in names}
        if self.by_position:  # numbers, their sum and that of their squares
            size = 3, len(self.layers), shape.length
            state |= {f"positions.{n}": torch.zeros(size, dtype=torch.float64) for n in EACH}
        return state

    def see(self, state: State, site: Site, x: Tensor, batch: Batch) -> None:
        """Keep a stream until the final one is there."""
        batch.notes["stream", site.layer] = x

    def finish(self, state: State, batch: Batch) -> None:
        """Read a batch."""
        unembed, n_layers = batch.readout(), batch.weights.n_layers
        final = batch.final
        if final is None:
            raise ValueError("the final stream is not there; wanted wants_final")
        streams = [*(batch.notes["stream", layer] for layer in range(n_layers)), final]
        columns = Columns.of(self.layers, n_layers, self.lens.ahead)
        decoded = Decoded.of(
            batch.forward, unembed, self.lens, streams, sorted({*columns.layers, n_layers})
        )
        counts = batch.counts(self.first).clone()
        real = torch.ones_like(counts) if batch.real is None else batch.real
        ahead = self.lens.ahead
        counts[:, counts.shape[1] - ahead :] = False
        counts[:, : counts.shape[1] - ahead] &= real[:, ahead:]
        following = next_tokens(batch.tokens, batch.real)
        text, pos = counts.nonzero(as_tuple=True)
        sums: dict[str, Tensor] = {}
        for some in torch.arange(len(text)).split(rows_at_once(unembed, len(columns))):
            rows = text[some], pos[some]
            ids = {"next": following[rows[0], rows[1] + ahead], "input": batch.tokens[rows]}
            known = {name: (0 <= x) & (x < unembed.d_vocab) for name, x in ids.items()}
            targets = {name: torch.where(known[name], x, 0) for name, x in ids.items()}
            found = columns.read(unembed, decoded, rows, targets, every=True)
            numbers = _numbers(found, known, list(columns.shown))
            for name, values in numbers.items():
                held = sums.setdefault(
                    name, values.new_full((*values.shape[:-1], *counts.shape), torch.nan)
                )
                held[..., rows[0], rows[1]] = values
        self.merge(state, {name: x.nanmean(-1).cpu() for name, x in sums.items()})
        for name, held in state.items():
            kind, _, what = name.rpartition(".")
            if kind == "bins":
                values = sums[what].flatten(1).cpu()
                held.scatter_add_(1, _bins(values), (~values.isnan()).long())
            elif kind == "positions":
                values = sums[what].double().cpu()
                x = values.nan_to_num()
                powers = torch.stack([(~values.isnan()).double(), x, x.square()])
                held[..., : values.shape[-1]] += powers.sum(2)

    def merge(self, state: State, later: State) -> None:
        """The sequences one after the other; histograms add up."""
        for name, value in later.items():
            if name.startswith(_SUMMED):
                state[name] += value
            else:
                state[name] = torch.cat([state[name], value], -1) if name in state else value

    def result(self, state: State, shape: Shape) -> xr.Dataset:
        """Along ``layer`` (and ``other``) and ``sequence``, and quantiles of histograms."""
        found: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
        for name, value in state.items():
            if name.startswith("bins."):
                what = name.removeprefix("bins.")
                points = _quantiles(value, ranks=what.startswith("rank"))
                found[f"{what}_quantile"] = (("layer", "quantile"), points)
            elif name.startswith("positions."):
                what = name.removeprefix("positions.")
                count, total, squares = value[..., self.first :]
                mean, error = mean_and_error_of_sums(total, squares, count)
                found[f"{what}_by_position"] = (("layer", "pos"), mean)
                found[f"{what}_by_position_se"] = (("layer", "pos"), error)
            else:
                dims = ("layer", "other", "sequence") if value.ndim == 3 else ("layer", "sequence")
                found[name] = (dims, to_numpy(value))
        layers = list(self.layers)
        coords = {"layer": layers, "other": layers, "quantile": list(QUANTILES)}
        if self.by_position:
            coords["pos"] = list(range(self.first, shape.length))
        return xr.Dataset(found, coords=coords)


def _numbers(
    found: Distributions, known: Mapping[str, Tensor], shown: list[int]
) -> dict[str, Float[Tensor, "... row"]]:
    """What is averaged, of the layers that are shown."""
    top = found.top[shown, :, 0]
    numbers = {
        "kl_output": found.kl[-1, shown],
        "kl_input": found.kl[0, shown],
        "entropy": found.entropy[shown],
        "agrees": (top == found.top[-1, :, 0]).double(),
        "kl_pairs": found.kl[shown][:, shown],
        "agreement_pairs": (top[:, None] == top).double(),
    }
    for name in _RANKS:
        there = known.get(name, torch.ones_like(top[0], dtype=torch.bool))
        logp = (found.logits[name] - found.total)[shown]
        numbers[f"logp_{name}"] = logp.masked_fill(~there, torch.nan)
        numbers[f"rank_{name}"] = found.ranks[name][shown].double().masked_fill(~there, torch.nan)
    return numbers


def _bins(values: Float[Tensor, "layer token"]) -> Int[Tensor, "layer token"]:
    """Where numbers belong in a histogram with bins of equal ratios; 0 is for what is below."""
    low, high = _DECADES
    place = (values.nan_to_num().clamp_min(10.0 ** (low - 1)).log10() - low) * _A_DECADE
    return (place.floor().long() + 1).clamp(0, (high - low) * _A_DECADE + 1)


def _quantiles(bins: Int[Tensor, "layer bin"], *, ranks: bool) -> np.ndarray:
    """Quantiles of a histogram: the middle of the bin, for ranks the whole number in it."""
    total = bins.sum(-1, keepdim=True).clamp_min(1)
    below = bins.cumsum(-1) / total
    at = torch.stack([(below < q).sum(-1).clamp_max(bins.shape[1] - 1) for q in QUANTILES], -1)
    middle = 10.0 ** (_DECADES[0] + (at.double() - 0.5) / _A_DECADE)
    middle = torch.where(at == 0, 0.0, middle)
    return to_numpy(middle.round() if ranks else middle)
