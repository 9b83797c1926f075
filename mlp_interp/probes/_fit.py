"""Fitting probes of a kind to several labellings of the same activations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mlp_interp.models.options import check_choice, checked_numbers
from mlp_interp.probes._linear import Line, discriminant, logistic, needs_sklearn
from mlp_interp.probes._ridge import ridge, ridge_of_folds
from mlp_interp.probes._splits import Labelling, Splits
from mlp_interp.probes.labelled import Labelled

__all__ = ["Fitter", "Kind"]

Kind = Literal["ridge", "logistic", "mean_difference", "lda"]

_STRENGTHS = {
    "ridge": tuple(np.geomspace(1e-2, 1e7, 19).tolist()),
    "logistic": (1.0, 100.0, 10_000.0),
}


@dataclass(frozen=True)
class Fitter:
    """A kind of probe, checked against the labels.

    Attributes:
        kind: Which.
        alphas: Strengths to choose among; none where nothing is held back.
        classes: How many classes; 0 for numbers.
        seed: Draws what is kept apart to choose a strength.
    """

    kind: Kind
    alphas: tuple[float, ...]
    classes: int
    seed: int

    @classmethod
    def of(cls, data: Labelled, kind: Any, alphas: Any, seed: int) -> "Fitter":
        """Check a kind and strengths.

        Raises:
            ValueError: There is no such kind, it does not go with the labels, these are all the
                same, or strengths are no positive numbers.
            ImportError: scikit-learn is needed and not installed.
        """
        if kind is None:
            kind = "ridge" if data.classes is None else "logistic"
        check_choice("kind", kind, ("ridge", "logistic", "mean_difference", "lda"))
        if (kind == "ridge") != (data.classes is None):
            held = "numbers" if data.classes is None else "classes"
            raise ValueError(
                f"kind={kind!r} with y={data.outputs[0]!r}, which holds {held}; wanted 'ridge' for "
                "numbers; 'logistic', 'mean_difference' or 'lda' for classes (texts or booleans)"
            )
        if kind == "ridge":
            _check_numbers(data)
        if kind == "logistic":
            needs_sklearn("linear_model")
        return cls(kind, _strengths(kind, alphas), len(data.classes or ()), seed)

    def __call__(
        self, X: np.ndarray, labellings: Sequence[np.ndarray], groups: np.ndarray
    ) -> list[Line]:
        """A line for each labelling ``[prompt, output]``."""
        if self.kind == "ridge":
            return ridge(X, labellings, groups, self.alphas)
        each = [values[:, 0].astype(int) for values in labellings]
        if self.kind == "logistic":
            return [logistic(X, labels, groups, self.alphas, self.seed) for labels in each]
        shrinkage = 1.0 if self.kind == "mean_difference" else None
        return [discriminant(X, labels, shrinkage) for labels in each]

    def of_folds(
        self, X: np.ndarray, labellings: Sequence[Labelling], splits: Splits
    ) -> Iterator[list[Line]]:
        """Lines fitted on all prompts but those of each one's fold, in turn, and then on all."""
        values = [labelling.values for labelling in labellings]
        if self.kind == "ridge":  # of numbers, which all have the same folds
            yield from ridge_of_folds(X, values, splits.group, self.alphas, splits.fold)
            return
        for fold in range(splits.folds):
            fitted = [labelling.parts(fold)[0] for labelling in labellings]
            yield [
                self(X[rows], [some[rows]], splits.group[rows])[0]
                for some, rows in zip(values, fitted, strict=True)
            ]
        yield self(X, values[:1], splits.group)


def _check_numbers(data: Labelled) -> None:
    with np.errstate(over="ignore", under="ignore"):
        spread = np.ptp(data.values, axis=0)
        squares = ((data.values - data.values.mean(0)) ** 2).mean(0)
    for name, apart, square in zip(data.outputs, spread, squares, strict=True):
        if not apart > 0:
            raise ValueError(f"y={name!r} is the same in all rows; wanted numbers that differ")
        if not np.finfo(float).tiny < square < np.inf:
            raise ValueError(
                f"y={name!r} differs by up to {apart:.3g}, whose square is no number; wanted other "
                "units"
            )


def _strengths(kind: str, alphas: Any) -> tuple[float, ...]:
    if kind not in _STRENGTHS:
        if alphas is not None:
            raise ValueError(f"alphas={alphas} with kind={kind!r}, which has none; wanted None")
        return ()
    given = _STRENGTHS[kind] if alphas is None else alphas
    wanted = "finite numbers above 0"
    found = checked_numbers("alphas", given, lambda x: (x > 0) & np.isfinite(x), wanted)
    return tuple(found.tolist())
