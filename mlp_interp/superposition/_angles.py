"""Where in the plane of two activations something is read off best, and how well."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

__all__ = ["auroc", "read_angle", "read_angles"]

_PULL = np.array([0.0, 1.0, 1.0])
"""Toward 0, worth one observation: where classes come apart, there is no largest likelihood."""

_TOGETHER = 2**18
"""Activations that are fitted at a time: few enough to stay near the processor."""


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
    beta = _lines(a, b[None], follows)
    theta = float(_angle(beta)[0])
    if not np.isfinite(theta) or b.std() <= 1e-12:
        return theta, theta  # of what never changes both are 0
    x = np.stack([np.ones(len(a)), _standard(a), _standard(b)], 1)
    p = _chance(x @ beta[0])
    inverse = np.linalg.inv((x * (p * (1 - p))[:, None]).T @ x + np.diag(_PULL))
    score = x * (follows - p)[:, None]
    _, of = np.unique(text, return_inverse=True)
    sums = np.stack([np.bincount(of, score[:, n]) for n in range(3)], 1)
    covariance = inverse @ (sums.T @ sums) @ inverse * (len(sums) / max(1, len(sums) - 1))
    _, toward_a, toward_b = beta[0]
    slope = np.array([0.0, -toward_b, toward_a]) / max(toward_a**2 + toward_b**2, 1e-300)
    return theta, float(np.degrees(np.sqrt(slope @ covariance @ slope)))


def read_angles(
    a: Float[np.ndarray, " token"],
    others: Float[np.ndarray, "other token"],
    follows: Bool[np.ndarray, " token"],
) -> Float[np.ndarray, " other"]:
    """The angles of `read_angle` in the planes of one activation and each of others.

    They are fitted together, in a fraction of the time of one after the other.
    """
    size = max(1, _TOGETHER // len(a))
    parts = [others[start : start + size] for start in range(0, len(others), size)]
    return np.concatenate([_angle(_lines(a, part, follows)) for part in parts] or [np.zeros(0)])


def _angle(beta: Float[np.ndarray, "other 3"]) -> Float[np.ndarray, " other"]:
    return np.degrees(np.arctan2(beta[:, 2], beta[:, 1]))


def _lines(
    a: Float[np.ndarray, " token"],
    others: Float[np.ndarray, "other token"],
    follows: Bool[np.ndarray, " token"],
) -> Float[np.ndarray, "other 3"]:
    """Logistic regressions on one activation and each of others: intercepts, and both slopes.

    Newton's steps for all of them at once, none longer than 2, halved where they are too long. NaN
    where nothing can be told, and the slopes 1 and 0 beside one that never changes.
    """
    beta = np.zeros((len(others), 3))
    if min(follows.sum(), (~follows).sum()) < 10 or a.std() == 0:
        return beta + np.nan
    beta[:, 0] = np.log(follows.mean() / (1 - follows.mean()))
    a, b = _standard(a), _standard(others)
    fixed = np.stack([np.ones(len(a)), a, a**2], 1)
    curvature = np.empty((len(others), 3, 3))
    step, slope = np.zeros_like(beta), np.zeros((len(beta), 1))
    for _ in range(100):
        p = _chance(beta[:, :2] @ fixed[:, :2].T + beta[:, 2:] * b)
        left = follows - p
        gradient = np.stack([*(left @ fixed[:, :2]).T, np.einsum("ot,ot->o", left, b)], 1)
        p *= 1 - p
        curvature[:, 0, :2] = (sums := p @ fixed)[:, :2]
        curvature[:, 1, 0], curvature[:, 1, 1] = sums[:, 1], sums[:, 2]
        p *= b
        curvature[:, 2, :2] = curvature[:, :2, 2] = p @ fixed[:, :2]
        curvature[:, 2, 2] = np.einsum("ot,ot->o", p, b)
        gradient -= _PULL * beta
        # A step is too long if the way up now leads back: Newton's alone may go to and fro forever.
        back = (step * gradient).sum(1, keepdims=True) < -slope / 2
        new = np.linalg.solve(curvature + np.diag(_PULL), gradient[..., None])[..., 0]
        new *= np.minimum(1.0, 2 / np.abs(new).max(1, keepdims=True).clip(1e-12))
        move = np.where(back, -step / 2, new)
        step = np.where(back, step / 2, new)
        slope = np.where(back, slope / 2, (new * gradient).sum(1, keepdims=True))
        beta += move
        if np.abs(move).max() < 1e-7:  # what is left is of the order of its square
            break
    beta[others.std(1) <= 1e-12] = 0.0, 1.0, 0.0
    return beta


def _standard(x: Float[np.ndarray, "*other token"]) -> Float[np.ndarray, "*other token"]:
    """In units of its standard deviation, from its mean; 0 where it never changes."""
    x = x - x.mean(-1, keepdims=True)
    spread = np.sqrt(np.square(x).mean(-1, keepdims=True))
    return np.divide(x, spread, out=np.zeros_like(x), where=spread > 1e-12)


def _chance(score: Float[np.ndarray, "*other token"]) -> Float[np.ndarray, "*other token"]:
    """The logistic function; PyTorch's is several times as fast as NumPy's exponential."""
    return torch.sigmoid(torch.from_numpy(score)).numpy()


def auroc(score: np.ndarray, follows: np.ndarray) -> float:
    """Share of pairs, one of each kind, in which the one that is followed has the higher score."""
    positive, negative = follows.sum(), (~follows).sum()
    if not positive or not negative or not np.isfinite(score).all():
        return float("nan")
    ranks = rankdata(score)[follows].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * negative))
