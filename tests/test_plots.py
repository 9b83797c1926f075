"""Structure of the figures: traces, axes, hover texts and colour centres, never pixels."""

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr

from mlp_interp import plots
from mlp_interp.plots import _labels

LABELS = ["embed", "0.attn", "0.mlp", "1.attn", "1.mlp"]
KINDS = ["embed", "attn", "mlp", "attn", "mlp"]
LAYERS = [-1, 0, 0, 1, 1]
ATTRS = {"model": "made<up>", "revision": "step1", "processing": "folded", "data": "a & b"}


def components(labels=LABELS, kinds=KINDS, layers=LAYERS, **more):
    coords = {"component": labels, "kind": ("component", kinds), "layer": ("component", layers)}
    return coords | {name: ("component", value) for name, value in more.items()}


@pytest.fixture
def norms():
    values = np.outer([1.0, 0.0, 3.0, 10.0, 30.0], [0.5, 1.0, 2.0])
    stream = np.outer([1.0, 4.0, 40.0], [0.5, 1.0, 2.0])
    return xr.Dataset(
        {
            "norm": (("component", "stat"), values, {"unit": "L2 norm"}),
            "resid_norm": (("place", "stat"), stream, {"unit": "L2 norm"}),
        },
        coords=components() | {"stat": ["q25", "median", "q75"]},
        attrs=ATTRS,
    )


@pytest.fixture
def importance():
    direct = np.array([2.0, 0.1, 0.4, 0.05, 1.0])
    variables = {}
    for name, unit in (("kl", "nats"), ("delta_loss", "nats/token"), ("top1", "fraction")):
        for way, scale in (("direct", 1.0), ("total", 1.5)):
            variables[f"{name}_{way}"] = ("component", direct * scale, {"unit": unit})
            variables[f"{name}_{way}_se"] = ("component", direct * 0.01, {"unit": unit})
    return xr.Dataset(variables, coords=components(), attrs=ATTRS)


@pytest.fixture
def ranges():
    values = np.array([[20.0, 400.0, 9000.0], [np.nan, 15.0, 60.0], [np.nan, np.nan, 30.0]])
    return xr.Dataset(
        {
            "perplexity": (("start", "end"), values),
            "perplexity_se": (("start", "end"), values / 100),
            "delta_loss": (("start", "end"), np.log(values / 10), {"unit": "nats/token"}),
            "delta_loss_se": (("start", "end"), values / 1e4, {"unit": "nats/token"}),
        },
        coords={"start": range(3), "end": range(3)},
        attrs=ATTRS | {"kind": "mlp", "clean_perplexity": 10.0},
    )


def head_shares():
    labels = ["embed", "L0H0", "L0H1", "0.mlp", "L1H0", "L1H1", "1.mlp", "bias"]
    kinds = ["embed", "head", "head", "mlp", "head", "head", "mlp", "bias"]
    heads = [-1, 0, 1, -1, 0, 1, -1, -1]
    coords = components(labels, kinds, [-1, 0, 0, 0, 1, 1, 1, -1], head=heads)
    values = np.arange(8.0) - 4 + np.array([[[0.0]], [[2.0]]])
    dims = ("prompt", "pos", "component")
    return xr.DataArray(values, coords=coords, dims=dims, attrs=ATTRS | {"unit": "logits"})


def neuron_shares(count=100):
    labels = [f"L0N{n}" for n in range(count)]
    coords = components(labels, ["neuron"] * count, [0] * count, neuron=list(range(count)))
    values = np.linspace(-1, 2, count)[None]
    dims = ("prompt", "component")
    return xr.DataArray(values, coords=coords, dims=dims, attrs=ATTRS | {"unit": "logits"})


def source_shares():
    return xr.DataArray(
        np.arange(6.0).reshape(1, 2, 3) - 2,
        dims=("prompt", "component", "source"),
        coords={"component": ["L0H1", "L3H5"], "source": range(3)},
        attrs=ATTRS | {"unit": "logits"},
    )


def test_norms_is_one_line_per_kind_on_a_log_axis(norms):
    figure = plots.norms(norms)
    assert figure.layout.yaxis.type == "log"
    assert {t.name for t in figure.data} == {"residual stream", "embedding", "attention", "MLP"}
    mlp = next(t for t in figure.data if t.name == "MLP")
    assert list(mlp.x) == ["0", "1"]
    assert list(mlp.y) == [3.0, 30.0]
    assert list(mlp.error_y.array) == [3.0, 30.0]
    assert list(mlp.error_y.arrayminus) == [1.5, 15.0]
    assert "L2 norm" in mlp.hovertemplate


def test_norms_names_what_a_log_axis_cannot_show(norms):
    figure = plots.norms(norms)
    assert any("0.attn" in note.text for note in figure.layout.annotations)
    attention = next(t for t in figure.data if t.name == "attention")
    assert np.isnan(attention.y[0])


