"""The largest entries of a matrix that is never held, of every row and of the whole."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mlp_interp.models.scan import blocks

__all__ = ["best_of_all", "best_of_rows"]

_ROWS = 384
_GROUP = 16
_BLOCK = 1024

Found = tuple[Float[Tensor, "row rank"], Int[Tensor, "row rank"]]


def best_of_rows(
    left: Float[Tensor, "row inner"],
    right: Float[Tensor, "column inner"],
    k: int,
    *,
    progress: bool = False,
) -> Found:
    """The `k` largest entries of each row of ``left @ right.T``, and in which columns they are.

    A block of the product at a time, which stays in cache, and of it only the largest entry of each
    small group of columns is kept: the `k` largest entries of a row lie in the `k` groups with the
    largest ones. These few are multiplied out again. Memory does not grow with the product.
    """
    # Padded with columns that are never looked at. A group is of columns that stand apart in a
    # block: so its maximum is one of whole rows of numbers, which processors find at once.
    width = min(_BLOCK, _GROUP * -(-len(right) // _GROUP))
    padded = F.pad(right, (0, 0, 0, -len(right) % width))
    groups = padded.view(-1, _GROUP, width // _GROUP, right.shape[1]).transpose(1, 2)
    groups, across = groups.reshape(-1, _GROUP * right.shape[1]), padded.T.contiguous()
    ids = torch.arange(len(padded), device=right.device)
    ids = ids.view(-1, _GROUP, width // _GROUP).transpose(1, 2).reshape(-1, _GROUP)
    found = []
    for rows in tqdm(left.split(_ROWS), "rows", disable=not progress):
        maxima = [
            _group_maxima(rows @ across[:, block], max(0, block.stop - len(right)))
            for block in blocks(len(padded), width)
        ]
        at = torch.cat(maxima, dim=1).topk(min(k, len(groups)), dim=1, sorted=False).indices
        found.append(_of_groups(rows, groups, ids, at, k, len(right)))
    numbers, columns = (torch.cat(part) for part in zip(*found, strict=True))
    return numbers, columns


def _group_maxima(product: Float[Tensor, "row block"], beyond: int) -> Float[Tensor, "row group"]:
    """The largest entry of each group, but for columns beyond the last one."""
    if beyond:
        product[:, product.shape[1] - beyond :] = -torch.inf
    return product.view(len(product), _GROUP, -1).amax(1)


def _of_groups(
    rows: Float[Tensor, "row inner"],
    groups: Float[Tensor, "group of_group"],
    ids: Int[Tensor, "group column"],
    at: Int[Tensor, "row some"],
    k: int,
    columns: int,
) -> Found:
    """The largest entries of some rows, which lie in these groups of columns."""
    # Not by an index in brackets, which takes three times as long.
    some = groups.index_select(0, at.flatten()).view(len(rows), -1, rows.shape[1])
    product = torch.bmm(some, rows[:, :, None])[..., 0]
    column = ids.index_select(0, at.flatten()).view(product.shape)
    top = product.masked_fill_(column >= columns, -torch.inf).topk(k, dim=1)
    return top.values, column.gather(1, top.indices)


def best_of_all(
    left: Float[Tensor, "row inner"],
    right: Float[Tensor, "column inner"],
    found: Found,
    k: int,
) -> tuple[Float[Tensor, " best"], Int[Tensor, " best"], Int[Tensor, " best"]]:
    """The `k` largest entries of the whole matrix, with their rows and columns.

    A row of whose largest entries all are among the `k` largest that are known may have more: these
    few rows are looked at again.

    Args:
        left: As in `best_of_rows`.
        right: As in `best_of_rows`.
        found: What that gave.
        k: How many.
    """
    numbers, columns = found
    least = numbers.flatten().topk(min(k, numbers.numel())).values[-1]
    if numbers.numel() < k:
        least = torch.full_like(least, -torch.inf)
    again = (numbers[:, -1] >= least).nonzero()[:, 0]
    rest = torch.ones(len(left), dtype=torch.bool, device=left.device)
    rest[again] = False
    rows = torch.arange(len(left), device=left.device)
    parts = [(numbers[rest].flatten(), _spread(rows[rest], numbers), columns[rest].flatten())]
    most = min(k, len(right))
    for some in again.split(64):
        product = left[some] @ right.T
        top = product.topk(most, dim=1)
        parts.append((top.values.flatten(), _spread(some, top.values), top.indices.flatten()))
    values, at_row, at_column = (torch.cat(part) for part in zip(*parts, strict=True))
    order = values.topk(min(k, len(values))).indices
    return values[order], at_row[order], at_column[order]


def _spread(rows: Int[Tensor, " some"], like: Tensor) -> Int[Tensor, " all"]:
    return rows[:, None].expand(-1, like.shape[1]).flatten()
