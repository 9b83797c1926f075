"""Indices: one reading of what names layers, heads, neurons, positions and prompts."""

import numpy as np
import pytest
import torch

from mlp_interp.models.indices import finite_number, index, indices


@pytest.mark.parametrize(
    "given",
    [
        [2, 0],
        (2, -4),
        np.array([-2, 0]),
        torch.tensor([2, -4]),
        [np.int64(2), torch.tensor(0)],
        iter([2, 0]),
    ],
    ids=["list", "tuple", "numpy", "torch", "scalars", "iterator"],
)
def test_several_are_counted_from_the_start_in_their_order(given):
    assert indices("layers", given, 4) == (2, 0)


@pytest.mark.parametrize("given", [-1, np.int32(3), np.array(3), torch.tensor(-1)])
def test_one_alone(given):
    assert indices("layers", given, 4) == (3,)
    assert index("layer", given, 4) == 3


def test_none_is_all():
    assert indices("heads", None, 3) == (0, 1, 2)


def test_plain_integers_come_back():
    assert {type(i) for i in indices("layers", np.arange(3), 3)} == {int}
    assert type(index("layer", torch.tensor(1), 3)) is int


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ([4], "[4]"),
        ([-5], "[-5]"),
        (7, "[7]"),
        ([1, 1], "[1, 1]"),
        ([3, -1], "[3, -1]"),
        ([True], "[True]"),
        ([0, 1.0], "[0, 1.0]"),
        (np.array([1.0]), "[1.0]"),
        (torch.tensor([True, False]), "[True, False]"),
        ([[0, 1]], "[[0, 1]]"),
        ("all", "['all']"),
        ([None], "[None]"),
    ],
)
def test_what_is_no_index_or_named_twice_is_refused(given, shown):
    with pytest.raises(ValueError) as error:
        indices("layers", given, 4)
    assert str(error.value) == f"layers={shown}; wanted integers from -4 to 3, each once"


@pytest.mark.parametrize("given", [[], torch.tensor([], dtype=torch.long)])
def test_none_at_all_is_refused(given):
    with pytest.raises(ValueError, match=r"layers=\[\]; wanted at least one integer from -4 to 3"):
        indices("layers", given, 4)


@pytest.mark.parametrize("given", [4, -5, True, 1.0, "1", None, [1], torch.tensor([1])])
def test_one_index_that_is_none_is_refused(given):
    with pytest.raises(ValueError, match=r"layer=.*; wanted an integer from -4 to 3"):
        index("layer", given, 4)


@pytest.mark.parametrize("given", [np.True_, torch.tensor(True), np.array([True]), 10**400])
def test_truths_and_what_no_float_holds_are_no_numbers(given):
    with pytest.raises(ValueError, match=r"factor=.*; wanted a finite number"):
        finite_number("factor", given)
    assert finite_number("factor", torch.tensor([0.5])) == 0.5
