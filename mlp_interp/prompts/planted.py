"""From the planted tasks' texts to contrasts, in the words that a tokenizer keeps whole."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from mlp_interp.models.indices import count
from mlp_interp.models.options import checked_seed
from mlp_interp.models.protocol import Model
from mlp_interp.nano.tasks import Example, examples
from mlp_interp.prompts.contrast import Contrast
from mlp_interp.prompts.tokenizing import (
    encode_all,
    is_single_token,
    tokenizer_name,
    tokenizer_of,
)

__all__ = ["Split", "contrast_of_task"]

Split = Literal["heldout", "train"]

_MOST = 100_000  # more would be written for hours before it is known whether there are so many

# How many times as many examples as wanted are written to find enough of one length.
_TRIES = (1, 2, 4, 8)


def contrast_of_task(
    task: str, model: Model, n: Any, seed: Any, split: Split, prepend_bos: bool
) -> Contrast:
    """Write `n` different pairs of one task, all of one length in tokens.

    Raises:
        ValueError: The task has not so many, or its words are not single tokens.
    """
    n, seed = count("n", n, most=_MOST, hint=" pairs"), checked_seed(seed)
    words = _Words(tokenizer_of(model))
    found = _of_one_length(task, words, n=n, seed=seed, split=split, name=tokenizer_name(model))
    contrast = Contrast.of(
        model,
        [example.clean for example in found],
        [example.corrupted for example in found],
        [example.answer for example in found],
        [example.foil for example in found],
        subjects=[example.subject for example in found],
        prepend_bos=prepend_bos,
        task=task,
    )
    return replace(
        contrast,
        all_answers=tuple(words.ids(example.answers) for example in found),
        all_foils=tuple(words.ids(example.foils) for example in found),
        attrs={**contrast.attrs, "seed": seed, "split": split},
    )


class _Words:
    """Which words a tokenizer keeps whole, and how texts read in it; asks it about each once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.known: dict[str, int | None] = {}
        self.encoded: dict[str, list[int]] = {}

    def accept(self, word: str) -> bool:
        """Whether the word, as it stands in the text, is one token."""
        if word not in self.known:
            single = is_single_token(self.tokenizer, word)
            self.known[word] = self.ids((word,))[0] if single else None
        return self.known[word] is not None

    def ids(self, words: tuple[str, ...]) -> tuple[int, ...]:
        """First token of each word."""
        self.read(words)
        return tuple(self.encoded[word][0] for word in words)

    def read(self, texts: Iterable[str]) -> None:
        """Encode the texts that are new, all in one call."""
        new = list(dict.fromkeys(text for text in texts if text not in self.encoded))
        self.encoded.update(zip(new, encode_all(self.tokenizer, new), strict=True))

    def lengths(self, examples: Sequence[Example]) -> list[int | None]:
        """Tokens of each prompt; None if a pair does not exchange whole words for whole words."""
        self.read(text for example in examples for text in _texts(example))
        return [self._length(example) for example in examples]

    def _length(self, example: Example) -> int | None:
        """As `lengths`.

        Words that are single tokens alone may not be in place: Pythia splits " 1732" into " 17" and
        "32", but " 1120" into " 1" and "120".
        """
        clean, corrupted, answered, foiled = (self.encoded[text] for text in _texts(example)[:4])
        if len(clean) != len(corrupted):
            return None
        differ = {
            t for pair in zip(clean, corrupted, strict=True) if len({*pair}) > 1 for t in pair
        }
        if not differ <= set(self.known.values()):
            return None
        if answered != [*clean, *self.ids((example.answer,))]:
            return None
        return len(clean) if foiled == [*corrupted, *self.ids((example.foil,))] else None


def _texts(example: Example) -> tuple[str, ...]:
    """All that is to be encoded of an example: prompts alone, with their next word, the words."""
    clean, corrupted = example.clean, example.corrupted
    prompts = (clean, corrupted, clean + example.answer, corrupted + example.foil)
    return (*prompts, example.answer, example.foil)


def _of_one_length(
    task: str, words: _Words, *, n: int, seed: int, split: Split, name: str
) -> list[Example]:
    """Write examples until `n` of them have one length in tokens, the most common one."""
    best: list[Example] = []
    for times in _TRIES:
        try:
            found = examples(task, n=times * n, seed=seed, accept=words.accept, split=split)
        except ValueError as error:
            if times > 1:
                break  # there are not so many; n of them were not enough of one length
            raise ValueError(
                f"task {task!r} cannot give n={n} prompts in the words that are single tokens of "
                f"tokenizer {name!r}: {error}"
            ) from error
        groups: dict[int | None, list[Example]] = defaultdict(list)
        for example, length in zip(found, words.lengths(found), strict=True):
            groups[length].append(example)
        groups.pop(None, None)
        best = max(groups.values(), key=len, default=[])
        if len(best) >= n:
            return best[:n]
    raise ValueError(
        f"task {task!r} has only {len(best)} prompts of one length in tokenizer {name!r}; wanted "
        f"n={n}: ask for fewer"
    )
