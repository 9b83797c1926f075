"""Find out what a source of text is: nano, strings, a file, or a dataset on the hub."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlp_interp.corpus.files import Document, document_of, reader_of
from mlp_interp.corpus.hub import ALIASES, read_hub
from mlp_interp.corpus.options import ReadingOptions
from mlp_interp.corpus.tally import DocumentTally
from mlp_interp.nano.corpus import documents

__all__ = ["MOST", "Source", "file_digest", "open_source"]

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
    file: Path | None = None
    attrs: dict[str, Any] = field(default_factory=dict)
    identity: Callable[[], dict[str, Any]] = dict
    """By what to know, without tokenising it, whether it is what was read before."""

    @property
    def name(self) -> str:
        """What it is called in messages and results."""
        return self.tally.name

    def provenance(self) -> dict[str, Any]:
        """Attributes that say what was read; hashes the file, so ask for it last."""
        found = {"source": self.name, **self.tally.attrs, **self.attrs}
        if self.file is not None:
            found["file_bytes"] = self.file.stat().st_size
            if digest := file_digest(self.file):
                found["file_sha256"] = digest
        return found


def file_digest(path: Path) -> str | None:
    """SHA-256 of a file; None if it is so large that reading it again would take long."""
    if path.stat().st_size > _HASHED:
        return None
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def open_source(source: str | Path | Iterable[Any], options: ReadingOptions) -> Source:
    """Decide what `source` is and make its documents ready to be read.

    Raises:
        ValueError: It is none of the known kinds, a file that is not there, or an option that does
            not go with it.
    """
    split, subset = options.split, options.subset
    if source == "nano":
        return _nano(options)
    if isinstance(source, str) and not _is_path(source):
        return _hub(source, options)
    if split is not None or subset is not None:
        raise ValueError(
            f"split={split!r}, subset={subset!r}: only datasets on the hub have them (and 'nano' a "
            "split); wanted None"
        )
    if isinstance(source, str | Path):
        return _file(Path(source).expanduser(), options)
    if isinstance(source, Iterable) and not isinstance(source, bytes | dict):
        return _strings(source, options)
    raise ValueError(
        f"source={type(source).__name__}; wanted 'nano', a file, a list of strings, or the name of "
        "a dataset on the Hugging Face hub"
    )


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


def _file(path: Path, options: ReadingOptions) -> Source:
    reader, tally, facts = reader_of(path), DocumentTally(path.name, options.errors), path.stat()
    identity = {"file_bytes": facts.st_size, "file_mtime_ns": facts.st_mtime_ns}
    documents = reader(path, options.field, tally)
    return Source(documents, tally, file=path, identity=lambda: identity)


def _strings(strings: Iterable[Any], options: ReadingOptions) -> Source:
    tally = DocumentTally("strings", options.errors)
    documents = _of_strings(strings, tally)
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


def _of_strings(strings: Iterable[Any], tally: DocumentTally) -> Iterator[Document]:
    for index, text in enumerate(tally.counted(strings)):
        document = document_of(text, f"source[{index}]", "found", tally)
        if document is not None:
            yield document


def _is_path(source: str) -> bool:
    """Whether a string is meant as a path, so that a missing file is not taken for a dataset."""
    if source in ALIASES:
        return False
    return (
        source.startswith((".", "/", "~"))
        or "\\" in source
        or source.count("/") > 1
        or _SUFFIX.search(source) is not None
        or Path(source).exists()
    )
