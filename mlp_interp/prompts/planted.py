"""From the planted tasks' texts to contrasts, in the words that a tokenizer keeps whole."""

from collections import defaultdict
from dataclasses import replace
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from mlp_interp.nano.tasks import Example, examples
from mlp_interp.prompts.contrast import Contrast
from mlp_interp.prompts.tokenizing import encode, is_single_token, tokenizer_name, tokenizer_of

__all__ = ["Split", "contrast_of_task"]

Split = Literal["heldout", "train"]

# How many times as many examples as wanted are written to find enough of one length.
_TRIES = (1, 2, 4, 8)


def contrast_of_task(
    task: str, model: Any, n: int, seed: int, split: Split, prepend_bos: bool
) -> Contrast:
    """Write `n` different pairs of one task, all of one length in tokens.

    Raises:
        ValueError: The task has not so many, or its words are not single tokens.
    """
    if n < 1:
        raise ValueError(f"n={n}; wanted at least 1")
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
    """Which words a tokenizer keeps whole; remembers what it was asked."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.known: dict[str, int | None] = {}

    def accept(self, word: str) -> bool:
        """Whether the word, as it stands in the text, is one token."""
        if word not in self.known:
            single = is_single_token(self.tokenizer, word)
            self.known[word] = encode(self.tokenizer, word)[0] if single else None
        return self.known[word] is not None

    def ids(self, words: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(encode(self.tokenizer, word)[0] for word in words)

    def length(self, example: Example) -> int | None:
        """Tokens of each prompt; None if the pair does not exchange whole words for whole words.

        Words that are single tokens alone may not be in place: Pythia splits " 1732" into " 17" and
        "32", but " 1120" into " 1" and "120".
        """
        clean = encode(self.tokenizer, example.clean)
        corrupted = encode(self.tokenizer, example.corrupted)
        if len(clean) != len(corrupted):
            return None
        differ = {
            t for pair in zip(clean, corrupted, strict=True) if len({*pair}) > 1 for t in pair
        }
        if not differ <= set(self.known.values()):
            return None
        for prompt, tokens, word in (
            (example.clean, clean, example.answer),
            (example.corrupted, corrupted, example.foil),
        ):
            if encode(self.tokenizer, prompt + word) != [*tokens, *self.ids((word,))]:
                return None
        return len(clean)


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
        for example in found:
            groups[words.length(example)].append(example)
        groups.pop(None, None)
        best = max(groups.values(), key=len, default=[])
        if len(best) >= n:
            return best[:n]
    raise ValueError(
        f"task {task!r} has only {len(best)} prompts of one length in tokenizer {name!r}; wanted "
        f"n={n}: ask for fewer"
    )
