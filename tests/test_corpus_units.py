"""Reducers of some units: what they would say of all, at these; and what they refuse."""

import re

import pytest
import torch
import xarray as xr

from mlp_interp.corpus import SweepOptions, sweep
from mlp_interp.corpus.reducers import Fraction, Histogram, Moments, TopExamples

UNITS = (9, 2, 30)


@pytest.mark.parametrize("kind_of", [Fraction, Histogram, Moments, TopExamples])
@pytest.mark.parametrize("site", ["pre", "resid_post"])
def test_some_units_are_those_of_all(kind, tokens, kind_of, site):
    model = kind("parallel")
    options = {"site": site, "layers": (2, 0), "first": 1}
    every, some = (
        next(
            iter(
                sweep(
                    model,
                    tokens,
                    kind_of(**options, **more),
                    options=SweepOptions(batch_size=3, shard=2),
                ).values()
            )
        )
        for more in ({}, {"units": UNITS})
    )
    unit = "neuron" if site == "pre" else "d_model"
    assert some[unit].values.tolist() == list(UNITS)
    mine = [name for name in some.data_vars if not name.startswith("by_position")]
    expected = every[mine].isel({unit: list(UNITS)})
    xr.testing.assert_allclose(some[mine].drop_vars(unit), expected, rtol=1e-6)


def test_negative_ones_count_from_the_end(kind, tokens):
    model = kind("parallel")
    options = {"layers": (-1, 0), "units": (-64, 5)}
    found = sweep(model, tokens, Fraction(**options))["fraction.pre"]
    assert found["layer"].values.tolist() == [2, 0]
    assert found["neuron"].values.tolist() == [0, 5]
    wanted = sweep(model, tokens, Fraction(layers=(2, 0), units=(0, 5)))["fraction.pre"]
    xr.testing.assert_identical(found, wanted)


def test_by_position_counts_the_chosen_units(kind, tokens):
    found = sweep(kind("parallel"), tokens, Fraction(units=(5,)))["fraction.pre"]
    assert set(torch.tensor(found.by_position.values * len(tokens)).flatten().tolist()) <= {
        float(n) for n in range(len(tokens) + 1)
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": ()}, "units=[]; wanted at least one"),
        ({"units": (1, 1)}, "units=[1, 1]; wanted integers from -64 to 63, each once"),
        ({"units": (64,)}, "units=[64]; wanted integers from -64 to 63"),
        ({"units": (1,), "site": "z"}, "it has heads"),
    ],
)
def test_errors(kind, tokens, options, message):
    model = kind("parallel")
    with pytest.raises(ValueError, match=re.escape(message)):
        sweep(model, tokens, Fraction(**options))
