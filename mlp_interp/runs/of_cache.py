"""A run from a cache that somebody else has made."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mlp_interp.edits.edit import EDITABLE
from mlp_interp.models import Weights, forward_of
from mlp_interp.models.tokens import tokens_in
from mlp_interp.runs.recorded import Run
from mlp_interp.sites import Site

__all__ = ["run_of_cache"]


@torch.no_grad()
def run_of_cache(model: Any, cache: Mapping[str, Tensor], *, tokens: Tensor | None = None) -> Run:
    """See `Run.of_cache`."""
    forward = forward_of(model)
    if isinstance(cache, Run):
        if cache.weights.model is not model:
            raise ValueError(f"cache={cache!r} is a run of another model; wanted one of this")
        return cache
    entries = {name: x for name, x in _batched(cache).items() if isinstance(x, Tensor)}
    streams = _streams(forward.weights, entries)
    if tokens is None:
        tokens = tokens_in(forward.weights, entries)
    tokens = forward.weights.checked(tokens)
    if tokens.shape != streams[0].shape[:2]:
        raise ValueError(
            f"tokens={tuple(tokens.shape)} beside a cache of {tuple(streams[0].shape[:2])}; wanted "
            "the tokens that were run"
        )
    return Run(forward, tokens, streams, _kept(forward.weights, entries))


def _batched(cache: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All entries with a batch dimension: `ActivationCache.remove_batch_dim` leaves a flag."""
    batched = getattr(cache, "has_batch_dim", True)
    return {name: x if batched or name == "tokens" else x[None] for name, x in cache.items()}


def _streams(weights: Weights, entries: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """The stream at every block's input and the final one."""
    streams: list[Tensor] = []
    for layer in range(weights.n_layers + 1):
        names = [Site("resid_pre", layer).hook_name] if layer < weights.n_layers else []
        names += [Site("resid_post", layer - 1).hook_name] if layer else []
        kept = next((entries[name] for name in names if name in entries), None)
        stream = _sum(weights, entries, layer, streams) if kept is None else kept
        if stream.ndim != 3 or stream.shape[-1] != weights.d_model:
            raise ValueError(
                f"cache holds {names[0]} of shape {tuple(stream.shape)}; wanted "
                f"[batch, pos, {weights.d_model}]: is it a cache of this model?"
            )
        streams.append(stream.detach())
    return tuple(streams)


def _sum(
    weights: Weights, entries: Mapping[str, Tensor], layer: int, streams: list[Tensor]
) -> Tensor:
    """The stream at a block's input, from what was added to it."""
    if layer:
        below, names = [streams[-1]], ("attn_out", "mlp_out")
        wanted = [Site(name, layer - 1).hook_name for name in names]
    else:
        below = []
        wanted = [Site("embed").hook_name]
        wanted += [Site("pos_embed").hook_name] if weights.has_pos_embed else []
    missing = [name for name in wanted if name not in entries]
    if missing:
        raise ValueError(
            f"cache lacks the stream at the input of block {layer} and {', '.join(missing)}; run "
            "the model with names_filter=lambda name: name.endswith(('hook_embed', "
            "'hook_resid_pre', 'hook_resid_post')), or use run(model, tokens)"
        )
    first, *others = [*below, *(entries[name] for name in wanted)]
    return sum(others, first)


def _kept(weights: Weights, entries: Mapping[str, Tensor]) -> dict[Site, Tensor]:
    """Everything else that a run can hold."""
    kept: dict[Site, Tensor] = {}
    for name, x in entries.items():
        try:
            site = Site.of_hook(name)
        except ValueError:
            continue
        if (
            site.name in EDITABLE
            and site.name != "resid_pre"
            and (site.layer or 0) < weights.n_layers
        ):
            kept[site] = x.detach()
    return kept
