"""Effect against cost as a direction is turned up: layer by layer, coefficient by coefficient."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, SupportsFloat

import torch
import xarray as xr
from tqdm.auto import tqdm

from mlp_interp.checkpoint import TENSORS, Checkpoint
from mlp_interp.corpus import SweepOptions
from mlp_interp.corpus.options import check_options
from mlp_interp.edits.applying import Applier
from mlp_interp.edits.edit import Indices
from mlp_interp.metrics import Metric
from mlp_interp.models import Weights, describe, fingerprint
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.padding import Padded
from mlp_interp.models.protocol import Model
from mlp_interp.prompts import Contrast
from mlp_interp.prompts.texts import Prompts, Texts, padded_texts, texts_of, texts_of_side
from mlp_interp.runs import Runner
from mlp_interp.steering.dose.cells import CLEAN, Action, DoseCell, DoseGrid, costs
from mlp_interp.steering.dose.result import Limits, Measure, dose_result, named_metrics
from mlp_interp.steering.dose.scores import TextScore
from mlp_interp.steering.dose.values import count_pieces, read_metrics, score_texts
from mlp_interp.steering.generation import GREEDY, Continuing, GenerationOptions, text_of

__all__ = ["dose_response"]


@own_mode()
def dose_response(
    model: Model,
    prompts: Prompts | Contrast,
    metric: Measure | Mapping[str, Measure],
    *,
    direction: xr.DataArray,
    coefficients: Iterable[SupportsFloat],
    layers: int | Sequence[int] | None = None,
    positions: Indices = None,
    action: Action = "add",
    corpus: Any = None,
    limit_perplexity: float | int | None = None,
    limit_kl: float | int | None = None,
    generation: GenerationOptions = GREEDY,
    sweep: SweepOptions = SweepOptions(),
    prepend_bos: bool = True,
) -> xr.Dataset:
    """What a direction does at every layer and coefficient, and what it costs.

    The effect of a coefficient is how much a metric changes on the prompts, prompt by prompt. The
    cost is what the same direction, on at all positions, does to the model's prediction of other
    text. A coefficient is *useful* for a metric where the effect is more than two of its standard
    errors from 0 and the cost is within the limits. That is a rule for reading curves, not a test:
    of many cells without any effect some pass it. Do the same with `random_direction` to see what
    any push of that length does.

    Everything is run clean once; each cell starts at its own layer, and the cost comes from changes
    of the final stream (`metrics.LogitChange`).

    Args:
        model: The model.
        prompts: Texts of any lengths, tokens ``[prompt, pos]``, or a `Contrast`, of which the clean
            prompts are taken. One prompt has no standard error, so nothing is useful.
        metric: A `metrics.Metric`, or with a `Contrast` one of `metrics.METRICS`, is read on the
            prompts, without generating; a text score (`Keywords`, `Refusal`, `Score`) on the texts
            that follow them. Several by names of their own: ``{"polite": Keywords(...), ...}``.
        direction: A direction of this package.
        coefficients: What it is multiplied by; 0 is added if it is not there.
        layers: Which of the direction's layers, each alone; None for all.
        positions: Which positions of a prompt and its text, as in `Edit`; None for all.
        action: ``"add"``; or ``"project_out"``, where coefficient 1 is projected out.
        corpus: Held-out text for the cost, a `Corpus`, tokens ``[sequence, pos]``, padded or not,
            or texts; None for no
            cost, and then no useful range.
        limit_perplexity: The cost is within its limits up to this ratio of the perplexities,
            steered by clean. None for 1.5, or for no such limit where there is a `limit_kl`.
        limit_kl: And up to so many nats per token of KL(clean‖steered).
        generation: How texts are continued that scores look at; all cells meet the same random
            numbers. Its `where` holds for metrics, too.
        sweep: `batch_size` of prompts, texts and sequences; `progress`; and `checkpoint`, a
            directory in which what the model did is kept, cell by cell: a run that was broken off
            goes on there, and one with more layers or coefficients adds to it. Metrics and scores
            are computed anew from what was kept. There are no shards, and no Ray.
        prepend_bos: Whether texts begin with BOS.

    Returns:
        A Dataset over ``layer``, ``coef`` and ``prompt``. For each metric: its mean under its name,
        `…_se` (over prompts, of which samples are averaged first), `…_effect` with `…_effect_se`
        (less coefficient 0, prompt by prompt) and `…_by_prompt`. `text`, if any was generated. With
        a corpus: `cost_kl` (nats per token), `cost_delta_loss` (nats per token) and
        `cost_perplexity_ratio`, each with its `…_se` over sequences; along ``metric``: `useful`;
        `useful_low` and `useful_high`, the lowest and highest useful coefficient of each layer (NaN
        for none); `best_layer` (-1 for none), `best_coef` and `best_effect`, where the effect of a
        useful coefficient is largest, either way (of equal ones, where KL is least).

    Raises:
        ValueError: Something is empty, out of range or does not fit the model; a metric gives other
            than one finite number for each prompt or text; or hooks are on the model with a
            checkpoint.

    Example:
        >>> from mlp_interp import load_model, prompts
        >>> from mlp_interp.steering import by_answer, mean_difference
        >>> model = load_model("nano")
        >>> sides = by_answer(prompts.refusal(model, n=16, seed=0), " Sorry")
        >>> refusal = mean_difference(model, *sides, layers=2)
        >>> asked = prompts.Contrast.of(model, *sides, [" Sorry"] * 16, [" Sure"] * 16)
        >>> dose = dose_response(
        ...     model, asked, "logit_difference", direction=refusal, coefficients=[-1, -0.5]
        ... )
        >>> (dose.logit_difference.sel(layer=2).values > 0).tolist()
        [False, True, True]
    """
    check_options(sweep, name="sweep")
    runner = Runner.of(model)
    if sweep.backend != "local":
        raise ValueError(f"sweep has backend={sweep.backend!r}; wanted 'local'")
    metrics = named_metrics(metric, prompts)
    grid = DoseGrid.of(direction, layers, coefficients, positions, action)
    if isinstance(prompts, Contrast):
        texts = texts_of_side(model, prompts)
    else:
        texts = texts_of(model, prompts, what="prompts", prepend_bos=prepend_bos)
    read = {name: m for name, m in metrics.items() if isinstance(m, Metric)}
    score = {name: m for name, m in metrics.items() if isinstance(m, TextScore)}
    how, where = Continuing(generation, sweep.batch_size), generation.where
    _check_prompts(runner.weights, texts, grid.cells(), read, how if score else None, where)
    held_out = _corpus(runner.weights, corpus, grid.cells())
    tokens, lengths = held_out.tokens, held_out.lengths
    limits = Limits.of(limit_perplexity, limit_kl, costed=corpus is not None)
    options = {
        "prompts": [list(row) for row in texts.rows],
        "direction": grid.digest(),
        "positions": grid.positions,
        "action": action,
        **({} if lengths is None else {"lengths": lengths.tolist()}),
        "read": [list(metric.positions) for metric in read.values()],
        "how": [asdict(how), generation.end(model)] if score else [where, sweep.batch_size],
    }
    cells = [CLEAN, *grid.cells()]
    pieces = count_pieces(texts, how, tokens, len(cells), read, score)
    with tqdm(total=pieces, disable=not sweep.progress) as bar:
        folder = None
        if sweep.checkpoint is not None:
            folder = Path(sweep.checkpoint) / f"dose-{fingerprint(model, tokens, options)}"
        checkpoint = Checkpoint(folder, TENSORS, done=bar.update)
        values = read_metrics(
            runner, texts, read, cells, checkpoint=checkpoint, batch_size=how.batch_size
        )
        scores, written = score_texts(runner, texts, how, score, cells, checkpoint=checkpoint)
        cost = None
        if len(tokens):
            cost = costs(
                runner, held_out, cells[1:], checkpoint=checkpoint, batch_size=how.batch_size
            )
    values |= scores
    return dose_result(
        grid,
        {name: grid.laid_out(values[name][0], values[name][1:]) for name in metrics},
        units={name: metric.unit for name, metric in metrics.items()},
        texts=grid.laid_out(written[0], written[1:]) if written else None,
        prompts=[text_of(getattr(model, "tokenizer", None), row) for row in texts.rows],
        cost=cost,
        limits=limits,
        attrs={
            **describe(model),
            **held_out.attrs,
            "where": where,
            "seed": generation.seed,
            "temperature": float(generation.temperature),
            "samples": generation.n,
            "max_new_tokens": generation.max_new_tokens if score else 0,
        },
    )


def _check_prompts(
    weights: Weights,
    texts: Texts,
    cells: Sequence[DoseCell],
    read: Mapping[str, Metric],
    how: Continuing | None,
    where: str,
) -> None:
    """Refuse metrics and edits that do not fit the prompts."""
    for name, metric in read.items():
        if where == "new":
            raise ValueError(
                f"where='new' with metric {name!r}, which is read on prompts; wanted 'all' or "
                "'prompt', or scores of generated texts alone"
            )
        metric.check_prompts(len(texts))
    for length in sorted({len(row) for row in texts.rows}):
        for metric in read.values():
            metric.read(length)
        for cell in cells if read else ():
            Applier(cell.edits, weights, (1, length))
    for cell in cells if how else ():
        if how:
            how.check(weights, texts, cell.edits)


def _corpus(weights: Weights, corpus: Any, cells: Sequence[DoseCell]) -> Padded:
    """The corpus, of no tokens if there is none."""
    if corpus is None:
        return Padded(torch.zeros(0, 2, dtype=torch.long), None, {"data": "no corpus"})
    texts = padded_texts(weights.model, corpus)
    if texts.shortest < 2:
        raise ValueError(f"corpus has sequences of {texts.shortest} token; wanted at least 2")
    weights.checked(texts.tokens)
    for cell in cells:
        Applier(cell.everywhere, weights, (1, texts.tokens.shape[1]))
    return texts