def test_stream_ends_at_the_end(norms):
    stream = next(t for t in plots.norms(norms).data if t.name == "residual stream")
    assert list(stream.x) == ["0", "1", "end"]


def test_importance_has_both_ways_with_standard_errors(importance):
    figure = plots.importance(importance)
    later, direct, total = figure.data
    assert [trace.name for trace in figure.data] == ["through later layers", "direct", "total"]
    assert list(direct.x) == LABELS
    np.testing.assert_array_equal(total.y, importance["kl_total"])
    np.testing.assert_array_equal(total.error_y.array, importance["kl_total_se"])
    np.testing.assert_array_equal(later.y[0::3], importance["kl_direct"])
    np.testing.assert_array_equal(later.y[1::3], importance["kl_total"])
    assert np.isnan(later.y[2::3]).all()
    assert "nats" in figure.layout.yaxis.title.text
    assert "standard error" in direct.hovertemplate


def test_importance_of_many_layers_is_drawn_by_layer_and_whole():
    """24 layers: a panel for attention and one for MLPs, nothing left out."""
    labels = [f"{layer}.{kind}" for layer in range(24) for kind in ("attn", "mlp")]
    layers, size = np.repeat(range(24), 2), np.geomspace(1e-4, 5, 48)
    variables = {f"kl_{way}": ("component", size * k) for way, k in (("direct", 1), ("total", 3))}
    coords = components(labels, ["attn", "mlp"] * 24, layers.tolist())
    deep = xr.Dataset(variables, coords=coords, attrs=ATTRS)
    figure = plots.importance(deep)
    direct = [trace for trace in figure.data if trace.name == "direct"]
    assert [list(trace.x) for trace in direct] == [[*range(24)]] * 2
    np.testing.assert_array_equal([trace.y for trace in direct], [size[::2], size[1::2]])
    titles = (figure.layout.yaxis.title.text, figure.layout.yaxis2.title.text)
    assert [title.split("<br>")[0] for title in titles] == ["<b>attention</b>", "<b>MLP</b>"]
    assert "of 48" not in figure.layout.title.text
    scatter = plots.direct_vs_total(deep)
    names = [name for trace in scatter.data[1:] for name in trace.text if name]
    assert "23.mlp" in names
    assert 4 <= len(names) <= 12


def test_names_beside_points_do_not_meet():
    places = np.random.default_rng(0).random((40, 2)) ** 2
    names, size = [f"{n}.attn" for n in range(40)], (300.0, 300.0)
    found = _labels.beside(places, names, range(40), size)
    boxes = [
        _labels._box(places[i] * size, _labels.LETTER * len(names[i]), *_labels._SIDES[side])
        for i, side in found.items()
    ]
    assert 5 < len(boxes) < 40
    for n, box in enumerate(boxes):
        assert not any(_labels._meet(box, other) for other in boxes[:n])
        inside = [(p[0] * 300 > box[0]) & (p[0] * 300 < box[2]) & (p[1] * 300 > box[1])
                  & (p[1] * 300 < box[3]) for p in places]  # fmt: skip
        assert not any(inside)


def test_importance_keeps_the_largest_in_the_models_order(importance):
    figure = plots.importance(importance, top=2)
    assert list(figure.data[1].x) == ["embed", "1.mlp"]
    assert "2 largest of 5" in figure.layout.title.text


def test_importance_on_a_log_axis_names_what_it_hides(importance):
    importance["delta_loss_direct"][1] = -0.2
    figure = plots.importance(importance, quantity="delta_loss", log=True)
    assert figure.layout.yaxis.type == "log"
    assert "0.attn" in figure.layout.annotations[0].text
    linear = plots.importance(importance, quantity="delta_loss", log=False)
    assert not linear.layout.annotations
    assert plots.importance(importance, quantity="delta_loss").layout.yaxis.type == "log"
    importance["delta_loss_direct"][:] = -0.2
    assert plots.importance(importance, quantity="delta_loss").layout.yaxis.type == "linear"


def test_scatter_has_log_axes_and_the_diagonal(importance):
    figure = plots.direct_vs_total(importance)
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("log", "log")
    assert figure.data[0].name == "direct = total"
    assert list(figure.data[0].x) == list(figure.data[0].y)
    mlp = next(t for t in figure.data if t.name == "MLP")
    np.testing.assert_allclose(mlp.customdata[:, 1].astype(float), [0.2, 0.5])


def test_scatter_names_components_without_effect(importance):
    importance["kl_direct"][1] = 0.0
    figure = plots.direct_vs_total(importance)
    assert "0.attn" in figure.layout.annotations[0].text
    assert all("0.attn" not in (t.text if t.text is not None else ()) for t in figure.data)


