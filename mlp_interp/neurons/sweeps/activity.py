"""How often neurons fire, over any number of tokens, beside what their weights say of it."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import scipy.stats
import xarray as xr

from mlp_interp.corpus import SweepOptions
from mlp_interp.corpus import sweep as run_sweep
from mlp_interp.corpus.reducers import Fraction, Histogram, Mean, Moments, Reducer, quantiles
from mlp_interp.models import Weights
from mlp_interp.models.options import check_choice, checked_count
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.neurons.weights.statistics import neuron_weights
from mlp_interp.neurons.weights.volume import activation_volume
from mlp_interp.sites import Site, component_coords

__all__ = ["activity", "outliers"]

_QUANTILES = [0.01, 0.1, 0.5, 0.9, 0.99]

# From "How to Detect and Handle Outliers": beyond 3.5, where the spread is the median of the
# distances from the median, or their mean where that is zero, scaled to a normal distribution's.
_BEYOND = 3.5
_MEDIAN_TO_STD, _MEAN_TO_STD = 1.4826, 1.2533

_WEIGHTS = ("receptor_norm", "receptor_norm_folded", "value_norm", "bias_folded", "cosine_folded")
_MEASURES = [*_WEIGHTS, "activation_volume"]

_ABOUT = {  # unit and long name of what this module works out itself
    "mean_post": ("activation", "mean after the nonlinearity"),
    "quantile_pre": ("activation", "quantiles before the nonlinearity"),
    "activation_volume": ("fraction", "share of the stream's directions above the threshold"),
    "z": ("robust standard deviations", "fraction's distance from its layer's median, as log-odds"),
    "outlier": ("truth", "z beyond the threshold"),
    "dead": ("truth", "never above the threshold"),
    "always": ("truth", "always above the threshold"),
    "rank_correlation": ("Spearman's rho", "of the fraction with what the weights say, by layer"),
}

_MEASURED = {  # long names of what the sweep finds
    "fraction": "share of positions at which the neuron fires",
    "fraction_se": "standard error of fraction, over sequences",
    "by_position": "share of the layer's neurons that fire at each position",
    "by_position_se": "standard error of by_position, over sequences",
    "mean": "mean before the nonlinearity",
    "std": "standard deviation before the nonlinearity",
    "skewness": "skewness before the nonlinearity",
    "kurtosis": "excess kurtosis before the nonlinearity",
    "least": "least before the nonlinearity",
    "greatest": "greatest before the nonlinearity",
    "count": "positions by activation before the nonlinearity",
}


@own_mode()
def activity(
    model: Model,
    corpus: Any,
    *,
    attention_mask: Any = None,
    first: int = 1,
    above: float | int = 0.0,
    histogram: bool = True,
    sweep: SweepOptions = SweepOptions(),
) -> xr.Dataset:
    """How often every neuron fires, how its activation is distributed, and what its weights say.

    One pass over the corpus. A neuron fires where its activation before the nonlinearity (`pre`)
    is above a threshold. Standard errors are over sequences: another sample of the same kind of
    text would give fractions within about two of them.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        corpus: A `Corpus`, also one on disk; tokens ``[sequence, pos]``, padded or not; texts, or a
            list of token ids for each. Padding does not count.
        attention_mask: 1 where text is, 0 where padding is; None tells it by the rule of
            `mlp_interp.models.padding`.
        first: Position from which on activations count. 1 leaves out what stands at position 0,
            most often the beginning-of-sequence token: there streams of many models are unlike
            all others, and it would be in every sequence. 0 counts it.
        above: The threshold.
        histogram: Keep the counts of the histogram, which make up most of the result's size;
            quantiles come from them and are there in any case. Without, the result is smaller; the
            pass needs the same memory.
        sweep: How the corpus is run.

    Returns:
        A Dataset over ``layer, neuron`` with, from the corpus:

        - ``fraction`` of the positions at which the neuron fires, ``fraction_se``;
        - ``by_position`` (layer, pos): share of the layer's neurons that fire at each position of
          a sequence, ``by_position_se``;
        - ``mean, std, skewness, kurtosis`` (excess), ``least, greatest`` of `pre`, ``mean_post``
          after the nonlinearity;
        - ``quantile_pre`` (with ``quantile``), exact to an eighth of itself;
        - ``count`` (with ``bin``, whose edges are ``low`` and ``high``), if `histogram`;

        from the weights: ``receptor_norm``, ``receptor_norm_folded``, ``value_norm``,
        ``bias_folded`` and ``cosine_folded`` of `neuron_weights`, and ``activation_volume``, the
        fraction that would be seen if streams pointed in all directions alike (with `above` as the
        threshold);

        and from both:

        - ``rank_correlation`` (layer, measure): Spearman's, of ``fraction`` with each of those
          measures within a layer; NaN if either is constant;
        - ``z``: distance of the fraction, as log-odds ``log((n + 1/2) / (N - n + 1/2))`` of ``n``
          firings at ``N`` places, from the median of its layer, over the median absolute deviation
          times 1.4826 (over the mean one times 1.2533 where that is zero). ``outlier``: beyond 3.5
          either way. ``dead``: never fires here, ``always``: everywhere.

    Raises:
        ValueError: A sequence has no position `first`, weights are not finite, or as `sweep`.

    References:
        Voita et al., "Neurons in Large Language Models: Dead, N-gram, Positional", 2023; on
        outliers Iglewicz & Hoaglin, "How to Detect and Handle Outliers", 1993.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> model = load_model("nano")
        >>> found = activity(model, load_corpus("nano", model, sequences=16, length=32))
        >>> found["fraction"].dims, 0 < float(found["fraction"].mean()) < 0.5
        (('layer', 'neuron'), True)
    """
    reducers: dict[str, Reducer] = {
        "fraction": Fraction(above=float(above), first=first),
        "moments": Moments(order=4, first=first),
        "histogram": Histogram(first=first),
        "post": Mean(site="post", first=first),
    }
    weights = _from_weights(model, float(above))  # before the corpus: not finite, it raises
    found = run_sweep(model, corpus, reducers, attention_mask=attention_mask, options=sweep)
    result = _gathered(found, histogram).merge(weights)
    entries = found["fraction"].attrs["entries"]
    result = result.merge(_judged(found["fraction"]["count"], entries))
    attrs = {k: v for k, v in found["fraction"].attrs.items() if k != "reducer"}
    attrs |= {"analysis": "activity", "unit": "see each variable", "first": first}
    attrs |= {"long_name": "activity of neurons", "entries": entries, "outliers_beyond": _BEYOND}
    result = result.merge(_correlated(result))
    result.attrs = attrs
    return result


def outliers(
    activity: xr.Dataset, *, k: int | None = None, side: Literal["both", "high", "low"] = "both"
) -> xr.Dataset:
    """The neurons that fire most unlike the others of their layer, most extreme first.

    Args:
        activity: What `activity` gave.
        k: How many, None for 20 or all there are; there are always so many, and
            ``outlier`` says which are beyond the threshold.
        side: ``"high"``: those that fire more often than the others; ``"low"``: less often.

    Returns:
        A Dataset along ``component`` (labels as ``L3N669``): all that `activity` says of each
        neuron as one number.

    Raises:
        ValueError: Another Dataset, `k` beyond the number of neurons, or another side.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> model = load_model("nano")
        >>> found = activity(model, load_corpus("nano", model, sequences=16, length=32))
        >>> extreme = outliers(found, k=3)
        >>> extreme.sizes["component"], bool(extreme["outlier"].all())
        (3, True)
    """
    missing = [n for n in ("fraction", "z") if n not in getattr(activity, "data_vars", ())]
    if missing:
        raise ValueError(f"activity lacks {', '.join(missing)}; wanted what activity(...) returns")
    check_choice("side", side, ("both", "high", "low"))
    z = activity["z"].transpose("layer", "neuron").values
    k = checked_count(min(20, z.size) if k is None else k, z.size, "neurons")
    score = {"both": np.abs(z), "high": z, "low": -z}[side].ravel()
    rows, columns = np.unravel_index(np.argsort(-score, kind="stable")[:k], z.shape)
    layers = activity["layer"].values
    sites = [
        Site("post", int(layers[row]), neuron=int(neuron))
        for row, neuron in zip(rows, activity["neuron"].values[columns], strict=True)
    ]
    names = [name for name, x in activity.data_vars.items() if {*x.dims} == {"layer", "neuron"}]
    at = {"layer": xr.DataArray(rows, dims="component")}
    at["neuron"] = xr.DataArray(columns, dims="component")
    extreme = activity[names].isel(at).drop_vars(("layer", "neuron"))
    extreme = extreme.assign_coords(component_coords(sites))
    return extreme.assign_attrs(long_name="neurons that fire unlike their layer's", side=side)


def _gathered(found: Mapping[str, xr.Dataset], histogram: bool) -> xr.Dataset:
    """What was measured, under names that tell the parts apart."""
    neurons = {"neuron": np.arange(found["fraction"].sizes["neuron"])}
    own = {
        "mean_post": found["post"]["mean"].rename("mean_post"),
        "quantile_pre": quantiles(found["histogram"], _QUANTILES).drop_attrs(),
    }
    result = found["fraction"].drop_vars("count").merge(found["moments"]).assign(_described(own))
    if histogram:
        result = result.merge(found["histogram"])
    for name in _MEASURED.keys() & result.data_vars.keys():
        result[name] = result[name].assign_attrs(long_name=_MEASURED[name])
    return result.assign_coords(neurons)


def _from_weights(model: Model, above: float) -> xr.Dataset:
    weights = neuron_weights(model, tokens=False)
    volume = activation_volume(
        weights["receptor_norm_folded"].values,
        weights["bias_folded"].values - above,
        int(model.cfg.d_model),
        Weights.of(model).norm.kind,
    )
    own = {"activation_volume": weights["bias_folded"].copy(data=volume)}
    return weights[list(_WEIGHTS)].assign(_described(own))


def _judged(count: xr.DataArray, entries: int) -> xr.Dataset:
    """Which neurons are unlike the others of their layer, by how often they fired."""
    odds = (count + 0.5) / (entries - count + 0.5)
    log_odds = odds.copy(data=np.log(odds.values))
    distance = log_odds - log_odds.median("neuron")
    spread = _MEDIAN_TO_STD * abs(distance).median("neuron")
    spread = spread.where(spread > 0, _MEAN_TO_STD * abs(distance).mean("neuron"))
    z = distance / spread.where(spread > 0, 1)
    own = {"z": z, "outlier": abs(z) > _BEYOND, "dead": count == 0, "always": count == entries}
    return xr.Dataset(_described(own))


def _correlated(result: xr.Dataset) -> xr.Dataset:
    fraction = result["fraction"].values
    rho = [
        [_spearman(x, y) for x, y in zip(fraction, result[name].values, strict=True)]
        for name in _MEASURES
    ]
    own = xr.DataArray(np.array(rho).T, dims=("layer", "measure"), coords={"measure": _MEASURES})
    return xr.Dataset(_described({"rank_correlation": own}))


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation of ranks, ties given their mean rank; NaN where one is constant."""
    a, b = (scipy.stats.rankdata(values) for values in (x, y))
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size > 0 else float("nan")


def _described(found: Mapping[str, xr.DataArray]) -> dict[str, xr.DataArray]:
    return {
        name: x.assign_attrs(unit=_ABOUT[name][0], long_name=_ABOUT[name][1])
        for name, x in found.items()
    }
