"""Several results side by side, against differences taken by hand."""

import numpy as np
import pytest
import xarray as xr

from mlp_interp import compare, plots, table

ATTRS = {"analysis": "some", "data": "texts", "seed": 0, "revision": "main"}
LABELS = ["0.attn", "0.mlp", "1.attn"]


def shares(values, model="a", labels=LABELS, **attrs):
    return xr.DataArray(
        np.asarray(values, dtype=float),
        dims=("prompt", "component"),
        coords={"component": labels},
        name="share",
        attrs={**ATTRS, "model": model, "unit": "logits", **attrs},
    )


FIRST = [[1.0, 2.0, 0.0], [3.0, 2.0, 0.5], [2.0, 5.0, 1.0]]
SECOND = [[1.5, 2.0, 4.0], [3.0, 1.0, 4.5], [2.0, 4.0, 3.5]]


def error(x):
    return np.std(x, axis=0, ddof=1) / len(x) ** 0.5


def test_differences_of_the_same_draws_have_the_error_of_pairs():
    found = compare([shares(FIRST), shares(SECOND, "b")])
    a, b = np.array(FIRST), np.array(SECOND)
    assert found.model.values.tolist() == ["a", "b"]
    np.testing.assert_allclose(found.share, [a.mean(0), b.mean(0)])
    np.testing.assert_allclose(found.share_se, [error(a), error(b)])
    np.testing.assert_allclose(found.difference, [np.zeros(3), (b - a).mean(0)])
    np.testing.assert_allclose(found.difference_se, [np.zeros(3), error(b - a)])
    assert found.difference.unit == "logits"
    assert "revision" not in found.attrs
    assert found.attrs["data"] == "texts"


@pytest.mark.parametrize(
    "other", [{"data": "others"}, {"seed": 1}, {"rows": 2}], ids=["data", "seed", "fewer draws"]
)
def test_differences_of_other_draws_have_both_errors(other):
    b = np.array(SECOND)[: other.pop("rows", 3)]
    found = compare({"x": shares(FIRST), "y": shares(b, **other)})
    a = np.array(FIRST)
    expected = np.hypot(error(a), error(b))
    np.testing.assert_allclose(found.difference_se.sel(model="y"), expected)
    np.testing.assert_array_equal(found.difference_se.sel(model="x"), 0)


def test_entries_are_matched_by_label():
    found = compare({"x": shares(FIRST), "y": shares(SECOND, labels=["1.attn", "0.mlp", "2.mlp"])})
    assert {*found.component.values} == {*LABELS, "2.mlp"}
    y = found.sel(model="y")
    assert float(y.share.sel(component="1.attn")) == np.mean(SECOND, 0)[0]
    paired = np.array(SECOND)[:, 0] - np.array(FIRST)[:, 2]
    np.testing.assert_allclose(y.difference.sel(component="1.attn"), paired.mean())
    np.testing.assert_allclose(y.difference_se.sel(component="1.attn"), error(paired))
    assert np.isnan(y.difference.sel(component=["0.attn", "2.mlp"])).all()


def test_results_that_are_means_already_keep_their_errors():
    attrs = {**ATTRS, "unit": "nats"}
    one, two = (
        xr.Dataset(
            {"kl_total": ("component", [x, 2 * x]), "kl_total_se": ("component", [0.3, 0.4])},
            {"component": ["0.attn", "0.mlp"]},
            attrs={**attrs, "model": str(x)},
        )
        for x in (1.0, 4.0)
    )
    found = compare([one, two])
    np.testing.assert_allclose(found.difference.sel(model="4.0"), [3, 6])
    np.testing.assert_allclose(found.difference_se.sel(model="4.0"), np.sqrt([0.18, 0.32]))
    assert table(found, 1, value="difference").frame.component.tolist() == ["0.mlp"]


def test_the_figure_has_a_mark_for_each_model_and_names_its_entries():
    found = compare({f"step {n}": shares(np.array(FIRST) * n) for n in range(1, 4)})
    figure = plots.compare(found, top=2)
    assert [marks.name for marks in figure.data] == ["step 1", "step 2", "step 3"]
    assert list(figure.data[0].y) == ["0.mlp", "0.attn"]
    np.testing.assert_allclose(figure.data[2].x, [9, 6])
    assert "the 2 largest of 3" in figure.layout.xaxis.title.text
    assert len(plots.compare(found, difference=True).data) == 2
    grid = (
        shares(FIRST).rename(component="head").expand_dims(layer=[3]).assign_coords(head=range(3))
    )
    figure = plots.compare(compare({"a": grid, "b": grid}))
    assert figure.data[0].y[0] == "L3H1"
    with pytest.raises(ValueError, match="difference"):
        plots.compare(xr.Dataset())


ALSO = {"scores": {"key": 0}, "activation_histogram": {"neuron": "L0N0"}}


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("name", [x for x in plots.__all__ if x != "compare"])
def test_other_figures_say_which_one_draws_a_comparison(name):
    found = compare({"a": shares(FIRST), "b": shares(SECOND)})
    given = [found.share, found.share] if name == "estimate" else [found]
    with pytest.raises(ValueError, match=r"compares 2 models; plots\.compare draws it"):
        getattr(plots, name)(*given, **ALSO.get(name, {}))


@pytest.mark.parametrize(
    ("results", "text"),
    [
        ([shares(FIRST)], "at least two"),
        ([shares(FIRST), shares(SECOND)], "several of 'a'"),
        ({"x": shares(FIRST), "y": shares(SECOND, unit="nats")}, "unit"),
        ({"x": shares(FIRST), "y": shares(SECOND, analysis="other")}, "analysis"),
        ({"x": shares(FIRST), "y": shares(SECOND).rename("norm")}, "variable"),
        ({"x": shares(FIRST), "y": shares(SECOND).rename(component="site")}, "dimensions"),
        ({"x": shares(FIRST)[:, 0], "y": shares(SECOND)[:, 0]}, "one number"),
    ],
)
def test_bad_input(results, text):
    with pytest.raises(ValueError, match=text):
        compare(results)
