"""How much of what components write lies where others read: ranks and principal angles."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.models import Weights, describe
from mlp_interp.models.heads import Heads
from mlp_interp.models.indices import each
from mlp_interp.models.options import checked_number
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.models.vectors import Vectors
from mlp_interp.results import variable
from mlp_interp.sites import Site
from mlp_interp.weights.matrices import readout

__all__ = ["subspaces"]


@own_mode()
@torch.no_grad()
def subspaces(
    model: Model,
    writers: str | Site | Sequence[str | Site],
    readers: str | Site | Sequence[str | Site],
    *,
    energy: float = 0.9,
) -> xr.Dataset:
    """The subspaces that components write to and read from, and the angles between them.

    Of each matrix the fewest singular directions on the stream's side that hold a share of its
    square. Between two such spaces the principal angles say how they lie: a cosine of 1 is a
    direction that both have. Heads and MLPs of trained models share much of the stream, and large
    spaces meet anywhere: `overlap_chance` is what random spaces of these dimensions have. A norm
    between an MLP and the stream changes none of this: it divides all that the MLP writes by one
    number.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        writers: ``"L0H3"``, ``"2.mlp"`` or ``"embed"``, one or several.
        readers: ``"L1H3.q"``, ``.k``, ``.v``, ``"2.mlp"`` (of gated ones the gate) or
            ``"unembed"``.
        energy: Share of the square that a space must hold.

    Returns:
        A Dataset along ``writer`` and ``reader``: ``cosine`` (with ``angle``) of the principal
        angles, largest first, NaN beyond the smaller dimension; ``overlap``, the mean of their
        squares over the smaller dimension, and ``overlap_chance``, its expectation for random
        spaces, the larger dimension over that of the stream; ``writer_rank``, ``reader_rank``. A
        matrix of zeros has rank 0, and NaN.

    Raises:
        ValueError: Labels of neither, or that the model does not have; `energy` not between 0 and
            1; heads of a model that normalises what they write.

    References:
        Björck & Golub, "Numerical Methods for Computing Angles Between Linear Subspaces", 1973.

    Example:
        >>> from mlp_interp import load_model
        >>> found = subspaces(load_model("nano"), ["L0H0", "L0H1"], "L1H0.k")
        >>> bool(found["overlap"][0, 0] > 2 * found["overlap_chance"][0, 0])
        True
    """
    weights = Weights.of(model)
    energy = checked_number("energy", energy, lambda x: 0 < x < 1, "a share between 0 and 1")
    write, read = (
        {label: _space(_matrix(weights, what, label), energy) for label in _listed(what, given)}
        for what, given in (("writers", writers), ("readers", readers))
    )
    dimensions = weights.d_model - (weights.norm.kind == "layer")
    widest = min(max(len(x) for x in write.values()), max(len(x) for x in read.values()))
    cosines = np.full((len(write), len(read), widest), np.nan)
    overlap, chance = (np.full(cosines.shape[:2], np.nan) for _ in range(2))
    for i, a in enumerate(write.values()):
        for j, b in enumerate(read.values()):
            if not (len(a) and len(b)):
                continue
            found = torch.linalg.svdvals(a @ b.T).clamp(0, 1).cpu().numpy()
            cosines[i, j, : len(found)] = found
            overlap[i, j] = np.mean(found**2)
            chance[i, j] = max(len(a), len(b)) / dimensions
    pair = ("writer", "reader")
    variables = {
        "cosine": variable((*pair, "angle"), cosines, unit="cosine", long_name="principal angles"),
        "overlap": variable(pair, overlap, unit="fraction", long_name="mean squared cosine"),
        "overlap_chance": variable(
            pair, chance, unit="fraction", long_name="the same of random spaces, expected"
        ),
        **{
            f"{name}_rank": variable(
                name, [len(x) for x in spaces.values()], unit="dimensions", long_name="of the space"
            )
            for name, spaces in (("writer", write), ("reader", read))
        },
    }
    attrs = {"analysis": "subspaces", "unit": "see each variable", "energy": energy, "exact": 1}
    attrs |= {"long_name": "subspaces written and read", "data": "the weights alone"}
    coords = {"writer": [*write], "reader": [*read]}
    return xr.Dataset(variables, coords, {**describe(model), **attrs})


def _listed(argument: str, given: Any) -> list[str]:
    listed = [x.label if isinstance(x, Site) else x for x in each(given)]
    if not listed or len({*listed}) < len(listed):
        raise ValueError(f"{argument}={listed!r}; wanted at least one label, each once")
    return listed


def _matrix(weights: Weights, argument: str, label: Any) -> Float[Tensor, "some d_model"]:
    """The vectors of the stream that a component writes, or reads with.

    Raises:
        ValueError: There is no such component, or it does not do this.
    """
    writes = argument == "writers"
    whole = "embed" if writes else "unembed"
    if label == whole:
        return weights.norm.keep(weights.W_E.float()) if writes else readout(weights)[1]
    site = weights.place(label, argument=argument, words=[whole], per_head=True)
    layer = site.layer or 0
    if site == Site("mlp_out", layer):
        vectors = Vectors.of(weights, layer)
        return vectors.value_folded if writes else vectors.receptor.folded
    if site.head is None or site.name not in (("z",) if writes else ("q", "k", "v")):
        wanted = "'L0H3', '2.mlp'" if writes else "'L1H3.q', 'L1H3.k', 'L1H3.v', '2.mlp'"
        raise ValueError(f"{argument}={site.label!r}; wanted {wanted} or {whole!r}")
    heads = Heads.of(weights, layer, scores=False)
    if writes:
        return heads.O[site.head]
    return {"q": heads.Q, "k": heads.K, "v": heads.V}[site.name][site.head].T


def _space(vectors: Float[Tensor, "some d_model"], energy: float) -> Float[Tensor, "rank d_model"]:
    """An orthonormal basis of the fewest directions that hold so much of the vectors' square."""
    values, basis = torch.linalg.eigh(vectors.double().T @ vectors.double())
    share = values.flip(0).clamp_min(0).cumsum(0) / values.clamp_min(0).sum()
    rank = int((share < energy).sum()) + 1 if bool(vectors.any()) else 0
    return basis.T.flip(0)[:rank]
