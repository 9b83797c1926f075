"""What heads and neurons write to the stream, and whether it is the sum of that.

Where a model normalises what attention and MLP write before it adds it (`Weights.post_norms`), the
sum is divided by a number that depends on all of it: the norm's scale. What one head or neuron adds
is then told with that scale held, the frozen post-norm, and these sum to what was added.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.models.protocol import Cache
from mlp_interp.models.weights import Weights
from mlp_interp.sites import Site

__all__ = ["change_written", "frozen", "frozen_scale", "sum_error", "summed_sites", "written"]

_WRITERS = {"z": ("W_O", "b_O"), "post": ("W_out", "b_out")}


def frozen_scale(
    weights: Weights, whole: Site, x: Float[Tensor, "batch pos ..."]
) -> Float[Tensor, "batch pos 1"] | None:
    """What the norm after a block's attention or MLP divides by; None where there is none.

    Args:
        weights: The model's.
        whole: All heads (``z``) or neurons (``post``) of the block.
        x: Their activation.
    """
    layer = whole.layer or 0
    norm = weights.post_norm(layer, whole.name)
    if norm is None:
        return None
    matrix, bias = (weights.unscaled(layer, name) for name in _WRITERS[whole.name])
    return norm.scale(_sum(x, matrix, bias))


def frozen(weights: Weights, whole: Site, x: Tensor) -> Float[Tensor, "batch pos ..."]:
    """Activations as they get to the stream: ``x`` less what the norm after them divides by.

    Times the weights of `Weights.parameter` they are what each head or neuron adds.
    """
    scale = frozen_scale(weights, whole, x)
    return x if scale is None else x / scale.view(*scale.shape[:2], *[1] * (x.ndim - 2))


def change_written(
    weights: Weights, whole: Site, own: Tensor, new: Tensor, units: list[int] | None = None
) -> Float[Tensor, "batch pos d_model"]:
    """What the stream gets more where some of a block's heads or neurons have other activations.

    Args:
        weights: The model's.
        whole: All heads (``z``) or neurons (``post``) of the block.
        own: Their activation ``[batch, pos, unit, ...]``.
        new: The other one, of `units` alone.
        units: Which of them have it; None for all.
    """
    if weights.post_norms:
        changed = new
        if units is not None:
            changed = own.clone()
            changed[:, :, units] = new
        return written(weights, whole, changed) - written(weights, whole, own)
    matrix = weights.parameter(whole.layer or 0, _WRITERS[whole.name][0])
    if units is not None:
        own, matrix = own[:, :, units], matrix[units]
    return (new - own).flatten(2) @ matrix.reshape(-1, matrix.shape[-1])


def written(
    weights: Weights, whole: Site, x: Float[Tensor, "batch pos ..."]
) -> Float[Tensor, "batch pos d_model"]:
    """What a block's attention or MLP adds to the stream; arguments as of `frozen_scale`."""
    matrix, bias = (weights.parameter(whole.layer or 0, name) for name in _WRITERS[whole.name])
    total, scale = _sum(x, matrix, bias), frozen_scale(weights, whole, x)
    return total if scale is None else total / scale


def _sum(x: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    return x.flatten(2) @ matrix.reshape(-1, matrix.shape[-1]) + bias


def summed_sites(weights: Weights) -> list[Site]:
    """The activations that `sum_error` reads."""
    return [*_wholes(weights), *_embeddings(weights), Site("resid_post", weights.n_layers - 1)]


def sum_error(weights: Weights, cache: Cache) -> float:
    """How far the final stream is from embeddings, heads, neurons and biases together.

    Returns:
        The L2 norm of the difference as a share of the stream's, at the position where it is
        largest: in trained models one position may be a hundred times the others.
    """
    final = cache[Site("resid_post", weights.n_layers - 1).hook_name]
    total = torch.zeros_like(final)
    for site in _embeddings(weights):
        total += cache[site.hook_name]
    for site in _wholes(weights):
        total += written(weights, site, cache[site.hook_name])
    return float(((final - total).norm(dim=-1) / final.norm(dim=-1)).max())


def _wholes(weights: Weights) -> list[Site]:
    """All heads, and all neurons, of every block, in the order in which they write."""
    names = ("z", "post") if weights.has_mlps else ("z",)
    return [Site(name, layer) for layer in range(weights.n_layers) for name in names]


def _embeddings(weights: Weights) -> list[Site]:
    return [Site(name) for name in ("embed", "pos_embed")[: 1 + weights.has_pos_embed]]
