"""From pairs of texts to the tensors of a `Contrast`."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mlp_interp.models import Weights
from mlp_interp.models.caches import is_cache
from mlp_interp.models.protocol import Model
from mlp_interp.models.tokens import tokens_in
from mlp_interp.prompts.tokenizing import (
    bos_token_id,
    check_text,
    encode,
    encode_all,
    token_strings,
    tokenizer_if_any,
    tokenizer_of,
    vocabulary_size,
    warn_of_unknown,
    word_tokens,
)

__all__ = ["encode_prompt", "padded_rows", "phrase_positions", "tokenize_pairs"]

_WHOLE = {"answers": "answer_tokens", "foils": "foil_tokens"}
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


def tokenize_pairs(
    model: Model,
    prompts: Mapping[str, Any],
    words: Mapping[str, Any],
    *,
    subjects: Sequence[str | None] | None,
    prepend_bos: bool,
) -> dict[str, Any]:
    """Tokenise clean and corrupted prompts, answers and foils.

    Args:
        model: A model, with a tokenizer if there are texts; or a tokenizer.
        prompts: ``clean`` and ``corrupted``: texts, ids, or runs or caches of them.
        words: ``answers`` and ``foils``: words or ids.
        subjects: The exchanged phrase of each clean prompt.
        prepend_bos: Whether prompts begin with BOS.

    Returns:
        The tensors of a `Contrast`, by field.

    Raises:
        ValueError: As `Contrast.of` says.
    """
    prompts = {name: _taken(model, given) for name, given in prompts.items()}
    listed: dict[str, list] = {name: _listed(given) for name, given in {**prompts, **words}.items()}
    texts = any(isinstance(one, str) for given in listed.values() for one in given)
    tokenizer: Any = tokenizer_of(model) if texts else tokenizer_if_any(model)
    if subjects is not None and not all(isinstance(text, str) for text in listed["clean"]):
        raise ValueError(f"subjects={list(subjects)} of prompts given as ids; wanted texts")
    _check_counts({**listed, **({} if subjects is None else {"subjects": list(subjects)})})
    for name in prompts:
        for prompt, text in enumerate(listed[name]):
            if not (text.strip() if isinstance(text, str) else isinstance(text, list) and text):
                raise ValueError(f"{name}[{prompt}]={text!r}; wanted a prompt of at least one word")
            if isinstance(text, str):
                check_text(text, what=f"{name}[{prompt}]")
    clean, corrupted = (_ids(tokenizer, listed[name], prepend_bos) for name in prompts)
    _check_lengths(tokenizer, clean, corrupted)
    ids = {name: _tokens(model, listed[name], what=name) for name in words}
    for name, rows in (("clean", clean), ("corrupted", corrupted)):
        for prompt, row in enumerate(rows):
            _check_vocabulary(model, max(row), what=f"{name}[{prompt}]")
    return {
        "clean_tokens": padded_rows(clean),
        "corrupted_tokens": padded_rows(corrupted),
        "lengths": torch.tensor([len(row) for row in clean]),
        **{name: torch.tensor([tokens[0] for tokens in found]) for name, found in ids.items()},
        **{_WHOLE[name]: tuple(map(tuple, found)) for name, found in ids.items()},
        "subject": None
        if subjects is None
        else _subject_mask(tokenizer, listed["clean"], clean, corrupted, subjects),
    }


def _taken(model: Model, given: Any) -> Any:
    """Prompts as texts or lists of ids, whatever they were given as."""
    if is_cache(given):
        given = tokens_in(Weights.of(model), given)
    if not isinstance(given, Tensor):
        return given
    if given.is_floating_point() or given.ndim not in (1, 2):
        raise ValueError(f"tokens={tuple(given.shape)} wanted integers [pos] or [prompt, pos]")
    return (given if given.ndim == 2 else given[None]).tolist()


def _ids(
    tokenizer: PreTrainedTokenizerBase | None, given: list[str] | list[list[int]], prepend_bos: bool
) -> list[list[int]]:
    """Token ids of texts; ids are taken as they are."""
    if tokenizer is None or not isinstance(given[0], str):
        return [list(row) for row in cast("list[list[int]]", given)]
    texts = encode_all(tokenizer, [str(text) for text in given])
    for text, ids in zip(given, texts, strict=True):
        warn_of_unknown(tokenizer, str(text), ids)
    return [_with_bos(tokenizer, ids, prepend_bos=prepend_bos) for ids in texts]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str, *, prepend_bos: bool) -> list[int]:
    """Token ids of a prompt, beginning with one BOS if that is asked for.

    Raises:
        ValueError: The text holds a NUL.
    """
    check_text(text, what="prompt")
    ids = encode(tokenizer, text)
    warn_of_unknown(tokenizer, text, ids)
    return _with_bos(tokenizer, ids, prepend_bos=prepend_bos)


def _with_bos(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], *, prepend_bos: bool
) -> list[int]:
    if not prepend_bos:
        return ids
    bos = bos_token_id(tokenizer)
    return ids if ids[:1] == [bos] else [bos, *ids]


def phrase_positions(model: Model, text: str, phrase: str, *, prepend_bos: bool) -> list[list[int]]:
    """Positions of a phrase's tokens in a prompt: a list for each time that it stands there.

    As a phrase of whole words: ``"John"`` is not in ``"Johnson"``.

    Raises:
        ValueError: The phrase is not in the text, or only inside of other words, or the tokenizer
            cannot say where tokens begin.
    """
    tokenizer = tokenizer_of(model)
    if not tokenizer.is_fast:
        raise ValueError(
            f"tokenizer={type(tokenizer).__name__} does not say where its tokens begin; wanted a "
            "fast tokenizer, or positions"
        )
    length = len(encode_prompt(tokenizer, text, prepend_bos=prepend_bos))
    found = _occurrences(_spans(tokenizer, [text])[0], text, phrase, length)
    if not found:
        raise ValueError(f"subject={phrase!r} {_absence(text, phrase)} the prompt {text!r}")
    return [sorted(positions) for positions in found]


def _listed(given: str | int | Sequence | Tensor) -> list:
    given = given.tolist() if isinstance(given, Tensor) else given
    return [given] if isinstance(given, str | int) else list(given)


def _check_counts(listed: Mapping[str, list]) -> None:
    counts = {name: len(items) for name, items in listed.items()}
    if len(set(counts.values())) > 1 or not counts["clean"]:
        found = ", ".join(f"{name}={count}" for name, count in counts.items())
        raise ValueError(f"got {found}; wanted equally many of each, and at least one")


def _check_lengths(
    tokenizer: PreTrainedTokenizerBase | None,
    clean: list[list[int]],
    corrupted: list[list[int]],
) -> None:
    for prompt, (one, other) in enumerate(zip(clean, corrupted, strict=True)):
        if len(one) != len(other):
            raise ValueError(
                f"prompt {prompt}: clean has {len(one)} tokens and corrupted has {len(other)}; "
                "wanted equal lengths, so that positions line up\n"
                f"  clean     {_tokens_shown(tokenizer, one)}\n"
                f"  corrupted {_tokens_shown(tokenizer, other)}"
            )


def padded_rows(rows: Sequence[Sequence[int]]) -> Int[Tensor, "prompt pos"]:
    """Token ids of several lengths as one tensor, with 0 after the shorter ones."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])


