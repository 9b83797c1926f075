"""Reachable sets, beside cutting planes through HiGHS and beside the seconds that they may take.

Gaussian readouts, one thread, processor time, random sets that change from run to run. A decision
about ten tokens takes one look at all logits and no solver, so theirs would be the same product: it
has no ratio. scipy's HiGHS has no warm starts, and a box in place of the ball: it solves a question
of the same size, and not the same one.
"""

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from rows import VOCABULARY, Row, Setting, allowed, compare
from scipy.optimize import linprog

from mlp_interp import Unembed
from mlp_interp.models.norm import Norm
from mlp_interp.reach._margin import Margin
from mlp_interp.reach._readout import Readout
from mlp_interp.reach._solve import solved

WIDTH = 512
NEW = 128  # rivals a round, as ours


def readout_of(d_vocab: int, width: int, *, bias: float = 0.0) -> Readout:
    """Independent Gaussian rows, and biases of so many standard deviations of a logit."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(d_vocab, width)).astype(np.float32)
    added = bias * width**0.5 * rng.normal(size=d_vocab)
    weight = torch.from_numpy(np.ascontiguousarray(rows.T) / np.float32(width**0.5))
    longest = float(np.linalg.norm(rows, axis=1).max())
    unembed = Unembed(weight, torch.from_numpy(added).float(), Norm("rms", 0.0))
    return Readout(unembed, np.ones(d_vocab, bool), added, longest)


def margin(readout: Readout, tokens: np.ndarray, *, decide: bool = False) -> Margin:
    """Ours, of one set."""
    given = {"ordered": False, "tolerance": 1e-3, "decide": decide, "rounds": 60}
    return solved(readout, tokens[None], **given)[0]


def by_highs(rows: np.ndarray, tokens: np.ndarray) -> None:
    """Theirs: the same cutting planes, each solved from the start."""
    rivals = np.setdiff1d(np.arange(len(rows)), tokens)
    at = rows[tokens].mean(0)
    known, width = np.empty(0, int), rows.shape[1]
    own = np.c_[-rows[tokens], np.ones(len(tokens)), np.zeros(len(tokens))]
    upper = np.inf
    for _ in range(60):
        scores = rows @ at.astype(np.float32)
        lower = float(scores[tokens].min() - scores[rivals].max())
        if upper - lower <= 1e-3:
            return
        fresh = np.setdiff1d(rivals[np.argpartition(scores[rivals], -NEW)[-NEW:]], known)
        known = np.concatenate([known, fresh])
        theirs = np.c_[rows[known], np.zeros(len(known)), -np.ones(len(known))]
        found = linprog(
            np.r_[np.zeros(width), -1, 1],
            A_ub=np.concatenate([own, theirs]),
            b_ub=np.zeros(len(own) + len(theirs)),
            bounds=[(-1, 1)] * width + [(None, None)] * 2,
            method="highs",
        )
        at, upper = found.x[:width], -found.fun


def measured(setting: Setting) -> Iterator[Row]:
    """Decisions and margins of ten and forty tokens."""
    torch.set_num_threads(1)
    size = 2_000 if setting.small else VOCABULARY
    plain, biased = (readout_of(size, WIDTH, bias=bias) for bias in (0.0, 0.05))
    rows = plain.rows(np.arange(size)).astype(np.float32)

    def on(run: Callable[[np.ndarray], object], k: int) -> Callable[[], None]:
        """A run about other tokens each time, the same ones for all."""
        rng = np.random.default_rng(1)

        def one() -> None:
            run(rng.choice(size, k, replace=False))

        return one

    of = f"tokens among {size:,}, width {WIDTH}"
    for k, decide, seconds in ((10, True, 0.2), (10, False, 0.4), (40, False, 2.0)):
        yield allowed(
            f"{'whether' if decide else 'margin of'} {k} {of}, against {seconds:g} s",
            on(lambda tokens, decide=decide: margin(plain, tokens, decide=decide), k),
            repeats=setting.repeats,
            seconds=seconds,
            bound="reads the rows once a round",
        )
    ours = on(lambda tokens: margin(plain, tokens), 10)
    ways = {
        "cutting planes through HiGHS": (ours, on(lambda t: by_highs(rows, t), 10), 4),
        "without a bias": (on(lambda t: margin(biased, t), 10), ours, 1 / 3),
    }
    for what, (run, theirs, bar) in ways.items():
        yield compare(
            f"margin of 10 {of}{', with a bias' * ('bias' in what)}, against {what}",
            run,
            theirs,
            repeats=setting.repeats,
            bound="one solver, or one margin",
            bar=bar,
            clock=time.process_time,
        )
