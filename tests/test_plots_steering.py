"""The figure of dose and response: curves, bands, shading, panels, axes."""

import numpy as np
import pytest
import xarray as xr

from mlp_interp import plots

LAYERS, COEFS = [1, 3, 4], [-2.0, 0.0, 1.0, 4.0]
by = ("layer", "coef")


def result(*, cost=True, metrics=("ld",), layers=LAYERS):
    shape = (len(layers), len(COEFS))
    values = np.arange(np.prod(shape), dtype=float).reshape(shape)
    found = {}
    for n, name in enumerate(metrics):
        found |= {
            name: (by, values + n, {"unit": "logits"}),
            f"{name}_se": (by, 0 * values + 0.5),
            f"{name}_effect": (by, values - values[:, [1]], {"unit": "logits"}),
            f"{name}_effect_se": (by, 0 * values + 0.25),
            f"{name}_by_prompt": ((*by, "prompt"), values[..., None]),
        }
    useful = np.zeros((len(metrics), *shape), dtype=bool)
    useful[:, 0, [0, 3]], useful[:, 1, 2:] = True, True
    if cost:
        units = {"kl": "nats per token", "perplexity_ratio": "ratio", "delta_loss": "nats"}
        for name, unit in units.items():
            found[f"cost_{name}"] = (by, 1 + values / 10, {"unit": unit})
            found[f"cost_{name}_se"] = (by, 0 * values + 0.1)
        found["useful"] = (("metric", *by), useful)
    return xr.Dataset(
        found,
        coords={
            "layer": layers,
            "coef": COEFS,
            "direction_norm": ("layer", np.ones(len(layers))),
            **({"metric": list(metrics)} if cost else {}),
        },
        attrs={
            "model": "made<up>",
            "direction": "<b>up</b>",
            "limit_perplexity": 1.5,
        },
    )


def curves(figure, axis="y"):
    return [t for t in figure.data if t.mode == "lines+markers" and (t.yaxis or "y") == axis]


def test_a_curve_and_a_band_for_each_layer():
    figure = plots.dose_response(result())
    for curve, layer in zip(curves(figure), LAYERS, strict=True):
        one = result().sel(layer=layer)
        assert (curve.name, curve.legendgroup, curve.showlegend) == (
            str(layer), f"layer {layer}", True,
        )  # fmt: skip
        np.testing.assert_array_equal(curve.x, COEFS)
        np.testing.assert_array_equal(curve.y, one.ld)
        np.testing.assert_array_equal(curve.customdata, one.ld_se)
        (band,) = (
            t for t in figure.data if t.name == f"layer {layer} band" and (t.yaxis or "y") == "y"
        )
        np.testing.assert_array_equal(band.x, [*COEFS, *COEFS[::-1]])
        np.testing.assert_array_equal(
            band.y, [*(one.ld + 0.5).values, *(one.ld - 0.5).values[::-1]]
        )
        assert (band.legendgroup, band.showlegend) == (f"layer {layer}", False)
    assert len({curve.line.color for curve in curves(figure)}) == 3


def test_the_cost_is_below_and_shares_the_coefficients():
    figure = plots.dose_response(result())
    below = curves(figure, "y2")
    assert [curve.name for curve in below] == ["1", "3", "4"]
    assert not any(curve.showlegend for curve in below)
    np.testing.assert_array_equal(below[0].y, result().cost_perplexity_ratio.sel(layer=1))
    assert figure.layout.xaxis.matches == "x2"
    assert figure.layout.xaxis2.title.text == "coefficient of the direction"
    assert figure.layout.yaxis2.title.text == "perplexity, steered / clean"
    assert figure.layout.yaxis2.type == "log"
    (limit,) = (t for t in figure.data if t.name == "limit of cost")
    assert (list(limit.x), list(limit.y), limit.yaxis) == ([-2, 4], [1.5, 1.5], "y2")
    other = plots.dose_response(result(), cost="kl")
    assert other.layout.yaxis2.title.text == "KL(clean‖steered) [nats per token]"
    assert other.layout.yaxis2.type == "linear"
    assert not any(t.name == "limit of cost" for t in other.data)


