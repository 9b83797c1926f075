"""Numbers as the report writes them."""

import numpy as np

__all__ = ["number", "percent", "with_error"]


def with_error(value: float, error: float) -> str:
    """A value with its standard error, both to the error's second digit: "6.78 ± 0.17"."""
    if not (np.isfinite(error) and error > 0):
        return number(value)
    places = max(0, 1 - int(f"{error:.1e}".split("e")[1]))
    if places > 6:
        return f"{value:.2e} ± {error:.1e}"
    return f"{value:,.{places}f} ± {error:,.{places}f}"


def number(value: float) -> str:
    """Three digits, without exponents where numbers are of everyday size."""
    if not np.isfinite(value):
        return "unknown"
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.2e}"
    return f"{value:.3g}"


def percent(value: float) -> str:
    """A share, to two digits where it is small, and never 0 or 100% unless it is."""
    if not np.isfinite(value):
        return "unknown"
    if value in (0.0, 1.0):
        return f"{value:.0%}"
    if min(value, 1 - value) < 1e-4:
        return "below 0.01%" if value < 0.5 else "above 99.99%"
    places = 0 if 0.1 <= value <= 0.9 else 1 if 0.01 <= value <= 0.99 else 2
    return f"{value:.{places}%}"
