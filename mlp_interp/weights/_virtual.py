"""Weights that no matrix of the model holds: between what one writes and what another reads."""

import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.models import Weights
from mlp_interp.models.options import check_counts
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.models.token_streams import streams_of
from mlp_interp.models.vectors import Vectors
from mlp_interp.results import single, variable
from mlp_interp.sites import Site, SiteLike
from mlp_interp.weights._table import ranked
from mlp_interp.weights.factors import Ends, Factors, every
from mlp_interp.weights.matrices import readout, writing

__all__ = ["Side", "between", "reader_of", "said", "virtual_weights", "writer_of"]

_LAYER = re.compile(r"L(\d+)")

Side = tuple[Float[Tensor, "_ d_model"], Ends, int]


@own_mode()
@torch.no_grad()
def virtual_weights(
    model: Model,
    writer: SiteLike,
    reader: SiteLike,
    *,
    k: int = 20,
    best: int = 100,
    side: Literal["high", "low"] = "high",
    progress: bool = False,
) -> xr.Dataset:
    """What each unit that writes adds to each unit that reads, through the stream between them.

    Neuron to neuron it is the value vector times the folded receptor of the other: by how much an
    activation of 1 moves the other's pre-activation, for a norm that divides by 1. It is the direct
    path alone; what attention and MLPs between make of it is another.

    Chance: a vector of the same length in a random direction has products with standard deviation
    ``null_sd``, the product of the lengths over the root of the dimensions.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        writer: ``"embed"``: tokens; ``"L0"`` or ``"0.mlp"``: all neurons of a layer; ``"L0N5"``:
            one neuron. What is before the nonlinearity (``"0.pre"``) writes nothing.
        reader: ``"L2"`` or ``"2.mlp"``: all neurons of a later layer (of gated ones the gate's
            receptor), ``"L2N7"``: one, either also as what it reads (``"2.pre"``, ``"L2N7.pre"``);
            ``"unembed"``: tokens.
        k: Readers to name for each writer.
        best: The largest pairs of all.
        side: As in `table`.
        progress: Show a bar.

    Returns:
        A Dataset as of `table`, rows writers and columns readers, with ``null_sd`` of each row (for
        readers of their root mean square length) and ``z``, the value over it. ``exact`` is 0 where
        a norm stands between MLPs and the stream (Gemma 2, OLMo 2): all values of a layer then
        share a factor that depends on the text, which ``z`` is free of.

    Raises:
        ValueError: A label of neither, that the model has not, or a reader that is not above its
            writer; counts out of range; weights that are not finite.

    Example:
        >>> from mlp_interp import load_model
        >>> found = virtual_weights(load_model("nano"), "L0", "L2", k=3, best=5)
        >>> found["column_text"].shape, str(found["best_row_text"][0].values).startswith("L0N")
        ((768, 3), True)
    """
    weights = Weights.of(model)
    sides = writer_of(weights, writer), reader_of(weights, reader)
    found = between(model, *sides, (writer, reader), k=k, best=best, side=side, progress=progress)
    return found.assign_attrs(analysis="virtual_weights", writer=said(writer), reader=said(reader))


def said(end: object) -> str:
    """How a result writes one of the two ends."""
    if isinstance(end, Site):
        return end.label
    return str(end.tolist() if isinstance(end, np.ndarray | Tensor) else end)


