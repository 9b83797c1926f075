"""Figures of activity and update shares: traces, axes, names and what is left out."""

import numpy as np
import pytest
import xarray as xr

from mlp_interp import plots
from mlp_interp.corpus import sweep
from mlp_interp.corpus.reducers import Histogram
from mlp_interp.neurons import activity, neuron_weights, update_shares

ATTRS = {"model": "made<up>", "data": "a & b", "above": 0.0}


@pytest.fixture
def made_up():
    """Two layers of five neurons: in the first one never fires and one nearly always."""
    fraction = np.array([[0.0, 0.1, 0.12, 0.15, 0.97], [0.2, 0.21, 0.22, 0.23, 0.24]])
    z = np.array([[-9.0, -0.5, 0.0, 0.5, 7.0], [-1.0, -0.5, 0.0, 0.5, 1.0]])
    both = ("layer", "neuron")
    by_position = np.array([[0.2, 0.3, 0.25], [0.1, 0.2, 0.3]])
    return xr.Dataset(
        {
            "fraction": (both, fraction, {"unit": "fraction of positions"}),
            "z": (both, z),
            "outlier": (both, np.abs(z) > 3.5),
            "activation_volume": (both, fraction[:, ::-1], {"unit": "fraction"}),
            "receptor_norm_folded": (both, fraction + 1, {"unit": "L2 norm"}),
            "value_norm": (both, fraction + 2, {"unit": "L2 norm"}),
            "by_position": (("layer", "pos"), by_position),
            "by_position_se": (("layer", "pos"), by_position / 10),
        },
        coords={"layer": [0, 3], "neuron": range(5), "pos": [1, 2, 3]},
        attrs=ATTRS,
    )


@pytest.fixture
def shares():
    cosine = np.array([[0.4, 0.6, 0.9, 1.0], [0.5, 0.8, 0.95, 1.0]])
    by_layer = {
        name: ("layer", np.array([0.1, 0.2]))
        for name in ("explained", "negative_share", "negative_share_se", "negative_norm_share")
    }
    return xr.Dataset(
        {
            "cosine": (("layer", "k"), cosine),
            "cosine_se": (("layer", "k"), cosine / 100),
            "needed_median": ("layer", [3, 4]),
            **by_layer,
        },
        coords={"layer": [1, 2], "k": [1, 8, 64, 80]},
        attrs=ATTRS | {"level": 0.9, "order": "norm"},
    )


@pytest.fixture
def histogram():
    """Edges as `Histogram` makes them, small ones between large ones."""
    edges = Histogram(octaves=(-2, 3), per_octave=4).edges
    count = np.zeros((2, 3, len(edges) - 1), dtype=int)
    count[1, 2] = np.arange(len(edges) - 1)
    count[0, 0, [0, -1]] = 5
    return xr.Dataset(
        {"count": (("layer", "neuron", "bin"), count)},
        coords={"layer": [0, 3], "low": ("bin", edges[:-1]), "high": ("bin", edges[1:])},
        attrs=ATTRS,
    )


def named(figure, name):
    return [trace for trace in figure.data if trace.name == name]


def test_fractions_are_rows_of_bars_with_all_neurons(made_up):
    figure = plots.activation_fractions(made_up)
    bars = named(figure, "neurons")
    assert [sum(trace.y) for trace in bars] == [5, 5]
    assert [trace.yaxis for trace in bars] == ["y", "y2"]
    assert [sum(trace.y) for trace in named(figure, "predicted by the weights")] == [5, 5]
    assert [trace.x[0] for trace in named(figure, "median")] == [0.12, 0.22]
    assert figure.layout.yaxis2.title.text == "layer 3"
    assert "made&lt;up&gt;" in figure.layout.title.text
    without = plots.activation_fractions(made_up.drop_vars("activation_volume"))
    assert not named(without, "predicted by the weights")


