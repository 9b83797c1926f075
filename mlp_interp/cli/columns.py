"""Rows of text as columns."""

from collections.abc import Callable, Sequence

__all__ = ["columns"]


def columns(
    rows: Sequence[tuple[str, ...]], justify: Callable[[str, int], str] = str.rjust
) -> list[str]:
    """One line a row, its texts below those of the others.

    Args:
        rows: Of as many texts each.
        justify: How a text fills its column.

    Example:
        >>> columns([("layer", "share"), ("0", "12%")])
        ['layer  share', '    0    12%']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(justify, row, widths)).rstrip() for row in rows]
