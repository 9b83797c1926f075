"""Attribution patching: what patching each activation would do, from two runs and one gradient."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from mlp_interp.gradients.parts import GradientPart, parts
from mlp_interp.gradients.runs import GradientPlan
from mlp_interp.interchange import (
    Direction,
    Engine,
    GivenRuns,
    Question,
    Reading,
    both_runs,
    in_order,
)
from mlp_interp.metrics import MetricLike
from mlp_interp.models.indices import count, distinct
from mlp_interp.models.options import check_choice
from mlp_interp.models.own_mode import in_own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.prompts import Contrast
from mlp_interp.results import to_numpy
from mlp_interp.sites import FAMILIES, GATED, did_you_mean, head_grid_coords

__all__ = [
    "HEADS",
    "NEURONS",
    "SITES",
    "STREAMS",
    "as_grid",
    "attribution_patch",
    "beside_runs",
    "extended",
]

STREAMS = ("resid_pre", "attn_out", "mlp_out")
HEADS = FAMILIES["head"]
NEURONS = FAMILIES["neuron"]
SITES = (*STREAMS, *HEADS, "pre", "post")
_KNOWN = (*SITES, *GATED)
_USUAL = (*STREAMS, *HEADS, "post")

_COUNTED = ("layer", "head", "kv_head", "neuron")


@in_own_mode
@torch.no_grad()
def attribution_patch(
    model: Model,
    contrast: Contrast,
    metric: MetricLike = "logit_difference",
    *,
    sites: str | Sequence[str] = _USUAL,
    direction: Direction = "denoising",
    steps: int = 1,
    baseline: Literal["corrupted", "zero"] = "corrupted",
    neuron_positions: bool = False,
    runs: GivenRuns | None = None,
    engine: Engine = "auto",
    memory: float = 512.0,
) -> xr.Dataset:
    """Estimate what patching every activation would do to a metric, all of them at once.

    The estimate for an activation is its change, clean less corrupted, times the gradient of the
    metric with respect to it: two forward passes and one backward pass for all sites, where exact
    patching needs a forward pass each. Positive points toward clean. It is a first-order estimate:
    right where the metric is linear in the activation (outputs of late layers), and often wrong, in
    sign too, for residual streams and the first MLP, whose changes are large; `compare` says by how
    much. Estimates of different sites overlap and must not be added up, but those of one site sum
    over positions, heads or neurons to the estimate for patching them together.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        contrast: Pairs of clean and corrupted prompts, which may differ in length.
        metric: One of `mlp_interp.metrics.METRICS`, a `Metric`, or a function of the last logits
            (`mlp_interp.metrics.of_function`).
        sites: Any of ``resid_pre``, ``attn_out``, ``mlp_out``, ``z``, ``q``, ``k``, ``v``,
            ``pattern``, ``pre``, ``post``. Only these are kept in memory. Queries and keys are
            those before the rotary embedding; positions of ``pattern`` are those that attend.
        direction: ``"denoising"`` takes the gradient at the corrupted run and estimates the effect
            of putting clean activations there; ``"noising"`` takes it at the clean run and
            estimates what corrupted activations would cost there.
        steps: 1 takes the gradient at that run alone. More average it over so many Gauss-Legendre
            points between the two runs' embeddings (integrated gradients, EAP-IG's "inputs"), which
            mends saturation; then the direction makes no difference, and estimates for
            ``resid_pre`` of layer 0 sum to the metric's whole change.
        baseline: ``"zero"`` estimates what setting activations to zero would cost the clean run:
            the activation itself times the gradient. Wants ``direction="noising"`` and one step.
        neuron_positions: Keep the positions of neurons apart instead of summing over them.
        runs: The clean and the corrupted run, if they were made before: runs, or caches of the
            model. A gradient needs more of a run than a cache holds, so they are taken up at their
            embeddings.
        engine: ``"auto"`` computes on the model's weights where it can, ``"hooks"`` by autograd
            through the model itself.
        memory: About how many MiB to use at most; prompts and steps are divided accordingly.

    Returns:
        A Dataset with one variable per site, in the metric's unit: ``[layer, pos, prompt]``,
        ``[layer, head, pos, prompt]`` or ``[layer, neuron, (pos,) prompt]``; and the metric of both
        runs, ``clean`` and ``corrupted`` ``[prompt]``; NaN at positions that a prompt does not
        have. `as_grid` brings some sites into the layout of exact patching.

    Raises:
        ValueError: An unknown site, metric or option; steps below 1; a metric made for another
            number of prompts or that is NaN; a model made inside `torch.inference_mode`. (Called
            there, or under autocast, it computes as outside.)

    References:
        Nanda, "Attribution patching", 2023; Syed et al., "Attribution patching outperforms
        automated circuit discovery", 2023; Hanna et al., "Have faith in faithfulness", 2024
        (integrated gradients); Kramár et al., "AtP*", 2024 (where estimates fail).

    Example:
        >>> from mlp_interp import load_model, prompts
        >>> model = load_model("nano")
        >>> estimates = attribution_patch(
        ...     model, prompts.ioi(model, n=2, seed=0), sites=["z", "post"]
        ... )
        >>> estimates.z.dims, estimates.post.dims
        (('layer', 'head', 'pos', 'prompt'), ('layer', 'neuron', 'prompt'))
    """
    sites = _checked_sites(sites)
    steps = count("steps", steps)
    _check_baseline(baseline, direction, steps)
    question = Question.of(
        model, contrast, metric, direction=direction, engine=engine, memory=memory, runs=runs
    )
    weights = question.weights
    if sites == _USUAL:
        sites = weights.having(sites)
    weights.check_names(sites, argument="sites")
    length = question.contrast.length
    plan = GradientPlan(names=sites, gradients=sites, zero=baseline == "zero", steps=steps)
    estimates: dict[str, list[np.ndarray]] = {name: [] for name in sites}
    readings: list[Reading] = []
    for part in parts(question, plan):
        readings.append(part.reading)
        for name, values in _estimates(part, neuron_positions).items():
            missing = length - values.shape[-2] if _has_pos(name, neuron_positions) else 0
            estimates[name].append(extended(values, missing))
    unit = question.metric.unit
    shared = weights.n_kv_heads < weights.n_heads
    result = xr.Dataset(
        {
            name: (
                _dims(name, neuron_positions, shared=shared),
                in_order([reading.numbers for reading in readings], values),
                {"unit": unit, "long_name": f"estimated effect of {name}, positive toward clean"},
            )
            for name, values in estimates.items()
        }
        | both_runs(readings),
        coords=question.coords(range(length)),
        attrs={
            **question.attrs(),
            "analysis": "attribution patching",
            "exact": 0,
            "approximation": "first order: the change times the gradient",
            "steps": steps,
            "baseline": baseline,
        },
    )
    counted = {dim: range(result.sizes[dim]) for dim in _COUNTED if dim in result.dims}
    named = head_grid_coords(counted["layer"], counted["head"]) if "head" in counted else {}
    arrays = {dim: np.array(places) for dim, places in counted.items()}
    return result.assign_coords(arrays | named)


def as_grid(estimates: xr.Dataset, sites: str | Sequence[str]) -> xr.Dataset:
    """Some sites' estimates in the layout of exact patching.

    Args:
        estimates: From `attribution_patch`.
        sites: Sites of one shape (streams; heads; neurons).

    Returns:
        A Dataset with a dimension ``site``, and ``estimate`` (the effect, positive toward clean),
        ``raw`` (the patched run's metric as estimated), ``normalized`` (that with 0 for corrupted
        and 1 for clean; NaN where these are equal), ``clean`` and ``corrupted``.

    Raises:
        ValueError: A site that was not estimated, or sites of different shapes.

    Example:
        >>> from mlp_interp import load_model, prompts
        >>> model = load_model("nano")
        >>> estimates = attribution_patch(model, prompts.facts(model, n=2, seed=0))
        >>> as_grid(estimates, ["attn_out", "mlp_out"]).normalized.dims
        ('site', 'layer', 'pos', 'prompt')
    """
    names = list(distinct("sites", sites))
    wrong = [name for name in names if name not in _KNOWN or name not in estimates]
    if wrong or not names:
        there = [name for name in _KNOWN if name in estimates]
        raise ValueError(f"sites={names}; wanted some of those estimated, {', '.join(there)}")
    if len({estimates[name].dims for name in names}) > 1:
        raise ValueError(f"sites={names} have different dimensions; wanted sites of one shape")
    index = xr.DataArray(np.array(names, dtype=str), dims="site", name="site")
    effect = xr.concat([estimates[name] for name in names], index)
    if "kv_head" in effect.dims:  # a grid's heads are those of its sites
        effect = effect.rename(kv_head="head")
    return beside_runs(effect, estimates)


_EXCHANGED = {
    "raw": "metric as estimated after the exchange",
    "normalized": "the same, 0 as in the corrupted run and 1 as in the clean one",
}


def beside_runs(effect: xr.DataArray, estimates: xr.Dataset) -> xr.Dataset:
    """Estimated effects as the metric that a patched run would have, beside both runs' own."""
    clean, corrupted = estimates.clean, estimates.corrupted
    noising = estimates.attrs["direction"] == "noising"
    raw = clean - effect if noising else corrupted + effect
    gap = (clean - corrupted).where(clean != corrupted)
    found = {"estimate": effect, "raw": raw, "normalized": (raw - corrupted) / gap}
    unit = estimates.attrs["unit"]
    return xr.Dataset(
        {
            name: x.transpose(*effect.dims).assign_attrs(
                unit="share of clean - corrupted" if name == "normalized" else unit,
                **({} if name == "estimate" else {"long_name": _EXCHANGED[name]}),
            )
            for name, x in found.items()
        }
        | {"clean": clean, "corrupted": corrupted},
        attrs=estimates.attrs,
    )


