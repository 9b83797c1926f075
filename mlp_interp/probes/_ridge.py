"""Ridge regression: one decomposition for all strengths, all outputs and all shuffled labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlp_interp.probes._linear import Line, principal, scaled

__all__ = ["ridge"]

_LEFT_OUT = 2_000  # prompts whose groups are left out to choose the strength: enough for that


def ridge(
    X: np.ndarray, labellings: Sequence[np.ndarray], groups: np.ndarray, alphas: Sequence[float]
) -> list[Line]:
    """Fit every labelling ``[prompt, output]``, each with a strength of its own.

    Activations are standardised and the intercept is free. The strength is that of the least
    squared error, over each output's variance, of groups that are left out: exact, without fitting
    anew, of all groups or, beyond 2,000 prompts, of some. With groups of one prompt each that is
    the choice of scikit-learn's `RidgeCV`.
    """
    fit = _Decomposed.of(X)
    values = np.concatenate(labellings, axis=1)
    centre = values.mean(0)
    products = fit.products(values - centre)
    ends = np.cumsum([some.shape[1] for some in labellings])
    parts = [slice(end - some.shape[1], end) for end, some in zip(ends, labellings, strict=True)]
    strengths = [float(alphas[0])] * len(parts)
    if len(alphas) > 1:
        errors = _errors(fit, values - centre, products, groups, alphas)
        strengths = [float(alphas[int(errors[:, part].mean(1).argmin())]) for part in parts]
    return [
        fit.line(products[:, part], centre[part], alpha)
        for part, alpha in zip(parts, strengths, strict=True)
    ]


@dataclass(frozen=True)
class _Decomposed:
    """Standardised activations in their principal axes.

    Attributes:
        mean: Of the activations.
        spread: Their standard deviation.
        axes: ``[d, r]``.
        squares: Squared singular values ``[r]``.
        X: The activations.
    """

    mean: np.ndarray
    spread: np.ndarray
    axes: np.ndarray
    squares: np.ndarray
    X: np.ndarray

    @classmethod
    def of(cls, X: np.ndarray) -> "_Decomposed":
        mean, spread = scaled(X)
        Z = (X - mean) / spread
        squares, axes = principal(Z)
        return cls(mean, spread, axes, squares, X)

    def points(self, X: np.ndarray) -> np.ndarray:
        """Activations along the axes, ``[prompt, r]``."""
        return ((X - self.mean) / self.spread) @ self.axes

    def products(self, values: np.ndarray) -> np.ndarray:
        """Inner products of centred labels with the axes' coordinates, ``[r, output]``."""
        scaled_sums = self.X.T @ values - np.outer(self.mean, values.sum(0))
        return self.axes.T @ (scaled_sums / self.spread[:, None])

    def line(self, products: np.ndarray, centre: np.ndarray, alpha: float) -> Line:
        """The line of one strength, back in units of the activations."""
        coef = (self.axes @ (products / (self.squares + alpha)[:, None])).T / self.spread
        return Line(coef, centre - coef @ self.mean, alpha)


def _errors(
    fit: _Decomposed,
    centred: np.ndarray,
    products: np.ndarray,
    groups: np.ndarray,
    alphas: Sequence[float],
) -> np.ndarray:
    """Squared errors over variances, ``[alpha, output]``, of groups that are left out of the fit.

    With H the matrix from labels to fitted values, what is left of a group g without it is
    (1 - H_gg)^-1 times what is left of it within: true of every linear smoother of this kind.
    """
    chosen = _some(groups)
    points, values = fit.points(fit.X[chosen]), centred[chosen]
    variance = (centred**2).mean(0)
    total = np.zeros((len(alphas), values.shape[1]))
    members = [(rows, points[rows]) for rows in _by_size(groups[chosen])]
    for n, alpha in enumerate(alphas):
        strength = fit.squares + alpha
        within = values - points @ (products / strength[:, None])
        for rows, some in members:
            hat = (some / strength) @ some.swapaxes(1, 2) + 1 / len(fit.X)
            left = np.linalg.solve(np.eye(rows.shape[1]) - hat, within[rows])
            total[n] += (left**2).sum((0, 1))
    return total / len(values) / np.where(variance > 0, variance, 1.0)


def _by_size(groups: np.ndarray) -> list[np.ndarray]:
    """Members ``[group, member]`` of the groups of each size."""
    _, of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(of, kind="stable")
    members = np.split(order, np.cumsum(sizes)[:-1])
    return [np.array([m for m in members if len(m) == size]) for size in np.unique(sizes).tolist()]


def _some(groups: np.ndarray) -> np.ndarray:
    """Prompts of whole groups, all or enough of them, spread evenly over the groups."""
    names, of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    every = max(1, int(np.ceil(len(groups) / _LEFT_OUT)))
    kept = np.zeros(len(names), bool)
    kept[::every] = True
    if sizes[kept].sum() == len(groups):
        return np.arange(len(groups))
    return np.flatnonzero(kept[of])
