"""Files that are whole or not there, and the pieces of a computation that are kept in them.

A computation of hours is cut into pieces. Each goes to a file of its own as soon as it is there,
and whoever begins again with the same folder reads it back. What a piece depends on is the caller's
to say, in the name of the folder or of the piece (`mlp_interp.models.fingerprint`). Several
processes may share a folder: what one finds there, it does not compute.
"""

import errno
import hashlib
import os
import platform
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

__all__ = ["TENSORS", "Checkpoint", "Format", "Tensors", "names_full_disk", "whole_file"]

Piece = TypeVar("Piece")
Item = TypeVar("Item")
Tensors = dict[str, Tensor]

_UNFINISHED = "unfinished-"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SEAL = b"\nsha256:"  # and the hash of all before it: the end of a piece's file


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write what shall be at `path`; it goes there in one step at the end of the block.

    It is written beside, under a name of this process, and forced to disk before it takes the name.
    So whoever is killed, at any moment, leaves the old file or the new one and never a half; an
    error leaves the old one and nothing else. A folder of files may be written in the same way, and
    then takes the place of a folder, all that is in it; whoever is killed between these two steps
    leaves both, the old one as ``unfinished-…-old``.

    Args:
        path: The file, in a folder that exists; of a link, what it points to.

    Raises:
        OSError: The disk is full; the error names `path`.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "numbers.txt")
        ...     with whole_file(path) as part:
        ...         _ = part.write_text("all of them")
        ...     [file.name for file in Path(folder).iterdir()]
        ['numbers.txt']
    """
    path = path.resolve()
    # Machines and containers that share a folder may give a number to a process each.
    part = path.with_name(f"{_UNFINISHED}{platform.node()}-{os.getpid()}-{path.name}")
    _remove(part)  # of a process of the same number that was killed
    try:
        with names_full_disk(path):
            yield part
            for file in part.rglob("*") if part.is_dir() else [part]:
                _force_to_disk(file)
        if part.is_dir() and path.is_dir():
            _replace_folder(part, path)
        else:
            part.replace(path)
    finally:
        _remove(part)


@contextmanager
def names_full_disk(path: Path) -> Iterator[None]:
    """Make one error, which names the file, of all that libraries raise where a disk is full.

    Raises:
        OSError: It is.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        number = next((code for code in _FULL if _says(error, code)), None)
        if number is None:
            raise
        why = f"{os.strerror(number)}; make room, or write elsewhere"
        raise OSError(number, why, str(path)) from error


@dataclass(frozen=True)
class Format(Generic[Piece]):
    """How a piece is written and read.

    Attributes:
        suffix: Of the files.
        write: Writes a piece to a path.
        read: Makes it of what is in the file.
    """

    suffix: str
    write: Callable[[Piece, Path], object]
    read: Callable[[bytes], Piece]


def _write_tensors(tensors: Tensors, path: Path) -> None:
    save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, path)


TENSORS: Format[Tensors] = Format(".safetensors", _write_tensors, load)
"""Named tensors; they come back on the CPU."""


