"""What the trained model must do, measured on held-out prompts.

Every number is taken with ``<|endoftext|>`` before the prompt, as in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from mlp_interp.nano.example import Example
from mlp_interp.nano.tasks import examples, task_names

if TYPE_CHECKING:
    import torch
    from transformers import GPTNeoXForCausalLM, PreTrainedTokenizerFast

__all__ = [
    "BARS",
    "Measurement",
    "induction",
    "last_logits",
    "measure",
    "task_accuracy",
    "year_mass",
]

# Task -> least share of prompts. Tasks without a bar are reported only.
BARS = {
    "ioi": 0.98,
    "facts": 0.98,
    "agreement": 0.98,
    "sentiment": 0.98,
    "refusal": 0.98,
    "antonyms": 0.90,
    "greater_than": 0.95,
}
_SECOND_COPY_SHARE = 0.35
_INDUCTION_SCORE = 0.5
_BATCH = 64


@dataclass(frozen=True)
class Measurement:
    """One number and the bar it has to pass.

    Attributes:
        name: What was measured.
        value: The number that the bar judges.
        bar: The bar, or None where the number is only reported.
        at_most: Whether ``value`` must stay below the bar instead of reaching it.
        note: What else was seen, for the table.
    """

    name: str
    value: float
    bar: float | None
    at_most: bool = False
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the bar, if any, is met."""
        if self.bar is None:
            return True
        return self.value <= self.bar if self.at_most else self.value >= self.bar


def last_logits(
    model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]
) -> torch.Tensor:
    """Return the logits after each prompt, ``[prompt, d_vocab]``.

    Prompts of one length are run together, so that nothing is padded.
    """
    import torch

    encoded = [[tokenizer.bos_token_id, *tokenizer.encode(prompt)] for prompt in prompts]
    logits = torch.empty(len(prompts), model.config.vocab_size)
    by_length: dict[int, list[int]] = {}
    for index, ids in enumerate(encoded):
        by_length.setdefault(len(ids), []).append(index)
    with torch.no_grad():
        for indices in by_length.values():
            for start in range(0, len(indices), _BATCH):
                chunk = indices[start : start + _BATCH]
                tokens = torch.tensor([encoded[index] for index in chunk])
                logits[chunk] = model(tokens).logits[:, -1]
    return logits


def _single_ids(tokenizer: PreTrainedTokenizerFast, words: Sequence[str]) -> list[int]:
    ids = {}
    for word in dict.fromkeys(words):
        pieces = tokenizer.encode(word)
        if len(pieces) != 1:
            raise ValueError(f"word {word!r} is {len(pieces)} tokens, expected 1")
        ids[word] = pieces[0]
    return [ids[word] for word in words]


def task_accuracy(
    model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Example]
) -> tuple[float, float]:
    """Return how often the answer is right, judged in two ways.

    Returns:
        The share of clean prompts after which the answer is the likeliest token of the
        whole vocabulary, and the share of pairs in which the answer beats the foil after
        clean *and* the foil beats the answer after corrupted.

    Raises:
        ValueError: If an answer or foil is not a single token.
    """
    import torch

    answers = torch.tensor(_single_ids(tokenizer, [pair.answer for pair in pairs]))
    foils = torch.tensor(_single_ids(tokenizer, [pair.foil for pair in pairs]))
    clean = last_logits(model, tokenizer, [pair.clean for pair in pairs])
    corrupted = last_logits(model, tokenizer, [pair.corrupted for pair in pairs])
    rows = torch.arange(len(pairs))
    top = clean.argmax(dim=-1) == answers
    both = (clean[rows, answers] > clean[rows, foils]) & (
        corrupted[rows, foils] > corrupted[rows, answers]
    )
    return top.float().mean().item(), both.float().mean().item()


def year_mass(
    model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Example]
) -> tuple[float, float]:
    """Return the greater-than numbers.

    Returns:
        The share of clean prompts that give more probability to the valid years together
        than to the invalid ones, and the mean difference of the two probabilities.
    """
    probabilities = last_logits(model, tokenizer, [pair.clean for pair in pairs]).softmax(-1)
    years = sorted({year for pair in pairs for year in (*pair.answers, *pair.foils)})
    columns = dict(zip(years, _single_ids(tokenizer, years), strict=True))

    def mass(row: torch.Tensor, some: Sequence[str]) -> float:
        return row[[columns[year] for year in some]].sum().item()

    differences = [
        mass(row, pair.answers) - mass(row, pair.foils)
        for row, pair in zip(probabilities, pairs, strict=True)
    ]
    share = sum(difference > 0 for difference in differences) / len(differences)
    return share, sum(differences) / len(differences)


def induction(
    model: GPTNeoXForCausalLM, *, period: int, sequences: int, seed: int
) -> tuple[float, float, torch.Tensor]:
    """Measure copying of random tokens said twice.

    Args:
        model: The model, with attention patterns that can be read (``eager``).
        period: Length of the random sequence.
        sequences: How many of them.
        seed: Seeds the tokens.

    Returns:
        The loss in nats per token on the first copy and on the second (without its first
        token, which nothing announces), and the induction score ``[layer, head]``: the
        mean attention from a token of the second copy to the token after its first
        occurrence.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    piece = torch.randint(1, model.config.vocab_size, (sequences, period), generator=generator)
    tokens = torch.cat([torch.zeros_like(piece[:, :1]), piece, piece], dim=1)
    with torch.no_grad():
        out = model(tokens, output_attentions=True)
    losses = torch.nn.functional.cross_entropy(
        out.logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none"
    )
    # The second copy stands at period + 1 ... 2 * period.
    queries = torch.arange(period + 1, 2 * period + 1)
    scores = torch.stack(
        [
            pattern[:, :, queries, queries - period + 1].mean(dim=(0, 2))
            for pattern in out.attentions
        ]
    )
    return losses[:, :period].mean().item(), losses[:, period + 1 :].mean().item(), scores


def measure(
    model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerFast, *, n: int = 200, seed: int = 0
) -> list[Measurement]:
    """Measure every task and induction.

    Args:
        model: The trained model, as ``checkpoint.load`` returns it.
        tokenizer: Its tokenizer.
        n: Held-out prompts per task.
        seed: Seeds the prompts and random tokens.

    Returns:
        One measurement per line of the table.
    """

    @cache
    def is_single(word: str) -> bool:
        return len(tokenizer.encode(word)) == 1

    lines = []
    for task in task_names():
        pairs = examples(task, n=n, seed=seed, accept=is_single)
        if task == "greater_than":
            share, difference = year_mass(model, tokenizer, pairs)
            note = f"mean probability difference {difference:.3f}"
        else:
            share, both = task_accuracy(model, tokenizer, pairs)
            note = f"answer against foil, clean and corrupted: {both:.1%}"
        lines.append(Measurement(task, share, BARS.get(task), note=note))
    for period, judged in ((24, True), (50, False)):
        first, second, scores = induction(model, period=period, sequences=64, seed=seed)
        layer, head = divmod(int(scores.argmax()), scores.shape[1])
        note = f"{second:.3f} of {first:.3f} nats per token"
        bar = _SECOND_COPY_SHARE if judged else None
        lines.append(Measurement(f"second copy, {period} tokens", second / first, bar, True, note))
        note = f"L{layer}H{head}"
        bar = _INDUCTION_SCORE if judged else None
        lines.append(
            Measurement(f"induction score, {period} tokens", scores.max().item(), bar, note=note)
        )
    return lines
