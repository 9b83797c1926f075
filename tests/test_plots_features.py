"""Figures of features: traces, axes, names and what is refused."""

import numpy as np
import pytest
import xarray as xr

from mlp_interp import plots

ATTRS = {"model": "made<up>", "data": "a & b", "other_model": "kin"}


@pytest.fixture
def found():
    auroc = np.array([[[0.5, 0.9, 0.6], [0.1, 0.4, 0.5]], [[1.0, 0.5, 0.5], [0.5, 0.5, 0.2]]])
    family = np.where(np.abs(auroc - 0.5) >= 0.4, 0.01, 1.0)
    dims = ("feature", "layer", "neuron")
    return xr.Dataset(
        {"auroc": (dims, auroc), "auroc_se": (dims, auroc / 10), "p_family": (dims, family)},
        coords={"feature": ["a<b", "c"], "layer": [1, 3], "neuron": range(3)},
        attrs=ATTRS,
    )


def test_an_index_shows_the_best_of_each_feature(found):
    figure = plots.feature_index(found, top=2)
    heat, dots = figure.data
    assert list(heat.x) == ["L1N1", "L3N0", "L1N0", "L3N2"]
    assert list(heat.y) == ["a&lt;b", "c"]
    np.testing.assert_array_equal(heat.z, [[0.9, 0.1, 0.5, 0.5], [0.5, 0.5, 1.0, 0.2]])
    assert set(zip(dots.x, dots.y, strict=True)) == {
        ("L1N1", "a&lt;b"), ("L3N0", "a&lt;b"), ("L1N0", "c"),
    }  # fmt: skip
    assert figure.layout.coloraxis.cmin == 0
    assert "made&lt;up&gt;" in figure.layout.title.text
    with pytest.raises(ValueError, match="top=0"):
        plots.feature_index(found, top=0)
    with pytest.raises(ValueError, match="lacks 'p_family'"):
        plots.feature_index(found.drop_vars("p_family"))


def test_universal_neurons_beside_turned_ones():
    value = np.array([[0.9, 0.4, np.nan], [0.3, 0.2, 0.1]])
    shared = xr.Dataset(
        {
            "correlation": (("layer", "neuron", "rank"), value[..., None]),
            "rotated": (("draw", "layer", "neuron"), value[None] / 2),
            "excess": (("layer", "neuron"), value / 2),
        },
        coords={"layer": [0, 2]},
        attrs=ATTRS,
    )
    figure = plots.universal(shared)
    own, turned, first, second = figure.data
    assert sorted(own.x) == [0.1, 0.2, 0.3, 0.4, 0.9]
    assert len(turned.x) == 5
    np.testing.assert_allclose(first.x, [0.45, 0.2])
    np.testing.assert_allclose(first.y, [1 / 3, 2 / 3])
    assert (first.name, second.name) == ("layer 0", "layer 2")
    assert "kin" in figure.layout.title.text
    with pytest.raises(ValueError, match="excess"):
        plots.universal(shared.drop_vars("excess"))


def test_revisions_are_lines_over_tokens():
    steps = np.array([0, 1, 8])
    result = xr.Dataset(
        {
            "facts": ("revision", [0.0, 0.5, 1.0], {"unit": "share"}),
            "facts_se": ("revision", [0.0, 0.1, 0.0]),
            "wide": (("revision", "layer"), np.zeros((3, 2))),
        },
        coords={
            "revision": ["step0", "step1", "step8"],
            "step": ("revision", steps),
            "tokens": ("revision", steps * 100.0),
        },
        attrs=ATTRS,
    )
    figure = plots.revisions(result, ["facts"])
    (line,) = figure.data
    np.testing.assert_array_equal(line.x, [np.nan, 100, 800])
    np.testing.assert_array_equal(line.y, [0, 0.5, 1])
    np.testing.assert_array_equal(line.error_y.array, [0, 0.1, 0])
    assert figure.layout.xaxis.title.text == "tokens read"
    assert figure.layout.yaxis.title.text == "share"
    assert "step 0" in figure.layout.annotations[0].text
    unknown = plots.revisions(result.assign_coords(tokens=("revision", [np.nan] * 3)), ["facts"])
    assert unknown.layout.xaxis.title.text == "training step"
    with pytest.raises(ValueError, match=r"result\['wide'\] has dims"):
        plots.revisions(result)
    with pytest.raises(ValueError, match="lacks 'words'"):
        plots.revisions(result, ["words"])
