"""Find out what a source of text is: nano, texts, files, or a dataset on the hub."""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from glob import has_magic
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

from torch import Tensor

from mlp_interp.corpus.files import Document, Reader, document_of, documents_of_rows, reader_of
from mlp_interp.corpus.hub import ALIASES, read_hub
from mlp_interp.corpus.named import files_in, is_name
from mlp_interp.corpus.options import ReadingOptions
from mlp_interp.corpus.tally import DocumentTally
from mlp_interp.nano.corpus import documents
from mlp_interp.sites import did_you_mean

__all__ = ["MOST", "Source", "open_source"]

MOST = 10_000
"""Sequences that are taken at most where no number is asked for."""

_HASHED = 1 << 28  # files up to 256 MiB; the tokens' own hash pins the data in any case
_DATASET = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
# What ends in letters after a dot is meant as a file: "notes.txt", but not "fineweb-2.0".
_SUFFIX = re.compile(r"\.[A-Za-z]\w{0,9}$")


@dataclass
class Source:
    """A stream of documents, not yet read, and what is known of it."""

    documents: Iterator[Document]
    tally: DocumentTally
    sequences: int = MOST
    length: int = 128
    endless: bool = False
    files: tuple[Path, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)
    identity: Callable[[], dict[str, Any]] = dict
    """By what to know, without tokenising it, whether it is what was read before."""

    @property
    def name(self) -> str:
        """What it is called in messages and results."""
        return self.tally.name

    def provenance(self) -> dict[str, Any]:
        """Attributes that say what was read; hashes the files, so ask for it last."""
        found = {"source": self.name, **self.tally.attrs, **self.attrs}
        if self.files:
            found["file_bytes"] = _size(self.files)
            if digest := self.digest():
                found["file_sha256"] = digest
        return found

    def digest(self) -> str | None:
        """SHA-256 of its file, or of those of its files; None where that would take long."""
        if not self.files or _size(self.files) > _HASHED:
            return None
        found = []
        for path in self.files:
            with path.open("rb") as opened:
                found.append(hashlib.file_digest(opened, "sha256").hexdigest())
        return found[0] if len(found) == 1 else hashlib.sha256(" ".join(found).encode()).hexdigest()


def open_source(source: Any, options: ReadingOptions) -> Source:
    """Decide what `source` is and make its documents ready to be read.

    Raises:
        ValueError: It is none of the known kinds, a file that is not there, or an option that does
            not go with it.
    """
    split, subset = options.split, options.subset
    if isinstance(source, str) and source == "nano":
        return _nano(options)
    if isinstance(source, str) and not _is_path(source):
        return _hub(source, options)
    if split is not None or subset is not None:
        raise ValueError(
            f"split={split!r}, subset={subset!r}: only datasets on the hub have them (and 'nano' a "
            "split); wanted None"
        )
    if isinstance(source, str):
        source = Path(source)
    texts = [source] if isinstance(source, Path) else _texts(source, options.field)
    files = files_in(texts) if isinstance(texts, list) else None
    return _strings(texts, options) if files is None else _files(files, options)


def _texts(source: Any, field: str) -> Iterable[Any]:
    """The entries of whatever holds texts: as a list, where there is one.

    Raises:
        ValueError: It is nothing that does.
    """
    if (
        isinstance(source, Tensor)
        or not isinstance(source, Iterable)
        or isinstance(source, bytes | dict)
    ):
        raise ValueError(
            f"source={type(source).__name__}; wanted 'nano', a file, a list of strings, or the "
            "name of a dataset on the Hugging Face hub (tokens are a corpus by Corpus(tokens))"
        )
    if (columns := getattr(source, "columns", None)) is not None:  # a frame
        names = [*columns]
        if field not in names:
            raise ValueError(
                f"source={type(source).__name__}: no column {field!r} among "
                f"{', '.join(map(repr, names))}; name the column that holds the text: field=…"
            )
        source = source[field]  # pyright: ignore[reportIndexIssue]
    if hasattr(source, "tolist"):
        return _of_array(source)
    if isinstance(source, Iterator):
        first = [*islice(source, 1)]
        named = first and is_name(first[0])
        return [*first, *source] if named else chain(first, source)
    return [*source] if isinstance(source, Sequence) else source


def _of_array(source: Any) -> list[Any]:
    """The entries of a Series or an array; None for those that are missing."""
    missing = source.isna() if hasattr(source, "isna") else ()
    if source.ndim != 1:
        raise ValueError(f"source={source.shape} of {type(source).__name__}; wanted [document]")
    return [None if gone else text for text, gone in zip_longest(source.tolist(), missing)]


