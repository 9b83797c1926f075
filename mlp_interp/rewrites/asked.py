"""What a rewritten model is asked: prompts, what is wanted after each, and its rivals."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.edits import Edit
from mlp_interp.metrics.rows import batches
from mlp_interp.models import Weights
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.pairs import encode_prompt, padded_rows
from mlp_interp.prompts.tokenizing import tokenizer_of, word_tokens
from mlp_interp.rewrites.facts import Fact
from mlp_interp.rewrites.result import Rewrite
from mlp_interp.runs import Runner

__all__ = ["KINDS", "Answered", "Asked", "Prompted", "answered", "asked_of", "settled", "tops_of"]

Prompted = Sequence[str | tuple[str, str]]
"""Prompts, by themselves or each with what is right after it."""

KINDS = ("efficacy", "paraphrase", "neighbourhood", "same_subject", "reverse")
_BATCH = 64


@dataclass(frozen=True)
class Asked:
    """One prompt.

    Attributes:
        kind: Which score it counts for.
        text: The prompt.
        ids: Its tokens.
        answer: Tokens that are wanted after it; None for what the model says now.
        rivals: Tokens that it competes with, the likeliest of several; empty for what the model
            says now.
        first_only: Whether one of these is what the model says now, a single token, so that first
            tokens are compared.
    """

    kind: str
    text: str
    ids: tuple[int, ...]
    answer: tuple[int, ...] | None
    rivals: tuple[tuple[int, ...], ...]
    first_only: bool = False

    @property
    def alike(self) -> bool:
        """Whether what is wanted and a rival are one, so that there is nothing to compare."""
        answer = self.compared(self.answer or ())
        return answer in [self.compared(rival) for rival in self.rivals]

    def compared(self, words: tuple[int, ...]) -> tuple[int, ...]:
        """The part of an answer that is compared."""
        return words[:1] if self.first_only else words


@dataclass(frozen=True)
class Answered:
    """What the model says after one prompt.

    Attributes:
        answer: Log-probability of what is wanted, nats, of all its tokens.
        rival: Of the likeliest of its rivals.
        top: The likeliest next token.
        compared: As the first two, of what is compared.
    """

    answer: float
    rival: float
    top: int
    compared: tuple[float, float]


def asked_of(model: Model, rewrite: Rewrite, prompts: Mapping[str, Prompted]) -> list[Asked]:
    """Prompts of every kind in tokens, the rewritten ones first.

    Raises:
        ValueError: One is no prompt, is too long, or names none of several subjects.
    """
    facts = rewrite.facts
    found = [_asked(model, "efficacy", fact.prompt, facts) for fact in facts]
    for kind, given in prompts.items():
        found += [
            _asked(model, kind, one, facts, what=f"{kind}[{n}]") for n, one in enumerate(given)
        ]
    for one in found:
        longest = max(map(len, [one.answer or (0,), *(one.rivals or [(0,)])]))
        Weights.of(model).checked(torch.tensor([[*one.ids, *[0] * (longest - 1)]]))
    return found


def _asked(
    model: Model, kind: str, given: str | tuple[str, str], facts: Sequence[Fact], *, what: str = ""
) -> Asked:
    text, right = _text_and_answer(given, what)
    if not text.strip():
        raise ValueError(f"{what}={text!r}; wanted a prompt of at least one word")
    ids = tuple(encode_prompt(tokenizer_of(model), text, prepend_bos=True))
    answer = None if right is None else _words(model, right, what)
    if kind == "neighbourhood":
        targets = tuple(_words(model, fact.target, what) for fact in facts)
        return Asked(kind, text, ids, answer, targets)
    own = _fact_of(text, facts, by="target" if kind == "reverse" else "subject", what=what)
    if kind == "reverse":
        return Asked(kind, text, ids, answer or _words(model, f" {own.subject}", what), ())
    target = _words(model, own.target, what)
    if kind == "same_subject":
        return Asked(kind, text, ids, answer, (target,))
    return Asked(kind, text, ids, answer or target, ())


def _text_and_answer(given: Any, what: str) -> tuple[str, str | None]:
    """A prompt, and what is right after it, if that is said.

    Raises:
        ValueError: It is neither a text nor a pair of texts.
    """
    if isinstance(given, str):
        return given, None
    match tuple(given) if isinstance(given, Iterable) else ():
        case (str(text), str() | None as right):
            return text, right
    raise ValueError(f"{what}={given!r}; wanted a text, or a pair of it and what is right")


def _words(model: Model, word: str, what: str) -> tuple[int, ...]:
    return tuple(word_tokens(tokenizer_of(model), word, what=what or "target"))


def _fact_of(text: str, facts: Sequence[Fact], *, by: str, what: str) -> Fact:
    """The fact that a prompt is about."""
    named = [fact for fact in facts if getattr(fact, by).strip() in text]
    if not named:
        words = ", ".join(repr(getattr(fact, by)) for fact in facts)
        raise ValueError(f"{what}={text!r} names no {by} that was rewritten; wanted {words} in it")
    return named[0]


def settled(asked: Sequence[Asked], tops: Sequence[int]) -> list[Asked]:
    """The same with what the model says now put where that is meant."""
    found = []
    for one, top in zip(asked, tops, strict=True):
        answer = (top,) if one.answer is None else one.answer
        said = one.answer is None or not one.rivals
        rivals = one.rivals or ((top,),)
        found.append(replace(one, answer=answer, rivals=rivals, first_only=said))
    return found


def tops_of(runner: Runner, asked: Sequence[Asked], edits: Sequence[Edit]) -> list[int]:
    """The likeliest token after each prompt."""
    logs = _after(runner, [(one.ids, ()) for one in asked], edits)
    return [int(logs[one.ids, ()][0].argmax()) for one in asked]


def answered(runner: Runner, asked: Sequence[Asked], edits: Sequence[Edit]) -> list[Answered]:
    """What the model says after each prompt, with edits or without."""
    texts = [
        (one.ids, words[:-1]) for one in asked for words in (one.answer or (), *one.rivals, ())
    ]
    logs = _after(runner, texts, edits)
    found = []
    for one in asked:
        pairs = [
            (
                _total(logs, one.ids, of(one.answer or ())),
                max(_total(logs, one.ids, of(rival)) for rival in one.rivals),
            )
            for of in (tuple, one.compared)
        ]
        found.append(Answered(*pairs[0], int(logs[one.ids, ()][0].argmax()), pairs[1]))
    return found


_Text = tuple[tuple[int, ...], tuple[int, ...]]
"""A prompt, and tokens that follow it."""


def _total(logs: Mapping[_Text, Tensor], ids: tuple[int, ...], words: tuple[int, ...]) -> float:
    """Log-probability of all tokens of an answer."""
    found = logs[ids, words[:-1]]
    return float(sum(found[n, word] for n, word in enumerate(words)))


@torch.no_grad()
def _after(
    runner: Runner, texts: Sequence[_Text], edits: Sequence[Edit]
) -> dict[_Text, Float[Tensor, "next d_vocab"]]:
    """Log-probabilities after prompts, and after each of the tokens that follow them."""
    found = {}
    for some in batches(dict.fromkeys(texts), _BATCH):
        tokens = padded_rows([[*ids, *more] for ids, more in some])
        final = runner.run(tokens, edits=edits).final
        for row, (ids, more) in zip(final, some, strict=True):
            logits = runner.unembed.logits(row[len(ids) - 1 : len(ids) + len(more)])
            found[ids, more] = logits.float().log_softmax(-1).cpu()
    return found
