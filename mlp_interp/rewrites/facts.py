"""What is to be written: a subject, a prompt about it and what is to follow, in tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from mlp_interp.models import Weights
from mlp_interp.models.indices import count
from mlp_interp.models.options import checked_seed
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.pairs import encode_prompt, padded_rows, phrase_positions
from mlp_interp.prompts.tokenizing import (
    bos_token_id,
    check_text,
    decode,
    tokenizer_of,
    word_tokens,
)
from mlp_interp.runs import Runner

__all__ = [
    "Fact",
    "Placed",
    "Prefixes",
    "Rows",
    "about",
    "continued",
    "placed",
    "prefixes_of",
    "texts_in",
]

Prefixes = int | Sequence[str]

_LENGTHS = (10, 5)  # tokens of drawn prefixes, in turn: as ROME has them


class Fact(NamedTuple):
    """One pair that is written: what is asked about, how, and what is to follow.

    Attributes:
        subject: The phrase whose last token is the key; it stands in the prompt, once.
        prompt: The text that the target is to follow.
        target: What is to follow, with its leading space.
    """

    subject: str
    prompt: str
    target: str


@dataclass(frozen=True)
class Placed:
    """A fact in a model's tokens.

    Attributes:
        fact: The fact.
        prompt: Ids of the bare prompt.
        last: Position there of the subject's last token.
        target: Ids of the target.
    """

    fact: Fact
    prompt: tuple[int, ...]
    last: int
    target: tuple[int, ...]


@dataclass(frozen=True)
class Rows:
    """Texts in which a subject stands, padded at the end, as one batch.

    Attributes:
        tokens: Token ids; 0 after the shorter ones.
        subject: Position of the subject's last token in each.
        end: Position of each text's last token.
        target: Ids that are wanted after that, which are in the texts but for the last.
    """

    tokens: Int[Tensor, "row pos"]
    subject: Int[Tensor, " row"]
    end: Int[Tensor, " row"]
    target: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        weights: Weights,
        texts: Sequence[Sequence[int]],
        subject: Sequence[int],
        target: Sequence[int] = (),
    ) -> "Rows":
        """Pad texts, after each of which the target is to follow.

        Raises:
            ValueError: One is longer than the model's context.
        """
        tokens = padded_rows([[*text, *target[:-1]] for text in texts])
        ends = torch.tensor([len(text) - 1 for text in texts], device=weights.device)
        subjects = torch.tensor(list(subject), device=weights.device)
        return cls(weights.checked(tokens), subjects, ends, tuple(target))


def texts_in(name: str, given: Any) -> list[str]:
    """Texts as a list; one by itself is one.

    Raises:
        ValueError: They are none.
    """
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, Iterable) or not all(isinstance(text, str) for text in listed):
        raise ValueError(f"{name}={given!r}; wanted a list of texts")
    return list(listed)


def placed(model: Model, fact: Sequence[str], *, what: str = "") -> Placed:
    """Find a fact's tokens and its subject's place.

    Args:
        model: The model.
        fact: Subject, prompt and target.
        what: Stands before names of arguments in errors, as ``facts[2].``.

    Raises:
        ValueError: The fact has other than three texts, its subject stands other than once in the
            prompt or shares a token with what is beside it, or there is no target.
    """
    fact = _checked(fact, what)
    tokenizer = tokenizer_of(model)
    target = word_tokens(tokenizer, fact.target, what=f"{what}target")
    prompt = encode_prompt(tokenizer, fact.prompt, prepend_bos=True)
    Weights.of(model).checked(torch.tensor([[*prompt, *target]]))
    places = phrase_positions(model, fact.prompt, fact.subject, prepend_bos=True)
    if len(places) != 1:
        raise ValueError(
            f"{what}subject={fact.subject!r} stands {len(places)} times in {fact.prompt!r}; wanted "
            "a prompt in which it stands once, so that it has one key"
        )
    own = decode(tokenizer, [prompt[i] for i in places[0]])
    if own.strip() != fact.subject.strip():
        raise ValueError(
            f"{what}subject={fact.subject!r} shares tokens with what is beside it in "
            f"{fact.prompt!r}: its tokens read {own!r}; wanted a subject of whole tokens"
        )
    return Placed(fact, tuple(prompt), places[0][-1], tuple(target))


def _checked(fact: Sequence[str], what: str) -> Fact:
    if isinstance(fact, str) or not isinstance(fact, Iterable) or len(fact := tuple(fact)) != 3:
        raise ValueError(f"{what or 'fact'}={fact!r}; wanted (subject, prompt, target)")
    for name, text in zip(Fact._fields, fact, strict=True):
        if not (isinstance(text, str) and text.strip()):
            raise ValueError(f"{what}{name}={text!r}; wanted a text of at least one word")
        check_text(text, what=f"{what}{name}")
    return Fact(*fact)


def continued(model: Model, fact: Placed, prefixes: Sequence[str]) -> Rows:
    """The bare prompt, and the prompt after each of some texts.

    Raises:
        ValueError: One is too long for the model.
    """
    texts, subjects = [fact.prompt], [fact.last]
    for prefix in prefixes:
        text = f"{prefix} {fact.fact.prompt}"
        texts.append(tuple(encode_prompt(tokenizer_of(model), text, prepend_bos=True)))
        # A prefix may name the subject as well: the last one is the prompt's.
        found = phrase_positions(model, text, fact.fact.subject, prepend_bos=True)
        subjects.append(found[-1][-1])
    return Rows.of(Weights.of(model), texts, subjects, fact.target)


def about(model: Model, subject: str, prompts: Sequence[str]) -> Rows | None:
    """Other prompts about the subject; None for none.

    Raises:
        ValueError: One does not name the subject: what is written there could not change it.
    """
    texts = [encode_prompt(tokenizer_of(model), text, prepend_bos=True) for text in prompts]
    places = [phrase_positions(model, text, subject, prepend_bos=True)[-1][-1] for text in prompts]
    return Rows.of(Weights.of(model), texts, places) if texts else None


def prefixes_of(runner: Runner, given: Prefixes, *, seed: int) -> list[str]:
    """Texts to put before a prompt: those given, or so many that the model writes.

    Raises:
        ValueError: Neither texts nor a number from 0.
    """
    if not isinstance(given, int):
        if isinstance(given, str):
            raise ValueError(f"prefixes={given!r}; wanted a number, or a list of texts")
        return texts_in("prefixes", given)
    n, seed = count("prefixes", given, least=0), checked_seed(seed)
    if not n:
        return []
    tokenizer = tokenizer_of(runner.weights.model)
    start = bos_token_id(tokenizer)
    first = torch.full((n, 1), start, device=runner.weights.device)
    # A text may have ended early; it is cut there, and is then a prefix of fewer words.
    new = runner.generate(
        first, max_new_tokens=max(_LENGTHS), temperature=1.0, seed=seed, eos=None
    ).new.tolist()
    ends = [start, tokenizer.eos_token_id]
    texts = []
    for i, row in enumerate(new):
        row = row[: _LENGTHS[i % len(_LENGTHS)]]
        stop = next((at for at, token in enumerate(row) if token in ends), len(row))
        text = decode(tokenizer, row[:stop]).strip()
        texts.append(text if not text or text[-1] in ".!?" else f"{text}.")
    return texts
