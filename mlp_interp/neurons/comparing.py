"""A neuron's numbers on two sets of texts, beside those of its controls, as labelled variables."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.metrics.separation import auroc, threshold_table
from mlp_interp.results import mean_and_error, to_numpy

__all__ = ["ablation", "against_controls", "discrimination"]


def discrimination(
    activation: Float[np.ndarray, "summary neuron text"], split: int
) -> dict[str, Any]:
    """How well the first neuron tells texts apart, and where it lies among the others."""
    dims, steps = ("summary", "step"), ("summary", "criterion")
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
    best = np.array([[t[name].argmax() for name in ("f1", "balanced_accuracy")] for t in tables])
    about = {"unit": "activation", "long_name": "of each text, over its tokens"}
    chance = {"unit": "probability", "long_name": "chance that a positive text has more"}
    return {
        "activation": (("summary", "component", "prompt"), activation, about),
        "auroc": (("summary", "component"), area, chance),
        **against_controls(area, ("summary",), "auroc_", "probability"),
        "threshold": (dims, padded.pop("threshold"), {"unit": "activation"}),
        **{name: (dims, values, {"unit": "fraction"}) for name, values in padded.items()},
        "best_threshold": (
            steps,
            np.array([t["threshold"][i] for t, i in zip(tables, best, strict=True)]),
            {"unit": "activation"},
        ),
        "best": (
            steps,
            np.array(
                [
                    [t["f1"][i], t["balanced_accuracy"][j]]
                    for t, (i, j) in zip(tables, best, strict=True)
                ]
            ),
            {"unit": "fraction"},
        ),
    }


def ablation(lost: Float[Tensor, "measure neuron text"], split: int) -> dict[str, Any]:
    """Mean losses of both sides and their difference, and where the first neuron's lie."""
    sides = [mean_and_error(x) for x in (lost[..., :split], lost[..., split:])]
    mean, error = (torch.stack(parts, dim=1) for parts in zip(*sides, strict=True))
    mean = torch.cat([mean, mean[:, :1] - mean[:, 1:]], dim=1)
    error = torch.cat([error, torch.hypot(error[:, :1], error[:, 1:])], dim=1)
    dims, unit = ("measure", "where", "component"), {"unit": "nats"}
    return {
        "loss": (("measure", "component", "prompt"), to_numpy(lost), unit),
        "effect": (dims, to_numpy(mean), unit),
        "effect_se": (dims, to_numpy(error), unit),
        **against_controls(to_numpy(mean), dims[:2], "", "nats"),
    }


def against_controls(
    values: Float[np.ndarray, "*dims component"], dims: Sequence[str], prefix: str, unit: str
) -> dict[str, Any]:
    """Where the first component lies in the distribution of the others; names get the prefix."""
    mine, others = values[..., 0], values[..., 1:]
    count = others.shape[-1]
    mean = others.mean(-1)
    spread = others.std(-1, ddof=1) if count > 1 else np.full(mine.shape, np.nan)
    distance = np.full(mine.shape, np.nan)
    np.divide(mine - mean, spread, out=distance, where=spread > 0)
    at_least = (others >= mine[..., None]).sum(-1)
    found = {
        "control_mean": (mean, unit),
        "control_std": (spread, unit),
        "z": (distance, "standard deviations"),
        "rank": (1 + (others > mine[..., None]).sum(-1), "rank"),
        "percentile": (100 * (others < mine[..., None]).mean(-1), "per cent"),
        "p_value": ((1 + at_least) / (1 + count), "probability"),
    }
    return {f"{prefix}{name}": (dims, x, {"unit": about}) for name, (x, about) in found.items()}
