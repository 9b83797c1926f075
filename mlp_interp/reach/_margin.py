"""How far a set of tokens can lead all others: bounds that close in on it, rivals as they come."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mlp_interp.reach._active_set import ROUNDING, ActiveSet
from mlp_interp.reach._readout import Readout

__all__ = ["Margin", "lead", "said"]

_NEW = 128
"""Rivals that come to a set's rows in a round."""

_MOST = 1024
"""Rivals beyond which those far from getting in the way are forgotten."""


class Margin:
    """The largest margin of one set, between what a vector reaches and what weights prove.

    Every round asks all tokens at one vector, `at`: that bounds the margin from below, and finds
    rivals. The best vector against the rivals known so far bounds it from above, and is the next.

    Attributes:
        tokens: The set; of an order the first token leads.
        at: Where to look next.
        stream: The best vector yet, and `lower` its margin.
        upper: Above which no vector's margin is.
        rounds: How often all tokens were asked.
    """

    def __init__(
        self, readout: Readout, tokens: Int[np.ndarray, " k"], ordered: bool, middle: np.ndarray
    ) -> None:
        """Begin at the mean of the set, less that of all tokens."""
        self.readout, self.tokens, self.ordered = readout, tokens, ordered
        self.rows, bias = readout.rows(tokens), readout.bias[tokens]
        if ordered:  # one group: each token's lead over the next, the last one's over rivals
            self.own = self.rows[:-1] - self.rows[1:]
            self.own_cost = bias[:-1] - bias[1:]
            self.base, self.base_cost = self.rows[-1], float(bias[-1])
        else:  # two: the set, and less its rivals
            self.own, self.own_cost = self.rows, bias
            self.base, self.base_cost = np.zeros_like(self.rows[0]), 0.0
        start = self.rows.mean(0) - middle
        self.at = start / max(float(np.linalg.norm(start)), 1e-30)
        self.stream, self.lower, self.upper = self.at, -np.inf, np.inf
        self.rivals = readout.rivals.copy()
        self.rivals[tokens] = False
        self.found: ActiveSet | None = None
        self.rounds = 0
        self._proof = (tokens[:0], np.empty(0))

    @property
    def rounding(self) -> float:
        """Margins below this are none."""
        return ROUNDING * self.readout.longest

    def settled(self, tolerance: float, decide: bool) -> bool:
        """Whether the bounds say what was asked; how far a set is from being had is not asked."""
        near = decide or self.upper - self.lower <= tolerance
        return self.upper <= self.rounding or (self.lower > self.rounding and near)

    @property
    def verdict(self) -> int:
        """1 where the set can be had, 0 where not, -1 where neither is proven."""
        return int(said(self.lower, self.upper, self.rounding))

    def look(self, scores: Float[np.ndarray, " d_vocab"], steps: int, decide: bool) -> None:
        """One round.

        Args:
            scores: Logits of all tokens at `at`.
            steps: How many rows may enter the active set.
            decide: Whether a proof that there is no margin is enough.
        """
        self.rounds += 1
        scores = np.where(self.rivals, scores, -np.inf)
        best = scores.max()
        near = np.flatnonzero(scores >= best - 2 * self.readout.error)
        margin = lead(self, self.at, near)
        if margin > self.lower:
            self.lower, self.stream = margin, self.at
        if self.settled(0.0, decide):
            return
        found = self._met(scores)
        found.solve(steps, stop_below=self.rounding)
        self.at = found.n
        if found.value < self.upper:
            self.upper, self._proof = found.value, self._weights(found)

    @property
    def weights(self) -> tuple[Int[np.ndarray, " support"], Float[np.ndarray, " support"]]:
        """What proves `upper`: weights of the set's tokens, which sum to 1, and of rivals.

        Of an order a token's weight is that of its lead over what comes next.
        """
        return self._proof

    def _weights(
        self, found: ActiveSet
    ) -> tuple[Int[np.ndarray, " support"], Float[np.ndarray, " support"]]:
        tokens, weights = found.name[found.active], found.z
        if (
            self.ordered
        ):  # each lead belongs to the token that has it, those over rivals to the last
            rivals = float(weights[found.active >= len(self.own)].sum())
            tokens, weights = np.append(tokens, self.tokens[-1]), np.append(weights, rivals)
        return tokens[weights > 0], weights[weights > 0]

    def _met(self, scores: Float[np.ndarray, " d_vocab"]) -> ActiveSet:
        """What is solved, with the likeliest rivals that are not in it yet."""
        if self.found is None:
            self.found = self._begun(_largest(scores, _NEW))
            return self.found
        if len(self.found.rows) > _MOST:
            self._forget(self.found)
        scores[self.found.name[len(self.own) :]] = -np.inf
        self.found.add(*self._of(_largest(scores, _NEW)))
        return self.found

    def _begun(self, new: Int[np.ndarray, " new"]) -> ActiveSet:
        rows, cost, group, name = self._of(new)
        groups = np.concatenate([np.zeros(len(self.own), int), np.full(len(new), group)])
        own = self.tokens[: len(self.own)]
        return ActiveSet(
            np.concatenate([self.own, rows]),
            np.concatenate([self.own_cost, cost]),
            groups,
            np.concatenate([own, name]),
        )

    def _of(
        self, new: Int[np.ndarray, " new"]
    ) -> tuple[np.ndarray, np.ndarray, int, Int[np.ndarray, " new"]]:
        """Rivals as rows of the active set."""
        rows = self.base - self.readout.rows(new)
        return rows, self.base_cost - self.readout.bias[new], int(not self.ordered), new

    def _forget(self, found: ActiveSet) -> None:
        slack = found.slack
        kept = slack <= np.partition(slack, _MOST // 2)[_MOST // 2]
        kept[: len(self.own)] = True
        kept[found.active] = True
        found.keep(kept)


def said(lower: Any, upper: Any, rounding: float) -> np.ndarray:
    """What bounds prove: 1 where a set can be had, 0 where not, -1 where neither."""
    return np.where(np.greater(lower, rounding), 1, np.where(np.less_equal(upper, rounding), 0, -1))


def lead(margin: Margin, n: Float[np.ndarray, " d_model"], near: Int[np.ndarray, " near"]) -> float:
    """The margin of a vector in float64, where only some rivals can be the first of them."""
    own = margin.own @ n + margin.own_cost
    rivals = margin.readout.rows(near) @ n + margin.readout.bias[near]
    apart = float((margin.base @ n + margin.base_cost - rivals).min())
    if not margin.ordered:
        return float(own.min()) + apart
    return min(float(own.min()), apart) if len(own) else apart


def _largest(scores: np.ndarray, k: int) -> Int[np.ndarray, " k"]:
    """The tokens with the largest scores; those without one are left out."""
    k = min(k, len(scores))
    found = np.argpartition(scores, -k)[-k:]
    return found[np.isfinite(scores[found])]