def test_outliers_are_marked_and_the_most_extreme_named(made_up):
    figure = plots.activation_fractions(made_up)
    (marks,) = named(figure, "outlier")
    assert marks.x.tolist() == [0.0, 0.97]
    assert marks.customdata.tolist() == ["L0N0", "L0N4"]
    assert marks.showlegend
    assert [note.text for note in figure.layout.annotations] == ["L0N0 (0.000)", "L0N4 (0.970)"]
    made_up["outlier"][0, 1] = True
    notes = plots.activation_fractions(made_up).layout.annotations
    assert notes[0].text == "L0N0 (0.000) and 1 more"


def test_positions_have_a_line_and_a_band_for_each_layer(made_up):
    figure = plots.activity_by_position(made_up)
    line, band = named(figure, "layer 3")[0], figure.data[2]
    np.testing.assert_array_equal(line.y, [0.1, 0.2, 0.3])
    np.testing.assert_allclose(band.y, [0.11, 0.22, 0.33, 0.27, 0.18, 0.09])
    assert line.x.tolist() == [1, 2, 3]
    assert line.line.color == band.fillcolor
    made_up["by_position_se"][:] = np.nan  # one sequence has no error
    assert len(plots.activity_by_position(made_up).data) == 2


def test_receptor_and_value_have_a_panel_for_each_layer(made_up):
    figure = plots.receptor_value(made_up)
    assert [note.text for note in figure.layout.annotations] == ["layer 0", "layer 3"]
    for trace, layer in zip(figure.data, (0, 3), strict=True):
        here = made_up.sel(layer=layer)
        np.testing.assert_array_equal(trace.x, here.receptor_norm_folded)
        np.testing.assert_array_equal(trace.y, here.value_norm)
        np.testing.assert_array_equal(trace.marker.color, here.fraction)
        assert list(trace.text) == [f"L{layer}N{n}" for n in range(5)]
    assert figure.layout.xaxis.title.text == "receptor norm folded [L2 norm]"
    assert figure.layout.xaxis2.matches == "x"
    plain = plots.receptor_value(made_up.drop_vars("fraction"), y="activation_volume")
    assert isinstance(plain.data[0].marker.color, str)  # one colour for all
    assert plain.layout.yaxis.title.text == "activation volume [fraction]"
    assert "fires" not in plain.data[0].hovertemplate


def test_many_points_are_left_to_the_graphics_card(made_up, monkeypatch):
    assert {trace.type for trace in plots.receptor_value(made_up).data} == {"scatter"}
    monkeypatch.setattr("mlp_interp.plots._neurons.MANY", 9)
    assert {trace.type for trace in plots.receptor_value(made_up).data} == {"scattergl"}


def test_shares_have_a_line_for_each_layer_and_bars(shares):
    figure = plots.update_shares(shares)
    line, median = named(figure, "layer 2")
    np.testing.assert_array_equal(line.y, shares.cosine[1])
    np.testing.assert_array_equal(line.error_y.array, shares.cosine_se[1])
    assert (median.x[0], median.y[0]) == (4, 0.9)
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.xaxis.title.text == "neurons, by falling norm"
    assert list(figure.layout.xaxis.tickvals) == [1, 8, 80]  # 64 would touch 80
    (negative,) = named(figure, "negative activations (direction)")
    assert list(negative.x) == ["1", "2"]
    np.testing.assert_array_equal(negative.error_y.array, [0.1, 0.2])
    (constant,) = named(figure, "constant (mean square)")
    assert constant.error_y.array is None


