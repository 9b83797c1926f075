"""Straight lines through activations: what each kind of probe fits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Line", "discriminant", "logistic", "needs_sklearn", "one_where_constant", "scaled"]


@dataclass(frozen=True)
class Line:
    """A linear map from activations to labels, or to how much speaks for a class.

    Attributes:
        coef: ``[output, d]``.
        intercept: ``[output]``.
        alpha: How strongly it was held back; NaN where nothing was.
    """

    coef: np.ndarray
    intercept: np.ndarray
    alpha: float = float("nan")

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """What it says of activations ``[prompt, d]``."""
        return X @ self.coef.T + self.intercept


def scaled(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each dimension, 1 where it never varies."""
    mean, spread = X.mean(0), X.std(0)
    return mean, one_where_constant(spread, mean)


def one_where_constant(spread: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Standard deviations to divide by: 1 where they are but rounding of the mean."""
    return np.where(spread > 1e-12 * np.abs(mean), spread, 1.0)


def discriminant(X: np.ndarray, labels: np.ndarray, shrinkage: float | None) -> Line:
    """Linear discriminant analysis with the classes' common covariance.

    The covariance is drawn towards that of a sphere: with `shrinkage` 0 it is taken as it is (in
    the space that the prompts span), with 1 it is a sphere, and the line the difference of means.
    None takes what Ledoit and Wolf (2004) expect to be nearest to the truth. Two classes give one
    output.
    """
    classes = np.unique(labels)
    means = np.array([X[labels == c].mean(0) for c in classes])
    within = X - means[np.searchsorted(classes, labels)]
    variance = (within**2).sum() / len(X) / X.shape[1]
    if shrinkage == 1.0:
        towards = means / (variance or 1.0)
    else:
        squares, axes = _principal(within)
        if shrinkage is None:
            shrinkage = _ledoit_wolf(within, squares / len(X), variance)
        drawn = (1 - shrinkage) * squares / len(X) + shrinkage * variance
        # Beside the axes, if there is any room, the covariance is the sphere's alone.
        beside = shrinkage * variance if axes.shape[1] < len(axes) else 0.0
        least = 1e-10 * max(beside, drawn.max())
        rest = 1 / beside if beside > least else 0.0
        along = 1 / np.where(drawn > least, drawn, np.inf) - rest
        towards = (means @ axes * along) @ axes.T + rest * means
    share = np.log([(labels == c).mean() for c in classes])
    offset = share - (towards * means).sum(1) / 2
    if len(classes) == 2:
        return Line(towards[1:] - towards[:1], offset[1:] - offset[:1])
    return Line(towards, offset)


def _principal(Z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared singular values ``[r]`` and principal axes ``[d, r]``, by the smaller side."""
    if len(Z) < Z.shape[1]:
        _, sizes, axes = np.linalg.svd(Z, full_matrices=False)
        return sizes**2, axes.T
    squares, axes = np.linalg.eigh(Z.T @ Z)
    return squares.clip(0), axes


def _ledoit_wolf(within: np.ndarray, values: np.ndarray, variance: float) -> float:
    """How far a covariance with some eigenvalues is to be drawn towards a sphere."""
    n, square = len(within), (values**2).sum()
    apart = square - variance**2 * within.shape[1]
    noise = ((within**2).sum(1) ** 2).mean() - square  # E |x xᵀ − S|²
    return float(min(1.0, noise / n / apart)) if apart > 0 else 1.0


def logistic(
    X: np.ndarray, labels: np.ndarray, groups: np.ndarray, alphas: Sequence[float], seed: int
) -> Line:
    """Logistic regression of activations in units of their spread, held back by a squared length.

    One unit for all dimensions: the line does not depend on the basis of the stream.

    The strength, among `alphas` (one over scikit-learn's C), is the largest of those that are most
    often right on a quarter of the groups that were kept apart; then all are fitted on. Where a
    class has so few groups that none would be left, it is the strongest.
    """
    mean = X.mean(0)
    spread = np.sqrt(((X - mean) ** 2).mean()) or 1.0
    Z = (X - mean) / spread
    alpha = max(alphas)
    apart = _apart(labels, groups, seed)
    if len(alphas) > 1 and apart.any():
        fitted = Z[~apart], labels[~apart]
        right = [
            (_model(a).fit(*fitted).predict(Z[apart]) == labels[apart]).mean()
            for a in sorted(alphas)
        ]
        # Of equals the strongest, which is nearest to the difference of means.
        alpha = sorted(alphas)[len(right) - 1 - int(np.argmax(right[::-1]))]
    model = _model(alpha).fit(Z, labels)
    coef = model.coef_ / spread
    return Line(coef, model.intercept_ - coef @ mean, float(alpha))


def _model(alpha: float):
    return needs_sklearn("linear_model").LogisticRegression(C=1 / alpha, max_iter=1000)


def _apart(labels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Which prompts are kept apart: a quarter of the groups, none if some class then is gone."""
    names, first = np.unique(groups, return_index=True)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(labels[first][order], kind="stable")]
    apart = np.isin(groups, names[order[::4]])
    return apart if len({*labels[~apart]}) == len({*labels}) else np.zeros(len(labels), bool)


def needs_sklearn(module: str):
    """A module of scikit-learn.

    Raises:
        ImportError: It is not installed; the extra is named.
    """
    import importlib

    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise ImportError(
            "this probe needs scikit-learn: pip install 'mlp-interp[probes]'"
        ) from error
