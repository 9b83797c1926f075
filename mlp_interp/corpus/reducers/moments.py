"""Means, variances and higher moments, exactly mergeable."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import xarray as xr
from torch import Tensor

from mlp_interp.corpus.reducers.base import Batch, Shape, SiteReducer, State, pieces
from mlp_interp.corpus.reducers.units import UnitReducer
from mlp_interp.results import to_numpy
from mlp_interp.sites import Site

__all__ = ["Mean", "Moments"]

# Numbers whose moments are taken together: half of what else stays in the cache, as it is twice
# there.
_TOGETHER = 2**17
# Stretches whose moments are held until they are merged.
_JOINED = 32


@dataclass(frozen=True, kw_only=True)
class Moments(UnitReducer):
    """Mean, standard deviation, skewness, excess kurtosis, least and greatest of every unit.

    Central moments are kept in double precision and merged by the formulas of Chan and Pébay, so
    that a large mean beside a small spread costs no digits.

    Args:
        order: The highest moment: 2, 3 (with skewness) or 4 (with excess kurtosis).
        site: As in `SiteReducer`.
        layers: As in `SiteReducer`.
        first: As in `SiteReducer`.
        units: As in `UnitReducer`.

    Raises:
        ValueError: Another order, or as `SiteReducer`.

    References:
        Pébay, "Formulas for robust, one-pass parallel computation of covariances and arbitrary-
        order statistical moments", Sandia report SAND2008-6212, 2008.

    Example:
        >>> import torch
        >>> from mlp_interp import load_model
        >>> from mlp_interp.corpus import sweep
        >>> tokens = torch.arange(40).reshape(4, 10)
        >>> found = sweep(load_model("nano"), tokens, Moments(site="mlp_out"))["moments.mlp_out"]
        >>> sorted(found.data_vars), found["mean"].dims
        (['greatest', 'least', 'mean', 'std'], ('layer', 'd_model'))
    """

    order: int = 2
    takes_padding: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (2, 3, 4):
            raise ValueError(f"order={self.order}; wanted 2, 3 or 4")

    def empty(self, shape: Shape) -> State:
        """Number of entries, mean, and sums of powers of the distance from the mean."""
        size = (len(self.chosen(shape)), *self.sizes(shape).values())
        sums = {f"m{power}": torch.zeros(size, dtype=torch.float64) for power in self._powers}
        return {
            "entries": torch.zeros(size[0], dtype=torch.int64),
            "mean": torch.zeros(size, dtype=torch.float64),
            **sums,
            "least": torch.full(size, torch.inf, dtype=torch.float64),
            "greatest": torch.full(size, -torch.inf, dtype=torch.float64),
        }

    def see(self, state: State, site: Site, x: Tensor, batch: Batch) -> None:
        """Moments of the batch around its own mean, then merged."""
        mine = {name: value[self.row(site)] for name, value in state.items()}
        found: list[dict[str, Tensor]] = []
        for rows in batch.rows(self.picked(x), self.first, numbers=_TOGETHER):
            if len(rows):
                found.append({"entries": torch.tensor(len(rows)), **self._moments(rows, batch)})
            if len(found) == _JOINED:
                _merge(mine, _joined(_stacked(found)))
                found = []
        if found:
            _merge(mine, _joined(_stacked(found)))

    def merge(self, state: State, later: State) -> None:
        """The moments of both."""
        for row in range(len(state["entries"])):
            _merge({k: v[row] for k, v in state.items()}, {k: v[row] for k, v in later.items()})

    def _moments(self, rows: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Of some tokens, around their own mean."""
        found = {"mean": rows.mean(0), "least": rows.amin(0), "greatest": rows.amax(0)}
        distance = torch.sub(rows, found["mean"], out=batch.scratch(rows, rows.dtype))
        # The highest power may take the distances' place: memory written once is written fast.
        into = distance if self.order == 2 else batch.scratch(rows, rows.dtype, slot=1)
        power = torch.mul(distance, distance, out=into)
        found["m2"] = power.sum(0)
        for order in self._powers[1:]:
            found[f"m{order}"] = power.mul_(distance).sum(0)
        return found

    def result(self, state: State, shape: Shape) -> xr.Dataset:
        """Moments over all entries; the standard deviation divides by their number less one."""
        units = self.sizes(shape)
        n = state["entries"].double().view(-1, *[1] * len(units))
        variance = state["m2"] / n
        found: dict[str, Tensor] = {
            "mean": state["mean"],
            "std": (state["m2"] / (n - 1)).sqrt(),
            "least": state["least"],
            "greatest": state["greatest"],
        }
        if self.order > 2:
            found["skewness"] = state["m3"] / n / variance**1.5
        if self.order > 3:
            found["kurtosis"] = state["m4"] / n / variance.square() - 3
        pure = ("skewness", "kurtosis")
        variables: dict[str, Any] = {
            name: (
                ("layer", *units),
                to_numpy(value),
                {"unit": "none" if name in pure else "activation"},
            )
            for name, value in found.items()
        }
        attrs = {
            "long_name": f"moments of activations at {self.site}",
            "unit": "activation",
            "entries": int(state["entries"][0]),
        }
        return xr.Dataset(variables, coords=self.coords(shape), attrs=attrs)

    @property
    def _powers(self) -> range:
        return range(2, self.order + 1)


