"""Grows branches: all those that are under way pass through a block together.

Rows are the unit of work: one stream vector of one branch. A branch has a row for each position
from its first changed one on, and joins when the sweep reaches its layer, so that the matrix
products take the rows of early and late branches at once, without padding.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.runs.group import Group
from mlp_interp.runs.patched import Branch
from mlp_interp.runs.trunk import Trunk

__all__ = ["grow", "rows_in"]


def rows_in(trunk: Trunk, memory: float) -> int:
    """How many rows fit into `memory` MiB, with what a block computes for each.

    A row holds its stream, queries, keys, values and the widest hidden layer.
    """
    return max(1, int(memory * 2**20 / trunk.streams[0].element_size() / _row(trunk)))


def _row(trunk: Trunk) -> int:
    """How many numbers a row takes in a block."""
    return 2 * trunk.forward.weights.d_mlp + 12 * trunk.forward.weights.d_model


@torch.no_grad()
def grow(
    trunk: Trunk, branches: Sequence[Branch], read: Sequence[int], *, rows: int = 1024
) -> Float[Tensor, "branch read d_model"]:
    """Final streams of branches at the positions that are read, exactly as full runs give them.

    What it leaves out: blocks below a branch's layer, positions before its first changed one,
    everything but keys and values at the last block's unread positions, and, where one position
    differs, everything in its first block that reads only other positions.

    Args:
        trunk: The run that they leave.
        branches: The branches, in any order.
        read: The positions wanted, counted from 0.
        rows: About how many rows are computed together.

    Returns:
        Final streams, in the order of `branches`.
    """
    # Neighbours in position share most of their keys; neighbours in layer join at like times.
    order = sorted(range(len(branches)), key=lambda i: (branches[i].start, branches[i].layer))
    final = trunk.streams[-1].new_empty(len(branches), len(read), trunk.streams[-1].shape[-1])
    for chosen in _groups(trunk, branches, order, rows):
        group = Group(trunk, [branches[i] for i in chosen], read)
        final[torch.tensor(chosen, device=final.device)] = group.run()
    return final


def _groups(
    trunk: Trunk, branches: Sequence[Branch], order: list[int], rows: int
) -> Iterator[list[int]]:
    chosen: list[int] = []
    taken = 0.0
    # Whatever its rows, a branch has copies of all keys and values, and of as many queries.
    always = trunk.length * 4 * trunk.forward.weights.d_model / _row(trunk)
    for i in order:
        size = trunk.length - branches[i].start + always
        if chosen and taken + size > rows:
            yield sorted(chosen, key=lambda i: Group.order(branches[i]))
            chosen, taken = [], 0.0
        chosen.append(i)
        taken += size
    if chosen:
        yield sorted(chosen, key=lambda i: Group.order(branches[i]))
