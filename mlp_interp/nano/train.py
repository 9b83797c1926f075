"""Train the nano model: ``python -m mlp_interp.nano.train``.

One recipe from seed to weights. Every row is 128 or 256 tokens. Half of the rows repeat
random tokens until induction heads have formed, then about a seventh; the others are documents
of ``mlp_interp.nano.corpus``. AdamW, linear warm-up and decay.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlp_interp.nano import weights_path
from mlp_interp.nano.architecture import CONTEXT, new_model
from mlp_interp.nano.bars import measure
from mlp_interp.nano.card import TrainingRun, model_card
from mlp_interp.nano.checkpoint import load, save
from mlp_interp.nano.evaluate import table
from mlp_interp.nano.rows import document_rows, repeat_row
from mlp_interp.nano.tokenizer import VOCABULARY, train_tokenizer

if TYPE_CHECKING:
    import torch

__all__ = ["TOKENS", "batches", "main", "rate_factor", "revisions", "train"]

TOKENS = 7_000_000
_STEP_TOKENS = 2048
_PEAK_RATE = 2.5e-3
_WEIGHT_DECAY = 0.05
_WARM_UP = 100
_MANY_REPEATS, _FEW_REPEATS = 0.5, 0.15
# Share of the run with many repeats.
_EARLY = 0.2
# Share of the run in which random repeats grow to full length.
_CURRICULUM = 0.2
_LONG_ROWS_EVERY = 6
_REPORT_EVERY = 25
_SAVE_SECONDS = 180.0
_WORKERS = 2


def batches(tokenizer, seed: int, steps: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield ``steps`` batches of tokens ``[row, pos]`` and of the targets that are scored."""
    rng = np.random.default_rng(seed)
    texts = document_rows(tokenizer, seed, rng)
    next(texts)
    for step in range(steps):
        length = 256 if step % _LONG_ROWS_EVERY == 0 else 128
        rows = _STEP_TOKENS // length
        share = _MANY_REPEATS if step < _EARLY * steps else _FEW_REPEATS
        progress = step / (_CURRICULUM * steps)
        repeats = round(rows * share)
        tokens, scored = np.empty((rows, length), np.int64), np.ones((rows, length), bool)
        for row in range(rows):
            if row < repeats:
                tokens[row], scored[row] = repeat_row(rng, length, VOCABULARY, progress=progress)
            else:
                tokens[row] = texts.send(length)
        yield tokens, scored


def revisions(steps: int, keep: int) -> list[int]:
    """Return the steps after which weights are kept: each half of the next, the last the end.

    Much happens early in a training run and little late. A run of fewer than ``2 ** keep`` steps
    keeps fewer.
    """
    return sorted({round(steps / 2**halvings) for halvings in range(keep)} - {0})


def rate_factor(step: int, steps: int) -> float:
    """Return the factor on the learning rates: linear warm-up, then linear decay to zero."""
    return min((step + 1) / _WARM_UP, (steps - step) / max(1, steps - _WARM_UP))


