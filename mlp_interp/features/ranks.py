"""How well many numbers at once tell documents apart, and how well they do when these are mixed.

A rank sum over documents is linear in the labels. So labels that are shuffled cost a product of
matrices, and the mean and variance of all shuffles have a closed form, ties included.
"""

from dataclasses import dataclass

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float

__all__ = ["Ranked", "false_discovery", "p_values"]


@dataclass(frozen=True)
class Ranked:
    """The documents of a corpus, ranked by each of some units.

    Attributes:
        values: ``[document, unit]``.
        ranks: The same as ranks from 1, equal values sharing the mean of theirs.
    """

    values: Float[np.ndarray, "document unit"]
    ranks: Float[np.ndarray, "document unit"]

    @classmethod
    def of(cls, values: Float[np.ndarray, "document unit"]) -> "Ranked":
        """Rank by each unit."""
        return cls(values, scipy.stats.rankdata(values, axis=0))

    def auroc(self, truth: Bool[np.ndarray, "feature document"]) -> Float[np.ndarray, "feature _"]:
        """Chance that a document with a feature has more than one without; ties count half."""
        n = truth.sum(1)[:, None].astype(float)
        rest = truth.shape[1] - n
        return (truth.astype(float) @ self.ranks - n * (n + 1) / 2) / (n * rest)

    def auroc_null_se(
        self, truth: Bool[np.ndarray, "feature document"]
    ) -> Float[np.ndarray, "feature _"]:
        """Standard deviation of the AUROC over all ways to shuffle the documents: exact."""
        n = truth.sum(1)[:, None].astype(float)
        size = truth.shape[1]
        spread = ((self.ranks - (size + 1) / 2) ** 2).sum(0)
        return np.sqrt(spread / (n * (size - n) * size * (size - 1)))

    def auroc_se(
        self, truth: Bool[np.ndarray, "feature document"]
    ) -> Float[np.ndarray, "feature _"]:
        """Standard error of the AUROC over documents.

        References:
            DeLong, DeLong & Clarke-Pearson, "Comparing the areas under two or more correlated
            receiver operating characteristic curves", Biometrics 44, 1988.
        """
        found = []
        for with_it in truth:
            parts = []
            for mine in (with_it, ~with_it):
                among = scipy.stats.rankdata(self.values[mine], axis=0)
                # Of each document, the share of the other side's that have less.
                share = (self.ranks[mine] - among) / (~mine).sum()
                parts.append(share.var(0, ddof=1) / mine.sum())
            found.append(np.sqrt(sum(parts)))
        return np.stack(found)

    def largest(
        self,
        truth: Bool[np.ndarray, "feature document"],
        shuffles: np.ndarray,
    ) -> Float[np.ndarray, "feature draw"]:
        """The largest distance of any unit's AUROC from 0.5, for each order of the documents."""
        mixed = [np.abs(self.auroc(truth[:, order]) - 0.5).max(1) for order in shuffles]
        return np.stack(mixed, 1) if mixed else np.zeros((len(truth), 0))


def p_values(
    auroc: np.ndarray, null_se: np.ndarray, truth: Bool[np.ndarray, "feature document"]
) -> np.ndarray:
    """Two-sided p of an AUROC if documents were shuffled: normal, with a correction for steps.

    Not too small from four documents a side on. A unit that is the same everywhere has 1.
    """
    n = truth.sum(1).reshape(-1, *[1] * (auroc.ndim - 1))
    step = 0.5 / (n * (truth.shape[1] - n))
    away = np.maximum(np.abs(auroc - 0.5) - step, 0)
    z = np.divide(away, null_se, out=np.zeros_like(auroc), where=null_se > 0)
    return 2 * scipy.stats.norm.sf(z)


def false_discovery(p: np.ndarray) -> np.ndarray:
    """The q values of Benjamini and Hochberg, over all of an array.

    Example:
        >>> false_discovery(np.array([0.01, 0.02, 0.9])).round(3).tolist()
        [0.03, 0.03, 0.9]
    """
    return scipy.stats.false_discovery_control(p.ravel(), method="bh").reshape(p.shape)
