"""Numbers with their errors and shares, as a reader wants them."""

import math
from typing import Any

__all__ = ["number", "percent"]


def percent(value: Any, error: Any = None) -> str:
    """A share in per cent, with the digits that its error leaves."""
    share, e = 100 * float(value), math.nan if error is None else 100 * float(error)
    if not math.isfinite(share):
        return "–"
    said = f"{share + 0.0:.3g}"
    if math.isfinite(e) or "e" in said:
        said = number(share, e)
    return f"{said}%".replace("-", "−")


def number(value: Any, error: Any = None, *, sign: bool = False) -> str:
    """A number with three digits, or as many as its error leaves; small ones as a power of ten.

    An error too small for the last of them has one digit, and the number as many places.
    """
    x, e = float(value), math.nan if error is None else float(error)
    if not math.isfinite(x):
        return "–"
    size = max(abs(x), e if math.isfinite(e) else 0.0)
    power = _power(size, 3) if size else 0
    scale = 10.0**power if power < -3 or power > 5 else 1.0
    places = 2 - (power if scale == 1.0 else 0)
    if math.isfinite(e) and e > 0:
        first = -_power(e / scale, 1)  # the place of the error's first digit
        places = max(first, min(places, 1 - _power(e / scale, 2)))
    places = max(0, places)
    said = f"{x / scale:{'+' if sign else ''}z.{places}f}"
    if math.isfinite(e):
        said += f" ± {e / scale:.{places}f}"
    said = said.replace("-", "−")
    if scale == 1.0:
        return said
    return f"({said}) · 10{_raised(power)}" if math.isfinite(e) else f"{said} · 10{_raised(power)}"


def _power(value: float, digits: int) -> int:
    """The power of ten of a positive number's first digit, once rounded."""
    return int(f"{value:.{digits - 1}e}".split("e")[1])


def _raised(power: int) -> str:
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
