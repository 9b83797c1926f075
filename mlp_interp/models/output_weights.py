"""Other output weights for some MLPs of a model, for a while, and the same bits back afterwards."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.probe import probe_tokens
from mlp_interp.models.protocol import Model
from mlp_interp.models.remember import without_hooks
from mlp_interp.models.weights import Weights
from mlp_interp.sites import Site

__all__ = ["added_to_outputs"]


@contextmanager
def added_to_outputs(
    model: Model, changes: Mapping[int, Float[Tensor, "d_mlp d_model"]]
) -> Iterator[None]:
    """Add matrices to the ``W_out`` of some blocks of the user's own model.

    A copy of each changed matrix is held and put back, so that no rounding is left behind.

    Args:
        model: The model.
        changes: By layer, what is added to what its neurons write to the stream.

    Raises:
        ValueError: The model computes with other tensors than it shows, so that nothing changed.
    """
    weights = Weights.of(model)
    held = {layer: [(x, x.clone()) for x in _tensors(model, layer)] for layer in changes}
    try:
        for layer, change in changes.items():
            factor = _multiplier(model, layer)
            for tensor, before in held[layer]:
                _put(tensor, (before.double() + change.to(before.device).double() / factor))
        _check(weights, tuple(changes))
        yield
    finally:
        for pairs in held.values():
            for tensor, before in pairs:
                _put(tensor, before)


def _tensors(model: Model, layer: int) -> list[Tensor]:
    """The matrix, and the copy of it with which the bridge of a gated MLP computes, if any."""
    mlp = model.blocks[layer].mlp
    found = [mlp.W_out.detach()]
    other = getattr(mlp, "_processed_W_out", None)
    if isinstance(other, Tensor):
        other = other.detach()
        other = other if other.shape == found[0].shape else other.T
        if other.data_ptr() != found[0].data_ptr():
            found.append(other)
    return found


def _multiplier(model: Model, layer: int) -> float:
    """What the block multiplies its MLP's output by before it adds it (Granite)."""
    return float(getattr(model.blocks[layer], "residual_contribution_scale", 1.0))


@torch.no_grad()
def _put(tensor: Tensor, value: Tensor) -> None:
    with torch.inference_mode(tensor.is_inference()):  # such tensors change nowhere else
        tensor.copy_(value)


@torch.no_grad()
def _check(weights: Weights, layers: tuple[int, ...]) -> None:
    """Refuse a model that goes on computing with something else."""
    sites = [Site(name, layer) for layer in layers for name in ("post", "mlp_out")]
    names = [site.hook_name for site in sites]
    with own_mode(), without_hooks(weights.model):
        _, cache = weights.model.run_with_cache(
            probe_tokens(weights, length=8), names_filter=names, return_type=None
        )
    for layer in layers:
        post, out = (cache[Site(name, layer).hook_name] for name in ("post", "mlp_out"))
        wanted = post @ weights.parameter(layer, "W_out") + weights.parameter(layer, "b_out")
        apart = float((out - wanted).norm() / wanted.norm().clamp_min(1e-12))
        if apart > (1e-3 if weights.dtype in (torch.float32, torch.float64) else 5e-2):
            raise ValueError(
                f"model={weights.model.cfg.model_name!r} does not compute with the W_out of block "
                f"{layer} that it shows: its MLP writes something else by {apart:.1e} of it; "
                "wanted a model whose weights can be changed in place"
            )
