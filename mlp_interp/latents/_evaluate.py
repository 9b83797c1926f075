"""`evaluate`: what a dictionary explains of a place, and what the model loses with it there."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from mlp_interp.corpus import SweepOptions, sweep
from mlp_interp.corpus.reducers import Mean
from mlp_interp.dictionaries import Dictionary
from mlp_interp.edits import Edit
from mlp_interp.latents.spliced import (
    Batch,
    Measured,
    check_one_layer,
    measured,
    put,
    read_in,
    runs_of,
    sites_of,
    splice,
)
from mlp_interp.latents.sums import Sums
from mlp_interp.metrics import Effects
from mlp_interp.models import describe
from mlp_interp.models.indices import count
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.padding import Padded, which_count
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.results import described, mean_and_error, mean_and_error_over, to_numpy, variable
from mlp_interp.runs import Runner
from mlp_interp.sites import Site

__all__ = ["evaluate", "losses", "site_mean"]

_UNITS = {"kl": "nats", "delta_loss": "nats per token", "top1_changed": "fraction"}


@own_mode()
@torch.no_grad()
def evaluate(
    model: Model,
    dictionary: Dictionary,
    corpus: Any,
    *,
    first: int = 1,
    batch_size: int = 8,
    attention_mask: Any = None,
) -> xr.Dataset:
    """What a dictionary explains of its place, and what the model loses when it stands there.

    The headline is ``kl`` of ``"dictionary"``, in nats, beside that of ``"zero"`` and of ``"mean"``
    in the same place: it means something whether the place matters to the model or not. The
    recovered share of the loss is a ratio, and where removing the place changes the loss by less
    than two standard errors it is NaN, for then it is noise over noise.

    The first position is left out of both the splice and the baselines: what is lost there is the
    resting place of attention, and would make every dictionary look good. A small share of
    variance left over does not say that single latents mean anything.

    Args:
        model: The model.
        dictionary: An SAE or transcoder for it, of one layer.
        corpus: A `Corpus`; tokens ``[sequence, pos]``, padded or not; texts. Others than those that
            it was trained on.
        first: Position of each text from which on tokens count and are spliced: 1 leaves out the
            first, and BOS.
        batch_size: Sequences that are run at a time.
        attention_mask: 1 where text is, 0 where padding is; None tells it by the rule of
            `mlp_interp.models.padding`.

    Returns:
        A Dataset. ``fvu`` (variance left over: a ratio of sums), ``cosine``, ``norm_ratio``;
        ``l0``, ``l0_quantile``, ``dead``, ``dense``; ``density`` and ``mean_active`` (latent);
        ``fvu_by_pos``, ``l0_by_pos``, ``kl_by_pos``. Along ``splice`` (dictionary, zero, mean):
        ``kl``, ``delta_loss``, ``top1_changed``, each with ``_se``. ``clean_loss`` with ``_se``;
        ``recovered`` with ``_se`` along ``baseline`` (zero, mean): one less ``delta_loss`` of the
        dictionary over that of the baseline.

    Raises:
        ValueError: A dictionary of another model or processing; texts of another model.

    References:
        Gao et al., "Scaling and evaluating sparse autoencoders", 2024; Karvonen et al., "SAEBench",
        2025.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> from mlp_interp.latents import train
        >>> model = load_model("nano")
        >>> corpus = load_corpus("nano", model, sequences=8, length=64)
        >>> sae = train(model, corpus, "2.mlp", n_latents=64, k=8, steps=3, batch_size=64)
        >>> found = evaluate(model, sae, corpus)
        >>> found.kl.dims, float(found.l0) <= 8, float(found.kl.sel(splice="zero")) > 0
        (('splice',), True, True)
    """
    count("batch_size", batch_size)
    runner = Runner.of(model)
    check_one_layer(runner.weights, dictionary)
    texts = padded_texts(model, corpus, attention_mask)
    counts = which_count(model, texts.tokens, texts.real, first)
    mean = site_mean(model, texts, dictionary.site, first, batch_size)
    sums = Sums(dictionary, texts.tokens.shape[1])
    found = measured(
        runner,
        runs_of(runner, texts, counts, sites_of(runner.weights, [dictionary]), batch_size),
        partial(_changes, dictionary, sums, mean),
    )
    splices = ["dictionary", "zero", "mean"]
    by_pos = found.effects.kl.nanmean(1)
    result = xr.Dataset(
        {
            **losses(found.effects, "splice"),
            **_clean(found),
            **sums.variables(),
            "kl_by_pos": variable(("splice", "pos"), by_pos, unit="nats"),
        },
        coords={
            "splice": splices,
            "pos": np.arange(texts.tokens.shape[1]),
            "quantile": [0.05, 0.5, 0.95],
        },
    )
    delta = to_numpy(found.effects.delta_loss.nanmean(-1))
    per_sequence = xr.DataArray(delta, dims=("splice", "sequence"))
    result = result.assign(_recovered(per_sequence.assign_coords(splice=splices)))
    return described(result, ABOUT).assign_attrs(
        {
            **texts.attrs,
            **describe(model),
            "analysis": "evaluation of a dictionary",
            "dictionary": repr(dictionary),
            "place": dictionary.site.label,
            "unit": "nats",
            "first": first,
            "counted": int(counts.sum()),
            "errors": "standard error over sequences",
            "exact": 1,
        }
    )


def _changes(
    dictionary: Dictionary, sums: Sums, mean: Tensor, batch: Batch
) -> dict[str, list[Edit]]:
    """The dictionary spliced in, and what is put in its place."""
    sums.add(*read_in(batch.run, dictionary), batch.counts)
    site, counts = dictionary.site, batch.counts
    return {
        "dictionary": [splice(dictionary, counts)],
        "zero": [put(site, 0.0, counts)],
        "mean": [put(site, mean, counts)],
    }


def site_mean(model: Model, texts: Padded, site: Site, first: int, batch_size: int) -> Tensor:
    """Mean of what is at a place, over all tokens of a corpus that count."""
    some = which_count(model, texts.tokens, texts.real, first).any(1)  # a sweep wants one in each
    padding = (
        None if texts.padding is None else replace(texts.padding, real=texts.padding.real[some])
    )
    moved = None if texts.moved is None else texts.moved[some]
    texts = replace(texts, tokens=texts.tokens[some], padding=padding, moved=moved)
    reducer = Mean(site=site.name, layers=(site.layer or 0,), first=first)
    options = SweepOptions(batch_size=batch_size)
    found = sweep(model, texts, {"mean": reducer}, options=options)["mean"]
    return torch.from_numpy(found["mean"].isel(layer=0).values)


def losses(effects: Effects, dim: str) -> dict[str, Any]:
    """Means over sequences of effects ``[change, sequence, pos]``, with their errors."""
    found = {}
    for name, values in effects._asdict().items():
        mean, error = mean_and_error(values.nanmean(-1))
        found[name] = variable(dim, mean, unit=_UNITS[name])
        found[f"{name}_se"] = variable(dim, error, unit=_UNITS[name])
    return found


def _clean(found: Measured) -> dict[str, Any]:
    mean, error = mean_and_error(found.loss.nanmean(-1))
    return {
        "clean_loss": variable((), float(mean), unit="nats per token"),
        "clean_loss_se": variable((), float(error), unit="nats per token"),
    }


def _recovered(delta: xr.DataArray) -> dict[str, xr.DataArray]:
    """The share of a removed place's loss that a dictionary brings back; NaN where none is."""
    mine, others = delta.sel(splice="dictionary", drop=True), delta.sel(splice=["zero", "mean"])
    others = others.rename(splice="baseline")
    top, (bottom, error) = mine.mean("sequence"), mean_and_error_over(others, "sequence")
    matters = np.abs(bottom) >= 2 * error
    share = (1 - top / bottom).where(matters)
    _, share_error = mean_and_error_over((mine - (1 - share) * others) / bottom, "sequence")
    attrs = {"unit": "fraction", "long_name": "loss brought back, of what removing the place costs"}
    error = share_error.where(matters).assign_attrs(unit="fraction")
    return {"recovered": share.assign_attrs(attrs), "recovered_se": error}


ABOUT = {
    "kl": "divergence of the prediction with the splice from the clean one",
    "delta_loss": "loss with the splice less the clean one",
    "top1_changed": "share of tokens after which another next token is the likeliest",
    "clean_loss": "loss of the model as it is",
    "recovered": "loss brought back, of what removing the place costs",
    "l0_quantile": "quantiles of latents active at a token",
    "l0_by_pos": "mean number of latents active, by position",
    "fvu_by_pos": "share of variance left over, by position",
    "kl_by_pos": "divergence with the splice from the clean prediction, by position",
    "density": "share of tokens at which each latent is active",
    "mean_active": "mean activation of each latent where it is active",
}
