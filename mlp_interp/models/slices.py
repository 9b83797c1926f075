"""Caches of some positions only, as ``run_with_cache(pos_slice=…)`` gives them."""

from torch import Tensor

from mlp_interp.models.caches import cached, cached_tokens
from mlp_interp.models.engine import forward_of
from mlp_interp.models.protocol import Cache
from mlp_interp.models.remember import has_hooks
from mlp_interp.models.weights import Weights
from mlp_interp.sites import Site

__all__ = ["check_whole"]


def check_whole(weights: Weights, cache: Cache, length: int) -> None:
    """Refuse a cache of some positions of its texts: which ones they are it does not say.

    It shows in attention patterns, which have all positions that are read, and, where a single one
    is left, in what the first block's attention wrote there: a text of one token reads itself.

    Args:
        weights: The model's.
        cache: What was kept.
        length: Positions of its streams.

    Raises:
        ValueError: It is one.
    """
    names, tokens = {*cache}, cached_tokens(cache)
    whole = length if tokens is None else tokens.shape[1]
    for layer in range(weights.n_layers):
        site = Site("pattern", layer)
        if site.hook_name in names:
            whole = cached(cache, site).shape[-1]
            break
    if whole != length:
        raise ValueError(_text(f"{length} of {whole} positions"))
    if length == 1 and tokens is None and not _reads_itself(weights, cache, names):
        raise ValueError(_text("one position of longer texts"))


def _text(what: str) -> str:
    return (
        f"cache holds {what}, as pos_slice leaves them, and does not say which; wanted all "
        "positions, of which positions=… chooses"
    )


def _reads_itself(weights: Weights, cache: Cache, names: set[str]) -> bool:
    """Whether the first attention wrote what it writes at the only position of a text."""
    entry, output = Site("resid_pre", 0), Site("attn_out", 0)
    embeddings = [Site(name) for name in ("embed", "pos_embed")[: 1 + weights.has_pos_embed]]
    sources = [entry] if entry.hook_name in names else embeddings
    told = {site.hook_name for site in (*sources, output)} <= names
    if not told or has_hooks(weights.model):
        return True
    stream = sum((cached(cache, site) for site in sources[1:]), cached(cache, sources[0]))
    seen: list[Tensor] = []

    def observe(name: str, _layer: int, x: Tensor) -> Tensor:
        if name == "attn_out":
            seen.append(x)
        return x

    forward_of(weights.model).run(stream, stop=1, observe=observe)
    written = cached(cache, output)
    return bool((seen[0] - written).norm() <= 1e-2 * written.norm())
