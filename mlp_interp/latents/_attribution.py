"""`attribution_patch`: what exchanging each latent would do, from two runs and one gradient."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.dictionaries import Dictionary
from mlp_interp.gradients.nodes import beside_runs, extended
from mlp_interp.gradients.parts import GradientPart, parts
from mlp_interp.gradients.runs import GradientPlan
from mlp_interp.interchange import Direction, Engine, GivenRuns, Question, both_runs
from mlp_interp.interchange import in_order as by_prompt
from mlp_interp.latents.exchanged import Change
from mlp_interp.latents.named import in_order, of_layers
from mlp_interp.latents.spliced import sites_of
from mlp_interp.metrics import MetricLike
from mlp_interp.models import Weights
from mlp_interp.models.indices import count
from mlp_interp.models.options import check_choice
from mlp_interp.models.own_mode import in_own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.prompts import Contrast
from mlp_interp.results import described, to_numpy, variable
from mlp_interp.sites import Site, component_coords

__all__ = ["attribution_patch"]

Where = Literal["all", "each"]


@in_own_mode
@torch.no_grad()
def attribution_patch(
    model: Model,
    contrast: Contrast,
    dictionaries: Dictionary | Sequence[Dictionary],
    metric: MetricLike = "logit_difference",
    *,
    direction: Direction = "denoising",
    steps: int = 1,
    positions: Where = "all",
    runs: GivenRuns | None = None,
    engine: Engine = "auto",
    memory: float = 512.0,
) -> xr.Dataset:
    """Estimate what exchanging every latent would do to a metric, all of them at once.

    As `mlp_interp.attribution_patch`, of latents: the change of what a latent writes, clean less
    corrupted, times the gradient of the metric with respect to the stream there. Positive points
    toward clean. The estimates of all components of a place, the error's among them, sum to that of
    the place, ``whole`` (in half precision to its rounding: nano in bfloat16 is off by up to 0.06
    of 4); what share of it is the error's is known before any latent is read. It is a first-order
    estimate, to be held against `patch` of those that it finds.

    Gradients do not pass through the encoder of a dictionary: a latent of a later layer does not
    stand for what an earlier one tells it.

    Args:
        model: The model.
        contrast: Clean and corrupted prompts, whose pairs may differ in length.
        dictionaries: SAEs or transcoders, one or several, at most one of a layer.
        metric: As of `mlp_interp.attribution_patch`.
        direction: As of `mlp_interp.attribution_patch`.
        steps: As of `mlp_interp.attribution_patch`.
        positions: ``"all"`` sums over positions, ``"each"`` keeps them apart.
        runs: As of `mlp_interp.attribution_patch`; they hold what dictionaries read and write.
        engine: As of `mlp_interp.attribution_patch`.
        memory: As of `mlp_interp.attribution_patch`.

    Returns:
        A Dataset along ``component`` (latents that write something else in some prompt, and the
        error), positions if they are kept apart, and ``prompt``: ``estimate``, in the metric's
        unit; ``raw`` and ``normalized``, the metric as estimated after the exchange, in the layout
        of `patch`. ``whole`` is the estimate for each ``place``; ``clean`` and ``corrupted`` the
        metric of both runs.

    Raises:
        ValueError: What `patch` and `mlp_interp.attribution_patch` refuse.

    References:
        Marks et al., "Sparse Feature Circuits", 2024; Nanda, "Attribution patching", 2023.

    Example:
        >>> from mlp_interp import load_corpus, load_model, prompts
        >>> from mlp_interp.latents import train
        >>> model = load_model("nano")
        >>> corpus = load_corpus("nano", model, sequences=8, length=64)
        >>> sae = train(model, corpus, "2.mlp", n_latents=64, k=8, steps=3, batch_size=64)
        >>> found = attribution_patch(model, prompts.facts(model, n=2, seed=0), [sae])
        >>> left = found.estimate.sum("component") - found.whole[0]
        >>> str(found.component.values[-1]), float(abs(left).max()) < 1e-3
        ('2.error', True)
    """
    steps = count("steps", steps)
    check_choice("positions", positions, get_args(Where))
    question = Question.of(
        model, contrast, metric, direction=direction, engine=engine, memory=memory, runs=runs
    )
    weights = question.weights
    dictionaries = of_layers(weights, dictionaries)
    kept = sites_of(weights, dictionaries)
    names = tuple({_gradient(weights, one) for one in dictionaries})
    numbers, readings, found = [], [], []
    for part in parts(question, GradientPlan(names=(), gradients=names, steps=steps)):
        pair = part.question.pair(kept)
        changes = [Change.of(one, pair.clean, pair.corrupted) for one in dictionaries]
        values = _estimates(part, changes)
        missing = question.contrast.length - part.question.contrast.length
        found.append(
            {
                s: extended(x, missing) if positions == "each" else x.sum(0)
                for s, x in values.items()
            }
        )
        numbers.append(part.reading.numbers)
        readings.append(part.reading)
    places = [one.site for one in dictionaries]
    sites = in_order({site for some in found for site in some} - {*places})
    each = positions == "each"
    dims = ("pos", "prompt") if each else ("prompt",)
    unit = question.metric.unit
    stacked = {
        name: variable(
            (dim, *dims), by_prompt(numbers, [_stacked(x, of, places[0]) for x in found]), unit=unit
        )
        for name, dim, of in (("estimate", "component", sites), ("whole", "place", places))
    }
    result = xr.Dataset(
        stacked | both_runs(readings),
        coords={
            **component_coords(sites),
            "place": [site.label for site in places],
            **question.coords(range(question.contrast.length) if each else None),
        },
        attrs={
            **question.attrs(),
            "analysis": "attribution patching of latents",
            "dictionaries": "; ".join(map(repr, dictionaries)),
            "steps": steps,
            "exact": 0,
            "approximation": "first order: the change times the gradient",
        },
    )
    about = {"estimate": "estimated effect, positive toward clean"}
    about["whole"] = f"{about['estimate']}, of the whole place"
    result = described(result, about)
    return beside_runs(result.estimate, result).assign(whole=result.whole)


def _gradient(weights: Weights, one: Dictionary) -> str:
    """The gradient at the place that a dictionary writes: what is written last has the block's."""
    if one.writes != "resid_post":
        return one.writes
    return "mlp_out" if weights.has_mlps else "attn_out"


