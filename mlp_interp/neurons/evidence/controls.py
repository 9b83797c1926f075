"""A neuron's numbers on two sets of texts, beside those of its controls, as labelled variables."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.metrics.separation import auroc, threshold_table
from mlp_interp.results import mean_and_error, to_numpy, variable

__all__ = ["CRITERIA", "ablation", "against_controls", "discrimination"]


_STEPS = ("summary", "step")
CRITERIA = ("f1", "balanced_accuracy")


def discrimination(
    activation: Float[np.ndarray, "summary neuron text"], split: int
) -> dict[str, xr.Variable]:
    """How well the first neuron tells texts apart, and where it lies among the others."""
    sides = (np.moveaxis(x, -1, 0) for x in (activation[..., :split], activation[..., split:]))
    area = np.asarray(auroc(*sides))
    tables = [threshold_table(x[0, :split], x[0, split:]) for x in activation]
    longest = max(len(table["threshold"]) for table in tables)
    padded = {
        name: np.stack(
            [np.pad(t[name], (0, longest - len(t[name])), constant_values=np.nan) for t in tables]
        )
        for name in tables[0]
    }
    curves = np.stack([padded[name] for name in CRITERIA], axis=1)
    at = np.nanargmax(curves, axis=-1)
    threshold, best = padded.pop("threshold"), ("summary", "criterion")
    return {
        "activation": variable(
            ("summary", "component", "prompt"),
            activation,
            unit="activation",
            long_name="of each text, over its tokens",
        ),
        "auroc": variable(
            ("summary", "component"),
            area,
            unit="probability",
            long_name="chance that a positive text has more",
        ),
        **against_controls(area, ("summary",), "auroc_", "probability"),
        "threshold": variable(_STEPS, threshold, unit="activation", long_name="thresholds"),
        **{
            name: variable(_STEPS, x, unit="fraction", long_name=f"{name} at each threshold")
            for name, x in padded.items()
        },
        "best_threshold": variable(
            best,
            threshold[np.arange(len(at))[:, None], at],
            unit="activation",
            long_name="the threshold where the criterion is highest",
        ),
        "best": variable(
            best,
            np.nanmax(curves, axis=-1),
            unit="fraction",
            long_name="the criterion where it is highest",
        ),
    }


def ablation(lost: Float[Tensor, "measure neuron text"], split: int) -> dict[str, xr.Variable]:
    """Mean losses of both sides and their difference, and where the first neuron's lie."""
    sides = [mean_and_error(x) for x in (lost[..., :split], lost[..., split:])]
    mean, error = (torch.stack(parts, dim=1) for parts in zip(*sides, strict=True))
    mean = torch.cat([mean, mean[:, :1] - mean[:, 1:]], dim=1)
    error = torch.cat([error, torch.hypot(error[:, :1], error[:, 1:])], dim=1)
    dims = ("measure", "where", "component")
    return {
        "loss": variable(
            ("measure", "component", "prompt"),
            lost,
            unit="nats",
            long_name="lost without the neuron, by text",
        ),
        "effect": variable(
            dims, mean, unit="nats", long_name="lost without the neuron, mean over texts"
        ),
        "effect_se": variable(dims, error, unit="nats", long_name="standard error of effect"),
        **against_controls(to_numpy(mean), dims[:2], "", "nats"),
    }


def against_controls(
    values: Float[np.ndarray, "*dims component"], dims: Sequence[str], prefix: str, unit: str
) -> dict[str, xr.Variable]:
    """Where the first component lies in the distribution of the others; names get the prefix.

    A control without a number is left out; where the first component has none, it has no place.
    """
    values = np.where(np.isfinite(values), values, np.nan)
    mine, others = values[..., 0], values[..., 1:]
    count = np.isfinite(others).sum(-1)
    known = np.isfinite(mine) & (count > 0)
    mean, spread = (to_numpy(x) for x in _moments(torch.from_numpy(others)))
    distance, below = (np.full(mine.shape, np.nan) for _ in range(2))
    np.divide(mine - mean, spread, out=distance, where=spread > 0)
    np.divide(100 * (others < mine[..., None]).sum(-1), count, out=below, where=known)
    more, at_least = others > mine[..., None], others >= mine[..., None]
    places = {
        "control_mean": (mean, unit, "mean of the controls"),
        "control_std": (spread, unit, "standard deviation of the controls"),
        "z": (distance, "standard deviations", "distance from the controls' mean"),
        "rank": (np.where(known, 1 + more.sum(-1), np.nan), "rank", "1 is the largest"),
        "percentile": (below, "per cent", "controls with less"),
        "p_value": (
            np.where(known, (1 + at_least.sum(-1)) / (1 + count), np.nan),
            "probability",
            "share with at least as much, the neuron among them",
        ),
    }
    return {
        f"{prefix}{name}": variable(dims, x, unit=of, long_name=about)
        for name, (x, of, about) in places.items()
    }


def _moments(
    values: Float[Tensor, "*dims control"],
) -> tuple[Float[Tensor, "*dims"], Float[Tensor, "*dims"]]:
    """Mean and standard deviation of those that are numbers; of fewer than two, no deviation."""
    mean, error = mean_and_error(values)
    return mean, error * (~values.isnan()).sum(-1).sqrt()
