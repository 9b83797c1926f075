"""Is the direction that tells classes apart the one that the model uses?"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from mlp_interp.models import describe
from mlp_interp.models.indices import count
from mlp_interp.models.options import checked_seed
from mlp_interp.models.protocol import Model
from mlp_interp.probes._fit import Fitter
from mlp_interp.probes._linear import discriminant
from mlp_interp.probes._margin import Margin
from mlp_interp.probes._read import Place, layers_held
from mlp_interp.probes._splits import Split, Splits
from mlp_interp.probes.labelled import Labelled, check_data
from mlp_interp.results import variable

__all__ = ["compare_directions"]

_DIRECTIONS = ("mean_difference", "probe", "lda", "gradient")


def compare_directions(
    model: Model,
    data: Labelled,
    answers: Mapping[str, str | int],
    *,
    layers: int | Sequence[int] | None = None,
    folds: int = 3,
    split: Split = "entity",
    alphas: Sequence[float] | None = None,
    controls: int = 10,
    seed: int = 0,
    batch_size: int = 64,
) -> xr.Dataset:
    r"""Directions that separate two classes, and what the model's answer loses and gains by them.

    Four directions of the stream: the difference of means, a logistic probe, linear discriminant
    analysis, and the mean gradient of the answers' logit difference. Each is found on one part of
    the prompts; on the rest it is asked whether it separates the classes, how much of the answer is
    left when it is projected out (to its mean), and how far the answer moves when it is added. A
    direction may separate perfectly and be one that later layers hardly read: then nearly all is
    left. Random directions do the same for comparison.

    What is projected out or added is changed at the position that is read, at the output of one
    layer; the answer is read at the prompt's end.

    Args:
        model: The model.
        data: Prompts of two classes, read at one position each.
        answers: What the model answers to each class, one token each, by
            its text or id:
            ``{"harmful": " Sorry", "harmless": " Sure"}``.
        layers: At whose outputs; None for all.
        folds: One of so many parts is tested on, the others fitted on.
        split: What stays together, as of `probe`.
        alphas: Strengths of the logistic probe, as of `probe`.
        controls: Random directions, the same at each layer.
        seed: Draws parts and random directions.
        batch_size: Prompts that run at once.

    Returns:
        A Dataset over ``layer``, ``direction`` (and ``other``), ``draw`` (of random ones).
        `cosine` of any two directions; by chance it is 0 with deviation `attrs["cosine_chance"]`.
        `accuracy` on the tested prompts, with the threshold halfway between the fitted classes.
        `left`: the answers' logit difference between the classes when the direction is projected
        out, over what it was: 1 where the model does not use it; below 0 where it turns. `moved`:
        how much of that difference the first class's prompts make up when a vector along the
        direction, as long as the difference of means, is added to them. Both with `…_se` over
        prompts; `control_accuracy`, `control_left`, `control_moved` of random directions.
        `difference`: the logit difference between the classes itself. `vector`: the directions, of
        length 1; `length`: of the difference of means.

    Raises:
        ValueError: Not two classes with one token each for an answer, or options out of range.
        ImportError: scikit-learn is not installed.

    References:
        Ravfogel et al. 2020, "Null It Out", arXiv:2004.07667; Elazar et al. 2021, "Amnesic
        Probing", arXiv:2006.00995; Marks and Tegmark 2023, "The Geometry of Truth",
        arXiv:2310.06824, section 5.

    Example:
        >>> from mlp_interp import load_model, probes
        >>> model = load_model("nano")
        >>> things = {"bomb": "harmful", "gun": "harmful", "drug": "harmful", "virus": "harmful"}
        >>> things |= dict.fromkeys(("cake", "robot", "letter", "boat"), "harmless")
        >>> rows = [{"thing": thing, "kind": kind} for thing, kind in things.items()]
        >>> text = "User: How do I make a {thing}?\nAssistant:"
        >>> data = probes.Labelled.of(
        ...     model, rows, text=text, y="kind", entity="thing", position="last"
        ... )
        >>> answers = {"harmful": " Sorry", "harmless": " Sure"}
        >>> found = probes.compare_directions(model, data, answers, layers=2, folds=2)
        >>> float(found.left.sel(layer=2, direction="mean_difference")) < 0.5
        True
    """
    check_data(data)
    seed, controls = checked_seed(seed), count("controls", controls)
    place = Place.of(model, "resid_post", layers, batch_size)
    margin = Margin.of(model, data, answers, place.batch_size)
    fitter = Fitter.of(data, "logistic", alphas, seed)
    splits = Splits(data, folds, split, seed)
    parts = splits.parts(0)
    _check_both(data, parts)
    random = np.random.default_rng(seed).standard_normal((controls, model.cfg.d_model))
    found = []
    with layers_held(model, data, place) as held:
        for layer, X in held:
            named = _directions(X, parts[0], splits, fitter, margin, layer)
            found.append(_at_layer(X, np.concatenate((named, random)), parts, margin, layer))
    stacked = {name: np.stack([each[name] for each in found]) for name in found[0]}
    attrs = {
        "analysis": "compared directions",
        "site": "resid_post",
        "answers": [str(answers[name]) for name in data.classes or ()],
        "classes": list(data.classes or ()),
        "split": split,
        "seed": seed,
        "fitted": len(parts[0]),
        "tested": len(parts[1]),
        "cosine_chance": float(model.cfg.d_model) ** -0.5,
        "n_layers": int(model.cfg.n_layers),
        "data": data.about,
        "exact": 0,
        "approximation": "directions are fitted to a sample of prompts",
        **describe(model),
    }
    return _dataset(stacked, place).assign_attrs(attrs)


def _check_both(data: Labelled, parts: tuple[np.ndarray, np.ndarray]) -> None:
    for which, rows in zip(("fitted", "tested"), parts, strict=True):
        counts = np.bincount(data.labels[rows], minlength=2)
        if counts.min() < 2:
            raise ValueError(
                f"folds: {counts.tolist()} prompts of classes {data.classes} are {which} on; "
                "wanted at least two of each"
            )


def _directions(
    X: np.ndarray,
    fitted: np.ndarray,
    splits: Splits,
    fitter: Fitter,
    margin: Margin,
    layer: int,
) -> np.ndarray:
    """The four directions ``[direction, d_model]``, towards the second class."""
    labels = margin.data.labels[fitted]
    X = X[fitted]
    (line,) = fitter(X, [margin.data.values[fitted]], splits.group[fitted])
    return np.stack(
        [
            X[labels == 1].mean(0) - X[labels == 0].mean(0),
            line.coef[0],
            discriminant(X, labels, None).coef[0],
            margin.gradient(layer, fitted),
        ]
    )


def _at_layer(
    X: np.ndarray,
    vectors: np.ndarray,
    parts: tuple[np.ndarray, np.ndarray],
    margin: Margin,
    layer: int,
) -> dict[str, np.ndarray]:
    """What each direction, the difference of means first, tells and does."""
    fitted, tested = parts
    labels = margin.data.labels
    length = float(np.linalg.norm(vectors[0]))
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = vectors / np.where(norms > 0, norms, 1.0)
    along = X @ units.T  # [prompt, direction]
    device = margin.forward.weights.device
    each = torch.from_numpy(units).to(device)
    middle = along[fitted].mean(0).tolist()
    changes = [_same]
    changes += [partial(_projected, unit=u, to=m) for u, m in zip(each, middle, strict=True)]
    before, *projected = margin.after(layer, tested, changes)
    first = tested[labels[tested] == 0]
    pushed = margin.after(layer, first, [partial(_pushed, by=length * u) for u in each])
    second = labels[tested] == 1
    difference = before[second].mean() - before[~second].mean()
    left, left_se = _left(np.stack(projected), before, second, difference)
    moved = (pushed - before[~second]) / difference
    return {
        "vector": units,
        "cosine": units @ units.T,
        "accuracy": _accuracy(along, labels, parts),
        "left": left,
        "left_se": left_se,
        "moved": moved.mean(1),
        "moved_se": moved.std(1, ddof=1) / np.sqrt(moved.shape[1]),
        "difference": np.asarray(difference),
        "length": np.asarray(length),
    }


def _same(x: Tensor) -> Tensor:
    return x


def _projected(x: Tensor, unit: Tensor, to: float) -> Tensor:
    """Streams ``[prompt, d_model]`` that all lie equally far along a direction."""
    return x + (to - x @ unit)[:, None] * unit


def _pushed(x: Tensor, by: Tensor) -> Tensor:
    return x + by


def _left(
    after: np.ndarray, before: np.ndarray, second: np.ndarray, difference: float
) -> tuple[np.ndarray, np.ndarray]:
    """The share of the classes' difference that is left, and its standard error to first order."""
    left = (after[:, second].mean(1) - after[:, ~second].mean(1)) / difference
    apart = (after - left[:, None] * before) / difference
    parts = apart[:, second], apart[:, ~second]
    return left, np.sqrt(sum(part.var(1, ddof=1) / part.shape[1] for part in parts))


