"""What if several layers are removed at once?"""

from typing import Any, Literal, get_args

import xarray as xr

from mlp_interp import plots
from mlp_interp.ablation import ablate_ranges
from mlp_interp.report.figure import drawing
from mlp_interp.report.format import number
from mlp_interp.report.section import Section, Work

__all__ = ["RANGES"]

Kind = Literal["mlp", "attn", "both"]
KINDS: tuple[Kind, ...] = get_args(Kind)
WHAT = {"mlp": "MLPs", "attn": "attention", "both": "both"}


def _compute(work: Work) -> dict[str, Any]:
    sweep = work.sweep(shard=work.batch_size)
    return {
        kind: work.store.get(
            f"ranges/{kind}",
            lambda kind=kind: ablate_ranges(work.model, work.corpus, kind=kind, sweep=sweep),
        )
        for kind in KINDS
    }


def _show(found: dict[str, xr.Dataset]) -> dict[str, Any]:
    return {
        "heading": "What if several layers are removed at once?",
        "intro": "Read from the first removed layer (row) to the last one (column): the diagonal "
        "removes one layer, the top right corner all of them.",
        "figures": {
            WHAT[kind]: drawing(
                plots.ranges(result), f"Perplexity without {WHAT[kind]}", width=None, height=380
            )
            for kind, result in found.items()
        },
    }


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
    template="ranges.html",
)
