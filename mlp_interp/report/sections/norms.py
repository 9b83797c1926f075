"""How large is each sub-update?"""

from typing import Any

import xarray as xr

from mlp_interp import plots
from mlp_interp.report.figure import drawing
from mlp_interp.report.section import Block, Section, Work
from mlp_interp.report.store import Part
from mlp_interp.residual import norms

__all__ = ["NORMS"]


def _compute(work: Work) -> Part:
    size = work.batch_size
    return work.store.get("norms", lambda: norms(work.model, work.corpus, batch_size=size))


def _show(found: xr.Dataset) -> dict[str, Any]:
    caption = (
        "Each marker is the median length of what a layer's attention or MLP adds to the residual "
        "stream; one that is small beside the stream (grey) can hardly turn it."
    )
    return {
        "heading": "How large is each sub-update?",
        "blocks": [Block(caption, drawing(plots.norms(found)))],
    }


NORMS = Section(name="norms", title="Norms", compute=_compute, show=_show)
