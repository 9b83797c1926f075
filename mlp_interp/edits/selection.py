"""Which entries of an activation an edit selects, also where only a stretch of a text is run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsInt

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mlp_interp.edits.edit import Edit

__all__ = ["Placed", "Selection", "axes", "indices", "place"]


def axes(name: str) -> dict[str, int]:
    """Axis of an activation's positions, of its units and of its keys, where it has them."""
    if name == "pattern":
        return {"units": 1, "positions": 2, "keys": 3}
    if name in ("q", "k", "v", "z", "pre", "post"):
        return {"positions": 1, "units": 2}
    return {"positions": 1}


def indices(chosen: SupportsInt | Iterable[SupportsInt] | None) -> tuple[int, ...] | None:
    """One or several indices as a tuple; None stays."""
    if chosen is None:
        return None
    return tuple(int(i) for i in chosen) if isinstance(chosen, Iterable) else (int(chosen),)


@dataclass(frozen=True)
class Selection:
    """The selected entries of the activation of a stretch of a text.

    Attributes:
        shape: Shape of what is selected.
        rows: Indices into the activation by axis; an axis that is not here is whole.
        parts: Where only some of an edit's own positions (or keys) are in the stretch: which of
            them, by axis. A value's axis of that length is cut to them.
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


@dataclass(frozen=True)
class Placed:
    """An edit whose indices count from the beginning of a text and are known to be in it."""

    edit: "Edit"
    chosen: dict[int, tuple[int, ...]]

    def within(self, shape: Sequence[int], start: int = 0) -> Selection | None:
        """What it selects of an activation that begins at position `start`; None for nothing."""
        at = axes(self.edit.site.name)["positions"]
        rows: dict[int, list[int]] = {}
        parts: dict[int, list[int]] = {}
        for axis, chosen in self.chosen.items():
            first = start if axis == at else 0
            inside = [n for n, i in enumerate(chosen) if first <= i < first + shape[axis]]
            if not inside:
                return None
            rows[axis] = [chosen[n] - first for n in inside]
            if len(inside) < len(chosen):
                parts[axis] = inside
        selected = tuple(len(rows[axis]) if axis in rows else n for axis, n in enumerate(shape))
        positions = [start + i for i in rows.get(at, range(shape[at]))]
        return Selection(selected, rows, parts, positions)


def place(edit: "Edit", shape: Sequence[int], *, longest: int | None = None) -> Placed:
    """Check an edit against the activation that it is for.

    Args:
        edit: The edit.
        shape: Shape of the whole activation; of the prompt's, where the text will grow.
        longest: How many positions will be run in the end, where the text will grow.

    Raises:
        ValueError: A position, head or neuron is outside the activation or named twice, or the
            value does not fit what is selected.
    """
    wanted = {"positions": edit.positions, "units": edit.chosen, "keys": edit.keys}
    chosen: dict[int, tuple[int, ...]] = {}
    selected: list[int | str] = list(shape)
    for what, axis in axes(edit.site.name).items():
        grows = longest is not None and what != "units"
        if (given := wanted[what]) is None:
            selected[axis] = "pos" if grows else shape[axis]
            continue
        size = longest if longest is not None and grows else shape[axis]
        chosen[axis] = _resolved(given, shape[axis], size - 1, f"{what}={given}", edit)
        selected[axis] = len(given)
    _check_fit(edit, selected)
    return Placed(edit, chosen)


def _resolved(
    given: tuple[int, ...], size: int, last: int, what: str, edit: "Edit"
) -> tuple[int, ...]:
    label = edit.site.label
    if any(not -size <= i <= last for i in given):
        raise ValueError(f"{what} at {label!r}; wanted indices from {-size} to {last}")
    found = tuple(i + size if i < 0 else i for i in given)
    if len(set(found)) < len(found):
        raise ValueError(f"{what} at {label!r} has one twice; wanted each once")
    return found


def _check_fit(edit: "Edit", selected: list[int | str]) -> None:
    label = edit.site.label
    if edit.action == "project_out" and edit.basis.shape[1] != selected[-1]:
        raise ValueError(
            f"directions of width {edit.basis.shape[1]} at {label!r}; wanted {selected[-1]}"
        )
    for value in edit.values:
        shape = tuple(value.shape) if isinstance(value, Tensor) else ()
        pairs = zip(reversed(shape), reversed(selected), strict=False)
        if len(shape) > len(selected) or any(n not in (1, wanted) for n, wanted in pairs):
            wanted = ", ".join(map(str, selected))
            raise ValueError(
                f"value of shape {shape} at {label!r}; wanted one that broadcasts to ({wanted})"
            )