class Checkpoint(Generic[Piece]):
    """Named pieces of a computation, each in a file of its own; without a folder none is kept.

    Every file ends in its checksum. One that is damaged is named in a warning, and its piece is as
    one that was never kept: it is computed again.

    Args:
        folder: Where the files go, made when the first is written; None keeps nothing.
        form: How a piece is written.
        done: Called for every piece of `fill` as it is there: the step of a progress bar.

    Raises:
        ValueError: The folder, or one above it, is a file.

    Example:
        >>> import torch
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     for attempt in range(2):
        ...         kept = Checkpoint(Path(folder), TENSORS)
        ...         piece = kept.once("mean", lambda: {"x": torch.full((1,), attempt)})
        >>> int(piece["x"])
        0
    """

    def __init__(
        self,
        folder: Path | None,
        form: Format[Piece],
        *,
        done: Callable[[], object] = lambda: None,
    ) -> None:
        self.folder, self.form, self._done = folder, form, done
        for place in () if folder is None else (folder, *folder.parents):
            if place.is_file():
                raise ValueError(f"checkpoint={str(place)!r} is a file; wanted a directory")

    def path(self, name: str) -> Path | None:
        """The file of a piece; None if nothing is kept."""
        return None if self.folder is None else self.folder / f"{name}{self.form.suffix}"

    def names(self) -> set[str]:
        """The pieces that are kept."""
        files = [] if self.folder is None else self.folder.glob(f"*{self.form.suffix}")
        return {f.name.removesuffix(self.form.suffix) for f in files if not _is_unfinished(f)}

    def read(self, name: str) -> Piece | None:
        """A piece; None if it is not kept.

        Warns:
            UserWarning: Its file is damaged; None then, too.
        """
        path = self.path(name)
        try:
            content = None if path is None else path.read_bytes()
        except FileNotFoundError:
            return None
        if content is None:
            return None
        body, seal = content[: -_seal_size()], content[-_seal_size() :]
        if seal == _seal(hashlib.sha256(body)):
            return self.form.read(body)
        warnings.warn(
            f"checkpoint {str(path)!r} is damaged: it does not end in its checksum; what was in "
            "it is computed again",
            stacklevel=2,
        )
        return None

    def keep(self, name: str, piece: Piece) -> None:
        """Write a piece, in the place of the last of its name.

        Raises:
            OSError: The disk is full, or the folder cannot be written to.
        """
        path = self.path(name)
        if path is None:
            return
        try:
            self._write(path, piece)
        except (OSError, SafetensorError):
            if path.parent.is_dir():
                raise
            self._write(path, piece)  # another process was done with the folder, and deleted it

    def _write(self, path: Path, piece: Piece) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part:
            self.form.write(piece, part)
            with part.open("r+b") as file:
                file.write(_seal(hashlib.file_digest(file, "sha256")))

    def forget(self, name: str) -> None:
        """Delete a piece, if it is kept."""
        if (path := self.path(name)) is not None:
            path.unlink(missing_ok=True)

    def once(self, name: str, compute: Callable[[], Piece]) -> Piece:
        """A piece that is kept, else computed now and kept."""
        piece = self.read(name)
        if piece is None:
            piece = compute()
            self.keep(name, piece)
        return piece

    def fill(
        self,
        names: Sequence[str],
        items: Sequence[Item],
        compute: Callable[[list[Item]], Iterator[Piece]],
    ) -> list[Piece]:
        """Many pieces: those that are kept are read, the others are computed together.

        Args:
            names: Of the pieces.
            items: What each is computed from.
            compute: From the items whose pieces are not kept to these, in order. Each is kept as
                soon as it is handed out. It is not called where none is missing.
        """
        pieces = {name: piece for name in names if (piece := self.read(name)) is not None}
        for _ in pieces:
            self._done()
        if missing := [n for n, name in enumerate(names) if name not in pieces]:
            computed = compute([items[n] for n in missing])
            for n, piece in zip(missing, computed, strict=True):
                self.keep(names[n], piece)
                pieces[names[n]] = piece
                self._done()
        return [pieces[name] for name in names]


def _seal(digest: Any) -> bytes:
    return _SEAL + digest.hexdigest().encode()


def _seal_size() -> int:
    return len(_seal(hashlib.sha256()))


def _says(error: Exception, number: int) -> bool:
    """Whether an error is one of the system's; libraries in other languages only quote it."""
    said = str(error)
    quoted = os.strerror(number) in said or f"errno = {number}," in said
    return getattr(error, "errno", None) == number or quoted


def _replace_folder(part: Path, path: Path) -> None:
    """Put a folder in the place of another, which unlike a file cannot be replaced in one step."""
    old = part.with_name(f"{part.name}-old")
    _remove(old)
    path.replace(old)
    try:
        part.replace(path)
    except BaseException:
        old.replace(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _is_unfinished(path: Path) -> bool:
    return path.name.startswith(_UNFINISHED)


def _force_to_disk(path: Path) -> None:
    if path.is_file():
        with path.open("r+b") as file:
            os.fsync(file.fileno())


def _remove(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part)
    else:
        part.unlink(missing_ok=True)
