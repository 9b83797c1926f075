"""Find out what a source of text is: nano, strings, a file, or a dataset on the hub."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlp_interp.corpus.files import Document, Tally, reader_of
from mlp_interp.corpus.hub import ALIASES, read_hub
from mlp_interp.nano.corpus import documents

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

    name: str
    documents: Iterator[Document]
    tally: Tally
    sequences: int = MOST
    length: int = 128
    endless: bool = False
    file: Path | None = None
    attrs: dict[str, Any] = field(default_factory=dict)

    def provenance(self) -> dict[str, Any]:
        """Attributes that say what was read; hashes the file, so ask for it last."""
        found = {
            "source": self.name,
            "documents_read": self.tally.read,
            "documents_skipped": self.tally.skipped,
            **self.attrs,
        }
        if self.file is not None:
            found["file_bytes"] = self.file.stat().st_size
            if found["file_bytes"] <= _HASHED:
                with self.file.open("rb") as opened:
                    found["file_sha256"] = hashlib.file_digest(opened, "sha256").hexdigest()
        return found


def open_source(
    source: str | Path | Iterable[str],
    *,
    field: str,
    split: str | None,
    subset: str | None,
    seed: int | None,
) -> Source:
    """Decide what `source` is and make its documents ready to be read.

    Raises:
        ValueError: It is none of the known kinds, a file that is not there, or an option that does
            not go with it.
    """
    tally = Tally()
    if source == "nano":
        return _nano(tally, split, subset, seed)
    if isinstance(source, str) and not _is_path(source):
        return _hub(source, tally, field, split, subset)
    if split is not None or subset is not None:
        raise ValueError(
            f"split={split!r}, subset={subset!r}: only datasets on the hub have them (and 'nano' a "
            "split); wanted None"
        )
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        reader = reader_of(path)
        return Source(path.name, reader(path, field, tally), tally, file=path)
    if isinstance(source, Iterable) and not isinstance(source, bytes | dict):
        return Source("strings", _of_strings(source, tally), tally)
    raise ValueError(
        f"source={type(source).__name__}; wanted 'nano', a file, a list of strings, or the name of "
        "a dataset on the Hugging Face hub"
    )


def _nano(tally: Tally, split: str | None, subset: str | None, seed: int | None) -> Source:
    if subset is not None:
        raise ValueError(f"subset={subset!r}: 'nano' has none; wanted None")
    if split not in (None, "heldout", "train"):
        raise ValueError(f"split={split!r}; wanted 'heldout' or 'train' for 'nano'")
    if seed is None:
        raise ValueError(
            "seed=None: the text of 'nano' is generated from a seed; wanted an integer"
        )
    split = split or "heldout"

    def counted() -> Iterator[Document]:
        for text in documents(split, seed):
            tally.read += 1
            yield (text,)

    name = f"nano's generated text ({split})"
    return Source(name, counted(), tally, sequences=64, endless=True, attrs={"split": split})


def _hub(name: str, tally: Tally, field: str, split: str | None, subset: str | None) -> Source:
    name = ALIASES.get(name, name)
    if not _DATASET.match(name):
        raise ValueError(
            f"source={name!r} is neither a file that is there nor the name of a dataset "
            "(owner/name); wanted 'nano', a file, a list of strings, or a dataset"
        )
    split = split or "train"
    texts = read_hub(name, field, tally, split=split, subset=subset)
    attrs = {"split": split, "subset": subset or "", "dataset": name}
    return Source(f"{name} ({split})", texts, tally, length=600, attrs=attrs)


def _of_strings(strings: Iterable[str], tally: Tally) -> Iterator[Document]:
    for index, text in enumerate(strings):
        if not isinstance(text, str):
            raise ValueError(f"source[{index}] is {type(text).__name__}; wanted text")
        tally.read += 1
        if text.strip():
            yield (text,)
        else:
            tally.empty += 1


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
