"""Tables of prompts and labels in files, for `mlp-interp probe`."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

__all__ = ["check_table", "labels_of", "rows_of"]

_KINDS = (".csv", ".jsonl")


def check_table(path: Path) -> None:
    """Refuse, before anything is loaded, what is no such file.

    Raises:
        ValueError: Its name ends in neither ``.csv`` nor ``.jsonl``, or there is none.
    """
    if path.suffix.lower() not in _KINDS:
        raise ValueError(f"FILE must end in {' or '.join(_KINDS)}, got {str(path)!r}")
    if not path.is_file():
        raise ValueError(f"FILE {str(path)!r} is not there; wanted a table of prompts and labels")


def rows_of(path: Path) -> list[dict[str, Any]]:
    """A file's rows by the names of its columns; of a ``.csv`` all values are texts.

    Raises:
        ValueError: It has no rows, or one that is damaged.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            read = _of_csv if path.suffix.lower() == ".csv" else _of_lines
            rows = read(file)
    except UnicodeDecodeError as error:
        raise ValueError(f"FILE {str(path)!r} is not UTF-8 at byte {error.start}") from None
    except (csv.Error, ValueError) as error:
        raise ValueError(f"FILE {str(path)!r}: {error}") from None
    if not rows:
        raise ValueError(f"FILE {str(path)!r} has no rows; wanted prompts with labels")
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or None in row or None in row.values():
            raise ValueError(f"row {number} of FILE is {row}; wanted a value for every column")
    return rows


def _of_csv(file: TextIO) -> list[Any]:
    reader = csv.DictReader(file, strict=True)
    names = reader.fieldnames or []
    if len(set(names)) < len(names):
        raise ValueError(f"columns {', '.join(names)}; wanted each name once")
    return list(reader)


def _of_lines(file: TextIO) -> list[Any]:
    rows = []
    for number, line in enumerate(file, 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is no JSON: {error.msg} at {error.pos}") from None
    return rows


def labels_of(
    rows: Sequence[dict[str, Any]], names: Sequence[str], *, classes: bool
) -> dict[str, list[Any]]:
    """Some columns as labels: numbers where all are, even as texts, unless they are classes.

    Raises:
        ValueError: There is no such column.
    """
    found: dict[str, list[Any]] = {}
    for name in names:
        if any(name not in row for row in rows):
            raise ValueError(f"--label {name!r} is no column; wanted one of {', '.join(rows[0])}")
        held = [row[name] for row in rows]
        found[name] = list(map(str, held)) if classes else _numbers(held)
    return found


def _numbers(held: list[Any]) -> list[Any]:
    """Texts as the numbers that they are, if all are."""
    try:
        return [float(value) if isinstance(value, str) else value for value in held]
    except ValueError:
        return held
