"""What the report says of neurons as memories, computed: two passes over the corpus."""

from dataclasses import dataclass
from functools import cache

import xarray as xr

from mlp_interp.neurons import memories, update_events
from mlp_interp.neurons.stores.best import best
from mlp_interp.prompts.reading import texts
from mlp_interp.report.section import Work
from mlp_interp.report.store import Part

__all__ = ["Memories", "measure"]

BEST = 10
"""Neurons that are listed."""

SAMPLE = 4
"""Every so many-th position is asked what MLPs change there."""


@dataclass(frozen=True)
class Memories:
    """What was measured.

    Attributes:
        neurons: Of every neuron what `mlp_interp.neurons.memories` says, without its triggers.
        best: The neurons that are right most often, with their triggers, along ``component``.
        events: See `mlp_interp.neurons.update_events`.
    """

    neurons: xr.Dataset
    best: xr.Dataset
    events: xr.Dataset


def measure(work: Work) -> Memories:
    """Run the analyses of memories.

    Args:
        work: What to measure on; its store keeps each finished part.

    Raises:
        ValueError: What the analyses raise for bad input.
    """
    model, corpus, store = work.model, work.corpus, work.store

    @cache
    def all_of_it() -> xr.Dataset:
        return memories(model, corpus, seed=work.seed, sweep=work.sweep(0.0, 0.6))

    def listed() -> Part:
        found = best(all_of_it(), BEST)
        words = texts(model, found["token"].clip(min=0).values)
        words[found["token"].values < 0] = ""
        return found.assign(text=(found["token"].dims, words, {"unit": "text"}))

    def few() -> Part:
        return all_of_it().drop_dims(["example", "context", "place"])

    def events() -> Part:
        return update_events(model, corpus, sample=SAMPLE, sweep=work.sweep(0.6))

    parts = {"neurons": few, "best": listed, "events": events}
    found = {name: store.get(f"memories/{name}", make) for name, make in parts.items()}
    return Memories(**{name: _dataset(part) for name, part in found.items()})


def _dataset(part: Part) -> xr.Dataset:
    return part if isinstance(part, xr.Dataset) else part.to_dataset()
