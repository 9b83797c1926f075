"""Runs a grid of patches: as patched runs of one base run, or one forward pass a cell."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from mlp_interp.edits import Edit
from mlp_interp.interchange.exchange import Exchange
from mlp_interp.interchange.grid import Cell, Grid
from mlp_interp.interchange.pair import Pair
from mlp_interp.interchange.patches import Patch, Patches, entered, spans, whole
from mlp_interp.models import Forward
from mlp_interp.runs import PatchedRun, final_streams, rows_in
from mlp_interp.sites import Site

__all__ = ["ROWS", "Added", "Outcome", "kept_for", "measure", "measure_added"]

Changed = tuple[tuple[int, ...], list[Edit], Bool[Tensor, " prompt"]]
"""The place of a value, the edits it is read after, and in which prompts they change anything."""

ROWS = 2048  # more of them together gain nothing: the matrix products are at full speed already


@dataclass(frozen=True)
class Outcome:
    """The metric of many exchanges.

    Attributes:
        values: Of each, ``[*cells, prompt]``.
        changed: Whether it put in anything that was not there already.
        everything: The metric where all that the runs differ in is exchanged.
        nothing: The metric where nothing is.
    """

    values: Float[Tensor, "*cells prompt"]
    changed: Bool[Tensor, "*cells prompt"]
    everything: Float[Tensor, "*sets prompt"]
    nothing: Float[Tensor, "*sets prompt"]

    @classmethod
    def of(cls, pair: Pair, shape: tuple[int, ...], sets: tuple[int, ...] = ()) -> "Outcome":
        """That of exchanges that change nothing, to be filled."""
        own = pair.base_value
        values = own.expand(*shape, len(own)).clone()
        changed = torch.zeros_like(values, dtype=torch.bool)
        checks = (own.expand(*sets, len(own)).clone() for _ in range(2))
        return cls(values, changed, *checks)

    def fill(self, places: list[tuple[int, ...]], values: Float[Tensor, " item"]) -> None:
        """Put in what some of the exchanges gave."""
        where = tuple(torch.tensor(places, device=values.device).T)
        self.values[where] = values
        self.changed[where] = True


def kept_for(grid: Grid, *, lean: bool) -> list[Site]:
    """Activations that both runs must keep for a grid."""
    # Streams are always kept, and by the lean forward what heads computed.
    spared = {"resid_pre", "resid_post"} | (set("qkvz") | {"pattern"} if lean else set())
    names = [name for name in grid.sites if name not in spared]
    return [Site(name, layer) for name in names for layer in range(grid.n_layers)]


def measure(pair: Pair, grid: Grid, *, memory: float, progress: bool) -> Outcome:
    """The metric after every patch of a grid.

    Args:
        pair: The two runs, which keep what `kept_for` says.
        grid: Which patches.
        memory: MiB for streams that wait and for what is computed together.
        progress: Show a progress bar.
    """
    if isinstance(pair.base.forward, Forward):
        patches = Patches(grid, Exchange(pair.base, pair.source))
        return _patched(pair, grid.shape, patches, memory, progress)
    cells = ((cell.where, *_edits(pair, grid, cell)) for cell in grid.cells())
    return _edited(pair, grid.shape, cells, progress)


class Added(NamedTuple):
    """A vector for each prompt and position that is added at a place of the stream.

    `where` is its place in the array of results, before that of the position.
    """

    where: tuple[int, ...]
    site: Site
    change: Float[Tensor, "prompt pos d_model"]


def measure_added(
    pair: Pair,
    added: Iterable[Added],
    shape: tuple[int, ...],
    positions: Sequence[int] | None,
    *,
    memory: float,
    progress: bool,
) -> Outcome:
    """The metric after each of some additions: what parts of a place are exchanged by.

    Args:
        pair: The two runs.
        added: What is added to the base.
        shape: Of the results, without positions.
        positions: At which positions, one at a time; None for all together.
        memory: As of `measure`.
        progress: As of `measure`.
    """
    if positions is not None:
        shape = (*shape, len(positions))
    if isinstance(pair.base.forward, Forward):
        return _patched(pair, shape, _patches(pair, added, positions), memory, progress)
    return _edited(pair, shape, _additions(added, positions), progress)


def _patches(
    pair: Pair, added: Iterable[Added], positions: Sequence[int] | None
) -> Iterator[Patch]:
    for where, site, change in added:
        differs = (change != 0).any(-1)
        if not bool(differs.any()):
            continue
        entry, stream = entered(pair.base, site, change)
        for suffix, prompt, some in spans(differs, positions):
            yield (
                (*where, *suffix, prompt),
                PatchedRun(prompt, entry, some.start, stream[prompt, some]),
            )


def _additions(added: Iterable[Added], positions: Sequence[int] | None) -> Iterator[Changed]:
    for where, site, change in added:
        if positions is None:
            yield where, [Edit.add(site, change)], (change != 0).flatten(1).any(-1)
            continue
        for place, position in enumerate(positions):
            if position < change.shape[1]:
                some = change[:, position : position + 1]
                edits = [Edit.add(site, some, positions=position)]
                yield (*where, place), edits, (some != 0).flatten(1).any(-1)


def _patched(
    pair: Pair, shape: tuple[int, ...], patches: Iterable[Patch], memory: float, progress: bool
) -> Outcome:
    base, read = pair.base, pair.reading.read
    outcome = Outcome.of(pair, shape)
    rows = min(ROWS, rows_in(base, memory / 2))
    numbers = memory / 2 * 2**20 / base.final.element_size()

    def measured(some: list[Patch]) -> Float[Tensor, " patch"]:
        runs = [run for _, run in some]
        prompts = torch.tensor([run.prompt for run in runs], device=base.final.device)
        return pair.reading(final_streams(base, runs, read, rows=rows), prompts)

    with tqdm(total=outcome.values.numel(), desc="patching", disable=not progress) as bar:
        # Beside its stream, a run holds as much and its queries, keys, values and MLP's output.
        for some in _chunks(patches, numbers, 5 * base.weights.d_model):
            outcome.fill([place for place, _ in some], measured(some))
            bar.update(len(some))
        bar.update(bar.total - bar.n)
    outcome.everything[:] = measured(whole(base, pair.source.streams[0]))
    outcome.nothing[:] = measured(whole(base, base.streams[0]))
    return outcome


def _chunks(patches: Iterable[Patch], numbers: float, each: int) -> Iterator[list[Patch]]:
    """Patches that hold at most so many numbers together: their streams, and `each` besides."""
    waiting: list[Patch] = []
    held = 0
    for patch in patches:
        size = patch[1].stream.numel() + each
        if waiting and held + size > numbers:
            yield waiting
            waiting, held = [], 0
        waiting.append(patch)
        held += size
    if waiting:
        yield waiting


def _edited(
    pair: Pair, shape: tuple[int, ...], cells: Iterable[Changed], progress: bool
) -> Outcome:
    """One forward pass a cell: slow, and right for any model."""
    outcome = Outcome.of(pair, shape)

    def measured(edits: list[Edit]) -> Float[Tensor, " prompt"]:
        return pair.measured(pair.base.edited(edits, sites=()).final)

    bar = tqdm(cells, total=math.prod(shape), desc="patching", disable=not progress)
    for where, edits, differs in bar:
        if differs.any():
            outcome.values[where] = measured(edits)
            outcome.changed[where] = differs
    first = Site("resid_pre", 0)
    outcome.everything[:] = measured([Edit.set(first, pair.source.streams[0])])
    outcome.nothing[:] = measured([Edit.set(first, pair.base.streams[0])])
    return outcome


def _edits(pair: Pair, grid: Grid, cell: Cell) -> tuple[list[Edit], Bool[Tensor, " prompt"]]:
    """The edits of one cell, and in which prompts they put in anything new."""
    edits: list[Edit] = []
    differs = torch.zeros(pair.base.batch, dtype=torch.bool, device=pair.base.final.device)
    exchange = Exchange(pair.base, pair.source)
    for layer in grid.window_at(cell.layer):
        taken, own = exchange.pair(cell.site, layer)
        index = _index(cell)
        differs |= (taken[index] != own[index]).flatten(1).any(-1)
        site = Site(cell.site, layer)
        edits.append(Edit.set(site, taken[index], positions=cell.position, units=cell.unit))
    return edits, differs


def _index(cell: Cell) -> tuple[Any, ...]:
    """A cell's part of an activation; axes stay, those of a single entry too."""
    position, unit = (
        slice(None) if i is None else slice(i, i + 1) for i in (cell.position, cell.unit)
    )
    if cell.site == "pattern":  # [prompt, head, query, key]
        return slice(None), unit, position
    return (slice(None), position) if cell.unit is None else (slice(None), position, unit)
