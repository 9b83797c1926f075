"""From changed streams to a labelled account of what the changes do."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from mlp_interp.metrics import Effects
from mlp_interp.metrics.rows import of_text
from mlp_interp.results import described, mean_and_error, strings, variable
from mlp_interp.sites import Site, component_coords

__all__ = ["LOSSES", "MEASURES", "account", "group_coords"]

MEASURES = {"kl": "nats", "delta_loss": "nats per token", "top1_changed": "fraction"}
"""The measures of an ablation and their units."""

_ABOUT = {
    "kl": "divergence of the ablated prediction from the clean one",
    "kl_mean": "mean divergence of the ablated prediction from the clean one",
    "delta_loss": "ablated less clean loss",
    "delta_loss_mean": "mean of ablated less clean loss",
    "perplexity_ratio": "ablated over clean perplexity",
    "top1_changed": "whether another next token is the likeliest",
    "top1_change_rate": "share of tokens after which another next token is the likeliest",
}

_RATIO = ("perplexity_ratio", "perplexity_ratio_se")
LOSSES = ("delta_loss", "delta_loss_mean", "delta_loss_se", *_RATIO)
"""What an account says of losses, which takes knowing the tokens."""


def group_coords(groups: Mapping[str, Sequence[Site]]) -> dict[str, Any]:
    """Coordinates of a ``component`` dimension of groups; a group of many has kind ``group``."""
    coords = component_coords([sites[0] for sites in groups.values()])
    several = np.array([len(sites) > 1 for sites in groups.values()])
    coords["component"] = ("component", strings(list(groups)))
    coords["kind"] = ("component", np.where(several, "group", coords["kind"][1]))
    for name in ("layer", "head", "neuron"):
        coords[name] = ("component", np.where(several, -1, coords[name][1]))
    return coords


def account(
    effects: Effects,
    groups: Mapping[str, Sequence[Site]],
    *,
    positions: Sequence[int],
    counts: Bool[Tensor, "prompt pos"],
    attrs: Mapping[str, Any],
) -> xr.Dataset:
    """Per-token effects and their means with standard errors over sequences.

    Args:
        effects: Tensors ``[component, prompt, pos]``.
        groups: What was ablated, in order.
        positions: What the pos axis holds.
        counts: Which tokens count in the means.
        attrs: What to say of the model and the data.
    """
    per_token = {
        name: variable(("component", "prompt", "pos"), values, unit=MEASURES[name])
        for name, values in effects._asdict().items()
    }
    result = xr.Dataset(
        {**per_token, **_aggregated(of_text(effects, counts))},
        coords={
            **group_coords(groups),
            "prompt": np.arange(effects.kl.shape[1]),
            "pos": list(positions),
        },
        attrs={
            **attrs,
            "unit": "nats",
            "long_name": "what taking each component away does to the predicted distribution",
            "errors": "standard error over sequences; NaN with a single one",
        },
    )
    return described(result, _ABOUT)


def _aggregated(effects: Effects) -> dict[str, Any]:
    variables: dict[str, Any] = {}

    def add(name: str, mean: Tensor, error: Tensor, unit: str) -> None:
        variables[name] = variable("component", mean, unit=unit)
        variables[f"{name.removesuffix('_mean')}_se"] = variable("component", error, unit=unit)

    kl = _over_sequences(effects.kl)
    loss, loss_error = _over_sequences(effects.delta_loss)
    add("kl_mean", *kl, unit="nats")
    add("delta_loss_mean", loss, loss_error, unit="nats per token")
    # d exp(x) = exp(x) dx carries the standard error over to the ratio.
    ratio = loss.double().exp()  # single precision ends at 89 nats
    add("perplexity_ratio", ratio, ratio * loss_error, unit="ratio")
    add("top1_change_rate", *_over_sequences(effects.top1_changed), unit="fraction")
    return variables


def _over_sequences(
    values: Float[Tensor, "component prompt pos"],
) -> tuple[Float[Tensor, " component"], Float[Tensor, " component"]]:
    return mean_and_error(values.nanmean(-1))
