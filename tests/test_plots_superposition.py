"""Figures of superposition: lines, marks, panels and what is refused."""

import numpy as np
import pytest
import xarray as xr

from mlp_interp import plots

MEASURES = ["participation", "participation_unbiased", "entropy_rank", "k90", "k99"]


@pytest.fixture
def dimensions():
    """Of two layers, at three amounts of text."""
    dims, values = ("layer", "n"), np.arange(6.0).reshape(2, 3) + 1
    found = {name: (dims, values * (n + 1)) for n, name in enumerate(MEASURES)}
    found["participation_se"] = dims, values / 10
    found["enough"] = ("layer", "measure"), [[10, 40, 90, np.nan, 10], [np.nan] * 5]
    coords = {"layer": [1, 3], "n": [1, 2, 3], "measure": MEASURES, "tokens": ("n", [10, 40, 90])}
    return xr.Dataset(found, coords, attrs={"model": "made<up>", "site": "post"})


@pytest.fixture
def noise():
    """Quadratic at one site, nothing at the other."""
    kl = np.array([[[0.01, 0.04, 0.16]], [[0.0, 0.01, 0.04]]])
    return xr.Dataset(
        {
            "kl": (("site", "layer", "size"), kl),
            "kl_se": (("site", "layer", "size"), kl / 5),
            "tolerated": (("site", "layer"), [[0.15], [np.nan]]),
        },
        coords={"site": ["post", "resid_pre"], "layer": [2], "size": [0.1, 0.2, 0.4]},
        attrs={"model": "made<up>", "level": 0.02, "kind": "isotropic"},
    )


def toys(d, panels=2, features=4):
    W = np.random.default_rng(0).standard_normal((panels, features, d))
    return xr.Dataset(
        {
            "W": (("instance", "feature", "d"), W),
            "gram": (("instance", "feature", "other"), W @ W.swapaxes(1, 2)),
            "norm": (("instance", "feature"), np.linalg.norm(W, axis=-1)),
            "dimensionality": (("instance", "feature"), np.full((panels, features), 0.4)),
            "loss": ("instance", np.full(panels, 0.1)),
        },
        coords={"probability": ("instance", np.full(panels, 0.5)), "feature": range(features)},
    )


def test_dimensions_are_lines_over_tokens(dimensions):
    figure = plots.spectrum(dimensions)
    assert len(figure.data) == 8
    unbiased = figure.data[1]
    np.testing.assert_array_equal(unbiased.x, [10, 40, 90])
    np.testing.assert_array_equal(unbiased.y, [2, 4, 6])
    np.testing.assert_allclose(unbiased.error_y.array, [0.1, 0.2, 0.3])
    assert list(unbiased.marker.symbol) == ["circle-open", "circle", "circle"]
    assert {*figure.data[3].marker.symbol} == {"circle-open"}  # not within 5% before the end
    assert figure.data[2].error_y.array is None
    np.testing.assert_array_equal(figure.data[4].y, [4, 5, 6])
    assert [figure.data[n].xaxis for n in (0, 4)] == ["x", "x2"]
    assert "made&lt;up&gt;" in figure.layout.title.text
    with pytest.raises(ValueError, match="lacks 'k90'"):
        plots.spectrum(dimensions.drop_vars("k90"))


def test_noise_is_held_against_its_square(noise):
    figure = plots.noise_tolerance(noise)
    post, cross, other, _, guide = figure.data
    np.testing.assert_allclose(post.y, [0.01, 0.04, 0.16])
    np.testing.assert_allclose(post.error_y.array, [0.002, 0.008, 0.032])
    assert (cross.x[0], cross.y[0]) == (0.15, 0.02)
    assert np.isnan(other.y[0])
    np.testing.assert_allclose(guide.y, [0.01, 0.04, 0.16])
    assert "resid_pre of layer 2" in figure.layout.annotations[-1].text
    assert figure.layout.shapes[0].y0 == 0.02
    with pytest.raises(ValueError, match="no dimension 'size'"):
        plots.noise_tolerance(noise.isel(size=0))


def test_features_of_two_dimensions_are_directions():
    found = toys(2)
    figure = plots.toy(found)
    circle, rows = figure.data[:2]
    np.testing.assert_allclose(np.hypot(circle.x, circle.y), 1)
    np.testing.assert_allclose(np.stack([rows.x, rows.y], 1)[1::3], found["W"][0])
    assert rows.x[0] == rows.y[0] == 0
    assert list(rows.marker.size[:3]) == [0, 8, 0]


def test_features_of_more_dimensions_are_products():
    found = toys(3, panels=4)
    figure = plots.toy(found)
    np.testing.assert_allclose(figure.data[3].z, found["gram"][3])
    assert figure.data[3].yaxis == "y4"
    assert figure.layout.coloraxis.cmin == -1
    with pytest.raises(ValueError, match="lacks 'gram'"):
        plots.toy(found.drop_vars("gram"))
