"""What `mlp-interp neuron` computes, writes and prints."""

import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import xarray as xr

from mlp_interp import views
from mlp_interp.corpus import Corpus, SweepOptions, load_corpus
from mlp_interp.models.protocol import Model
from mlp_interp.neurons import neuron_page
from mlp_interp.neurons.page.page import checked_request
from mlp_interp.prompts.display import visible
from mlp_interp.results import save
from mlp_interp.views.numbers import number, percent

__all__ = ["build", "summary", "text_of", "write"]


def build(
    model: Model,
    label: str,
    corpus: Mapping[str, Any],
    *,
    page: Path,
    data: Path,
    sweep: SweepOptions,
    options: Mapping[str, Any],
) -> list[str]:
    """Compute a neuron's page, write it and its numbers.

    Args:
        model: The model.
        label: The neuron, as ``L3N669``.
        corpus: Arguments of `load_corpus`; ``source`` is the first one.
        page: Where the HTML goes.
        data: Where the numbers go.
        sweep: How the corpus is run; without a checkpoint there is one beside the page, which is
            deleted in the end.
        options: Others of `neuron_page`.

    Returns:
        The summary, as the terminal shows it.
    """
    site = checked_request(model, label, options["k"])
    text = text_of(model, corpus)
    compute = partial(neuron_page, model, site, text, **options)
    return summary(write(compute, page=page, data=data, sweep=sweep))


def text_of(model: Model, corpus: Mapping[str, Any]) -> Corpus:
    """The corpus that options name."""
    options = {key: value for key, value in corpus.items() if key != "source"}
    return load_corpus(corpus["source"], model, progress=sys.stderr.isatty(), **options)


def write(
    compute: Callable[..., xr.Dataset], *, page: Path, data: Path, sweep: SweepOptions
) -> xr.Dataset:
    """Compute a page, and write it and its numbers.

    Args:
        compute: Gives the page; takes ``sweep``.
        page: As of `build`.
        data: As of `build`.
        sweep: As of `build`.
    """
    parts = page.with_name(page.name + ".parts") if sweep.checkpoint is None else sweep.checkpoint
    result = compute(sweep=replace(sweep, checkpoint=parts))
    views.neuron(result).save(page)
    save(result, data)
    if sweep.checkpoint is None:
        shutil.rmtree(parts, ignore_errors=True)
    return result


def summary(page: xr.Dataset) -> list[str]:
    """A few lines that say what the neuron, or latent, does."""
    attrs = page.attrs
    share = percent(page["fraction"], page["fraction_se"])
    lines = [
        f"{page['component'].item()} of {attrs['model']}, {attrs['data']}",
        f"fires at {share} of {attrs['positions']:,} positions{_would(page)}",
        *(
            f"{verb:<10} {'  '.join(repr(str(word)) for word in page[f'{name}_text'].values[:6])}"
            for verb, name in (("promotes", "promoted"), ("suppresses", "suppressed"))
        ),
        *_examples(page),
        "without it, in total (directly)",
    ]
    for where, said in (("all", "everywhere"), ("firing", "where it fires")):
        lines += [f"  {said:<15} loss {_lost(page, 'delta_loss', where)} nats per token"]
        lines += [f"  {'':<15} KL {_lost(page, 'kl', where)} nats"]
    near = page.sel(by="value")
    cosines = zip(near["similar"].values, near["similar_value_cosine"].values, strict=True)
    named = [f"{label} {number(cosine)}" for label, cosine in list(cosines)[:4]]
    return [visible(line) for line in (*lines, f"writes like {', '.join(named)}")]


def _would(page: xr.Dataset) -> str:
    if "activation_volume" not in page:
        return ""
    return f"; would in {percent(page['activation_volume'])} of directions"


def _examples(page: xr.Dataset) -> list[str]:
    if not page.sizes.get("example", 0):
        return ["not active in this text"]
    shown = [f"  {_example(page, i)}" for i in range(min(3, page.sizes["example"]))]
    return ["most active at the token in [brackets]", *shown]


def _example(page: xr.Dataset, index: int) -> str:
    words = [
        f"[{text}]" if offset == 0 else str(text)
        for text, offset in zip(page["top_text"][index].values, page["context"].values, strict=True)
    ]
    return f"{float(page['top_activation'][index]):.2f}  {''.join(words)}"


def _lost(page: xr.Dataset, measure: str, where: str) -> str:
    here = page.sel({"measure": measure, "where": where})
    total, direct = here.sel(path="total"), here.sel(path="direct")
    return f"{number(total['effect'], total['effect_se'])} ({number(direct['effect'])})"
