"""Reachable sets, beside cutting planes through HiGHS: ``make bench``.

Gaussian readouts, one thread, processor time, medians over random sets, ours and theirs in turn.
A decision about ten tokens takes one look at all logits and no solver, so theirs would be the same
product: it has no ratio.
scipy's HiGHS has no warm starts, and a box in place of the ball: it solves a question of the same
size, and not the same one. Shares beside the law are at the sizes at which half of all sets can be
had, by interpolation; ``--law`` alone takes a minute or two.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linprog

sys.path.insert(0, str(Path(__file__).parent))
from rows import VOCABULARY

from mlp_interp import Unembed
from mlp_interp.models.norm import Norm
from mlp_interp.reach._law import largest_set
from mlp_interp.reach._margin import Margin
from mlp_interp.reach._readout import Readout
from mlp_interp.reach._solve import solved

WIDTH = 512
NEW = 128  # rivals a round, as ours


def readout_of(d_vocab: int, width: int, *, bias: float = 0.0, seed: int = 0) -> Readout:
    """Independent Gaussian rows, and biases of so many standard deviations of a logit."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(d_vocab, width)).astype(np.float32)
    added = bias * width**0.5 * rng.normal(size=d_vocab)
    weight = torch.from_numpy(np.ascontiguousarray(rows.T) / np.float32(width**0.5))
    longest = float(np.linalg.norm(rows, axis=1).max())
    unembed = Unembed(weight, torch.from_numpy(added).float(), Norm("rms", 0.0))
    return Readout(unembed, np.ones(d_vocab, bool), added, longest)


def margin(readout: Readout, tokens: np.ndarray, *, decide: bool, ordered: bool = False) -> Margin:
    """Ours, of one set."""
    given = {"ordered": ordered, "tolerance": 1e-3, "decide": decide, "rounds": 60}
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


def seconds(function: Callable[[], Any]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def speed(repeats: int, alone: bool) -> None:
    """Seconds beside bars, and ratios."""
    plain, biased = (readout_of(VOCABULARY, WIDTH, bias=bias) for bias in (0.0, 0.05))
    rows = plain.rows(np.arange(VOCABULARY)).astype(np.float32)
    rng = np.random.default_rng(1)
    for k, decide, bar in ((10, True, 0.2), (10, False, 0.4), (40, False, 2.0)):
        times: list[list[float]] = [[], [], []]
        for _ in range(repeats):
            tokens = rng.choice(VOCABULARY, k, replace=False)
            times[0].append(seconds(lambda: margin(plain, tokens, decide=decide)))  # noqa: B023
            times[1].append(seconds(lambda: margin(biased, tokens, decide=decide)))  # noqa: B023
            if not (alone or decide):
                times[2].append(seconds(lambda: by_highs(rows, tokens)))  # noqa: B023
        ours, with_bias = map(statistics.median, times[:2])
        said = f"  {'decide' if decide else 'margin'} k={k}: {ours:.2f} s (bar {bar:g})"
        said += f", with bias {with_bias / ours:.1f}x (bar 3x)"
        if times[2]:
            said += f", HiGHS {statistics.median(times[2]) / ours:.1f}x as long (bar 4x)"
        print(said, flush=True)


def half(d_vocab: int, width: int, *, ordered: bool, sets: int) -> float:
    """The size at which half of random sets can be had."""
    readout, law = readout_of(d_vocab, width, seed=2), largest_set(d_vocab, width)
    rng, sizes = np.random.default_rng(3), np.unique(np.round(law * np.linspace(0.8, 1.2, 7)))
    shares = []
    for k in sizes.astype(int):
        drawn = (rng.choice(d_vocab, k, replace=False) for _ in range(sets))
        verdicts = [margin(readout, one, decide=True, ordered=ordered).verdict for one in drawn]
        shares.append(np.mean([(one + 1) / 2 if one < 0 else one for one in verdicts]))
    return float(np.interp(-0.5, -np.array(shares), sizes))


def law(sets: int) -> None:
    """Where half of all sets and of all orders can be had, beside the law."""
    for d_vocab, width in ((300, 32), (1000, 64), (1024, 95), (2048, 191)):
        wanted = largest_set(d_vocab, width)
        both = [half(d_vocab, width, ordered=ordered, sets=sets) for ordered in (False, True)]
        said = ", ".join(
            f"{name} {found:.1f} ({found / wanted - 1:+.0%})"
            for name, found in zip(("sets", "orders"), both, strict=True)
        )
        print(f"  {d_vocab} x {width}: the law says {wanted}; {said}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sets", type=int, default=16, help="of each size beside the law")
    parser.add_argument("--alone", action="store_true", help="leave HiGHS out")
    parser.add_argument("--law", action="store_true", help="nothing but the law")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.law:
        print(f"readout of {VOCABULARY} x {WIDTH}", flush=True)
        speed(options.repeats, options.alone)
    print("the size at which half of random sets can be had (bar: within 10%)", flush=True)
    law(options.sets)


if __name__ == "__main__":
    main()
