"""What `make test` leaves to `make test-all` of the combinations of a test's parameters."""

from collections import Counter
from itertools import product
from types import SimpleNamespace

import pytest
from random_models import BACKENDS, PROCESSINGS
from sampling import cover, sample

AXES = ("parallel", "sequential", "gpt2", "llama"), ("hooked", "bridge"), ("folded", "raw")
EVERY = [*product(*AXES)]


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_each_value_is_there_and_little_else(name):
    kept = cover(name, EVERY)
    assert len(kept) == 4
    assert [{*axis} for axis in zip(*kept, strict=True)] == [{*axis} for axis in AXES]
    assert kept == cover(name, EVERY[::-1])


def test_over_many_tests_all_values_meet():
    met = Counter(values for n in range(200) for values in cover(f"test {n}", EVERY))
    assert {*met} == {*EVERY}
    assert min(met.values()) > 10


def test_no_row_of_a_table_is_left_out():
    rows = [(row, side) for row in ("a", "b", "c", "d", "e") for side in ("x", "y")]
    assert {row for row, _ in cover("table", rows)} == {*"abcde"}
    assert cover("alone", [()]) == {()}


class Item:
    def __init__(self, *ids, fixtures=("kind",), marks=(), own=()):
        self.nodeid, self.fixturenames = f"file::test[{'-'.join(ids)}]", fixtures
        self.marks = [SimpleNamespace(name=name) for name in marks]
        if ids:
            self.callspec = SimpleNamespace(_idlist=ids, params=dict.fromkeys(own))

    def iter_markers(self):
        return self.marks

    def add_marker(self, name):
        self.marks.append(SimpleNamespace(name=name))


def kept(**options):
    kinds = [f"parallel-{one}-{other}" for one, other in product(BACKENDS, PROCESSINGS)]
    items = [Item(*ids, **options) for ids in product(kinds, ("auto", "hooks"))]
    sample(items)
    return [item for item in items if "slow" not in {mark.name for mark in item.marks}]


def test_only_tests_of_many_kinds_of_models_are_sampled():
    assert len(kept()) == 2
    assert len(kept(fixtures=())) == len(kept(marks=["product"])) == 4 * len(BACKENDS)
    assert len(kept(own=["kind"])) == 4 * len(BACKENDS)  # a kind of something else
    alone = Item()
    sample([alone])
    assert not alone.marks