def _accuracy(
    along: np.ndarray, labels: np.ndarray, parts: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """The share of tested prompts on their side of the middle between the fitted classes."""
    fitted, tested = parts
    means = [along[fitted][labels[fitted] == c].mean(0) for c in (0, 1)]
    beyond = along[tested] > (means[0] + means[1]) / 2
    towards = means[1] > means[0]
    return ((beyond == towards) == (labels[tested] == 1)[:, None]).mean(0)


def _dataset(found: Mapping[str, np.ndarray], place: Place) -> xr.Dataset:
    named = len(_DIRECTIONS)
    texts = {
        "accuracy": "tested prompts on their side",
        "left": "of the answers' difference, when projected out",
        "moved": "of the answers' difference, when added",
    }
    held: dict[str, Any] = {
        "cosine": variable(
            ("layer", "direction", "other"), found["cosine"][:, :named, :named], unit="cosine"
        ),
        "vector": variable(
            ("layer", "direction", "d_model"), found["vector"][:, :named], unit="activation"
        ),
        "length": variable("layer", found["length"], unit="activation"),
        "difference": variable("layer", found["difference"], unit="logits"),
    }
    for name, text in texts.items():
        over = "layer", "direction"
        held[name] = variable(over, found[name][:, :named], unit="share", long_name=text)
        held[f"control_{name}"] = variable(
            ("layer", "draw"), found[name][:, named:], unit="share", long_name=f"random: {text}"
        )
    for name in ("left_se", "moved_se"):
        held[name] = variable(("layer", "direction"), found[name][:, :named], unit="share")
    coords = {
        "layer": list(place.layers),
        "direction": list(_DIRECTIONS),
        "other": list(_DIRECTIONS),
    }
    return xr.Dataset(held, coords=coords)
