"""Reducers that can look at some of the units of a site only."""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from mlp_interp.corpus.reducers.base import Shape, SiteReducer
from mlp_interp.models.indices import indices
from mlp_interp.sites import HEADS

__all__ = ["UnitReducer"]


@dataclass(frozen=True, kw_only=True)
class UnitReducer(SiteReducer):
    """A reducer of all units of a site, or of some: then time and memory are theirs alone.

    Args:
        units: Which neurons (at ``pre`` and ``post``) or entries of the vectors, negative ones from
            the last; None for all.
        site: As in `SiteReducer`.
        layers: As in `SiteReducer`.
        first: As in `SiteReducer`.

    Raises:
        ValueError: Units at a site with heads, or as `SiteReducer`; from `sweep`, units that the
            site has not or that are named twice.
    """

    units: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.units is None:
            return
        object.__setattr__(self, "units", tuple(self.units))
        if self.site in HEADS:
            raise ValueError(f"units={self.units} at site={self.site!r}; wanted None: it has heads")

    def resolved(self, shape: Shape) -> SiteReducer:
        """With layers and units counted from 0."""
        if self.units is None:
            return super().resolved(shape)
        (size,) = shape.units(self.site).values()
        counted = replace(self, units=indices("units", self.units, size))
        return SiteReducer.resolved(counted, shape)

    def sizes(self, shape: Shape) -> dict[str, int]:
        """Dims of the units that are looked at, with their sizes."""
        found = shape.units(self.site)
        return found if self.units is None else dict.fromkeys(found, len(self.units))

    def picked(self, x: Tensor) -> Tensor:
        """The units that are looked at."""
        return x if self.units is None else x[..., list(self.units)]

    def coords(self, shape: Shape) -> dict[str, Any]:
        """Coordinates of the layers, and of the units where they are chosen."""
        chosen = () if self.units is None else self.sizes(shape)
        return {**super().coords(shape), **{name: list(self.units or ()) for name in chosen}}
