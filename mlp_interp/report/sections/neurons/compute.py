"""What the report says of neurons, computed: two passes over the corpus, and the weights."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import xarray as xr

from mlp_interp.corpus import SweepOptions, sweep
from mlp_interp.corpus.reducers import Reducer, TopExamples
from mlp_interp.models import Weights
from mlp_interp.models.protocol import Model
from mlp_interp.neurons import activity, neuron_weights, outliers, promoted_tokens
from mlp_interp.neurons.sweeps.shares import UpdateShares
from mlp_interp.neurons.sweeps.updates import doubling, finished
from mlp_interp.prompts.reading import texts
from mlp_interp.report.section import Work
from mlp_interp.report.store import Store
from mlp_interp.sites import Site

TOKENS = 5
"""Promoted tokens named of each neuron."""

EACH_SIDE = 6
"""Outliers listed of each side."""

_OFTEN, _BURSTS, _FEW = "fires unusually often", "fires in bursts", "writes for few tokens"
_SHOWN = {_OFTEN: 2, _BURSTS: 3, _FEW: 3}  # neurons with examples
_EXAMPLES: dict[str, Any] = {"k": 4, "before": 16, "after": 6}

# Splitting an update takes some ten times as long as running the MLP: about so many tokens will do.
_SPLIT = 2_048
_LEAST_POSITIONS = 8


@dataclass(frozen=True)
class Neurons:
    """What a report says of neurons.

    Attributes:
        activity: How often each fires, and why; see `mlp_interp.neurons.activity`.
        weights: Which tokens its value vector speaks to; see `mlp_interp.neurons.neuron_weights`.
        outliers: Those that fire most unlike the others of their layer, along ``component``.
        updates: How many are behind an update; see `mlp_interp.neurons.update_shares`.
        examples: Where some neurons, along ``component``, are most active; ``why`` says what they
            were chosen for.
    """

    activity: xr.Dataset
    weights: xr.Dataset
    outliers: xr.Dataset
    updates: xr.Dataset
    examples: xr.Dataset


def measure(work: Work) -> Neurons:
    """Run the analyses of neurons: one pass over the corpus for how often they fire, one more.

    The second pass takes updates apart and finds examples of those neurons that the first, and the
    weights, show to be extreme.

    Args:
        work: What to measure on; its store keeps each finished part, and the finished shards of a
            pass that is not finished.

    Raises:
        ValueError: What the analyses raise for bad input.
    """
    model, corpus, store, run = work.model, work.corpus, work.store, work.sweep(0.0, 0.4)
    active = _get(store, "activity", lambda: activity(model, corpus, histogram=False, sweep=run))
    weights = _get(store, "weights", lambda: _weights(model, False))
    far = _get(store, "outliers", lambda: _outliers(model, active))

    @cache
    def second() -> tuple[xr.Dataset, xr.Dataset]:
        return _second_pass(model, corpus, _chosen(active, weights), work.sweep(0.5))

    updates = _get(store, "updates", lambda: second()[0])
    examples = _get(store, "examples", lambda: second()[1])
    return Neurons(active, weights, far, updates, examples)


def _get(store: Store, name: str, compute: Any) -> xr.Dataset:
    found = store.get(f"neurons/{name}", compute)
    return found if isinstance(found, xr.Dataset) else found.to_dataset(name=name)


def _weights(model: Model, progress: bool) -> xr.Dataset:
    """What the weights say in numbers; names of tokens would be most of a large model's file."""
    found = neuron_weights(model, k=1, progress=progress)
    return found.drop_vars([name for name in found.data_vars if str(name).endswith("_text")])


def _outliers(model: Model, active: xr.Dataset) -> xr.Dataset:
    """The outliers of both sides that fire at all, those that fire most first, and their tokens.

    Where there are none beyond the threshold the table is shorter, and may be empty.
    """
    alive = active.assign(outlier=active["outlier"] & ~active["dead"])
    alive["z"] = alive["z"].where(~active["dead"], 0)
    count = min(EACH_SIDE, alive["z"].size)
    sides = [outliers(alive, k=count, side=side) for side in ("high", "low")]
    sides = [found.isel(component=found["outlier"].values) for found in sides]
    both = xr.concat([sides[0], sides[1].isel(component=slice(None, None, -1))], dim="component")
    return both.merge(_promoted(model, _sites(both)), combine_attrs="override")


