"""Who is fitted on and who is tested on: folds of groups that stay together."""

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mlp_interp.models.indices import count
from mlp_interp.models.options import check_choice
from mlp_interp.probes.labelled import Labelled

__all__ = ["Labelling", "Split", "Splits", "shuffled"]

Split = Literal["entity", "template", "prompt"]


@dataclass(frozen=True, eq=False)
class Labelling:
    """Labels, and how prompts are dealt out that have them.

    Attributes:
        values: ``[prompt, output]``.
        fold: The fold of each prompt.
    """

    values: np.ndarray
    fold: np.ndarray

    def parts(self, fold: int) -> tuple[np.ndarray, np.ndarray]:
        """Which prompts are fitted on, and which tested on."""
        tested = self.fold == fold
        return np.flatnonzero(~tested), np.flatnonzero(tested)

    def complete(self) -> bool:
        """Whether every class is among those fitted on, whichever fold is tested on."""
        labels = self.values[:, 0]
        every = len({*labels})
        return all(len({*labels[self.fold != f]}) == every for f in {*self.fold})


class Splits:
    """Prompts in folds.

    Attributes:
        true: The labels as they are, with their folds.
        group: Number of the group that each prompt stays together with.
        folds: How many folds.
        by_class: Whether groups of one class are dealt out in turn.
    """

    def __init__(self, data: Labelled, folds: int, split: Split, seed: int) -> None:
        """Deal groups out to folds, those of one class in turn.

        Raises:
            ValueError: Fewer groups than folds, or a class whose groups are all in one fold.

        Warns:
            UserWarning: Prompts of one entity are in several folds.
        """
        check_choice("split", split, ("entity", "template", "prompt"))
        self.folds = count("folds", folds, least=2)
        given = {"entity": data.entity, "template": data.template}.get(split, np.arange(len(data)))
        names, first, self.group = np.unique(given, return_index=True, return_inverse=True)
        if len(names) < max(self.folds, 3):
            raise ValueError(
                f"folds={folds} of {len(names)} groups by {split}; wanted at most as many folds as "
                "groups, and at least three groups"
            )
        self._first = first
        self.by_class = data.classes is not None and split != "template"
        self.true = self.dealt(data.values, np.random.default_rng(seed))
        if data.classes is not None:
            self._check_classes(data, split)
        self._warn_of_leaks(data, split)

    @property
    def fold(self) -> np.ndarray:
        """The fold of each prompt."""
        return self.true.fold

    def parts(self, fold: int) -> tuple[np.ndarray, np.ndarray]:
        """Which prompts are fitted on, and which tested on."""
        return self.true.parts(fold)

    def dealt(self, values: np.ndarray, rng: np.random.Generator) -> Labelling:
        """Labels with their groups dealt out to folds."""
        order = rng.permutation(len(self._first))
        if self.by_class:
            order = order[np.argsort(values[self._first, 0][order], kind="stable")]
        turn = np.empty(len(order), int)
        turn[order] = np.arange(len(order)) % self.folds
        return Labelling(values, turn[self.group])

    def _check_classes(self, data: Labelled, split: str) -> None:
        for number, name in enumerate(data.classes or ()):
            if len({*self.fold[data.labels == number]}) < 2:
                raise ValueError(
                    f"class {name!r} is in one fold only (split={split!r}); wanted at least two "
                    "groups of every class"
                )

    def _warn_of_leaks(self, data: Labelled, split: str) -> None:
        if split == "entity":
            return
        folds = {}
        for entity, fold in zip(data.entity, self.fold, strict=True):
            folds.setdefault(entity, set()).add(int(fold))
        if leaked := [entity for entity, found in folds.items() if len(found) > 1]:
            warnings.warn(
                f"split={split!r}: {len(leaked)} of {len(folds)} entities, {str(leaked[0])!r} "
                "among them, are fitted on and tested on; a probe may then know them by heart: "
                "split='entity' tests on others",
                stacklevel=4,
            )


def shuffled(
    data: Labelled, splits: Splits, rng: np.random.Generator, tries: int = 100
) -> Labelling:
    """Labels exchanged among entities: prompts of one entity still have one label.

    Classes are dealt out to folds anew, as evenly as the true ones: where a fold has more of a
    class than it should, those that are fitted on have less, and where nothing can be read a line
    that says what it saw most of is then wrong more often than not.

    Raises:
        ValueError: The folds are so small that some class is never left to be fitted on.
    """
    _, first, of = np.unique(data.entity, return_index=True, return_inverse=True)
    for _ in range(tries):
        values = data.values[first][rng.permutation(len(first))][of]
        found = splits.dealt(values, rng) if splits.by_class else Labelling(values, splits.fold)
        if data.classes is None or found.complete():
            return found
    raise ValueError(
        f"controls: {len(first)} entities in {splits.folds} folds leave out some class when labels "
        "are shuffled; wanted more entities, or controls=0"
    )