def _nano(options: ReadingOptions) -> Source:
    split, seed = options.split, options.seed
    if options.subset is not None:
        raise ValueError(f"subset={options.subset!r}: 'nano' has none; wanted None")
    if split not in (None, "heldout", "train"):
        raise ValueError(f"split={split!r}; wanted 'heldout' or 'train' for 'nano'")
    if seed is None:
        raise ValueError(
            "seed=None: the text of 'nano' is generated from a seed; wanted an integer"
        )
    split = split or "heldout"
    tally = DocumentTally(f"nano's generated text ({split})", options.errors)
    texts = ((text,) for text in tally.counted(documents(split, seed)))
    return Source(texts, tally, sequences=64, endless=True, attrs={"split": split})


def _hub(name: str, options: ReadingOptions) -> Source:
    near = "" if "/" in name or name in ALIASES else did_you_mean(name, ["nano", *ALIASES])
    if near:  # before the hub is asked, which takes half a minute where there is none
        raise ValueError(
            f"source={name!r} is no file{near}; wanted 'nano', a file, a list of strings, or a "
            "dataset on the Hugging Face hub by its full name, owner/name"
        )
    name, subset = ALIASES.get(name, name), options.subset
    if not _DATASET.match(name):
        raise ValueError(
            f"source={name!r} is neither a file that is there nor the name of a dataset "
            "(owner/name); wanted 'nano', a file, a list of strings, or a dataset"
        )
    split = options.split or "train"
    tally = DocumentTally(f"{name} ({split})", options.errors)
    texts = read_hub(name, options.field, tally, split=split, subset=subset)
    attrs = {"split": split, "subset": subset or "", "dataset": name}
    return Source(texts, tally, length=600, attrs=attrs)


def _files(files: list[Path], options: ReadingOptions) -> Source:
    readers = [reader_of(path) for path in files]
    facts = [path.stat() for path in files]
    times: Any = [fact.st_mtime_ns for fact in facts]
    identity = {"file_bytes": sum(fact.st_size for fact in facts), "file_mtime_ns": times}
    name, attrs = files[0].name, {}
    if len(files) == 1:
        (identity["file_mtime_ns"],) = times
    else:
        name, attrs = f"{name} … {files[-1].name} ({len(files)} files)", {"files": len(files)}
        sizes = [f"{path.name} {fact.st_size}" for path, fact in zip(files, facts, strict=True)]
        identity["files_sha256"] = _digest(sizes)
    tally = DocumentTally(name, options.errors)
    documents = _read_all(files, readers, options.field, tally)
    return Source(documents, tally, files=tuple(files), identity=lambda: identity, attrs=attrs)


def _read_all(
    files: Sequence[Path], readers: Sequence[Reader], field: str, tally: DocumentTally
) -> Iterator[Document]:
    for path, reader in zip(files, readers, strict=True):
        tally.file = path.name if len(files) > 1 else ""
        yield from reader(path, field, tally)


def _size(files: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in files)


def _strings(strings: Iterable[Any], options: ReadingOptions) -> Source:
    tally = DocumentTally("strings", options.errors)
    documents = _of_strings(strings, options.field, tally)
    return Source(documents, tally, identity=lambda: {"strings_sha256": _digest(strings)})


def _digest(strings: Iterable[Any]) -> str | None:
    """SHA-256 of a list of strings; None of what can only be read once."""
    if not isinstance(strings, Sequence):
        return None
    digest = hashlib.sha256()
    for text in strings:
        data = text if isinstance(text, str) else repr(text)
        digest.update(f"{len(data)} {data}".encode(errors="surrogatepass"))
    return digest.hexdigest()


def _of_strings(strings: Iterable[Any], field: str, tally: DocumentTally) -> Iterator[Document]:
    for index, text in enumerate(tally.counted(strings)):
        place = f"source[{index}]"
        if isinstance(text, dict):  # rows, as datasets hand them out
            yield from documents_of_rows([(place, text)], field, tally)
        elif (document := document_of(text, place, "found", tally)) is not None:
            yield document


def _is_path(source: str) -> bool:
    """Whether a string is meant as a path, so that a missing file is not taken for a dataset."""
    if source in ALIASES:
        return False
    return (
        source.startswith((".", "/", "~"))
        or "\\" in source
        or source.count("/") > 1
        or (has_magic(source) and ("/" in source or len(source.split()) == 1))
        or _SUFFIX.search(source) is not None
        or os.path.exists(source)
    )
