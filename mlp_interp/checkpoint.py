"""Files that are whole or not there, and the pieces of a computation that are kept in them.

A computation of hours is cut into pieces. Each goes to a file of its own as soon as it is there,
and whoever begins again with the same folder reads it back. What a piece depends on is the caller's
to say, in the name of the folder or of the piece (`mlp_interp.models.fingerprint`).
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["TENSORS", "Checkpoint", "Format", "Tensors", "whole_file"]

Piece = TypeVar("Piece")
Item = TypeVar("Item")
Tensors = dict[str, Tensor]

_UNFINISHED = "unfinished-"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write what shall be at `path`; it goes there in one step at the end of the block.

    It is written beside, under a name of this process, and forced to disk before it takes the name.
    So whoever is killed, at any moment, leaves the old file or the new one and never a half; an
    error leaves the old one and nothing else. A folder of files may be written in the same way, and
    then takes the place of a folder, all that is in it.

    Args:
        path: The file, in a folder that exists; of a link, what it points to.

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
    part = path.with_name(f"{_UNFINISHED}{os.getpid()}-{path.name}")
    _remove(part)  # of a process of the same number that was killed
    try:
        yield part
        for file in part.rglob("*") if part.is_dir() else [part]:
            _force_to_disk(file)
        if part.is_dir() and path.is_dir():  # a folder cannot be replaced, unlike a file
            shutil.rmtree(path)
        part.replace(path)
    finally:
        _remove(part)


@dataclass(frozen=True)
class Format(Generic[Piece]):
    """How a piece is written and read.

    Attributes:
        suffix: Of the files.
        write: Writes a piece to a path.
        read: Reads it back; raises OSError, ValueError or SafetensorError where it cannot.
    """

    suffix: str
    write: Callable[[Piece, Path], object]
    read: Callable[[Path], Piece]


def _write_tensors(tensors: Tensors, path: Path) -> None:
    save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, path)


TENSORS: Format[Tensors] = Format(".safetensors", _write_tensors, load_file)
"""Named tensors; they come back on the CPU."""


class Checkpoint(Generic[Piece]):
    """Named pieces of a computation, each in a file of its own; without a folder none is kept.

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

        Raises:
            ValueError: Its file is damaged.
        """
        path = self.path(name)
        if path is None or not path.exists():
            return None
        try:
            return self.form.read(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(
                f"checkpoint {str(path)!r} cannot be read ({error}); delete it to begin again"
            ) from error

    def keep(self, name: str, piece: Piece) -> None:
        """Write a piece, in the place of the last of its name."""
        if (path := self.path(name)) is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as part:
                self.form.write(piece, part)

    def forget(self, name: str) -> None:
        """Delete a piece, if it is kept."""
        if (path := self.path(name)) is not None:
            path.unlink(missing_ok=True)

    def once(self, name: str, compute: Callable[[], Piece]) -> Piece:
        """A piece that is kept, else computed now and kept.

        Raises:
            ValueError: Its file is damaged.
        """
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

        Raises:
            ValueError: A file is damaged.
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
