"""What a run needs, from a cache that somebody else has made."""

from torch import Tensor

from mlp_interp.edits.edit import EDITABLE
from mlp_interp.models import Weights
from mlp_interp.models.caches import cached
from mlp_interp.models.protocol import Cache
from mlp_interp.sites import GATED, Site

__all__ = ["cached_sites", "cached_streams"]


def cached_streams(weights: Weights, cache: Cache) -> tuple[Tensor, ...]:
    """The stream at every block's input and the final one.

    Raises:
        ValueError: The cache holds neither a stream nor what was added to it, or another model's.
    """
    streams: list[Tensor] = []
    for layer in range(weights.n_layers + 1):
        sites = [Site("resid_pre", layer)] if layer < weights.n_layers else []
        sites += [Site("resid_post", layer - 1)] if layer else []
        kept = next((cached(cache, site) for site in sites if site.hook_name in cache), None)
        stream = _sum(weights, cache, layer, streams) if kept is None else kept
        if stream.shape[-1] != weights.d_model:
            raise ValueError(
                f"cache holds {sites[0].hook_name} of shape {tuple(stream.shape)}; wanted [batch, "
                f"pos, {weights.d_model}]: is it a cache of this model?"
            )
        streams.append(stream.to(weights.device))
    return tuple(streams)


def _sum(weights: Weights, cache: Cache, layer: int, streams: list[Tensor]) -> Tensor:
    """The stream at a block's input, from what was added to it."""
    if layer:
        below, sites = [streams[-1]], [Site(name, layer - 1) for name in weights.outputs]
    else:
        below = []
        sites = [Site(name) for name in ("embed", "pos_embed")[: 1 + weights.has_pos_embed]]
    missing = [site.hook_name for site in sites if site.hook_name not in cache]
    if missing:
        raise ValueError(
            f"cache lacks the stream at the input of block {layer} and {', '.join(missing)}; run "
            "the model with names_filter=lambda name: name.endswith(('hook_embed', "
            "'hook_resid_pre', 'hook_resid_post')), or use run(model, tokens)"
        )
    first, *others = [*below, *(cached(cache, site) for site in sites)]
    return sum(others, first)


def cached_sites(weights: Weights, cache: Cache) -> dict[Site, Tensor]:
    """Everything else that a run can hold."""
    streams = ("resid_pre", "resid_post", "embed")
    names = [name for name in (*EDITABLE, *GATED) if name not in streams]
    sites = [Site(name, layer) for name in names for layer in range(weights.n_layers)]
    there = [site for site in [Site("embed"), *sites] if site.hook_name in cache]
    return {site: cached(cache, site).to(weights.device) for site in there}
