"""The mean activation at each token of the vocabulary."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from mlp_interp.corpus.reducers.base import Batch, Shape, SiteReducer, State
from mlp_interp.results import single, to_numpy
from mlp_interp.sites import Site

__all__ = ["TokenMeans"]


@dataclass(frozen=True, kw_only=True)
class TokenMeans(SiteReducer):
    """What is at a site on the average where each token stands, and how often it stands somewhere.

    It keeps sums of ``layers x d_vocab x size of the site`` numbers, so that of large models only
    some layers fit into memory.

    Args:
        site: As in `SiteReducer`; by default the stream that enters a block.
        layers: As in `SiteReducer`.
        first: As in `SiteReducer`.

    Its result has ``mean`` over ``layer token`` and the site's own dims, NaN for tokens that never
    stood anywhere, and ``count`` over ``token``.

    Example:
        >>> import torch
        >>> from mlp_interp import load_model
        >>> from mlp_interp.corpus import sweep
        >>> tokens = torch.arange(40).reshape(4, 10)
        >>> found = sweep(load_model("nano"), tokens, TokenMeans(layers=(1,)))
        >>> found = found["tokenmeans.resid_pre"]
        >>> found["mean"].dims, int(found["count"].sum())
        (('layer', 'token', 'd_model'), 40)
    """

    site: str = "resid_pre"
    takes_padding: ClassVar[bool] = True

    def empty(self, shape: Shape) -> State:
        """Sums, one row a token."""
        size = (len(self.chosen(shape)), shape.d_vocab, *shape.units(self.site).values())
        counts = torch.zeros(shape.d_vocab, dtype=torch.int64)
        return {"sum": torch.zeros(size), "count": counts}

    def see(self, state: State, site: Site, x: Tensor, batch: Batch) -> None:
        """Add each activation to its token's sum."""
        counts = batch.counts(self.first)
        rows, at = single(x[counts]), batch.tokens[counts]
        state["sum"][self.row(site)].index_add_(0, at.cpu(), rows.cpu())

    def finish(self, state: State, batch: Batch) -> None:
        """Count the tokens."""
        state["count"] += (
            batch.tokens[batch.counts(self.first)].cpu().bincount(minlength=len(state["count"]))
        )

    def result(self, state: State, shape: Shape) -> xr.Dataset:
        """The means."""
        units = shape.units(self.site)
        count = state["count"].view(-1, *[1] * len(units))
        unit = {"unit": "activation"}
        variables: dict[str, Any] = {
            "mean": (("layer", "token", *units), to_numpy(state["sum"] / count), unit),
            "count": ("token", to_numpy(state["count"]), {"unit": "tokens"}),
        }
        coords = {**self.coords(shape), "token": np.arange(shape.d_vocab)}
        attrs = {"long_name": f"mean activation at {self.site}, by token", "unit": "activation"}
        return xr.Dataset(variables, coords, attrs)
