"""Bounds of margins from their certificates alone, whoever found them."""

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int

from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.models.scan import blocks
from mlp_interp.reach._active_set import ROUNDING
from mlp_interp.reach._margin import said
from mlp_interp.reach._readout import Readout

__all__ = ["found_by", "leads", "with_certificate"]


@own_mode()
@torch.no_grad()
def with_certificate(model: Model, result: xr.Dataset) -> xr.Dataset:
    """The bounds of `reachable`, computed anew from its streams and weights, in float64.

    Nothing of the solver is used: any stream within the ball proves its own margin, and any weights
    that are not negative and sum to one prove that no stream has a larger one than they say. So the
    bounds hold whatever went wrong on the way to them.

    Args:
        model: The model.
        result: What `reachable` gave for it.

    Returns:
        The result with ``lower``, ``upper`` and ``reachable`` as computed here; without weights an
        ``upper`` is infinite.

    Raises:
        ValueError: It is another result, of another width, a stream is outside the ball, or weights
            are negative or do not sum to one.

    Example:
        >>> from mlp_interp import load_model
        >>> model = load_model("nano")
        >>> from mlp_interp.reach import reachable
        >>> found = reachable(model, [[" Paris", " London"]])
        >>> checked = with_certificate(model, found)
        >>> bool(abs(checked["upper"] - found["upper"]).max() < 1e-6)
        True
    """
    readout, streams = found_by(model, result)
    if not float(np.linalg.norm(streams, axis=1).max()) <= 1 + 1e-9:  # nor NaN
        raise ValueError("result has a stream outside the ball; wanted |n| <= sqrt(d_model)")
    _check_mean(readout, streams)
    ordered = bool(result.attrs["ordered"])
    sets, rows = result["token_id"].values, range(len(streams))
    lower = leads(readout, streams, sets, ordered)
    weights, ids = result["weight"].values, result["weight_id"].values
    upper = np.array(
        [
            _upper(readout, sets[n], ids[n][ids[n] >= 0], weights[n][ids[n] >= 0], ordered)
            for n in rows
        ]
    )
    proven = said(lower, upper, ROUNDING * readout.longest)
    return result.assign(
        lower=("set", lower, result["lower"].attrs),
        upper=("set", upper, result["upper"].attrs),
        reachable=("set", proven, result["reachable"].attrs),
    )


def found_by(model: Model, result: xr.Dataset) -> tuple[Readout, Float[np.ndarray, "set d_model"]]:
    """The readout that `reachable` asked, and the streams that it found, of length 1 or less.

    Raises:
        ValueError: It is another result, or of another width.
    """
    wanted = ("stream", "weight", "weight_id", "token_id", "violator_id")
    if any(name not in getattr(result, "variables", ()) for name in wanted):
        raise ValueError(f"result={type(result).__name__}; wanted the Dataset of reach.reachable")
    readout = Readout.of(model, np.atleast_1d(result.attrs.get("exclude", [])).tolist())
    streams = result["stream"].values / readout.radius
    width, d_model = streams.shape[1], len(readout.unembed.weight)
    if width != d_model:
        raise ValueError(f"result has streams of {width} numbers; wanted {d_model}")
    return readout, streams


def _check_mean(readout: Readout, streams: Float[np.ndarray, "set d_model"]) -> None:
    if readout.unembed.norm.kind == "layer" and float(np.abs(streams.mean(1)).max()) > 1e-9:
        raise ValueError("result has a stream with a mean; wanted one as a LayerNorm leaves it")


def leads(
    readout: Readout,
    streams: Float[np.ndarray, "set d_model"],
    sets: Int[np.ndarray, "set k"],
    ordered: bool,
) -> Float[np.ndarray, " set"]:
    """By how much each set leads at its stream; negative where others are above it."""
    logits = _logits(readout, streams)
    found = [_lower(readout, row, one, ordered) for row, one in zip(logits, sets, strict=True)]
    return np.array(found)


def _logits(readout: Readout, streams: Float[np.ndarray, "set d_model"]) -> np.ndarray:
    found = np.empty((len(streams), readout.unembed.d_vocab))
    for block in blocks(readout.unembed.d_vocab):
        rows = readout.rows(np.arange(block.start, block.stop))
        found[:, block] = streams @ rows.T + readout.bias[block]
    return found


def _lower(
    readout: Readout, logits: Float[np.ndarray, " token"], tokens: np.ndarray, ordered: bool
) -> float:
    rivals = readout.rivals.copy()
    rivals[tokens] = False
    own, best = logits[tokens], float(logits[rivals].max())
    if ordered:
        return float((own - np.append(own[1:], best)).min())
    return float(own.min()) - best


def _upper(
    readout: Readout,
    tokens: Int[np.ndarray, " k"],
    ids: Int[np.ndarray, " support"],
    weights: Float[np.ndarray, " support"],
    ordered: bool,
) -> float:
    """``|sum of weighted differences| + their biases``."""
    if not len(ids):
        return np.inf
    inside = np.isin(ids, tokens)
    own = np.zeros(len(tokens))
    own[[int(np.flatnonzero(tokens == x)[0]) for x in ids[inside]]] = weights[inside]
    rivals = weights[~inside]
    apart = abs(float(own.sum()) - 1), abs(float(rivals.sum()) - (own[-1] if ordered else 1))
    if not float(weights.min()) >= 0 or max(apart) > 1e-9 or not readout.rivals[ids[~inside]].all():
        raise ValueError(
            "result has weights that are no certificate; wanted them as reachable gives"
        )
    if ordered:  # a lead over the next: what a token has, the next one loses
        own = own - np.append(0.0, own[:-1])
    every = np.concatenate([tokens, ids[~inside]])
    signed = np.concatenate([own, -rivals])
    return float(np.linalg.norm(signed @ readout.rows(every)) + signed @ readout.bias[every])
