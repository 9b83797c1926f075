"""Which heads read what which other heads write, more than chance would have it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.heads._circuits import rotations
from mlp_interp.heads._spectra import root
from mlp_interp.heads._which import by_layer, head_coords, listed_heads
from mlp_interp.models import Weights, describe
from mlp_interp.models.heads import Heads
from mlp_interp.models.indices import index
from mlp_interp.models.options import check_choice
from mlp_interp.models.protocol import Model
from mlp_interp.results import strings, variable
from mlp_interp.sites import Site

__all__ = ["compose"]

KINDS = ("q", "k", "v")
Measure = Literal["frobenius", "overlap"]


@dataclass(frozen=True)
class _Side:
    """Of some heads: factors whose Gram matrices say what they write, or read, and three traces.

    Attributes:
        factor: ``F`` with the Gram matrix ``F F^T``.
        trace: Of the Gram matrix.
        square: Trace of its square.
    """

    factor: Float[Tensor, "head d_model k"]
    trace: Float[Tensor, " head"]
    square: Float[Tensor, " head"]

    @classmethod
    def of(cls, matrix: Tensor, inner: Tensor, measure: str, energy: float) -> "_Side":
        """Of Gram matrices ``W S W^T`` with a thin ``W`` and a small ``S``.

        For the overlap their directions of largest weight, which hold a share of it, count alike.
        """
        factor = matrix.double() @ root(inner)
        if measure == "overlap":
            left, values, _ = torch.linalg.svd(factor, full_matrices=False)
            squares = values.square()
            before = squares.cumsum(-1) - squares
            factor = left * (before < energy * squares.sum(-1, keepdim=True))[:, None]
        gram = factor.mT @ factor
        trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
        return cls(factor.float(), trace, gram.square().sum((-2, -1)))


@torch.no_grad()
def compose(
    model: Model,
    *,
    writers: Any = None,
    readers: Any = None,
    measure: Measure = "frobenius",
    distance: int | None = None,
    energy: float = 0.9,
) -> xr.Dataset:
    """How much of what each head writes the queries, keys and values of later heads can read.

    With ``A = V O`` of a writer and ``B`` of a reader (``Q R K^T`` for its queries, ``K R^T Q^T``
    for its keys, ``V O`` for its values), the score is ``|A B| / (|A| |B|)`` with Frobenius norms:
    Q-, K- and V-composition. By itself it says nothing: it depends on the ranks of both. So `z`
    compares its square with what it would be if the writer pointed anywhere, equally stretched:
    under a random rotation of one against the other, mean and variance are known exactly for any
    spectra. Heads that compose by accident of a common subspace, in which all heads write, have
    large `z` too, and a negative one says that a reader avoids a writer.

    Weights alone say that a path exists, not that text takes it: see `induction`, `path_patch`.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        writers: Labels of heads, one or several; None for all.
        readers: Labels of what reads (``"L1H3.k"``), or ``"q"``, ``"k"`` or ``"v"`` for those of
            all heads; one or several; None for all of all three.
        measure: ``"frobenius"``; or ``"overlap"``, of the spaces alone: ``A`` and ``B`` are
            replaced by projections on the directions that hold `energy` of each.
        distance: Between query and key, whose rotation stands between the two; None for the
            average over distances 1 to 31 of the Gram matrix. Values have none.
        energy: For the overlap, the share of the squared norm.

    Returns:
        A Dataset over ``writer, reader`` with ``score`` and ``z``, NaN where the reader comes
        before or beside the writer, and over ``reader`` and ``writer`` their layers and heads.
        ``attrs["expected"]`` is the score whose square is the mean under rotations.

    Raises:
        ValueError: A head or reader that the model does not have or that is named twice, an unknown
            measure, a distance beyond the context, a share outside 0 to 1, or scores that are more
            than products of queries and keys where queries or keys are asked for.

    References:
        Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021, on composition.
        Moments of orthogonal matrices: Collins and Sniady, "Integration with respect to the Haar
        measure on unitary, orthogonal and symplectic group", 2006.

    Example:
        >>> from mlp_interp import load_model
        >>> found = compose(load_model("nano"), writers="L0H0", readers=["L1H2.k", "L1H2.v"])
        >>> found.z.values.round().tolist()
        [[87.0, -10.0]]
    """
    weights = Weights.of(model)
    check_choice("measure", measure, ("frobenius", "overlap"))
    if not 0 < energy <= 1:
        raise ValueError(f"energy={energy}; wanted a share above 0, up to 1")
    if distance is not None:
        distance = index("distance", distance, int(weights.model.cfg.n_ctx))
    writing = listed_heads(weights, writers, argument="writers")
    reading = _readers(weights, readers)
    scored = any(site.name != "v" for site in reading)
    shape = len(writing), len(reading)
    score, z = (torch.full(shape, torch.nan, dtype=torch.float64) for _ in range(2))
    m = weights.d_model - (weights.norm.kind == "layer")
    earlier: list[tuple[int, list[int], _Side]] = []
    for layer in range(weights.n_layers):
        heads = Heads.of(weights, layer, scores=scored)
        side = _reading(heads, [s for s in reading if s.layer == layer], measure, distance, energy)
        if side is not None:
            columns = [i for i, s in enumerate(reading) if s.layer == layer]
            for _, rows, writer in earlier:
                found = _compared(writer, side, m)
                for target, value in zip((score, z), found, strict=True):
                    target[torch.tensor(rows)[:, None], torch.tensor(columns)] = value.cpu()
        rows = by_layer(writing).get(layer, [])
        if rows:
            units = [writing[i].unit for i in rows]
            O, V = heads.O[units].mT, heads.V[units].double()  # noqa: E741
            earlier.append((layer, rows, _Side.of(O, V.mT @ V, measure, energy)))
    dims = ("writer", "reader")
    variables = {
        "score": variable(dims, score, unit="share", long_name=f"{measure} composition score"),
        "z": variable(dims, z, unit="sd", long_name="its square over chance"),
    }
    coords = {
        **head_coords(writing, "writer"),
        **_reader_coords(reading),
    }
    attrs = {
        **describe(model),
        "analysis": "composition of heads",
        "long_name": "composition of heads, from weights",
        "unit": "see each variable",
        "data": "the weights alone",
        "measure": measure,
        "distance": "1 to 31" if distance is None else distance,
        "expected": m**-0.5,
        "exact": 1,
    }
    return xr.Dataset(variables, coords, attrs)


def _readers(weights: Weights, given: Any) -> list[Site]:
    """The queries, keys and values that somebody named, each head's own."""
    listed = KINDS if given is None else (given,) if isinstance(given, str | Site) else tuple(given)
    found: list[Site] = []
    for reader in listed:
        if isinstance(reader, str) and reader in KINDS:
            for layer in range(weights.n_layers):
                found += [Site(reader, layer, head=head) for head in range(weights.n_heads)]
            continue
        site = reader if isinstance(reader, Site) else Site.parse(reader)
        good = site.name in KINDS and site.head is not None and site.layer is not None
        if not good or (site.layer or 0) >= weights.n_layers or site.unit >= weights.n_heads:
            raise ValueError(
                f"readers={site.label!r}; wanted 'q', 'k', 'v', or those of a head, as "
                f"'L1H0.k' (layers to {weights.n_layers - 1}, heads to {weights.n_heads - 1})"
            )
        found.append(site)
    if not found or len(set(found)) < len(found):
        raise ValueError(
            f"readers={[site.label for site in found]}; wanted at least one, each once"
        )
    return found


