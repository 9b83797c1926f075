"""`Corpus`: sequences of tokens with their provenance."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, overload

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mlp_interp.prompts.tokenizing import token_strings

__all__ = ["Corpus"]


@dataclass(frozen=True, eq=False, repr=False)
class Corpus:
    """Sequences of tokens, all of one length and none padded, with their provenance.

    Made by `load_corpus`; a tensor of your own becomes one by ``Corpus(tokens)``.

    Attributes:
        tokens: Token ids on the CPU, ``[sequence, pos]``.
        attrs: What a result measured on it carries. Always ``data`` (a description in words),
            ``source``, ``sequences``, ``length``, ``tokens`` (their number) and ``sha256`` (of the
            ids as little-endian 64-bit integers, row by row); from `load_corpus` also ``seed``,
            ``bos``, ``tokenizer``, ``documents_read``, ``documents_used``, ``documents_skipped``,
            and for files ``file_bytes`` and ``file_sha256``.
        tokenizer: Turns ids back into text; None shows the ids.

    Raises:
        ValueError: `tokens` are not token ids ``[sequence, pos]``, or there are none.

    Example:
        >>> import torch
        >>> corpus = Corpus(torch.arange(12).reshape(3, 4), attrs={"source": "twelve ids"})
        >>> corpus.attrs["data"]
        'twelve ids, 3 sequences of 4 tokens'
        >>> [batch.shape[0] for batch in corpus.batches(2)]
        [2, 1]
    """

    tokens: Int[Tensor, "sequence pos"]
    attrs: dict[str, Any] = field(default_factory=dict)
    tokenizer: PreTrainedTokenizerBase | None = None

    def __post_init__(self) -> None:
        tokens = self.tokens
        if tokens.ndim != 2 or tokens.is_floating_point() or tokens.dtype == torch.bool:
            raise ValueError(
                f"tokens={tuple(tokens.shape)} of {tokens.dtype}; wanted integers [sequence, pos]"
            )
        if tokens.numel() == 0:
            raise ValueError(f"tokens={tuple(tokens.shape)} is empty; wanted at least one token")
        if int(tokens.min()) < 0:
            raise ValueError(f"tokens holds {int(tokens.min())}; wanted token ids from 0")
        sequences, length = tokens.shape
        source = self.attrs.get("source", "tokens")
        derived = {
            "source": source,
            "data": f"{source}, {sequences} sequences of {length} tokens",
            "sequences": sequences,
            "length": length,
            "tokens": sequences * length,
            "sha256": _digest(tokens),
        }
        object.__setattr__(self, "attrs", {**self.attrs, **derived})

    def __len__(self) -> int:
        return int(self.tokens.shape[0])

    def __iter__(self) -> Iterator[Int[Tensor, " pos"]]:
        return iter(self.tokens)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> "Corpus": ...
    def __getitem__(self, index: int | slice) -> "Tensor | Corpus":
        """One sequence, or for a slice a corpus of some of them.

        Raises:
            IndexError: There is no such sequence.
            ValueError: The slice is empty.
        """
        if isinstance(index, int):
            return self.tokens[index]
        return replace(self, tokens=self.tokens[index])

    def batches(
        self, size: int, *, device: str | torch.device | None = None
    ) -> Iterator[Int[Tensor, "batch pos"]]:
        """The sequences in order, `size` at a time; the last batch may be smaller.

        Raises:
            ValueError: `size` is below 1.
        """
        if size < 1:
            raise ValueError(f"size={size}; wanted at least 1 sequence per batch")
        return (batch.to(device or batch.device) for batch in self.tokens.split(size))

    def text(self, index: int = 0) -> str:
        """One sequence as text, BOS included."""
        ids = self.tokens[index].tolist()
        if self.tokenizer is None:
            return " ".join(token_strings(None, ids))
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def token_text(self, index: int = 0) -> list[str]:
        """Each token of one sequence as text: the labels of a figure's axis."""
        return token_strings(self.tokenizer, self.tokens[index].tolist())

    def __repr__(self) -> str:
        facts = [f"{self.attrs['data']}"]
        facts += [f"{name}={self.attrs[name]!r}" for name in ("bos", "seed") if name in self.attrs]
        facts.append(f"sha256={self.attrs['sha256'][:12]}…")
        start = self.text(0)
        start = start if len(start) <= 80 else start[:79] + "…"
        return f"Corpus({', '.join(facts)})\n  [0] {start!r}"


def _digest(tokens: Tensor) -> str:
    ids = tokens.detach().cpu().to(torch.int64).contiguous().numpy().astype("<i8", copy=False)
    return hashlib.sha256(ids.tobytes()).hexdigest()
