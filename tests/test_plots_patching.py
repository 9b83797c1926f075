"""Figures of patching, tracing, edges and estimates: panels, axes, hover data, colour ranges."""

import numpy as np
import pytest
import xarray as xr

from mlp_interp import causal_trace, patch, plots, prompts

ATTRS = {
    "model": "made<up>",
    "data": "a & b",
    "metric": "logit_difference",
    "unit": "logits",
    "direction": "denoising",
}
CLEAN = [["<s>", "The", " king", " is"], ["<s>", "The", " duke", " is"]]
CORRUPTED = [["<s>", "The", " queen", " is"], ["<s>", "The", " duchess", " is"]]


def result(direction="denoising", **sizes):
    """A made-up grid: 0 (denoising) or 1 (noising) but for one cell that does everything."""
    sizes = {"site": ["attn_out", "mlp_out"], "layer": range(3), **sizes, "prompt": range(2)}
    sizes = {name: list(values) for name, values in sizes.items()}
    dims, shape = tuple(sizes), tuple(map(len, sizes.values()))
    unpatched, other = (0.0, 1.0) if direction == "denoising" else (1.0, 0.0)
    share = np.full(shape, unpatched)
    share[(0, 1, *[2] * (len(shape) - 3))] = other
    clean, corrupted = np.array([4.0, 2.0]), np.array([-4.0, -2.0])
    coords = dict(sizes)
    if "pos" in sizes:
        for name, tokens in (("clean", CLEAN), ("corrupted", CORRUPTED)):
            coords[f"{name}_token"] = (("prompt", "pos"), tokens)
    return xr.Dataset(
        {
            "normalized": (dims, share, {"unit": "0 corrupted, 1 clean"}),
            "raw": (dims, corrupted + share * (clean - corrupted), {"unit": "logits"}),
            "changed": (dims, share != unpatched),
            "clean": ("prompt", clean, {"unit": "logits"}),
            "corrupted": ("prompt", corrupted, {"unit": "logits"}),
        },
        coords=coords,
        attrs=ATTRS | {"direction": direction},
    )


def share(data, where, value):
    """Let a cell of every prompt be this far from corrupted to clean."""
    data["normalized"][where] = value
    data["raw"][where] = data.corrupted + value * (data.clean - data.corrupted)


def streams(direction="denoising"):
    return result(direction, pos=range(4))


def ends(figure):
    return figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax


def test_streams_are_panels_of_layer_by_position():
    figure = plots.patching(streams())
    assert [note.text for note in figure.layout.annotations] == ["attn_out", "mlp_out"]
    first, second = figure.data
    np.testing.assert_array_equal(first.z, streams().normalized.isel(site=0).mean("prompt"))
    assert not np.any(second.z)
    assert (first.coloraxis, second.coloraxis) == ("coloraxis", "coloraxis")
    assert figure.layout.yaxis.autorange == "reversed"
    assert list(figure.layout.xaxis.tickvals) == [0, 1, 2, 3]


def test_tokens_show_both_runs_where_they_differ_and_say_where_prompts_do():
    ticks = plots.patching(streams(), prompt=1).layout.xaxis.ticktext
    assert list(ticks) == ["&lt;s&gt;", "The", "·duke → ·duchess", "·is"]
    figure = plots.patching(streams())
    assert figure.layout.xaxis.ticktext[2] == "·king → ·queen…"
    assert figure.data[0].customdata[1][2][0] == (
        "1.attn at 2: ·king → ·queen, ·duke → ·duchess"
    )  # fmt: skip


def test_hover_has_unit_error_and_what_was_the_same():
    data = streams()
    data["raw"][0, 1, 2] = [5.0, 3.0]
    heat = plots.patching(data, variable="raw").data[0]
    assert "logits" in heat.hovertemplate
    assert "standard error" in heat.hovertemplate
    label, error, note = heat.customdata[1][2]
    assert (label.split(" at")[0], error, note) == ("1.attn", pytest.approx(1.0), "")
    assert heat.customdata[0][0][2] == "<br>the same in both runs"
    alone = plots.patching(data, variable="raw", prompt=0).data[0]
    assert "standard error" not in alone.hovertemplate
    assert alone.z[1][2] == 5.0


