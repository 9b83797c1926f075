"""A table by columns, and its labels: numbers, or classes."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

__all__ = ["check_column", "check_entities", "columns_of", "labels_of", "listed", "named_labels"]


def listed(name: str, given: Any) -> list[Any]:
    """What was given as a list.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(given, Iterable):
        raise ValueError(f"{name}={given!r}; wanted a list")
    return list(given)


def columns_of(table: Any) -> dict[str, list[Any]]:
    """A table by columns.

    Raises:
        ValueError: It is none, is empty, or its columns are of several lengths.
    """
    if hasattr(table, "to_dict") and hasattr(table, "columns"):
        table = table.to_dict("list")
    if isinstance(table, Mapping):
        columns = {str(name): list(held) for name, held in table.items()}
    else:
        rows = listed("table", table)
        if not all(isinstance(row, Mapping) for row in rows):
            raise ValueError("table holds other than mappings; wanted rows or columns by name")
        names = list(dict.fromkeys(name for row in rows for name in row))
        for n, row in enumerate(rows):
            if missing := [name for name in names if name not in row]:
                raise ValueError(f"table[{n}] has no {missing[0]!r}; wanted it in every row")
        columns = {str(name): [row[name] for row in rows] for name in names}
    counts = {name: len(held) for name, held in columns.items()}
    if len({*counts.values()}) != 1 or not all(counts.values()):
        raise ValueError(f"table has columns of {counts}; wanted at least one row, and one length")
    return columns


def check_column(columns: Mapping[str, Any], name: str) -> None:
    """Refuse a column that is not there.

    Raises:
        ValueError: It is not.
    """
    if name not in columns:
        raise ValueError(f"table has no column {name!r}; wanted one of {', '.join(columns)}")


def named_labels(
    columns: Mapping[str, list[Any]], y: str | Sequence[str] | Mapping[str, Sequence[Any]]
) -> dict[str, list[Any]]:
    """Labels as lists: of columns, or given by themselves.

    Raises:
        ValueError: None are given, there is no such column, or they are not as many as rows.
    """
    if isinstance(y, str | Mapping):
        names = [y] if isinstance(y, str) else [*y]
    else:
        names = listed("y", y)
    if not names:
        raise ValueError(f"y={y!r}; wanted at least one column of labels")
    if not isinstance(y, Mapping):
        for name in names:
            check_column(columns, name)
        return {name: columns[name] for name in names}
    count = len(next(iter(columns.values())))
    for name, held in y.items():
        if len(held) != count:
            raise ValueError(f"y={name!r} has {len(held)} labels for {count} rows; wanted one each")
    return {str(name): list(held) for name, held in y.items()}


def labels_of(columns: Mapping[str, list[Any]]) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Labels ``[row, output]``, and the classes if they are such.

    Raises:
        ValueError: They are not all of one kind, not finite, or one class only.
    """
    for name, held in columns.items():
        numbers = {isinstance(v, Real) and not isinstance(v, bool | np.bool_) for v in held}
        if len(numbers) > 1:
            raise ValueError(f"y={name!r} holds numbers and others; wanted numbers, or classes")
        if numbers == {False}:
            return _of_classes(name, held, len(columns))
    values = np.array([[_number(v) for v in held] for held in columns.values()]).T
    if not np.isfinite(values).all():
        row, output = np.argwhere(~np.isfinite(values))[0]
        name = [*columns][output]
        raise ValueError(f"y={name!r} is {values[row, output]} in row {row}; wanted finite numbers")
    return values, None


def _number(label: Any) -> float:
    try:
        return float(label)
    except OverflowError:  # an integer of more than 308 digits
        return float("inf")


def _of_classes(name: str, held: list[Any], columns: int) -> tuple[np.ndarray, tuple[str, ...]]:
    if columns > 1:
        raise ValueError(f"y={name!r} among {columns} columns holds classes; wanted it alone")
    for row, label in enumerate(held):
        if not isinstance(label, str | bool | np.bool_):
            raise ValueError(
                f"y={name!r} is {label!r} in row {row}; wanted numbers, or classes (texts or "
                "booleans)"
            )
    classes, numbers = np.unique([str(v) for v in held], return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"y={name!r} holds one class, {str(classes[0])!r}; wanted at least two")
    return numbers[:, None].astype(float), tuple(map(str, classes))


def check_entities(entities: np.ndarray, values: np.ndarray) -> None:
    """Refuse an entity with two labels.

    Raises:
        ValueError: One has.
    """
    first: dict[str, int] = {}
    for n, entity in enumerate(entities):
        before = first.setdefault(entity, n)
        if not np.array_equal(values[before], values[n]):
            raise ValueError(
                f"entity={entity!r} has labels {values[before].tolist()} and {values[n].tolist()}; "
                "wanted one label for each entity"
            )
