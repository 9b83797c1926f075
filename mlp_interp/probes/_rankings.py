"""Which units speak most for a class."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from mlp_interp.metrics.separation import auroc
from mlp_interp.probes._linear import needs_sklearn, scaled

__all__ = ["RANKINGS", "Ranking", "f_statistic", "ranked"]

Ranking = Literal["mean_difference", "f", "mutual_information", "l1", "adaptive", "exhaustive"]
RANKINGS = get_args(Ranking)

_WIDER = 4  # adaptive: so many times the largest k are looked at first


def ranked(
    X: np.ndarray, labels: np.ndarray, ranking: Ranking, ks: Sequence[int], seed: int
) -> np.ndarray:
    """Units, best first; the first k of them are those chosen for each k."""
    if ranking == "adaptive":
        return _narrowed(X, labels, ks)
    return np.argsort(-_worth(X, labels, ranking, seed), kind="stable")


def f_statistic(X: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """F of each unit between two classes: squared differences of means over the spread within.

    Closed form; 0 for a unit that never varies.
    """
    one, other = X[labels == 0], X[labels == 1]
    within = ((one - one.mean(0)) ** 2).sum(0) + ((other - other.mean(0)) ** 2).sum(0)
    between = (one.mean(0) - other.mean(0)) ** 2 * len(one) * len(other) / len(X)
    spread = np.where(within > 0, within, np.inf)
    return between * (len(X) - 2) / spread


def _worth(X: np.ndarray, labels: np.ndarray, ranking: str, seed: int) -> np.ndarray:
    if ranking == "mean_difference":
        return np.abs(X[labels == 1].mean(0) - X[labels == 0].mean(0))
    if ranking == "f":
        return f_statistic(X, labels)
    if ranking == "exhaustive":
        return np.abs(np.asarray(auroc(X[labels == 1], X[labels == 0])) - 0.5)
    if ranking == "mutual_information":
        select = needs_sklearn("feature_selection")
        return select.mutual_info_classif(X, labels, random_state=seed % 2**32)
    return np.abs(_coefficients(X, labels, sparse=True))


def _coefficients(X: np.ndarray, labels: np.ndarray, *, sparse: bool) -> np.ndarray:
    """Coefficients of a logistic regression of standardised units."""
    mean, spread = scaled(X)
    how = {"l1_ratio": 1.0, "solver": "liblinear", "C": 0.1} if sparse else {}
    model = needs_sklearn("linear_model").LogisticRegression(max_iter=1000, random_state=0, **how)
    return model.fit((X - mean) / spread, labels).coef_[0]


def _narrowed(X: np.ndarray, labels: np.ndarray, ks: Sequence[int]) -> np.ndarray:
    """From many units to few: each step keeps the largest coefficients of the one before."""
    kept = np.argsort(-_worth(X, labels, "mean_difference", 0), kind="stable")
    kept = kept[: _WIDER * max(ks)]
    dropped: list[np.ndarray] = []
    for k in sorted(ks, reverse=True):
        order = np.argsort(-np.abs(_coefficients(X[:, kept], labels, sparse=False)), kind="stable")
        dropped.append(kept[order[k:]])
        kept = kept[order[:k]]
    return np.concatenate([kept, *reversed(dropped)])
