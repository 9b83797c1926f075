"""`read_parts`: what each component of the stream says by itself."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr

from mlp_interp.lens._vectors import of_promotion
from mlp_interp.lens.asked import Asked, texts_and_run, texts_of
from mlp_interp.lens.labels import token_coords
from mlp_interp.lens.promotion import Promotion
from mlp_interp.lens.said import Said
from mlp_interp.models import Weights, describe
from mlp_interp.models.options import check_choice
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.precision import warn_of_rounding
from mlp_interp.models.protocol import Cache, Model
from mlp_interp.models.unembed import Unembed
from mlp_interp.residual import Level, Residual, cache_for, decompose, needed
from mlp_interp.results import variable
from mlp_interp.runs import Run
from mlp_interp.sites import component_coords

__all__ = ["read_parts"]

_ABOUT = {
    "kl_added": ("nats", "KL(before‖after the component is added)"),
    "logit_target": ("logits", "what it adds to the target's logit, over the mean of all logits"),
    "logit_difference": ("logits", "what it adds to logit(target) - logit(foil)"),
}


@own_mode()
@torch.no_grad()
def read_parts(
    model: Model,
    tokens: Any,
    *,
    attention_mask: Any = None,
    level: Level = "component",
    positions: Any = -1,
    scale: Literal["stream", "own"] = "stream",
    targets: Any = None,
    k: int = 5,
    controls: int = 100,
    seed: int = 0,
) -> xr.Dataset:
    """What does each attention, MLP, head or neuron say by itself, and what does it change?

    Each component of the final stream is given to the readout. What it raises and lowers is what it
    says directly: what later layers make of it is in none of these numbers (see
    `mlp_interp.ablation`). The readout's bias is left out of logits.

    ``kl_added`` is KL(before‖after), in nats: from what the readout says of the stream that the
    component's attention or MLP was given, to what it says when the component is added. In a
    parallel block that is the stream that enters the block, for its attention and its MLP, for
    heads and neurons too: the stream with one of them alone is no state of the network, so these do
    not add up to what the block does.

    Args:
        model: The model.
        tokens: As in `read`; a `Run` must have kept what `mlp_interp.residual.needed` names.
        attention_mask: As in `read`.
        level: ``"component"``, ``"head"`` or ``"neuron"``: see `mlp_interp.decompose`.
        positions: Which positions, negative ones from the end of each text; None for all.
        scale: What everything is divided by. ``"stream"``: the scale of the final stream, as the
            model does; logits then sum to the model's, but early streams are so small beside it
            that the readout's bias outweighs them. ``"own"``: each as if it were the whole stream,
            and for ``kl_added`` the stream before and after each by its own, as `read` does; these
            logits do not sum.
        targets: As in `read`.
        k: How many tokens of each sign.
        controls: How many random directions each component is held against (`read_vectors`).
        seed: Of the draws.

    Returns:
        A Dataset along ``prompt pos component`` (and ``rank``): ``kl_added``; ``promoted_id``,
        ``promoted_text``, ``promoted_logit`` (over the mean of all logits), ``promoted_random``,
        ``promoted_p`` and the same of ``suppressed``, as in `read_vectors`; with targets
        ``logit_target``, over the mean of all logits, and with foils ``logit_difference``, where
        ``attribute_logits`` has more. With ``scale="stream"`` components sum to the logits less the
        readout's bias, and so over their mean; where the model caps its logits, to those before
        the cap. ``kl_added`` is of the model's own.

    Raises:
        ValueError: As `read` and `mlp_interp.decompose`.

    References:
        Geva et al., "Transformer Feed-Forward Layers Build Predictions by Promoting Concepts in the
        Vocabulary Space", 2022; Elhage et al. 2021 (direct paths).

    Example:
        >>> from mlp_interp import load_model, prompts
        >>> model = load_model("nano")
        >>> found = read_parts(model, prompts.facts(model, n=4, seed=0))
        >>> found.logit_target.mean("prompt").isel(pos=0).idxmax("component").item()
        '3.mlp'
    """
    weights = Weights.of(model)
    check_choice("scale", scale, ("stream", "own"))
    needed(model, level=level)
    promotion = Promotion.of(weights, k, controls, seed)
    warn_of_rounding(weights, "read_parts")
    if isinstance(tokens, Run):
        padded, cache = texts_and_run(model, tokens, attention_mask)
    else:
        padded = texts_of(model, tokens, attention_mask)
        # Whatever token a text may end in: what is padding has been told.
        mask = torch.ones_like(padded.tokens) if padded.real is None else padded.real
        cache = cache_for(model, padded.tokens, attention_mask=mask, level=level)
    asked = Asked.of(weights, padded, positions, tokens, targets)
    residual = _decomposed(model, cache, level, positions, asked)
    found = Said(Unembed.of(model), promotion, residual, asked, scale, weights.parallel).arrays()
    capped = ", before the cap on logits" if weights.cap is not None else ""
    sums = f"to the logits less the readout's bias{capped}" if scale == "stream" else "no"
    return xr.Dataset(
        _variables(model, found, capped),
        coords={**component_coords(residual.sites), **token_coords(model, asked, k)},
        attrs={
            "analysis": "components as tokens",
            "long_name": "what each component says by itself",
            "unit": "see each variable",
            "scale": scale,
            "sums": sums,
            "level": level,
            "controls": controls,
            "seed": seed,
            "exact": 1,
            **padded.attrs,
            **describe(model),
        },
    )


def _decomposed(model: Model, cache: Cache, level: Level, positions: Any, asked: Asked) -> Residual:
    """The final stream at the positions asked for, as a sum of components."""
    tokens, real = asked.padded.tokens, asked.padded.real
    mask = torch.ones_like(tokens) if real is None else real
    return decompose(model, cache, level=level, positions=positions, attention_mask=mask)


def _variables(
    model: Model, found: Mapping[str, np.ndarray], capped: str
) -> dict[str, xr.Variable]:
    dims = ("prompt", "pos", "component")
    tokens = {name: x for name, x in found.items() if name not in _ABOUT}
    own = {
        name: variable(
            dims,
            found[name],
            unit=unit,
            long_name=long_name + (capped if unit == "logits" else ""),
        )
        for name, (unit, long_name) in _ABOUT.items()
        if name in found
    }
    return own | of_promotion(model, tokens, dims)