def test_a_histogram_shows_densities(histogram):
    figure = plots.activation_histogram(histogram, "L3N2")
    fires, split, below = figure.data
    assert [trace.name for trace in figure.data] == ["above 0: fires", "partly above 0", "below"]
    counts = np.concatenate([trace.customdata[:, 2] for trace in figure.data])
    inner = histogram["count"].sel(layer=3)[2, 1:-1]
    assert counts.sum() == inner.sum()
    for trace in figure.data:
        low, high, count = trace.customdata.T
        np.testing.assert_allclose(trace.width, high - low)
        np.testing.assert_allclose(trace.y, count / (high - low))
        np.testing.assert_allclose(trace.x, (low + high) / 2)
    assert (fires.x > 0).all()
    assert (below.x < 0).all()
    assert list(split.x) == [0]
    # Side by side, without a gap.
    low, high = np.sort(np.concatenate([t.customdata[:, :2] for t in figure.data]), axis=0).T
    np.testing.assert_array_equal(low[1:], high[:-1])
    beyond = int(histogram["count"].sel(layer=3)[2, [0, -1]].sum())
    assert f"{beyond} positions beyond" in figure.layout.title.text
    assert figure.layout.yaxis.type == "log"


def test_the_bin_that_holds_the_threshold_is_neither(histogram):
    figure = plots.activation_histogram(histogram.assign_attrs(above=1.01), "L3N2")
    (split,) = named(figure, "partly above 1.01")
    ((low, high, _),) = split.customdata
    assert low < 1.01 < high
    assert (named(figure, "above 1.01: fires")[0].customdata[:, 0] >= high).all()
    assert (named(figure, "below")[0].customdata[:, 1] <= low).all()
    edge = plots.activation_histogram(histogram.assign_attrs(above=1.0), "L3N2")
    assert [trace.name for trace in edge.data] == ["above 1: fires", "below"]


def test_narrow_bins_are_joined(histogram, monkeypatch):
    all_of_them = len(
        np.concatenate([t.x for t in plots.activation_histogram(histogram, "L3N2").data])
    )
    monkeypatch.setattr("mlp_interp.plots._one_neuron.BARS", 8)
    figure = plots.activation_histogram(histogram, "L3N2")
    joined = np.concatenate([trace.customdata for trace in figure.data])
    assert len(joined) < all_of_them
    assert joined[:, 2].sum() == histogram["count"].sel(layer=3)[2, 1:-1].sum()


def test_figures_of_real_results(kind, tokens):
    model = kind()
    found = activity(model, tokens)
    assert len(named(plots.activation_fractions(found), "neurons")) == 3
    assert len(plots.activity_by_position(found).data) == 6
    assert len(plots.receptor_value(found).data) == 3
    assert len(plots.receptor_value(neuron_weights(model, tokens=False)).data) == 3
    figure = plots.activation_histogram(found, "L2N5")
    share = float(found.fraction.sel(layer=2, neuron=5))
    assert f"fires at {share:.2%}" in figure.layout.title.text
    plain = sweep(model, tokens, Histogram(layers=(2,), units=(5,)))["histogram.pre"]
    plain = plots.activation_histogram(plain, "L2N5")
    assert sum(t.customdata[:, 2].sum() for t in plain.data) == tokens.numel()
    assert len(named(plots.update_shares(update_shares(model, tokens)), "layer 1")) == 2


def test_errors(made_up, shares, histogram):
    with pytest.raises(ValueError, match="lacks 'fraction'"):
        plots.activation_fractions(shares)
    with pytest.raises(ValueError, match="lacks 'by_position'"):
        plots.activity_by_position(shares)
    with pytest.raises(ValueError, match="lacks 'size'"):
        plots.receptor_value(made_up, y="size")
    with pytest.raises(ValueError, match="no dimension 'neuron'"):
        plots.receptor_value(made_up, y="by_position")
    with pytest.raises(ValueError, match="lacks 'cosine'"):
        plots.update_shares(made_up)
    with pytest.raises(ValueError, match="lacks 'count'"):
        plots.activation_histogram(made_up, "L0N0")
    for label in ("L1N0", "L0N3", "L0H0"):
        with pytest.raises(ValueError, match=f"neuron='{label}' is not in the histogram"):
            plots.activation_histogram(histogram, label)
    with pytest.raises(ValueError, match="no activation of neuron='L0N1'"):
        plots.activation_histogram(histogram, "L0N1")
    with pytest.raises(ValueError, match="nothing but activations beyond its bins"):
        plots.activation_histogram(histogram, "L0N0")
