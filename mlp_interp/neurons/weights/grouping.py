"""Neurons in groups of vectors that point alike, and what groups mere noise falls into."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.models import Weights, describe
from mlp_interp.models.indices import count, indices
from mlp_interp.models.options import check_choice, checked_count, checked_seed, generator_of
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.models.vectors import Vectors, unit
from mlp_interp.models.vocabulary import Best, TokenDirections
from mlp_interp.neurons.weights.kmeans import rand_index, spherical
from mlp_interp.prompts.reading import texts
from mlp_interp.results import to_numpy, variable
from mlp_interp.sites import Site

__all__ = ["clusters"]

_TOKENS = "that stand out along the centre"

_ROUNDS, _UNEVEN = 100, 1e-3
"""Of noise: how often it is given both of its properties, and how far lengths may be from one."""
_NOTHING = 1e-10
"""A share of the largest variance that is rounding: directions that vectors do not have."""


@own_mode()
@torch.no_grad()
def clusters(
    model: Model,
    *,
    by: Literal["value", "receptor"] = "value",
    k: int = 64,
    layers: int | Sequence[int] | None = None,
    tokens: int = 10,
    controls: int = 4,
    seed: int = 0,
) -> xr.Dataset:
    """The neurons of each layer in groups whose vectors point alike: spherical k-means.

    Any cloud of vectors falls into groups, the tighter the more groups there are and the fewer
    directions the cloud fills. So beside ``tightness``, the mean cosine of a neuron to the centre
    of its group, stands that of random vectors of length one that have the layer's mean and
    covariance, but no groups. A layer that is hardly tighter has none either, however telling the
    tokens of its centres look. ``stability`` says whether another start finds the same groups,
    again beside random vectors.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        by: ``"value"``: neurons that write alike; ``"receptor"``: that read alike. Vectors as in
            `neuron_weights`, all taken to length one.
        k: How many groups in a layer.
        layers: Which layers; None for all.
        tokens: How many tokens of each centre: those whose logits it raises most, or, of receptors,
            whose embeddings drive it most.
        controls: How many clouds of random vectors, at least two.
        seed: Of them, and of where centres begin.

    Returns:
        A Dataset with ``cluster`` of each ``layer, neuron`` (by size, the largest is 0; -1 where
        the vector is zero) and ``cosine`` to its centre (then NaN); of each ``layer, group``:
        ``size``, ``group_cosine``, the mean of its neurons, and with ``rank`` ``token`` and
        ``token_text``; and of each ``layer``: ``tightness`` with ``tightness_null`` and
        ``tightness_null_sd``, the mean and deviation of the random clouds, and ``stability``, the
        adjusted Rand index of two starts (1: the same groups, 0: independent ones), with
        ``stability_null``.

    Raises:
        ValueError: An unknown `by`, counts out of range, layers that the model does not have,
            weights that are not finite, or a model without neurons.

    References:
        Dhillon & Modha, "Concept Decompositions for Large Sparse Text Data Using Clustering", 2001.
        Clusters of value vectors: Geva et al., "LM-Debugger: An Interactive Tool for Inspection and
        Intervention in Transformer-Based Language Models", 2022.

    Example:
        >>> from mlp_interp import load_model
        >>> found = clusters(load_model("nano"), layers=1, k=64)
        >>> above = found["tightness"] - found["tightness_null"]
        >>> bool((above > 0).all()), bool((above < 0.1).all())
        (True, True)
    """
    weights = Weights.of(model)
    check_choice("by", by, ("value", "receptor"))
    listed = indices("layers", layers, weights.n_layers)
    weights.check_names(["post"], argument="neurons")
    checked_count(k, weights.d_mlp, "neurons")
    checked_count(tokens, weights.d_vocab, "tokens", name="tokens")
    count("controls", controls, least=2)
    checked_seed(seed)
    found = [_grouped(_units(weights, layer, by), k, controls, (seed, layer)) for layer in listed]
    names = _tokens(weights, by, torch.stack([one.centres for one in found]), tokens)
    each, group, ranked = ("layer", "neuron"), ("layer", "group"), ("layer", "group", "rank")
    stacked = {
        name: torch.stack([torch.as_tensor(getattr(one, name)) for one in found])
        for name in ("labels", "cosine", "size", "group_cosine", "tight", "stable")
    }
    tight, stable = stacked["tight"].double(), stacked["stable"].double()
    variables = {
        "cluster": variable(each, stacked["labels"], unit="number", long_name="of its group"),
        "cosine": variable(each, stacked["cosine"], unit="cosine", long_name="to its centre"),
        "size": variable(group, stacked["size"], unit="neurons", long_name="in a group"),
        "group_cosine": variable(
            group, stacked["group_cosine"], unit="cosine", long_name="mean to the centre"
        ),
        "token": variable(ranked, names, unit="token id", long_name=_TOKENS),
        "token_text": variable(
            ranked, texts(model, to_numpy(names)), unit="text", long_name=_TOKENS
        ),
    }
    for name, x, unit_of, about in (
        ("tightness", tight, "cosine", "mean to the centre of the group"),
        ("stability", stable, "adjusted Rand index", "agreement of two starts"),
    ):
        null, random = x[:, 1:], f"{about}, of random vectors"
        sd = f"its deviation, {random}"
        variables[name] = variable("layer", x[:, 0], unit=unit_of, long_name=about)
        variables[f"{name}_null"] = variable("layer", null.mean(1), unit=unit_of, long_name=random)
        variables[f"{name}_null_sd"] = variable("layer", null.std(1), unit=unit_of, long_name=sd)
    width = range(weights.d_mlp)
    labels = [[Site("post", at, neuron=n).label for n in width] for at in listed]
    coords = {"layer": [*listed], "neuron": [*width], "component": (each, labels)}
    attrs: dict[str, Any] = {"analysis": "clusters", "long_name": f"groups of {by} vectors"}
    attrs |= {"unit": "cosine", "by": by, "controls": controls, "seed": seed, "exact": 1}
    return xr.Dataset(variables, coords, {**describe(model), "data": "the weights alone", **attrs})


@dataclass(frozen=True)
class _Grouped:
    """One layer's groups, the largest first; what is tight and stable, then by chance.

    Attributes:
        labels: Of each neuron; -1 for a zero vector.
        cosine: Of each to its centre.
        centres: Of length one.
        size: Of each group.
        group_cosine: Mean cosine in each.
        tight: Mean cosine of all, then of each random cloud.
        stable: Agreement of two starts, the same way.
    """

    labels: Int[Tensor, " neuron"]
    cosine: Float[Tensor, " neuron"]
    centres: Float[Tensor, "group d_model"]
    size: Int[Tensor, " group"]
    group_cosine: Float[Tensor, " group"]
    tight: list[float]
    stable: list[float]


def _grouped(
    units: Float[Tensor, "neuron d_model"], k: int, controls: int, words: tuple[int, int]
) -> _Grouped:
    """Groups of a layer; `words` draw, and neither other layers nor controls change its groups."""
    alive = units.any(1)
    cloud = units[alive]
    if len(cloud) < k:
        raise ValueError(f"k={k}; wanted at most {len(cloud)}, as many as vectors that are not 0")
    generators = [generator_of(*words, number) for number in range(1 + controls)]
    runs = [_twice(cloud, k, generators[0])]
    runs += [_twice(_noise(cloud, generator), k, generator) for generator in generators[1:]]
    own, centres, _, _ = runs[0]
    order = own.bincount(minlength=k).argsort(descending=True, stable=True)
    labels, cosine = torch.full_like(alive, -1, dtype=torch.int64), torch.zeros_like(units[:, 0])
    labels[alive], centres = order.argsort()[own], centres[order]
    cosine[~alive] = torch.nan
    cosine[alive] = (cloud * centres[labels[alive]]).sum(1)
    size = labels[alive].bincount(minlength=k)
    total = cosine.new_zeros(k).index_add_(0, labels[alive], cosine[alive])
    return _Grouped(
        labels, cosine, centres, size, total / size, [x[2] for x in runs], [x[3] for x in runs]
    )


def _twice(
    cloud: Float[Tensor, "vector d_model"], k: int, generator: torch.Generator
) -> tuple[Int[Tensor, " vector"], Float[Tensor, "group d_model"], float, float]:
    """Groups and centres, the mean cosine to these, and how alike the groups of another start."""
    labels, centres = spherical(cloud, k, generator)
    other, _ = spherical(cloud, k, generator)
    return (
        labels,
        centres,
        float((cloud * centres[labels]).sum(1).mean()),
        rand_index(labels, other),
    )


def _noise(
    cloud: Float[Tensor, "vector d_model"], generator: torch.Generator
) -> Float[Tensor, "vector d_model"]:
    """As many vectors of length one with the mean and the covariance of a cloud, and no more of it.

    Gaussian vectors taken to length one have another covariance than before: a flatter one, in
    which groups are looser than in any cloud of the first. So both are given to them in turn until
    they have both. They are the cloud's own, not theirs on the average: draws would be more uneven
    than the cloud, which is drawn itself, and fall into tighter groups.
    """
    mean = cloud.double().mean(0)
    centred = cloud.double() - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    rank = int((values > _NOTHING * values[-1]).sum())
    root, axes = values[-rank:].sqrt(), vectors[:, -rank:]
    drawn = torch.randn(len(cloud), rank, generator=generator, dtype=torch.float64)
    found = drawn.to(cloud.device) * root
    for _ in range(_ROUNDS):
        Q, R = torch.linalg.qr(found - found.mean(0))
        wanted = mean + (Q * R.diagonal().sign() * root) @ axes.T
        lengths = wanted.norm(dim=1, keepdim=True)
        found = wanted / lengths @ axes
        if (lengths - 1).square().mean() < _UNEVEN**2:
            break
    return unit(wanted).to(cloud)


def _units(weights: Weights, layer: int, by: str) -> Float[Tensor, "neuron d_model"]:
    vectors = Vectors.of(weights, layer)
    return unit(vectors.value_folded if by == "value" else vectors.receptor.folded)


def _tokens(
    weights: Weights, by: str, centres: Float[Tensor, "layer group d_model"], k: int
) -> Int[Tensor, "layer group rank"]:
    """The tokens that stand out along each centre."""
    ends = TokenDirections.unembedding if by == "value" else TokenDirections.embedding
    best = Best(k, torch.positive)
    for some, x in (directions := ends(weights)).read(centres.flatten(0, 1)):
        # Embeddings are read through a norm: their lengths do not matter.
        best.add(some, x if by == "value" else x * directions.inverse[some])
    return best.numbers_and_tokens()[1].view(*centres.shape[:2], k)
