"""Tokens read off a cache, which does not say which ones were run."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.models.caches import cached, cached_tokens
from mlp_interp.models.engine import forward_of
from mlp_interp.models.protocol import Cache
from mlp_interp.models.weights import Weights
from mlp_interp.sites import Site

__all__ = ["tokens_in"]

_ROWS = 256  # of distances to the whole vocabulary at a time


def tokens_in(weights: Weights, cache: Cache) -> Int[Tensor, "batch pos"]:
    """The tokens of a cache: those that it names, or those whose embeddings it holds.

    Raises:
        ValueError: It holds neither, or embeddings that are those of no tokens of this model.
    """
    tokens = cached_tokens(cache)
    if tokens is not None:
        return tokens
    sites = [Site("embed")]
    if not weights.has_pos_embed:
        sites.append(Site("resid_pre", 0))
    site = next((site for site in sites if site.hook_name in cache), None)
    if site is None:
        names = " and ".join(site.hook_name for site in sites)
        raise ValueError(
            f"cache lacks {names}, off which its tokens could be read; wanted one of them, or the "
            "tokens"
        )
    at = "embed" if site.name == "embed" else "resid_pre"
    return _nearest(forward_of(weights.model).embeddings(at), cached(cache, site))


def _nearest(
    embeddings: Float[Tensor, "token d_model"], embedded: Float[Tensor, "batch pos d_model"]
) -> Int[Tensor, "batch pos"]:
    squares = embeddings.square().sum(-1)
    rows = embedded.flatten(0, 1).to(embeddings)
    tokens = torch.cat(
        [(squares - 2 * some @ embeddings.T).argmin(-1) for some in rows.split(_ROWS)]
    )
    error = (embeddings[tokens] - rows).abs().amax(-1)
    wrong = (error > 1e-3 * rows.abs().amax(-1)).nonzero()[:, 0].tolist()
    if wrong:
        batch, pos = divmod(wrong[0], embedded.shape[1])
        raise ValueError(
            f"cache holds an embedding at sequence {batch}, position {pos} that is no token's; "
            "wanted a cache of this model without edited embeddings"
        )
    return tokens.view(embedded.shape[:2])
