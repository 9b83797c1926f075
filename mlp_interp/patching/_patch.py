"""Activation patching over a grid of places."""

from collections.abc import Sequence

import torch
import xarray as xr

from mlp_interp.interchange import (
    Direction,
    Engine,
    GivenRuns,
    Grid,
    Question,
    grid_of,
    kept_for,
    measure,
    merged,
    outcome_dataset,
)
from mlp_interp.interchange.grid import Positions
from mlp_interp.metrics import MetricLike
from mlp_interp.models import Forward
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.prompts import Contrast

__all__ = ["patch"]


@own_mode()
@torch.no_grad()
def patch(
    model: Model,
    contrast: Contrast,
    metric: MetricLike = "logit_difference",
    *,
    sites: str | Sequence[str] = "resid_pre",
    direction: Direction = "denoising",
    positions: Positions | None = None,
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
    neurons: int | Sequence[int] | None = None,
    window: int = 1,
    runs: GivenRuns | None = None,
    engine: Engine = "auto",
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
        contrast: Clean and corrupted prompts, whose pairs may differ in length.
        metric: One of `mlp_interp.metrics.METRICS`, a `Metric`, or a function of the last logits
            (`mlp_interp.metrics.of_function`).
        sites: Where: some of ``resid_pre resid_post attn_out mlp_out`` (by layer and position), of
            ``z q k v pattern`` (by layer and head), or of ``pre post`` (by layer and neuron). The
            sites of one call are of one of these kinds.
        direction: ``"denoising"`` patches the corrupted run with clean activations,
            ``"noising"`` the clean run with corrupted ones.
        positions: ``"each"`` patches every position by itself, a list only these, ``"all"`` all
            together. None means each for streams and all for heads and neurons. Of a pattern, the
            positions are those that attend. Negative ones count from each prompt's own end.
        layers: Which layers; None for all.
        heads: Which heads; None for all.
        neurons: Which neurons; None for all.
        window: For attn_out and mlp_out: how many neighbouring layers are patched together, around
            the layer named (ROME's windows); near the ends there are fewer.
        runs: The clean and the corrupted run, if they were made before: runs, or caches of the
            model, that hold what `sites` name (streams, and for heads the lean forward, need no
            more than the streams).
        engine: ``"auto"`` runs the patches as patched runs of one base run where the model allows
            it, and else, or with ``"hooks"``, one forward pass a cell.
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
        other run, patching nothing changes nothing. A coordinate ``component`` names heads. At
        positions that a prompt does not have, numbers are NaN.

    Raises:
        ValueError: Arguments that name what is not there; a metric for other prompts; a metric
            that is not finite on the unpatched runs; `runs` of other tokens, that lack something,
            or that the model does not give (hooks or edits were in force).

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
    question = Question.of(
        model, contrast, metric, direction=direction, engine=engine, memory=memory, runs=runs
    )
    asked = question.by_length()
    grids = [
        grid_of(
            question.weights,
            sites,
            length=part.contrast.length,
            positions=positions,
            layers=layers,
            heads=heads,
            neurons=neurons,
            window=window,
        )
        for part in asked
    ]
    results = [_patched(*pair, progress=progress) for pair in zip(asked, grids, strict=True)]
    return merged(results, question.attrs())


def _patched(question: Question, grid: Grid, *, progress: bool) -> xr.Dataset:
    """A grid of patches of prompts of one length."""
    lean = isinstance(question.forward, Forward)
    pair = question.pair(kept_for(grid, lean=lean))
    outcome = measure(pair, grid, memory=question.memory, progress=progress)
    return outcome_dataset(
        question,
        pair,
        outcome,
        list(grid.axes),
        coords={**grid.coords(), **question.coords(grid.positions)},
        attrs={
            "analysis": "activation patching",
            "positions": "all" if grid.positions is None else "one at a time",
            "window": grid.window,
            "long_name": f"{question.metric.name} after {question.direction} one place",
        },
    )
