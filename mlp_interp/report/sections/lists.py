"""Which lists of tokens does the readout allow?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlp_interp.corpus import Corpus
from mlp_interp.models import Unembed
from mlp_interp.prompts.tokenizing import ids_in_text
from mlp_interp.reach import argmaxable, reachable_share
from mlp_interp.report.attempt import attempt
from mlp_interp.report.format import number, percent
from mlp_interp.report.section import Section, Work
from mlp_interp.report.store import Part

__all__ = ["LISTS", "Lists"]

K = 10
"""Tokens of a list: as many as people read."""

SETS = 16
"""Random lists."""

TOKENS = 2048
"""Tokens that are asked one by one: all of a larger vocabulary take as long as other sections."""

SEQUENCES = 16
"""Of the corpus, for the leads of the model's own lists."""


@dataclass(frozen=True)
class Lists:
    """What the readout allows; None where it bounds nothing.

    Attributes:
        firsts: Which tokens can be the likeliest, see `mlp_interp.reach.argmaxable`.
        shares: Random lists beside the model's own, see `mlp_interp.reach.reachable_share`.
        known: Tokens that the tokenizer has: others only pad the vocabulary.
    """

    firsts: Part | None = None
    shares: Part | None = None
    known: int = 0


def _compute(work: Work) -> Lists:
    return attempt(work, "What lists the readout allows", lambda: _measured(work)) or Lists()


def _measured(work: Work) -> Lists:
    model, store = work.model, work.store
    known = ids_in_text(model)
    unknown = [*range(known, Unembed.of(model).d_vocab)]
    some = np.arange(known)
    if known > TOKENS:
        some = np.sort(np.random.default_rng(work.seed).choice(some, TOKENS, replace=False))
    firsts = store.get("lists/firsts", lambda: argmaxable(model, tokens=some, exclude=unknown))
    few = Corpus(work.corpus.tokens[:SEQUENCES], dict(work.corpus.attrs))
    given: dict[str, Any] = {"n": SETS, "seed": work.seed, "exclude": unknown, "corpus": few}
    sweep = work.sweep(0.5)
    size = min(K, known - 1)
    shares = store.get("lists/shares", lambda: reachable_share(model, size, sweep=sweep, **given))
    return Lists(firsts, shares, known)


def _parts(found: Lists) -> Mapping[str, Part]:
    both = {"firsts": found.firsts, "shares": found.shares}
    return {name: part for name, part in both.items() if part is not None}


def _show(found: Lists) -> Mapping[str, Any]:
    return {
        "heading": "Which lists of tokens could the model give?",
        "intro": "What the readout allows, for any stream that the final norm can leave; lists are "
        "of tokens drawn at random. The command mlp-interp reach asks about your own.",
        "blocks": [],
    }


def _sentences(found: Lists) -> list[str]:
    told = _numbers(found)
    if not told:
        return []
    k, sure = told["k"], told["can be first"]
    asked, whole = told["tokens"], told["of"]
    which = f"{'All' if sure == asked else f'{sure:,} of'} {asked:,} tokens"
    drawn = "" if asked == whole else f", drawn from {whole:,},"
    return [
        f"{which}{drawn} can be the likeliest; {percent(told['share'])} of random lists of {k} can "
        f"be on top, and could lead by {number(told['lead'])} logits in the median, where the "
        f"model's own {k} lead by {number(told['own lead'])}."
    ]


def _numbers(found: Lists) -> dict[str, Any]:
    if found.firsts is None or found.shares is None:
        return {}
    firsts, shares = found.firsts, found.shares
    median = shares.isel(k=0).sel(quantile=0.5)
    return {
        "tokens": int(firsts.sizes["token_id"]),
        "of": found.known,
        "can be first": int((firsts["reachable"] == 1).sum()),
        "k": int(shares["k"][0]),
        "share": float(shares["share"][0]),
        "lead": float(median["margin_quantile"]),
        "own lead": float(median["own_gap_quantile"]),
    }


LISTS = Section(
    name="lists",
    title="Possible lists",
    compute=_compute,
    show=_show,
    parts=_parts,
    sentences=_sentences,
    numbers=_numbers,
)
