"""Where in the plane of two activations something is read off best, and how well."""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

__all__ = ["auroc", "read_angle"]


def read_angle(
    a: Float[np.ndarray, " token"],
    b: Float[np.ndarray, " token"],
    follows: Bool[np.ndarray, " token"],
    text: Int[np.ndarray, " token"],
) -> tuple[float, float]:
    """The direction in the plane of two activations that tells best, and its error over texts.

    Args:
        a: The first, the direction at angle 0.
        b: The second, at 90 degrees. One that never changes has no part in it.
        follows: What is to be told.
        text: Which text each token is of: texts, not tokens, are independent.

    Returns:
        Degrees. NaN where it happens at fewer than ten places, or at all but ten.
    """
    if min(follows.sum(), (~follows).sum()) < 10 or a.std() == 0:
        return float("nan"), float("nan")
    if b.std() <= 1e-12:
        return 0.0, 0.0
    x = np.stack([np.ones(len(a)), (a - a.mean()) / a.std(), (b - b.mean()) / b.std()], 1)
    beta = np.array([np.log(follows.mean() / (1 - follows.mean())), 0.0, 0.0])
    # A pull to 0 worth one observation: where classes come apart, there is no largest likelihood.
    pull = np.diag([0.0, 1.0, 1.0])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ beta, -30, 30)))
        curvature = (x * (p * (1 - p))[:, None]).T @ x + pull
        step = np.linalg.solve(curvature, x.T @ (follows - p) - pull @ beta)
        beta = beta + step * min(1.0, 2 / np.abs(step).max().clip(1e-12))
        if np.abs(step).max() < 1e-9:
            break
    score = x * (follows - p)[:, None]
    _, of = np.unique(text, return_inverse=True)
    sums = np.stack([np.bincount(of, score[:, n]) for n in range(3)], 1)
    inverse = np.linalg.inv(curvature)
    covariance = inverse @ (sums.T @ sums) @ inverse * (len(sums) / max(1, len(sums) - 1))
    size = beta[1] ** 2 + beta[2] ** 2
    slope = np.array([0.0, -beta[2], beta[1]]) / max(size, 1e-300)
    error = np.degrees(np.sqrt(slope @ covariance @ slope))
    return float(np.degrees(np.arctan2(beta[2], beta[1]))), float(error)


def auroc(score: np.ndarray, follows: np.ndarray) -> float:
    """Share of pairs, one of each kind, in which the one that is followed has the higher score."""
    positive, negative = follows.sum(), (~follows).sum()
    if not positive or not negative or not np.isfinite(score).all():
        return float("nan")
    ranks = rankdata(score)[follows].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * negative))
