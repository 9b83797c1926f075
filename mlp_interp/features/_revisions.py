"""One analysis at many checkpoints of a training run."""

import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import xarray as xr

from mlp_interp.checkpoint import Checkpoint
from mlp_interp.features.asked import check_asked
from mlp_interp.models import PYTHIA, load_model
from mlp_interp.models.indices import integers
from mlp_interp.models.loading import LOCAL
from mlp_interp.models.options import check_counts
from mlp_interp.results import DATASETS

__all__ = ["PYTHIA_REVISIONS", "over_revisions"]

PYTHIA_REVISIONS = (0, *(2**n for n in range(10)), *range(1000, 144_000, 1000))
"""The 154 steps of which Pythia's weights are published; a step reads 2,097,152 tokens."""

_PYTHIA_STEP = 2_097_152

Found = xr.Dataset | xr.DataArray


def over_revisions(
    name: str | Path,
    revisions: Sequence[int],
    analysis: Callable[..., Found],
    *,
    folder: str | Path | None = None,
    step_tokens: int | None = None,
    load: Mapping[str, Any] | None = None,
    **options: Any,
) -> Found:
    """Run an analysis at several checkpoints of a training run.

    ``analysis(model, **options)`` may be any function of this package, or of yours, that gives an
    xarray result. One model is in memory at a time. With a folder each revision's result goes to a
    file of its own as soon as it is there, and a run that was interrupted goes on with the next.

    Args:
        name: A model on the hub whose revisions are called ``step<n>``, as Pythia's
            (``"pythia-70m"``); or a local folder with the Hugging Face directories
            ``revisions/step<n>``, as ``python -m mlp_interp.nano.train --keep 8`` leaves them.
        revisions: Steps, in any order, each once; see `PYTHIA_REVISIONS`.
        analysis: What to run; it must give the same dims and sizes every time.
        folder: Where results are kept, for this one question: the same name, analysis (by its name
            alone), options and loading; None keeps nothing.
        step_tokens: Tokens that a step of training reads; None knows Pythia's.
        load: Options of `mlp_interp.load_model`, as ``{"processing": "raw"}``.
        options: For the analysis, all by their names: ``corpus=corpus``.

    Returns:
        What the analysis gives, of the type that it gives, along the first dim ``revision``, with
        the coordinates ``step`` and ``tokens`` (NaN where `step_tokens` is not known). Attributes
        that are not the same at all revisions are left out.

    Raises:
        ValueError: A model of the package, no revisions, one twice, or one that Pythia or the local
            folder has not; results of other types, dims, sizes or labels than those of the first
            revision; a folder that belongs to another question.
        ConnectionError: The hub could not be reached.

    References:
        Biderman et al., "Pythia: A Suite for Analyzing Large Language Models Across Training and
        Scaling", 2023, arXiv:2304.01373.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from mlp_interp.nano import weights_path
        >>> from mlp_interp.neurons import neuron_weights
        >>> with TemporaryDirectory() as run:
        ...     Path(run, "revisions").mkdir()
        ...     for step in (1, 2):
        ...         Path(run, f"revisions/step{step}").symlink_to(weights_path())
        ...     found = over_revisions(run, [2, 1], neuron_weights, step_tokens=2048)
        >>> found.step.values.tolist(), found.tokens.values.tolist()
        ([1, 2], [2048.0, 4096.0])
    """
    steps = _steps(name, revisions)
    if step_tokens is None:
        step_tokens = _PYTHIA_STEP if _is_pythia(name) else None
    else:
        check_counts(step_tokens=step_tokens)
    if not callable(analysis):
        raise ValueError(f"analysis={analysis!r}; wanted a function of a model")
    loading = dict(load or {})
    kept = Checkpoint(None if folder is None else Path(folder), DATASETS)
    if kept.folder is not None:
        check_asked(kept.folder, str(name), analysis, {"load": loading, **options})
    pieces: list[Found] = []
    for step in steps:

        def compute(step: int = step) -> Found:
            return _measured(name, step, analysis, loading, options)

        piece = kept.once(f"step{step}", compute)
        if pieces:
            _check_alike(steps[0], pieces[0], step, piece)
        pieces.append(piece)
    return _along(pieces, steps, step_tokens)


