"""What edits do to a prediction: one clean run, and many that leave it."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlp_interp.edits.edit import Edit
from mlp_interp.metrics import Effects
from mlp_interp.metrics.rows import chunks, next_tokens, of_text, read_changes
from mlp_interp.runs.recorded import Run
from mlp_interp.runs.runner import Runner

__all__ = ["edit_effects", "stream_changes"]


def stream_changes(
    runner: Runner, clean: Run, edits: Iterable[Sequence[Edit]], *, first: int = 0
) -> Iterator[Float[Tensor, "some batch pos d_model"]]:
    """Changes of the normalised final stream by edits, each sequence of them alone.

    Args:
        runner: Of the model.
        clean: The run without.
        edits: What is done, asked for one at a time.
        first: Position of the clean run which is the first one of the result.

    Yields:
        As many at a time as keep the changes small.
    """
    normalized = runner.unembed.normalize(clean.final[:, first:])
    changes = (
        runner.unembed.normalize(runner.edited(clean, some)[:, first:]) - normalized
        for some in edits
    )
    yield from map(torch.stack, chunks(changes, normalized.numel()))


def edit_effects(
    runner: Runner,
    clean: Run,
    edits: Iterable[Sequence[Edit]],
    *,
    real: Bool[Tensor, "batch pos"] | None = None,
) -> Iterator[Effects]:
    """Effects ``[some, batch, pos]`` of edits, as of `stream_changes`; NaN where text is not."""
    normalized, targets = runner.unembed.normalize(clean.final), next_tokens(clean.tokens, real)
    for changes in stream_changes(runner, clean, edits):
        yield of_text(read_changes(runner.unembed, normalized, targets, changes), real)
