"""`replace`: places of a model by their dictionaries, one at a time, and all at once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import xarray as xr

from mlp_interp.dictionaries import Dictionary
from mlp_interp.dictionaries.reading import one_or_more
from mlp_interp.edits import Edit
from mlp_interp.latents._evaluate import ABOUT
from mlp_interp.latents.linear import Linear, linear_maps
from mlp_interp.latents.places import Place, places_of
from mlp_interp.latents.spliced import Batch, measured, put, runs_of, sites_of, splice
from mlp_interp.metrics import Effects
from mlp_interp.models import describe
from mlp_interp.models.indices import count
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.padding import which_count
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.results import described, mean_and_error, variable
from mlp_interp.runs import Runner

__all__ = ["replace"]

_BY = ("dictionary", "linear", "mean", "zero", "frozen_error")
_UNITS = {"kl": "nats", "delta_loss": "nats per token", "top1_changed": "fraction"}


@own_mode()
@torch.no_grad()
def replace(
    model: Model,
    dictionaries: Dictionary | Sequence[Dictionary],
    corpus: Any,
    *,
    cumulative: bool = False,
    first: int = 1,
    batch_size: int = 8,
    attention_mask: Any = None,
) -> xr.Dataset:
    """How much of the model is left when its places are replaced by their dictionaries.

    Each place alone, all at once, and, if asked for, more and more of them from below and from
    above. A later dictionary reads what the earlier ones have made of the stream, so that errors
    compound: all at once may cost several times the sum of each alone.

    Beside the dictionary stand, in the same places: ``"linear"``, the affine map with the least
    squared error, fitted on these very texts (an MLP that is nearly linear needs no latents; of an
    SAE's place the map would be the identity, and its mean stands there); ``"mean"`` and
    ``"zero"``; and ``"frozen_error"``, the dictionary with the error that it makes in the clean run
    added back, which gives the model itself up to rounding.

    Args:
        model: The model.
        dictionaries: SAEs or transcoders, one or several, of one place each; or all those of a
            cross-layer transcoder, of which each writes to its own MLP's output and to all later
            ones: in place of an MLP then stands what those of its layer and the layers below write
            there together.
        corpus: As of `evaluate`.
        cumulative: Whether to replace ``"up to 1.mlp"`` and ``"from 2.mlp"``, too.
        first: As of `evaluate`.
        batch_size: As of `evaluate`.
        attention_mask: As of `evaluate`.

    Returns:
        A Dataset. Along ``replaced`` (labels of places, ``"all"``) and ``by``: ``kl``,
        ``delta_loss`` and ``top1_changed`` with ``_se``. Along ``place``: ``fvu``, the variance
        that the dictionary leaves over, and ``fvu_linear``, that of the linear map, in-sample.
        ``clean_loss`` with ``_se``.

    Raises:
        ValueError: No dictionaries, two of one place, one of another model, or some of a
            cross-layer transcoder without the others.

    References:
        Marks et al., "Sparse Feature Circuits", 2024, keep errors as nodes; Ameisen et al.,
        "Circuit Tracing", 2025, replace all MLPs at once.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> from mlp_interp.latents import train
        >>> model = load_model("nano")
        >>> corpus = load_corpus("nano", model, sequences=4, length=64)
        >>> options = {"reads": "mlp_in", "n_latents": 64, "k": 8, "steps": 3, "batch_size": 64}
        >>> both = [train(model, corpus, place, **options) for place in ("1.mlp", "2.mlp")]
        >>> found = replace(model, both, corpus)
        >>> found.replaced.values.tolist(), float(found.kl.sel(by="frozen_error").max()) < 1e-6
        (['1.mlp', '2.mlp', 'all'], True)
    """
    count("batch_size", batch_size)
    runner = Runner.of(model)
    dictionaries = one_or_more(dictionaries)
    places = places_of(runner.weights, dictionaries)
    parts = [one for place in places for one in place.parts]
    texts = padded_texts(model, corpus, attention_mask)
    counts = which_count(model, texts.tokens, texts.real, first)
    again = partial(runs_of, runner, texts, counts, sites_of(runner.weights, parts), batch_size)
    sums = linear_maps(again(), places)
    maps = [one.solved() for one in sums]
    labels = [place.site.label for place in places]
    groups = _groups(labels, cumulative)
    stand = _Stand(places, [made for made, _ in maps], sums)
    found = measured(runner, again(), partial(_changes, stand, groups))
    loss, loss_error = mean_and_error(found.loss.nanmean(-1))
    fvu: dict[str, Any] = {
        "fvu": [one.fvu for one in sums],
        "fvu_linear": [left for _, left in maps],
    }
    result = xr.Dataset(
        {
            **_grid(found.effects, len(groups)),
            **{name: variable("place", values, unit="fraction") for name, values in fvu.items()},
            "clean_loss": variable((), float(loss), unit="nats per token"),
            "clean_loss_se": variable((), float(loss_error), unit="nats per token"),
        },
        coords={"replaced": list(groups), "by": list(_BY), "place": labels},
        attrs={
            **texts.attrs,
            **describe(model),
            "analysis": "replacement by dictionaries",
            "dictionaries": "; ".join(map(repr, dictionaries)),
            "unit": "nats",
            "first": first,
            "counted": int(counts.sum()),
            "errors": "standard error over sequences",
            "exact": 1,
        },
    )
    about = {"fvu": "share of variance the dictionary leaves over", "fvu_linear": _LINEAR, **ABOUT}
    return described(result, about)


_LINEAR = "share of variance the best linear map leaves over"


def _groups(labels: Sequence[str], cumulative: bool) -> dict[str, list[int]]:
    """What is replaced together, by name."""
    every = [*range(len(labels))]
    groups = {label: [n] for n, label in enumerate(labels)}
    if cumulative:
        groups |= {f"up to {labels[n]}": every[: n + 1] for n in every[1:-1]}
        groups |= {f"from {labels[n]}": every[n:] for n in every[1:-1]}
    return groups | ({"all": every} if len(labels) > 1 else {})


@dataclass(frozen=True)
class _Stand:
    """What stands in the places."""

    places: Sequence[Place]
    maps: Sequence[Dictionary]
    sums: Sequence[Linear]

    def edits(self, batch: Batch, n: int) -> tuple[list[Edit], ...]:
        """In the order of `_BY`."""
        place, counts = self.places[n], batch.counts
        written = batch.run.at(place.site)
        error = written - place.rebuilt(batch.run).to(written)
        return (
            place.spliced(counts),
            [splice(self.maps[n], counts)],
            [put(place.site, self.sums[n].mean, counts)],
            [put(place.site, 0.0, counts)],
            place.spliced(counts, error),
        )


def _changes(
    stand: _Stand, groups: Mapping[str, Iterable[int]], batch: Batch
) -> dict[str, list[Edit]]:
    edits = [stand.edits(batch, n) for n in range(len(stand.places))]
    return {
        f"{name}/{by}": [edit for n in group for edit in edits[n][b]]
        for name, group in groups.items()
        for b, by in enumerate(_BY)
    }


def _grid(effects: Effects, groups: int) -> dict[str, Any]:
    dims, found = ("replaced", "by"), {}
    for name, values in effects._asdict().items():
        pair = (x.unflatten(0, (groups, len(_BY))) for x in mean_and_error(values.nanmean(-1)))
        for label, x in zip((name, f"{name}_se"), pair, strict=True):
            found[label] = variable(dims, x, unit=_UNITS[name])
    return found
