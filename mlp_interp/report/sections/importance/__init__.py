"""How important is each sub-update? The main question: its answer is the page's summary as well."""

from typing import Any

import xarray as xr

from mlp_interp import plots
from mlp_interp.ablation import subupdate_importance
from mlp_interp.models import Weights
from mlp_interp.report.figure import drawing
from mlp_interp.report.progress import passes
from mlp_interp.report.section import Block, Section, Work
from mlp_interp.report.sections.importance.told import Row as Row
from mlp_interp.report.sections.importance.told import numbers, sentences
from mlp_interp.report.sections.importance.told import rows as rows
from mlp_interp.report.store import Part

__all__ = ["IMPORTANCE", "Row", "rows"]


def _compute(work: Work) -> Part:
    sweep = work.sweep(shard=work.batch_size)
    return work.store.get(
        "importance", lambda: subupdate_importance(work.model, work.corpus, sweep=sweep)
    )


def _cost(work: Work) -> float:
    return passes(work.model, 2 * Weights.of(work.model).n_layers, 3)


def _show(found: xr.Dataset) -> dict[str, Any]:
    loss, top1 = (drawing(plots.importance(found, quantity=q)) for q in ("delta_loss", "top1"))
    return {
        "heading": "Directly, or through later layers?",
        "blocks": [
            Block(
                "Above the dotted line a sub-update matters through what later layers make of it; "
                "below the line later layers make up for its loss.",
                drawing(plots.direct_vs_total(found)),
            ),
            Block(
                "The loss can also fall when something is removed.",
                loss,
                folded="As rise of the loss",
            ),
            Block(
                "How often the likeliest next token becomes another one.",
                top1,
                folded="As changed predictions",
            ),
        ],
    }


IMPORTANCE = Section(
    name="importance",
    title="Importance",
    compute=_compute,
    show=_show,
    # The first three are the page's summary.
    sentences=lambda found: sentences(found)[3:],
    numbers=numbers,
    cost=_cost,
)
