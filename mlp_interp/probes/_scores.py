"""How good predictions are: of numbers, of classes, of places on a globe."""

from typing import Any

import numpy as np
import xarray as xr

from mlp_interp.metrics.separation import auroc
from mlp_interp.results import variable

__all__ = ["by_output", "haversine_km", "of_tokens", "place_errors", "score"]

_EARTH_KM = 6371.0088


def score(predicted: np.ndarray, values: np.ndarray, variance: np.ndarray, classes: int) -> float:
    """R² (the mean over outputs), or with `classes` the share that is called what it is."""
    if not classes:
        return float(by_output(predicted, values, variance, 0).mean())
    called = predicted[:, 0] > 0 if predicted.shape[1] == 1 else predicted.argmax(1)
    return float((called == values[:, 0]).mean())


def by_output(
    predicted: np.ndarray, values: np.ndarray, variance: np.ndarray, classes: int
) -> np.ndarray:
    """R² of each output; of classes the AUROC of each against the rest, NaN where one is absent.

    R² is measured against the `variance` of all prompts' labels, not against that of the fold: a
    fold of a single entity has none. Over folds of one size its mean is R² of all held-out
    predictions together.
    """
    if not classes:
        return 1 - ((predicted - values) ** 2).mean(0) / variance
    of = [1] if predicted.shape[1] == 1 else range(classes)
    found = np.full(len(of), np.nan)
    for n, number in enumerate(of):
        member = values[:, 0] == number
        if 0 < member.sum() < len(member):
            found[n] = auroc(predicted[member, n], predicted[~member, n])
    return found


def of_tokens(
    token: np.ndarray, values: np.ndarray, fitted: np.ndarray, tested: np.ndarray, classes: int
) -> float:
    """Score of what the token at the position says by itself: its mean label where it was seen."""
    labels = np.eye(classes)[values[:, 0].astype(int)] if classes else values
    overall = labels[fitted].mean(0)
    known, of = np.unique(token[fitted], return_inverse=True)
    means = np.zeros((len(known), labels.shape[1]))
    np.add.at(means, of, labels[fitted])
    means /= np.bincount(of)[:, None]
    place = np.searchsorted(known, token[tested]).clip(max=len(known) - 1)
    seen = known[place] == token[tested]
    predicted = np.where(seen[:, None], means[place], overall)
    if classes == 2:
        predicted = predicted[:, 1:] - 0.5
    return score(predicted, values[tested], values.var(0), classes)


def haversine_km(one: Any, other: Any) -> np.ndarray:
    """Distance along the surface of the earth of places ``[..., 2]`` in degrees, in km.

    Args:
        one: Latitude and longitude along the last axis.
        other: Alike; broadcast against `one`.

    Example:
        >>> float(haversine_km([48.857, 2.352], [51.507, -0.128]).round())
        343.0
    """
    one, other = np.radians(np.asarray(one, float)), np.radians(np.asarray(other, float))
    latitude, longitude = np.moveaxis((other - one) / 2, -1, 0)
    square = np.sin(latitude) ** 2
    square = square + np.cos(one[..., 0]) * np.cos(other[..., 0]) * np.sin(longitude) ** 2
    return np.asarray(2 * _EARTH_KM * np.arcsin(np.sqrt(square.clip(0, 1))))


def place_errors(
    result: xr.Dataset, *, latitude: str = "latitude", longitude: str = "longitude"
) -> xr.Dataset:
    """How far from its place each prompt's held-out prediction is.

    Kilometres can mislead: who puts everything into the middle of Europe is seldom far off. The
    proximity error of a prompt is the share of the other entities that are predicted closer to its
    true place than itself is: 0 at best, 0.5 by chance.

    Args:
        result: Of `probe`, with these two outputs.
        latitude: Which output is the latitude, in degrees.
        longitude: Which is the longitude.

    Returns:
        ``km`` and ``proximity`` (layer, prompt); entities are compared by their prompts' mean
        prediction.

    Raises:
        ValueError: There are no such outputs.

    References:
        Gurnee and Tegmark 2024, "Language Models Represent Space and Time", arXiv:2310.02207,
        section 3.

    Example:
        >>> from mlp_interp import load_model, probes
        >>> model = load_model("nano")
        >>> rows = [
        ...     {"city": "Paris", "latitude": 48.9, "longitude": 2.4},
        ...     {"city": "Rome", "latitude": 41.9, "longitude": 12.5},
        ...     {"city": "Cairo", "latitude": 30.0, "longitude": 31.2},
        ... ]
        >>> data = probes.Labelled.of(
        ...     model, rows, text="{city}", y=["latitude", "longitude"], entity="city"
        ... )
        >>> found = probes.probe(model, data, folds=3, controls=0)
        >>> probes.place_errors(found).km.dims
        ('layer', 'prompt')
    """
    if not isinstance(result, xr.Dataset) or "output" not in result.coords:
        raise ValueError(f"result={type(result).__name__} has no outputs; wanted one of probe")
    names = [*map(str, result["output"].values)]
    if missing := [name for name in (latitude, longitude) if name not in names]:
        raise ValueError(f"result has outputs {names}, not {missing[0]!r}; wanted both of a place")
    columns = [names.index(latitude), names.index(longitude)]
    predicted = result["prediction"].transpose("layer", "prompt", "output").values[..., columns]
    true = result["target"].transpose("prompt", "output").values[:, columns]
    entities, first, of = np.unique(result["entity"].values, return_index=True, return_inverse=True)
    centres = np.stack([predicted[:, of == n].mean(1) for n in range(len(entities))], axis=1)
    # Of entity i's true place: how far off each entity j is put.
    apart = haversine_km(true[first][:, None], centres[:, None])
    own = haversine_km(true, predicted)
    closer = apart[:, of] < own[..., None]
    closer[:, np.arange(len(of)), of] = False
    share = closer.sum(-1) / max(1, len(entities) - 1)
    dims = ("layer", "prompt")
    return xr.Dataset(
        {
            "km": variable(dims, own, unit="km", long_name="distance of prediction and place"),
            "proximity": variable(
                dims, share, unit="share", long_name="entities that are predicted closer"
            ),
        },
        coords={name: result[name] for name in ("layer", "entity")},
        attrs={**result.attrs, "analysis": "place errors"},
    )
