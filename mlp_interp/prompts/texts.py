"""Texts of any lengths as tokens, nothing padded."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from mlp_interp.models import Weights
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.pairs import encode_prompt
from mlp_interp.prompts.tokenizing import tokenizer_of

__all__ = ["Prompts", "Texts", "texts_of"]

# Without names: two sets of prompts need not be as many, nor as long.
Prompts = str | Sequence[str] | Int[Tensor, "_ _"]


@dataclass(frozen=True)
class Texts:
    """Prompts as token ids, of whatever lengths."""

    rows: tuple[tuple[int, ...], ...]
    bos: int | None

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


def texts_of(model: Model, prompts: Prompts, *, what: str, prepend_bos: bool = True) -> Texts:
    """Token ids of prompts, checked.

    Args:
        model: The model.
        prompts: Texts, or tokens ``[prompt, pos]``, which are taken as they are.
        what: Name of the argument, for errors.
        prepend_bos: Whether texts begin with BOS.

    Raises:
        ValueError: There are none, one is empty or too long, or is no text.
    """
    weights, tokenizer = Weights.of(model), getattr(model, "tokenizer", None)
    bos = getattr(tokenizer, "bos_token_id", None)
    if isinstance(prompts, Tensor):
        rows = weights.checked(prompts).tolist()
        return Texts(tuple(map(tuple, rows)), bos)
    listed = [prompts] if isinstance(prompts, str) else list(prompts)
    if not listed:
        raise ValueError(f"{what} is empty; wanted at least one prompt")
    for n, text in enumerate(listed):
        if not isinstance(text, str) or not text:
            raise ValueError(f"{what}[{n}]={text!r}; wanted a text, or tokens [prompt, pos]")
    encoded = [encode_prompt(tokenizer_of(model), t, prepend_bos=prepend_bos) for t in listed]
    for n, row in enumerate(encoded):
        try:
            weights.checked(torch.tensor([row], dtype=torch.long))
        except ValueError as error:
            raise ValueError(f"{what}[{n}]={listed[n]!r}: {error}") from error
    return Texts(tuple(map(tuple, encoded)), bos)
