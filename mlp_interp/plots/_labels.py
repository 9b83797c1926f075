"""Names beside the points of a scatter plot, none over another or over a point."""

from collections.abc import Sequence

import numpy as np

__all__ = ["beside"]

LETTER, LINE, GAP = 6.2, 13.0, 6.0  # pixels of text of size 10, and from a point to its name
_SIDES = {
    "top right": (1, 1), "top left": (-1, 1), "bottom right": (1, -1), "bottom left": (-1, -1),
    "middle right": (1, 0), "middle left": (-1, 0), "top center": (0, 1), "bottom center": (0, -1),
}  # fmt: skip


def beside(
    places: np.ndarray, names: Sequence[str], order: Sequence[int], size: tuple[float, float]
) -> dict[int, str]:
    """On which side of its point each name finds room; those that find none are left out.

    Args:
        places: ``[point, 2]``, from 0 to 1 across and up the plot.
        names: Of the points.
        order: Which points are to be named, the most important first.
        size: Width and height of the plot in pixels: at least this.

    Returns:
        Plotly's ``textposition`` by the number of the point.
    """
    points = places * np.array(size)
    boxes = [(*(point - 4), *(point + 4)) for point in points]
    found: dict[int, str] = {}
    for i in order:
        for side, (across, up) in _SIDES.items():
            box = _box(points[i], LETTER * len(names[i]), across, up)
            inside = min(box[:2]) >= 0 and box[2] <= size[0] and box[3] <= size[1]
            if inside and not any(_meet(box, other) for n, other in enumerate(boxes) if n != i):
                found[i] = side
                boxes.append(box)
                break
    return found


def _box(point: np.ndarray, width: float, across: int, up: int) -> tuple[float, ...]:
    """Left, bottom, right, top of a name on one side of its point."""
    x, y = float(point[0]), float(point[1])
    left = x - width / 2 if across == 0 else x + across * GAP - (width if across < 0 else 0)
    low = y - LINE / 2 if up == 0 else y + up * GAP - (LINE if up < 0 else 0)
    return left, low, left + width, low + LINE


def _meet(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    return not apart
