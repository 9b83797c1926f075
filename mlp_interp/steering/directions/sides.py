"""Activations of two sets of prompts, for directions from what differs between them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlp_interp.models import Weights
from mlp_interp.models.caches import is_cache
from mlp_interp.models.indices import indices
from mlp_interp.models.protocol import Cache, Model
from mlp_interp.results import to_numpy
from mlp_interp.sites import HEADS
from mlp_interp.steering.directions.activations import (
    Positions,
    Prompts,
    Texts,
    activations,
    activations_in,
    check_positions,
    check_reading,
    check_site,
    texts_of,
)

__all__ = ["Sides"]


class Sides:
    """What is read of positive and negative prompts: checked once, before anything runs."""

    def __init__(
        self,
        model: Model,
        site: str,
        layers: int | Sequence[int] | None,
        heads: int | Sequence[int] | None,
        positions: Any,
        batch_size: int,
        prepend_bos: bool,
    ) -> None:
        """Check site, layers and heads."""
        weights = Weights.of(model)
        check_site(site)
        check_positions(positions)
        if heads is not None and site not in HEADS:
            raise ValueError(f"heads={heads}: site {site!r} has no heads; wanted None")
        self.model, self.site = model, site
        self.positions: Positions = positions
        self.batch_size, self.prepend_bos = batch_size, prepend_bos
        self.layers = indices("layers", layers, weights.n_layers)
        of_heads = site in HEADS
        self.heads = indices("heads", heads, weights.heads_at(site)) if of_heads else None

    def both(
        self, positive: Prompts | Cache, negative: Prompts | Cache, *, paired: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Activations ``[prompt, layer, (head,) d]`` of both sides."""
        given = {"positive": positive, "negative": negative}
        sides = {what: self._checked(prompts, what) for what, prompts in given.items()}
        first, second = (self._read(side) for side in sides.values())
        if paired and len(first) != len(second):
            raise ValueError(
                f"positive has {len(first)} prompts and negative {len(second)}; wanted pairs"
            )
        return first, second

    def _checked(self, prompts: Any, what: str) -> Texts | Cache:
        if is_cache(prompts):
            return prompts
        texts = texts_of(self.model, prompts, what=what, prepend_bos=self.prepend_bos)
        check_reading(texts, self.positions, self.batch_size, what)
        return texts

    def _read(self, side: Texts | Cache) -> np.ndarray:
        where = self.site, self.layers
        if isinstance(side, Texts):
            values = activations(
                self.model, side, *where, positions=self.positions, batch_size=self.batch_size
            )
        else:
            values = activations_in(self.model, side, *where, positions=self.positions)
        return to_numpy(values if self.heads is None else values[:, :, list(self.heads)])