def _reading(
    heads: Heads, sites: Sequence[Site], measure: str, distance: int | None, energy: float
) -> _Side | None:
    """What some readers of one layer read, in their order."""
    parts: list[tuple[Tensor, Tensor]] = []
    made = {name: _inner(heads, name, distance) for name in {site.name for site in sites}}
    for site in sites:
        matrix, inner = made[site.name]
        parts.append((matrix[site.unit], inner[site.unit]))
    if not parts:
        return None
    matrices, inner = (torch.stack(x) for x in zip(*parts, strict=True))
    return _Side.of(matrices, inner, measure, energy)


def _inner(heads: Heads, name: str, distance: int | None) -> tuple[Tensor, Tensor]:
    """With which matrix queries, keys or values are read, and what is made of them after that."""
    O = heads.O.double()  # noqa: E741
    if name == "v":
        return heads.V, O @ O.mT
    matrix, other = (heads.Q, heads.K) if name == "q" else (heads.K, heads.Q)
    between = rotations(heads, distance)
    turned = between if name == "q" else between.mT
    gram = other.double().mT @ other.double()
    return matrix, torch.einsum("tde,hef,tgf->hdg", turned, gram, turned) / len(turned)


def _compared(writer: _Side, reader: _Side, m: int) -> tuple[Tensor, Tensor]:
    """Scores of all pairs, and how many deviations their squares are above the mean by chance."""
    w, r = (side.factor.mT.flatten(0, 1) for side in (writer, reader))
    products = (w @ r.T).square_()
    each = products.view(len(writer.trace), -1, len(reader.trace), reader.factor.shape[-1])
    together = each.sum((1, 3)).double()
    t, u = writer.trace[:, None], reader.trace
    tt, uu = writer.square[:, None], reader.square
    variance = 2 * (m * tt - t**2) * (m * uu - u**2) / (m**2 * (m - 1) * (m + 2))
    return (together / (t * u)).sqrt(), (together - t * u / m) / variance.clamp_min(0).sqrt()


def _reader_coords(sites: Sequence[Site]) -> dict[str, Any]:
    return {
        **head_coords(sites, "reader"),
        "reader_kind": ("reader", strings([site.name for site in sites])),
        "reader_head": (
            "reader",
            strings([Site("z", site.layer, head=site.head).label for site in sites]),
        ),
    }
