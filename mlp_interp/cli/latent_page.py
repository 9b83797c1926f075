"""What `mlp-interp latent` computes, writes and prints."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import xarray as xr

from mlp_interp import latents
from mlp_interp.cli.neuron_page import summary, text_of, write
from mlp_interp.corpus import SweepOptions
from mlp_interp.dictionaries import Dictionary
from mlp_interp.dictionaries.naming import latent_site
from mlp_interp.models import Weights
from mlp_interp.models.protocol import Model
from mlp_interp.views.numbers import number, percent

__all__ = ["build"]


def build(
    model: Model,
    dictionary: Dictionary,
    label: str | None,
    corpus: Mapping[str, Any],
    *,
    page: Path,
    data: Path,
    sweep: SweepOptions,
    options: Mapping[str, Any],
) -> list[str]:
    """Evaluate a dictionary; compute a latent's page, write it and its numbers.

    Args:
        model: The model.
        dictionary: The dictionary.
        label: The latent, as ``L2F17``; None for none.
        corpus: Arguments of `load_corpus`; ``source`` is the first one.
        page: Where the HTML goes.
        data: Where the numbers go.
        sweep: As of `neuron_page.build`.
        options: Others of `mlp_interp.latents.page`.

    Returns:
        The summary, as the terminal shows it.
    """
    dictionary = dictionary.to(Weights.of(model).device)
    dictionary.check(Weights.of(model))
    if label is not None:  # before the corpus is read
        latent_site(dictionary, label, others=())
    text = text_of(model, corpus)
    found = latents.evaluate(model, dictionary, text, batch_size=sweep.batch_size)
    lines = _evaluated(dictionary, found)
    if label is None:
        return lines
    compute = partial(latents.page, model, dictionary, label, text, **options)
    return [*lines, "", *summary(*write(compute, page=page, data=data, sweep=sweep))]


def _evaluated(dictionary: Dictionary, found: xr.Dataset) -> list[str]:
    """What it leaves over, and what the model loses with it."""
    lost = [
        f"{by} {number(found['kl'].sel(splice=by), found['kl_se'].sel(splice=by))}"
        for by in found["splice"].values
    ]
    active = f"{float(found['l0']):.1f} of {dictionary.n_latents:,} latents active at a token"
    dead, dense = percent(found["dead"]), percent(found["dense"])
    return [
        repr(dictionary),
        f"of {found.attrs['data']}",
        f"leaves over {percent(found['fvu'])} of the variance; {active}",
        f"of its latents {dead} are never active, and {dense} at over a tenth of tokens",
        f"KL (nats) with this in its place: {', '.join(lost)}",
    ]
