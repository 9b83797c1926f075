"""A dictionary in a run: what it reads there, and the edits that put something in its place."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlp_interp.dictionaries import Dictionary, Reading
from mlp_interp.dictionaries.reading import check_given
from mlp_interp.edits import Edit
from mlp_interp.edits.actions import Set
from mlp_interp.metrics import Effects
from mlp_interp.metrics.rows import clean_loss, joined, next_tokens, of_text
from mlp_interp.models import Weights
from mlp_interp.models.padding import Padded
from mlp_interp.runs import Run, Runner
from mlp_interp.runs.effects import edit_effects
from mlp_interp.sites import Site

__all__ = [
    "Batch",
    "Measured",
    "check_one_layer",
    "measured",
    "put",
    "read_in",
    "runs_of",
    "sites_of",
    "splice",
]


def check_one_layer(weights: Weights, dictionary: Dictionary, *, name: str = "dictionary") -> None:
    """Refuse a dictionary of another model, and one that writes to several layers, or to another.

    Raises:
        ValueError: It is one of these.
    """
    check_given(weights, dictionary, name=name)
    if dictionary.spans > 1:
        raise ValueError(
            f"{name} writes to {dictionary.spans} layers; wanted one of a single layer: latents of "
            "cross-layer transcoders are in `decompose` and `latents.ablate(..., path='direct')`, "
            "and `latents.replace` measures all of them"
        )
    if dictionary.ahead:
        raise ValueError(
            f"{name} reads layer {dictionary.layer} and writes to {dictionary.site.label}; wanted "
            "one of a single layer"
        )


def sites_of(weights: Weights, dictionaries: Iterable[Dictionary]) -> list[Site]:
    """What a run must keep for `read_in`, beside the streams."""
    given = [*dictionaries]
    places = {site for one in given for site in one.sites}
    places |= {Site(*place) for place in Reading(weights, given).wanted}
    kept = [site for site in places if not site.name.startswith("resid")]
    return sorted(kept, key=lambda site: (site.name, site.layer or 0))


def read_in(run: Run, dictionary: Dictionary) -> tuple[Tensor, Tensor]:
    """What a dictionary reads in a run, and what is at the place that it writes."""
    reading = Reading(run.weights, [dictionary])
    for name, layer in reading.wanted:
        reading.note(name, layer, run.at(Site(name, layer)))
    written = run.at(dictionary.site)
    return reading.read(dictionary, written), written


def put(
    site: Site, value: Float[Tensor, "*#rows d_model"] | float, counts: Bool[Tensor, "batch pos"]
) -> Edit:
    """An edit that puts a value at the tokens that count."""
    return Edit(site, Set(value, None if bool(counts.all()) else counts[..., None]))


def splice(
    dictionary: Dictionary, counts: Bool[Tensor, "batch pos"], error: Tensor | None = None
) -> Edit:
    """An edit that puts what a dictionary makes of its input, at the tokens that count.

    Args:
        dictionary: The dictionary.
        counts: Which tokens do.
        error: What is added to it; None for nothing.
    """
    where = None if bool(counts.all()) else counts
    return Edit.latents(dictionary, {}, error="drop" if error is None else error, where=where)


@dataclass(frozen=True)
class Batch:
    """Some sequences, run clean.

    Attributes:
        run: The run.
        counts: Which of their tokens count.
        real: Where text is, not padding; None for everywhere.
    """

    run: Run
    counts: Bool[Tensor, "batch pos"]
    real: Bool[Tensor, "batch pos"] | None


@dataclass(frozen=True)
class Measured:
    """What changes of the forward pass do to a corpus.

    Attributes:
        effects: ``[change, sequence, pos]``, NaN where tokens do not count.
        loss: The clean loss ``[sequence, pos]``, NaN there too.
    """

    effects: Effects
    loss: Float[Tensor, "sequence pos"]


def runs_of(
    runner: Runner,
    texts: Padded,
    counts: Bool[Tensor, "sequence pos"],
    sites: Sequence[Site],
    batch_size: int,
) -> Iterator[Batch]:
    """Clean runs of a corpus, some sequences at a time."""
    device = runner.weights.device
    for rows in torch.arange(len(texts.tokens)).split(batch_size):
        run = runner.run(texts.tokens[rows].long(), sites=sites)
        real = None if texts.real is None else texts.real[rows].to(device)
        yield Batch(run, counts[rows].to(device), real)


def measured(
    runner: Runner,
    batches: Iterable[Batch],
    changes: Callable[[Batch], Mapping[str, Sequence[Edit]]],
) -> Measured:
    """Effects of some changes, each alone, on every sequence: one clean run, and one of each."""
    pieces, losses = [], []
    for batch in batches:
        run = batch.run
        found = joined([*edit_effects(runner, run, changes(batch).values(), real=batch.real)])
        pieces.append(of_text(found, batch.counts))
        loss = clean_loss(runner.unembed, run.final, next_tokens(run.tokens, batch.real))
        losses.append(loss.masked_fill(~batch.counts, torch.nan).cpu())
    effects = joined(pieces, dim=1)
    return Measured(Effects(*(x.cpu() for x in effects)), torch.cat(losses))
