"""Exact path patching: exchange what senders tell receivers directly, and see what comes of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from mlp_interp.interchange import (
    Direction,
    Engine,
    Exchange,
    GivenRuns,
    Outcome,
    Pair,
    Positions,
    Question,
    merged,
    outcome_dataset,
    positions_of,
)
from mlp_interp.metrics import MetricLike
from mlp_interp.metrics.rows import batches
from mlp_interp.models import Weights
from mlp_interp.models.options import check_choice
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.paths.direct_paths import DirectPaths, Freeze, Item, items_in
from mlp_interp.paths.labels import Labels, Receivers, Senders, receivers_of, senders_of
from mlp_interp.prompts import Contrast
from mlp_interp.residual.edited import edit_places
from mlp_interp.results import to_numpy
from mlp_interp.runs import Run
from mlp_interp.sites import EDITED, Site

__all__ = ["path_patch"]


@own_mode()
@torch.no_grad()
def path_patch(
    model: Model,
    contrast: Contrast,
    metric: MetricLike = "logit_difference",
    *,
    senders: Labels = "head",
    receivers: Labels = "logits",
    direction: Direction = "denoising",
    positions: Positions = "all",
    receiver_positions: Literal["all"] | int | Sequence[int] = "all",
    freeze: Freeze = "all",
    runs: GivenRuns | None = None,
    engine: Engine = "auto",
    memory: float = 512.0,
    progress: bool = False,
) -> xr.Dataset:
    """Exchange one sender of the other run along direct paths to receivers; read the metric.

    In the base run (corrupted for denoising, clean for noising) the sender's output is exchanged
    for the other run's on its direct way through the residual stream into the inputs of the
    receivers, every other component being held at what it wrote in the base run. The receivers
    compute anew from these inputs (LayerNorm included), and all that comes after them follows. So a
    value says what the sender does *by way of these receivers and nothing else in between*; what it
    tells others, who may tell the receivers, is left out. Receivers of one set hear the sender, not
    each other: the input of each is as set, whatever the others do. For the logits the value is the
    sender's direct effect, the final LayerNorm taken anew.

    Values of several senders do not add up to that of all of them, which `whole` gives: softmax,
    LayerNorm and MLPs are not linear.

    Args:
        model: The model.
        contrast: Clean and corrupted prompts, whose pairs may differ in length.
        metric: One of `mlp_interp.metrics.METRICS`, a `Metric`, or a function of the last logits
            (`mlp_interp.metrics.of_function`).
        senders: Whose outputs are exchanged, one after the other. ``"head"`` is the embedding, all
            heads and MLPs, ``"component"`` the embedding, all attention and MLP outputs, as far as
            they write before receivers read; or a list of ``embed``, ``3.attn``, ``L3H5``,
            ``3.mlp``, ``L3N669`` (a neuron), and ``L3H5.q`` (or ``.k``, ``.v``: what the head
            writes when only its queries are the other run's), and, where the stream is edited as
            by `steer`, what the edit writes: ``edit:3.resid_post``, which levels hold, too. Labels
            or `Site`. A mapping from names to lists exchanges each list together.
        receivers: Whose inputs change. A label or a list is one set of receivers that change
            together: ``L3H5.q`` (or ``.k``, ``.v``), ``L3H5`` (all three), ``3.attn`` (of all
            heads), ``3.mlp``, ``L3N669``, ``logits``. A mapping from names to lists gives several
            sets; ``"head"`` or ``"component"`` each receiver by itself, and the logits: all edges.
        direction: ``"denoising"`` puts clean outputs into the corrupted run, ``"noising"``
            corrupted ones into the clean run.
        positions: At which positions senders are exchanged: ``"all"`` together, ``"each"`` by
            itself, or only the listed ones, each by itself; negative ones count from each
            prompt's own end.
        receiver_positions: At which positions receivers hear: ``"all"``, or only the listed ones.
            The logits hear where the metric reads, in any case.
        freeze: ``"all"`` holds every component between sender and receivers (Goldowsky-Dill et
            al.); ``"attention"`` holds attention and lets MLPs between them follow, so that paths
            through MLPs count as direct (Wang et al.).
        runs: The clean and the corrupted run, if they were made before: runs, or caches of the
            model, that hold ``attn_out`` and ``mlp_out`` of every layer, and what senders write
            and receivers compute from (``z``, ``q``, ``k``, ``v``, ``post``).
        engine: ``"auto"`` runs the model's lean forward where there is one, ``"hooks"`` the model
            itself.
        memory: MiB that may be used on top of the two runs themselves.
        progress: Show a progress bar.

    Returns:
        A Dataset with, for each set of receivers, sender (and position, unless all together) and
        prompt: ``raw``, the metric in its unit; ``normalized``, 0 where it is the corrupted run's
        and 1 where it is the clean run's (NaN where those two are equal); and ``changed``, whether
        any receiver's input changed (a sender that writes after the receivers read changes none).
        ``whole`` is the metric where the receivers have the other run's inputs altogether: ordinary
        activation patching of them, by receivers and prompt. ``clean`` and ``corrupted`` are the
        metric of the two runs. ``check_everything`` and ``check_nothing`` are the largest errors of
        two self-checks, in the metric's unit: all senders exchanged together give `whole`, none
        give the base run. At positions that a prompt does not have, numbers are NaN.

    Raises:
        ValueError: Labels that are unknown, or that the model lacks; senders that write only after
            the receivers read; none of either; other arguments that name what is not there; a
            metric for other prompts, or not finite on the two runs.

    References:
        Wang et al., "Interpretability in the Wild", 2022, appendix B. Goldowsky-Dill et al.,
        "Localizing Model Behavior with Path Patching", 2023.

    Example:
        >>> from mlp_interp import load_model, prompts
        >>> model = load_model("nano")
        >>> contrast = prompts.ioi(model, n=2, seed=0)
        >>> result = path_patch(model, contrast, receivers=["L3H0.q", "L3H1.q"])
        >>> result.raw.dims, result.sender.values[:3].tolist()
        (('receiver', 'sender', 'prompt'), ['embed', 'L0H0', 'L0H1'])
        >>> bool(result.check_everything < 1e-3)
        True
    """
    check_choice("freeze", freeze, get_args(Freeze))
    question = Question.of(
        model, contrast, metric, direction=direction, engine=engine, memory=memory, runs=runs
    )
    sets = receivers_of(question.weights, receivers)
    groups = senders_of(question.weights, senders, sets)
    if freeze == "attention":
        groups = _not_edits(groups, senders)
    asked = question.by_length()
    grids = [
        _Grid(
            receivers=sets,
            senders=groups,
            positions=positions_of(positions, length),
            receiver_positions=positions_of(
                receiver_positions, length, name="receiver_positions", words=["all"]
            ),
            freeze=freeze,
        )
        for length in (part.contrast.length for part in asked)
    ]
    results = [_patched(*pair, progress=progress) for pair in zip(asked, grids, strict=True)]
    return merged(results, question.attrs())


def _not_edits(groups: list[Senders], senders: Labels) -> list[Senders]:
    """Without edits of the stream, which follow as MLPs do where only attention is held.

    Raises:
        ValueError: They were asked for.
    """
    kept = [g for g in groups if not any(site.name in EDITED for site in g.sites)]
    if len(kept) < len(groups) and not isinstance(senders, str):
        raise ValueError(
            f"senders={senders!r} names an edit beside freeze='attention', which lets edits of the "
            "stream follow; wanted freeze='all', or other senders"
        )
    return kept


def _patched(question: Question, grid: "_Grid", *, progress: bool) -> xr.Dataset:
    """All exchanges of prompts of one length."""
    weights = question.weights
    kept = _kept(weights, grid.senders, grid.receivers)
    if edit_places(weights):  # which tell an edit after a block from one before the next
        kept += [Site("resid_post", layer) for layer in range(weights.n_layers)]
    pair = question.pair(kept)
    size = items_in(weights, question.length, question.memory)
    outcome, whole = _measured(pair, grid, size, progress=progress)
    layers, heads = zip(*(group.place for group in grid.senders), strict=True)
    result = outcome_dataset(
        question,
        pair,
        outcome,
        ("receiver", "sender", *(() if grid.positions is None else ("pos",))),
        coords={
            "receiver": [r.name for r in grid.receivers],
            "sender": [s.name for s in grid.senders],
            "component": ("sender", [s.name for s in grid.senders]),
            "layer": ("sender", np.array(layers)),
            "head": ("sender", np.array(heads)),
            **question.coords(grid.positions),
        },
        attrs={
            "analysis": "path patching",
            "freeze": grid.freeze,
            "positions": "all" if grid.positions is None else "one at a time",
            "long_name": f"{question.metric.name} with one sender exchanged",
        },
        whole=whole,
    )
    about = {**result.raw.attrs, "long_name": "metric where receivers have all of the other run's"}
    return result.assign(whole=(("receiver", "prompt"), to_numpy(whole), about))


def _kept(
    weights: Weights, senders: Sequence[Senders], receivers: Sequence[Receivers]
) -> list[Site]:
    """Activations that both runs must keep."""
    kept = {Site(name, layer) for name in weights.outputs for layer in range(weights.n_layers)}
    for group in senders:
        for site in group.sites:
            if site.name in EDITED:
                continue
            kept.add(site.whole)
            if site.name in ("q", "k", "v"):
                kept.add(Site("z", site.layer))
    kept |= {Site(t.name, t.layer) for some in receivers for t in some.targets}
    return sorted(kept - {Site("embed")}, key=lambda site: site.label)


@dataclass(frozen=True)
class _Grid:
    """What is exchanged, and where."""

    receivers: list[Receivers]
    senders: list[Senders]
    positions: tuple[int, ...] | None
    receiver_positions: tuple[int, ...] | None
    freeze: Freeze

    @property
    def shape(self) -> tuple[int, ...]:
        sizes = len(self.receivers), len(self.senders)
        return sizes if self.positions is None else (*sizes, len(self.positions))

    def items(self, exchange: Exchange, number: int) -> Iterator[Item]:
        """Every exchange to a set of receivers that comes before they read."""
        prompts, length = exchange.base.batch, exchange.base.length
        places: list[int | None] = [None] if self.positions is None else list(self.positions)
        for n, group in enumerate(self.senders):
            if group.first >= self.receivers[number].reads_at:
                continue
            writes = exchange.writes(group.sites)
            for place, position in enumerate(places):
                if position is not None and position >= length:
                    continue  # after all that the metric reads
                where = (number, n) if position is None else (number, n, place)
                for prompt in range(prompts):
                    yield Item((*where, prompt), prompt, writes, position)


def _measured(
    pair: Pair, grid: _Grid, size: int, *, progress: bool
) -> tuple[Outcome, Float[Tensor, "receiver prompt"]]:
    """The metric of every exchange, and with the receivers' inputs exchanged altogether."""
    exchange, own = Exchange(pair.base, pair.source), pair.base_value
    sets = (len(grid.receivers),)
    outcome, whole = Outcome.of(pair, grid.shape, sets), own.new_zeros(*sets, len(own))
    every, all_writes = [((p,), p) for p in range(len(own))], exchange.everything()
    checks = (
        (outcome.everything, [Item(*place, all_writes) for place in every]),
        (outcome.nothing, [Item(*place, []) for place in every]),
    )
    with tqdm(total=outcome.values.numel(), desc="path patching", disable=not progress) as bar:
        for number, receivers in enumerate(grid.receivers):
            paths = DirectPaths(
                exchange, receivers, grid.freeze, _renewed(grid, pair.base), pair.reading.read
            )
            for items in batches(paths.changing(grid.items(exchange, number)), size):
                outcome.fill([item.where for item in items], _metric(pair, paths, items))
                bar.update(len(items))
            whole[number] = pair.reading(paths.whole(), pair.prompts)
            for values, exchanged in checks:
                parts = [_metric(pair, paths, items) for items in batches(exchanged, size)]
                values[number] = torch.cat(parts)
        bar.update(bar.total - bar.n)
    return outcome, whole


def _metric(pair: Pair, paths: DirectPaths, items: list[Item]) -> Float[Tensor, " item"]:
    prompts = torch.tensor([item.prompt for item in items], device=pair.prompts.device)
    return pair.reading(paths.finals(items), prompts)


def _renewed(grid: _Grid, base: Run) -> tuple[int, ...] | None:
    """Where receivers get new inputs, of the positions that are run."""
    if grid.receiver_positions is None:
        return None
    return tuple(p for p in grid.receiver_positions if p < base.length)
