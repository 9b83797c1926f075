"""What has been worked out about a model, kept for as long as the model is as it was then.

Folding a model's matrices and checking the result against its own forward pass takes longer than
many an analysis. It is done once: until a weight, the configuration or a hook of the model changes.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch

from mlp_interp.models._checksum import checksum
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.sites import Site

__all__ = ["has_hooks", "hooked", "remembered", "without_hooks"]

T = TypeVar("T")

_known: WeakKeyDictionary[Any, tuple[Any, Any]] = WeakKeyDictionary()


def remembered(model: Model, work_out: Callable[[], T]) -> T:
    """What `work_out` gives, or gave when this model was last in its present state.

    Args:
        model: The model.
        work_out: Must not give anything that holds the model, which then would never be freed. It
            must not depend on embedding and unembedding matrices, which are not looked at.
    """
    known = _known.get(model)
    if known is None or known[0] != _state(model):
        with own_mode():  # what is kept must serve whoever comes later
            found = work_out()
        # As the model is now: a bridge puts hooks of its own on itself when it first runs.
        known = _known[model] = (_state(model), found)
    return known[1]


def has_hooks(model: Model) -> bool:
    """Whether somebody has left hooks on the model's hook points."""
    modules = getattr(model, "modules", tuple)  # a portable copy has none
    return any(getattr(module, "fwd_hooks", None) for module in modules())


def hooked(model: Model, sites: Iterable[Site]) -> list[Site]:
    """Those of some places at which somebody has left hooks."""
    return [site for site in sites if model.hook_dict[site.hook_name].fwd_hooks]


@contextlib.contextmanager
def without_hooks(model: Model) -> Iterator[None]:
    """Without what somebody has put on the model's hook points, which comes back in its order."""
    points = [module for module in model.modules() if getattr(module, "fwd_hooks", None)]
    before = [(point._forward_hooks, point._forward_hooks.copy()) for point in points]
    try:
        for point in points:
            for handle in point.fwd_hooks:
                point._forward_hooks.pop(handle.hook.id, None)
        yield
    finally:
        for hooks, kept in before:
            hooks.clear()
            hooks.update(kept)


@torch.no_grad()
def _state(model: Model) -> tuple[Any, ...]:
    """Equal for a model that computes the same; a changed weight changes it even through .data."""
    unread = {matrix.data_ptr() for matrix in (model.W_E, model.W_U)}
    weights = tuple(
        (name, p.data_ptr(), tuple(p.shape), p.dtype, checksum(p))
        for name, p in model.named_parameters()
        if p.data_ptr() not in unread
    )
    hooks = tuple(
        (
            name,
            *map(id, module._forward_hooks.values()),
            *map(id, module._forward_pre_hooks.values()),
        )
        for name, module in model.named_modules()
        if module._forward_hooks or module._forward_pre_hooks
    )
    return weights, hooks, repr(vars(model.cfg))