def test_ranges_colours_perplexity_by_its_logarithm_but_tells_the_value(ranges):
    heat = plots.ranges(ranges).data[0]
    np.testing.assert_allclose(heat.z[0], np.log10([20, 400, 9000]))
    assert np.isnan(heat.z[1][0])
    assert heat.customdata[0][2][0] == 9000.0
    assert list(heat.text[0]) == ["20", "400", "9000"]
    assert heat.text[1][0] == ""
    ticks = {float(text.replace(",", "")): at for text, at in zip(
        heat.colorbar.ticktext, heat.colorbar.tickvals, strict=True)}  # fmt: skip
    assert all(np.isclose(np.log10(value), at) for value, at in ticks.items())
    assert "clean: 10" in plots.ranges(ranges).layout.title.text


def test_a_narrow_range_has_ticks_too(ranges):
    ranges["perplexity"] = ranges["perplexity"] * 0 + 53_200.0
    ranges["perplexity"][0, 2] = 66_100.0
    assert list(plots.ranges(ranges).data[0].colorbar.ticktext)[::2] == ["53,200", "66,100"]


def test_ranges_centres_losses_that_also_fall(ranges):
    assert plots.ranges(ranges, quantity="delta_loss").data[0].zmid is None
    ranges["delta_loss"][0, 0] = -5.0
    heat = plots.ranges(ranges, quantity="delta_loss").data[0]
    assert heat.zmid == 0


def test_attribution_chooses_the_figure_by_level():
    shares = head_shares()
    assert isinstance(plots.attribution(shares).data[0], go.Heatmap)
    assert plots.attribution(neuron_shares(), top=5).data[0].y[0] == "L0N99"
    only = shares.isel(component=[0, 3, 6, 7])
    bars = plots.attribution(only).data[0]
    assert list(bars.y) == ["embed", "0.mlp", "1.mlp", "bias"]
    np.testing.assert_allclose(bars.x, [-3.0, 0.0, 3.0, 4.0])
    np.testing.assert_allclose(bars.error_x.array, 1.0)  # two prompts that differ by 2


def test_heads_are_a_grid_centred_at_zero():
    figure = plots.heads(head_shares())
    heat = figure.data[0]
    assert heat.zmid == 0
    assert list(heat.x) == ["0", "1", "MLP"]
    np.testing.assert_allclose(heat.z, [[-2, -1, 0], [1, 2, 3]])
    assert "logits" in heat.hovertemplate


def test_neurons_are_the_strongest_and_the_axis_tells_the_rest():
    shares = neuron_shares()
    figure = plots.neurons(shares, top=10)
    rest = float(shares.sum()) - sum(figure.data[0].x)
    assert len(figure.data[0].y) == 10
    assert f"the other 90 sum to {rest:+.3g}" in figure.layout.xaxis.title.text


def test_sources_writes_tokens_on_the_axis_as_text():
    figure = plots.sources(source_shares(), tokens=["<|endoftext|>", " Mary", "<b>"])
    assert list(figure.layout.xaxis.ticktext) == ["&lt;|endoftext|&gt;", "·Mary", "&lt;b&gt;"]
    assert list(figure.data[0].y) == ["L0H1", "L3H5"]
    assert figure.data[0].zmid == 0
    known = source_shares().assign_coords(source_token=(("prompt", "source"), [["a", " b", "c"]]))
    assert list(plots.sources(known).layout.xaxis.ticktext) == ["a", "·b", "c"]


def test_provenance_stands_in_the_title_as_text(importance):
    title = plots.importance(importance).layout.title.text
    assert "made&lt;up&gt;@step1, folded, a &amp; b" in title


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: plots.norms(d), "lacks 'norm'"),
        (lambda d: plots.importance(d, quantity="bits"), "quantity must be one of"),
        (lambda d: plots.importance(d, quantity="perplexity_ratio"), "lacks 'perplexity_ratio"),
        (lambda d: plots.importance(d, top=0), "top=0; wanted at least 1"),
        (lambda d: plots.direct_vs_total(d.drop_vars("kl_direct")), "lacks 'kl_direct'"),
        (lambda d: plots.ranges(d), "lacks 'perplexity'"),
        (lambda d: plots.ranges(d, quantity="bits"), "quantity must be one of"),
        (lambda d: plots.attribution(d["kl_total"].isel(component=0)), "no dimension 'component'"),
        (lambda d: plots.heads(d["kl_total"]), "holds no heads"),
        (lambda d: plots.neurons(d["kl_total"]), "holds no neurons"),
        (lambda d: plots.sources(d["kl_total"]), "no dimension 'source'"),
        (lambda d: plots.sources(source_shares(), prompt=3), "prompt must be 0 to 0, got 3"),
        (lambda d: plots.sources(source_shares(), tokens=["a"]), "1 tokens, 3 sources"),
    ],
)
def test_a_wrong_result_is_one_clear_error(importance, call, message):
    with pytest.raises(ValueError, match=message):
        call(importance)


@pytest.mark.usefixtures("without_type_checks")
def test_a_result_of_the_wrong_type_is_an_error(importance):
    for plot, result in ((plots.norms, importance["kl_total"]), (plots.heads, importance)):
        with pytest.raises(ValueError, match=r"Dataset|DataArray"):
            plot(result)
