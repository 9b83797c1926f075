"""Exact path patching: exchange what senders tell receivers directly, and see what comes of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from mlp_interp.metrics import Metric, metric_for, normalized
from mlp_interp.models import Forward, HookForward, Weights, describe, forward_of
from mlp_interp.paths.exchange import Exchange, kept_sites
from mlp_interp.paths.labels import Labels, Receivers, Senders, receivers_of, senders_of
from mlp_interp.paths.problem import Problem, items_in
from mlp_interp.paths.sweep import Freeze, Item, Sweep, batches
from mlp_interp.prompts import Contrast
from mlp_interp.results import to_numpy
from mlp_interp.runs import Trunk

__all__ = ["path_patch"]

Direction = Literal["denoising", "noising"]


@torch.no_grad()
def path_patch(
    model: Any,
    contrast: Contrast,
    metric: str | Metric = "logit_difference",
    *,
    senders: Labels = "head",
    receivers: Labels = "logits",
    direction: Direction = "denoising",
    positions: Literal["each", "all"] | Sequence[int] = "all",
    receiver_positions: Literal["all"] | Sequence[int] = "all",
    freeze: Freeze = "all",
    engine: Literal["auto", "hooks"] = "auto",
    memory: float = 512.0,
    progress: bool = False,
) -> xr.Dataset:
    """Let receivers hear one sender of the other run, along direct paths alone; read the metric.

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
        contrast: Clean and corrupted prompts.
        metric: One of `mlp_interp.metrics.METRICS`, or a `Metric`.
        senders: Whose outputs are exchanged, one after the other. ``"head"`` is the embedding, all
            heads and MLPs, ``"component"`` the embedding, all attention and MLP outputs, as far as
            they write before receivers read; or a list of ``embed``, ``3.attn``, ``L3H5``,
            ``3.mlp``, ``L3N669`` (a neuron), and ``L3H5.q`` (or ``.k``, ``.v``: what the head
            writes when only its queries are the other run's). A mapping from names to lists
            exchanges each list together.
        receivers: Whose inputs change. A label or a list is one set of receivers that change
            together: ``L3H5.q`` (or ``.k``, ``.v``), ``L3H5`` (all three), ``3.attn`` (of all
            heads), ``3.mlp``, ``L3N669``, ``logits``. A mapping from names to lists gives several
            sets; ``"head"`` or ``"component"`` each receiver by itself, and the logits: all edges.
        direction: ``"denoising"`` puts clean outputs into the corrupted run, ``"noising"``
            corrupted ones into the clean run.
        positions: At which positions senders are exchanged: ``"all"`` together, ``"each"`` by
            itself, or only the listed ones, each by itself.
        receiver_positions: At which positions receivers hear: ``"all"``, or only the listed ones.
            The logits hear where the metric reads, in any case.
        freeze: ``"all"`` holds every component between sender and receivers (Goldowsky-Dill et
            al.); ``"attention"`` holds attention and lets MLPs between them follow, so that paths
            through MLPs count as direct (Wang et al.).
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
        give the base run.

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
    _check_choices(direction=direction, freeze=freeze, engine=engine)
    weights = Weights.of(model)
    chosen = metric_for(metric, contrast)
    sets = receivers_of(weights, receivers)
    grid = _Grid(
        receivers=sets,
        senders=senders_of(weights, senders, sets),
        positions=_positions("positions", positions, contrast.length),
        receiver_positions=_positions("receiver_positions", receiver_positions, contrast.length),
        freeze=freeze,
        direction=direction,
    )
    size = items_in(weights, max(chosen.read(contrast.length)) + 1, memory)
    forward = forward_of(model)
    if engine == "hooks":
        forward = HookForward(weights)
    sites = kept_sites(weights.n_layers, grid.senders, sets)
    problem = Problem.of(forward, contrast, chosen, sites)
    found = _values(problem, forward, grid, size, progress=progress)
    attrs = {**contrast.attrs, **describe(model), "engine": forward.engine}
    return _dataset(grid, contrast, problem, found, attrs)


@dataclass(frozen=True)
class _Grid:
    """What is exchanged, and where."""

    receivers: list[Receivers]
    senders: list[Senders]
    positions: tuple[int, ...] | None
    receiver_positions: tuple[int, ...] | None
    freeze: Freeze
    direction: Direction

    @property
    def shape(self) -> tuple[int, ...]:
        sizes = len(self.receivers), len(self.senders)
        return sizes if self.positions is None else (*sizes, len(self.positions))

    def items(self, exchange: Exchange, number: int) -> Iterator[Item]:
        """Every exchange to a set of receivers that comes before they read."""
        prompts, length = exchange.base.tokens.shape
        places: list[int | None] = [None] if self.positions is None else list(self.positions)
        for n, group in enumerate(self.senders):
            if group.first >= self.receivers[number].horizon:
                continue
            writes = exchange.writes(group.sites)
            for place, position in enumerate(places):
                if position is not None and position >= length:
                    continue  # after all that the metric reads
                where = (number, n) if position is None else (number, n, place)
                for prompt in range(prompts):
                    yield Item((*where, prompt), prompt, writes, position)


@dataclass(frozen=True)
class _Found:
    """The metric: of every exchange ``[*grid, prompt]``, and of the checks."""

    values: Tensor
    changed: Bool[Tensor, "*grid prompt"]
    whole: Float[Tensor, "receiver prompt"]
    everything: Float[Tensor, "receiver prompt"]
    nothing: Float[Tensor, "receiver prompt"]


def _values(
    problem: Problem, forward: Forward | HookForward, grid: _Grid, size: int, *, progress: bool
) -> _Found:
    denoising = grid.direction == "denoising"
    base, source = problem.corrupted, problem.clean
    if not denoising:
        base, source = source, base
    own = problem.values["corrupted" if denoising else "clean"]
    exchange = Exchange(forward, base, source)
    trunk = Trunk.of(forward, base.tokens) if isinstance(forward, Forward) else None
    values = own.expand(*grid.shape, len(own)).clone()
    changed = torch.zeros_like(values, dtype=torch.bool)
    sizes = (len(grid.receivers), len(own))
    checks = {name: values.new_zeros(sizes) for name in ("whole", "everything", "nothing")}
    total = int(np.prod(grid.shape)) * len(own)
    heard = _heard(grid, len(base.tokens[0]))
    with tqdm(total=total, desc="path patching", disable=not progress) as bar:
        for number, receivers in enumerate(grid.receivers):
            sweep = Sweep(exchange, receivers, grid.freeze, heard, problem.read, trunk)

            def measure(items: list[Item], sweep: Sweep = sweep) -> Float[Tensor, " item"]:
                prompts = torch.tensor([i.prompt for i in items], device=own.device)
                return problem.reader(sweep.finals(items), prompts)

            for items in batches(sweep.changing(grid.items(exchange, number)), size):
                where = tuple(torch.tensor([i.where for i in items], device=own.device).T)
                values[where] = measure(items)
                changed[where] = True
                bar.update(len(items))
            checks["whole"][number] = problem.reader(sweep.whole(), problem.every)
            for name, writes in (("everything", exchange.everything()), ("nothing", [])):
                every = [Item((p,), p, writes) for p in range(len(own))]
                found = [measure(items) for items in batches(every, size)]
                checks[name][number] = torch.cat(found)
        bar.update(total - bar.n)
    return _Found(values, changed, **checks)


def _heard(grid: _Grid, length: int) -> tuple[int, ...] | None:
    """Where receivers hear, of the positions that are run."""
    if grid.receiver_positions is None:
        return None
    return tuple(p for p in grid.receiver_positions if p < length)


def _positions(name: str, positions: Any, length: int) -> tuple[int, ...] | None:
    """Positions counted from 0; None for all together."""
    if isinstance(positions, str):
        words = ("each", "all") if name == "positions" else ("all",)
        if positions not in words:
            wanted = " or ".join(map(repr, words))
            raise ValueError(f"{name}={positions!r}; wanted {wanted}, or a list of positions")
        return tuple(range(length)) if positions == "each" else None
    if not len(positions) or any(not -length <= p < length for p in positions):
        raise ValueError(f"{name}={list(positions)}; wanted some from {-length} to {length - 1}")
    return tuple(int(p) % length for p in positions)


def _check_choices(**given: str) -> None:
    wanted = {
        "direction": ("denoising", "noising"),
        "freeze": ("all", "attention"),
        "engine": ("auto", "hooks"),
    }
    for name, value in given.items():
        if value not in wanted[name]:
            raise ValueError(f"{name}={value!r}; wanted {' or '.join(map(repr, wanted[name]))}")


def _dataset(
    grid: _Grid, contrast: Contrast, problem: Problem, found: _Found, attrs: dict[str, Any]
) -> xr.Dataset:
    clean, corrupted = problem.values["clean"], problem.values["corrupted"]
    own = corrupted if grid.direction == "denoising" else clean
    relative = normalized(found.values, clean, corrupted)
    dims = ("receiver", "sender", *(() if grid.positions is None else ("pos",)), "prompt")
    unit = {"unit": problem.metric.unit}
    layers, heads = zip(*(group.place for group in grid.senders), strict=True)
    return xr.Dataset(
        {
            "raw": (dims, to_numpy(found.values), unit),
            "normalized": (dims, to_numpy(relative), {"unit": "0 corrupted, 1 clean"}),
            "changed": (dims, to_numpy(found.changed)),
            "whole": (("receiver", "prompt"), to_numpy(found.whole), unit),
            "clean": ("prompt", to_numpy(clean), unit),
            "corrupted": ("prompt", to_numpy(corrupted), unit),
            "check_everything": ((), float((found.everything - found.whole).abs().max()), unit),
            "check_nothing": ((), float((found.nothing - own).abs().max()), unit),
        },
        coords={
            "receiver": [r.name for r in grid.receivers],
            "sender": [s.name for s in grid.senders],
            "layer": ("sender", np.array(layers)),
            "head": ("sender", np.array(heads)),
            **({} if grid.positions is None else {"pos": np.array(grid.positions)}),
            "prompt": np.arange(len(contrast)),
            "answer": ("prompt", contrast.answer_text),
            "foil": ("prompt", contrast.foil_text),
        },
        attrs={
            **attrs,
            "analysis": "path patching",
            "metric": problem.metric.name,
            "unit": problem.metric.unit,
            "direction": grid.direction,
            "freeze": grid.freeze,
            "positions": "all" if grid.positions is None else "one at a time",
            "long_name": f"{problem.metric.name} with one sender exchanged",
        },
    )
