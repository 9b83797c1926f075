"""`replace`: places of a model by their dictionaries, one at a time, and all at once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from mlp_interp.dictionaries import Dictionary
from mlp_interp.edits import Edit
from mlp_interp.latents.linear import Linear, linear_maps
from mlp_interp.latents.named import check_list
from mlp_interp.latents.spliced import (
    Batch,
    measured,
    put,
    read_in,
    runs_of,
    sites_of,
    splice,
)
from mlp_interp.metrics import Effects
from mlp_interp.models import describe
from mlp_interp.models.indices import count, distinct
from mlp_interp.models.padding import which_count
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.results import mean_and_error, variable
from mlp_interp.runs import Runner

__all__ = ["replace"]

_BY = ("dictionary", "linear", "mean", "zero", "frozen_error")
_UNITS = {"kl": "nats", "delta_loss": "nats per token", "top1_changed": "fraction"}


@torch.no_grad()
def replace(
    model: Model,
    dictionaries: Sequence[Dictionary],
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
        dictionaries: SAEs or transcoders, of one place each.
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
        ValueError: No dictionaries, two of one place, one of several layers or of another model.

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
    ordered = _checked(runner, dictionaries)
    texts = padded_texts(model, corpus, attention_mask)
    counts = which_count(model, texts.tokens, texts.real, first)
    again = partial(runs_of, runner, texts, counts, sites_of(runner.weights, ordered), batch_size)
    sums = linear_maps(again(), ordered)
    maps = [one.solved() for one in sums]
    labels = [one.site.label for one in ordered]
    groups = _groups(labels, cumulative)
    stand = _Stand(ordered, [made for made, _ in maps], sums)
    found = measured(runner, again(), partial(_changes, stand, groups))
    loss, loss_error = mean_and_error(found.loss.nanmean(-1))
    fvu: dict[str, Any] = {
        "fvu": [one.fvu for one in sums],
        "fvu_linear": [left for _, left in maps],
    }
    return xr.Dataset(
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
            "dictionaries": "; ".join(map(repr, ordered)),
            "unit": "nats",
            "first": first,
            "counted": int(counts.sum()),
            "errors": "standard error over sequences",
            "exact": 1,
        },
    )


def _checked(runner: Runner, dictionaries: Sequence[Dictionary]) -> list[Dictionary]:
    check_list(runner.weights, dictionaries)
    distinct("dictionaries", [one.site.label for one in dictionaries])
    return sorted(dictionaries, key=lambda one: (one.layer, one.writes))


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

    dictionaries: Sequence[Dictionary]
    maps: Sequence[Dictionary]
    sums: Sequence[Linear]

    def edits(self, batch: Batch, n: int, error: Tensor) -> tuple[Edit, ...]:
        """In the order of `_BY`."""
        one, counts = self.dictionaries[n], batch.counts
        return (
            splice(one, counts),
            splice(self.maps[n], counts),
            put(one.site, self.sums[n].mean, counts),
            put(one.site, 0.0, counts),
            splice(one, counts, error),
        )


def _changes(
    stand: _Stand, groups: Mapping[str, Iterable[int]], batch: Batch
) -> dict[str, list[Edit]]:
    edits = []
    for n, one in enumerate(stand.dictionaries):
        read, written = read_in(batch.run, one)
        edits.append(stand.edits(batch, n, written - one(read)[0].to(written)))
    return {
        f"{name}/{by}": [edits[n][b] for n in group]
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
