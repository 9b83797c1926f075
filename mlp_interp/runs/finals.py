"""Patched runs: all those that are under way pass through a block together.

Rows are the unit of work: one stream vector of one patched run. A patched run has a row for each
position from its first changed one on, and joins when the walk over the blocks reaches its layer,
so that the matrix products take the rows of early and late ones at once, without padding.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.runs.entry import Entries
from mlp_interp.runs.group import Group
from mlp_interp.runs.patched_run import PatchedRun
from mlp_interp.runs.recorded import Run

__all__ = ["final_streams", "rows_in"]


def rows_in(base: Run, memory: float) -> int:
    """How many rows fit into `memory` MiB, with what a block computes for each.

    A row holds its stream, queries, keys, values and the widest hidden layer.
    """
    return max(1, int(memory * 2**20 / base.final.element_size() / _row(base)))


def _row(base: Run) -> int:
    """How many numbers a row takes in a block."""
    return 2 * base.weights.d_mlp + 12 * base.weights.d_model


@torch.no_grad()
def final_streams(
    base: Run, patched: Sequence[PatchedRun], read: Sequence[int], *, rows: int = 1024
) -> Float[Tensor, "run read d_model"]:
    """Final streams of patched runs at the positions that are read, as full passes give them.

    What it leaves out: blocks below a run's layer, positions before its first changed one,
    everything but keys and values, or where few positions are read but what scores and mixes need,
    at the last block's unread positions, and, where one position differs, everything in its first
    block that reads only other positions.

    Args:
        base: The run that they leave, by the lean forward and without edits.
        patched: The patched runs, in any order.
        read: The positions wanted, counted from 0.
        rows: About how many rows are computed together.

    Returns:
        Final streams, in the order of `patched`.
    """
    # Neighbours in position share most of their keys; neighbours in layer join at like times.
    order = sorted(range(len(patched)), key=lambda i: (patched[i].start, patched[i].layer))
    final = base.final.new_empty(len(patched), len(read), base.final.shape[-1])
    entries = Entries.of(base, patched, rows=rows)
    for together in _groups(base, patched, order, rows):
        at = torch.tensor(together, device=final.device)
        final[at] = Group(base, [patched[i] for i in together], entries[at], read).run()
    return final


def _groups(
    base: Run, patched: Sequence[PatchedRun], order: list[int], rows: int
) -> Iterator[list[int]]:
    together: list[int] = []
    taken = 0.0
    # Whatever its rows, a patched run has room for all keys and values, and for as many queries.
    always = base.length * 4 * base.weights.d_model / _row(base)
    for i in order:
        size = base.length - patched[i].start + always
        if together and taken + size > rows:
            yield sorted(together, key=lambda i: Group.order(patched[i]))
            together, taken = [], 0.0
        together.append(i)
        taken += size
    if together:
        yield sorted(together, key=lambda i: Group.order(patched[i]))
