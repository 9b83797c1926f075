"""Means and inner products of activations and labels, of parts that are put together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Sums"]


@dataclass(frozen=True)
class Sums:
    """Of some prompts.

    Attributes:
        n: How many prompts.
        mean: Of the activations, ``[d]``.
        middle: Of the labels, ``[output]``.
        gram: Inner products of the centred activations' dimensions, ``[d, d]``.
        cross: Those of activations with labels, ``[d, output]``.
        square: Sums of squares of the centred labels, ``[output]``.
    """

    n: int
    mean: np.ndarray
    middle: np.ndarray
    gram: np.ndarray
    cross: np.ndarray
    square: np.ndarray

    @classmethod
    def of(cls, X: np.ndarray, values: np.ndarray) -> "Sums":
        """Of activations ``[prompt, d]`` and labels ``[prompt, output]``."""
        mean, middle = X.mean(0), values.mean(0)
        X, values = X - mean, values - middle
        return cls(len(X), mean, middle, X.T @ X, X.T @ values, (values**2).sum(0))

    @classmethod
    def together(cls, parts: Sequence["Sums"]) -> "Sums":
        """Of the prompts of all parts: sums of squares alone, so that nothing cancels.

        References:
            Chan, Golub and LeVeque, "Algorithms for Computing the Sample Variance", 1983.
        """
        n = sum(part.n for part in parts)
        sizes = np.array([[part.n] for part in parts])
        means, middles = np.stack([p.mean for p in parts]), np.stack([p.middle for p in parts])
        mean, middle = (sizes * means).sum(0) / n, (sizes * middles).sum(0) / n
        apart, off = np.sqrt(sizes) * (means - mean), np.sqrt(sizes) * (middles - middle)
        gram, cross = apart.T @ apart, apart.T @ off
        square = (off**2).sum(0)
        for part in parts:
            gram += part.gram
            cross += part.cross
            square += part.square
        return cls(n, mean, middle, gram, cross, square)