def _is_pythia(name: str | Path) -> bool:
    short = str(name).removeprefix("EleutherAI/")
    return any(short in (known, known.removeprefix("pythia-")) for known in PYTHIA)


def _steps(name: str | Path, revisions: Any) -> list[int]:
    """Steps in their order, all of which are there."""
    steps = integers("revisions", revisions)
    if not steps or len({*steps}) < len(steps):
        raise ValueError(f"revisions={revisions}; wanted steps, at least one and each once")
    steps = sorted(steps)
    run = Path(name) / "revisions"
    if Path(name).is_dir():
        known = [int(at.name[4:]) for at in run.glob("step*") if at.name[4:].isdigit()]
        where = f"{str(run)!r}"
    elif name in LOCAL:
        raise ValueError(
            f"name={name!r} is one model of the package, without revisions; wanted one on the hub, "
            "or a local folder with revisions/step<n>, as python -m mlp_interp.nano.train leaves"
        )
    elif _is_pythia(name):
        known, where = [*PYTHIA_REVISIONS], "the published steps of Pythia"
    else:
        known, where = steps, "the hub"
    if missing := [step for step in steps if step not in known]:
        shown = sorted(known)
        listed = f"{shown[:12]}{' …' if len(shown) > 12 else ''}"
        raise ValueError(f"revisions has {missing[0]}; wanted some of {where}: {listed}")
    return steps


def _measured(
    name: str | Path,
    step: int,
    analysis: Callable[..., Found],
    loading: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Found:
    """The result at one revision; its weights are let go."""
    local = Path(name) / "revisions" / f"step{step}"
    if Path(name).is_dir():
        model = load_model(local, **loading)
    else:
        model = load_model(name, revision=f"step{step}", **loading)
    try:
        found = analysis(model, **options)
    finally:
        del model
        gc.collect()  # modules and their hooks hold each other
    if not isinstance(found, xr.Dataset | xr.DataArray):
        raise ValueError(
            f"analysis gave {type(found).__name__} at step {step}; wanted a Dataset or DataArray"
        )
    return found


def _check_alike(first: int, one: Found, step: int, other: Found) -> None:
    """Refuse results that do not lie side by side.

    Raises:
        ValueError: They differ in type, variables, dims, sizes or labels.
    """
    facts = [_facts(found) for found in (one, other)]
    if facts[0] != facts[1]:
        raise ValueError(
            f"analysis gave {facts[1]} at step {step} and {facts[0]} at step {first}; wanted the "
            "same at every revision"
        )
    for dim in one.dims:
        if dim in one.indexes and not one.indexes[dim].equals(other.indexes[dim]):
            raise ValueError(
                f"analysis gave other labels of {dim!r} at step {step} than at step {first}; "
                "wanted the same at every revision"
            )


def _facts(found: Found) -> Any:
    if isinstance(found, xr.DataArray):
        return dict(found.sizes)
    return {str(name): dict(value.sizes) for name, value in sorted(found.data_vars.items())}


def _along(pieces: Sequence[Found], steps: Sequence[int], step_tokens: int | None) -> Found:
    """All revisions as one result."""
    joined = xr.concat(
        cast("list[xr.Dataset]", list(pieces)),
        dim="revision",
        data_vars="all",
        coords="different",
        compat="equals",
        join="exact",
        combine_attrs="drop_conflicts",
    )
    tokens = np.array(steps, float) * (np.nan if step_tokens is None else step_tokens)
    return joined.assign_coords(
        revision=[f"step{step}" for step in steps],
        step=("revision", np.array(steps)),
        tokens=("revision", tokens, {"unit": "tokens"}),
    ).transpose("revision", ...)
