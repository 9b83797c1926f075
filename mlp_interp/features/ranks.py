"""How well many numbers at once tell documents apart, and how well they do when these are mixed.

A rank sum over documents is linear in the labels. So labels that are shuffled cost a product of
matrices, and the mean and variance of all shuffles have a closed form, ties included.
"""

from dataclasses import dataclass

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float

__all__ = ["Ranked", "false_discovery"]


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

    def p_values(
        self, truth: Bool[np.ndarray, "feature document"]
    ) -> Float[np.ndarray, "feature _"]:
        """Two-sided p of the AUROC if documents were shuffled: twice the smaller tail.

        Exact for a unit that has two values, 1 for one that has a single value. For others it is
        that of the normal distribution, corrected by half the rank sum's smallest step, and never
        less than twice the chance of the very arrangement that is seen, which is exact. From four
        documents a side on that all differ it is not too small; of a unit that is the same in
        nearly all documents it can be, by the number of arrangements that are alike. It is never 0:
        the least that a float holds, about 2e-308, stands for all that is less.
        """
        n = truth.sum(1)[:, None]
        step = self._smallest_step() / (n * (truth.shape[1] - n))
        away = np.maximum(np.abs(self.auroc(truth) - 0.5) - step / 2, 0)
        null_se = self.auroc_null_se(truth)
        z = np.divide(away, null_se, out=np.zeros_like(away), where=null_se > 0)
        tail = np.maximum(scipy.stats.norm.sf(z), np.exp(self._log_chance(truth)))
        low, high = self.ranks.min(0), self.ranks.max(0)
        two = ((self.ranks == low) | (self.ranks == high)).all(0)
        more = self.ranks[:, two] > low[two]
        seen, law = truth.astype(int) @ more, scipy.stats.hypergeom(len(more), more.sum(0), n)
        tail[:, two] = np.minimum(law.cdf(seen), law.sf(seen - 1))
        return np.clip(2 * tail, np.finfo(float).tiny, 1)

    def _smallest_step(self) -> Float[np.ndarray, " unit"]:
        """The least by which two documents that change places change a rank sum."""
        gaps = np.diff(np.sort(self.ranks, axis=0), axis=0)
        return gaps.min(0, initial=len(self.ranks), where=gaps > 0)

    def _log_chance(
        self, truth: Bool[np.ndarray, "feature document"]
    ) -> Float[np.ndarray, "feature _"]:
        """Log probability that shuffles put as many of each set of equals into the feature.

        Of g equals k are in it: the product of all C(g, k), over C(documents, those with it).
        """
        documents, units = self.ranks.shape
        factorial = np.concatenate([[0], np.log(np.arange(1, documents + 1)).cumsum()])
        order = np.argsort(self.ranks, axis=0).T
        lined = np.take_along_axis(self.ranks.T, order, 1)
        first = np.ones((units, documents), bool)
        first[:, 1:] = lined[:, 1:] > lined[:, :-1]
        starts = np.flatnonzero(first)
        size = np.diff(starts, append=first.size)
        tied = size > 1
        unit = starts[tied] // documents
        found = np.empty((len(truth), units))
        for row, with_it in zip(found, truth, strict=True):
            k = np.add.reduceat(with_it[order].ravel().astype(int), starts)[tied]
            ways = factorial[size[tied]] - factorial[k] - factorial[size[tied] - k]
            n = with_it.sum()
            every = factorial[documents] - factorial[n] - factorial[documents - n]
            row[:] = np.bincount(unit, ways, minlength=units) - every
        return found

    def largest(
        self,
        truth: Bool[np.ndarray, "feature document"],
        shuffles: np.ndarray,
    ) -> Float[np.ndarray, "feature draw"]:
        """The largest distance of any unit's AUROC from 0.5, for each order of the documents."""
        mixed = [np.abs(self.auroc(truth[:, order]) - 0.5).max(1) for order in shuffles]
        return np.stack(mixed, 1) if mixed else np.zeros((len(truth), 0))


def false_discovery(p: np.ndarray) -> np.ndarray:
    """The q values of Benjamini and Hochberg, over all of an array.

    Example:
        >>> false_discovery(np.array([0.01, 0.02, 0.9])).round(3).tolist()
        [0.03, 0.03, 0.9]
    """
    return scipy.stats.false_discovery_control(p.ravel(), method="bh").reshape(p.shape)