@pytest.mark.parametrize(
    ("direction", "variable", "prompt", "centre", "size"),
    [
        ("denoising", "normalized", None, 0, 1),
        ("noising", "normalized", None, 1, 1),
        ("denoising", "raw", 0, -4, 8),
        ("noising", "raw", 0, 4, 8),
        ("denoising", "raw", None, -3, 6),
    ],
)
def test_white_is_where_a_patch_changes_nothing(direction, variable, prompt, centre, size):
    figure = plots.patching(streams(direction), variable=variable, prompt=prompt)
    assert ends(figure) == (centre - size, centre + size)


def test_other_variables_are_centred_at_zero_and_limits_are_kept():
    data = streams().assign(estimate=streams().raw)
    assert ends(plots.patching(data, variable="estimate")) == (-3, 3)
    assert ends(plots.patching(data, limit=0.5)) == (-0.5, 0.5)


def test_heads_are_a_grid_by_site():
    figure = plots.patching(result(site=["z", "q"], head=range(4)))
    assert list(figure.data[0].x) == ["0", "1", "2", "3"]
    assert figure.data[0].customdata[1][2][0] == "L1H2"
    assert figure.data[1].customdata[1][2][0] == "L1H2.q"
    assert figure.layout.xaxis.title.text == "head"


def test_heads_by_position_are_the_strongest_in_the_models_order():
    data = result(site=["z"], head=range(4), pos=range(4))
    share(data, (0, 2, 1, 3), -0.5)
    figure = plots.patching(data, top=2)
    assert list(figure.data[0].y) == ["L1H2", "L2H1"]
    np.testing.assert_array_equal(figure.data[0].z, [[0, 0, 1, 0], [0, 0, 0, -0.5]])
    assert "2 strongest heads" in figure.layout.title.text


def test_all_positions_at_once_is_one_panel_of_sites():
    figure = plots.patching(result())
    assert list(figure.data[0].x) == ["attn_out", "mlp_out"]
    assert np.shape(figure.data[0].z) == (3, 2)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_neurons_are_bars_from_the_unpatched_run(direction):
    data = result(direction, site=["post"], neuron=range(5))
    share(data, (0, 2, 4), 1.25 if direction == "noising" else 0.25)
    bars = plots.patching(data, top=2).data[0]
    assert list(bars.y) == ["L1N2", "L2N4"]
    centre = 1.0 if direction == "noising" else 0.0
    assert bars.base == centre
    assert [value for value, _ in bars.customdata] == [1 - centre, centre + 0.25]
    assert list(bars.x) == [1 - 2 * centre, 0.25]


def test_prompts_without_a_gap_are_left_out_of_means_of_ratios_and_counted():
    data = streams().drop_vars("raw")
    data["normalized"][..., 1] = np.nan
    figure = plots.patching(data)
    assert figure.data[0].z[1][2] == 1.0
    assert "1 of 2 prompts left out" in figure.layout.title.text
    assert "mean of 2 prompts" in figure.layout.title.text
    with pytest.raises(ValueError, match="variable='raw'"):
        plots.patching(data, prompt=1)


