"""Pieces of a sweep that are kept in files, so that an interrupted one goes on where it was."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["Kept", "Piece"]

Piece = dict[str, Tensor]
T = TypeVar("T")


class Kept:
    """Named pieces, each in a file of its own; without a folder they are just computed."""

    def __init__(self, folder: Path | None, done: Callable[[], object] = lambda: None) -> None:
        """Choose the folder, and what to call after each piece."""
        self._folder, self._done = folder, done

    def fill(
        self,
        names: Sequence[str],
        items: Sequence[T],
        compute: Callable[[list[T]], Iterator[Piece]],
    ) -> list[Piece]:
        """Pieces by name: read where they are kept, else computed.

        Args:
            names: A name for each piece, which says all that it depends on.
            items: What each is computed from.
            compute: From the items whose pieces are not there to these, in order. Each is kept as
                soon as it is handed out. It is not called where none is missing.

        Raises:
            ValueError: A file is damaged.
        """
        found = [self._read(name) for name in names]
        missing = [n for n, piece in enumerate(found) if piece is None]
        for _ in range(len(names) - len(missing)):
            self._done()
        if missing:
            computed = compute([items[n] for n in missing])
            for n, piece in zip(missing, computed, strict=True):
                piece = {key: value.cpu().contiguous() for key, value in piece.items()}
                self._write(names[n], piece)
                found[n] = piece
                self._done()
        return [piece for piece in found if piece is not None]

    def _file(self, name: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{name}.safetensors"

    def _read(self, name: str) -> Piece | None:
        file = self._file(name)
        if file is None or not file.exists():
            return None
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"checkpoint {str(file)!r} cannot be read ({error}); delete it to begin again"
            ) from error

    def _write(self, name: str, piece: Piece) -> None:
        """Write beside, under a name of this process, then rename: a file there is whole."""
        file = self._file(name)
        if file is None:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f"unfinished-{os.getpid()}-{file.name}")
        save_file(piece, unfinished)
        unfinished.replace(file)