def _loss(model, tokens: torch.Tensor, scored: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed loss of documents and of repeats with their counts, ``[2]`` each.

    Only scored targets are unembedded. A row of documents is scored throughout, which
    tells the two kinds apart.
    """
    import torch

    hidden = model.gpt_neox(tokens, use_cache=False).last_hidden_state[:, :-1]
    keep = scored[:, 1:]
    logits = model.get_output_embeddings()(hidden[keep])
    losses = torch.nn.functional.cross_entropy(logits, tokens[:, 1:][keep], reduction="none")
    is_repeat = (~scored.all(dim=1, keepdim=True)).expand_as(keep)[keep]
    sums = torch.stack([losses[~is_repeat].sum(), losses[is_repeat].sum()])
    counts = torch.stack([(~is_repeat).sum(), is_repeat.sum()])
    return sums, counts


def _backward(
    model, pool: Executor, tokens: torch.Tensor, scored: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Set the gradients of the mean loss; return what ``_loss`` returns.

    Each worker takes its share of the rows. On a machine with other work to do that is much
    faster than letting torch split every single operation between cores.
    """
    import torch

    weights = list(model.parameters())

    def share(worker: int):
        rows = slice(worker, None, _WORKERS)
        sums, counts = _loss(model, tokens[rows], scored[rows])
        return sums.detach(), counts, torch.autograd.grad(sums.sum(), weights)

    all_sums, all_counts, gradients = zip(*pool.map(share, range(_WORKERS)), strict=True)
    sums, counts = torch.stack(all_sums).sum(0), torch.stack(all_counts).sum(0)
    for weight, *parts in zip(weights, *gradients, strict=True):
        weight.grad = torch.stack(parts).sum(0) / counts.sum()
    return sums, counts


@contextmanager
def _workers() -> Iterator[Executor]:
    """Give threads to share the rows, each of which runs torch on one core."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(_WORKERS) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def _optimizer(model) -> torch.optim.Optimizer:
    import torch

    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    vectors = [weight for weight in model.parameters() if weight.dim() == 1]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": _WEIGHT_DECAY},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=_PEAK_RATE,
        betas=(0.9, 0.98),
        fused=True,
    )


def train(
    *,
    out: Path,
    tokens: int = TOKENS,
    seed: int = 0,
    start: int | None = None,
    keep: int = 0,
    device: str = "cpu",
) -> TrainingRun:
    """Train from scratch and leave the model, tokenizer and card in ``out``.

    Checkpoints are written on the way, so an interrupted run leaves its last one.

    Args:
        out: The Hugging Face directory to write.
        tokens: Length of the run, in tokens read.
        seed: Seeds the tokenizer and, without ``start``, all the rest.
        start: Seeds the weights, the documents and the random tokens, so that models of one
            tokenizer can be compared neuron by neuron.
        keep: Number of revisions to keep in ``out/revisions/step<n>``; see ``revisions``.
        device: Where to train.

    Returns:
        What the model card says about the run.

    Raises:
        ValueError: If ``tokens`` is less than one step, or ``keep`` is negative.
    """
    import torch

    steps = tokens // _STEP_TOKENS
    if steps < 1:
        raise ValueError(f"tokens is {tokens}, expected at least {_STEP_TOKENS} (one step)")
    if keep < 0:
        raise ValueError(f"keep is {keep}, expected a number of revisions from 0")
    begun = seed if start is None else start
    kept = set(revisions(steps, keep))
    started = saved = time.monotonic()
    tokenizer = train_tokenizer(seed)
    model = new_model(begun).train()
    model.to(device)  # type: ignore[reportArgumentType]  # transformers' wrapper hides `self`
    optimizer = _optimizer(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, steps))
    recent = torch.zeros(2)
    recent_counts = torch.zeros(2)
    run = TrainingRun(
        seed=seed,
        start=begun,
        device=device,
        threads=_WORKERS,
        parameters=sum(weight.numel() for weight in model.parameters()),
        vocabulary=VOCABULARY,
        context=CONTEXT,
        step_tokens=_STEP_TOKENS,
        peak_rate=_PEAK_RATE,
        warm_up=_WARM_UP,
        weight_decay=_WEIGHT_DECAY,
    )
    with _workers() as pool:
        for step, (batch, scored) in enumerate(batches(tokenizer, begun, steps)):
            sums, counts = _backward(
                model, pool, torch.from_numpy(batch).to(device), torch.from_numpy(scored).to(device)
            )
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            recent += sums.cpu()
            recent_counts += counts.cpu()
            if (step + 1) % _REPORT_EVERY == 0 or step + 1 == steps or step + 1 in kept:
                text, repeat = (recent / recent_counts.clamp(min=1)).tolist()
                now = time.monotonic()
                run = run.at((step + 1) * _STEP_TOKENS, now - started, text, repeat)
                print(
                    f"step {step + 1}/{steps}  {run.tokens / 1e6:.2f} M tokens  "
                    f"{run.seconds:.0f} s  loss: documents {text:.3f}, repeats {repeat:.3f}",
                    flush=True,
                )
                recent.zero_()
                recent_counts.zero_()
                if step + 1 in kept:
                    save(out / f"revisions/step{step + 1}", model, tokenizer, model_card(run))
                if step + 1 == steps or now - saved > _SAVE_SECONDS:
                    save(out, model, tokenizer, model_card(run))
                    saved = now
    # The card judges the file as it is shipped: rounded to float16.
    (out / "README.md").write_text(model_card(run, table(measure(*load(out)))))
    return run


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m mlp_interp.nano.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=weights_path(), help="directory to write")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens to read")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, help="seed of all but the tokenizer")
    parser.add_argument("--keep", type=int, default=0, help="revisions to keep, each half the next")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    train(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