def test_a_prompt_with_hardly_any_gap_does_not_carry_the_figure():
    data = streams()
    data["corrupted"][1] = data["clean"][1] - 0.006
    data["raw"][..., 1] = data["corrupted"][1] + 0.3
    gaps = (data.clean - data.corrupted).values
    data["normalized"][..., 1] = 0.3 / gaps[1]
    figure = plots.patching(data)
    changes = np.array([8.0, 0.3])
    assert figure.data[0].z[1][2] == pytest.approx(changes.sum() / gaps.sum())
    assert figure.data[0].z[0][0] == pytest.approx(0.3 / gaps.sum())
    assert "mean change over mean gap of 2 prompts" in figure.layout.title.text
    error = figure.data[0].customdata[0][0][1]
    off = np.array([0.0, 0.3]) - 0.3 / gaps.sum() * gaps
    assert error == pytest.approx(off.std(ddof=1) / 2**0.5 / gaps.mean())
    alone = plots.patching(data, prompt=1)
    assert alone.data[0].z[0][0] == pytest.approx(50.0)


def test_no_gap_on_average_is_refused_and_raw_is_drawn():
    data = streams()
    data["clean"][:] = data["corrupted"]
    with pytest.raises(ValueError, match="wanted 'raw'"):
        plots.patching(data)
    assert plots.patching(data, prompt=1, variable="raw").data


def test_a_cell_that_was_not_measured_stays_empty():
    data = streams()
    data["raw"][0, 0, 0] = np.nan
    heat = plots.patching(data).data[0]
    assert np.isnan(heat.z[0][0])
    assert heat.hoverongaps is False


def test_a_selected_site_and_no_effect_at_all_can_be_drawn():
    data = streams().sel(site="mlp_out")
    figure = plots.patching(data)
    assert [note.text for note in figure.layout.annotations] == ["mlp_out"]
    assert ends(figure) == (-1, 1)


def test_long_prompts_stack_their_panels():
    data = streams().isel(pos=np.arange(48) % 4).assign_coords(pos=range(48))
    figure = plots.patching(data)
    assert figure.data[0].xaxis != figure.data[1].xaxis
    assert figure.layout.yaxis.domain[0] > figure.layout.yaxis2.domain[1]
    assert plots.patching(streams()).layout.yaxis.domain == (0.0, 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: plots.patching(d, variable="bits"), "lacks 'bits'"),
        (lambda d: plots.patching(d, variable="clean"), "no dimension 'layer'"),
        (lambda d: plots.patching(d, prompt=2), "prompt must be 0 to 1, got 2"),
        (lambda d: plots.patching(d, top=0), "top=0; wanted at least 1"),
        (lambda d: plots.patching(d, limit=0.0), "limit must be above 0"),
        (lambda d: plots.causal_trace(d), "lacks 'average_indirect'"),
    ],
)
def test_wrong_input_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call(streams())


def test_every_kind_of_patch_can_be_drawn(nano):
    contrast = prompts.facts(nano, n=2, seed=0)
    for options in (
        {"sites": ["resid_pre", "attn_out"]},
        {"sites": ["z", "pattern"]},
        {"sites": ["z"], "positions": "each", "layers": [1]},
        {"sites": ["post"], "layers": [1], "neurons": [0, 1, 2]},
        {"sites": ["post"], "layers": [1], "neurons": [0, 1], "positions": [2, 3]},
    ):
        assert plots.patching(patch(nano, contrast, **options)).data


@pytest.fixture(scope="module")
def traced(nano):
    return causal_trace(nano, "The capital of France is", "France", samples=3)


def test_a_trace_is_three_panels_with_the_subject_marked(traced):
    figure = plots.causal_trace(traced)
    assert [note.text for note in figure.layout.annotations] == ["state", "MLP", "attention"]
    assert list(figure.layout.yaxis.ticktext) == [
        "&lt;|endoftext|&gt;", "The", "·capital", "·of", "·France*", "·is",
    ]  # fmt: skip
    for site, heat in zip(traced.site.values, figure.data, strict=True):
        np.testing.assert_allclose(heat.z, traced.average_indirect.sel(site=site).T)
        np.testing.assert_allclose(
            heat.customdata[..., 1].astype(float), traced.average_indirect_se.sel(site=site).T
        )
        assert "standard error" in heat.hovertemplate
    low, high = ends(figure)
    assert low == -high
    assert high == pytest.approx(float(abs(traced.average_indirect).max()))
    assert f"{float(traced.clean):.2f} clean" in figure.layout.title.text