def extended(values: np.ndarray, missing: int) -> np.ndarray:
    """NaN at so many more positions, ``[..., pos, prompt]``: those of longer prompts."""
    if not missing:
        return values
    empty = np.full_like(values, np.nan, shape=(*values.shape[:-2], missing, values.shape[-1]))
    return np.concatenate([values, empty], axis=-2)


def _estimates(part: GradientPart, neuron_positions: bool) -> dict[str, np.ndarray]:
    """Of some prompts, with the prompts last."""
    weights, contrast = part.question.weights, part.question.contrast
    prompts, length = len(contrast), contrast.length
    differences = part.runs.differences
    sums: dict[str, Tensor] = {}
    for layer, grads in part.gradients():
        for name in part.plan.gradients:
            value = _product(name, differences[name, layer], grads[name], neuron_positions)
            if name not in sums:
                units = value.shape[1:-1] if value.ndim > 2 else ()
                last = length if _has_pos(name, neuron_positions) else value.shape[-1]
                sums[name] = value.new_zeros(weights.n_layers, prompts, *units, last)
            where: Any = slice(None)
            if _has_pos(name, neuron_positions):
                positions = part.runs.positions(name, layer)
                # A slice where it can be one: a list of places would be gathered and scattered.
                first, stop = positions[0], positions[-1] + 1
                where = slice(first, stop) if len(positions) == stop - first else positions
            sums[name][layer][..., where] += value
    # [layer, prompt, unit, pos] -> [layer, unit, pos, prompt]
    return {name: to_numpy(x.movedim(1, -1)) for name, x in sums.items()}


