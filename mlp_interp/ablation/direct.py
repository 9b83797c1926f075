"""Direct ablation: take components out of the final stream and read the logits again."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.ablation.baselines import Baseline, stand_in
from mlp_interp.ablation.effects import LOSSES, account
from mlp_interp.ablation.groups import Groups, resolve, single_neurons
from mlp_interp.ablation.neurons import neuron_effects
from mlp_interp.ablation.second_order import check_method, exactness
from mlp_interp.metrics import Effects
from mlp_interp.metrics.rows import chunks, joined, next_tokens, of_text, read_changes
from mlp_interp.metrics.stream import stream_change
from mlp_interp.models import Weights
from mlp_interp.models.caches import cached_tokens
from mlp_interp.models.options import check_choice
from mlp_interp.models.padding import which_count
from mlp_interp.models.protocol import Cache, Model
from mlp_interp.models.tokens import tokens_in
from mlp_interp.models.unembed import Unembed
from mlp_interp.residual import Part, Residual, components
from mlp_interp.sites import Site

__all__ = ["ablate_direct", "direct_effects", "group_sums"]

Norm = Literal["recompute", "freeze"]


@torch.no_grad()
def ablate_direct(
    model: Model,
    cache: Cache,
    groups: Groups = "component",
    *,
    norm: Norm = "recompute",
    baseline: Baseline = "zero",
    tokens: Int[Tensor, "batch pos"] | None = None,
    attention_mask: Any = None,
    first: int = 1,
    positions: int | list[int] | None = None,
    method: Literal["exact", "second_order"] = "exact",
    tolerance: float = 0.1,
    seed: int = 0,
) -> xr.Dataset:
    """What the logits lose when components are taken out of the final stream, later layers aside.

    The ablated logits are those of ``r - sum(c - base)``. Nothing a later layer would have done
    with the component is undone: that is `ablate_total`.

    Args:
        model: The model the cache was made with.
        cache: An `ActivationCache`, `Run` or dict of hook names that holds the components'
            activations and the final stream.
        groups: What to take away: a level, a list of components (each alone), or named sets.
        norm: ``"recompute"`` takes the final LayerNorm's scale of the ablated stream, as the
            network would; ``"freeze"`` keeps the clean scale. Their difference is the LayerNorm's
            share of the effect.
        baseline: What stands in: ``"zero"``, the ``"mean"`` over all tokens of this cache that
            count, or ``"resample"``, the same position of another sequence, which wants texts of
            one length.
        tokens: The tokens that were run, for losses; None takes those that the cache names, as it
            does where `cache_for` made it, or reads them off its embeddings. Where it holds neither
            there are no losses.
        attention_mask: 1 where text is, 0 where padding is; None tells it by the rule of
            `mlp_interp.models.padding`. Padding is NaN.
        first: Position of each text from which on components are taken away, and count in means:
            as in `ablate_total`. Where the tokens are not known, BOS counts after the first.
        positions: Where to measure, negative ones from the end of each text; None for all.
        method: ``"exact"``, or, for single neurons only, ``"second_order"``: exact on the likeliest
            tokens and half the variance of the logit change on the rest, which is many times faster
            for thousands of neurons. Neurons for which the bound on its relative error exceeds
            `tolerance` are computed exactly.
        tolerance: Largest relative error of the KL that ``"second_order"`` may make, whatever the
            weights. The errors it makes are far smaller: below 0.004 on nano at the default, and
            2e-4 on a random model. The smaller, the more neurons are computed exactly.
        seed: Which sequences are resampled.

    Returns:
        A Dataset with ``kl`` (KL(clean‖ablated), nats), ``delta_loss`` (nats per token) and
        ``top1_changed`` along ``component, prompt, pos``; and per component ``kl_mean``,
        ``delta_loss_mean``, ``perplexity_ratio``, ``top1_change_rate``, each with a standard error
        over sequences (``kl_se``, …). Where no tokens are known, what is about losses is left out.

    Raises:
        ValueError: Unknown components or options, overlapping groups, missing cache entries.

    Example:
        >>> from mlp_interp import load_model
        >>> from mlp_interp.residual import cache_for
        >>> model = load_model("nano")
        >>> cache = cache_for(model, torch.arange(40).reshape(4, 10))
        >>> result = ablate_direct(model, cache, ["0.mlp", "3.mlp"])
        >>> bool((result.kl >= 0).all()), result.kl.dims
        (True, ('component', 'prompt', 'pos'))
    """
    check_choice("norm", norm, get_args(Norm))
    weights, unembed = Weights.of(model), Unembed.of(model)
    named = resolve(weights, groups)
    alone = single_neurons(named)
    check_method(model, method, tolerance, single_neurons=alone)
    sites = list(dict.fromkeys(site for members in named.values() for site in members))
    residual = components(model, cache, sites, attention_mask=attention_mask, tokens=tokens)
    ran = _ran(weights, cache, tokens, residual)
    known = torch.full(residual.total.shape[:2], -1) if ran is None else ran
    counts = which_count(model, known, residual.real, first)
    stand = stand_in(baseline, counts, seed=seed, real=residual.real)
    # Stand-ins are taken over the whole cache, whatever positions are measured.
    removed = residual.less(stand).at(positions).kept_by(unembed.norm)
    targets = next_tokens(known, residual.real).to(removed.total.device)[:, removed.positions]
    if alone:
        bound = tolerance if method == "second_order" else None
        effects = neuron_effects(unembed, removed, targets, norm=norm, tolerance=bound)
        found = {site: i for i, site in enumerate(removed.sites)}
        order = [found[members[0]] for members in named.values()]
        effects = Effects(*(values[order] for values in effects))
    else:
        effects = direct_effects(unembed, removed, named, targets, norm=norm)
    found = account(
        of_text(effects, removed.real),
        named,
        positions=removed.positions,
        counts=counts[:, list(removed.positions)],
        attrs={
            **residual.attrs,
            "analysis": "direct ablation",
            **exactness(method, tolerance),
            "norm": norm,
            "baseline": baseline,
            "first": first,
            "method": method,
            "seed": seed,
            "data": residual.attrs.get("data", "{} x {} tokens".format(*removed.total.shape[:2])),
        },
    )
    return found if ran is not None else found.drop_vars(LOSSES)


def direct_effects(
    unembed: Unembed,
    removed: Residual,
    groups: Mapping[str, tuple[Site, ...]],
    targets: Int[Tensor, "batch pos"],
    *,
    norm: str,
) -> Effects:
    """Effects of taking each group out of the final stream, ``[component, batch, pos]``.

    Args:
        unembed: The readout.
        removed: What is taken away, and the stream it is taken from as its `total`; both as the
            final norm keeps them.
        groups: Which components together.
        targets: The next token of each position, -1 where unknown.
        norm: ``"recompute"`` or ``"freeze"``.
    """
    total = removed.total
    normalized = total / unembed.scale(total)
    pieces: list[Effects] = []
    for members in chunks(groups.values(), total.numel()):
        change = stream_change(unembed, total, group_sums(removed, members), norm=norm)
        pieces.append(read_changes(unembed, normalized, targets, change))
    return joined(pieces)


def group_sums(
    removed: Residual, groups: Sequence[tuple[Site, ...]]
) -> Float[Tensor, "group batch pos d_model"]:
    """What the components of each group sum to."""
    found = {site: (part, i) for part in removed.parts for i, site in enumerate(part.sites)}
    return torch.stack([_sum(found, sites) for sites in groups])


def _sum(found: Mapping[Site, tuple[Part, int]], sites: Sequence[Site]) -> Tensor:
    """Sum of some components, ``[batch, pos, d_model]``; each part is read once."""
    by_part: dict[int, tuple[Part, list[int]]] = {}
    for site in sites:
        part, index = found[site]
        by_part.setdefault(id(part), (part, []))[1].append(index)
    return torch.stack([part.take(index).sum() for part, index in by_part.values()]).sum(0)


def _ran(
    weights: Weights, cache: Cache, tokens: Tensor | None, residual: Residual
) -> Int[Tensor, "batch pos"] | None:
    """The tokens that were run, if anything says so."""
    shape = residual.total.shape[:2]
    tokens = cached_tokens(cache if tokens is None else {"tokens": tokens})
    if tokens is None:
        try:
            return tokens_in(weights, cache)
        except ValueError:  # no embeddings, or those of no tokens
            return None
    if tokens.shape != shape:
        raise ValueError(
            f"tokens={tuple(tokens.shape)} do not match the cache's {tuple(shape)} positions"
        )
    return tokens
