"""Read documents from files, no further than they are asked for.

A document is an iterable of pieces of text, so that one that is larger than memory can pass through
piece by piece. Pieces are cut where tokens cannot straddle the cut.
"""

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from mlp_interp.corpus.tally import DocumentTally

__all__ = [
    "KINDS",
    "SUFFIXES",
    "Document",
    "Reader",
    "document_of",
    "documents_of_rows",
    "reader_of",
]

Document = Iterable[str]
Reader = Callable[[Path, str, DocumentTally], Iterator[Document]]

_PIECE = 1 << 20  # bytes of a .txt, or characters of a longer text, that are tokenised at once


def reader_of(path: Path) -> Reader:
    """The reader for a file's suffix.

    Raises:
        ValueError: There is none, or `path` is not there.
    """
    if not path.exists():
        raise ValueError(f"source={str(path)!r} does not exist; wanted a file ({KINDS})")
    for suffix, reader in _READERS.items():
        if path.name.lower().endswith(suffix):
            return reader
    found = "".join(path.suffixes) or "no suffix"
    raise ValueError(f"source={str(path)!r} has {found}; wanted a file that ends in {KINDS}")


def documents_of_rows(
    rows: Iterable[tuple[str, Any]], field: str, tally: DocumentTally
) -> Iterator[Document]:
    """Documents of rows that are already parsed.

    Args:
        rows: Where each row is, for a message, and the row: a mapping with `field`.
        field: Which entry holds the text.
        tally: Accounts for rows without text, or raises.

    Raises:
        ValueError: A row has no such field, or its entry is not text.
    """
    for place, row in rows:
        if not isinstance(row, dict):
            why = f"found {type(row).__name__}; wanted an object with {field!r}"
            tally.leave_out("not_objects", place, why)
        elif field not in row:
            why = (
                f"no field {field!r} among {', '.join(map(repr, row)) or 'none'}; name the field "
                "that holds the text: field=…"
            )
            tally.leave_out("without_field", place, why)
        else:
            document = document_of(row[field], place, f"{field!r} holds", tally)
            if document is not None:
                yield document


def document_of(text: Any, place: str, what: str, tally: DocumentTally) -> Document | None:
    """One text as a document; None if it is left out.

    Args:
        text: Anything; None counts as empty.
        place: Where it is, e.g. ``"line 3"``.
        what: Begins the message if it is not text, e.g. ``"'text' holds"``.
        tally: Accounts for what is left out, or raises.

    Raises:
        ValueError: It is not text.
    """
    if text is None or (isinstance(text, str) and not text.strip()):
        return tally.leave_out("empty", place)
    if not isinstance(text, str):
        return tally.leave_out("not_text", place, f"{what} {type(text).__name__}; wanted text")
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: JSON can spell it, but it is no text
        return tally.leave_out("broken_utf8", place)
    if len(text) <= _PIECE:
        return (text,)
    return _in_pieces(text[i : i + _PIECE] for i in range(0, len(text), _PIECE))


def _in_pieces(texts: Iterable[str]) -> Iterator[str]:
    """The same text, cut only where no token straddles the cut."""
    held = ""
    for text in texts:
        held += text
        # The byte-level tokenizers of GPT-2, GPT-NeoX and nano end a token before whitespace, so
        # text that is cut there gives the tokens that it gives uncut.
        cut = len(held[: max(held.rfind(" "), held.rfind("\n"), 0)].rstrip())
        if cut:
            yield held[:cut]
            held = held[cut:]
    if held:
        yield held


def _read_txt(path: Path, field: str, tally: DocumentTally) -> Iterator[Document]:
    """One file is one document, blank lines and all."""
    tally.read += 1
    yield _pieces_of_txt(path)


def _pieces_of_txt(path: Path) -> Iterator[str]:
    blank = True
    for piece in _in_pieces(_decoded(path)):
        blank = blank and not piece.strip()
        if not blank:
            yield piece


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