def _product(name: str, change: Tensor, grad: Tensor, neuron_positions: bool) -> Tensor:
    """Change times gradient: ``[prompt, (unit,) row]``, or ``[prompt, neuron]`` without rows."""
    if name in STREAMS or name == "pattern":
        return torch.linalg.vecdot(change, grad)
    if name in HEADS:
        return torch.linalg.vecdot(change, grad).transpose(1, 2)
    if neuron_positions:
        return (change * grad).transpose(1, 2)
    return (change * grad).sum(1)


def _has_pos(name: str, neuron_positions: bool) -> bool:
    return name not in NEURONS or neuron_positions


def _dims(name: str, neuron_positions: bool, *, shared: bool) -> tuple[str, ...]:
    if name in STREAMS:
        return ("layer", "pos", "prompt")
    if name in HEADS:
        return ("layer", "kv_head" if shared and name in "kv" else "head", "pos", "prompt")
    return (
        ("layer", "neuron", "pos", "prompt") if neuron_positions else ("layer", "neuron", "prompt")
    )


def _checked_sites(sites: str | Sequence[str]) -> tuple[str, ...]:
    chosen = distinct("sites", sites)
    if not chosen or any(name not in _KNOWN for name in chosen):
        near = next((did_you_mean(name, _KNOWN) for name in chosen if name not in _KNOWN), "")
        raise ValueError(f"sites={list(chosen)}{near}; wanted some of {', '.join(_KNOWN)}")
    return chosen


def _check_baseline(baseline: str, direction: str, steps: int) -> None:
    check_choice("baseline", baseline, ("corrupted", "zero"))
    if baseline == "zero" and (direction != "noising" or steps != 1):
        raise ValueError(
            f"baseline='zero' with direction={direction!r} and steps={steps}; wanted 'noising' and "
            "1: zeros are put into the clean run"
        )
