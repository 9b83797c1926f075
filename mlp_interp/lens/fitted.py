"""Lenses that are computed from a corpus in closed form: mean shifts, and least squares."""

import math
from dataclasses import replace
from typing import Any

import torch
import xarray as xr

from mlp_interp import corpus as corpora
from mlp_interp.corpus import SweepOptions
from mlp_interp.lens.lens import Lens, about
from mlp_interp.lens.moments import StreamMoments, solved
from mlp_interp.models import Weights
from mlp_interp.models.indices import count
from mlp_interp.models.options import checked_number
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.padding import which_count
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import padded_texts

__all__ = ["linear", "mean"]


@own_mode()
@torch.no_grad()
def mean(
    model: Model,
    corpus: Any,
    *,
    attention_mask: Any = None,
    first: int = 1,
    sweep: SweepOptions = SweepOptions(),
) -> Lens:
    """The logit lens with the mean of each layer's stream moved to the mean of the final one.

    It says how much of a better lens's gain is nothing but a shift.

    Args:
        model: The model.
        corpus: A `Corpus`; tokens ``[sequence, pos]``, padded or not; texts.
        attention_mask: 1 where text is, 0 where padding is; None tells it by the rule of
            `mlp_interp.models.padding`.
        first: Position of each text from which on tokens count: 1 leaves out the first, and BOS.
        sweep: Batches, where finished shards are kept, on what machines.

    Raises:
        ValueError: As `mlp_interp.sweep`; no token counts.

    Example:
        >>> from mlp_interp import load_model
        >>> mean(load_model("nano"), torch.arange(40).reshape(4, 10)).bias.shape
        torch.Size([5, 192])
    """
    reducer = StreamMoments(first=first, products=False)
    found = _moments(model, corpus, attention_mask, reducer, sweep, least=1)
    means = torch.from_numpy(found["sum"].values)
    made = Lens(**about(model, "mean"))
    return replace(made, bias=(means[-1] - means).float()).named(**_said(found))


@own_mode()
@torch.no_grad()
def linear(
    model: Model,
    corpus: Any,
    *,
    attention_mask: Any = None,
    ahead: int = 0,
    ridge: float | int = 1e-5,
    first: int = 1,
    sweep: SweepOptions = SweepOptions(),
) -> Lens:
    """The affine map from each layer's stream to the final one that has the least square error.

    The exact minimiser over a corpus, without training and without a seed. What is least is the
    error in the stream, not the distance of the predictions: `tuned` is closer in KL.

    Args:
        model: The model.
        corpus: A `Corpus`; tokens ``[sequence, pos]``, padded or not; texts.
        attention_mask: As in `mean`.
        ahead: How many positions later the final stream stands: with 1, the lens reads off a stream
            what the model will say one token further on (a "future lens").
        ridge: What is added to the variances, as a share of their mean.
        first: As in `mean`.
        sweep: As in `mean`.

    Raises:
        ValueError: Fewer tokens than two a dimension of the stream, `ahead` beyond the texts,
            a negative `ridge`, or as `mlp_interp.sweep`.

    References:
        Din et al., "Jump to Conclusions: Short-Cutting Transformers with Linear Transformations",
        2023; Pal et al., "Future Lens", 2023.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> model = load_model("nano")
        >>> corpus = load_corpus("nano", model, sequences=16, length=64)
        >>> linear(model, corpus, ahead=1)
        Lens('linear', ahead=1, model='nano')
    """
    ridge = checked_number("ridge", ridge, lambda x: 0 <= x < math.inf, "a finite number from 0")
    weights = Weights.of(model)
    count("ahead", ahead, least=0)
    reducer = StreamMoments(ahead=ahead, first=first)
    least = 2 * weights.d_model
    found = _moments(model, corpus, attention_mask, reducer, sweep, least=least)
    square, cross, x, y = (
        torch.from_numpy(found[name].values) for name in ("square", "cross", "sum", "target")
    )
    maps = [solved(*pair, x[n], y, ridge) for n, pair in enumerate(zip(square, cross, strict=True))]
    weight, bias = (torch.stack(parts).float() for parts in zip(*maps, strict=True))
    if ahead == 0:  # whatever the ridge makes of it
        weight[-1], bias[-1] = torch.eye(weights.d_model), 0
    made = replace(Lens(**about(model, "linear")), weight=weight, bias=bias, ahead=ahead)
    return made.named(ridge=ridge, **_said(found))


def _moments(
    model: Model,
    corpus: Any,
    attention_mask: Any,
    reducer: StreamMoments,
    options: SweepOptions,
    *,
    least: int,
) -> xr.Dataset:
    texts = padded_texts(model, corpus, attention_mask)
    if reducer.ahead >= texts.shortest:
        raise ValueError(
            f"ahead={reducer.ahead} with texts of {texts.shortest} tokens; wanted fewer than that"
        )
    counts = which_count(model, texts.tokens, texts.real, reducer.first)
    counts = counts[:, : counts.shape[1] - reducer.ahead]
    if texts.real is not None:
        counts = counts & texts.real[:, reducer.ahead :]
    tokens = int(counts.sum())
    if tokens < least:
        raise ValueError(
            f"corpus has {tokens} tokens that count; wanted at least {least}, two a dimension "
            "of the stream"
        )
    return corpora.sweep(model, texts, reducer, options=options)[reducer.name]


def _said(found: xr.Dataset) -> dict[str, Any]:
    """What a lens says of its corpus."""
    names = ("data", "source", "split", "seed", "sha256", "tokens")
    return {name: found.attrs[name] for name in names if name in found.attrs}