def between(
    model: Model,
    writing_side: Side,
    reading_side: Side,
    named: tuple[Any, Any],
    *,
    k: int,
    best: int,
    side: Literal["high", "low"],
    progress: bool,
) -> xr.Dataset:
    """Products of what some vectors write and others read; options as of `virtual_weights`.

    Args:
        model: The model.
        writing_side: What is written, what that is, and after which block it is there.
        reading_side: What is read with, and in which block.
        named: What the caller calls the two, for the error.
        k: As of `virtual_weights`.
        best: As of `virtual_weights`.
        side: As of `virtual_weights`.
        progress: As of `virtual_weights`.

    Raises:
        ValueError: The reader is not above the writer.
    """
    weights = Weights.of(model)
    (written, rows, at), (read, columns, above) = writing_side, reading_side
    # In sequential blocks too, no MLP reads what itself or a later one writes.
    if above <= at:
        raise ValueError(
            f"reader={named[1]!r} does not read what writer={named[0]!r} writes; wanted a later one"
        )
    dimensions = weights.d_model - (weights.norm.kind == "layer")
    unit = f"{_UNITS[columns.kind]} per {'token' if rows.kind == 'token' else 'activation'}"
    about = writing(weights) if rows.kind == "neuron" else {"exact": 1}
    written, read = single(written), single(read)
    factors = Factors(written, read, rows, columns, {"unit": unit, **about})
    check_counts(k=k, best=best)
    most = {"k": min(k, len(read)), "best": min(best, len(written) * len(read))}
    found = ranked(model, factors, **most, side=side, progress=progress)
    length = read.square().sum(1).mean().sqrt()
    null = written.norm(dim=1) * length / dimensions**0.5
    found["null_sd"] = variable(
        "row", null, unit=unit, long_name="standard deviation in a random direction"
    )
    found["z"] = (found["value"] / found["null_sd"]).assign_attrs(
        unit="standard deviations", long_name="entry over that of a random direction"
    )
    return found


_UNITS = {"neuron": "pre-activation", "latent": "pre-activation", "token": "logits"}


def writer_of(weights: Weights, label: Any) -> Side:
    """What a label writes, as norms let it through.

    Raises:
        ValueError: It is none of `virtual_weights`.
    """
    if isinstance(label, str | Site) and label in ("embed", Site("embed")):
        streams = streams_of(weights.model, "embed")
        return weights.norm.keep(streams.stream(0)), Ends("token", streams.tokens), -1
    layer, neuron = _place(weights, "writer", label, "embed", ("post", "mlp_out"))
    return _some(Vectors.of(weights, layer).value_folded, weights, layer, neuron)


def reader_of(weights: Weights, label: Any) -> Side:
    """What a label reads with, the norm before it folded in.

    Raises:
        ValueError: It is none of `virtual_weights`.
    """
    if isinstance(label, str) and label == "unembed":
        ends = Ends("token", every(weights.d_vocab, weights))
        return readout(weights)[1], ends, weights.n_layers
    layer, neuron = _place(weights, "reader", label, "unembed", ("post", "pre", "mlp_out"))
    return _some(Vectors.of(weights, layer).receptor.folded, weights, layer, neuron)


def _some(vectors: Tensor, weights: Weights, layer: int, neuron: int | None) -> Side:
    ids = every(len(vectors), weights)
    if neuron is not None:
        vectors, ids = vectors[neuron, None], ids[neuron, None]
    return vectors, Ends("neuron", ids, layer), layer


def _place(
    weights: Weights, argument: str, label: Any, other: str, names: Sequence[str]
) -> tuple[int, int | None]:
    """Layer and neuron of a label of one of some activations.

    Raises:
        ValueError: It is no such label, or the model has no such neuron.
    """
    weights.check_names(["post"], argument=argument)
    layer = _LAYER.fullmatch(label) if isinstance(label, str) else None
    label = label if layer is None else Site("post", int(layer[1]))
    kind = None if isinstance(label, str | Site) else "neuron"
    site = weights.place(label, kind=kind, argument=argument, words=[other, "L0"])
    if site.layer is None or site.name not in names:
        raise ValueError(
            f"{argument}={site.label!r}; wanted {other!r}, a layer's neurons as 'L0' to "
            f"'L{weights.n_layers - 1}', or one of them as 'L0N{weights.d_mlp - 1}' (heads: "
            "subspaces)"
        )
    return site.layer, site.neuron
