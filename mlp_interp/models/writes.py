"""Whether a model's stream is the sum of what its embeddings, heads and neurons write."""

import torch

from mlp_interp.models.protocol import Cache
from mlp_interp.models.weights import Weights
from mlp_interp.sites import Site

__all__ = ["sum_error", "summed_sites"]


def summed_sites(weights: Weights) -> list[Site]:
    """The activations that `sum_error` reads."""
    layers = range(weights.n_layers)
    sites = [Site(name, layer) for name in ("z", "post") for layer in layers]
    return [*sites, Site("resid_pre", 0), Site("resid_post", weights.n_layers - 1)]


def sum_error(weights: Weights, cache: Cache) -> float:
    """How far the final stream is from embeddings, heads, neurons and biases together.

    Returns:
        The L2 norm of the difference as a share of the stream's, at the position where it is
        largest: in trained models one position may be a hundred times the others.
    """
    total = cache[Site("resid_pre", 0).hook_name].clone()
    for layer in range(weights.n_layers):
        block = weights.block(layer)
        z = cache[Site("z", layer).hook_name]
        total += torch.einsum("bphd,hdm->bpm", z, block.W_O) + block.b_O
        total += cache[Site("post", layer).hook_name] @ block.W_out + block.b_out
    final = cache[Site("resid_post", weights.n_layers - 1).hook_name]
    return float(((final - total).norm(dim=-1) / final.norm(dim=-1)).max())
