"""Read documents from files, no further than they are asked for.

A document is an iterable of pieces of text, so that one that is larger than memory can pass through
piece by piece. Pieces are cut where tokens cannot straddle the cut.
"""

import codecs
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

__all__ = ["READERS", "Document", "Tally", "documents_of_rows", "reader_of"]

Document = Iterable[str]

_PIECE = 1 << 20  # bytes of a .txt that are tokenised at once


@dataclass
class Tally:
    """What was met while reading."""

    read: int = 0
    empty: int = 0
    broken: int = 0
    first_broken: int = 0

    @property
    def skipped(self) -> int:
        """Documents that gave no text."""
        return self.empty + self.broken


def reader_of(path: Path) -> Callable[[Path, str, Tally], Iterator[Document]]:
    """The reader for a file's suffix.

    Raises:
        ValueError: There is none, or `path` is a folder or not there.
    """
    if path.is_dir():
        raise ValueError(f"source={str(path)!r} is a folder; wanted one file ({_KINDS})")
    if not path.exists():
        raise ValueError(f"source={str(path)!r} does not exist; wanted a file ({_KINDS})")
    for suffix, reader in READERS.items():
        if path.name.lower().endswith(suffix):
            return reader
    found = "".join(path.suffixes) or "no suffix"
    raise ValueError(f"source={str(path)!r} has {found}; wanted a file that ends in {_KINDS}")


def documents_of_rows(
    rows: Iterable[tuple[str, Any]], field: str, tally: Tally
) -> Iterator[Document]:
    """Documents of rows that are already parsed.

    Args:
        rows: Where each row is, for an error message, and the row: a mapping with `field`.
        field: Which entry holds the text.
        tally: Counts documents read and those without text.

    Raises:
        ValueError: A row has no such field, or its entry is not text.
    """
    for where, row in rows:
        tally.read += 1
        if not isinstance(row, dict):
            raise ValueError(
                f"{where}: found {type(row).__name__}; wanted an object with {field!r}"
            )
        if field not in row:
            raise ValueError(
                f"{where}: no field {field!r} among {', '.join(map(repr, row))}; name the field "
                "that holds the text: field=…"
            )
        text = row[field]
        if not isinstance(text, str | None):
            raise ValueError(f"{where}: {field!r} holds {type(text).__name__}; wanted text")
        if text is None or not text.strip():
            tally.empty += 1
        else:
            yield (text,)


def _read_txt(path: Path, field: str, tally: Tally) -> Iterator[Document]:
    """One file is one document, blank lines and all."""
    tally.read += 1
    yield _pieces_of_txt(path, tally)


def _pieces_of_txt(path: Path, tally: Tally) -> Iterator[str]:
    held, blank = "", True
    for text in _decoded(path):
        held += text
        # The byte-level tokenizers of GPT-2, GPT-NeoX and nano end a token before whitespace, so
        # text that is cut there gives the tokens that it gives uncut.
        cut = len(held[: max(held.rfind(" "), held.rfind("\n"), 0)].rstrip())
        if cut:
            blank = False
            yield held[:cut]
            held = held[cut:]
    if held.strip() or not blank:
        yield held
    else:
        tally.empty += 1


def _decoded(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    line = 1
    with path.open("rb") as file:
        while True:
            data = file.read(_PIECE)
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                raise ValueError(
                    f"{path.name}, line {line}: not UTF-8 ({error.reason}); wanted UTF-8: convert "
                    "the file first, e.g. with iconv"
                ) from error
            if not data:
                return
            line += text.count("\n")
            yield text


def _read_jsonl(path: Path, field: str, tally: Tally) -> Iterator[Document]:
    with path.open("rb") as file:
        yield from documents_of_rows(_parsed_lines(file, path, tally), field, tally)


def _read_jsonl_zst(path: Path, field: str, tally: Tally) -> Iterator[Document]:
    lines = _lines(_decompressed(path))
    yield from documents_of_rows(_parsed_lines(lines, path, tally), field, tally)


def _decompressed(path: Path) -> Iterator[bytes]:
    # Not `stream_reader`: it takes the end of a truncated file for the end of the data.
    frame = None
    with path.open("rb") as file, _damage(path, "zstd"):
        while data := file.read(1 << 17):
            while data:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(data)
                data = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    if frame is not None:
        raise ValueError(
            f"source={str(path)!r} ends in the middle of a frame; wanted a whole file: it may not "
            "have arrived whole"
        )


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _parsed_lines(lines: Iterable[bytes], path: Path, tally: Tally) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(lines, start=1):
        where = f"{path.name}, line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError:
            # One document of many: leave it out, count it, and say so at the end.
            tally.read += 1
            tally.broken += 1
            tally.first_broken = tally.first_broken or number
            continue
        if not text:
            tally.read += 1
            tally.empty += 1
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
        yield where, row


def _read_parquet(path: Path, field: str, tally: Tally) -> Iterator[Document]:
    with _damage(path, "parquet"), pq.ParquetFile(path) as file:
        columns = file.schema_arrow.names
        if field not in columns:
            raise ValueError(
                f"{path.name}: no column {field!r} among {', '.join(map(repr, columns))}; name the "
                "column that holds the text: field=…"
            )
        rows = (
            row for batch in file.iter_batches(64, columns=[field]) for row in batch.to_pylist()
        )
        numbered = ((f"{path.name}, row {n}", row) for n, row in enumerate(rows))
        yield from documents_of_rows(numbered, field, tally)


@contextmanager
def _damage(path: Path, kind: str) -> Iterator[None]:
    """Turn a decoder's own errors into one that names the file."""
    try:
        yield
    except (zstandard.ZstdError, pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"source={str(path)!r} could not be read as {kind}: {error}") from error


READERS: dict[str, Callable[[Path, str, Tally], Iterator[Document]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".jsonl.zst": _read_jsonl_zst,
    ".parquet": _read_parquet,
}
_KINDS = ", ".join(READERS)
