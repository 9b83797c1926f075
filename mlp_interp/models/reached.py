"""Whether a model computes with what its hooks show: some show a copy, and go on with their own."""

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mlp_interp.models.remember import without_hooks
from mlp_interp.models.weights import Weights
from mlp_interp.sites import GATED, HEADS, NEURONS, Site

__all__ = ["check_reached"]

_PROBED = (*HEADS, *NEURONS, *GATED, "pattern")
_TOKENS = 4

_known: WeakKeyDictionary[Any, dict[Site, bool]] = WeakKeyDictionary()


def check_reached(weights: Weights, sites: Iterable[Site]) -> None:
    """Refuse to edit through hooks where the model does not go on with what a hook gives back.

    Each place is tried once, on a few tokens.

    Args:
        weights: The model's.
        sites: Where edits are; heads and neurons of them do not matter.

    Raises:
        ValueError: An edit at one of them would do nothing.
    """
    known = _known.setdefault(weights.model, {})
    for site in dict.fromkeys(site.whole for site in sites if site.name in _PROBED):
        if site not in known:
            known[site] = _reached(weights, site)
        if not known[site]:
            raise ValueError(
                f"edits at {site.label!r} do nothing in model={weights.model.cfg.model_name!r}, "
                "which goes on with its own values there whatever its hook gives back; wanted "
                f"another site, such as '{site.layer}.attn' or '{site.layer}.mlp'"
            )


@torch.no_grad()
def _reached(weights: Weights, site: Site) -> bool:
    """Whether noise at a place comes out of its block."""
    shown: list[Tensor] = []

    def disturb(x: Tensor, hook: Any = None) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x)
        return x + noise * (1 + x.abs().mean())

    def show(x: Tensor, hook: Any = None) -> None:
        shown.append(x.clone())

    tokens = torch.arange(1, 1 + min(_TOKENS, len(weights.W_E) - 1), device=weights.device)[None]
    out = (Site("resid_post", site.layer).hook_name, show)
    with without_hooks(weights.model):
        for hooks in ([out], [(site.hook_name, disturb), out]):
            weights.model.run_with_hooks(tokens, return_type=None, fwd_hooks=hooks)
    return not torch.equal(*shown)
