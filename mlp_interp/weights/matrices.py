"""Which matrix a label means."""

import re
from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mlp_interp.models import Unembed, Weights
from mlp_interp.models.heads import Heads
from mlp_interp.models.indices import count
from mlp_interp.models.token_streams import TokenStreams, streams_of
from mlp_interp.models.vectors import Receptor, Vectors
from mlp_interp.results import single
from mlp_interp.sites import Site, nearest_like, site_of
from mlp_interp.weights.factors import Ends, Factors, every

__all__ = ["MATRICES", "factors_of", "label_of"]

MATRICES = ("direct", "L1H3.OV", "L1H3.QK", "L2.in", "L2.out", "L2N15.in", "L2N15.out")
"""Examples of every kind of label; gated MLPs have ``L2.gate`` and ``L2.linear`` for ``L2.in``."""

_NAMED = (*MATRICES, "L1H3", "L2N15", "2.mlp")
_SITES = {
    "embed": "direct",
    "z": "OV",
    "pattern": "QK",
    "pre": "in",
    "pre_linear": "linear",
    "post": "out",
    "mlp_out": "out",
}
"""The matrices that end at a site, and the one that begins at the embeddings."""

_LABEL = re.compile(r"L(\d+)(?:(H|N)(\d+))?\.(OV|QK|in|gate|linear|out)")
_FAR = 31
"""Rotations are averaged over distances from 1 to this, unless one is asked for."""


def label_of(weights: Weights, matrix: Any) -> str:
    """The label of a matrix that somebody named, by it or as a site is named.

    Raises:
        ValueError: It means no matrix.
    """
    if isinstance(matrix, str) and (matrix == "direct" or _LABEL.fullmatch(matrix)):
        return matrix
    try:
        site = site_of(matrix, argument="matrix")
        name = _SITES[site.name]
    except (ValueError, KeyError) as error:
        given = matrix.label if isinstance(matrix, Site) else matrix
        raise ValueError(
            f"matrix={given!r} is none{nearest_like(given, _NAMED)}; wanted a label such as "
            f"{', '.join(MATRICES)}, or a Site of what comes out of it"
        ) from error
    if site.layer is None:
        return name
    units = "" if site == site.whole else f"{'N' if site.head is None else 'H'}{site.unit}"
    return f"L{site.layer}{units}.{'gate' if name == 'in' and weights.gated else name}"


def factors_of(weights: Weights, matrix: str, source: Any, distance: int | None) -> Factors:
    """The factors of a matrix by its label (see `label_of`), with its unit and how exact it is.

    Raises:
        ValueError: The model has no such matrix, a distance with a matrix that has none or out of
            range, or a source that the matrix's layer does not know.
    """
    found = _LABEL.fullmatch(matrix)
    if found is None:
        _no_distance(matrix, distance)
        return _direct(weights, streams_of(weights.model, source))
    layer, unit, name = int(found[1]), found[2], found[4]
    wants_head = name in ("OV", "QK")
    if wants_head != (unit == "H"):
        what = "a head, as L1H3.OV" if wants_head else "a layer or a neuron, as L2.out, L2N15.out"
        raise ValueError(f"matrix={matrix!r}; wanted {what}")
    sizes = {"layer": weights.n_layers, "head": weights.n_heads, "neuron": weights.d_mlp}
    index = int(found[3]) if unit else None
    for what, at in (("layer", layer), ("head" if unit == "H" else "neuron", index)):
        if at is not None and at >= sizes[what]:
            raise ValueError(
                f"matrix={matrix!r}; wanted a {what} from 0 to {sizes[what] - 1}, which the model "
                "has"
            )
    if name != "QK":
        _no_distance(matrix, distance)
    if wants_head:
        maker: Callable[..., Factors] = _ov if name == "OV" else _qk
        tokens = streams_of(weights.model, source)
        return maker(weights, tokens, layer, index, *((distance,) if name == "QK" else ()))
    weights.check_names(["post"], argument="matrix")
    if name == "out":
        whole = _out(weights, layer)
    else:
        receptor = _receptor(weights, matrix)
        whole = _in(weights, streams_of(weights.model, source), layer, receptor)
    if index is None:
        return whole
    return (whole if name == "out" else whole.transposed).of_rows([index])


def token_ends(streams: TokenStreams) -> Ends:
    """Tokens of a source as rows or columns."""
    return Ends("token", streams.tokens)


def readout(weights: Weights) -> tuple[Unembed, Float[Tensor, "token d_model"]]:
    """The readout, and its directions less their mean: logits over the mean of all tokens."""
    unembed = Unembed.of(weights.model)
    columns = single(unembed.weight).T
    return unembed, columns - columns.mean(0)


