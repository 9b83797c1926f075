"""Which cells a grid of patches has, and what is asked for in vain."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from mlp_interp.models import Weights
from mlp_interp.models.indices import distinct, indices
from mlp_interp.sites import FAMILIES, Family, did_you_mean, head_grid_coords

__all__ = ["Cell", "Grid", "Positions", "grid_of", "positions_of"]

Positions = Literal["each", "all"] | int | Sequence[int]
_WINDOWED = ("attn_out", "mlp_out")


class Cell(NamedTuple):
    """One patch: a site, a layer, a head or neuron (None for streams), a position (None for all).

    `where` is its place in the array of results.
    """

    where: tuple[int, ...]
    site: str
    layer: int
    unit: int | None
    position: int | None


@dataclass(frozen=True)
class Grid:
    """The axes of a grid of patches.

    Attributes:
        family: What kind of sites.
        sites: Site names.
        layers: Layers, or the middles of windows of layers.
        units: Heads or neurons; None where the sites have none.
        positions: Positions that are patched one at a time; None if all are patched together.
        length: Tokens of each prompt.
        window: How many layers are patched together.
        n_layers: Layers of the model.
    """

    family: Family
    sites: tuple[str, ...]
    layers: tuple[int, ...]
    units: tuple[int, ...] | None
    positions: tuple[int, ...] | None
    length: int
    window: int
    n_layers: int

    @property
    def axes(self) -> dict[str, Sequence[str] | Sequence[int]]:
        """Dimensions of the result in order, with their coordinates."""
        axes: dict[str, Sequence[str] | Sequence[int]] = {"site": self.sites, "layer": self.layers}
        if self.units is not None:
            axes[self.family] = self.units
        if self.positions is not None:
            axes["pos"] = self.positions
        return axes

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        return tuple(len(values) for values in self.axes.values())

    def coords(self) -> dict[str, Any]:
        """Coordinates of the cells; heads are named as components too."""
        coords = {name: (name, np.array(values)) for name, values in self.axes.items()}
        if self.family == "head" and self.units is not None:
            coords |= head_grid_coords(self.layers, self.units)
        return coords

    def cells(self) -> Iterator[Cell]:
        """Every patch, in the order of the result."""
        for where in np.ndindex(self.shape):
            places = iter(where[2:])
            yield Cell(
                where,
                self.sites[where[0]],
                self.layers[where[1]],
                None if self.units is None else self.units[next(places)],
                None if self.positions is None else self.positions[next(places)],
            )

    def window_at(self, layer: int) -> range:
        """The layers patched together around `layer`: of an even number, more lie below it."""
        first = layer - self.window // 2
        return range(max(0, first), min(self.n_layers, first + self.window))


def grid_of(
    weights: Weights,
    sites: str | Sequence[str],
    *,
    length: int,
    positions: Positions | str | None = None,
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
    neurons: int | Sequence[int] | None = None,
    window: int = 1,
) -> Grid:
    """Check what is asked for and lay out its grid.

    Raises:
        ValueError: Sites that do not exist or do not share their axes; layers, heads, neurons or
            positions that the model or the prompts lack; a window where there can be none.
    """
    chosen = distinct("sites", sites)
    family = _family(chosen)
    weights.check_names(chosen, argument="sites")
    n_layers = weights.n_layers
    if (
        not isinstance(window, int)
        or window < 1
        or (window > 1 and not set(chosen) <= set(_WINDOWED))
    ):
        raise ValueError(
            f"window={window} for sites={list(chosen)}; wanted at least 1, and 1 unless the sites "
            f"are {' or '.join(_WINDOWED)}"
        )
    counts = {weights.heads_at(name) for name in chosen}
    if family == "head" and len(counts) > 1:
        raise ValueError(
            f"sites={list(chosen)}: keys and values have {min(counts)} heads and the others "
            f"{max(counts)}, which share them; wanted sites of one of these kinds a call"
        )
    units = {
        "stream": None,
        "head": indices("heads", heads, max(counts)),
        "neuron": indices("neurons", neurons, weights.d_mlp),
    }
    for name, given, belongs in (("heads", heads, "head"), ("neurons", neurons, "neuron")):
        if given is not None and family != belongs:
            raise ValueError(f"{name}={given}: sites={list(chosen)} have no {name}")
    return Grid(
        family=family,
        sites=chosen,
        layers=indices("layers", layers, n_layers),
        units=units[family],
        positions=_positions(positions, family, length),
        length=length,
        window=window,
        n_layers=n_layers,
    )


def _family(names: tuple[str, ...]) -> Family:
    for family, members in FAMILIES.items():
        if names and set(names) <= set(members):
            return family
    wanted = "; or ".join(", ".join(members) for members in FAMILIES.values())
    known = [name for members in FAMILIES.values() for name in members]
    near = next((did_you_mean(name, known) for name in names if name not in known), "")
    raise ValueError(
        f"sites={list(names)}{near}; wanted some of {wanted}, of one of these kinds a call"
    )


def _positions(
    positions: Positions | str | None, family: Family, length: int
) -> tuple[int, ...] | None:
    if positions is None:
        positions = "each" if family == "stream" else "all"
    return positions_of(positions, length)


def positions_of(
    positions: Positions | str,
    length: int,
    *,
    name: str = "positions",
    words: Sequence[str] = ("each", "all"),
) -> tuple[int, ...] | None:
    """Positions that are exchanged one at a time, counted from 0; None for all together.

    Args:
        positions: Which.
        length: Positions of the prompts.
        name: Of the argument, for errors.
        words: Those that may stand for positions.

    Raises:
        ValueError: Another word, or positions that the prompts lack.
    """
    if isinstance(positions, str):
        if positions not in words:
            wanted = " or ".join(map(repr, words))
            raise ValueError(f"{name}={positions!r}; wanted {wanted}, or a list of positions")
        return tuple(range(length)) if positions == "each" else None
    return indices(name, positions, length)
