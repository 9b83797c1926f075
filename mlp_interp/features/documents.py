"""One number for every document and unit: what documents are told apart by."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import xarray as xr
from torch import Tensor

from mlp_interp.corpus.reducers import Batch, Shape, State, UnitReducer
from mlp_interp.models.options import check_choice
from mlp_interp.results import single, variable
from mlp_interp.sites import Site

__all__ = ["SUMMARIES", "HeadsOfDocuments", "OfDocuments"]

SUMMARIES = ("mean", "max")


@dataclass(frozen=True, kw_only=True)
class OfDocuments(UnitReducer):
    """The mean, or the greatest, activation of every unit in every sequence of a corpus.

    Nothing is summed up over sequences: the state is as large as they are many, four bytes for each
    sequence and unit.

    Args:
        summary: ``"mean"`` or ``"max"``, over the tokens of a sequence that count.
        site: As in `SiteReducer`.
        layers: As in `SiteReducer`.
        first: As in `SiteReducer`.
        units: As in `UnitReducer`.

    Raises:
        ValueError: Another summary, or as `SiteReducer`.

    Example:
        >>> from mlp_interp import load_model
        >>> from mlp_interp.corpus import sweep
        >>> tokens = torch.arange(40).reshape(4, 10)
        >>> found = sweep(load_model("nano"), tokens, OfDocuments(layers=(3,)))
        >>> found["ofdocuments.pre"]["value"].dims
        ('sequence', 'layer', 'neuron')
    """

    summary: str = "mean"
    takes_padding: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("summary", self.summary, SUMMARIES)

    def empty(self, shape: Shape) -> State:
        """Nothing yet: each batch has a name of its own."""
        return {}

    def see(self, state: State, site: Site, x: Tensor, batch: Batch) -> None:
        """Keep one number of every sequence; NaN where none of its tokens counts."""
        x = single(self.picked(x))
        if self.summary == "max":
            value = batch.filled(x, -torch.inf, self.first).amax(1)
        else:
            value = batch.filled(x, 0.0, self.first).sum(1)
            counted = batch.counted(self.first).to(x.device)
            value = value / counted.view(-1, *[1] * (value.ndim - 1))
        value = value.masked_fill(~value.isfinite(), torch.nan).cpu()
        state[f"{self.row(site)} {batch.first}"] = value

    def merge(self, state: State, later: State) -> None:
        """Put side by side."""
        state |= later

    def result(self, state: State, shape: Shape) -> xr.Dataset:
        """Every sequence in its order."""
        layers = []
        for row in range(len(self.chosen(shape))):
            mine = {int(k.split()[1]): v for k, v in state.items() if int(k.split()[0]) == row}
            layers.append(torch.cat([mine[first] for first in sorted(mine)]))
        value = variable(
            ("sequence", "layer", *self.sizes(shape)),
            torch.stack(layers, 1),
            unit="activation",
            long_name=f"{self.summary} over a sequence at {self.site}",
        )
        return xr.Dataset({"value": value}, coords=self.coords(shape))


@dataclass(frozen=True, kw_only=True)
class HeadsOfDocuments(OfDocuments):
    """The same of the length of what every head writes to the stream, ``|z W_O|``, without bias.

    What divides a head's output in a norm behind it (Gemma 2, OLMo 2) is left out.

    Args:
        summary: As in `OfDocuments`.
        layers: As in `SiteReducer`.
        first: As in `SiteReducer`.
    """

    site: str = "z"

    def sizes(self, shape: Shape) -> dict[str, int]:
        """Heads, without the entries of their vectors."""
        return {"head": shape.n_heads}

    def see(self, state: State, site: Site, x: Tensor, batch: Batch) -> None:
        """Keep one number of every sequence, of each head's length."""
        W_O = single(batch.weights.parameter(site.layer or 0, "W_O"))
        gram = W_O @ W_O.mT  # [head, d_head, d_head]: no vector of the stream's width is made
        squares = torch.einsum("bphd,hde,bphe->bph", single(x), gram, single(x))
        super().see(state, site, squares.clamp_min(0).sqrt(), batch)
