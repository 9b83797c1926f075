"""From values of every layer, coefficient and prompt to a labelled account, and what is useful."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from mlp_interp.metrics import Metric
from mlp_interp.results import mean_and_error, to_numpy
from mlp_interp.steering.dose.cells import DoseGrid
from mlp_interp.steering.dose.scores import TextScore

__all__ = ["Limits", "check_names", "dose_result"]

_PARTS = ("", "_se", "_effect", "_effect_se", "_by_prompt")
_COSTS = {
    "cost_kl": ("nats per token", "KL(clean‖steered) on the corpus"),
    "cost_delta_loss": ("nats per token", "loss on the corpus, steered less clean"),
    "cost_perplexity_ratio": ("ratio", "perplexity of the corpus, steered / clean"),
}
_RESERVED = (
    *"layer coef prompt sample metric text prompt_text direction_norm useful".split(),
    *"useful_low useful_high best_layer best_coef best_effect".split(),
    *_COSTS,
    *(f"{name}_se" for name in _COSTS),
)
_PERPLEXITY = 1.5


@dataclass(frozen=True)
class Limits:
    """Up to where a cost is bearable; None for no limit.

    Raises:
        ValueError: A limit is not above what no steering costs, or there is nothing to limit.
    """

    perplexity: float | None
    kl: float | None

    @classmethod
    def of(cls, perplexity: Any, kl: Any, *, costed: bool) -> "Limits":
        """Check what was given; by default the perplexity is limited."""
        given = {"limit_perplexity": perplexity, "limit_kl": kl}
        for name, value in given.items():
            if value is not None and not costed:
                raise ValueError(f"{name}={value} without a corpus; wanted one to measure cost on")
            least = 1 if name == "limit_perplexity" else 0
            if value is not None and not value > least:
                raise ValueError(f"{name}={value}; wanted more than {least}")
        if perplexity is None and kl is None:
            perplexity = _PERPLEXITY
        return cls(perplexity, kl)

    def within(self, kl: np.ndarray, ratio: np.ndarray) -> np.ndarray:
        """Where the cost is within the limits."""
        fine = np.ones(kl.shape, dtype=bool)
        if self.kl is not None:
            fine &= kl <= self.kl
        if self.perplexity is not None:
            fine &= ratio <= self.perplexity
        return fine

    def attrs(self) -> dict[str, Any]:
        """What a result says of them."""
        both = {"limit_perplexity": self.perplexity, "limit_kl": self.kl}
        return {name: float(value) for name, value in both.items() if value is not None}


def check_names(metrics: Mapping[str, Any]) -> None:
    """Refuse metrics that are none, and names that a result has other use for.

    Raises:
        ValueError: There are none, or one is no metric or has no name of its own.
    """
    if not isinstance(metrics, Mapping) or not metrics:
        raise ValueError(f"metrics={metrics!r}; wanted at least one, by name")
    taken = {*_RESERVED}
    for name, metric in metrics.items():
        if not isinstance(metric, Metric | TextScore):
            raise ValueError(
                f"metrics[{name!r}]={metric!r}; wanted a Metric, or Keywords, Refusal or Score"
            )
        names = {f"{name}{part}" for part in _PARTS}
        if not name or names & taken:
            held = ", ".join(sorted(names & taken)) or "an empty name"
            raise ValueError(f"metrics has {name!r}: {held} would be there twice; wanted another")
        taken |= names


def dose_result(
    grid: DoseGrid,
    values: Mapping[str, np.ndarray],
    *,
    units: Mapping[str, str],
    texts: np.ndarray | None,
    prompts: Sequence[str],
    cost: Mapping[str, Tensor] | None,
    limits: Limits,
    attrs: Mapping[str, Any],
) -> xr.Dataset:
    """Means, errors, costs and useful ranges.

    Args:
        grid: Layers and coefficients.
        values: By metric, ``[layer, coef, prompt]``.
        units: By metric.
        texts: ``[layer, coef, prompt, sample]``, or None.
        prompts: As text.
        cost: As `cells.costs` returns, or None.
        limits: Of the cost.
        attrs: What to say of the model and the data.
    """
    variables: dict[str, Any] = {}
    for name, value in values.items():
        variables |= _of_metric(grid, name, value, units[name])
    about = {**attrs, "prompts": len(prompts)}
    if texts is not None:
        variables["text"] = (("layer", "coef", "prompt", "sample"), texts.astype(str))
    if cost is not None:
        variables |= _of_cost(grid, cost)
        about |= {**limits.attrs(), **_clean(cost)}
    squares = (grid.direction.astype(float) ** 2).sum(_own_dims(grid.direction))
    norms = np.sqrt(np.atleast_1d(squares.values)).tolist()
    by_layer = dict(zip(np.atleast_1d(grid.direction["layer"].values).tolist(), norms, strict=True))
    result = xr.Dataset(
        variables,
        coords={
            "layer": list(grid.layers),
            "coef": list(grid.coefficients),
            "prompt": np.arange(len(prompts)),
            "prompt_text": ("prompt", np.array(prompts, dtype=object).astype(str)),
            "direction_norm": ("layer", [by_layer[n] for n in grid.layers]),
        },
        attrs={
            **about,
            "long_name": "effect and cost of a direction, by layer and coefficient",
            "direction": str(grid.direction.attrs.get("long_name", "direction")),
            "site": grid.direction.attrs["site"],
            "action": grid.action,
            "positions": "all" if grid.positions is None else str(list(grid.positions)),
            "errors": "standard error over prompts, of costs over sequences; NaN with one",
        },
    )
    return result if cost is None else _with_useful(result, list(values), limits)


def _own_dims(direction: xr.DataArray) -> list[Any]:
    return [dim for dim in direction.dims if dim != "layer"]


def _of_metric(grid: DoseGrid, name: str, values: np.ndarray, unit: str) -> dict[str, Any]:
    zero = grid.coefficients.index(0.0)
    by, said = ("layer", "coef"), {"unit": unit}
    mean, error = _mean_and_error(values)
    effect, effect_error = _mean_and_error(values - values[:, [zero]])
    change = {**said, "long_name": f"{name} less {name} at coefficient 0"}
    return {
        name: (by, mean, said),
        f"{name}_se": (by, error, said),
        f"{name}_effect": (by, effect, change),
        f"{name}_effect_se": (by, effect_error, {**change, "long_name": "paired by prompt"}),
        f"{name}_by_prompt": ((*by, "prompt"), values, said),
    }


def _of_cost(grid: DoseGrid, cost: Mapping[str, Tensor]) -> dict[str, Any]:
    variables: dict[str, Any] = {}
    laid_out = {
        name: grid.laid_out(np.zeros(cost[name].shape[1]), to_numpy(cost[name].double()))
        for name in ("kl", "delta_loss")
    }
    kl, loss = (_mean_and_error(values) for values in laid_out.values())
    ratio = np.exp(loss[0])
    # d exp(x) = exp(x) dx carries the standard error over to the ratio.
    for name, (mean, error) in zip(_COSTS, (kl, loss, (ratio, ratio * loss[1])), strict=True):
        said = {"unit": _COSTS[name][0], "long_name": _COSTS[name][1]}
        variables[name] = (("layer", "coef"), mean, said)
        variables[f"{name}_se"] = (("layer", "coef"), error, said)
    return variables


def _clean(cost: Mapping[str, Tensor]) -> dict[str, float]:
    loss, error = mean_and_error(cost["loss"].double())
    return {
        "clean_loss": float(loss),
        "clean_loss_se": float(error),
        "clean_perplexity": float(loss.exp()),
    }


def _with_useful(result: xr.Dataset, metrics: Sequence[str], limits: Limits) -> xr.Dataset:
    effect = np.stack([result[f"{name}_effect"].values for name in metrics])
    error = np.stack([result[f"{name}_effect_se"].values for name in metrics])
    kl, ratio = (result[name].values for name in ("cost_kl", "cost_perplexity_ratio"))
    useful = (np.abs(effect) > 2 * error) & limits.within(kl, ratio)
    low, high = _ends(np.where(useful, result["coef"].values, np.nan))
    layers, coefficients = (
        values.ravel()
        for values in np.meshgrid(result["layer"].values, result["coef"].values, indexing="ij")
    )
    best: list[tuple[Any, ...]] = []
    for sizes, fine in zip(
        effect.reshape(len(metrics), -1), useful.reshape(len(metrics), -1), strict=True
    ):
        # Of equal effects, as of rates that cannot go further, the one that costs least.
        order = np.lexsort((kl.ravel(), -np.abs(sizes), ~fine))
        at = order[0]
        best.append((layers[at], coefficients[at], sizes[at]) if fine[at] else (-1, np.nan, np.nan))
    found: dict[str, Any] = {
        "useful": (("metric", "layer", "coef"), useful),
        "useful_low": (("metric", "layer"), low),
        "useful_high": (("metric", "layer"), high),
    }
    for name, values in zip(("layer", "coef", "effect"), zip(*best, strict=True), strict=True):
        found[f"best_{name}"] = ("metric", np.array(values))
    return result.assign(found).assign_coords(metric=list(metrics))


def _ends(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest along the last axis; NaN where all are."""
    none = np.isnan(values).all(-1)
    low, high = (
        np.where(np.isnan(values), np.inf, values),
        np.where(np.isnan(values), -np.inf, values),
    )
    return np.where(none, np.nan, low.min(-1)), np.where(none, np.nan, high.max(-1))


def _mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, error = mean_and_error(torch.from_numpy(np.ascontiguousarray(values, dtype=float)))
    return to_numpy(mean), to_numpy(error)