def test_the_useful_range_is_shaded_half_way_to_the_next():
    shades = {t.name: t for t in plots.dose_response(result()).data if t.name.endswith("useful")}
    assert set(shades) == {"layer 1 useful", "layer 3 useful"}
    one, two = shades["layer 1 useful"], shades["layer 3 useful"]
    assert list(one.x) == [-2, -2, -1, -1, -2, None, 2.5, 2.5, 4, 4, 2.5]
    assert list(one.y) == [0, 3, 3, 0, 0, None, 0, 3, 3, 0, 0]
    assert list(two.x) == [0.5, 0.5, 2.5, 2.5, 0.5, None, 2.5, 2.5, 4, 4, 2.5]
    assert one.legendgroup == "layer 1"


def test_bands_that_a_log_axis_cannot_show_are_left_out():
    made = result()
    made["cost_perplexity_ratio_se"][0, 1] = 5.0
    figure = plots.dose_response(made)
    (band,) = (t for t in figure.data if t.name == "layer 1 band" and t.yaxis == "y2")
    np.testing.assert_array_equal(band.x, [-2, -2, np.nan, 1, 4, 4, 1])
    assert np.nanmin(band.y) > 0
    np.testing.assert_array_equal(curves(figure, "y2")[0].y, made.cost_perplexity_ratio[0])


def test_long_notes_are_broken_into_lines():
    made = result().assign_attrs(data="words & more " * 20)
    title = plots.dose_response(made).layout.title.text
    lines = title.split("<br>")
    assert len(lines) > 2
    assert max(len(line) for line in lines[1:]) <= 120 + len("<sup></sup>")
    assert all(line.startswith("<sup>") and line.endswith("</sup>") for line in lines[1:])
    assert "shaded where useful" in title
    short = plots.dose_response(result())
    assert len(short.layout.title.text.split("<br>")) == 2
    assert plots.dose_response(made).layout.margin.t > short.layout.margin.t


def test_without_a_corpus_there_is_one_panel():
    figure = plots.dose_response(result(cost=False))
    assert "yaxis2" not in figure.layout
    assert figure.layout.xaxis.title.text == "coefficient of the direction"
    assert len(curves(figure)) == 3
    assert "useful" not in figure.layout.title.text


def test_effects_and_metrics_are_chosen():
    figure = plots.dose_response(result(metrics=("ld", "rate<1>")), metric="rate<1>", change=True)
    np.testing.assert_array_equal(curves(figure)[1].y, result().ld_effect.sel(layer=3))
    assert figure.layout.yaxis.title.text == "change of rate&lt;1&gt; [logits]"


def test_many_layers_stay_apart_and_text_is_text():
    figure = plots.dose_response(result(layers=list(range(14))))
    looks = {(curve.line.color, curve.line.dash) for curve in curves(figure)}
    assert len(looks) == 14
    assert "&lt;b&gt;up&lt;/b&gt;" in figure.layout.title.text
    assert "made&lt;up&gt;" in figure.layout.title.text
    assert "one standard error" in figure.layout.title.text


@pytest.mark.parametrize(
    ("run", "text"),
    [
        (lambda: plots.dose_response(result().drop_vars("direction_norm")), "lacks 'direction_n"),
        (lambda: plots.dose_response(result().isel(layer=0)), "no dimension 'layer'"),
        (lambda: plots.dose_response(result(metrics=("a", "b"))), "one of a, b, got None"),
        (lambda: plots.dose_response(result(), metric="x"), "one of ld, got 'x'"),
        (lambda: plots.dose_response(result(), cost="time"), "cost must be one of perplexity_rat"),
    ],
)
def test_other_results_are_refused(run, text):
    with pytest.raises(ValueError, match=text):
        run()
