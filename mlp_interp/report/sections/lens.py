"""What would the model say if it stopped at each layer?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from markupsafe import Markup

from mlp_interp import lens as lenses
from mlp_interp import plots, views
from mlp_interp import prompts as tasks
from mlp_interp.corpus import Corpus
from mlp_interp.models import Weights
from mlp_interp.models.protocol import Model
from mlp_interp.report.attempt import attempt
from mlp_interp.report.figure import drawing
from mlp_interp.report.format import number, percent
from mlp_interp.report.progress import passes
from mlp_interp.report.section import Block, Section, Work
from mlp_interp.report.store import Part
from mlp_interp.results import strings

__all__ = ["LENS", "Depth"]

SEQUENCES = 16
"""Means over so many sequences have small errors; more would cost as much as other sections."""

TOKENS = 24
"""Columns of the grid."""

TASKS = ("facts", "ioi", "agreement", "induction")
LAST = "last block"


@dataclass(frozen=True)
class Depth:
    """What layers say.

    Attributes:
        over: See `mlp_interp.lens.over`; one lens, or two along ``lens``.
        grid: The beginning of the corpus' first sequence; see `mlp_interp.lens.read`.
        tasks: Median rank of the answer, over prompts, at the last token; along ``task, layer``.
    """

    over: xr.Dataset
    grid: xr.Dataset
    tasks: xr.DataArray


def _compute(work: Work) -> Depth:
    model, store = work.model, work.store
    few = Corpus(work.corpus.tokens[:SEQUENCES], dict(work.corpus.attrs))
    run = work.sweep(0.0, 0.8, shard=work.batch_size)
    over = store.get("lens/over", lambda: lenses.over(model, few, _lenses(model), sweep=run))
    grid = lenses.read(model, few.tokens[:1, :TOKENS])
    return Depth(_dataset(over), grid, _answers(work))


def _dataset(part: Part) -> xr.Dataset:
    return part if isinstance(part, xr.Dataset) else part.to_dataset()


def _lenses(model: Model) -> dict[str, lenses.Lens]:
    """The logit lens, and the model's own last block where that is not all of it."""
    named = {"logit": lenses.logit(model)}
    if Weights.of(model).n_layers > 1:
        named[LAST] = lenses.decoder(model, 1)
    return named


def _answers(work: Work) -> xr.DataArray:
    """At which layers the answers of tasks are near the top."""
    rows = {}
    for name in TASKS:
        make = getattr(tasks, name)
        made = attempt(
            work,
            f"The task {name!r}",
            lambda make=make: make(work.model, work.prompts, seed=work.seed),
        )
        if made is not None:
            found = lenses.read(work.model, made, positions=-1, k=1)
            rows[name] = found["rank_target"].isel(pos=0).median("prompt").values
    layers = np.arange(Weights.of(work.model).n_layers + 1)
    values = np.array([*rows.values()]).reshape(len(rows), len(layers))
    return xr.DataArray(
        values,
        dims=("task", "layer"),
        coords={"task": strings([*rows]), "layer": layers},
        attrs={
            "unit": "tokens",
            "long_name": "how many tokens are likelier than the answer, median",
        },
    )


def _cost(work: Work) -> float:
    layers = Weights.of(work.model).n_layers
    used = min(SEQUENCES, len(work.corpus.tokens)) / len(work.corpus.tokens)
    return 1.2 * used * passes(work.model, 2, layers + 1)


def _show(found: Depth) -> Mapping[str, Any]:
    lines = (
        "How far what is read of a layer is from what the model says in the end, and from what is "
        "read of the embedding; how often the likeliest token is the final one; how sure it is. "
        "Where the two lenses differ, the logit lens cannot read what is there: the other lets the "
        "model's own last block read it."
    )
    cells = (
        "The first words of the text: in each cell the likeliest token of a layer, dark where it "
        "gives the final prediction much probability. Click a cell for what else it says; click a "
        "token there for where else it is said."
    )
    grid = views.lens(found.grid)
    return {
        "heading": "What would the model say if it stopped at each layer?",
        "intro": "A lens gives the stream that enters a layer to the readout. The last row is the "
        f"model's own prediction. Measured on {found.over.attrs['sequences']} sequences.",
        "blocks": [
            Block(lines, drawing(plots.lens_depth(found.over))),
            Block(cells, html=Markup(grid.fragment())),
        ],
    }


def _logit(found: Depth) -> xr.Dataset:
    return found.over.sel(lens="logit")


def _sentences(found: Depth) -> list[str]:
    one = _logit(found)
    told = [_half(one, found)]
    if said := _tasks(found.tasks):
        told.append(said)
    return told


def _half(one: xr.Dataset, found: Depth) -> str:
    """The first layer that has most predictions already."""
    agrees = one["agrees"].values
    at = int(np.argmax(agrees >= 0.5))
    text = (
        f"The stream that enters layer {one['layer'].values[at]} is the first in which the final "
        f"likeliest token is on top at half of all positions ({percent(float(agrees[at]))}; KL to "
        f"the final prediction {number(float(one['kl_output'][at]))} nats)."
    )
    if LAST in found.over["lens"].values and at > 0:
        first = int(np.argmax(found.over["agrees"].sel(lens=LAST).values >= 0.5))
        text += f" With the last block as lens it is layer {one['layer'].values[first]}."
    return text


def _tasks(ranks: xr.DataArray) -> str:
    """From which layer on answers are on top."""
    where = {
        str(task): [
            int(layer) for layer, rank in zip(ranks["layer"].values, row, strict=True) if rank == 0
        ]
        for task, row in zip(ranks["task"].values, ranks.values, strict=True)
    }
    there = {task: layers[0] for task, layers in where.items() if layers}
    if not there:
        return ""
    each = ", ".join(f"{layer} ({task})" for task, layer in there.items())
    return f"Answers of tasks are the likeliest token, in the median prompt, first at layer {each}."


def _numbers(found: Depth) -> dict[str, Any]:
    return {
        "agrees": {
            str(name): found.over["agrees"].sel(lens=name).values.tolist()
            for name in found.over["lens"].values
        },
        "rank_of_answer": {
            str(task): row.tolist()
            for task, row in zip(found.tasks["task"].values, found.tasks.values, strict=True)
        },
    }


LENS = Section(
    name="lens",
    title="Layer by layer",
    compute=_compute,
    show=_show,
    parts=vars,
    sentences=_sentences,
    numbers=_numbers,
    cost=_cost,
)
