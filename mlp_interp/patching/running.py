"""Run the patches of a grid: as branches where the model allows, else one forward pass a cell."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from mlp_interp.edits import Edit
from mlp_interp.metrics import Reader
from mlp_interp.patching.cells import Cell, Grid
from mlp_interp.patching.exchange import Exchange, Job
from mlp_interp.runs import Run, Runner, grow, rows_in
from mlp_interp.sites import Site

__all__ = ["Outcome", "run_branches", "run_cells"]

_ROWS = 2048  # more of them together gain nothing: the matrix products are at full speed already


@dataclass(frozen=True)
class Outcome:
    """Values of a grid's patches.

    Attributes:
        values: The metric, ``[*cells, prompt]``.
        changed: Whether the patch put in anything that was not there already.
        everything: The metric where all that the runs differ in is patched, ``[prompt]``.
        nothing: The metric where nothing is.
    """

    values: Tensor
    changed: Bool[Tensor, "*cells prompt"]
    everything: Float[Tensor, " prompt"]
    nothing: Float[Tensor, " prompt"]


def run_branches(
    exchange: Exchange,
    read: list[int],
    reader: Reader,
    own: Float[Tensor, " prompt"],
    *,
    memory: float,
    progress: bool,
) -> Outcome:
    """Run a grid through the engine.

    Args:
        exchange: The two runs and the grid.
        read: Positions that the metric reads.
        reader: The metric.
        own: The metric of the base run, which patches that change nothing keep.
        memory: MiB for streams that wait and for what is computed together.
        progress: Show a progress bar.
    """
    base, prompts = exchange.base, exchange.base.prompts
    values = own.expand(*exchange.grid.shape, prompts).clone()
    changed = torch.zeros_like(values, dtype=torch.bool)
    rows = min(_ROWS, rows_in(base, memory / 2))
    total = values.numel()

    def measure(jobs: list[Job]) -> Float[Tensor, " job"]:
        branches = [branch for _, branch in jobs]
        final = grow(base, branches, read, rows=rows)
        return reader(final, torch.tensor([b.prompt for b in branches], device=final.device))

    with tqdm(total=total, desc="patching", disable=not progress) as bar:
        for jobs in _chunks(exchange.jobs(), memory / 2 * 2**20 / base.streams[0].element_size()):
            where = tuple(torch.tensor([place for place, _ in jobs], device=values.device).T)
            values[where] = measure(jobs)
            changed[where] = True
            bar.update(len(jobs))
        bar.update(total - bar.n)
    checks = [
        measure([((i,), exchange.whole(i, changed=c)) for i in range(prompts)])
        for c in (True, False)
    ]
    return Outcome(values, changed, *checks)


def _chunks(jobs: Iterable[Job], numbers: float) -> Iterator[list[Job]]:
    """Jobs whose streams hold at most so many numbers together."""
    chosen: list[Job] = []
    held = 0
    for job in jobs:
        if chosen and held + job[1].stream.numel() > numbers:
            yield chosen
            chosen, held = [], 0
        chosen.append(job)
        held += job[1].stream.numel()
    if chosen:
        yield chosen


def run_cells(
    runner: Runner,
    grid: Grid,
    base: Run,
    source: Run,
    measure: Callable[[Float[Tensor, "prompt pos d_model"]], Float[Tensor, " prompt"]],
    *,
    progress: bool,
) -> Outcome:
    """Run a grid through edits, one forward pass a cell: slow, and right for any model.

    Args:
        runner: Applies the edits.
        grid: Which patches.
        base: The run that is patched.
        source: The run whose activations are put in.
        measure: From the final stream to the metric.
        progress: Show a progress bar.
    """
    own = measure(base.final)
    values = own.expand(*grid.shape, len(own)).clone()
    changed = torch.zeros_like(values, dtype=torch.bool)
    cells = list(grid.cells())
    for cell in tqdm(cells, desc="patching", disable=not progress):
        edits, differs = _edits(grid, cell, base, source)
        if differs.any():
            values[cell.where] = measure(runner.edited(base, edits))
            changed[cell.where] = differs
    first = Site("resid_pre", 0)
    everything = [Edit.set(first, source.streams[0])]
    nothing = [Edit.set(first, base.streams[0])]
    return Outcome(
        values,
        changed,
        measure(runner.edited(base, everything)),
        measure(runner.edited(base, nothing)),
    )


def _edits(
    grid: Grid, cell: Cell, base: Run, source: Run
) -> tuple[list[Edit], Bool[Tensor, " prompt"]]:
    """The edits of one cell, and in which prompts they put in anything new."""
    edits: list[Edit] = []
    differs = torch.zeros(len(base.tokens), dtype=torch.bool, device=base.final.device)
    for layer in grid.window_at(cell.layer):
        site = Site(cell.site, layer)
        taken, own = (_activation(run, site) for run in (source, base))
        taken = taken.expand_as(own)
        index: list[Any] = [slice(None), slice(None)]
        if cell.position is not None:
            index[1] = slice(cell.position, cell.position + 1)
        if cell.unit is not None:
            index.append(slice(cell.unit, cell.unit + 1))
        if cell.site == "pattern":  # [prompt, head, query, key]
            index = [index[0], index[2], index[1]]
        value = taken[tuple(index)]
        differs |= (value != own[tuple(index)]).flatten(1).any(-1)
        edits.append(
            Edit.set(
                site,
                value,
                positions=None if cell.position is None else (cell.position,),
                units=None if cell.unit is None else (cell.unit,),
            )
        )
    return edits, differs


def _activation(run: Run, site: Site) -> Tensor:
    if site.name in ("resid_pre", "resid_post"):
        return run.streams[(site.layer or 0) + (site.name == "resid_post")]
    return run.seen[site]
