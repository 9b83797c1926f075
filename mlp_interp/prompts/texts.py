"""Texts of any lengths as tokens: each by itself, or padded at the end to one length."""

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mlp_interp.models import Weights
from mlp_interp.models.from_end import check_from_end
from mlp_interp.models.padding import Padded, Padding, packed, right_padded
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.contrast import Contrast
from mlp_interp.prompts.pairs import encode_prompt, padded_rows
from mlp_interp.prompts.tokenizing import check_text, tokenizer_of
from mlp_interp.results import tokens_of

__all__ = [
    "Prompts",
    "Texts",
    "padded_texts",
    "texts_of",
    "texts_of_side",
    "tokens_to_run",
    "warn_of_one",
]

_SHOWN = 80  # letters of a text in an error
_LONGEST_NAME = 250  # of a file: a longer text is none, and to ask would be an error

# Without names: two sets of prompts need not be as many, nor as long.
Prompts = str | Sequence[str] | Sequence[Sequence[int]] | Sequence[Tensor] | Int[Tensor, "_ _"]


@dataclass(frozen=True)
class Texts:
    """Prompts as token ids, of whatever lengths.

    Attributes:
        rows: The ids.
        bos: The token that begins texts.
        about: What results say of them.
    """

    rows: tuple[tuple[int, ...], ...]
    bos: int | None
    about: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shortest(self) -> int:
        """Tokens of the shortest one."""
        return min(map(len, self.rows))

    def batches(self, size: int) -> Iterator[tuple[list[int], Int[Tensor, "batch pos"], int]]:
        """Texts of equal length together, so that nothing is padded.

        Yields:
            Which texts, their tokens, and the first position that is not BOS.
        """
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for n, row in enumerate(self.rows):
            groups[len(row), int(len(row) > 1 and row[0] == self.bos)].append(n)
        for (_, first), group in groups.items():
            for start in range(0, len(group), size):
                part = group[start : start + size]
                yield part, torch.tensor([self.rows[n] for n in part]), first


def texts_of_side(
    model: Model, contrast: Contrast, which: Literal["clean", "corrupted"] = "clean"
) -> Texts:
    """One side of a contrast, each prompt without padding.

    Raises:
        ValueError: They are tokens that the model does not have, or too many.
    """
    Weights.of(model).checked(
        contrast.clean_tokens if which == "clean" else contrast.corrupted_tokens
    )
    bos = getattr(getattr(model, "tokenizer", None), "bos_token_id", None)
    return Texts(tuple(map(tuple, contrast.rows(which))), bos)


def padded_texts(model: Model, given: Any, attention_mask: Any = None) -> Padded:
    """Whatever analyses take as tokens, each text at the beginning of its row.

    Args:
        model: The model.
        given: A `Corpus`; tokens ``[batch, pos]``, padded or not, or ``[pos]``, of torch or numpy;
            a text or a list of them, which begin with BOS; a list of lists or tensors of token ids.
        attention_mask: Beside tokens ``[batch, pos]``: 1 where text is, 0 where padding is; None
            tells it by the rule of `mlp_interp.models.padding`.

    Raises:
        ValueError: As `right_padded` and `texts_of`; or there is padding, and edits held on the
            model count from the end of rows.

    Example:
        >>> from mlp_interp import load_model
        >>> padded_texts(load_model("nano"), [[0, 5, 6], [0, 7]]).attrs["data"]
        '2 texts of 2 to 3 tokens; padded at the end'
    """
    padded = _padded(model, given, attention_mask)
    if padded.padding is not None:
        check_from_end(model, str(padded.padding))
    return padded


def _padded(model: Model, given: Any, attention_mask: Any) -> Padded:
    if isinstance(given, Padded):
        return given
    if isinstance(given, str):
        given = [_no_name(given)]
    if not isinstance(given, list | tuple):
        return right_padded(model, given, attention_mask)
    if attention_mask is not None:
        raise ValueError("attention_mask beside texts, whose lengths are known; wanted None")
    rows = texts_of(model, given, what="tokens").rows
    tokens, longest = padded_rows(rows), max(map(len, rows))
    lengths = torch.tensor([len(row) for row in rows])[:, None]
    padding = Padding(torch.arange(longest) < lengths, "padded at the end")
    bos = {"bos": "each"} if any(isinstance(text, str) for text in given) else {}
    return packed(tokens, padding, {"data": f"{len(rows)} texts of {longest} tokens", **bos})


