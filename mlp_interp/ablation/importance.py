"""The question the package was made for: how much does each sub-update matter, and by what way?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from mlp_interp.ablation.baselines import Baseline
from mlp_interp.ablation.direct import direct_effects
from mlp_interp.ablation.effects import MEASURES, group_coords
from mlp_interp.ablation.groups import resolve
from mlp_interp.ablation.sweep import CleanBatch, Sweep
from mlp_interp.ablation.total import total_effects
from mlp_interp.models import describe
from mlp_interp.models.protocol import Model
from mlp_interp.residual import components
from mlp_interp.results import mean_and_error, to_numpy, tokens_of, variable
from mlp_interp.runs import Runner
from mlp_interp.sites import Site
from mlp_interp.unembed import Unembed

__all__ = ["ablate_ranges", "subupdate_importance"]

Kind = Literal["mlp", "attn", "both"]

_KINDS: Mapping[str, tuple[str, ...]] = {
    "mlp": ("mlp_out",),
    "attn": ("attn_out",),
    "both": ("attn_out", "mlp_out"),
}
_NAMES = {"mlp": "MLP", "attn": "attention", "both": "attention and MLP"}


@torch.no_grad()
def subupdate_importance(
    model: Model,
    corpus: Any,
    *,
    level: Literal["component", "head"] = "component",
    baseline: Baseline = "zero",
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = False,
    checkpoint: str | Path | None = None,
) -> xr.Dataset:
    """How important is each sub-update: directly for the logits, and through later layers?

    For every sub-update, *total* ablates it in the forward pass, *direct* takes it out of the final
    stream only, with the final LayerNorm's scale taken anew, and *direct_frozen* the same with the
    clean scale. Then ``later = total - direct`` is what goes through later layers and ``layernorm =
    direct - direct_frozen`` the final LayerNorm's share. Both can be negative: later layers may
    repair a loss. KL is not additive, so the differences are summaries, not parts of a sum.

    Args:
        model: The model.
        corpus: A `Corpus` or integer tensor ``[sequence, pos]``.
        level: ``"component"`` (each attention and MLP output) or ``"head"`` (each head).
        baseline: ``"zero"``; ``"mean"`` over the whole corpus; ``"resample"``: the same position of
            another sequence of the same batch.
        batch_size: Sequences at a time. Results depend on it with ``"resample"`` only.
        seed: Which sequences are resampled.
        progress: Show a progress bar.
        checkpoint: A directory in which finished batches are kept. Run again with the same one and
            nothing that was computed before an interruption is computed again.

    Returns:
        A Dataset along ``component``. For the quantities ``kl`` (KL(clean‖ablated), nats) and
        ``delta_loss`` (nats per token): ``*_direct``, ``*_direct_frozen``, ``*_total``,
        ``*_later``, ``*_layernorm``; besides ``top1_direct``, ``top1_total`` (fraction of tokens
        whose likeliest successor changes) and ``perplexity_ratio_direct``,
        ``perplexity_ratio_total``. Each has its standard error over sequences, ``*_se``. The clean
        loss is in the attributes.

    Raises:
        ValueError: An empty corpus, unknown options, or resampling a single sequence.

    Example:
        >>> from mlp_interp import load_model
        >>> result = subupdate_importance(load_model("nano"), torch.arange(40).reshape(4, 10))
        >>> split = result.kl_direct + result.kl_later
        >>> bool(np.allclose(split, result.kl_total))
        True
    """
    if level not in ("component", "head"):
        raise ValueError(f"level={level!r}; wanted 'component' or 'head'")
    tokens, data = tokens_of(corpus)
    runner, unembed = Runner.of(model), Unembed.of(model)
    groups = resolve(runner.weights, level)
    members = [site for sites in groups.values() for site in sites]

    def measure(batch: CleanBatch) -> dict[str, Tensor]:
        removed = components(model, batch.clean, members).less(batch.stand).centred()
        ways = {
            "direct": direct_effects(unembed, removed, groups, batch.targets, norm="recompute"),
            "direct_frozen": direct_effects(unembed, removed, groups, batch.targets, norm="freeze"),
            "total": total_effects(runner, batch.clean, groups, batch.stand),
        }
        found = {
            f"{way}.{measure}": values.nanmean(-1)
            for way, effects in ways.items()
            for measure, values in effects._asdict().items()
        }
        return {**found, "loss": batch.loss(unembed)}

    sweep = Sweep(runner, tokens, groups, baseline, batch_size, seed, model)
    sums = sweep.run(measure, f"importance-{level}", progress=progress, checkpoint=checkpoint)
    ways = {
        way: {measure: sums[f"{way}.{measure}"] for measure in MEASURES}
        for way in ("direct", "direct_frozen", "total")
    }
    loss, loss_error = mean_and_error(sums["loss"])
    return xr.Dataset(
        _variables(ways),
        coords=group_coords(groups),
        attrs={
            **data,
            **describe(model),
            "analysis": "sub-update importance",
            "long_name": "effect of ablating each sub-update, directly and in total",
            "unit": "nats",
            "engine": runner.forward.engine,
            "level": level,
            "baseline": baseline,
            "seed": seed,
            "sequences": len(tokens),
            "clean_loss": float(loss),
            "clean_loss_se": float(loss_error),
            "errors": "standard error over sequences",
        },
    )


@torch.no_grad()
def ablate_ranges(
    model: Model,
    corpus: Any,
    *,
    kind: Kind = "mlp",
    baseline: Baseline = "zero",
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = False,
    checkpoint: str | Path | None = None,
) -> xr.Dataset:
    """Perplexity with a range of layers ablated together, for every range.

    Args:
        model: The model.
        corpus: A `Corpus` or integer tensor ``[sequence, pos]``.
        kind: ``"mlp"``, ``"attn"`` or ``"both"``: which sub-updates of each layer in the range.
        baseline: As in `subupdate_importance`.
        batch_size: Sequences at a time.
        seed: Which sequences are resampled.
        progress: Show a progress bar.
        checkpoint: As in `subupdate_importance`.

    Returns:
        A Dataset with ``perplexity`` and ``delta_loss`` (nats per token), with standard errors over
        sequences (``*_se``), along ``start`` and ``end`` (first and last ablated layer, both
        included); NaN where ``end < start``.

    Raises:
        ValueError: As `subupdate_importance`; unknown kind.

    Example:
        >>> from mlp_interp import load_model
        >>> result = ablate_ranges(load_model("nano"), torch.arange(40).reshape(4, 10))
        >>> result.perplexity.dims, bool(result.perplexity.sel(start=3, end=0).isnull())
        (('start', 'end'), True)
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind={kind!r}; wanted 'mlp', 'attn' or 'both'")
    tokens, data = tokens_of(corpus)
    runner, unembed = Runner.of(model), Unembed.of(model)
    n_layers = runner.weights.n_layers
    groups = {
        f"{start}-{end}": tuple(
            Site(name, layer) for layer in range(start, end + 1) for name in _KINDS[kind]
        )
        for start in range(n_layers)
        for end in range(start, n_layers)
    }

    def measure(batch: CleanBatch) -> dict[str, Tensor]:
        found = total_effects(runner, batch.clean, groups, batch.stand)
        return {"delta_loss": found.delta_loss.nanmean(-1), "loss": batch.loss(unembed)}

    sweep = Sweep(runner, tokens, groups, baseline, batch_size, seed, model)
    sums = sweep.run(measure, f"ranges-{kind}", progress=progress, checkpoint=checkpoint)
    clean_loss, clean_error = mean_and_error(sums["loss"])
    delta, delta_error = mean_and_error(sums["delta_loss"])
    loss, loss_error = mean_and_error(sums["delta_loss"] + sums["loss"])

    def grid(values: Tensor) -> np.ndarray:
        filled = np.full((n_layers, n_layers), np.nan)
        filled[np.triu_indices(n_layers)] = to_numpy(values)
        return filled

    dims = ("start", "end")
    nats = {"unit": "nats per token"}
    return xr.Dataset(
        {
            "perplexity": (dims, grid(loss.exp()), {"unit": "perplexity"}),
            "perplexity_se": (dims, grid(loss.exp() * loss_error), {"unit": "perplexity"}),
            "delta_loss": (dims, grid(delta), nats),
            "delta_loss_se": (dims, grid(delta_error), nats),
        },
        coords={"start": np.arange(n_layers), "end": np.arange(n_layers)},
        attrs={
            **data,
            **describe(model),
            "analysis": "layer ranges",
            "long_name": f"perplexity with all {_NAMES[kind]} outputs of a range of layers ablated",
            "unit": "perplexity",
            "engine": runner.forward.engine,
            "kind": kind,
            "baseline": baseline,
            "seed": seed,
            "sequences": len(tokens),
            "clean_loss": float(clean_loss),
            "clean_loss_se": float(clean_error),
            "clean_perplexity": float(clean_loss.exp()),
            "errors": "standard error over sequences",
        },
    )


def _variables(ways: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
    """Means and errors of every way and difference, from numbers ``[component, sequence]``."""
    variables: dict[str, Any] = {}

    def add(name: str, mean: Tensor, error: Tensor, unit: str) -> None:
        variables[name] = variable("component", mean, unit=unit)
        variables[f"{name}_se"] = variable("component", error, unit=unit)

    for quantity in ("kl", "delta_loss"):
        by_way = {way: ways[way][quantity] for way in ways}
        by_way["later"] = by_way["total"] - by_way["direct"]
        by_way["layernorm"] = by_way["direct"] - by_way["direct_frozen"]
        for way, values in by_way.items():
            # Differences are taken within each sequence, so their errors are paired.
            add(f"{quantity}_{way}", *mean_and_error(values), unit=MEASURES[quantity])
    for way in ("direct", "total"):
        add(f"top1_{way}", *mean_and_error(ways[way]["top1_changed"]), unit="fraction")
        loss, error = mean_and_error(ways[way]["delta_loss"])
        add(f"perplexity_ratio_{way}", loss.exp(), loss.exp() * error, unit="ratio")
    return variables
