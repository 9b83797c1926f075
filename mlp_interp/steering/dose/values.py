"""Values of metrics and scores in every cell of a sweep."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from mlp_interp.checkpoint import Checkpoint, Tensors
from mlp_interp.metrics import Metric, finite
from mlp_interp.prompts.texts import Texts
from mlp_interp.results import to_numpy
from mlp_interp.runs import Runner
from mlp_interp.steering.dose.cells import CLEAN, DoseCell, readings, texts_in
from mlp_interp.steering.dose.scores import TextScore, scored
from mlp_interp.steering.generation import Continuing, text_of

__all__ = ["count_pieces", "read_metrics", "score_texts"]


def read_metrics(
    runner: Runner,
    texts: Texts,
    metrics: Mapping[str, Metric],
    cells: Sequence[DoseCell],
    *,
    checkpoint: Checkpoint[Tensors],
    batch_size: int,
) -> dict[str, list[np.ndarray]]:
    """Metrics of the prompts, of each cell ``[prompt]``."""
    if not metrics:
        return {}
    listed = list(metrics.values())
    streams = readings(runner, texts, listed, cells, checkpoint=checkpoint, batch_size=batch_size)
    device, model = runner.weights.device, runner.weights.model
    by_metric, first, each = {}, 0, torch.arange(len(texts), device=device)
    for name, metric in metrics.items():
        own = slice(first, first + len(metric.positions))
        first = own.stop
        with torch.no_grad():
            reader = metric.reader(model, streams[0][:, own].to(device))
            values = [reader(stream[:, own].to(device), each) for stream in streams]
        for cell, value in zip(cells, values, strict=True):
            finite(metric, "clean" if cell is CLEAN else "steered", value)
        by_metric[name] = [to_numpy(value).astype(float) for value in values]
    return by_metric


def score_texts(
    runner: Runner,
    texts: Texts,
    how: Continuing,
    scores: Mapping[str, TextScore],
    cells: Sequence[DoseCell],
    *,
    checkpoint: Checkpoint[Tensors],
) -> tuple[dict[str, list[np.ndarray]], list[np.ndarray]]:
    """Scores of each cell's texts ``[prompt]``, and the texts ``[prompt, sample]``."""
    by_score: dict[str, list[np.ndarray]] = {name: [] for name in scores}
    written: list[np.ndarray] = []
    end, tokenizer = (
        how.options.end(runner.weights.model),
        getattr(runner.weights.model, "tokenizer", None),
    )
    for cell in cells if scores else ():
        tokens = texts_in(runner, texts, how, cell, checkpoint=checkpoint)
        said = [text_of(tokenizer, row, end=end) for row in tokens.reshape(-1, tokens.shape[-1])]
        for name, score in scores.items():
            by_score[name].append(scored(name, score, said).reshape(len(texts), -1).mean(-1))
        written.append(np.array(said, dtype=object).reshape(len(texts), -1))
    return by_score, written


def count_pieces(
    texts: Texts,
    how: Continuing,
    tokens: torch.Tensor,
    cells: int,
    read: Mapping[str, Metric],
    score: Mapping[str, TextScore],
) -> int:
    """How many pieces there are to compute."""
    batches = len(list(texts.batches(how.batch_size))) * bool(read)
    batches += len(how.batches(texts)) * bool(score)
    return cells * (batches + -(-len(tokens) // how.batch_size))
