"""Reading activations that somebody kept: in one way, whatever holds them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor

from mlp_interp.models.protocol import Cache
from mlp_interp.sites import Site

__all__ = ["CutCache", "cached", "cached_tokens", "check_cached", "is_cache"]

_PATTERN = Site("pattern", 0).hook_name.rsplit(".", 1)[1]
_NAMED = 12  # hook names that an error lists in full


def cached(cache: Cache, site: Site) -> Tensor:
    """The whole activation at a site, with an axis of prompts whether or not it was taken off.

    Raises:
        ValueError: The cache does not have it, or has something of another shape there.

    Example:
        >>> import torch
        >>> cached({"blocks.1.hook_mlp_out": torch.zeros(5, 8)}, Site("mlp_out", 1)).shape
        torch.Size([1, 5, 8])
    """
    check_cached(cache, [site])
    value = cache[site.hook_name].detach()
    # Axes tell more than the flag of a cache: a dict has none, and the bridge embeds positions
    # once for all prompts. `remove_batch_dim` takes off an axis of size 1 of these, too.
    while value.ndim < len(site.axes):
        value = value[None]
    if value.ndim > len(site.axes):
        raise ValueError(
            f"cache[{site.hook_name!r}]={tuple(value.shape)}; wanted [{', '.join(site.axes)}]"
        )
    return value


def cached_tokens(cache: Cache) -> Int[Tensor, "batch pos"] | None:
    """The tokens that were run, where the cache knows them: under ``"tokens"``, or as a `Run`."""
    tokens = cache["tokens"] if "tokens" in [*cache] else getattr(cache, "tokens", None)
    return tokens[None] if tokens is not None and tokens.ndim == 1 else tokens


def check_cached(
    cache: Cache, sites: Sequence[Site], how: str | None = None, name: str = "cache"
) -> None:
    """Refuse a cache that lacks activations at some sites.

    Args:
        cache: What was kept.
        sites: Where activations are needed.
        how: The ``names_filter`` to name in the error; None for the sites' own hook names.
        name: What lacks them, for the error.

    Raises:
        ValueError: It lacks some, and the text says how to keep them; or it is no cache.
    """
    if isinstance(cache, tuple | list | Tensor | str) or not hasattr(cache, "keys"):
        pair = isinstance(cache, tuple) and len(cache) == 2
        given = "the pair (logits, cache)" if pair else type(cache).__name__
        raise ValueError(
            f"{name}={given}; wanted the cache, run_with_cache(tokens)[1], or run(model, tokens)"
        )
    names, kept = list(dict.fromkeys(site.hook_name for site in sites)), set(cache)
    # A run computes its patterns where they are asked for: they are in it, but not listed.
    missing = [name for name in names if name not in kept and name not in cache]
    if not missing:
        return
    shown = f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}"
    if how is None:
        listed = len(names) <= _NAMED
        how = f"names_filter={names}" if listed else "a names_filter that lets them pass, or none"
    raise ValueError(
        f"{name} lacks {shown} ({len(missing)} of the {len(names)} entries needed); run the model "
        f"with {how}"
    )


@dataclass(frozen=True, eq=False)
class CutCache(Mapping[str, Tensor]):
    """Some sequences of a cache, up to a position: each activation is cut where it is looked up.

    Attributes:
        cache: The whole.
        rows: Which sequences.
        length: How many positions of them.
    """

    cache: Cache
    rows: list[int]
    length: int

    def __getitem__(self, name: str) -> Tensor:
        whole = self.cache[name]
        # The bridge embeds positions once for all prompts.
        x = whole if len(whole) == 1 else whole[self.rows]
        if name.endswith(_PATTERN):
            return x[:, :, : self.length, : self.length]
        return x[:, : self.length]

    def __iter__(self) -> Iterator[str]:
        return iter(self.cache)

    def __len__(self) -> int:
        return len([*self.cache])

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self.cache


def is_cache(given: Any) -> bool:
    """Whether this is a run or a cache, and not texts or tokens: the library's is no `Mapping`."""
    return isinstance(given, Mapping) or hasattr(given, "cache_dict")
