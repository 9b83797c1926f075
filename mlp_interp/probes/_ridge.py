"""Ridge regression: one reduction for all strengths, all outputs and all shuffled labels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mlp_interp.probes._band import Banded, Factor
from mlp_interp.probes._linear import Line, one_where_constant, scaled
from mlp_interp.probes._sums import Sums

__all__ = ["ridge", "ridge_of_folds"]

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
    data = _Data(X, np.concatenate(labellings, axis=1), groups)
    return _lines(_fitted(data.X, data.values), data, np.arange(len(X)), _parts(labellings), alphas)


def ridge_of_folds(
    X: np.ndarray,
    labellings: Sequence[np.ndarray],
    groups: np.ndarray,
    alphas: Sequence[float],
    fold: np.ndarray,
) -> Iterator[list[Line]]:
    """What `ridge` gives of all prompts but those of each fold, in turn, and then of all.

    Inner products are taken once for each fold and put together, as long as those of all folds
    need no more memory than the activations.
    """
    data = _Data(X, np.concatenate(labellings, axis=1), groups)
    names = np.unique(fold)
    sums = None
    if len(names) * X.shape[1] <= len(X):
        sums = [Sums.of(X[fold == name], data.values[fold == name]) for name in names]
    for out in (*range(len(names)), None):
        rows = np.arange(len(X)) if out is None else np.flatnonzero(fold != names[out])
        if sums is None:
            fit = _fitted(X[rows], data.values[rows])
        else:
            fit = _Reduced.of(Sums.together([part for n, part in enumerate(sums) if n != out]))
        yield _lines(fit, data, rows, _parts(labellings), alphas)


@dataclass(frozen=True)
class _Data:
    """Activations, the outputs of all labellings beside each other, and what stays together."""

    X: np.ndarray
    values: np.ndarray
    groups: np.ndarray


def _parts(labellings: Sequence[np.ndarray]) -> list[slice]:
    ends = np.cumsum([some.shape[1] for some in labellings])
    return [slice(end - some.shape[1], end) for end, some in zip(ends, labellings, strict=True)]


def _lines(
    fit: "_Reduced", data: _Data, rows: np.ndarray, parts: Sequence[slice], alphas: Sequence[float]
) -> list[Line]:
    """The line of each labelling, fitted on some prompts."""
    factor = fit.band.factor(alphas)
    best = [0] * len(parts)
    if len(alphas) > 1:
        errors = _errors(fit, factor, data, rows[_some(data.groups[rows])], len(alphas))
        best = [int(errors[:, part].mean(1).argmin()) for part in parts]
    coefs = {which: fit.coefs(factor, which) for which in set(best)}
    return [
        fit.line(coefs[which][part], part, float(alphas[which]))
        for part, which in zip(parts, best, strict=True)
    ]


def _fitted(X: np.ndarray, values: np.ndarray) -> "_Reduced":
    return _Reduced.of_few(X, values) if len(X) < X.shape[1] else _Reduced.of(Sums.of(X, values))


@dataclass(frozen=True)
class _Reduced:
    """Standardised activations whose inner products are in block-tridiagonal form.

    Attributes:
        n: How many prompts are fitted on.
        mean: Of their activations.
        spread: The standard deviation of these.
        middle: Of their labels.
        variance: Of these.
        axes: Of the space that they span ``[d, r]``, where they are fewer than dimensions.
        band: The reduced matrix.
        products: Inner products of centred labels with activations ``[output, r]``, as the matrix
            is turned and cut.
    """

    n: int
    mean: np.ndarray
    spread: np.ndarray
    middle: np.ndarray
    variance: np.ndarray
    axes: np.ndarray | None
    band: Banded
    products: tuple[Tensor, ...]

    @classmethod
    def of(cls, sums: Sums) -> "_Reduced":
        gram, cross = sums.gram.copy(), sums.cross.T.copy()
        spread = one_where_constant(np.sqrt(gram.diagonal() / sums.n), sums.mean)
        for x in (gram, gram.T, cross):
            x /= spread
        band = Banded.of(gram)
        variance = sums.square / sums.n
        return cls(
            sums.n, sums.mean, spread, sums.middle, variance, None, band, tuple(band.turn(cross))
        )

    @classmethod
    def of_few(cls, X: np.ndarray, values: np.ndarray) -> "_Reduced":
        """Of fewer prompts than dimensions, by the smaller side."""
        mean, spread = scaled(X)
        Z, middle = (X - mean) / spread, values.mean(0)
        axes = np.linalg.qr(Z.T)[0]
        points = Z @ axes
        band = Banded.of(points.T @ points)
        products = tuple(band.turn((values - middle).T @ points))
        return cls(len(X), mean, spread, middle, values.var(0), axes, band, products)

    def points(self, X: np.ndarray) -> list[Tensor]:
        """Activations ``[prompt, d]``, which are overwritten, as the matrix is turned and cut."""
        X -= self.mean
        X /= self.spread
        return self.band.turn(X if self.axes is None else X @ self.axes)

    def coefs(self, factor: Factor, which: int) -> np.ndarray:
        """Of all outputs with one strength ``[output, d]``, in units of the activations."""
        found = self.band.turn_back(factor.solved(which, self.products))
        return (found if self.axes is None else found @ self.axes.T) / self.spread

    def line(self, coef: np.ndarray, outputs: slice, alpha: float) -> Line:
        """Some outputs' coefficients as a line."""
        return Line(coef, self.middle[outputs] - coef @ self.mean, alpha)


def _errors(
    fit: _Reduced, factor: Factor, data: _Data, chosen: np.ndarray, strengths: int
) -> np.ndarray:
    """Squared errors over variances, ``[alpha, output]``, of groups that are left out of the fit.

    With H the matrix from labels to fitted values, what is left of a group g without it is
    (1 - H_gg)^-1 times what is left of it within: true of every linear smoother of this kind.
    """
    members = _by_size(data.groups[chosen])
    order = chosen[np.concatenate([rows.ravel() for rows in members])]
    points = zip(fit.points(data.X[order]), fit.products, strict=True)
    both, n = [torch.cat(pair) for pair in points], len(order)
    values = torch.from_numpy(data.values[order] - fit.middle)
    ends = np.cumsum([rows.size for rows in members]).tolist()
    groups = [
        (slice(end - rows.size, end), rows.shape) for end, rows in zip(ends, members, strict=True)
    ]
    total = np.zeros((strengths, values.shape[1]))
    for which in range(strengths):
        within = values.clone()
        # One less H, of the groups of each size.
        rests = [
            (torch.eye(size).to(values) - 1 / fit.n).repeat(many, 1, 1)
            for _, (many, size) in groups
        ]
        for half in factor.forward(which, both):
            within.addmm_(half[:n], half[n:].T, alpha=-1)
            for (rows, shape), rest in zip(groups, rests, strict=True):
                some = half[rows].view(*shape, -1)
                rest.baddbmm_(some, some.mT, alpha=-1)
        for (rows, shape), rest in zip(groups, rests, strict=True):
            left = torch.linalg.solve(rest, within[rows].view(*shape, -1))
            total[which] += left.square().sum((0, 1)).numpy()
    return total / n / np.where(fit.variance > 0, fit.variance, 1.0)


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
