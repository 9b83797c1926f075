"""Second moments of all pairs of a site's units, exactly mergeable."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import xarray as xr
from torch import Tensor

from mlp_interp.corpus.reducers.base import Batch, Shape, State
from mlp_interp.corpus.reducers.units import UnitReducer
from mlp_interp.results import single, to_numpy
from mlp_interp.sites import Site

__all__ = ["Covariance"]


@dataclass(frozen=True, kw_only=True)
class Covariance(UnitReducer):
    """How the units of a site vary together, in each layer: the keys' statistics of MLP rewriting.

    Both are over the tokens that count: ``covariance``, around the mean, and ``second_moment``,
    around 0 (the C of ROME and MEMIT), which differ by the outer product of ``mean`` with itself.
    Batches are multiplied in single precision around their own mean, and merged in double
    precision, so that a large mean beside a small spread costs no digits.

    It keeps, and each of its two results takes, the square of the number of units in double
    precision for every layer (34 MB for 2,048 neurons); at sites with heads, each head's own.

    Args:
        site: As in `SiteReducer`; by default the neurons' activations, which the MLP's second
            matrix reads.
        layers: As in `SiteReducer`.
        first: As in `SiteReducer`.
        units: As in `UnitReducer`.

    Its result has ``covariance`` and ``second_moment`` over ``layer``, the site's own dims and
    ``other``, ``mean`` without ``other``, divided by the number of tokens, which is ``entries`` in
    `attrs`. Tokens of one text are alike: the error of these numbers is not that of so many draws.

    Raises:
        ValueError: As `UnitReducer`.

    References:
        Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample
        variances", 1979. Meng et al., "Locating and editing factual associations in GPT",
        arXiv:2202.05262, equation 2.

    Example:
        >>> import torch
        >>> from mlp_interp import load_model
        >>> from mlp_interp.corpus import sweep
        >>> tokens = torch.arange(40).reshape(4, 10)
        >>> found = sweep(load_model("nano"), tokens, Covariance(layers=(2,)))["covariance.post"]
        >>> dict(found["second_moment"].sizes)
        {'layer': 1, 'neuron': 768, 'other': 768}
    """

    site: str = "post"
    takes_padding: ClassVar[bool] = True

    def empty(self, shape: Shape) -> State:
        """Number of entries, mean, and products of distances from the mean."""
        layers, sizes = len(self.chosen(shape)), [*self.sizes(shape).values()]
        return {
            "entries": torch.zeros(layers, dtype=torch.int64),
            "mean": torch.zeros(layers, *sizes, dtype=torch.float64),
            "products": torch.zeros(layers, *sizes, sizes[-1], dtype=torch.float64),
        }

    def see(self, state: State, site: Site, x: Tensor, batch: Batch) -> None:
        """Products around the batch's own mean, then merged."""
        rows = single(self.picked(x)[batch.counts(self.first)])
        if not len(rows):
            return
        point = rows.mean(0)  # rounded, so that the rows' mean around it is not quite 0
        rows = rows - point
        mean = point.cpu().double() + rows.mean(0).cpu().double()
        found = {"mean": mean, "products": _products(rows).cpu().double()}
        _merge({k: v[self.row(site)] for k, v in state.items()}, len(rows), found)

    def merge(self, state: State, later: State) -> None:
        """The formula of Chan, Golub and LeVeque."""
        for row, entries in enumerate(later["entries"].tolist()):
            theirs = {k: later[k][row] for k in ("mean", "products")}
            _merge({k: v[row] for k, v in state.items()}, entries, theirs)

    def result(self, state: State, shape: Shape) -> xr.Dataset:
        """Means over all entries."""
        units = self.sizes(shape)
        mean = state["mean"]
        entries = state["entries"].view(-1, *[1] * (1 + len(units)))
        covariance = state["products"] / entries
        dims = ("layer", *units)
        square = {"unit": "activation squared"}
        variables: dict[str, Any] = {
            "mean": (dims, to_numpy(mean), {"unit": "activation"}),
            "covariance": ((*dims, "other"), to_numpy(covariance), square),
            "second_moment": ((*dims, "other"), to_numpy(covariance + _outer(mean)), square),
        }
        coords = self.coords(shape)
        if self.units is not None:
            coords["other"] = list(self.units)
        attrs = {
            "long_name": f"how units vary together at {self.site}",
            "unit": "activation squared",
            "entries": int(state["entries"][0]),
        }
        return xr.Dataset(variables, coords, attrs)


def _products(rows: Tensor) -> Tensor:
    """Sums over tokens of the products of all pairs of units (of one head)."""
    if rows.ndim == 2:
        return rows.T @ rows
    return rows.permute(1, 2, 0) @ rows.permute(1, 0, 2)


def _outer(x: Tensor) -> Tensor:
    return x[..., :, None] * x[..., None, :]


def _merge(state: dict[str, Tensor], entries: int, later: dict[str, Tensor]) -> None:
    """Add the moments of `entries` more entries to those of one layer, in place."""
    if not entries:
        return
    before = int(state["entries"])
    share = entries / (before + entries)
    delta = later["mean"] - state["mean"]
    state["products"] += later["products"] + before * share * _outer(delta)
    state["mean"] += share * delta
    state["entries"] += entries
