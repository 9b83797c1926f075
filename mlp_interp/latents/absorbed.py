"""Which latents find a kind of text, and who carries its direction in the texts that they miss."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

__all__ = ["PARTS", "Seen", "absorbed", "main_latents"]

PARTS = ("main", "strongest_other", "other_latents", "rest")
"""What carries a direction: the rest is the dictionary's biases, its skip and its error."""

_GAIN = 0.03  # of F1, that another main latent is worth
_DRAWS = 20  # of the null


@dataclass(frozen=True)
class Seen:
    """What is at the last token of each text.

    Attributes:
        written: At the place that the dictionary writes.
        strengths: By what latents' decoder rows are multiplied there.
        rows: The decoder rows.
        chooses: Which texts choose the direction and the main latents.
    """

    written: Float[np.ndarray, "text d_out"]
    strengths: Float[np.ndarray, "text latent"]
    rows: Float[np.ndarray, "latent d_out"]
    chooses: Bool[np.ndarray, " text"]


def absorbed(
    seen: Seen, positive: Bool[np.ndarray, " text"], k: int, share: float, seed: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What is known of one kind, and of each of its texts that did not choose.

    Args:
        seen: The texts.
        positive: Which are of the kind.
        k: How many main latents there may be.
        share: Of the excess, that another latent must carry to absorb.
        seed: Of the null.
    """
    chosen, others = seen.chooses & positive, seen.chooses & ~positive
    mean = seen.written[others].mean(0)
    direction = seen.written[chosen].mean(0) - mean
    length = np.linalg.norm(direction)
    excess = (seen.written - mean) @ (direction / (length or 1.0))
    main, at, f1 = main_latents(seen.strengths[seen.chooses], positive[seen.chooses], k)
    own, other = ~seen.chooses & positive, ~seen.chooses & ~positive
    along = seen.rows @ (direction / (length or 1.0))
    moved = seen.strengths[own] - seen.strengths[others].mean(0)
    active = seen.strengths[own] > 0
    active[:, main] = False
    carried = moved * along
    strongest, which = _strongest(carried, active)
    parts = np.stack([carried[:, main].sum(1), strongest], 1)
    latents = carried.sum(1)
    parts = np.column_stack([parts, latents - parts.sum(1), excess[own] - latents])
    found = excess[own] > length / 2
    hit = (seen.strengths[own][:, main] > at).any(1)
    missed = np.logical_not(hit)
    enough = share * excess[own]
    null = [
        _strongest(moved * _exchanged(along, main, seed + n), active)[0] >= enough
        for n in range(_DRAWS)
    ]
    both = (found & missed, found & hit)
    absorbs = strongest >= enough
    of_kind = {
        "main": np.pad(main, (0, k - len(main)), constant_values=-1),
        "f1": f1,
        "found": found.mean(),
        "false_alarms": (excess[other] > length / 2).mean(),
        "missed": _rate(missed, found),
        "full": _rate(absorbs & missed, found),
        "partial": _rate(absorbs & hit, found),
        "full_null": _rate(np.mean(null, 0) * missed, found),
        "partial_null": _rate(np.mean(null, 0) * hit, found),
        "share": np.stack([_ratio(parts[some], excess[own][some]) for some in both]),
    }
    of_text = {"excess": excess[own], "part": parts, "found": found, "hit": hit}
    of_text |= {"absorbs": absorbs & found, "strongest": which}
    return of_kind, of_text


def main_latents(
    strengths: Float[np.ndarray, "text latent"], positive: Bool[np.ndarray, " text"], k: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """The latents that find a kind of text, each above a threshold of its own.

    The first has the best F1; another is added, up to `k`, if F1 rises by 0.03 where a text counts
    as found as soon as one of them is above its threshold: two latents that share a kind are both
    its own, one that has a few of its texts is not.

    Returns:
        Which, above what, and the F1.
    """
    some = np.flatnonzero((strengths[positive] > 0).any(0))
    hit = np.zeros(len(positive), dtype=bool)
    main, thresholds, f1 = [], [], 0.0
    while len(some) and len(main) < k:
        scores, above = _best_f1(strengths[:, some], positive, hit)
        best = int(scores.argmax())
        if scores[best] < f1 + (_GAIN if main else 0.0):
            break
        main.append(some[best])
        thresholds.append(above[best])
        f1 = float(scores[best])
        hit |= strengths[:, some[best]] > above[best]
    return np.array(main, dtype=int), np.array(thresholds), f1


def _best_f1(
    values: Float[np.ndarray, "text some"],
    positive: Bool[np.ndarray, " text"],
    hit: Bool[np.ndarray, " text"],
) -> tuple[np.ndarray, np.ndarray]:
    """Each latent's best F1 beside texts that are hit already, and the threshold that gives it."""
    order = np.argsort(-values, 0, kind="stable")
    ranked = np.take_along_axis(values, order, 0)
    below = np.vstack([ranked[1:], np.zeros_like(ranked[:1])])
    hits = (hit & positive).sum() + (~hit & positive)[order].cumsum(0)
    calls = hit.sum() + (~hit)[order].cumsum(0)
    f1 = 2 * hits / (calls + positive.sum())
    f1 = np.where(ranked > np.maximum(below, 0), f1, 0.0)  # not within a tie, nor where silent
    at = f1.argmax(0)[None]
    best, upper, lower = (np.take_along_axis(x, at, 0)[0] for x in (f1, ranked, below))
    return best, (upper + np.maximum(lower, 0)) / 2


def _strongest(
    carried: Float[np.ndarray, "text latent"], active: Bool[np.ndarray, "text latent"]
) -> tuple[np.ndarray, np.ndarray]:
    """What the one of the active latents carries that carries most, and which; 0 and -1 of none."""
    held = np.where(active, carried, -np.inf)
    which = held.argmax(1)
    none = ~active.any(1)
    most = held[np.arange(len(held)), which]
    return np.where(none, 0.0, most), np.where(none, -1, which)


def _exchanged(along: np.ndarray, main: np.ndarray, seed: int) -> np.ndarray:
    """What latents write along a direction, exchanged between those that are not main."""
    others = np.setdiff1d(np.arange(len(along)), main)
    exchanged = along.copy()
    exchanged[others] = along[np.random.default_rng(seed).permutation(others)]
    return exchanged


def _rate(which: np.ndarray, of: np.ndarray) -> float:
    return float(which[of].mean()) if of.any() else np.nan


def _ratio(parts: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Sums of parts over that of the whole: no text of small excess has the say."""
    return parts.sum(0) / whole.sum() if len(whole) else np.full(parts.shape[1], np.nan)
