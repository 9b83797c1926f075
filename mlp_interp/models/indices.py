"""Indices of layers, heads, positions or prompts, counts and names: read in one way.

Negative ones count from the end. Named twice, one out of range, and what is no integer (a bool, a
float) are refused: a user who gives them means something else than what would be computed.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = [
    "count",
    "distinct",
    "each",
    "finite_number",
    "held",
    "index",
    "indices",
    "integers",
    "is_single",
    "subscript",
]


def index(name: str, given: Any, size: int) -> int:
    """One index, counted from 0.

    Args:
        name: Of the argument, for the error.
        given: An integer of Python, numpy or torch.
        size: How many things there are.

    Raises:
        ValueError: It is no integer, or out of range.

    Example:
        >>> index("layer", -1, 4)
        3
    """
    place = _plain(given)
    if not _within(place, size):
        raise ValueError(f"{name}={place!r}; wanted an integer from {-size} to {size - 1}")
    return place % size


def indices(name: str, given: Any, size: int) -> tuple[int, ...]:
    """Indices counted from 0, in the order given; all of them for None.

    Args:
        name: Of the argument, for the error.
        given: One integer or several, of Python, numpy or torch; None for all.
        size: How many things there are.

    Raises:
        ValueError: There are none, one is no integer, is out of range, or is named twice.

    Example:
        >>> indices("layers", [0, -1], 4), indices("layers", None, 4), indices("layers", 2, 4)
        ((0, 3), (0, 1, 2, 3), (2,))
        >>> indices("layers", [1, -3], 4)
        Traceback (most recent call last):
        ValueError: layers=[1, -3]; wanted integers from -4 to 3, each once
    """
    if given is None:
        return tuple(range(size))
    places = _plain(given)
    listed = [_plain(i) for i in places] if _several(places) else [places]
    if not listed:
        raise ValueError(f"{name}={listed}; wanted at least one integer from {-size} to {size - 1}")
    found = tuple(i % size for i in listed if _within(i, size))
    if len(set(found)) < len(listed):
        raise ValueError(f"{name}={listed}; wanted integers from {-size} to {size - 1}, each once")
    return found


def is_single(given: Any) -> bool:
    """Whether what stands in brackets is one integer, of Python, numpy or torch."""
    return type(_plain(given)) is int


def subscript(given: Any, size: int) -> list[int]:
    """What brackets choose among `size` things: as of a list or an array, in the order asked for.

    Args:
        given: An integer, a slice, several integers (one may come twice), or one bool for each
            thing; of Python, numpy or torch.
        size: How many things there are.

    Raises:
        IndexError: There is no such thing, there are not as many bools, or it is no index.

    Example:
        >>> subscript([2, 0, -1], 3), subscript([True, False], 2), subscript(slice(1, None), 3)
        ([2, 0, 2], [0], [1, 2])
    """
    if isinstance(given, slice):
        return list(range(size)[given])
    plain = _plain(given)
    listed = [_plain(i) for i in plain] if _several(plain) else [plain]
    if listed and _several(plain) and all(type(i) is bool for i in listed):
        if len(listed) != size:
            raise IndexError(f"index of {len(listed)} bools; wanted one for each of {size}")
        return [i for i, wanted in enumerate(listed) if wanted]
    wrong = [i for i in listed if not _within(i, size)]
    if wrong:
        raise IndexError(f"index={wrong[0]!r}; wanted integers from {-size} to {size - 1}")
    return [i % size for i in listed]


def integers(name: str, given: Any) -> tuple[int, ...] | None:
    """Indices of something whose size is not known yet; None stays.

    Args:
        name: Of the argument, for the error.
        given: One integer or several, of Python, numpy or torch.

    Raises:
        ValueError: One is no integer.

    Example:
        >>> integers("positions", range(2)), integers("positions", -1)
        ((0, 1), (-1,))
    """
    if given is None:
        return None
    places = _plain(given)
    listed = tuple(_plain(i) for i in places) if _several(places) else (places,)
    if not all(type(i) is int for i in listed):
        raise ValueError(f"{name}={given!r}; wanted integers")
    return listed


def count(name: str, given: Any, *, least: int = 1, most: int | None = None, hint: str = "") -> int:
    """How many there are of something.

    Args:
        name: Of the argument, for the error.
        given: An integer of Python, numpy or torch.
        least: How many there must be.
        most: How many there may be; None for any number.
        hint: What else the error should say.

    Raises:
        ValueError: It is no integer, below `least` or above `most`.

    Example:
        >>> count("k", 3.0)
        Traceback (most recent call last):
        ValueError: k=3.0; wanted an integer from 1
    """
    number = _plain(given)
    if type(number) is not int:
        raise ValueError(f"{name}={number!r}; wanted an integer from {least}{hint}")
    if number < least:
        raise ValueError(f"{name}={number}; wanted at least {least}{hint}")
    if most is not None and number > most:
        raise ValueError(f"{name}={number}; wanted at most {most:,}{hint}")
    return number


def finite_number(name: str, given: Any) -> float:
    """One finite number, of Python or held by an array; a text that spells one is none.

    Args:
        name: Of the argument, for the error.
        given: The number.

    Raises:
        ValueError: It is none, or not finite.

    Example:
        >>> finite_number("coefficient", "2")
        Traceback (most recent call last):
        ValueError: coefficient='2'; wanted a finite number
    """
    try:
        one = held(given)
        number = math.nan if isinstance(one, str | bytes | bool) else float(one)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name}={_plain(given)!r}; wanted a finite number")
    return number


def distinct(name: str, given: str | Sequence[str]) -> tuple[str, ...]:
    """One name or several, as a tuple.

    Args:
        name: Of the argument, for the error.
        given: The names.

    Raises:
        ValueError: One is given twice.

    Example:
        >>> distinct("sites", "z"), distinct("sites", ["q", "k"])
        (('z',), ('q', 'k'))
    """
    listed = tuple(each(given))
    if len(set(listed)) < len(listed):
        raise ValueError(f"{name}={list(listed)}; wanted each once")
    return listed


def each(given: Any) -> list[Any]:
    """One thing or several, as a list, whatever they are; of numpy or torch as Python's.

    Example:
        >>> each("L0H3"), each(5), each(range(2))
        (['L0H3'], [5], [0, 1])
    """
    plain = _plain(given)
    return [_plain(one) for one in plain] if _several(plain) else [plain]


def held(given: Any) -> Any:
    """What an array of one thing holds, as Python's; anything else as it is.

    Example:
        >>> import torch
        >>> held(torch.tensor([0.5])), held("x")
        (0.5, 'x')
    """
    try:
        return given.item()
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return given


def _plain(given: Any) -> Any:
    """Numbers and lists of Python, where numpy or torch holds them."""
    return given.tolist() if hasattr(given, "tolist") else given


def _several(given: Any) -> bool:
    return isinstance(given, Iterable) and not isinstance(given, str)


def _within(given: Any, size: int) -> bool:
    return type(given) is int and -size <= given < size
