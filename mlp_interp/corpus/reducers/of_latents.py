"""`OfLatents`: any reducer of neurons, shown a dictionary's latents in their place."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import xarray as xr
from torch import Tensor

from mlp_interp.corpus.reducers.base import Batch, Reducer, Shape, State
from mlp_interp.corpus.reducers.examples import BandExamples
from mlp_interp.corpus.reducers.units import UnitReducer
from mlp_interp.dictionaries import Dictionary, Latents, Reading
from mlp_interp.models import Weights
from mlp_interp.sites import Site

__all__ = ["OfLatents"]

_NUMBERS = 2**24  # activations of latents that are written out at a time


@dataclass(frozen=True, kw_only=True, repr=False)
class OfLatents(Reducer):
    """What a reducer sums up of neurons, of the latents of a dictionary.

    Tokens are encoded once for all reducers of one dictionary. All latents are written out for a
    few sequences at a time, zeros included: time grows with tokens times latents, as that of a
    sweep of so many neurons; of some latents, it is theirs alone.

    Attributes:
        dictionary: The dictionary.
        inner: A reducer of ``post`` in its layer.
        places: What it reads, see `of`.
        latents: Which; None for all. To `inner` they are neurons counted from 0.
    """

    dictionary: Dictionary
    inner: UnitReducer | BandExamples
    places: tuple[Site, ...]
    latents: tuple[int, ...] | None = None
    takes_padding: ClassVar[bool] = True

    @classmethod
    def of(
        cls,
        weights: Weights,
        dictionary: Dictionary,
        inner: UnitReducer | BandExamples,
        latents: Sequence[int] | None = None,
    ) -> "OfLatents":
        """With the places that the dictionary reads in a model."""
        wanted = Reading(weights, [dictionary]).wanted
        places = tuple(Site(*place) for place in sorted(wanted)) or (dictionary.site,)
        some = None if latents is None else tuple(latents)
        return cls(dictionary=dictionary, inner=inner, places=places, latents=some)

    def __repr__(self) -> str:
        """With the fingerprint of the dictionary: what is kept of a sweep is found by it."""
        of = "all" if self.latents is None else list(self.latents)
        return f"OfLatents({self.inner!r}, dictionary={self.dictionary.fingerprint}, latents={of})"

    @property
    def name(self) -> str:
        """That of the reducer, after the dictionary's layer."""
        return f"{self.dictionary.layer}.latents.{self.inner.name}"

    def _shape(self, shape: Shape) -> Shape:
        few = self.dictionary.n_latents if self.latents is None else len(self.latents)
        return replace(shape, d_mlp=few)

    def resolved(self, shape: Shape) -> "OfLatents":
        """With the inner reducer resolved."""
        inner: Any = self.inner.resolved(self._shape(shape))
        return replace(self, inner=inner)

    def sites(self, shape: Shape) -> tuple[Site, ...]:
        """What the dictionary reads."""
        self.inner.sites(self._shape(shape))  # refuses what it cannot do
        return self.places

    def empty(self, shape: Shape) -> State:
        """That of the inner reducer."""
        return self.inner.empty(self._shape(shape))

    def see(self, state: State, site: Site, x: Tensor, batch: Batch) -> None:
        """Encode once all is there, and show it."""
        latents = self._encoded(site, x, batch)
        if latents is None:
            return
        place = Site("post", self.dictionary.layer)
        for part, some in self._parts(batch, latents):
            self.inner.see(state, place, some, part)

    def finish(self, state: State, batch: Batch) -> None:
        """As the inner reducer does."""
        self.inner.finish(state, batch)

    def merge(self, state: State, later: State) -> None:
        """As the inner reducer does."""
        self.inner.merge(state, later)

    def result(self, state: State, shape: Shape) -> xr.Dataset:
        """That of the inner reducer, along ``latent``, without ``layer``."""
        found = self.inner.result(state, self._shape(shape))
        if "layer" in found.dims:
            found = found.isel(layer=0, drop=True)
        if "neuron" not in found.dims:
            return found
        chosen = range(found.sizes["neuron"]) if self.latents is None else self.latents
        return found.rename(neuron="latent").assign_coords(latent=list(chosen))

    def _encoded(self, site: Site, x: Tensor, batch: Batch) -> Latents | None:
        """All latents of a batch, as soon as the last place that they read is seen."""
        done = ("latents", id(self.dictionary))
        if done not in batch.notes:
            seen = batch.notes.setdefault(("places", id(self.dictionary)), {})
            seen[site.name, site.layer] = x
            if len(seen) < len(self.places):
                return None
            reading = Reading(batch.weights, [self.dictionary])
            for (name, layer), value in seen.items():
                reading.note(name, layer, value)
            batch.notes[done] = self.dictionary.encode(reading.read(self.dictionary, x))
        return batch.notes[done]

    def _parts(self, batch: Batch, latents: Latents) -> Iterator[tuple[Batch, Tensor]]:
        """A few sequences at a time, with their activations ``[batch, pos, latent]``."""
        few = self.dictionary.n_latents if self.latents is None else len(self.latents)
        size = max(1, _NUMBERS // (few * batch.tokens.shape[1]))
        for start in range(0, len(batch.tokens), size):
            rows = slice(start, start + size)
            here = latents.at((rows,))
            some = here.dense() if self.latents is None else here.of(self.latents)
            real = None if batch.real is None else batch.real[rows]
            part = replace(
                batch, tokens=batch.tokens[rows], first=batch.first + start, real=real, notes={}
            )
            yield part, torch.as_tensor(some)
