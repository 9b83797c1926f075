"""`virtual_weights`: from what a dictionary's latents write to what others read."""

from typing import Any, Literal

import torch
import xarray as xr

from mlp_interp.dictionaries import Dictionary
from mlp_interp.dictionaries.dictionary import AFTER_NORM
from mlp_interp.latents.spliced import check_one_layer
from mlp_interp.models import Weights
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.results import single
from mlp_interp.sites import SiteLike
from mlp_interp.weights._virtual import Side, between, reader_of, said, writer_of
from mlp_interp.weights.factors import Ends, every

__all__ = ["virtual_weights"]


@own_mode()
@torch.no_grad()
def virtual_weights(
    model: Model,
    writer: Dictionary | SiteLike,
    reader: Dictionary | SiteLike,
    *,
    k: int = 20,
    best: int = 100,
    side: Literal["high", "low"] = "high",
    progress: bool = False,
) -> xr.Dataset:
    """What each latent that writes adds to each latent that reads, through the stream between them.

    As `mlp_interp.weights.virtual_weights`, of latents: the decoder row of one times what the other
    reads with, for a norm that divides by 1; by how much an activation of 1 moves the other before
    it is decided whether that is active. It is the direct path alone. It knows nothing of which
    latents are ever active together: large weights between two that never are mean nothing.

    Args:
        model: The model.
        writer: A dictionary, or tokens or neurons by label (``"embed"``, ``"L0"``, ``"L0N5"``).
        reader: A dictionary that reads the stream or what an MLP reads of it (a transcoder, or an
            SAE of a stream, to which only another dictionary writes), or neurons or tokens by label
            (``"L2"``, ``"L2N7"``, ``"unembed"``).
        k: As of `mlp_interp.weights.virtual_weights`.
        best: As of `mlp_interp.weights.virtual_weights`.
        side: As of `mlp_interp.weights.virtual_weights`.
        progress: Show a bar.

    Returns:
        A Dataset as of `mlp_interp.weights.virtual_weights`, with ``null_sd`` and ``z`` against
        vectors of the same lengths in random directions.

    Raises:
        ValueError: A reader that is not above its writer, or reads what a module wrote; a
            dictionary that normalises what it reads, whose weights depend on the text; one of
            several layers or of another model; labels and counts as of
            `mlp_interp.weights.virtual_weights`.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> from mlp_interp.latents import train
        >>> model = load_model("nano")
        >>> corpus = load_corpus("nano", model, sequences=8, length=64)
        >>> options = {"reads": "mlp_in", "n_latents": 64, "k": 8, "steps": 3, "batch_size": 64}
        >>> first, later = (train(model, corpus, place, **options) for place in ("0.mlp", "2.mlp"))
        >>> found = virtual_weights(model, first, later, k=3, best=5)
        >>> str(found.row_text[17].values), str(found.best_column_text[0].values)[:3]
        ('L0F17', 'L2F')
    """
    weights = Weights.of(model)
    reads_stream = isinstance(reader, Dictionary) and reader.reads not in AFTER_NORM
    if reads_stream and not isinstance(writer, Dictionary):
        raise ValueError(
            f"writer={writer!r} with a reader of the stream itself; wanted a dictionary, or a "
            "reader behind a norm"
        )
    if isinstance(reader, Dictionary):
        read = _reading(weights, reader)
    else:
        read = reader_of(weights, reader)
    if isinstance(writer, Dictionary):
        written = _writing(weights, writer, kept=not reads_stream)
    else:
        written = writer_of(weights, writer)
    options: Any = {"k": k, "best": best, "side": side, "progress": progress}
    found = between(model, written, read, (writer, reader), **options)
    return found.assign_attrs(
        analysis="virtual weights of latents", writer=said(writer), reader=said(reader)
    )


def _writing(weights: Weights, one: Dictionary, *, kept: bool) -> Side:
    """What latents write, or what a norm keeps of it."""
    _check(weights, one, "writer")
    rows = one.W_dec.to(single(weights.W_U[:1]))
    after = one.layer - (one.writes == "resid_pre")
    return weights.norm.keep(rows) if kept else rows, _ends(weights, one), after


def _reading(weights: Weights, one: Dictionary) -> Side:
    """What latents read with, the norm before them folded in."""
    _check(weights, one, "reader")
    if one.reads not in (*AFTER_NORM, "resid_pre", "resid_post"):
        raise ValueError(
            f"reader={one!r} reads what a module writes; wanted one that reads the stream, or what "
            "an MLP reads"
        )
    rows, block = one.W_enc.T, one.layer + (one.reads == "resid_post")
    rows = rows.to(single(weights.W_U[:1]))
    if one.reads == "mlp_in":
        rows = rows * weights.block(one.layer).ln2.w
    return weights.norm.keep(rows) if one.reads in AFTER_NORM else rows, _ends(weights, one), block


def _ends(weights: Weights, one: Dictionary) -> Ends:
    return Ends("latent", every(one.n_latents, weights), one.layer)


def _check(weights: Weights, one: Dictionary, name: str) -> None:
    check_one_layer(weights, one, name=name)
    if one.normalize is not None:
        raise ValueError(
            f"{name}={one!r} has normalize={one.normalize!r}, which depends on text; wanted one "
            "without"
        )