def _promoted(model: Model, sites: list[Site]) -> xr.Dataset:
    count = min(TOKENS, Weights.of(model).d_vocab)
    found = [promoted_tokens(model, x, k=count) for x in sites]
    variables = {
        f"{sign}_text": (
            ("component", "rank"),
            np.array([x[f"{sign}_text"].values for x in found], object).reshape(-1, count),
            {"unit": "text", "long_name": f"tokens {sign} most, by its value vector"},
        )
        for sign in ("promoted", "suppressed")
    }
    return xr.Dataset(variables)


def _sites(along: xr.Dataset) -> list[Site]:
    return [Site.parse(str(label)) for label in along["component"].values]


def _chosen(active: xr.Dataset, weights: xr.Dataset) -> dict[str, str]:
    """The neurons to give examples of, and why each; of a kind one in each layer.

    Outliers that fire often; those that are far more active at few tokens than at all others (the
    largest excess kurtosis of the activation, of those that are skewed upwards and fire less often
    than their layer's median: kurtosis alone does not tell bursts from dips); those whose value
    vectors single out few tokens (of their logits). What never fires has no examples: it comes
    last.
    """
    fraction, z = active["fraction"].values, active["z"].values
    least, none = np.finfo(float).min, -np.inf
    scores = {_OFTEN: np.where(active["outlier"].values & (z > 0), z, none)}
    for why, kurtosis in ((_BURSTS, active["kurtosis"]), (_FEW, weights["logit_kurtosis"])):
        scores[why] = np.where(fraction > 0, np.nan_to_num(kurtosis.values, nan=least), least)
    rare = fraction < np.median(fraction, axis=1, keepdims=True)
    scores[_BURSTS][~(rare & (active["skewness"].values > 0))] = none
    taken, chosen = np.zeros(z.shape, dtype=bool), {}
    for why, score in scores.items():
        score = np.where(taken, none, score)
        best, neurons = score.max(1), score.argmax(1)
        rows = [row for row in np.argsort(-best, kind="stable") if best[row] > none]
        for row in rows[: _SHOWN[why]]:
            taken[row, neurons[row]] = True
            layer, neuron = active["layer"].values[row], active["neuron"].values[neurons[row]]
            chosen[Site("post", int(layer), neuron=int(neuron)).label] = why
    return chosen


def _second_pass(
    model: Model, corpus: Any, chosen: dict[str, str], run: SweepOptions
) -> tuple[xr.Dataset, xr.Dataset]:
    """Updates taken apart, and examples of the chosen neurons."""
    weights = Weights.of(model)
    sequences, length = corpus.tokens.shape
    most = max(1, (length - 1) // _LEAST_POSITIONS)
    sample = min(most, -(-sequences * length // _SPLIT))
    sites = {label: Site.parse(label) for label in chosen}
    reducers: dict[str, Reducer] = {
        label: TopExamples(
            site="post", layers=(site.layer or 0,), units=(site.unit,), first=1, **_EXAMPLES
        )
        for label, site in sites.items()
    }
    split = UpdateShares(points=doubling(weights.d_mlp), sample=sample, first=1)
    found = sweep(model, corpus, {"updates": split, **reducers}, options=run)
    return finished(weights, found.pop("updates")), _examples(model, chosen, found)


def _examples(model: Model, chosen: dict[str, str], found: dict[str, xr.Dataset]) -> xr.Dataset:
    each = [part.isel(layer=0, neuron=0, drop=True) for part in found.values()]
    joined = xr.concat(each, dim="component", combine_attrs="override")
    tokens = joined["token"].values
    text = texts(model, np.maximum(tokens, 0))
    text[tokens < 0] = ""  # beyond the ends of a sequence
    joined["text"] = joined["token"].dims, text, {"unit": "text"}
    joined = joined.assign_coords(component=[*chosen], why=("component", [*chosen.values()]))
    joined = joined.merge(_promoted(model, _sites(joined)), combine_attrs="override")
    return joined.assign_attrs(long_name="where neurons are most active", site="post")
