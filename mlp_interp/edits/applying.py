"""Edits in a forward pass: checked before it, applied and counted in it."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from mlp_interp.dictionaries import Reading
from mlp_interp.edits.edit import Edit
from mlp_interp.edits.selection import Region
from mlp_interp.models import Weights
from mlp_interp.models.options import check_choice

__all__ = ["Applier", "Fired", "Where", "check_where", "confined", "whole_shape"]

Where = Literal["all", "prompt", "new"]


@dataclass(frozen=True)
class Fired:
    """What an edit did.

    Attributes:
        times: How many passes came to it: 1 in a run; in a generation the steps in which a position
            that it selects was run.
        changed: How many entries of the activation it changed, over all passes. An edit may fire
            and change nothing, for example one that sets what is there already.
    """

    times: int
    changed: int


class Applier:
    """The observer that applies edits to what a forward pass shows it.

    Attributes:
        start: Position in the text of the first one that is run.
        patterns: Layers whose attention pattern the edits want.
    """

    def __init__(
        self,
        edits: Sequence[Edit],
        weights: Weights,
        shape: tuple[int, int],
        *,
        longest: int | None = None,
    ) -> None:
        """Check the edits for prompts of this shape, which may grow to `longest` positions.

        Raises:
            ValueError: An edit could never fire, or its value does not fit.
        """
        self.start = 0
        self._at: dict[tuple[str, int], list[tuple[int, Edit, Region]]] = {}
        for n, edit in enumerate(edits):
            region = edit.region(whole_shape(edit, weights, shape), longest=longest)
            self._at.setdefault(edit.place, []).append((n, edit, region))
        # Refuses dictionaries of another model.
        self._reading = Reading(weights, (one for edit in edits for one in edit.action.reads))
        self.patterns = {layer for name, layer in self._at if name == "pattern"}
        self._labels = [edit.site.label for edit in edits]
        self._times = [0] * len(edits)
        self._changed: list[Tensor | int] = [0] * len(edits)

    @property
    def first(self) -> int:
        """The first edited layer; -1 for the embedding."""
        return min(-1 if name == "embed" else layer for name, layer in self.places)

    @property
    def places(self) -> set[tuple[str, int]]:
        """Where something is edited, or read for it."""
        return {*self._at, *self._reading.wanted}

    @property
    def fired(self) -> tuple[Fired, ...]:
        """What each edit did until now, in the order given."""
        pairs = zip(self._times, self._changed, strict=True)
        return tuple(Fired(times, int(changed)) for times, changed in pairs)

    def __call__(self, name: str, layer: int, x: Tensor) -> Tensor:
        """The activation with the edits of this place done."""
        for n, edit, region in self._at.get((name, layer), ()):
            selection = region.within(x.shape, self.start)
            if selection is not None:
                read = [self._reading.read(one, x) for one in edit.action.reads]
                x, changed = edit.act(x, selection, *read)
                self._times[n] += 1
                self._changed[n] = self._changed[n] + changed
        self._reading.note(name, layer, x)
        return x

    def check(self) -> None:
        """After a pass over the whole text.

        Raises:
            ValueError: An edit never fired.
        """
        silent = [
            label for label, times in zip(self._labels, self._times, strict=True) if not times
        ]
        if silent:
            raise ValueError(f"edits at {', '.join(silent)} never fired in this forward pass")


def check_where(where: str) -> None:
    """Refuse what is no part of a text.

    Raises:
        ValueError: It is not one of `Where`.
    """
    check_choice("where", where, get_args(Where))


def confined(edit: Edit, where: str, prompt: int, longest: int) -> Edit:
    """An edit kept to a part of a text that grows; one with positions of its own stays as it is.

    Args:
        edit: The edit.
        where: Which part, as in `Where`.
        prompt: How many positions are the prompt's.
        longest: How many positions the text may have in the end.
    """
    if where == "all" or edit.positions is not None:
        return edit
    part = range(prompt) if where == "prompt" else range(prompt, longest)
    return dataclasses.replace(edit, positions=tuple(part))


def whole_shape(edit: Edit, weights: Weights, shape: tuple[int, int]) -> tuple[int, ...]:
    """Shape of the activation that an edit is for.

    Raises:
        ValueError: The model has no such layer.
    """
    if edit.place[1] >= weights.n_layers:
        raise ValueError(
            f"edits at {edit.site.label} never fire; wanted layers 0 to {weights.n_layers - 1}"
        )
    return weights.shape_of(edit.site, *shape)
