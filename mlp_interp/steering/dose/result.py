"""From values of every layer, coefficient and prompt to a labelled account, and what is useful."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from mlp_interp.metrics import METRICS, Metric, metric_for
from mlp_interp.prompts import Contrast
from mlp_interp.results import mean_and_error, mean_and_error_over, strings, to_numpy, variable
from mlp_interp.steering.dose.cells import DoseGrid
from mlp_interp.steering.dose.scores import TextScore

__all__ = ["Limits", "Measure", "dose_result", "named_metrics"]

Measure = str | Metric | TextScore
"""What is read in each cell: a metric, also by its name, or a score of texts."""

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
_CELL = ("layer", "coef")
_RATIO = "cost_perplexity_ratio"
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

    def within(self, kl: xr.DataArray, ratio: xr.DataArray) -> xr.DataArray:
        """Where the cost is within the limits."""
        most_kl, most_ratio = (np.inf if x is None else x for x in (self.kl, self.perplexity))
        return (kl <= most_kl) & (ratio <= most_ratio)

    def attrs(self) -> dict[str, Any]:
        """What a result says of them."""
        both = {"limit_perplexity": self.perplexity, "limit_kl": self.kl}
        return {name: float(value) for name, value in both.items() if value is not None}


def named_metrics(metric: Any, prompts: Any) -> dict[str, Metric | TextScore]:
    """Metrics and scores by the names under which a result has them.

    Raises:
        ValueError: There are none, one is none or is not known by name, of prompts that name no
            answers, or a result has other use for a name.
    """
    several = isinstance(metric, Mapping)
    given = dict(metric) if several else {getattr(metric, "name", metric): metric}
    if not given:
        raise ValueError(f"metric={metric!r}; wanted at least one, by name")
    taken = {*_RESERVED}
    for name, one in given.items():
        if isinstance(one, str) and isinstance(prompts, Contrast):
            given[name] = metric_for(one, prompts)
        elif not isinstance(one, Metric | TextScore):
            raise ValueError(
                f"metric {name!r} is {one!r}; wanted a Metric, Keywords, Refusal or Score, or with "
                f"a Contrast one of {', '.join(METRICS)}"
            )
        if isinstance(one := given[name], Metric) and one.following is not None:
            raise ValueError(
                f"metric {name!r} reads tokens that follow the prompts; wanted one that reads the "
                "prompts themselves, such as log_probability"
            )
        names = {f"{name}{part}" for part in _PARTS}
        if not name or names & taken:
            held = ", ".join(sorted(names & taken)) or "an empty name"
            raise ValueError(f"metric has {name!r}: {held} would be there twice; wanted another")
        taken |= names
    return given


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
        variables["text"] = (("layer", "coef", "prompt", "sample"), strings(texts))
    if cost is not None:
        variables |= _of_cost(grid, cost)
        about |= {**limits.attrs(), **_clean(cost)}
    direction = grid.direction.astype(float)
    if "layer" not in direction.dims:
        direction = direction.expand_dims("layer")
    squares = (direction**2).sum([dim for dim in direction.dims if dim != "layer"])
    result = xr.Dataset(
        variables,
        coords={
            "layer": list(grid.layers),
            "coef": list(grid.coefficients),
            "prompt": np.arange(len(prompts)),
            "prompt_text": ("prompt", strings(prompts)),
            "direction_norm": ("layer", np.sqrt(squares.sel(layer=list(grid.layers)).values)),
        },
        attrs={
            **about,
            "long_name": "effect and cost of a direction, by layer and coefficient",
            "unit": "see each variable",
            "exact": 1,
            "direction": str(grid.direction.attrs.get("long_name", "direction")),
            "site": grid.direction.attrs["site"],
            "action": grid.action,
            "positions": "all" if grid.positions is None else str(list(grid.positions)),
            "errors": "standard error over prompts, of costs over sequences; NaN with one",
        },
    )
    return result if cost is None else _with_useful(result, list(values), limits)


def _of_metric(grid: DoseGrid, name: str, values: np.ndarray, unit: str) -> dict[str, xr.Variable]:
    change = values - values[:, [grid.coefficients.index(0.0)]]
    about = f"{name} less {name} at coefficient 0"
    return {
        **_mean_with_error(name, values, unit, (None, None)),
        **_mean_with_error(f"{name}_effect", change, unit, (about, "paired by prompt")),
        f"{name}_by_prompt": variable((*_CELL, "prompt"), values, unit=unit),
    }


def _of_cost(grid: DoseGrid, cost: Mapping[str, Tensor]) -> dict[str, xr.Variable]:
    variables: dict[str, xr.Variable] = {}
    for name in ("kl", "delta_loss"):
        nothing = np.zeros(cost[name].shape[1])
        values = grid.laid_out(nothing, to_numpy(cost[name].double()))
        unit, about = _COSTS[f"cost_{name}"]
        variables |= _mean_with_error(f"cost_{name}", values, unit, (about, about))
    # d exp(x) = exp(x) dx carries the standard error over to the ratio.
    ratio = np.exp(variables["cost_delta_loss"].values)
    error = ratio * variables["cost_delta_loss_se"].values
    unit, about = _COSTS[_RATIO]
    for name, values in ((_RATIO, ratio), (f"{_RATIO}_se", error)):
        variables[name] = variable(_CELL, values, unit=unit, long_name=about)
    return variables


def _mean_with_error(
    name: str, values: np.ndarray, unit: str, about: tuple[str | None, str | None]
) -> dict[str, xr.Variable]:
    """Mean of ``[layer, coef, draw]`` over the last axis, and its standard error."""
    pair = mean_and_error_over(xr.DataArray(values, dims=(*_CELL, "draw")), "draw")
    return {
        key: variable(_CELL, x, unit=unit, long_name=said)
        for key, x, said in zip((name, f"{name}_se"), pair, about, strict=True)
    }


def _clean(cost: Mapping[str, Tensor]) -> dict[str, float]:
    loss, error = mean_and_error(cost["loss"].double())
    return {
        "clean_loss": float(loss),
        "clean_loss_se": float(error),
        "clean_perplexity": float(loss.exp()),
    }


def _with_useful(result: xr.Dataset, metrics: Sequence[str], limits: Limits) -> xr.Dataset:
    effect, error = (
        result[[f"{name}{part}" for name in metrics]]
        .to_dataarray("metric")
        .assign_coords(metric=list(metrics))
        .drop_attrs()
        for part in ("_effect", "_effect_se")
    )
    within = limits.within(result["cost_kl"], result[_RATIO]).drop_attrs()
    useful = (abs(effect) > 2 * error) & within
    size, coefs = abs(effect).where(useful), result["coef"].where(useful)
    # Of equal effects, as of rates that cannot go further, the one that costs least.
    best = effect.isel(result["cost_kl"].where(size == size.max(_CELL), np.inf).argmin(_CELL))
    some = useful.any(_CELL)
    return result.assign(
        useful=useful,
        useful_low=coefs.min("coef"),
        useful_high=coefs.max("coef"),
        best_layer=("metric", np.where(some, best["layer"], -1)),
        best_coef=("metric", np.where(some, best["coef"], np.nan)),
        best_effect=("metric", np.where(some, best, np.nan)),
    )
