"""Which files a source names: a file, a folder, a glob, a list of these; or none: it is text."""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from mlp_interp.corpus.files import KINDS, SUFFIXES

__all__ = ["files_in", "is_name"]


def files_in(names: Sequence[Any]) -> list[Path] | None:
    """The files that a list names; None if it is a list of texts.

    Strings are file names where all of them are: they end like one, or are there. So a wrong name
    is an error, and not a text of one word.

    Raises:
        ValueError: Names of files stand among texts, one stands for no file, or two for the same.
    """
    like = [n for n, name in enumerate(names) if is_name(name)]
    if not names or not all(is_name(name) or _is_there(name) for name in names):
        for n in like:
            if isinstance(names[n], Path) or _is_there(names[n]):
                raise ValueError(
                    f"source[{n}]={str(names[n])!r} is a file among texts; wanted files or texts"
                )
        return None
    files = [*chain.from_iterable(_expanded(name) for name in names)]
    if twice := [file for file, times in Counter(files).items() if times > 1]:
        raise ValueError(f"source names {str(twice[0])!r} more than once; wanted each file once")
    return files


def is_name(name: Any) -> bool:
    """Whether something is meant as a file, be it there or not."""
    if isinstance(name, Path):
        return True
    return isinstance(name, str) and name.lower().endswith(SUFFIXES) and len(name.split()) == 1


def _is_there(name: Any) -> bool:
    if not isinstance(name, str):
        return False
    path = os.path.expanduser(name)  # of os.path: `Path` raises where a text is no name at all
    # A folder only where it is spelled as one: "docs" is a word.
    if os.path.isfile(path) or ("/" in name and os.path.isdir(path)):
        return True
    return len(name.split()) == 1 and glob.has_magic(name) and bool(glob.glob(path))


def _expanded(name: str | Path) -> list[Path]:
    """The files that one name stands for, in the order of their names.

    Raises:
        ValueError: There is none.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if _is_read(file, path)]
        if not files:
            raise ValueError(
                f"source={str(name)!r} is a folder without any file that ends in {KINDS}"
            )
        return files
    if path.exists() or not glob.has_magic(str(path)):
        return [path]
    files = [Path(found) for found in sorted(glob.glob(str(path), recursive=True))]
    files = [file for file in files if file.is_file()]
    if not files:
        raise ValueError(f"source={str(name)!r} matches no file")
    return files


def _is_read(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.is_file() and not hidden and file.name.lower().endswith(SUFFIXES)
