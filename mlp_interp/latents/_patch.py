"""`patch`: exchange single latents between two runs, or what none of them explains."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import xarray as xr

from mlp_interp.dictionaries import Dictionary
from mlp_interp.dictionaries.naming import Latent
from mlp_interp.interchange import (
    Added,
    Direction,
    Engine,
    GivenRuns,
    Pair,
    Positions,
    Question,
    measure_added,
    merged,
    outcome_dataset,
    positions_of,
)
from mlp_interp.latents.exchanged import Change
from mlp_interp.latents.named import in_order, named, of_layers
from mlp_interp.latents.spliced import sites_of
from mlp_interp.metrics import MetricLike
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.prompts import Contrast
from mlp_interp.results import to_numpy
from mlp_interp.sites import Site, component_coords

__all__ = ["patch"]


@own_mode()
@torch.no_grad()
def patch(
    model: Model,
    contrast: Contrast,
    dictionaries: Dictionary | Sequence[Dictionary],
    metric: MetricLike = "logit_difference",
    *,
    latents: Latent | Sequence[Latent] | None = None,
    direction: Direction = "denoising",
    positions: Positions = "all",
    runs: GivenRuns | None = None,
    engine: Engine = "auto",
    memory: float = 512.0,
    progress: bool = False,
) -> xr.Dataset:
    """Exchange latents between two runs, one at a time, and read the metric each time.

    As `mlp_interp.patch`, of latents: one latent gets the activation that it has in the other run,
    the other latents and the error stay, and all later layers follow. The error is exchanged, too,
    as a component of its own: what it brings back is in the place, and in no latent. Which latents
    are active is not decided anew, so that of a TopK dictionary none takes the place of another.

    Values of single latents do not add up to that of the whole place, which `whole` gives; that of
    all components exchanged together is it exactly.

    Args:
        model: The model.
        contrast: Clean and corrupted prompts, whose pairs may differ in length.
        dictionaries: SAEs or transcoders, one or several, at most one of a layer.
        metric: As of `mlp_interp.patch`.
        latents: Which, one or several, by label (``"L2F17"``, ``"2.error"``, ``"2.skip"``), or by
            number where there is one dictionary. None for all that write something else in some
            prompt, and the errors: often hundreds. `attribution_patch` says in a few passes which
            are worth it.
        direction: As of `mlp_interp.patch`.
        positions: ``"all"`` exchanges a latent at all positions together, ``"each"`` at every
            position by itself, a list only at these.
        runs: As of `mlp_interp.patch`; they hold what dictionaries read and write.
        engine: As of `mlp_interp.patch`.
        memory: As of `mlp_interp.patch`.
        progress: Show a progress bar.

    Returns:
        A Dataset as of `mlp_interp.patch`, along ``component`` in place of site and layer; and
        ``whole`` along ``place``, the metric with the whole of what a dictionary is of exchanged.

    Raises:
        ValueError: No dictionaries, two of a layer, one of several layers or of another model;
            latents that they do not have; what `mlp_interp.patch` refuses.

    References:
        Marks et al., "Sparse Feature Circuits", 2024, with errors as nodes.

    Example:
        >>> from mlp_interp import load_corpus, load_model, prompts
        >>> from mlp_interp.latents import train
        >>> model = load_model("nano")
        >>> corpus = load_corpus("nano", model, sequences=8, length=64)
        >>> sae = train(model, corpus, "2.mlp", n_latents=64, k=8, steps=3, batch_size=64)
        >>> task = prompts.facts(model, n=2, seed=0)
        >>> found = patch(model, task, [sae], latents=["L2F17", "2.error"])
        >>> found.normalized.sizes, found.place.values.tolist()
        (Frozen({'component': 2, 'prompt': 2}), ['2.mlp'])
    """
    question = Question.of(
        model, contrast, metric, direction=direction, engine=engine, memory=memory, runs=runs
    )
    dictionaries = of_layers(question.weights, dictionaries)
    sites = (
        None if latents is None else named(dictionaries, latents, others=("error", "b_dec", "skip"))
    )
    asked = question.by_length()
    where = [positions_of(positions, part.contrast.length) for part in asked]
    kept = sites_of(question.weights, dictionaries)
    pairs = [part.pair(kept) for part in asked]
    changes = [[Change.of(one, pair.source, pair.base) for one in dictionaries] for pair in pairs]
    if sites is None:
        sites = in_order({s for some in changes for change in some for s in change.moving})
    results = [
        _patched(*each, sites, progress=progress)
        for each in zip(asked, pairs, changes, where, strict=True)
    ]
    return merged(results, question.attrs())


def _patched(
    question: Question,
    pair: Pair,
    changes: Sequence[Change],
    positions: tuple[int, ...] | None,
    sites: Sequence[Site],
    *,
    progress: bool,
) -> xr.Dataset:
    """Prompts of one length."""
    outcome = measure_added(
        pair,
        _added(changes, sites),
        (len(sites) + len(changes),),
        positions,
        memory=question.memory,
        progress=progress,
    )
    own = replace(
        outcome, values=outcome.values[: len(sites)], changed=outcome.changed[: len(sites)]
    )
    dims = ("component",) if positions is None else ("component", "pos")
    found = outcome_dataset(
        question,
        pair,
        own,
        dims,
        coords={**component_coords(sites), **question.coords(positions)},
        attrs={
            "analysis": "activation patching of latents",
            "dictionaries": "; ".join(repr(change.dictionary) for change in changes),
            "positions": "all" if positions is None else "one at a time",
            "long_name": f"{question.metric.name} after {question.direction} one latent",
        },
    )
    whole = to_numpy(outcome.values[len(sites) :])
    places = [change.dictionary.site.label for change in changes]
    about = {**found.raw.attrs, "long_name": "metric after the exchange of the whole place"}
    return found.assign(whole=(("place", *dims[1:], "prompt"), whole, about)).assign_coords(
        place=places
    )


def _added(changes: Sequence[Change], sites: Sequence[Site]) -> Iterator[Added]:
    """Components one after the other, then the whole places."""
    by_layer = {change.dictionary.layer: change for change in changes}
    for n, site in enumerate(sites):
        change = by_layer[site.layer or 0]
        yield Added((n,), change.dictionary.site, change.written(site))
    for n, change in enumerate(changes, len(sites)):
        yield Added((n,), change.dictionary.site, change.whole)
