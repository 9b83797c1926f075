"""Many sets at once: their vectors meet the vocabulary together."""

from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Int

from mlp_interp.reach._margin import Margin
from mlp_interp.reach._readout import Readout

__all__ = ["solved"]

_TOGETHER = 32  # sets whose logits of all tokens are in memory
_STEPS = 10_000  # of an active set in a round: far more than any needs


def solved(
    readout: Readout,
    sets: Int[np.ndarray, "set k"],
    *,
    ordered: bool,
    tolerance: float,
    decide: bool,
    rounds: int,
    each: Callable[[Iterable[Margin]], Iterable[Margin]] = iter,
) -> list[Margin]:
    """The margins of sets, each as far as was asked.

    Args:
        readout: The readout.
        sets: Token ids.
        ordered: Whether the tokens must come in this order.
        tolerance: How far apart bounds may be, logits.
        decide: Whether the sign alone is wanted.
        rounds: How often all tokens are asked at most.
        each: Wraps what is iterated over, for a progress bar.
    """
    middle = readout.middle()
    margins = [Margin(readout, tokens, ordered, middle) for tokens in sets]
    waiting = iter(each(margins))
    at_work: list[Margin] = []
    while True:
        for margin in waiting:
            at_work.append(margin)
            if len(at_work) == _TOGETHER:
                break
        if not at_work:
            return margins
        scores = readout.scores(np.stack([margin.at for margin in at_work]))
        for margin, row in zip(at_work, scores, strict=True):
            margin.look(row, _STEPS, decide)
        at_work = [
            margin
            for margin in at_work
            if not margin.settled(tolerance, decide) and margin.rounds < rounds
        ]
