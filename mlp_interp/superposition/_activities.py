"""What a few neurons do at all tokens, and what comes next there."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import xarray as xr
from jaxtyping import Bool
from torch import Tensor

from mlp_interp.corpus.reducers import Batch, Reducer, Shape, State
from mlp_interp.results import single, to_numpy
from mlp_interp.sites import Site

__all__ = ["Activities"]


@dataclass(frozen=True, kw_only=True)
class Activities(Reducer):
    """What some neurons do at all tokens that have a next one, which is kept too.

    Args:
        chosen: Layers, and which neurons of each.
        first: Position from which on tokens count.
    """

    chosen: tuple[tuple[int, tuple[int, ...]], ...]
    first: int
    takes_padding: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Its name."""
        return "activities"

    def sites(self, shape: Shape) -> tuple[Site, ...]:
        """The neurons of the layers."""
        shape.check_next_token()
        return tuple(Site("post", layer) for layer, _ in self.chosen)

    def empty(self, shape: Shape) -> State:
        """No tokens."""
        found = {f"layer{layer}": torch.zeros(0, len(units)) for layer, units in self.chosen}
        return found | {name: torch.zeros(0, dtype=torch.int64) for name in ("next", "text")}

    def see(self, state: State, site: Site, x: Tensor, batch: Batch) -> None:
        """Keep what counts."""
        units = torch.tensor(dict(self.chosen)[site.layer or 0], device=x.device)
        name, x = f"layer{site.layer}", x.index_select(-1, units)
        state[name] = torch.cat([state[name], single(x[self._counts(batch)]).cpu()])

    def finish(self, state: State, batch: Batch) -> None:
        """Keep the next tokens, and the texts' numbers."""
        counts = self._counts(batch)
        after = batch.tokens.roll(-1, 1)
        texts = torch.arange(len(counts), device=counts.device)[:, None] + batch.first
        new = {"next": after[counts], "text": texts.expand_as(counts)[counts]}
        self.merge(state, {name: value.cpu().long() for name, value in new.items()})

    def merge(self, state: State, later: State) -> None:
        """The tokens one after the other."""
        for name, value in later.items():
            state[name] = torch.cat([state[name], value])

    def result(self, state: State, shape: Shape) -> xr.Dataset:
        """What was kept; the neurons are those of their layer, in the order they were chosen."""
        dims = {f"layer{layer}": ("token", f"neuron{layer}") for layer, _ in self.chosen}
        return xr.Dataset(
            {name: (dims.get(name, ("token",)), to_numpy(v)) for name, v in state.items()}
        )

    def _counts(self, batch: Batch) -> Bool[Tensor, "batch pos"]:
        """Tokens that count and have a next one."""
        counts = batch.counts(self.first).clone()
        counts[:, : self.first] = False
        real = torch.ones_like(counts) if batch.real is None else batch.real
        counts[:, :-1] &= real[:, 1:]
        counts[:, -1] = False
        return counts
