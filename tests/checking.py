"""What checks types in the tests: jaxtyping where shapes are asked for, else beartype alone.

jaxtyping wraps every function of the package, and its wrapper takes thirty times as long as
beartype's check: half of the suite's time. Where no annotation names a shape the two say the same.
pytest is told of `checked`; the first function that it is asked to check puts `_jaxtyped` in place.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import partial, wraps
from typing import Any

import beartype
import jaxtyping

_SHAPE = re.compile(r"\b(Float|Int|Bool|Num|Shaped)\w*\[")
_whole = jaxtyping.jaxtyped
_known: dict[tuple[str, str, str], Callable[..., Any]] = {}


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
    if annotations is None or not _is_plain(function):
        return _whole(function, typechecker=typechecker)
    return _plainly(function)


def _is_plain(function: Callable[..., Any]) -> bool:
    """Whether beartype alone will do."""
    said = " ".join(map(str, function.__annotations__.values()))
    names_later = any(isinstance(x, str) for x in function.__annotations__.values())
    inside = "<locals>" in function.__qualname__
    return not (
        inside
        or names_later  # jaxtyping lets pass what cannot be found
        or "ForwardRef" in said
        or _SHAPE.search(said)
        or inspect.isgeneratorfunction(function)
    )


def _plainly(function: Callable[..., Any]) -> Callable[..., Any]:
    check = beartype.beartype(function)
    config = jaxtyping.config

    @wraps(function)
    def either(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        return (function if config.jaxtyping_disable else check)(*args, **kwargs)

    return either


jaxtyping.jaxtyped = _jaxtyped
