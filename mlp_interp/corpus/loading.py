"""`load_corpus`: text from anywhere to rows of tokens."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mlp_interp.corpus.corpus import Corpus
from mlp_interp.corpus.packing import Bos, Packer, shuffled
from mlp_interp.corpus.sources import Source, open_source
from mlp_interp.prompts.tokenizing import (
    bos_token_id,
    encode,
    tokenizer_name,
    tokenizer_of,
    vocabulary_size,
)

__all__ = ["load_corpus"]

BAR_AFTER = 1.0
"""Seconds of reading after which a progress bar is shown."""


def load_corpus(
    source: str | Path | Iterable[str],
    model: Any,
    *,
    sequences: int | None = None,
    length: int | None = None,
    seed: int | None = 0,
    bos: Bos = "each",
    field: str = "text",
    split: str | None = None,
    subset: str | None = None,
    progress: bool = True,
) -> Corpus:
    """Tokenise text and pack it into sequences of equal length, without padding.

    Documents are shuffled, joined, and cut every `length` tokens, so a sequence may begin in the
    middle of a document and hold several. Text is data: ``<|endoftext|>`` written in it is
    tokenised as characters, and BOS stands only where `bos` says. Files and datasets are read no
    further than needed, but for up to 1,000 documents from which the shuffle draws; what is left of
    the last sequence is dropped.

    Args:
        source: ``"nano"``, text from nano's generator that it was not trained on; a file: ``.txt``
            (one document, blank lines and all), ``.jsonl``, ``.jsonl.zst`` (one document a line),
            ``.parquet`` (one a row); strings, each a document; or a dataset on the Hugging Face
            hub, which is streamed, e.g. ``"NeelNanda/pile-10k"`` (``"pile-10k"`` for short) or
            ``"monology/pile-uncopyrighted"`` (``"pile"``).
        model: A model with a tokenizer, or a tokenizer.
        sequences: How many; None takes 64 of nano, else all that there are, up to 10,000.
        length: Tokens in each, BOS included; None takes 600 of a dataset on the hub and 128 of all
            else, or the model's context if that is shorter.
        seed: Order of the documents, and what nano writes; None leaves them in their order.
        bos: ``"each"``: every sequence begins with BOS, which counts as one of its tokens, and BOS
            stands between documents; ``"documents"``: BOS stands before every document, wherever
            in a sequence that falls; ``"none"``: no BOS anywhere.
        field: Which field or column of a file or dataset holds the text.
        split: Of a dataset (None is "train") or of nano (None is "heldout").
        subset: Configuration of a dataset that has several.
        progress: Show a bar where reading takes longer than a second.

    Returns:
        A `Corpus` of tokens ``[sequence, pos]`` with its provenance in ``attrs``.

    Raises:
        ValueError: No such file; a suffix that is not read; damaged data (the text names the
            line); too few tokens (it says how many there are); `length` beyond the model's context;
            options that are not known; a tokenizer that does not belong to the model.
        ConnectionError: The hub could not be reached.

    Warns:
        UserWarning: Documents were left out because they are not valid UTF-8.

    Example:
        >>> from mlp_interp import load_model
        >>> corpus = load_corpus("nano", load_model("nano"), sequences=4, length=32)
        >>> corpus.tokens.shape
        torch.Size([4, 32])
        >>> corpus.attrs["data"]
        "nano's generated text (heldout), 4 sequences of 32 tokens"
    """
    tokenizer = tokenizer_of(model)
    _check_options(sequences, length, bos)
    opened = open_source(source, field=field, split=split, subset=subset, seed=seed)
    length = _context(model, length, opened.length)
    packer = Packer(length, bos, None if bos == "none" else bos_token_id(tokenizer))
    wanted = opened.sequences if sequences is None else sequences
    _fill(packer, opened, model, wanted=wanted, seed=seed, progress=progress)
    _warn_of_broken(opened)
    # An endless source cannot fall short; where no number was asked for, all that fits is right.
    if len(packer.rows) < (1 if sequences is None else sequences):
        raise ValueError(_too_short(opened, packer, sequences))
    attrs = {
        "seed": "none" if seed is None else seed,
        "bos": bos,
        "tokenizer": tokenizer_name(model),
        "documents_used": packer.documents_used,
        **opened.provenance(),
    }
    return Corpus(packer.tokens, attrs=attrs, tokenizer=tokenizer)


def _check_options(sequences: int | None, length: int | None, bos: str) -> None:
    if bos not in ("each", "documents", "none"):
        raise ValueError(f"bos={bos!r}; wanted 'each', 'documents' or 'none'")
    if sequences is not None and sequences < 1:
        raise ValueError(f"sequences={sequences}; wanted at least 1, or None for all")
    if length is not None and length < 2:
        raise ValueError(f"length={length}; wanted at least 2, so that there is a next token")


def _context(model: Any, length: int | None, default: int) -> int:
    context = getattr(getattr(model, "cfg", None), "n_ctx", None)
    if length is None:
        return default if context is None else min(default, int(context))
    if context is not None and length > context:
        raise ValueError(f"length={length} is beyond the model's context of {context} tokens")
    return length


def _fill(
    packer: Packer, opened: Source, model: Any, *, wanted: int, seed: int | None, progress: bool
) -> None:
    tokenizer, size = tokenizer_of(model), vocabulary_size(model)

    def tokens(text: str) -> list[int]:
        ids = encode(tokenizer, text, special_tokens=False)
        if ids and max(ids) >= size:
            raise ValueError(
                f"model={tokenizer_name(model)!r}: token {max(ids)} is outside its vocabulary of "
                f"{size}; wanted the tokenizer that the model was trained with"
            )
        return ids

    # nano's documents come in random order already, and have no end to draw from.
    order = opened.documents
    if seed is not None and not opened.endless:
        order = shuffled(order, seed)
    bar = tqdm(
        total=wanted,
        desc=f"Reading {opened.name}",
        unit=" seq",
        delay=BAR_AFTER,
        disable=not progress,
    )
    with bar:
        for document in order:
            for rows in packer.add(map(tokens, document), wanted):
                bar.update(rows)
            if len(packer.rows) >= wanted:
                return


def _warn_of_broken(opened: Source) -> None:
    if broken := opened.tally.broken:
        warnings.warn(
            f"{opened.name}: {broken} of {opened.tally.read} documents are not valid UTF-8 and "
            f"were left out, the first in line {opened.tally.first_broken}",
            UserWarning,
            stacklevel=3,
        )


def _too_short(opened: Source, packer: Packer, sequences: int | None) -> str:
    tally, rows = opened.tally, len(packer.rows)
    holds = f"{opened.name} holds {packer.held} tokens in {tally.read - tally.skipped} documents"
    if tally.skipped:
        holds += f" ({tally.skipped} more are empty or broken)"
    if not packer.held:
        return f"{holds}; wanted some text"
    asked = f"sequences={'all' if sequences is None else sequences}, length={packer.length}"
    ask = f"ask for sequences={rows} or fewer" if rows else "ask for a smaller length"
    return f"{asked}: {holds}, enough for {rows} sequences; {ask}"