def _estimates(
    part: GradientPart, changes: Sequence[Change]
) -> dict[Site, Float[np.ndarray, "pos prompt"]]:
    """Of each component that changes and of each place, at every position of the prompts."""
    contrast, weights = part.question.contrast, part.question.weights
    by_layer = {change.dictionary.layer: change for change in changes}
    sums: dict[Site, Tensor] = {}
    for layer, gradients in part.gradients():
        if layer not in by_layer:
            continue
        change = by_layer[layer]
        name = _gradient(weights, change.dictionary)
        rows = part.runs.positions(name, layer)
        shares = change.along(rows, gradients[name])
        shares[change.dictionary.site] = torch.linalg.vecdot(change.whole[:, rows], gradients[name])
        for site, share in shares.items():
            if site not in sums:
                sums[site] = share.new_zeros(contrast.length, len(contrast))
            sums[site][rows] += share.T
    kept = {site for change in changes for site in (*change.moving, change.dictionary.site)}
    return {site: to_numpy(x) for site, x in sums.items() if site in kept}


def _stacked(found: Mapping[Site, np.ndarray], sites: Sequence[Site], like: Site) -> np.ndarray:
    """Estimates of sites under each other; 0 of those that do not change in these prompts."""
    nothing = found[like] * 0  # NaN where prompts have no position
    return np.stack([found.get(site, nothing) for site in sites])
