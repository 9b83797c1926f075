"""`Corpus`: sequences of tokens with their provenance."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, SupportsIndex, overload

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mlp_interp.corpus.disk import TokenWriter, map_tokens, read_facts
from mlp_interp.corpus.tokenizers import check_tokenizer, tokenizer_digest
from mlp_interp.models._fingerprint import id_blocks
from mlp_interp.models.indices import count, is_single, subscript
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.tokenizing import decode, token_strings, tokenizer_of

__all__ = ["Corpus", "open_corpus"]

_HIGHEST = torch.iinfo(torch.int32).max


@dataclass(frozen=True, eq=False, repr=False)
class Corpus:
    """Sequences of tokens, all of one length and none padded, with their provenance.

    Made by `load_corpus`; a tensor of your own becomes one by ``Corpus(tokens)``. Of a corpus on
    disk, from ``load_corpus(..., file=…)`` or `open_corpus`, `tokens` are read where they are
    looked at, so that it may be far larger than memory.

    Attributes:
        tokens: Token ids on the CPU, ``[sequence, pos]``; 32-bit integers if they are on disk.
        attrs: What a result measured on it carries. Always ``data`` (a description in words),
            ``source``, ``sequences``, ``length``, ``tokens`` (their number) and ``sha256`` (of the
            ids as little-endian 64-bit integers, row by row); from `load_corpus` also ``seed``,
            ``bos``, ``tokenizer``, ``documents_read``, ``documents_used``, ``documents_skipped``
            with the counts that make it up, and for files ``file_bytes`` and ``file_sha256``.
        tokenizer: Turns ids back into text; None shows the ids.
        path: The file that `tokens` are mapped from; None if they are in memory, or a slice.

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
    path: Path | None = None

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
        self._describe(_digest(tokens))

    def _describe(self, digest: str) -> None:
        sequences, length = self.tokens.shape
        source = self.attrs.get("source", "tokens")
        derived = {
            "source": source,
            "data": f"{source}, {sequences} sequences of {length} tokens",
            "sequences": sequences,
            "length": length,
            "tokens": sequences * length,
            "sha256": digest,
        }
        object.__setattr__(self, "attrs", {**self.attrs, **derived})

    @classmethod
    def _mapped(
        cls, path: Path, facts: dict[str, Any], tokenizer: PreTrainedTokenizerBase | None
    ) -> "Corpus":
        """A corpus on disk; its tokens were checked when they were written, and are not read."""
        corpus = object.__new__(cls)
        tokens = map_tokens(path, tuple(facts["shape"]))
        known = {"tokens": tokens, "attrs": facts["attrs"], "tokenizer": tokenizer, "path": path}
        for name, value in known.items():
            object.__setattr__(corpus, name, value)
        corpus._describe(facts["sha256"])
        return corpus

    def __len__(self) -> int:
        return int(self.tokens.shape[0])

    def __iter__(self) -> Iterator[Int[Tensor, " pos"]]:
        return iter(self.tokens)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | np.ndarray | Tensor) -> "Corpus": ...
    def __getitem__(self, index: Any) -> "Tensor | Corpus":
        """One sequence, or a corpus of some of them.

        Args:
            index: An integer; or for a corpus a slice, several integers, or one bool for each
                sequence, as lists, arrays or tensors. A slice of a corpus on disk stays there.

        Raises:
            IndexError: There is no such sequence.
            ValueError: None is chosen.
        """
        if isinstance(index, slice) and (index.step is None or index.step > 0):
            return replace(self, tokens=self.tokens[index], path=None)
        chosen = subscript(index, len(self))
        if is_single(index):
            return self.tokens[chosen[0]]
        return replace(self, tokens=self.tokens[chosen], path=None)

    def batches(
        self, size: int, *, device: str | torch.device | None = None
    ) -> Iterator[Int[Tensor, "batch pos"]]:
        """The sequences in order, `size` at a time; the last batch may be smaller.

        The ids are 64-bit integers, which every operation of torch takes, whatever `tokens` are.

        Raises:
            ValueError: `size` is below 1.
        """
        size = count("size", size, hint=" sequence per batch")
        device = device or self.tokens.device
        return (batch.to(device, torch.int64) for batch in self.tokens.split(size))

    def save(self, path: str | Path) -> Path:
        """Write the tokens to a file, a plain ``.npy``, and all else beside it as JSON.

        `open_corpus` opens it again. The tokenizer is not saved, only what tells it from others.

        Args:
            path: The file; the JSON is there under the same name and ``.json``.

        Returns:
            The path.

        Raises:
            ValueError: The file is there already, its folder is not, somebody else is writing it,
                or an id does not fit into 32 bits.
        """
        path = Path(path).expanduser()
        if int(self.tokens.max()) > _HIGHEST:
            raise ValueError(f"tokens holds {int(self.tokens.max())}; wanted ids up to {_HIGHEST}")
        with TokenWriter(path, self.tokens.shape[1]) as rows:
            for block in id_blocks(self.tokens):
                for row in block:
                    rows.append(row)
            rows.finish(self.attrs, tokenizer_sha256=tokenizer_digest(self.tokenizer))
        return path

    def verify(self) -> None:
        """Read all tokens and compare them with ``attrs["sha256"]``.

        Nobody does that for a corpus on disk when it is opened, as it may take long.

        Raises:
            ValueError: They are not what was written.
        """
        found, known = _digest(self.tokens), self.attrs["sha256"]
        if found != known:
            where = f" in {str(self.path)!r}" if self.path else ""
            raise ValueError(f"tokens{where} have sha256={found}; wanted {known}: they are damaged")

    def text(self, index: int = 0) -> str:
        """One sequence as text, BOS included."""
        return decode(self.tokenizer, self.tokens[index].tolist())

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


def open_corpus(path: str | Path, model: Model | None = None) -> Corpus:
    """Open a corpus on disk, from `Corpus.save` or ``load_corpus(..., file=…)``.

    No tokens are read: they are mapped, and read where they are looked at. ``Corpus.verify`` reads
    and checks them all.

    Args:
        path: The file with the tokens.
        model: A model with a tokenizer, or a tokenizer, that turns ids into text and to which the
            corpus must belong; None shows the ids.

    Raises:
        ValueError: There is no such file, it was not finished, it is damaged, or it was written
            with another tokenizer.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from mlp_interp import load_corpus, load_model
        >>> model = load_model("nano")
        >>> with TemporaryDirectory() as folder:
        ...     path = load_corpus("nano", model, sequences=4, length=32).save(f"{folder}/a.npy")
        ...     corpus = open_corpus(path, model)
        ...     corpus.verify()
        >>> corpus.attrs["data"]
        "nano's generated text (heldout), 4 sequences of 32 tokens"
    """
    path = Path(path).expanduser()
    facts = read_facts(path)
    if model is not None:
        check_tokenizer(model, path, facts)
    return Corpus._mapped(path, facts, None if model is None else tokenizer_of(model))


def _digest(tokens: Tensor) -> str:
    digest = hashlib.sha256()
    for block in id_blocks(tokens):
        digest.update(block.tobytes())
    return digest.hexdigest()
