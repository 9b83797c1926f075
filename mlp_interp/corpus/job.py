"""Tokenise a source and pack it, into memory or into a file."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from mlp_interp.corpus.options import ReadingOptions
from mlp_interp.corpus.packing import PackedRows, Packer, shuffled
from mlp_interp.corpus.sources import Source
from mlp_interp.corpus.tokenizers import tokenizer_digest
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.tokenizing import (
    bos_token_id,
    encode,
    tokenizer_name,
    tokenizer_of,
    vocabulary_size,
)

__all__ = ["Job"]

BAR_AFTER = 1.0
"""Seconds of reading after which a progress bar is shown."""


@dataclass
class Job:
    """One source, to be tokenised and packed once.

    Args:
        model: A model with a tokenizer, or a tokenizer.
        opened: What is read.
        options: What was asked for.
        everything: Whether no number of sequences means all that there are.
        progress: Show a bar where it takes longer than a second.

    Raises:
        ValueError: The length is beyond the model's context.
    """

    model: Model
    opened: Source
    options: ReadingOptions
    everything: bool
    progress: bool

    def __post_init__(self) -> None:
        length = _context(self.model, self.options.length, self.opened.length)
        self.options = replace(self.options, length=length)
        self.length = length

    def request(self) -> dict[str, Any]:
        """All that decides which tokens come out."""
        return {
            **self.options.as_dict(),
            "source": self.opened.name,
            **self.opened.attrs,
            **self.opened.identity(),
            "tokenizer_sha256": tokenizer_digest(tokenizer_of(self.model)),
        }

    def run(self, rows: PackedRows) -> dict[str, Any]:
        """Fill `rows`; gives the attributes of the corpus.

        Raises:
            ValueError: The data are damaged, there are too few tokens, or the tokenizer does not
                belong to the model.
            ConnectionError: The hub could not be reached.
        """
        options, opened = self.options, self.opened
        bos_id = None if options.bos == "none" else bos_token_id(tokenizer_of(self.model))
        packer = Packer(self.length, options.bos, bos_id, rows)
        self._fill(packer)
        # An endless source cannot fall short; of all that there are, one is enough.
        if len(rows) < (options.sequences or 1):
            raise ValueError(_too_short(opened, packer, options.sequences))
        return {
            "seed": "none" if options.seed is None else options.seed,
            "bos": options.bos,
            "tokenizer": tokenizer_name(self.model),
            "documents_used": packer.documents_used,
            **opened.provenance(),
        }

    def _fill(self, packer: Packer) -> None:
        opened, seed, wanted = self.opened, self.options.seed, self._wanted()
        # nano's documents come in random order already, and have no end to draw from.
        order = opened.documents
        if seed is not None and not opened.endless:
            order = shuffled(order, seed)
        bar = tqdm(
            total=wanted,
            desc=f"Reading {opened.name}",
            unit=" seq",
            delay=BAR_AFTER,
            disable=not self.progress,
        )
        encoder = self._encoder()
        with bar:
            for document in order:
                before = packer.held
                for new in packer.add(map(encoder, document), wanted or sys.maxsize):
                    bar.update(new)
                opened.tally.note_tokens(packer.held - before)
                if len(packer.rows) == wanted:
                    return

    def _wanted(self) -> int | None:
        """Rows to make; None for all that there are."""
        if self.options.sequences is None and self.everything and not self.opened.endless:
            return None
        return self.options.sequences or self.opened.sequences

    def _encoder(self) -> Callable[[str], list[int]]:
        tokenizer, size = tokenizer_of(self.model), vocabulary_size(self.model)

        def tokens(text: str) -> list[int]:
            ids = encode(tokenizer, text, special_tokens=False)
            if ids and max(ids) >= size:
                raise ValueError(
                    f"model={tokenizer_name(self.model)!r}: token {max(ids)} is outside its "
                    f"vocabulary of {size}; wanted the tokenizer that the model was trained with"
                )
            return ids

        return tokens


def _context(model: Model, length: int | None, default: int) -> int:
    context = getattr(getattr(model, "cfg", None), "n_ctx", None)
    if length is None:
        return default if context is None else min(default, int(context))
    if context is not None and length > context:
        raise ValueError(f"length={length} is beyond the model's context of {context} tokens")
    return length


def _too_short(opened: Source, packer: Packer, sequences: int | None) -> str:
    tally, rows = opened.tally, len(packer.rows)
    holds = f"{opened.name} holds {packer.held} tokens in {tally.read - tally.skipped} documents"
    if tally.skipped:
        holds += f" ({tally.skipped} more were left out: {tally.kinds()})"
    if not packer.held:
        return f"{holds}; wanted some text"
    asked = f"sequences={'all' if sequences is None else sequences}, length={packer.length}"
    ask = f"ask for sequences={rows} or fewer" if rows else "ask for a smaller length"
    return f"{asked}: {holds}, enough for {rows} sequences; {ask}"
