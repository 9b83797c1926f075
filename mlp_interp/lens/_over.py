"""`over`: what layers say over a corpus, with errors."""

from collections.abc import Mapping
from typing import Any

import torch
import xarray as xr

from mlp_interp import corpus as corpora
from mlp_interp.corpus import SweepOptions
from mlp_interp.lens._read import Lenses, chosen_layers, lenses_of
from mlp_interp.lens.labels import finished
from mlp_interp.lens.means import EACH, LensMeans
from mlp_interp.models import Weights
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.padding import which_count
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.results import mean_and_error_over

__all__ = ["over"]

_PAIRS = ("kl_pairs", "agreement_pairs")


@own_mode()
@torch.no_grad()
def over(
    model: Model,
    corpus: Any,
    lens: Lenses = None,
    *,
    attention_mask: Any = None,
    layers: Any = None,
    first: int = 1,
    by_position: bool = False,
    sweep: SweepOptions = SweepOptions(),
) -> xr.Dataset:
    """What the model would say if it stopped at each layer, on average over a corpus.

    Means are over the positions of each sequence, then over sequences, whose spread gives the
    errors. As in `read`, a distance is one between what a lens shows: of the model and the lens.

    Args:
        model: The model.
        corpus: A `Corpus`; tokens ``[sequence, pos]``, padded or not; texts.
        lens: The lens, None for `logit`; or several by names, along a new dim ``lens``.
        attention_mask: 1 where text is, 0 where padding is; None tells it by the rule of
            `mlp_interp.models.padding`.
        layers: Which layers, the number of blocks for the final stream; None for all.
        first: Position of each text from which on positions count: 1 leaves out the first, and BOS.
        by_position: Whether to give means at each position, too: the first ones of a text, with
            little before them, are unlike the others.
        sweep: Batches, where finished shards are kept, on what machines.

    Returns:
        A Dataset along ``layer``, the stream that enters it: ``kl_output``, ``kl_input``,
        ``entropy``, ``agrees``, ``logp_next``, ``logp_output``, ``logp_input`` as in `read`, each
        with its standard error ``*_se``; ``kl_output_quantile`` and ``rank_…_quantile`` over all
        positions (right to 2.3%); ``kl_pairs`` (KL(layer‖other), nats) and ``agreement_pairs``
        (share of positions at which the two have the same likeliest token). With `by_position` all
        that has an error also as ``*_by_position`` along ``pos``, over the sequences that reach it,
        with ``*_by_position_se``.

    Raises:
        ValueError: As `read` and `mlp_interp.sweep`.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> model = load_model("nano")
        >>> found = over(model, load_corpus("nano", model, sequences=4, length=32))
        >>> bool(found.kl_output[1] > found.kl_output[3]), float(found.agrees[4])
        (True, 1.0)
    """
    weights = Weights.of(model)
    named = lenses_of(model, lens)
    texts = padded_texts(model, corpus, attention_mask)
    counts = which_count(model, texts.tokens, texts.real, first)
    reducers = {
        name: LensMeans(
            lens=one,
            named=f"{one!r} {one.digest()}",
            layers=chosen_layers(one, layers, weights.n_layers),
            first=first,
            by_position=by_position,
        )
        for name, one in named.items()
    }
    for one in named.values():
        later = counts.roll(-one.ahead, 1)[:, : counts.shape[1] - one.ahead]
        if one.ahead >= texts.shortest or not bool((counts[:, : later.shape[1]] & later).any()):
            raise ValueError(
                f"lens={one!r} with texts of {texts.shortest} tokens, first={first}; wanted longer "
                "ones"
            )
    swept = corpora.sweep(model, texts, reducers, options=sweep)
    attrs = dict(next(iter(swept.values())).attrs)
    attrs = {k: v for k, v in attrs.items() if k not in ("reducer", "analysis")}
    found = finished(
        model,
        {name: _summary(one) for name, one in swept.items()},
        named,
        {**attrs, "errors": "standard error over sequences", "first": first},
        single=not isinstance(lens, Mapping),
    )
    return found.assign_attrs(sequences=len(texts.tokens), analysis="lens over a corpus")


def _summary(found: xr.Dataset) -> xr.Dataset:
    """Means over sequences, and their errors."""
    kept = [name for name in found.data_vars if "sequence" not in found[name].dims]
    summary = found[kept]
    for name in EACH:
        summary[name], summary[f"{name}_se"] = mean_and_error_over(found[name], "sequence")
    for name in _PAIRS:
        summary[name] = found[name].mean("sequence")
    return summary.drop_attrs(deep=False)
