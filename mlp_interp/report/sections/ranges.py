"""What if several layers are removed at once?"""

from functools import partial
from typing import Any, Literal, get_args

import xarray as xr

from mlp_interp import plots
from mlp_interp.ablation import ablate_ranges
from mlp_interp.corpus import Corpus
from mlp_interp.models import Weights
from mlp_interp.report.figure import drawing
from mlp_interp.report.format import number
from mlp_interp.report.progress import passes
from mlp_interp.report.section import Section, Work

__all__ = ["RANGES"]

Kind = Literal["mlp", "attn", "both"]
KINDS: tuple[Kind, ...] = get_args(Kind)
WHAT = {"mlp": "MLPs", "attn": "attention", "both": "both"}


BLOCKS = 12
"""A deeper model is cut into so many blocks of layers: of 30 layers, 78 ranges instead of 465."""

BUDGET = 2.0
"""Ranges may take as long as so many times the importance of sub-updates: on fewer sequences."""

LEAST = 8
"""Sequences that are always measured, where there are as many."""


def _plan(work: Work) -> tuple[int, int]:
    """How many blocks, and how many sequences."""
    n_layers, sequences = Weights.of(work.model).n_layers, len(work.corpus.tokens)
    blocks = min(n_layers, BLOCKS)
    allowed = BUDGET * passes(work.model, 2 * n_layers, 3) / _whole(work, blocks)
    return blocks, min(sequences, max(LEAST, int(allowed * sequences)))


def _whole(work: Work, blocks: int) -> float:
    return passes(work.model, len(KINDS) * blocks * (blocks + 1) // 2, 1)


def _cost(work: Work) -> float:
    blocks, sequences = _plan(work)
    return _whole(work, blocks) * sequences / len(work.corpus.tokens)


def _compute(work: Work) -> dict[str, Any]:
    blocks, sequences = _plan(work)
    few = Corpus(work.corpus.tokens[:sequences], {"data": work.corpus.attrs.get("data", "")})
    found: dict[str, Any] = {}
    for n, kind in enumerate(KINDS):
        run = work.sweep(n / len(KINDS), (n + 1) / len(KINDS), shard=work.batch_size)
        measure = partial(ablate_ranges, work.model, few, kind=kind, blocks=blocks, sweep=run)
        found[kind] = work.store.get(f"ranges/{kind}", measure)
    for part in found.values():
        part.attrs["sequences_of"] = len(work.corpus.tokens)
    return found


def _show(found: dict[str, xr.Dataset]) -> dict[str, Any]:
    return {
        "heading": "What if several layers are removed at once?",
        "intro": "Read from the first removed layer (row) to the last one (column): the diagonal "
        "removes the fewest, the top right corner all of them." + _measured(found["mlp"]),
        "figures": {
            WHAT[kind]: drawing(
                plots.ranges(result), f"Perplexity without {WHAT[kind]}", width=None, height=380
            )
            for kind, result in found.items()
        },
    }


def _measured(one: xr.Dataset) -> str:
    """What was left out to save time, if anything was."""
    layers = int(one["end"].values[-1]) + 1
    used, there = int(one.attrs["sequences"]), int(one.attrs.get("sequences_of", 0))
    text = ""
    if one.sizes["start"] < layers:
        text = (
            f" Of the {layers * (layers + 1) // 2:,} ranges of {layers} layers, "
            f"{one.sizes['start'] * (one.sizes['start'] + 1) // 2} are measured: those that begin "
            f"and end between {one.sizes['start']} blocks of layers."
        )
    if used < there:
        text += f" Measured on the first {used} of {there} sequences, since ranges are many."
    return text


def _sentences(found: dict[str, xr.Dataset]) -> list[str]:
    clean = float(found["mlp"].attrs.get("clean_perplexity", float("nan")))
    return [
        f"Without any MLP, perplexity goes from {number(clean)} to "
        f"{number(_corner(found['mlp']))}; without any attention, to "
        f"{number(_corner(found['attn']))}."
    ]


def _numbers(found: dict[str, xr.Dataset]) -> dict[str, Any]:
    return {
        kind: {"perplexity": _corner(r), "clean_perplexity": r.attrs.get("clean_perplexity")}
        for kind, r in found.items()
    }


def _corner(result: xr.Dataset) -> float:
    """Perplexity with every layer removed."""
    return float(result["perplexity"].isel(start=0, end=-1))


RANGES = Section(
    name="ranges",
    title="Several layers",
    compute=_compute,
    show=_show,
    parts=dict,
    sentences=_sentences,
    numbers=_numbers,
    cost=_cost,
    template="ranges.html",
)
