"""What is lost without a neuron: directly, through later layers and in total."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlp_interp.edits import Edit
from mlp_interp.metrics.rows import next_tokens
from mlp_interp.metrics.stream import stream_change
from mlp_interp.models import Weights
from mlp_interp.models.protocol import Model
from mlp_interp.models.writes import frozen_scale
from mlp_interp.neurons.evidence.effects import ABOUT, losses
from mlp_interp.results import mean_and_error, to_numpy
from mlp_interp.runs import Run, Runner
from mlp_interp.runs.effects import stream_changes
from mlp_interp.sites import Site

__all__ = ["NeuronUnit", "Unit", "removal"]

PATHS = ("direct", "later", "total")
WHERE = ("all", "firing")


@runtime_checkable
class Unit(Protocol):
    """One number at each token that is written to the stream along one vector."""

    @property
    def sites(self) -> Sequence[Site]:
        """What a run must keep of it."""
        ...

    @property
    def value(self) -> Float[Tensor, " d_model"]:
        """What an activation of 1 writes, where its share is 1."""
        ...

    def activity(self, run: Run) -> tuple[Tensor, Tensor, Tensor]:
        """Its activation, whether it fires, and its share in what is written, ``[batch, pos]``."""
        ...

    def held(self, value: float, positions: Sequence[int]) -> Edit:
        """What holds it at a value."""
        ...


@dataclass(frozen=True)
class NeuronUnit:
    """A neuron as a `Unit`.

    Attributes:
        weights: The model's.
        site: The neuron, at ``post``.
    """

    weights: Weights
    site: Site

    @property
    def sites(self) -> tuple[Site, Site]:
        """Before and after the nonlinearity."""
        return Site("pre", self.site.layer), self.site.whole

    @property
    def value(self) -> Float[Tensor, " d_model"]:
        """Its row of ``W_out``."""
        return self.weights.parameter(self.site.layer or 0, "W_out")[self.site.unit]

    def activity(self, run: Run) -> tuple[Tensor, Tensor, Tensor]:
        """As of `Unit`; a norm between neurons and ``W_out`` is held at its scale."""
        pre, post = (run.at(site) for site in self.sites)
        own = post[..., self.site.unit]
        scale = frozen_scale(self.weights, self.site.whole, post)
        share = torch.ones_like(own) if scale is None else 1 / scale[..., 0]
        return own, pre[..., self.site.unit] > 0, share

    def held(self, value: float, positions: Sequence[int]) -> Edit:
        """As of `Unit`."""
        return Edit.set(self.site, value, positions=positions)


@torch.no_grad()
def removal(
    model: Model,
    unit: Unit,
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
        unit: What is held: a neuron, or a latent of a dictionary.
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
    runner = Runner.of(model)
    unembed = runner.unembed
    kept = unembed.norm.keep(unit.value)
    held = unit.held(held_at, range(first, tokens.shape[1]))
    words = torch.from_numpy(promoted).to(unembed.weight.device)
    effects, coefficients = [], []
    real = torch.ones_like(tokens, dtype=torch.bool) if real is None else real
    for batch, texts in zip(tokens.split(size), real.split(size), strict=True):
        clean = runner.run(batch, sites=unit.sites)
        stream = clean.final[:, first:]
        post, fires, share = (x[:, first:] for x in unit.activity(clean))
        text = texts[:, first:].to(stream.device)
        firing = fires & text
        total = unembed.norm.keep(stream)
        removed = (((post - held_at) * share)[..., None] * kept).to(total)
        direct = stream_change(
            unembed, total.flatten(0, 1), removed.flatten(0, 1), norm="recompute"
        )
        (whole,) = stream_changes(runner, clean, [[held]], first=first)
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
