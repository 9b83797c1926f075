"""Tokens read off a cache, which does not say which ones were run."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.models.weights import Weights
from mlp_interp.sites import Site

__all__ = ["tokens_in"]

_ROWS = 256  # of distances to the whole vocabulary at a time


def tokens_in(weights: Weights, cache: Mapping[str, Tensor]) -> Int[Tensor, "batch pos"]:
    """The tokens of a cache: under its key ``"tokens"``, or those whose embeddings it holds.

    Raises:
        ValueError: It holds neither, or embeddings that are those of no tokens of this model.
    """
    if "tokens" in cache:
        return cache["tokens"]
    names = [Site("embed").hook_name]
    if not weights.has_pos_embed:
        names.append(Site("resid_pre", 0).hook_name)
    embedded = next((cache[name] for name in names if name in cache), None)
    if embedded is None:
        raise ValueError(
            f"cache lacks {' and '.join(names)}, off which its tokens could be read; wanted one of "
            "them, or tokens="
        )
    return _nearest(weights, embedded if embedded.ndim == 3 else embedded[None])


def _nearest(
    weights: Weights, embedded: Float[Tensor, "batch pos d_model"]
) -> Int[Tensor, "batch pos"]:
    W_E = weights.W_E
    squares = W_E.square().sum(-1)
    rows = embedded.flatten(0, 1).to(W_E)
    tokens = torch.cat([(squares - 2 * some @ W_E.T).argmin(-1) for some in rows.split(_ROWS)])
    error = (W_E[tokens] - rows).abs().amax(-1)
    wrong = (error > 1e-3 * rows.abs().amax(-1)).nonzero()[:, 0].tolist()
    if wrong:
        batch, pos = divmod(wrong[0], embedded.shape[1])
        raise ValueError(
            f"cache holds an embedding at sequence {batch}, position {pos} that is no token's; "
            "wanted a cache of this model without edited embeddings"
        )
    return tokens.view(embedded.shape[:2])
