"""Which components a level has, in order, and their coordinates: names made once for each shape."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import overload

import numpy as np
import xarray as xr

from mlp_interp.models import Weights
from mlp_interp.residual.stream import LEVELS
from mlp_interp.sites import Site, component_coords

__all__ = ["Layout", "Units"]


@dataclass(frozen=True)
class Units(Sequence[Site]):
    """All heads (``z``) or neurons (``post``) of a layer; each `Site` is made when looked at."""

    whole: Site
    count: int

    def __len__(self) -> int:
        return self.count

    @overload
    def __getitem__(self, index: int) -> Site: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Site, ...]: ...
    def __getitem__(self, index: int | slice) -> Site | tuple[Site, ...]:
        found = range(self.count)[index]
        return self._unit(found) if isinstance(found, int) else tuple(map(self._unit, found))

    def __iter__(self) -> Iterator[Site]:
        return map(self._unit, range(self.count))

    def _unit(self, index: int) -> Site:
        of_head = self.whole.name == "z"
        head, neuron = (index, None) if of_head else (None, index)
        return Site(self.whole.name, self.whole.layer, head, neuron)


@dataclass(frozen=True)
class Layout:
    """The components of a stream at one level, for models of one shape.

    Equal shapes have equal layouts, so everything that depends on nothing else is computed once.
    """

    level: str
    layers: int
    heads: int
    neurons: int
    pos_embed: bool
    edits: tuple[Site, ...] = ()

    @classmethod
    def of(
        cls,
        weights: Weights,
        level: str,
        layers: int | None = None,
        *,
        edits: tuple[Site, ...] = (),
    ) -> "Layout":
        """The layout of the stream after so many layers (None: all of them), and after edits.

        Raises:
            ValueError: Unknown level.
        """
        if level not in LEVELS:
            raise ValueError(f"level={level!r}; wanted one of {', '.join(map(repr, LEVELS))}")
        layers = weights.n_layers if layers is None else layers
        return cls(level, layers, weights.n_heads, weights.d_mlp, weights.has_pos_embed, edits)

    def runs(self) -> tuple[tuple[Site, Sequence[Site]], ...]:
        """Places in the model, in the order in which they write, each with its components."""
        return _runs(self)

    def coordinates(self) -> xr.Coordinates:
        """Coordinates of a ``component`` dimension that ends with the readout's ``bias``.

        As `mlp_interp.sites.component_coords` gives them, index included. Read-only, for results
        share them.
        """
        return _coordinates(self)


@lru_cache(maxsize=64)
def _runs(layout: Layout) -> tuple[tuple[Site, Sequence[Site]], ...]:
    def alone(name: str, layer: int | None = None) -> tuple[Site, Sequence[Site]]:
        site = Site(name, layer)
        return site, (site,)

    def units(name: str, layer: int, count: int) -> tuple[Site, Sequence[Site]]:
        site = Site(name, layer)
        return site, Units(site, count)

    def edits(name: str, layer: int) -> list[tuple[Site, Sequence[Site]]]:
        return [alone(name, layer)] if Site(name, layer) in layout.edits else []

    runs = [alone("embed")] + ([alone("pos_embed")] if layout.pos_embed else [])
    for layer in range(layout.layers):
        runs += edits("edit:resid_pre", layer)
        if layout.level == "component":
            runs.append(alone("attn_out", layer))
        else:
            runs += [units("z", layer, layout.heads), alone("b_O", layer)]
        if not layout.neurons:
            pass  # attention alone
        elif layout.level == "neuron":
            runs += [units("post", layer, layout.neurons), alone("b_out", layer)]
        else:
            runs.append(alone("mlp_out", layer))
        runs += edits("edit:resid_post", layer)
    return (*runs, *edits("edit:resid_pre", layout.layers))


@lru_cache(maxsize=16)
def _coordinates(layout: Layout) -> xr.Coordinates:
    pieces = [_piece(sites) for _, sites in _runs(layout)]
    pieces.append(component_coords([Site("bias")]))
    coords = {}
    for name in pieces[0]:
        values = np.concatenate([piece[name][1] for piece in pieces])
        values.flags.writeable = False
        coords[name] = ("component", values)
    return xr.Coordinates(coords)


def _piece(sites: Sequence[Site]) -> dict[str, tuple[str, np.ndarray]]:
    """`component_coords`, without making a `Site` for each neuron."""
    first = component_coords(sites[:1])
    if not isinstance(sites, Units):
        return first
    count = len(sites)
    stem = sites[0].label.removesuffix("0")
    index = "head" if sites.whole.name == "z" else "neuron"
    return {
        **{name: (dim, np.repeat(values, count)) for name, (dim, values) in first.items()},
        "component": ("component", np.array([f"{stem}{i}" for i in range(count)])),
        index: ("component", np.arange(count, dtype=np.int64)),
    }