def _direct(weights: Weights, streams: TokenStreams) -> Factors:
    first = int(streams.name == "extended")
    unembed, columns = readout(weights)
    bias = single(unembed.bias)
    attrs = streams.attrs([first]) | {
        "unit": "logits",
        "exact": 0,
        "approximation": "the final norm divides by the scale of these streams alone"
        + (f"; {streams.approximation}" if not streams.exact[first] else ""),
    }
    rows = single(unembed.normalize(streams.stream(first)))
    factors = Factors(rows, columns, token_ends(streams), _vocabulary(weights), attrs)
    return factors.shifted(bias - bias.mean())


def _ov(weights: Weights, streams: TokenStreams, layer: int, head: int) -> Factors:
    """What a head that attends to a token alone adds to the logits, for sigma = 1.

    Without what it writes whatever it attends to, part of which processing moves elsewhere.
    """
    heads = Heads.of(weights, layer, scores=False)
    rows = weights.norm.standardize(streams.stream(layer)) @ heads.V[head]
    columns = readout(weights)[1] @ heads.O[head].T
    attrs = streams.attrs([layer]) | {"unit": "logits"}
    return Factors(rows, columns, token_ends(streams), _vocabulary(weights), attrs)


def _qk(
    weights: Weights, streams: TokenStreams, layer: int, head: int, distance: int | None
) -> Factors:
    """Scores of a head between query tokens (rows) and key tokens, biases and rotation in them."""
    heads = Heads.of(weights, layer)
    context = int(weights.model.cfg.n_ctx)
    if distance is None:
        distances = list(range(1, max(2, min(_FAR + 1, context))))
        said = f"mean over 1 to {distances[-1]}"
    else:
        distances = [count("distance", distance, least=0, most=context - 1)]
        said = str(distance)
    between = heads.relative(distances).mean(0)
    x = weights.norm.standardize(streams.stream(layer))
    rows = (x @ heads.Q[head] + heads.b_q[head]) @ between * heads.scale
    columns = x @ heads.K[head] + heads.b_k[head]
    attrs = streams.attrs([layer]) | {"unit": "attention score", "distance": said}
    return Factors(rows, columns, token_ends(streams), token_ends(streams), attrs)


def _receptor(weights: Weights, matrix: str) -> Receptor:
    """What a layer's neurons, or one of them, read with.

    Raises:
        ValueError: Gated MLPs read with two matrices, others with one.
    """
    neurons, name = matrix.split(".")
    vectors = Vectors.of(weights, int(neurons[1:].split("N")[0]))
    wanted = ("gate", "linear") if weights.gated else ("in",)
    if name not in wanted:
        kind = "gated, and read with two matrices" if weights.gated else "not gated"
        named = " or ".join(f"{neurons}.{word}" for word in wanted)
        raise ValueError(f"matrix={matrix!r}: the MLPs are {kind}; wanted {named}")
    return vectors.linear if name == "linear" and vectors.linear is not None else vectors.receptor


def _in(weights: Weights, streams: TokenStreams, layer: int, receptor: Receptor) -> Factors:
    """Pre-activations of neurons (columns) that read tokens."""
    rows = weights.norm.standardize(streams.stream(layer))
    attrs = streams.attrs([layer]) | {"unit": "pre-activation"}
    if not weights.parallel:
        said = "MLPs also read what attention of their own block brings, which is left out"
        attrs |= {"exact": 0, "approximation": attrs.get("approximation", said)}
    columns = Ends("neuron", every(weights.d_mlp, weights), layer)
    factors = Factors(rows, receptor.folded, token_ends(streams), columns, attrs)
    return factors.shifted(receptor.bias_folded)


def writing(weights: Weights) -> dict[str, Any]:
    """What results say of value vectors: ``exact``, and ``approximation`` where they are not.

    Where a norm stands between an MLP and the stream, it divides what all neurons write by one
    number. That changes no direction, and no neuron's size beside the others.
    """
    if not weights.post_norms:
        return {"exact": 1}
    said = "the norm after the MLP is taken to divide by 1; it divides by what all neurons write"
    return {"exact": 0, "approximation": said}


def _out(weights: Weights, layer: int) -> Factors:
    """What value vectors (rows) add to logits for an activation of 1 and sigma = 1."""
    rows = Ends("neuron", every(weights.d_mlp, weights), layer)
    value = Vectors.of(weights, layer).value_folded
    attrs = {"unit": "logits per activation", **writing(weights)}
    return Factors(value, readout(weights)[1], rows, _vocabulary(weights), attrs)


def _vocabulary(weights: Weights) -> Ends:
    return Ends("token", every(weights.d_vocab, weights))


def _no_distance(matrix: str, distance: Any) -> None:
    if distance is not None:
        raise ValueError(f"distance={distance!r} with matrix={matrix!r}; wanted it with QK alone")
