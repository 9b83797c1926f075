"""Activation patching over a grid of places."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.metrics import Metric, Reader, finite, metric_for, normalized
from mlp_interp.models import Forward, Weights, describe, forward_of
from mlp_interp.patching.cells import Grid, Positions, grid_of
from mlp_interp.patching.exchange import Exchange, kept_sites
from mlp_interp.patching.running import Outcome, run_branches, run_cells
from mlp_interp.prompts import Contrast
from mlp_interp.results import to_numpy
from mlp_interp.runs import Runner, Trunk
from mlp_interp.sites import Site

__all__ = ["patch"]

Direction = Literal["denoising", "noising"]


@torch.no_grad()
def patch(
    model: Any,
    contrast: Contrast,
    metric: str | Metric = "logit_difference",
    *,
    sites: str | Sequence[str] = "resid_pre",
    direction: Direction = "denoising",
    positions: Positions | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    neurons: Sequence[int] | None = None,
    window: int = 1,
    engine: Literal["auto", "hooks"] = "auto",
    memory: float = 512.0,
    progress: bool = False,
) -> xr.Dataset:
    """Put activations of one run into the other, place by place, and read the metric each time.

    Denoising asks what suffices: which single activation of the clean run, put into the corrupted
    run, brings the answer back. Noising asks what is needed: which activation of the corrupted run
    breaks the clean one. The two need not agree. Every value is that of a full forward pass with
    the one patch, however it was computed.

    Args:
        model: The model.
        contrast: Clean and corrupted prompts.
        metric: One of `mlp_interp.metrics.METRICS`, or a `Metric`.
        sites: Where: some of ``resid_pre resid_post attn_out mlp_out`` (by layer and position), of
            ``z q k v pattern`` (by layer and head), or of ``pre post`` (by layer and neuron). The
            sites of one call are of one of these kinds.
        direction: ``"denoising"`` patches the corrupted run with clean activations,
            ``"noising"`` the clean run with corrupted ones.
        positions: ``"each"`` patches every position by itself, a list only these, ``"all"`` all
            together. None means each for streams and all for heads and neurons. Of a pattern, the
            positions are those that attend.
        layers: Which layers; None for all.
        heads: Which heads; None for all.
        neurons: Which neurons; None for all.
        window: For attn_out and mlp_out: how many neighbouring layers are patched together, around
            the layer named (ROME's windows); near the ends there are fewer.
        engine: ``"auto"`` runs the patches as branches of one run where the model allows it, and
            else, or with ``"hooks"``, one forward pass a cell.
        memory: MiB that may be used on top of the two runs themselves (and of what a metric that
            reads the vocabulary holds: a few rows of logits for each prompt).
        progress: Show a progress bar.

    Returns:
        A Dataset with, for each site, layer, head or neuron, and position, and each prompt:
        ``raw``, the metric of the patched run in its unit; ``normalized``, 0 where it is the
        corrupted run's and 1 where it is the clean run's (NaN where those two are equal); and
        ``changed``, whether the patch put in anything that was not there before. ``clean`` and
        ``corrupted`` are the metric of the two runs. ``check_everything`` and ``check_nothing`` are
        the largest errors of two self-checks, in the metric's unit: patching everything gives the
        other run, patching nothing changes nothing.

    Raises:
        ValueError: Arguments that name what is not there; a metric for other prompts; a metric
            that is not finite on the unpatched runs.

    References:
        Meng et al., "Locating and Editing Factual Associations in GPT", 2022. Wang et al.,
        "Interpretability in the Wild", 2022. Heimersheim and Nanda, "How to use and interpret
        activation patching", 2024, for the two directions.

    Example:
        >>> from mlp_interp import load_model, prompts
        >>> model = load_model("nano")
        >>> contrast = prompts.facts(model, n=2, seed=0)
        >>> result = patch(model, contrast, sites=["attn_out", "mlp_out"])
        >>> result.normalized.dims
        ('site', 'layer', 'pos', 'prompt')
    """
    weights = Weights.of(model)
    chosen = metric_for(metric, contrast)
    grid = grid_of(
        weights,
        sites,
        length=contrast.length,
        positions=positions,
        layers=layers,
        heads=heads,
        neurons=neurons,
        window=window,
    )
    if direction not in ("denoising", "noising"):
        raise ValueError(f"direction={direction!r}; wanted 'denoising' or 'noising'")
    if engine not in ("auto", "hooks"):
        raise ValueError(f"engine={engine!r}; wanted 'auto' or 'hooks'")
    if not memory > 0:
        raise ValueError(f"memory={memory}; wanted a number of MiB above 0")
    read = chosen.read(contrast.length)
    # Nothing after the last position that is read can matter to it.
    length = max(read) + 1
    tokens = {
        "clean": weights.checked(contrast.clean_tokens)[:, :length],
        "corrupted": weights.checked(contrast.corrupted_tokens)[:, :length],
    }
    forward = forward_of(model)
    runs = _Runs(model, chosen, replace(grid, length=length), tokens, read, direction)
    if isinstance(forward, Forward) and engine == "auto":
        outcome, values = runs.as_branches(forward, memory=memory, progress=progress)
        used = "branches"
    else:
        outcome, values = runs.as_cells(Runner.of(model), progress=progress)
        used = "hooks"
    return _dataset(
        grid,
        contrast,
        chosen,
        outcome,
        values,
        direction,
        attrs={**contrast.attrs, **describe(model), "engine": used},
    )


class _Runs:
    """The two runs of a contrast, and the grid run between them by either engine."""

    def __init__(
        self,
        model: Any,
        metric: Metric,
        grid: Grid,
        tokens: dict[str, Int[Tensor, "prompt pos"]],
        read: list[int],
        direction: Direction,
    ) -> None:
        self.model, self.metric, self.grid, self.tokens = model, metric, grid, tokens
        self.read = read
        self.order = ("corrupted", "clean") if direction == "denoising" else ("clean", "corrupted")

    def as_branches(
        self, forward: Forward, *, memory: float, progress: bool
    ) -> tuple[Outcome, dict[str, Tensor]]:
        """Through the engine."""
        keep = kept_sites(self.grid)
        trunks = {name: Trunk.of(forward, self.tokens[name], keep=keep) for name in self.tokens}
        finals = {name: trunk.streams[-1][:, self.read] for name, trunk in trunks.items()}
        reader = self.metric.reader(self.model, finals["clean"])
        values = self._values(finals, reader)
        base, source = self.order
        exchange = Exchange(self.grid, trunks[base], trunks[source])
        outcome = run_branches(
            exchange, self.read, reader, values[base], memory=memory, progress=progress
        )
        return outcome, values

    def as_cells(self, runner: Runner, *, progress: bool) -> tuple[Outcome, dict[str, Tensor]]:
        """Through edits."""
        sites = [
            Site(name, layer)
            for name in self.grid.sites
            for layer in range(self.grid.n_layers)
            if name not in ("resid_pre", "resid_post")
        ]
        runs = {name: runner.run(self.tokens[name], sites=sites) for name in self.tokens}
        finals = {name: run.final[:, self.read] for name, run in runs.items()}
        reader = self.metric.reader(self.model, finals["clean"])
        prompts = torch.arange(len(finals["clean"]), device=finals["clean"].device)

        def measure(final: Float[Tensor, "prompt pos d_model"]) -> Float[Tensor, " prompt"]:
            return reader(final[:, self.read], prompts)

        values = self._values(finals, reader)
        base, source = self.order
        outcome = run_cells(runner, self.grid, runs[base], runs[source], measure, progress=progress)
        return outcome, values

    def _values(self, finals: dict[str, Tensor], reader: Reader) -> dict[str, Tensor]:
        return {
            name: finite(
                self.metric, name, reader(final, torch.arange(len(final), device=final.device))
            )
            for name, final in finals.items()
        }


def _dataset(
    grid: Grid,
    contrast: Contrast,
    metric: Metric,
    outcome: Outcome,
    values: dict[str, Tensor],
    direction: Direction,
    *,
    attrs: dict[str, Any],
) -> xr.Dataset:
    dims = (*grid.axes, "prompt")
    clean, corrupted = values["clean"], values["corrupted"]
    relative = normalized(outcome.values, clean, corrupted)
    other, own = (clean, corrupted) if direction == "denoising" else (corrupted, clean)
    unit = {"unit": metric.unit}
    coords: dict[str, Any] = {name: (name, np.array(values)) for name, values in grid.axes.items()}
    if "pos" in coords:
        where = list(grid.positions or ())
        for name in ("clean", "corrupted"):
            rows = np.array(contrast.token_text(name), dtype=object).astype(str)[:, where]
            coords[f"{name}_token"] = (("prompt", "pos"), rows)
    return xr.Dataset(
        {
            "raw": (dims, to_numpy(outcome.values), unit),
            "normalized": (dims, to_numpy(relative), {"unit": "0 corrupted, 1 clean"}),
            "changed": (dims, to_numpy(outcome.changed)),
            "clean": ("prompt", to_numpy(clean), unit),
            "corrupted": ("prompt", to_numpy(corrupted), unit),
            "check_everything": ((), float((outcome.everything - other).abs().max()), unit),
            "check_nothing": ((), float((outcome.nothing - own).abs().max()), unit),
        },
        coords={
            **coords,
            "prompt": np.arange(len(contrast)),
            "answer": ("prompt", contrast.answer_text),
            "foil": ("prompt", contrast.foil_text),
        },
        attrs={
            **attrs,
            "analysis": "activation patching",
            "metric": metric.name,
            "unit": metric.unit,
            "direction": direction,
            "positions": "all" if grid.positions is None else "one at a time",
            "window": grid.window,
            "long_name": f"{metric.name} after {direction} one place",
        },
    )