def _read_jsonl(path: Path, field: str, tally: DocumentTally) -> Iterator[Document]:
    with path.open("rb") as file:
        yield from documents_of_rows(_parsed_lines(file, tally), field, tally)


def _read_jsonl_gz(path: Path, field: str, tally: DocumentTally) -> Iterator[Document]:
    with _damage(path, "gzip"), gzip.open(path, "rb") as file:
        yield from documents_of_rows(_parsed_lines(file, tally), field, tally)


def _read_jsonl_zst(path: Path, field: str, tally: DocumentTally) -> Iterator[Document]:
    lines = _lines(_decompressed(path))
    yield from documents_of_rows(_parsed_lines(lines, tally), field, tally)


def _decompressed(path: Path) -> Iterator[bytes]:
    # Not `stream_reader`: it takes the end of a truncated file for the end of the data.
    frame = None
    with path.open("rb") as file, _damage(path, "zstd"):
        while data := file.read(1 << 17):
            while data:
                frame = frame or _zstd().decompressobj()
                yield frame.decompress(data)
                data = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    if frame is not None:
        raise _cut_short(path)


def _zstd() -> zstandard.ZstdDecompressor:
    # Large corpora are packed with long windows; the library's own limit is 128 MiB.
    return zstandard.ZstdDecompressor(max_window_size=1 << 31)


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    begun: list[bytes] = []  # of a line whose end is not there yet, which may be very long
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        begun.append(first)
        if others:
            yield b"".join(begun)
            yield from others[:-1]
            begun = [others[-1]]
    if rest := b"".join(begun):
        yield rest


def _parsed_lines(lines: Iterable[bytes], tally: DocumentTally) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(tally.counted(lines), start=1):
        place = f"line {number}"
        try:
            # Files that begin with a byte order mark may have been joined: it may stand anywhere.
            text = line.decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            tally.leave_out("broken_utf8", place)
            continue
        if not text:
            tally.leave_out("empty", place)
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:  # also integers of thousands of digits
            tally.leave_out("bad_json", place, f"not JSON ({_reason(error)})")
            continue
        yield place, row


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return str(error)


def _read_parquet(path: Path, field: str, tally: DocumentTally) -> Iterator[Document]:
    with _damage(path, "parquet"), pq.ParquetFile(path) as file:
        columns = file.schema_arrow.names
        if field not in columns:
            raise ValueError(
                f"{path.name}: no column {field!r} among {', '.join(map(repr, columns))}; name the "
                "column that holds the text: field=…"
            )
        values = (v for batch in file.iter_batches(64, columns=[field]) for v in batch.column(0))
        for number, value in enumerate(tally.counted(values)):
            place = f"row {number}"
            try:
                text = value.as_py()
            except UnicodeDecodeError:
                tally.leave_out("broken_utf8", place)
                continue
            document = document_of(text, place, f"{field!r} holds", tally)
            if document is not None:
                yield document


@contextmanager
def _damage(path: Path, kind: str) -> Iterator[None]:
    """Turn a decoder's own errors into one that names the file."""
    try:
        yield
    except EOFError as error:
        raise _cut_short(path) from error
    except (zstandard.ZstdError, zlib.error, pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"source={str(path)!r} could not be read as {kind}: {error}") from error


def _cut_short(path: Path) -> ValueError:
    return ValueError(
        f"source={str(path)!r} ends in the middle of a frame; wanted a whole file: it may not have "
        "arrived whole"
    )


_READERS: dict[str, Reader] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".jsonl.gz": _read_jsonl_gz,
    ".jsonl.zst": _read_jsonl_zst,
    ".json.gz": _read_jsonl_gz,
    ".json.zst": _read_jsonl_zst,
    ".parquet": _read_parquet,
}
SUFFIXES = tuple(_READERS)
KINDS = ", ".join(SUFFIXES)