@dataclass(frozen=True, kw_only=True)
class Mean(SiteReducer):
    """Mean activation, over everything or at each position: what a mean ablation puts in.

    Args:
        by_position: Keep the positions of the sequences apart.
        site: As in `SiteReducer`.
        layers: As in `SiteReducer`.
        first: As in `SiteReducer`.

    Example:
        >>> import torch
        >>> from mlp_interp import load_model
        >>> from mlp_interp.corpus import sweep
        >>> tokens = torch.arange(40).reshape(4, 10)
        >>> found = sweep(load_model("nano"), tokens, Mean(site="z", by_position=True))["mean.z"]
        >>> found["mean"].dims
        ('layer', 'pos', 'head', 'd_head')
    """

    by_position: bool = False
    takes_padding: ClassVar[bool] = True

    def empty(self, shape: Shape) -> State:
        """Sums in double precision."""
        places = (self.positions(shape),) if self.by_position else ()
        size = (len(self.chosen(shape)), *places, *shape.units(self.site).values())
        return {
            "entries": torch.zeros(places, dtype=torch.int64),
            "sum": torch.zeros(size, dtype=torch.float64),
        }

    def see(self, state: State, site: Site, x: Tensor, batch: Batch) -> None:
        """Add up."""
        row = self.row(site)
        for part in pieces(batch.filled(x, 0.0, self.first)):
            value = part.sum(0, dtype=torch.float64) if self.by_position else part.sum(1).double()
            state["sum"][row] += value.cpu() if self.by_position else value.sum(0).cpu()

    def finish(self, state: State, batch: Batch) -> None:
        """Count the tokens."""
        reached = batch.reached(self.first)
        state["entries"] += reached if self.by_position else reached.sum()

    def result(self, state: State, shape: Shape) -> xr.Dataset:
        """The mean."""
        units = shape.units(self.site)
        places = ("pos",) if self.by_position else ()
        dims = ("layer", *places, *units)
        entries = state["entries"].view(*state["entries"].shape, *[1] * len(units))
        mean = to_numpy(state["sum"] / entries)
        coords = self.coords(shape)
        if self.by_position:
            coords["pos"] = list(range(self.first, shape.length))
        attrs = {"long_name": f"mean activation at {self.site}", "unit": "activation"}
        return xr.Dataset({"mean": (dims, mean, {"unit": "activation"})}, coords, attrs)


def _stacked(stretches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Those of several stretches along a first axis, on the CPU."""
    return {name: torch.stack([each[name] for each in stretches]).cpu() for name in stretches[0]}


def _joined(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Moments of several stretches, one after another along the first axis, as those of all."""
    entries, least, greatest = parts["entries"].sum(), parts["least"], parts["greatest"]
    n = parts["entries"].double().view(-1, *[1] * (least.ndim - 1))
    own = {name: x.double() for name, x in parts.items() if name.startswith("m")}
    mean = (n * own["mean"]).sum(0) / entries
    # How far the mean of each lies from that of all.
    delta = own["mean"] - mean
    found = {"entries": entries, "mean": mean}
    found["m2"] = (own["m2"] + n * delta**2).sum(0)
    if "m3" in own:
        found["m3"] = (own["m3"] + 3 * delta * own["m2"] + n * delta**3).sum(0)
    if "m4" in own:
        terms = 4 * delta * own["m3"] + 6 * delta**2 * own["m2"] + n * delta**4
        found["m4"] = (own["m4"] + terms).sum(0)
    return found | {"least": least.amin(0).double(), "greatest": greatest.amax(0).double()}


def _merge(state: dict[str, Tensor], later: dict[str, Tensor]) -> None:
    """Add the moments of further entries to those of one layer, in place."""
    if later["entries"]:
        both = {name: torch.stack((value, later[name])) for name, value in state.items()}
        for name, value in _joined(both).items():
            state[name].copy_(value)
