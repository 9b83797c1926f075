"""Which instances of a test of many kinds of models `make test` runs; the rest are slow."""

from collections import defaultdict
from collections.abc import Iterable
from zlib import crc32

import pytest
from random_models import BACKENDS, PROCESSINGS

Values = tuple[str, ...]


def sample(items: Iterable[pytest.Item]) -> None:
    """Mark as slow what is not needed for each value of each axis to be tested at least once.

    An axis is one ``parametrize`` or the parameters of one fixture: all rows of a table are tested.
    A kind of model is three axes, its architecture, class and processing. Which values meet is
    another draw for each test, and always the same one: over all tests each meets each. Where two
    values together are the point, a test is marked ``product`` and keeps all its instances.
    """
    tests: dict[str, dict[pytest.Item, Values]] = defaultdict(dict)
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        if _of_models(item) and not marks & {"slow", "product"}:
            tests[item.nodeid.split("[")[0]][item] = _values(item)
    for name, given in tests.items():
        kept = cover(name, [*given.values()])
        for item, values in given.items():
            if values not in kept:
                item.add_marker("slow")


def cover(name: str, every: list[Values]) -> set[Values]:
    """Few of some combinations that hold all values of each axis, drawn by a name."""
    drawn = sorted(every, key=lambda values: crc32(repr((name, values)).encode()))
    missing, kept = {part for values in every for part in enumerate(values)}, set()
    while missing or not kept:  # without axes there is one, and it stays
        best = max(drawn, key=lambda values: len(missing & {*enumerate(values)}))
        missing -= {*enumerate(best)}
        kept.add(best)
    return kept


def _of_models(item: pytest.Item) -> bool:
    """Whether it asks for the fixture `kind`, and has no parameter of its own by that name."""
    given = item.callspec.params if hasattr(item, "callspec") else {}
    return "kind" in getattr(item, "fixturenames", ()) and "kind" not in given


def _values(item: pytest.Item) -> Values:
    values: list[str] = []
    for axis in item.callspec._idlist if hasattr(item, "callspec") else ():
        parts = axis.split("-")
        is_kind = {*parts} & {*BACKENDS} and {*parts} & {*PROCESSINGS}
        values += parts if is_kind else [axis]
    return tuple(values)
