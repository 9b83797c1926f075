"""`load_corpus`: text from anywhere to rows of tokens."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlp_interp.corpus.corpus import Corpus, open_corpus
from mlp_interp.corpus.disk import TokenWriter, is_finished, read_facts
from mlp_interp.corpus.job import Job
from mlp_interp.corpus.options import ReadingOptions
from mlp_interp.corpus.packing import Bos
from mlp_interp.corpus.sources import Source, open_source
from mlp_interp.corpus.tally import Errors
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.tokenizing import tokenizer_of

__all__ = ["load_corpus"]

_MOST_TOKENS = 10**9  # 8 GB


def load_corpus(
    source: str | Path | Iterable[Any],
    model: Model,
    *,
    sequences: int | None = None,
    length: int | None = None,
    seed: int | None = 0,
    bos: Bos = "each",
    field: str = "text",
    split: str | None = None,
    subset: str | None = None,
    errors: Errors = "raise",
    file: str | Path | None = None,
    progress: bool = True,
) -> Corpus:
    """Tokenise text and pack it into sequences of equal length, without padding.

    Documents are shuffled, joined, and cut every `length` tokens, so a sequence may begin in the
    middle of a document and hold several. Text is data: ``<|endoftext|>`` written in it is
    tokenised as characters, and BOS stands only where `bos` says. Files and datasets are read no
    further than needed, but for up to 1,000 documents from which the shuffle draws; what is left of
    the last sequence is dropped.

    With `file`, the tokens go to a file on disk as they are packed and are never in memory as a
    whole; the corpus that comes back is mapped from it. Called again with the same source and
    options, it finds the finished file and does not tokenise again. A file that was not finished,
    because the process was killed, is begun anew.

    No document is left out silently: ``attrs`` count each kind, and what is damaged is an error or
    a warning; the table is under "Bad input" in the documentation of corpora.

    Args:
        source: ``"nano"``, text from nano's generator that it was not trained on; a file: ``.txt``
            (one document, blank lines and all), ``.jsonl``, ``.jsonl.gz``, ``.jsonl.zst``,
            ``.json.gz``, ``.json.zst`` (one document a line), ``.parquet`` (one a row); a folder,
            all such files in and below it; a glob (``"part-*.jsonl"``, ``"data/**/*.parquet"``);
            a list of these, names or paths; strings, each a document, in a list, an array or a
            Series, or rows or a frame with a column of them; or a dataset on the Hugging Face hub,
            which is streamed, e.g. ``"NeelNanda/pile-10k"`` (``"pile-10k"`` for short) or
            ``"monology/pile-uncopyrighted"`` (``"pile"``). A list of strings that all end as files
            do, without a space, names files.
        model: A model with a tokenizer, or a tokenizer.
        sequences: How many; None takes 64 of nano, else all that there are, up to 10,000 if they
            are held in memory.
        length: Tokens in each, BOS included; None takes 600 of a dataset on the hub and 128 of all
            else, or the model's context if that is shorter.
        seed: Order of the documents, and what nano writes; None leaves them in their order.
        bos: ``"each"``: every sequence begins with BOS, which counts as one of its tokens, and BOS
            stands between documents; ``"documents"``: BOS stands before every document, wherever
            in a sequence that falls; ``"none"``: no BOS anywhere.
        field: Which field or column of a file, frame or dataset holds the text.
        split: Of a dataset (None is "train") or of nano (None is "heldout").
        subset: Configuration of a dataset that has several.
        errors: What becomes of documents that are not JSON, have no such field, or hold something
            else than text there: ``"raise"`` names the first; ``"skip"`` leaves them out, counts
            each kind and warns once.
        file: Where to keep the tokens on disk, in the format of `Corpus.save`; None holds them in
            memory.
        progress: Show a bar where reading takes longer than a second.

    Returns:
        A `Corpus` of tokens ``[sequence, pos]`` with its provenance in ``attrs``.

    Raises:
        ValueError: No such file; a suffix that is not read; damaged data (the text names the
            line); too few tokens (it says how many there are), or too many for memory; `length`
            beyond the model's context; options that are not known; a tokenizer that does not belong
            to the model; a `file` that is there but was made of something else (it says what
            differs).
        ConnectionError: The hub could not be reached.

    Warns:
        UserWarning: Documents were left out because they are damaged: how many of each kind, and
            where the first is.

    Example:
        >>> from mlp_interp import load_model
        >>> corpus = load_corpus("nano", load_model("nano"), sequences=4, length=32)
        >>> corpus.tokens.shape
        torch.Size([4, 32])
        >>> corpus.attrs["data"]
        "nano's generated text (heldout), 4 sequences of 32 tokens"
    """
    options = ReadingOptions(sequences, length, seed, bos, field, split, subset, errors)
    opened = open_source(source, options)
    job = Job(model, opened, options, everything=file is not None, progress=progress)
    corpus = _in_memory(job) if file is None else _on_disk(Path(file).expanduser(), job)
    if warning := opened.tally.warning():
        warnings.warn(warning, UserWarning, stacklevel=2)
    return corpus


def _in_memory(job: Job) -> Corpus:
    wanted = (job.options.sequences or 0) * job.length
    if wanted > _MOST_TOKENS:
        raise ValueError(
            f"sequences={job.options.sequences} of {job.length} tokens are {wanted:,}; wanted at "
            f"most {_MOST_TOKENS:,} in memory, or a file=... to keep them in"
        )
    rows: list[np.ndarray] = []
    attrs = job.run(rows)
    tokens = torch.from_numpy(np.stack(rows).astype(np.int64))
    return Corpus(tokens, attrs=attrs, tokenizer=tokenizer_of(job.model))


def _on_disk(path: Path, job: Job) -> Corpus:
    """The corpus in a token file, which is written first unless it is there."""
    request = job.request()
    if is_finished(path):
        _check_same(path, request, job.opened)
    else:
        with TokenWriter(path, job.length) as rows:
            attrs = job.run(rows)
            rows.finish(attrs, request=request, tokenizer_sha256=request["tokenizer_sha256"])
    return open_corpus(path, job.model)


def _check_same(path: Path, request: dict[str, Any], source: Source) -> None:
    """Refuse a finished file that was made of something else.

    Raises:
        ValueError: It was; the text says what differs.
    """
    facts = read_facts(path)
    made = facts.get("request")
    if made is None:
        raise ValueError(
            f"file={str(path)!r} was not written by load_corpus; open it by open_corpus, or give "
            "another name"
        )
    names = [name for name in {**made, **request} if made.get(name) != request.get(name)]
    digest = facts["attrs"].get("file_sha256")
    if names == ["file_mtime_ns"] and digest and digest == source.digest():
        names = []  # touched, or copied, and still the same
    if names:
        found = ", ".join(f"{name}={made.get(name)!r}" for name in names)
        wanted = ", ".join(f"{name}={request.get(name)!r}" for name in names)
        raise ValueError(
            f"file={str(path)!r} was made with {found}; wanted {wanted}: give another name, delete "
            "it, or take it as it is by open_corpus"
        )
    if request.get("strings_sha256", "") is None:
        raise ValueError(
            f"file={str(path)!r} is finished, but source={request['source']!r} can only be read "
            "once, so whether it is the same cannot be told; wanted a list or a file, or take it "
            "as it is by open_corpus"
        )
