"""The question the package was made for: how much does each sub-update matter, and by what way?"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlp_interp.ablation.baselines import Baseline, StandIn
from mlp_interp.ablation.corpus import Ablated, Members
from mlp_interp.ablation.counted import Counted
from mlp_interp.ablation.direct import group_sums
from mlp_interp.ablation.effects import MEASURES
from mlp_interp.ablation.groups import resolve
from mlp_interp.ablation.total import read_later, total_changes
from mlp_interp.corpus import SweepOptions
from mlp_interp.corpus.reducers import Batch
from mlp_interp.metrics import Effects, LogitChange
from mlp_interp.metrics.rows import chunks
from mlp_interp.metrics.stream import BothNorms
from mlp_interp.models import Weights, indices
from mlp_interp.models.options import check_choice, checked_seed
from mlp_interp.models.protocol import Model
from mlp_interp.residual import components
from mlp_interp.results import described, mean_and_error_over
from mlp_interp.runs import Run, Runner
from mlp_interp.sites import Site

__all__ = ["ablate_ranges", "subupdate_importance"]

Kind = Literal["mlp", "attn", "both"]

_KINDS: Mapping[str, tuple[str, ...]] = {
    "mlp": ("mlp_out",),
    "attn": ("attn_out",),
    "both": ("attn_out", "mlp_out"),
}
_NAMES = {"mlp": "MLP", "attn": "attention", "both": "attention and MLP"}


def subupdate_importance(
    model: Model,
    corpus: Any,
    *,
    attention_mask: Any = None,
    level: Literal["component", "head"] = "component",
    first: int = 1,
    baseline: Baseline = "zero",
    seed: int = 0,
    sweep: SweepOptions = SweepOptions(shard=8),
) -> xr.Dataset:
    """How important is each sub-update: directly for the logits, and through later layers?

    For every sub-update, *total* ablates it in the forward pass, *direct* takes it out of the final
    stream only, with the final LayerNorm's scale taken anew, and *direct_frozen* the same with the
    clean scale. Then ``later = total - direct`` is what goes through later layers and ``layernorm =
    direct - direct_frozen`` the final LayerNorm's share. Both can be negative: later layers may
    repair a loss. KL is not additive, so the differences are summaries, not parts of a sum.

    Args:
        model: The model.
        corpus: A `Corpus`; tokens ``[sequence, pos]``, padded or not; texts, or a list of token ids
            for each. Padding counts nowhere.
        attention_mask: 1 where text is, 0 where padding is; None tells it by the rule of
            `mlp_interp.models.padding`.
        level: ``"component"`` (each attention and MLP output) or ``"head"`` (each head).
        first: Position of each text from which on sub-updates are taken away and predictions
            count: as in `ablate_total`, 1 leaves out the first, and BOS wherever it stands.
        baseline: ``"zero"``; ``"mean"`` over the whole corpus; ``"resample"``: the same position of
            another sequence of the same batch, all of one length.
        seed: Which sequences are resampled.
        sweep: Batches, where finished shards are kept, on what machines; by default every batch is
            a shard, because it takes long. With ``"resample"`` it always is, results depend on its
            size, and that is chosen such that no sequence is alone.

    Returns:
        A Dataset along ``component``. For the quantities ``kl`` (KL(clean‖ablated), nats) and
        ``delta_loss`` (nats per token): ``*_direct``, ``*_direct_frozen``, ``*_total``,
        ``*_later``, ``*_layernorm``; besides ``top1_direct``, ``top1_total`` (fraction of tokens
        whose likeliest successor changes) and ``perplexity_ratio_direct``,
        ``perplexity_ratio_total``. Each has its standard error over sequences, ``*_se``. The clean
        loss is in the attributes.

    Raises:
        ValueError: An empty corpus, unknown options, or resampling a single sequence.

    Example:
        >>> import torch
        >>> from mlp_interp import load_model
        >>> result = subupdate_importance(load_model("nano"), torch.arange(40).reshape(4, 10))
        >>> split = result.kl_direct + result.kl_later
        >>> bool(np.allclose(split, result.kl_total))
        True
    """
    check_choice("level", level, ("component", "head"))
    groups = resolve(Weights.of(model), level)
    measured = Ablated(
        measure=_importance,
        choice=level,
        groups=groups,
        first=first,
        baseline=baseline,
        seed=checked_seed(seed),
    )
    found = measured.over(model, corpus, sweep, attention_mask)
    return _summary(found.drop_vars("loss")).assign_attrs(
        {
            **found.attrs,
            "analysis": "sub-update importance",
            "long_name": "effect of ablating each sub-update, directly and in total",
            "unit": "nats",
            "level": level,
        }
    )


def ablate_ranges(
    model: Model,
    corpus: Any,
    *,
    attention_mask: Any = None,
    kind: Kind = "mlp",
    blocks: int | None = None,
    first: int = 1,
    baseline: Baseline = "zero",
    seed: int = 0,
    sweep: SweepOptions = SweepOptions(shard=8),
) -> xr.Dataset:
    """Perplexity with a range of layers ablated together, for every range.

    Args:
        model: The model.
        corpus: As in `subupdate_importance`.
        attention_mask: As in `subupdate_importance`.
        kind: ``"mlp"``, ``"attn"`` or ``"both"``: which sub-updates of each layer in the range.
        blocks: Cut the layers into so many blocks of about one size, and take ranges of whole
            blocks: L layers have L (L + 1) / 2 ranges, each a forward pass. None for all ranges.
        first: As in `subupdate_importance`.
        baseline: As in `subupdate_importance`.
        seed: Which sequences are resampled.
        sweep: As in `subupdate_importance`.

    Returns:
        A Dataset with ``perplexity`` and ``delta_loss`` (nats per token), with standard errors over
        sequences (``*_se``), along ``start`` and ``end`` (first and last ablated layer, both
        included); NaN where ``end < start``.

    Raises:
        ValueError: As `subupdate_importance`; unknown kind; fewer than one block, or more than
            layers.

    Example:
        >>> import torch
        >>> from mlp_interp import load_model
        >>> result = ablate_ranges(load_model("nano"), torch.arange(40).reshape(4, 10))
        >>> result.perplexity.dims, bool(result.perplexity.sel(start=3, end=0).isnull())
        (('start', 'end'), True)
    """
    check_choice("kind", kind, get_args(Kind))
    starts, ends = _bounds(Weights.of(model).n_layers, blocks)
    groups = {
        f"{start}-{end}": tuple(
            Site(name, layer) for layer in range(start, end + 1) for name in _KINDS[kind]
        )
        for start in starts
        for end in ends
        if end >= start
    }
    measured = Ablated(
        measure=_ranges,
        choice=kind if blocks is None else f"{kind}.{blocks}",
        groups=groups,
        first=first,
        baseline=baseline,
        seed=checked_seed(seed),
    )
    found = measured.over(model, corpus, sweep, attention_mask)
    delta, delta_error = mean_and_error_over(found["delta_loss_total"], "sequence")
    loss, loss_error = mean_and_error_over(found["delta_loss_total"] + found["loss"], "sequence")
    perplexity, perplexity_error = _exponential(loss, loss_error)

    def grid(values: Any) -> np.ndarray:
        filled = np.full((len(starts), len(ends)), np.nan)
        filled[np.triu_indices(len(starts))] = values
        return filled

    dims = ("start", "end")
    nats = {"unit": "nats per token"}
    result = xr.Dataset(
        {
            "perplexity": (dims, grid(perplexity), {"unit": "perplexity"}),
            "perplexity_se": (dims, grid(perplexity_error), {"unit": "perplexity"}),
            "delta_loss": (dims, grid(delta), nats),
            "delta_loss_se": (dims, grid(delta_error), nats),
        },
        coords={"start": starts, "end": ends},
        attrs={
            **found.attrs,
            "analysis": "layer ranges",
            "long_name": f"perplexity with all {_NAMES[kind]} outputs of a range of layers ablated",
            "unit": "perplexity",
            "kind": kind,
            "clean_perplexity": float(np.exp(found.attrs["clean_loss"])),
        },
    )
    about = {"perplexity": "with the range ablated", "delta_loss": "ablated less clean loss"}
    return described(result, about)


def _bounds(n_layers: int, blocks: int | None) -> tuple[list[int], list[int]]:
    """First and last layer of each block."""
    count = n_layers if blocks is None else indices.count("blocks", blocks)
    if count > n_layers:
        raise ValueError(f"blocks={blocks} of {n_layers} layers; wanted at most as many as layers")
    edges = [round(n * n_layers / count) for n in range(count + 1)]
    return edges[:-1], [edge - 1 for edge in edges[1:]]


def _importance(
    runner: Runner, clean: Run, groups: Members, stand: StandIn, batch: Batch
) -> dict[str, Tensor]:
    members = [site for sites in groups.values() for site in sites]
    # What is padding is known: nothing is to be told by the tokens.
    mask = torch.ones_like(clean.tokens) if batch.real is None else batch.real
    parts = components(runner.weights.model, clean, members, attention_mask=mask)
    removed = parts.less(stand).kept_by(runner.unembed.norm)
    counted = Counted.of(runner.unembed, clean, stand.counts, batch.real)

    def three_ways(some: list[tuple[Site, ...]]) -> Any:
        later = [read_later(runner, sites) for sites in some]
        through = [sites for sites, read in zip(some, later, strict=True) if read]
        return partial(
            _three_ways,
            counted.final,
            counted.rows(group_sums(removed, some)),
            counted.rows(total_changes(runner, clean, through, stand)),
            torch.tensor(later, device=clean.final.device),
        )

    return counted.means(map(three_ways, _ticked(groups, clean.final.numel(), batch)))


def _three_ways(
    final: Float[Tensor, "row d_model"],
    removed: Float[Tensor, "component row d_model"],
    changes: Float[Tensor, "through row d_model"],
    later: Bool[Tensor, " component"],
    rows: Int[Tensor, " some"],
    clean: LogitChange,
) -> dict[str, Effects]:
    """Effects of taking vectors out of the final stream, and of changes of the normalised one.

    The changes are those of components that something `later` reads; the others do in total what
    they do directly.
    """
    norms = BothNorms.of(clean.unembed, final[rows], removed[:, rows])
    direct, frozen = clean.effects_by_norm(norms)
    total = Effects(*(x.clone() for x in direct))
    for whole, through in zip(total, clean.effects(changes[:, rows]), strict=True):
        whole[later] = through
    return {"direct": direct, "direct_frozen": frozen, "total": total}


def _ranges(
    runner: Runner, clean: Run, groups: Members, stand: StandIn, batch: Batch
) -> dict[str, Tensor]:
    counted = Counted.of(runner.unembed, clean, stand.counts, batch.real)
    return counted.means(
        partial(_total, counted.rows(total_changes(runner, clean, some, stand)))
        for some in _ticked(groups, clean.final.numel(), batch)
    )


def _ticked(groups: Members, numbers: int, batch: Batch) -> Iterator[list[tuple[Site, ...]]]:
    """The groups in chunks, each of which is told when it is done."""
    done = 0
    for some in chunks(groups.values(), numbers):
        yield some
        done += len(some)
        batch.tick(done / len(groups))


def _total(
    changes: Float[Tensor, "component row d_model"], rows: Int[Tensor, " some"], clean: LogitChange
) -> dict[str, Effects]:
    return {"total": clean.effects(changes[:, rows], top=False)}


def _summary(found: xr.Dataset) -> xr.Dataset:
    """Means and errors of every way and difference over the sequences."""
    summary = xr.Dataset(coords=found.coords)

    def add(name: str, mean: xr.DataArray, error: xr.DataArray, unit: str) -> None:
        summary[name] = mean.assign_attrs(unit=unit)
        summary[f"{name}_se"] = error.assign_attrs(unit=unit)

    for quantity in ("kl", "delta_loss"):
        by_way = {way: found[f"{quantity}_{way}"] for way in ("direct", "direct_frozen", "total")}
        by_way["later"] = by_way["total"] - by_way["direct"]
        by_way["layernorm"] = by_way["direct"] - by_way["direct_frozen"]
        for way, values in by_way.items():
            # Differences are taken within each sequence, so their errors are paired.
            mean, error = mean_and_error_over(values, "sequence")
            add(f"{quantity}_{way}", mean, error, MEASURES[quantity])
    for way in ("direct", "total"):
        changed = mean_and_error_over(found[f"top1_changed_{way}"], "sequence")
        add(f"top1_{way}", *changed, "fraction")
        loss = summary[f"delta_loss_{way}"], summary[f"delta_loss_{way}_se"]
        add(f"perplexity_ratio_{way}", *_exponential(*loss), "ratio")
    about = {f"{q}_{w}": f"{said}, {way}" for q, said in _SAID.items() for w, way in _WAYS.items()}
    return described(summary, about)


_SAID = {
    "kl": "divergence of the ablated prediction from the clean one",
    "delta_loss": "ablated less clean loss",
    "top1": "share of tokens after which another next token is the likeliest",
    "perplexity_ratio": "ablated over clean perplexity",
}
_WAYS = {
    "direct": "taken out of the final stream",
    "direct_frozen": "taken out of the final stream, its norm held",
    "total": "taken out of the forward pass",
    "later": "by way of later layers: total less direct",
    "layernorm": "by way of the final norm: direct less direct with the norm held",
}


def _exponential(loss: xr.DataArray, error: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Of a loss, with its error; in double precision, as losses of 89 nats and more are met."""
    found: Any = np.exp(loss.astype(np.float64))
    return found, found * error
