"""Token files: tokens on disk as a plain ``.npy``, and beside it what is known of them as JSON.

A file at its own name is a finished one. It is written under another name and takes its own in the
last step, after the JSON is there; whatever is killed before leaves nothing that looks finished.
"""

import hashlib
import io
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from jaxtyping import Int
from torch import Tensor

from mlp_interp.checkpoint import names_full_disk, whole_file

__all__ = ["TokenWriter", "is_finished", "map_tokens", "read_facts"]

_FORMAT = "mlp_interp tokens 1"
_BLOCK = 1 << 18  # tokens that are held before they are written: 1 MB


class TokenWriter:
    """Writes rows of tokens to a file, a block at a time; used in a ``with`` statement.

    What was written is gone at the end of the statement unless `finish` was called in it.

    Args:
        path: The file.
        length: Tokens in each row.

    Raises:
        ValueError: `path` is there already, its folder is not, or somebody else is writing it.
    """

    def __init__(self, path: Path, length: int) -> None:
        self._lock = _locked(path)
        self.path, self.length, self.highest = path, length, 0
        self._rows, self._finished = 0, False
        self._digest = hashlib.sha256()
        self._block = np.empty((max(1, _BLOCK // length), length), dtype="<i4")
        self._held = 0
        self._part = path.with_name(path.name + ".part")
        self._file = self._part.open("wb")  # what a killed process left is gone
        self._file.write(_header(0, self.length))

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # a full disk has said so before, in `append` or `finish`
            self._file.close()
        if not self._finished:
            self._part.unlink(missing_ok=True)
        _unlock(self._lock)

    def __len__(self) -> int:
        return self._rows

    def append(self, row: np.ndarray, /) -> None:
        """Take one more row."""
        self._block[self._held] = row
        self._held += 1
        self._rows += 1
        if self._held == len(self._block):
            self._flush()

    def finish(self, attrs: dict[str, Any], **facts: Any) -> None:
        """Write what is left and what is known of the tokens, and give the file its name.

        Args:
            attrs: The corpus's attributes.
            facts: Whatever else shall be found beside the tokens; anything that JSON can hold.

        Raises:
            OSError: The disk is full; the error names the file.
        """
        self._flush()
        with names_full_disk(self.path):
            self._file.seek(0)
            self._file.write(_header(self._rows, self.length))
            self._file.flush()
            os.fsync(self._file.fileno())
        known = {
            "format": _FORMAT,
            "shape": [self._rows, self.length],
            "bytes": os.fstat(self._file.fileno()).st_size,
            "highest": self.highest,
            "sha256": self._digest.hexdigest(),
            "attrs": attrs,
            **facts,
        }
        _write_facts(self.path, known)
        self._part.replace(self.path)
        self._finished = True

    def _flush(self) -> None:
        block = self._block[: self._held]
        if len(block):
            self.highest = max(self.highest, int(block.max()))
            self._digest.update(block.astype("<i8").tobytes())
            with names_full_disk(self.path):
                self._file.write(block.data)
        self._held = 0


def is_finished(path: Path) -> bool:
    """Whether a token file and what is known of it are there."""
    return path.is_file() and _facts_of(path).is_file()


def read_facts(path: Path) -> dict[str, Any]:
    """What is known of a token file, as `TokenWriter.finish` wrote it.

    Raises:
        ValueError: There is no such file, or the two do not belong together.
    """
    beside = _facts_of(path)
    if not path.is_file():
        raise ValueError(f"path={str(path)!r} does not exist; wanted a token file")
    if not beside.is_file():
        raise ValueError(
            f"path={str(path)!r} has no {beside.name!r} beside it; wanted a token file as "
            "Corpus.save or load_corpus(file=…) writes it"
        )
    try:
        facts = json.loads(beside.read_text(encoding="utf-8"))
        known, size = facts["format"], facts["bytes"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"path={str(beside)!r} is damaged ({error!r})") from error
    if known != _FORMAT:
        raise ValueError(f"path={str(beside)!r} has format {known!r}; wanted {_FORMAT!r}")
    if path.stat().st_size != size:
        raise ValueError(
            f"path={str(path)!r} has {path.stat().st_size} bytes; wanted {size}, as its JSON says: "
            "it may not have been copied whole"
        )
    return facts


def map_tokens(path: Path, shape: tuple[int, int]) -> Int[Tensor, "sequence pos"]:
    """The tokens of a file, read from disk where they are looked at.

    Raises:
        ValueError: The file does not hold 32-bit integers of that shape.
    """
    # Copy-on-write: torch knows no read-only tensors, and what is written to it stays in memory.
    array = np.load(path, mmap_mode="c", allow_pickle=False)
    if array.shape != shape or array.dtype != np.dtype("<i4"):
        raise ValueError(
            f"path={str(path)!r} holds {array.dtype} {array.shape}; wanted int32 {shape}"
        )
    return torch.from_numpy(array)


def _check_free(path: Path) -> None:
    if path.exists():
        raise ValueError(
            f"file={str(path)!r} is there already, and is not overwritten; wanted a new name, or "
            "delete it first"
        )
    if not path.parent.is_dir():
        raise ValueError(f"file={str(path)!r}: there is no folder {str(path.parent)!r}")


def _locked(path: Path) -> FileLock:
    """A lock beside a file that is to be written.

    Raises:
        ValueError: The file is there already, its folder is not, or somebody else has the lock.
    """
    _check_free(path)
    lock = FileLock(path.with_name(path.name + ".lock"), blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"file={str(path)!r} is being written by another process; wait for it, or "
            "give another name"
        ) from error
    try:
        _check_free(path)  # again: somebody may have finished it meanwhile
    except ValueError:
        _unlock(lock)
        raise
    return lock


def _unlock(lock: FileLock) -> None:
    """Let go of a lock, and delete its file."""
    # While it is held: afterwards it may be somebody else's. Windows deletes no file that is open.
    with suppress(PermissionError):
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def _header(rows: int, length: int) -> bytes:
    """Version 1.0 of numpy's format, which leaves room for the shape to grow."""
    header = io.BytesIO()
    facts = {"descr": "<i4", "fortran_order": False, "shape": (rows, length)}
    np.lib.format.write_array_header_1_0(header, facts)
    return header.getvalue()


def _facts_of(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _write_facts(path: Path, facts: dict[str, Any]) -> None:
    beside = _facts_of(path)
    with whole_file(beside) as part:
        part.write_text(json.dumps(facts, indent=1), encoding="utf-8")