def warn_of_one(texts: Padded, what: str) -> None:
    """Warn where something is learned of a single sequence, of which it says nothing more.

    Args:
        texts: The corpus.
        what: What is learned.
    """
    if len(texts.tokens) == 1:
        warnings.warn(
            f"corpus has one sequence, of {texts.tokens.shape[1]} tokens; {what} learned of it "
            "alone knows that text by heart: wanted many, as mi.load_corpus gives",
            stacklevel=3,
        )


def tokens_to_run(model: Model, given: Any) -> Int[Tensor, "batch pos"]:
    """Token ids ``[batch, pos]`` that are run as they are; or those of texts of one length.

    Raises:
        ValueError: Texts of several lengths; or as `texts_of`.
    """
    if not isinstance(given, str | list | tuple):
        tokens, _ = tokens_of(given)
        return tokens
    padded = padded_texts(model, given)
    if padded.padding is not None:
        raise ValueError(
            f"tokens={padded.attrs['data']}; wanted texts of one length, or cache_for, which pads"
        )
    return padded.tokens


def _no_name(text: str) -> str:
    """A text, unless it is what a corpus is called.

    Raises:
        ValueError: It is the name of the embedded corpus, or of a file.
    """
    if text == "nano" or (len(text) < _LONGEST_NAME and Path(text).is_file()):
        raise ValueError(
            f"tokens={text!r} is the name of a corpus; wanted load_corpus({text!r}, model), or the "
            "list of one text"
        )
    return text


def texts_of(model: Model, prompts: Any, *, what: str, prepend_bos: bool = True) -> Texts:
    """Token ids of prompts, checked.

    Args:
        model: The model.
        prompts: Texts, or token ids, which are taken as they are: a `Corpus`, lists or tensors, one
            for each text, or a tensor ``[prompt, pos]``, of which padding is left out by the rule
            of `mlp_interp.models.padding`.
        what: Name of the argument, for errors.
        prepend_bos: Whether texts begin with BOS.

    Raises:
        ValueError: There are none, one is empty or too long, or is no text.
    """
    weights, tokenizer = Weights.of(model), getattr(model, "tokenizer", None)
    bos = getattr(tokenizer, "bos_token_id", None)
    if isinstance(prompts, Tensor | np.ndarray) or hasattr(prompts, "tokens"):
        padded = right_padded(model, prompts)
        weights.checked(padded.tokens)
        about = f"{len(padded.tokens)} texts" if padded.padding is None else str(padded.padding)
        return Texts(tuple(map(tuple, padded.rows())), bos, about)
    if hasattr(prompts, "columns"):
        raise ValueError(f"{what}={type(prompts).__name__}; wanted one column of it")
    listed = [prompts] if isinstance(prompts, str) else list(prompts)
    if not listed:
        raise ValueError(f"{what} is empty; wanted at least one prompt")
    encoded = [_encoded(model, x, f"{what}[{n}]", prepend_bos) for n, x in enumerate(listed)]
    for n, row in enumerate(encoded):
        try:
            weights.checked(torch.tensor([row], dtype=torch.long))
        except ValueError as error:
            raise ValueError(f"{what}[{n}]={_short(listed[n])}: {error}") from error
    return Texts(tuple(map(tuple, encoded)), bos, f"{len(encoded)} texts")


def _short(text: Any) -> str:
    """A text or tokens as an error shows them: too long ones are many."""
    shown = repr(text)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def _encoded(model: Model, given: Any, what: str, prepend_bos: bool) -> list[int]:
    """Token ids of one text; ids are taken as they are."""
    if isinstance(given, str) and given:
        check_text(given, what=what)
        return encode_prompt(tokenizer_of(model), given, prepend_bos=prepend_bos)
    row = given.tolist() if isinstance(given, Tensor | np.ndarray) else given
    if isinstance(row, list | tuple) and row and all(type(token) is int for token in row):
        return list(row)
    raise ValueError(f"{what}={given!r}; wanted a text, or tokens [prompt, pos]")
