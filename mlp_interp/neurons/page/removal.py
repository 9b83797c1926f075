"""What is lost without a neuron: directly, through later layers and in total."""

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlp_interp.metrics.rows import next_tokens
from mlp_interp.metrics.stream import stream_change
from mlp_interp.models.protocol import Model
from mlp_interp.models.writes import frozen_scale
from mlp_interp.neurons.evidence.effects import ABOUT, held_changes, losses
from mlp_interp.results import mean_and_error, to_numpy
from mlp_interp.runs import Runner
from mlp_interp.sites import Site

__all__ = ["removal"]

PATHS = ("direct", "later", "total")
WHERE = ("all", "firing")


@torch.no_grad()
def removal(
    model: Model,
    site: Site,
    tokens: Int[Tensor, "sequence pos"],
    promoted: Int[np.ndarray, " rank"],
    *,
    held_at: float,
    real: Bool[Tensor, "sequence pos"] | None,
    first: int,
    size: int,
) -> dict[str, xr.DataArray]:
    """Effects of holding a neuron at a value, and how strongly it speaks to the logits directly.

    Args:
        model: The model.
        site: The neuron, at ``post``.
        tokens: What is run.
        promoted: The tokens whose log-probabilities are looked at.
        held_at: The value.
        real: Where text is, not padding; None for everywhere.
        first: Position from which on it is held, and effects count.
        size: Sequences at a time.

    Returns:
        ``effect``, ``effect_se``, ``direct_coefficient`` and ``direct_coefficient_se``, as
        `neuron_page` says.
    """
    runner, layer, neuron = Runner.of(model), site.layer or 0, site.unit
    unembed, weights = runner.unembed, runner.weights
    value = weights.parameter(layer, "W_out")[neuron]
    kept = unembed.norm.keep(value)
    words = torch.from_numpy(promoted).to(unembed.weight.device)
    effects, coefficients = [], []
    real = torch.ones_like(tokens, dtype=torch.bool) if real is None else real
    for batch, texts in zip(tokens.split(size), real.split(size), strict=True):
        clean = runner.run(batch, sites=[Site("pre", layer), Site("post", layer)])
        stream = clean.final[:, first:]
        post = clean["post", layer][:, first:, neuron]
        scale = frozen_scale(weights, site.whole, clean["post", layer])
        share = 1.0 if scale is None else 1 / scale[:, first:, 0]
        text = texts[:, first:].to(stream.device)
        firing = (clean["pre", layer][:, first:, neuron] > 0) & text
        total = unembed.norm.keep(stream)
        removed = ((post - held_at) * share)[..., None] * kept
        direct = stream_change(
            unembed, total.flatten(0, 1), removed.flatten(0, 1), norm="recompute"
        )
        (whole,) = held_changes(runner, clean, layer, [(neuron, held_at)], first=first)
        targets = next_tokens(clean.tokens, texts)[:, first:]
        found = losses(
            unembed,
            unembed.normalize(stream).flatten(0, 1),
            targets.flatten(),
            torch.stack([direct, whole[0].flatten(0, 1)]),
            words,
        )
        rows = torch.stack([x.double().unflatten(-1, firing.shape) for x in found])
        effects.append(_by_sequence(rows.masked_fill(~text, torch.nan), firing))
        strength = (post * share / unembed.scale(stream)[..., 0]).double()
        coefficients.append(torch.where(firing, strength, torch.nan).nanmean(-1))
    return {
        **_effects(torch.cat(effects, dim=-1).cpu()),
        **_coefficient(torch.cat(coefficients).cpu()),
    }


def _by_sequence(
    rows: Float[Tensor, "measure path batch pos"], firing: Tensor
) -> Float[Tensor, "measure 3 where batch"]:
    """Means over all positions, and over those at which it fires."""
    only = torch.where(firing, rows, torch.nan)
    found = torch.stack([rows.nanmean(-1), only.nanmean(-1)], dim=2)
    direct, total = found.unbind(1)
    return torch.stack([direct, total - direct, total], dim=1)


def _effects(values: Float[Tensor, "measure path where sequence"]) -> dict[str, xr.DataArray]:
    coords = {
        "measure": list(ABOUT),
        "measure_unit": ("measure", [unit for unit, _ in ABOUT.values()]),
        "path": list(PATHS),
        "where": list(WHERE),
    }
    about = "; ".join(f"{name}: {words}" for name, (_, words) in ABOUT.items())
    return {
        name: xr.DataArray(
            to_numpy(part),
            coords,
            ("measure", "path", "where"),
            attrs={"unit": "nats", "long_name": about},
        )
        for name, part in zip(("effect", "effect_se"), mean_and_error(values), strict=True)
    }


def _coefficient(values: Float[Tensor, " sequence"]) -> dict[str, xr.DataArray]:
    about = {"unit": "1", "long_name": "activation / sigma when it fires, mean over sequences"}
    names = "direct_coefficient", "direct_coefficient_se"
    return {
        name: xr.DataArray(float(part), attrs=about)
        for name, part in zip(names, mean_and_error(values), strict=True)
    }
