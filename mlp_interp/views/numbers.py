"""Numbers with their errors, shares and tokens, as a reader wants them."""

import math
from typing import Any

__all__ = ["number", "percent", "visible"]

_MARKS = {"\n": "↵", "\t": "⇥", "\r": "␍"}


def visible(text: str) -> str:
    """A token with the whitespace that breaks lines made visible."""
    return "".join(_MARKS.get(letter, letter) for letter in text)


def percent(value: Any, error: Any = None) -> str:
    """A share in per cent."""
    said = f"{100 * float(value):.3g}"
    if error is not None and math.isfinite(float(error)):
        said += f" ± {100 * float(error):.1g}"
    return f"{said}%"


def number(value: Any, error: Any = None, *, sign: bool = False) -> str:
    """A number with three digits, or as many as its error leaves; small ones as a power of ten."""
    x, e = float(value), math.nan if error is None else float(error)
    if not math.isfinite(x):
        return "–"
    size = max(abs(x), e if math.isfinite(e) else 0.0)
    power = math.floor(math.log10(size)) if size else 0
    scale = 10.0**power if power < -3 or power > 5 else 1.0
    places = 2 - (power if scale == 1.0 else 0)
    if math.isfinite(e) and e > 0:
        places = min(places, 1 - math.floor(math.log10(e / scale)))
    places = max(0, places)
    said = f"{x / scale:{'+' if sign else ''}.{places}f}"
    if math.isfinite(e):
        said += f" ± {e / scale:.{places}f}"
    said = said.replace("-", "−")
    if scale == 1.0:
        return said
    return f"({said}) · 10{_raised(power)}" if math.isfinite(e) else f"{said} · 10{_raised(power)}"


def _raised(power: int) -> str:
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