def _tokens_shown(tokenizer: PreTrainedTokenizerBase | None, ids: list[int]) -> str:
    return "|".join(token_strings(tokenizer, ids))


def _tokens(model: Model, words: list[str | int], *, what: str) -> list[list[int]]:
    """The tokens of each word; each different word is looked up once."""
    found: dict[str | int, list[int]] = {}
    for i, word in enumerate(words):
        if word not in found:
            found[word] = _word(model, word, what=f"{what}[{i}]")
    return [found[word] for word in words]


def _word(model: Model, word: str | int, *, what: str) -> list[int]:
    is_text = isinstance(word, str)
    tokens = word_tokens(tokenizer_of(model), word, what=what) if is_text else [int(word)]
    for token in tokens:
        _check_vocabulary(model, token, what=what)
    return tokens


def _check_vocabulary(model: Model, token: int, *, what: str) -> None:
    size = vocabulary_size(model)
    if not 0 <= token < size:
        raise ValueError(f"{what}: token {token} is outside the vocabulary; wanted 0 to {size - 1}")


def _subject_mask(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    clean: list[list[int]],
    corrupted: list[list[int]],
    subjects: Sequence[str | None],
) -> Bool[Tensor, "prompt pos"] | None:
    """True at the tokens of each prompt's subject; None if the tokenizer cannot say where it is."""
    if not tokenizer.is_fast:
        return None
    mask = torch.zeros(len(clean), max(map(len, clean)), dtype=torch.bool)
    spans = _spans(tokenizer, texts)
    for prompt, subject in enumerate(subjects):
        if subject is None:
            continue
        changed = {
            i
            for i, pair in enumerate(zip(clean[prompt], corrupted[prompt], strict=True))
            if pair[0] != pair[1]
        }
        place = spans[prompt], texts[prompt], subject, len(clean[prompt])
        found = _occurrences(*place)
        if not found and subject.strip().isdigit():  # digits of a number, exchanged there: of 1694
            found = [p for p in _occurrences(*place, inside=True) if changed & p]
        if not found:
            raise ValueError(
                f"subjects[{prompt}]={subject!r} {_absence(texts[prompt], subject)} clean prompt "
                f"{texts[prompt]!r}"
            )
        # A name may stand twice of which one was exchanged: that one is the subject.
        for positions in [p for p in found if changed & p] or found:
            mask[prompt, sorted(positions)] = True
    return mask


def _spans(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[tuple[int, int]]]:
    """Where in its text each token begins and ends."""
    return tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"
    ]


def _occurrences(
    spans: list[tuple[int, int]], text: str, phrase: str, length: int, *, inside: bool = False
) -> list[set[int]]:
    """Token positions of each occurrence of a phrase, counted so that the text ends at `length`.

    Of whole words, or also `inside` of others.
    """
    shift = length - len(spans)  # 1 where BOS was added
    found, start = [], text.find(phrase) if phrase else -1
    while start >= 0:
        end = start + len(phrase)
        if inside or not (_goes_on(text, start) or _goes_on(text, end)):
            found.append({i + shift for i, (a, b) in enumerate(spans) if a < end and b > start})
        start = text.find(phrase, start + 1)
    return found


def _absence(text: str, phrase: str) -> str:
    """Why a phrase was not found."""
    return "stands only inside of other words in" if phrase and phrase in text else "is not in"


def _goes_on(text: str, place: int) -> bool:
    """Whether a word goes on across a place of a text."""
    return 0 < place < len(text) and _in_word(text[place - 1]) and _in_word(text[place])


def _in_word(char: str) -> bool:
    """Whether it is of a word that ends where others do not: not in scripts without spaces.

    Korean has spaces, but particles follow its nouns without.
    """
    if unicodedata.category(char)[0] not in "LMN":
        return char == "_"
    return not unicodedata.name(char, "").startswith(_UNSPACED)