def test_a_trace_of_one_site_and_one_sample_has_no_errors(nano):
    one = causal_trace(nano, "The capital of France is", "France", samples=1, window=2)
    figure = plots.causal_trace(one.sel(site="mlp_out"))
    assert figure.layout.annotations[0].text == "MLP, 2 at a time"
    assert "standard error" not in figure.data[0].hovertemplate
    assert "±" not in figure.layout.title.text


def scores():
    nan = np.nan
    values = [
        [0.1, -2.0, 0.3, 0.0, 0.2],
        [nan, 1.0, 4.0, nan, 0.4],
        [nan, 0.5, nan, 0.6, -0.7],
    ]
    return xr.DataArray(
        values,
        dims=("sender", "receiver"),
        coords={
            "sender": ["embed", "L0H2", "0.mlp"],
            "receiver": ["0.mlp", "L1H1.q", "L1H1.v", "1.mlp", "logits"],
        },
        attrs={"unit": "logits", "model": "m"},
    )


def test_edges_are_the_strongest_wide_by_size_and_coloured_by_sign():
    figure = plots.edges(scores(), top=3)
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    hovers = [trace for trace in figure.data if trace.opacity == 0]
    assert [trace.customdata[0] for trace in hovers] == [1.0, -2.0, 4.0]  # the strongest on top
    assert [trace.text[0] for trace in hovers] == [
        "<b>L0H2 → L1H1.q</b>", "<b>embed → L1H1.q</b>", "<b>L0H2 → L1H1.v</b>",
    ]  # fmt: skip
    widths = [line.line.width for line in lines]
    assert widths == sorted(widths)
    assert lines[0].line.color == lines[2].line.color != lines[1].line.color
    assert all("logits" in trace.hovertemplate for trace in hovers)
    assert figure.layout.title.text.startswith("The 3 strongest of 11 edges")


def test_nodes_stand_by_layer_and_head_and_inputs_at_their_side():
    figure = plots.edges(scores(), top=3)
    nodes = next(trace for trace in figure.data if trace.mode == "markers+text")
    at = dict(zip(nodes.text, zip(nodes.x, nodes.y, strict=True), strict=True))
    assert at == {"L0H2": (2.0, 0.0), "L1H1": (1.0, 1.0), "embed": (1.5, -1.0)}
    idle = next(trace for trace in figure.data if trace.mode == "markers" and trace.opacity != 0)
    assert set(idle.text) == {"0.mlp", "1.mlp", "logits"}
    ends = [line.x[-1] for line in figure.data if line.mode == "lines"]
    assert ends[0] == ends[1] < 1.0 < ends[2]
    assert list(figure.layout.yaxis.ticktext) == ["embed", "0", "1", "logits"]


def test_edges_of_prompts_are_averaged_and_datasets_are_taken():
    several = xr.concat([scores(), 3 * scores()], dim="prompt")
    for given in (several, several.to_dataset(name="estimate")):
        figure = plots.edges(given, top=1)
        assert next(t for t in figure.data if t.opacity == 0).customdata[0] == 8.0
        assert "mean of 2 prompts" in figure.layout.title.text
    assert sum(trace.mode == "lines" for trace in plots.edges(scores(), top=99).data) == 10


def effects(**sizes):
    sizes = {"site": ["resid_pre", "mlp_out"], "layer": range(3), "pos": range(4)} | sizes
    sizes = {name: list(values) for name, values in sizes.items()}
    shape = tuple(map(len, sizes.values()))
    values = np.random.default_rng(0).normal(size=shape)
    return xr.DataArray(values, coords=sizes, dims=list(sizes), attrs={"unit": "logits"})


