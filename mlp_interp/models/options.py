"""Words, counts and seeds that options take: checked before anything is computed."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlp_interp.models.indices import each, held
from mlp_interp.results import to_numpy
from mlp_interp.sites import did_you_mean

__all__ = [
    "check_choice",
    "check_counts",
    "checked_count",
    "checked_counts",
    "checked_number",
    "checked_numbers",
    "checked_seed",
    "checked_tensor",
    "generator_of",
]


def check_choice(name: str, value: Any, wanted: Sequence[Any]) -> None:
    """Refuse a value of an option that is none of those there are.

    Raises:
        ValueError: It is none of them.
    """
    if value not in wanted:
        *others, last = map(repr, wanted)
        listed = f"{', '.join(others)} or {last}" if others else last
        words = [word for word in wanted if isinstance(word, str)]
        near = did_you_mean(value, words) if isinstance(value, str) else ""
        raise ValueError(f"{name}={value!r}; wanted {listed}{near}")


def check_counts(least: int = 1, **counts: Any) -> None:
    """Refuse counts that are none.

    Raises:
        ValueError: One is no integer from `least`.
    """
    for name, count in counts.items():
        if type(count) is not int or count < least:
            raise ValueError(f"{name}={count!r}; wanted an integer from {least}")


def checked_count(k: Any, size: int, of: str, *, name: str = "k") -> int:
    """How many of `size` things to give.

    Raises:
        ValueError: It is no integer from 1 to `size`; `of` says what there are so many of.
    """
    if size < 1:
        raise ValueError(f"{name}={k!r}, but the number of {of} is 0; wanted a larger model")
    if type(k) is not int or not 1 <= k <= size:
        raise ValueError(f"{name}={k!r}; wanted an integer from 1 to {size}, the number of {of}")
    return k


def checked_counts(given: Any, size: int, of: str, *, name: str) -> tuple[int, ...]:
    """As `checked_count`, of one number or several.

    Raises:
        ValueError: As there; there are none, or one is named twice.
    """
    found = [checked_count(k, size, of, name=name) for k in each(given)]
    if not found or len(set(found)) < len(found):
        raise ValueError(f"{name}={found}; wanted at least one number of {of}, each once")
    return tuple(found)


def checked_number(
    name: str, given: Any, good: Callable[[float], bool], wanted: str
) -> float | int:
    """A number, of Python, numpy or torch, also as an array of one.

    Raises:
        ValueError: It is none, or not `good`.

    Example:
        >>> checked_number("ridge", torch.tensor(0.5), lambda x: x >= 0, "a number from 0")
        0.5
        >>> checked_number("ridge", "0.1", lambda x: x >= 0, "a number from 0")
        Traceback (most recent call last):
        ValueError: ridge='0.1'; wanted a number from 0
    """
    number = held(given)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError(f"{name}={given!r}; wanted {wanted}")
    too_large = isinstance(number, int) and abs(number) > sys.float_info.max
    if too_large or not good(number):
        raise ValueError(f"{name}={given!r}; wanted {wanted}")
    return number


def checked_numbers(
    name: str, given: Any, good: Callable[[np.ndarray], np.ndarray], wanted: str
) -> np.ndarray:
    """One number or several, of Python, numpy or torch, in double precision.

    Raises:
        ValueError: They are none, there are none, or not all are `good`.

    Example:
        >>> checked_numbers("rates", [0.1, 1], lambda x: x > 0, "positive numbers")
        array([0.1, 1. ])
    """
    try:
        found = to_numpy(given) if isinstance(given, Tensor) else np.asarray(given)
    except (TypeError, ValueError):  # rows of several lengths
        found = np.empty(0)
    found = np.atleast_1d(found)
    numbers = found.ndim == 1 and found.size and found.dtype.kind in "iuf"
    if not (numbers and good(found.astype(float)).all()):
        raise ValueError(f"{name}={given!r}; wanted {wanted}")
    return found.astype(float)


def checked_tensor(name: str, given: Any, wanted: str) -> Tensor:
    """Numbers of Python, numpy or torch as a tensor.

    Raises:
        ValueError: They are none, or rows of several lengths.

    Example:
        >>> checked_tensor("vectors", "x", "floats [vector, 192]")
        Traceback (most recent call last):
        ValueError: vectors='x'; wanted floats [vector, 192]
    """
    try:
        if isinstance(given, list | tuple) and any(isinstance(x, Tensor) for x in given):
            return torch.stack([torch.as_tensor(x) for x in given])
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        said = type(given).__name__ if isinstance(given, list | tuple) else repr(given)
        raise ValueError(f"{name}={said}; wanted {wanted}") from error


def checked_seed(seed: Any) -> int:
    """A seed of torch's generators.

    Raises:
        ValueError: It is none.
    """
    seed = seed.tolist() if hasattr(seed, "tolist") else seed
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed!r}; wanted an integer from 0, below 2**63")
    return seed


def generator_of(*words: int) -> torch.Generator:
    """A stream of random numbers of its own for each list of numbers, the first of them a seed."""
    (word,) = np.random.SeedSequence(words).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(word >> np.uint64(1)))
