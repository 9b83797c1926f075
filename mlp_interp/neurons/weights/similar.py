"""Which neurons read or write the same, and which the opposite?"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.models import Weights, describe
from mlp_interp.models.indices import indices
from mlp_interp.models.options import check_counts, checked_count
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.models.vectors import Vectors, unit
from mlp_interp.results import single, to_numpy
from mlp_interp.sites import Site, SiteLike, component_coords

__all__ = ["antipodal_pairs", "nearest_neurons"]

By = Literal["value", "receptor", "both"]
_WHICH = {"receptor": [0], "value": [1], "both": [0, 1]}
_ROWS = 512
"""Neurons of a layer that are compared with all of another at a time."""


@own_mode()
@torch.no_grad()
def nearest_neurons(
    model: Model,
    neuron: SiteLike,
    *,
    k: int = 10,
    by: By = "value",
    layers: int | Sequence[int] | None = None,
) -> xr.DataArray:
    """The neurons whose vectors point most nearly the same way as one neuron's.

    Receptors are LayerNorm-folded and value vectors taken without their mean over ``d_model``, as
    in `neuron_weights`, so the answer does not depend on processing.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        neuron: A label (``"L3N669"``), a `Site`, or the pair ``(layer, neuron)``.
        k: How many neighbours.
        by: ``"value"``: neurons that write the same; ``"receptor"``: that read the same;
            ``"both"``: by the smaller of the two cosines, so that both must be alike.
        layers: Where to look; None for all layers.

    Returns:
        A DataArray of cosines along ``component``, nearest first, without the neuron itself. The
        coordinates ``receptor_cosine`` and ``value_cosine`` give both, whatever `by`.

    Raises:
        ValueError: The model has no such neuron or layer; `by` is unknown; `k` outside 1 to the
            number of other neurons in these layers; weights that are not finite.

    Example:
        >>> from mlp_interp import load_model
        >>> found = nearest_neurons(load_model("nano"), "L3N669", k=3, by="value")
        >>> found.sizes["component"], bool((found.diff("component") <= 0).all())
        (3, True)
    """
    weights = Weights.of(model)
    site = weights.place(neuron, kind="neuron", argument="neuron")
    layer, listed = site.layer or 0, indices("layers", layers, weights.n_layers)
    _check_by(by)
    others = len(listed) * weights.d_mlp - (layer in listed)
    checked_count(k, others, "other neurons in these layers")
    own = _units(weights, layer)[:, site.unit, :, None]
    cosines = torch.cat([(_units(weights, at) @ own)[..., 0] for at in listed], dim=1)
    cosines = cosines.clamp(-1, 1)
    score = cosines[_WHICH[by]].amin(0)
    if layer in listed:
        score[listed.index(layer) * weights.d_mlp + site.unit] = -torch.inf
    order = score.argsort(descending=True, stable=True)[:k]
    sites = [
        Site("post", listed[i // weights.d_mlp], neuron=i % weights.d_mlp) for i in order.tolist()
    ]
    receptor, value = to_numpy(cosines[:, order])
    return xr.DataArray(
        to_numpy(score[order]),
        dims="component",
        coords={
            **component_coords(sites),
            "receptor_cosine": ("component", receptor),
            "value_cosine": ("component", value),
        },
        name="cosine",
        attrs={
            **_attrs(model, by),
            "long_name": f"cosine to {site.label}",
        },
    )


@own_mode()
@torch.no_grad()
def antipodal_pairs(
    model: Model,
    *,
    layers: int | Sequence[int] | None = None,
    by: By = "both",
    below: float = -0.9,
    k: int = 50,
) -> xr.DataArray:
    """Pairs of neurons, of one layer or of two, whose vectors point opposite ways.

    Two neurons of one layer that are opposite in both compute ``(gelu(x) - gelu(-x)) v = x v``: a
    linear map, as attention heads write it. Opposite receptors with the same value vector compute
    ``|x| v``, nearly.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        layers: Which layers; None for all.
        by: ``"value"``, ``"receptor"``, or ``"both"``: by the larger of the two cosines, so that
            both must be opposite. Vectors as in `nearest_neurons`.
        below: Only pairs whose cosine is smaller than this.
        k: At most so many pairs. All are compared, in blocks; memory does not grow with their
            number.

    Returns:
        A DataArray of cosines along ``pair``, most opposite first; coordinates ``first`` and
        ``second`` (labels, the earlier neuron first), ``first_layer``, ``first_neuron``,
        ``second_layer``, ``second_neuron``, ``receptor_cosine``, ``value_cosine``. It is empty
        where no pair is that opposite; ``attrs["found"]`` counts all that are.

    Raises:
        ValueError: Layers that the model does not have; `by` is unknown; `below` outside (-1, 1];
            `k` below 1; weights that are not finite.

    References:
        Gurnee et al., "Universal Neurons in GPT2 Language Models", 2024, on antipodal pairs.

    Example:
        >>> from mlp_interp import load_model
        >>> pairs = antipodal_pairs(load_model("nano"), by="receptor", below=-0.3, k=5)
        >>> pairs.dims, bool((pairs < -0.3).all())
        (('pair',), True)
    """
    weights = Weights.of(model)
    listed = tuple(sorted(indices("layers", layers, weights.n_layers)))
    _check_by(by)
    if not -1 < below <= 1:
        raise ValueError(f"below={below!r}; wanted a cosine above -1, up to 1")
    check_counts(k=k)
    found, scores, pairs = _lowest(weights, listed, by, below, k)
    both = pairs.view(-1, 2, 2).permute(1, 2, 0)  # first or second, layer and neuron, pair
    sides = [_side(weights, *which) for which in both]
    receptor, value = to_numpy((sides[0] * sides[1]).sum(-1).clamp(-1, 1))
    coords: dict[str, Any] = {"receptor_cosine": receptor, "value_cosine": value}
    for name, (at, neurons) in zip(("first", "second"), both.tolist(), strict=True):
        labels = [Site("post", a, neuron=n).label for a, n in zip(at, neurons, strict=True)]
        coords[name] = np.array(labels, dtype=object)
        coords |= {f"{name}_layer": np.array(at, int), f"{name}_neuron": np.array(neurons, int)}
    return xr.DataArray(
        to_numpy(scores),
        dims="pair",
        coords={name: ("pair", values) for name, values in coords.items()},
        name="cosine",
        attrs={
            **_attrs(model, by),
            "long_name": f"cosine of neurons that point opposite ways, below {below}",
            "below": float(below),
            "found": found,
        },
    )


def _lowest(
    weights: Weights, layers: tuple[int, ...], by: str, below: float, k: int
) -> tuple[int, Float[Tensor, " pair"], Int[Tensor, "pair 4"]]:
    """How many pairs are below, the `k` lowest cosines, and their layers and neurons."""
    found, scores, pairs = 0, [], []
    for first, start, second, score in _blocks(weights, layers, by, below):
        hits = int((score < below).sum())
        found += hits
        lowest = score.flatten().topk(min(k, hits), largest=False)
        row, column = lowest.indices // score.shape[1], lowest.indices % score.shape[1]
        one = torch.ones_like(row)
        pairs.append(torch.stack([first * one, start + row, second * one, column], dim=1))
        scores.append(lowest.values)
        order = torch.cat(scores).argsort(stable=True)[:k]
        scores, pairs = [torch.cat(scores)[order]], [torch.cat(pairs)[order]]
    if not found:
        nothing = single(weights.W_U[0, :0])
        return 0, nothing, torch.empty(0, 4, dtype=torch.long, device=nothing.device)
    return found, scores[0], pairs[0]


def _blocks(
    weights: Weights, layers: tuple[int, ...], by: str, below: float
) -> Iterator[tuple[int, int, int, Float[Tensor, "some neuron"]]]:
    """Cosines of some neurons of a layer and all of another, wherever one of them is below.

    Each pair comes once; in its other place stands infinity.
    """
    for i, first in enumerate(layers):
        ours = _units(weights, first)
        for second in layers[i:]:
            theirs = ours if second == first else _units(weights, second)
            for start in range(0, weights.d_mlp, _ROWS):
                score = _opposition(ours[:, start : start + _ROWS], theirs, by, below)
                if second == first:
                    # Only later neurons of the same layer.
                    done = torch.ones_like(score, dtype=torch.bool).tril(start)
                    score = score.masked_fill(done, torch.inf)
                if bool((score < below).any()):
                    yield first, start, second, score


def _opposition(
    ours: Float[Tensor, "2 some d_model"],
    theirs: Float[Tensor, "2 neuron d_model"],
    by: str,
    below: float,
) -> Float[Tensor, "some neuron"]:
    """Cosines, of both kinds the larger; the second kind only where it can matter."""
    first, *rest = _WHICH[by]
    score = ours[first] @ theirs[first].T
    for which in rest:
        if bool((score < below).any()):
            score = torch.maximum(score, ours[which] @ theirs[which].T)
    return score.clamp(-1, 1)


def _side(
    weights: Weights, layers: Int[Tensor, " pair"], neurons: Int[Tensor, " pair"]
) -> Float[Tensor, "2 pair d_model"]:
    """Receptors and value vectors of some neurons, whatever their layers."""
    units = single(weights.W_U).new_empty(2, len(layers), weights.d_model)
    for layer in layers.unique().tolist():
        here = layers == layer
        units[:, here] = _units(weights, layer)[:, neurons[here]]
    return units


def _units(weights: Weights, layer: int) -> Float[Tensor, "2 neuron d_model"]:
    """Directions of a layer's receptors and of its value vectors."""
    vectors = Vectors.of(weights, layer)
    return torch.stack([unit(vectors.receptor.folded), unit(vectors.value_folded)])


def _check_by(by: Any) -> None:
    if by not in _WHICH:
        raise ValueError(f"by={by!r}; wanted one of {', '.join(map(repr, _WHICH))}")


def _attrs(model: Model, by: str) -> dict[str, Any]:
    return {**describe(model), "unit": "cosine", "by": by, "data": "the weights alone", "exact": 1}
