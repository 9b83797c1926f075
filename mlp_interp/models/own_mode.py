"""Computing as by itself, whatever mode the caller is in: inference mode, autocast."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

__all__ = ["in_own_mode", "own_mode"]

P = ParamSpec("P")
T = TypeVar("T")

_DEVICES = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def own_mode() -> Iterator[None]:
    """Leave inference mode and autocast for a while; whether gradients are taken stays.

    What is made in inference mode can never be differentiated through, and under autocast matrices
    are multiplied in half precision: neither may get into what is kept for later.
    """
    with_gradients = torch.is_grad_enabled()
    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.set_grad_enabled(with_gradients))
        for device in _DEVICES:
            if torch.is_autocast_enabled(device):
                modes.enter_context(torch.autocast(device, enabled=False))
        yield


def in_own_mode(function: Callable[P, T]) -> Callable[P, T]:
    """A function of a model that takes gradients, called in `own_mode`.

    Raises:
        ValueError: The model, its first argument, was itself made in inference mode: no gradient
            passes through its weights.
    """

    @wraps(function)
    def within(*args: P.args, **kwargs: P.kwargs) -> T:
        _check_weights(args[0] if args else kwargs.get("model"))
        with own_mode():
            return function(*args, **kwargs)

    return within


def _check_weights(model: Any) -> None:
    parameters = getattr(model, "parameters", None)
    if parameters is not None and any(p.is_inference() for p in parameters()):
        raise ValueError(
            f"model={type(model).__name__} was made inside torch.inference_mode(), so that no "
            "gradient can pass through its weights; wanted one loaded outside it"
        )
