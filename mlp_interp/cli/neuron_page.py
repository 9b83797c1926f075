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
from mlp_interp.neurons import memories, neuron_page
from mlp_interp.neurons.page.page import checked_request
from mlp_interp.prompts.display import visible
from mlp_interp.results import save
from mlp_interp.sites import Site
from mlp_interp.views.numbers import number, percent

__all__ = ["build", "memories_file", "summary", "text_of", "write"]


def build(
    model: Model,
    label: str,
    corpus: Mapping[str, Any],
    *,
    page: Path,
    data: Path,
    sweep: SweepOptions,
    options: Mapping[str, Any],
    memory: bool = True,
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
        memory: Whether to ask, too, if its value says what follows where it is most active.

    Returns:
        The summary, as the terminal shows it.
    """
    site = checked_request(model, label, options["k"])
    text = text_of(model, corpus)
    compute = partial(neuron_page, model, site, text, **options)
    asked = partial(_memory, model, site, text, options) if memory else None
    return summary(*write(compute, page=page, data=data, sweep=sweep, memory=asked))


def memories_file(data: Path) -> Path:
    """Where the numbers of a neuron as a memory go: beside the others."""
    return data.with_suffix(f".memories{data.suffix}")


def _memory(
    model: Model,
    site: Site,
    text: Corpus,
    options: Mapping[str, Any],
    page: xr.Dataset,
    *,
    sweep: SweepOptions,
) -> xr.Dataset:
    """A neuron as a memory, among the others of its layer; places count as on its page."""
    wanted = {"k": options["k"], "seed": options["seed"], "first": int(page.attrs["first"])}
    found = memories(model, text, layers=site.layer, sweep=sweep, **wanted)
    return found.sel(neuron=[site.unit])


def text_of(model: Model, corpus: Mapping[str, Any]) -> Corpus:
    """The corpus that options name."""
    options = {key: value for key, value in corpus.items() if key != "source"}
    return load_corpus(corpus["source"], model, progress=sys.stderr.isatty(), **options)


def write(
    compute: Callable[..., xr.Dataset],
    *,
    page: Path,
    data: Path,
    sweep: SweepOptions,
    memory: Callable[..., xr.Dataset] | None = None,
) -> tuple[xr.Dataset, xr.Dataset | None]:
    """Compute a page, and write it and its numbers.

    Args:
        compute: Gives the page; takes ``sweep``.
        memory: Gives the unit as a memory; takes the page, and ``sweep``. None leaves that out.
        page: As of `build`.
        data: As of `build`.
        sweep: As of `build`.

    Returns:
        What the two gave.
    """
    parts = page.with_name(page.name + ".parts") if sweep.checkpoint is None else sweep.checkpoint
    kept = replace(sweep, checkpoint=parts)
    result = compute(sweep=kept)
    found = None if memory is None else memory(result, sweep=kept)
    views.neuron(result, memories=found).save(page)
    save(result, data)
    if found is not None:
        save(found, memories_file(data))
    if sweep.checkpoint is None:
        shutil.rmtree(parts, ignore_errors=True)
    return result, found


def summary(page: xr.Dataset, memory: xr.Dataset | None = None) -> list[str]:
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
    lines += [] if memory is None else _remembered(memory.isel(layer=0, neuron=0))
    near = page.sel(by="value")
    cosines = zip(near["similar"].values, near["similar_value_cosine"].values, strict=True)
    named = [f"{label} {number(cosine)}" for label, cosine in list(cosines)[:4]]
    return [visible(line) for line in (*lines, f"writes like {', '.join(named)}")]


def _remembered(memory: xr.Dataset) -> list[str]:
    """Whether what follows its triggers is what it says, beside chance."""
    if not bool(memory["agreement"].notnull()):
        return ["no text goes on after the places where it is most active"]
    agreed, by_chance = (percent(memory[x]) for x in ("agreement", "agreement_chance"))
    lift, usual = (number(memory[x]) for x in ("lift", "lift_chance"))
    return [
        "what follows where it is most active, beside other values of its layer",
        f"  is what it promotes most in {agreed} (chance {by_chance}, "
        f"p = {number(memory['agreement_p'])})",
        f"  is raised by {lift} sd of all tokens (chance {usual}, p = {number(memory['lift_p'])})",
    ]


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
