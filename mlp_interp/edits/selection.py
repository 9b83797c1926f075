"""Which entries of an activation are selected, also where only a stretch of a text is run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.sites import Site

__all__ = ["Region", "Selection", "axes", "region"]

_INDEXED = {"pos": "positions", "head": "units", "neuron": "units", "source": "keys"}


def axes(site: Site) -> dict[str, int]:
    """Axis of an activation's positions, of its units and of its keys, where it has them.

    Example:
        >>> axes(Site("pattern", 1)), axes(Site("mlp_out", 1))
        ({'units': 1, 'positions': 2, 'keys': 3}, {'positions': 1})
    """
    return {_INDEXED[word]: n for n, word in enumerate(site.axes) if word in _INDEXED}


@dataclass(frozen=True)
class Selection:
    """The selected entries of the activation of a stretch of a text.

    Attributes:
        shape: Shape of what is selected.
        rows: Indices into the activation by axis; an axis that is not here is whole.
        parts: Where only some of the chosen positions (or keys) are in the stretch: which of them,
            by axis. A value's axis of that length is cut to them.
        positions: The selected positions, counted in the text.
    """

    shape: tuple[int, ...]
    rows: dict[int, list[int]]
    parts: dict[int, list[int]]
    positions: list[int]

    @property
    def index(self) -> tuple[Any, ...]:
        """What to index the activation with; axes keep their places. Empty for all of it."""
        if not self.rows:
            return ()
        # All axes from the first chosen one to the last, lest torch move the chosen to the front.
        first, last = min(self.rows), max(self.rows)
        mesh: list[Any] = [slice(None)] * first
        for axis in range(first, last + 1):
            rows = self.rows.get(axis) or list(range(self.shape[axis]))
            mesh.append(torch.tensor(rows).view(-1, *[1] * (last - axis)))
        return tuple(mesh)

    def cut(self, value: Tensor | float | int, like: Tensor) -> Tensor:
        """A value as the type of `like`; of one with rows of its own those in the stretch."""
        value = torch.as_tensor(value, dtype=like.dtype, device=like.device)
        for axis, kept in self.parts.items():
            own = axis - len(self.shape) + value.ndim
            if own >= 0 and value.shape[own] > 1:
                value = value.index_select(own, torch.tensor(kept, device=value.device))
        return value

    def causal(
        self, pattern: Float[Tensor, "batch head pos source"]
    ) -> Float[Tensor, "batch head pos source"]:
        """The selected part of a pattern, with no position attending to a later one."""
        keys = torch.tensor(self.rows.get(3) or list(range(self.shape[3])))
        later = keys[None, :] > torch.tensor(self.positions)[:, None]
        return pattern.masked_fill(later.to(pattern.device), 0.0)


@dataclass(frozen=True)
class Region:
    """What is selected of the activation of a whole text, which may yet grow.

    Attributes:
        chosen: Indices by axis, counted from the beginning and known to be there; an axis that is
            not here is whole.
        positions: Which axis is that of positions.
        shape: Shape of what is selected; ``"pos"`` where it grows with the text.
    """

    chosen: dict[int, tuple[int, ...]]
    positions: int
    shape: tuple[int | str, ...]

    def within(self, shape: Sequence[int], start: int = 0) -> Selection | None:
        """What it selects of an activation that begins at position `start`; None for nothing."""
        rows: dict[int, list[int]] = {}
        parts: dict[int, list[int]] = {}
        for axis, chosen in self.chosen.items():
            first = start if axis == self.positions else 0
            inside = [n for n, i in enumerate(chosen) if first <= i < first + shape[axis]]
            if not inside:
                return None
            rows[axis] = [chosen[n] - first for n in inside]
            if len(inside) < len(chosen):
                parts[axis] = inside
        selected = tuple(len(rows[axis]) if axis in rows else n for axis, n in enumerate(shape))
        positions = [start + i for i in rows.get(self.positions, range(shape[self.positions]))]
        return Selection(selected, rows, parts, positions)


def region(
    site: Site,
    chosen: dict[str, tuple[int, ...] | None],
    shape: Sequence[int],
    *,
    longest: int | None = None,
) -> Region:
    """Find what is chosen in an activation.

    Args:
        site: Where.
        chosen: The ``positions``, ``units`` and ``keys``, where the site has them; None for all.
        shape: Shape of the whole activation; of the prompt's, where the text will grow.
        longest: How many positions will be run in the end, where the text will grow.

    Raises:
        ValueError: A position, head or neuron is outside the activation or named twice.
    """
    found: dict[int, tuple[int, ...]] = {}
    selected: list[int | str] = list(shape)
    for what, axis in axes(site).items():
        grows = longest is not None and what != "units"
        given = chosen[what]
        if given is not None:
            size = longest if longest is not None and grows else shape[axis]
            found[axis] = _resolved(
                given, shape[axis], size - 1, f"{what}={given} at {site.label!r}"
            )
            selected[axis] = len(given)
        elif grows:
            selected[axis] = "pos"
    return Region(found, axes(site)["positions"], tuple(selected))


def _resolved(given: tuple[int, ...], size: int, last: int, what: str) -> tuple[int, ...]:
    # Not `models.indices`: a text that grows has positions beyond those that negatives count from.
    found = tuple(i + size if i < 0 else i for i in given)
    if any(not -size <= i <= last for i in given) or len(set(found)) < len(found):
        raise ValueError(f"{what}; wanted integers from {-size} to {last}, each once")
    return found