def test_estimates_are_panels_with_the_diagonal_and_correlations():
    exact = effects()
    estimate = exact.copy(data=0.5 * exact.values)
    estimate[0] = -estimate[0]
    figure = plots.estimate(exact, estimate.transpose("pos", "site", "layer"))
    assert [note.text for note in figure.layout.annotations] == [
        "resid_pre: r = -1.00, rank -1.00", "mlp_out: r = 1.00, rank 1.00",
    ]  # fmt: skip
    diagonal, points = figure.data[:2]
    assert list(diagonal.x) == list(diagonal.y)
    np.testing.assert_array_equal(points.x, exact[0].values.ravel())
    np.testing.assert_array_equal(points.y, -points.x / 2)
    assert list(points.marker.color) == [0] * 4 + [1] * 4 + [2] * 4
    assert points.customdata[5] == "1.resid_pre at 1"
    assert "estimate %{y:.4g} logits" in points.hovertemplate


def test_the_worst_cells_are_labelled():
    exact = effects()
    estimate = exact.copy()
    estimate[1, 2, 3] += 5.0
    estimate[1, 0, 1] -= 4.0
    points = plots.estimate(exact, estimate, worst=2).data[3]
    assert [text for text in points.text if text] == ["0.mlp at 1", "2.mlp at 3"]
    assert not any(plots.estimate(exact, exact).data[1].text)
    assert not any(plots.estimate(exact, estimate, worst=0).data[3].text)


def test_several_arrays_share_one_figure_and_prompts_are_averaged():
    streams, heads = effects(prompt=range(2)), effects(site=["z"], pos=[0]).isel(pos=0)
    heads = heads.drop_vars("pos").expand_dims(head=[0, 1])
    figure = plots.estimate([streams, heads], [streams, heads])
    assert [note.text.split(":")[0] for note in figure.layout.annotations] == [
        "resid_pre", "mlp_out", "z",
    ]  # fmt: skip
    np.testing.assert_allclose(figure.data[1].x, streams[0].mean("prompt").values.ravel())
    assert figure.data[5].customdata[0] == "L0H0"


def test_cells_that_are_not_finite_are_left_out_and_constants_have_no_correlation():
    exact = effects(site=["z"])
    exact[0, 0, 0] = np.nan
    assert plots.estimate(exact, exact).data[1].x.size == 11
    assert plots.estimate(exact, 0 * exact).layout.annotations[0].text == "z: nothing varies"


def test_of_very_many_cells_the_largest_are_drawn():
    exact = effects(site=["z"], pos=range(3000))
    figure = plots.estimate(exact, exact)
    assert figure.data[1].x.size == 4000
    assert np.abs(figure.data[1].x).min() > np.sort(np.abs(exact.values.ravel()))[4000]
    assert "r = 1.00" in figure.layout.annotations[0].text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.edges(scores(), top=0), "top=0; wanted at least 1"),
        (lambda: plots.edges(0 * scores()), "no edge to draw"),
        (lambda: plots.edges(scores().rename(sender="from")), "no dimension 'sender'"),
        (lambda: plots.edges(scores().to_dataset(name="bits")), "lacks 'estimate'"),
        (lambda: plots.edges(scores().assign_coords(sender=list("abc"))), "label='a'"),
        (lambda: plots.estimate(effects(), effects(), worst=-1), "must not be negative"),
        (lambda: plots.estimate(effects(), effects(pos=range(3))), "wanted the same cells"),
        (lambda: plots.estimate(effects(), effects(pos=range(1, 5))), "wanted the same cells"),
        (lambda: plots.estimate([effects()], []), "wanted as many"),
        (lambda: plots.estimate(effects(), effects() * np.nan), "no cell that is finite"),
        (lambda: plots.estimate(*[effects().isel(layer=0, drop=True)] * 2), "dimension 'layer'"),
    ],
)
def test_wrong_scores_and_estimates_are_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
