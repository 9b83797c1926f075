"""What checks types in the tests: jaxtyping where shapes are asked for, else beartype alone.

jaxtyping wraps every function of the package, and its wrapper takes thirty times as long as
beartype's check: half of the suite's time. Where no annotation names a shape the two say the same,
and where one does, calls whose values are alike in all that a check looks at are checked once.
pytest is told of `checked`; the first function that it is asked to check puts `_jaxtyped` in place.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import partial, wraps
from threading import local
from typing import Any

import beartype
import jaxtyping
import numpy as np
import torch

_SHAPE = re.compile(r"\b(Float|Int|Bool|Num|Shaped)\w*\[")
_BY_VALUE = re.compile(r"[{]|Literal\[\d")
_LONGEST = 8
"""Of longer lists and tuples the first so many values are compared; beartype looks at one."""

_whole = jaxtyping.jaxtyped
_known: dict[Any, Any] = {}


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """`beartype`, remembered for functions inside of others.

    These are defined anew at each call of the outer one. What jaxtyping has checked is one that it
    makes of the signature, so the check that was written first still holds.
    """
    if "<locals>" not in function.__qualname__:
        return beartype.beartype(function)
    key = function.__module__, function.__qualname__, str(inspect.signature(function))
    if key not in _known:
        _known[key] = beartype.beartype(function)
    return _known[key]


def _jaxtyped(function: Any = None, *, typechecker: Any) -> Any:
    """`jaxtyping.jaxtyped`, but for functions and dataclasses whose annotations name no shape."""
    if function is None:
        return partial(_jaxtyped, typechecker=typechecker)
    if inspect.isclass(function):
        if is_dataclass(function) and "__init__" in vars(function):
            function.__init__ = _jaxtyped(function.__init__, typechecker=typechecker)
        return function
    annotations = getattr(function, "__annotations__", None)
    if annotations == {}:
        return function
    if annotations is None or _is_peculiar(function):
        return _whole(function, typechecker=typechecker)
    if "<locals>" in function.__qualname__ or _SHAPE.search(_said(function)):
        return _once(function, typechecker)
    return _plainly(function)


def _said(function: Callable[..., Any]) -> str:
    return " ".join(map(str, function.__annotations__.values()))


def _is_peculiar(function: Callable[..., Any]) -> bool:
    """Whether only jaxtyping's own wrapper knows what the annotations mean."""
    said = _said(function)
    names_later = any(isinstance(x, str) for x in function.__annotations__.values())
    return bool(
        names_later  # jaxtyping lets pass what cannot be found
        or "ForwardRef" in said
        or _BY_VALUE.search(said)
        or inspect.isgeneratorfunction(function)
    )


def _plainly(function: Callable[..., Any]) -> Callable[..., Any]:
    check, config = None, jaxtyping.config

    @wraps(function)
    def either(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        nonlocal check
        if config.jaxtyping_disable:
            return function(*args, **kwargs)
        if check is None:  # made when it is first called: in each process many never are
            check = beartype.beartype(function)
        return check(*args, **kwargs)

    return either


def _once(function: Callable[..., Any], typechecker: Any) -> Callable[..., Any]:
    """A function whose arguments and answers are checked where none that look alike have been."""
    check, seen, config = None, {}, jaxtyping.config

    @wraps(function)
    def once(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        nonlocal check, seen
        if config.jaxtyping_disable:
            return function(*args, **kwargs)
        if check is None:
            check, seen = _check_of(function, typechecker)
        given = (*map(_look, args), *((name, _look(x)) for name, x in kwargs.items()))
        answers = seen.get(given)
        if answers is None:
            found = check(function, args, kwargs)
            seen[given] = {_look(found)}
            return found
        found = function(*args, **kwargs)
        look = _look(found)
        if look not in answers:
            check(lambda *_args, **_kwargs: found, args, kwargs)
            answers.add(look)
        return found

    return once


def _check_of(
    function: Callable[..., Any], typechecker: Any
) -> tuple[Callable[..., Any], dict[Any, Any]]:
    """Runs any function as if it had this one's annotations; and what it has let pass.

    Functions inside of others are defined anew at each call of the outer one, and share both.
    """
    key = function.__code__, str(inspect.signature(function))
    if key in _known:
        return _known[key]

    called = local()

    @wraps(function)
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        return called.function(*args, **kwargs)

    whole = _whole(stand_in, typechecker=typechecker)

    def check(run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        __tracebackhide__ = True
        called.function = run
        return whole(*args, **kwargs)

    _known[key] = check, {}
    return _known[key]


def _look(value: Any) -> Any:
    """All of a value that a check looks at: two values of one look pass or fail together."""
    kind = type(value)
    if isinstance(value, torch.Tensor):
        return kind, value.shape, value.dtype
    if kind is np.ndarray:
        return kind, value.shape, value.dtype
    if kind is str:
        return value[:32]
    if kind in (tuple, list):
        return kind, len(value[: _LONGEST + 1]), tuple(map(_look, value[:_LONGEST]))
    if kind is dict:
        return kind, tuple((_look(k), _look(x)) for k, x in [*value.items()][:_LONGEST])
    return kind


jaxtyping.jaxtyped = _jaxtyped
