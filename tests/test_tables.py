"""Tables: the largest entries of every result, with names, errors and units."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from random_models import unchecked

import mlp_interp as mi


@pytest.fixture(scope="module")
def results():
    """One result of every analysis of components, of nano."""
    model = mi.load_model("nano", device="cpu")
    contrast = mi.prompts.facts(model, n=3, seed=0)
    run = mi.run(model, contrast.clean_tokens)
    tokens = contrast.clean_tokens
    return {
        "shares": mi.attribute_logits(model, run, contrast, level="head"),
        "sources": mi.attribute_sources(model, run, contrast),
        "cells": mi.patch(model, contrast, sites=["resid_pre", "mlp_out"]),
        "heads": mi.patch(model, contrast, sites=["z", "q"]),
        "neurons": mi.patch(model, contrast, sites="post", layers=[1], neurons=[2, 5]),
        "estimates": mi.attribution_patch(model, contrast, sites=["z", "mlp_out", "post"]),
        "edges": mi.edge_attribution(model, contrast),
        "paths": mi.path_patch(model, contrast, receivers=["2.mlp"]),
        "importance": mi.subupdate_importance(model, tokens),
        "ablation": mi.ablate_total(model, tokens),
        "ranges": mi.ablate_ranges(model, tokens),
        "norms": mi.norms(model, tokens),
        "activity": mi.neurons.activity(model, tokens),
        "weights": mi.neurons.neuron_weights(model),
    }


def test_every_result_has_a_table(results):
    for name, result in results.items():
        table = mi.table(result, 3)
        assert 2 <= len(table.frame) <= 3, name
        main = table.caption.split(",")[0].split(":")[0]
        assert table.frame[main].abs().is_monotonic_decreasing, name
        assert len(repr(table).splitlines()) == len(table.frame) + 2, name
        assert table._repr_html_().count("<tr>") == len(table.frame) + 1, name


def test_entries_are_named_as_everywhere(results):
    def names(of):
        return set(mi.table(results[of], 10**6).frame["component"])

    layers = range(4)
    heads = {f"L{layer}H{head}" for layer in layers for head in range(6)}
    assert names("cells") == {f"{n}.{s}" for n in layers for s in ("resid_pre", "mlp")}
    assert names("heads") == heads | {f"{head}.q" for head in heads}
    assert names("neurons") == {"L1N2", "L1N5"}
    assert names("importance") == {f"{n}.{s}" for n in layers for s in ("attn", "mlp")}
    assert "L2N5" in names("activity") & names("weights")
    assert {"L0H0", "1.mlp", "L2N7"} <= names("estimates")
    assert {"sender", "receiver"} <= {*mi.table(results["edges"], 5).frame.columns}


def test_numbers_are_means_with_their_errors(results):
    result = results["heads"].normalized
    row = mi.table(result, 1).frame.iloc[0]
    layer, head = int(row.component[1]), int(row.component[3])
    values = result.sel(site="q" if "." in row.component else "z", layer=layer, head=head)
    assert row.normalized == pytest.approx(float(values.mean()))
    assert row.normalized_se == pytest.approx(float(values.std(ddof=1) / np.sqrt(3)))
    assert abs(row.normalized) == pytest.approx(np.abs(result.mean("prompt").values).max())


def test_errors_of_the_result_itself(results):
    result = results["importance"]
    table = mi.table(result, 2)
    best = result.isel(component=int(result.kl_total.argmax("component")))
    assert table.frame["component"].tolist()[0] == str(best.component.values)
    for name in ("kl_total", "kl_direct", "kl_later"):
        for column in (name, f"{name}_se"):
            assert table.frame[column].tolist()[0] == pytest.approx(float(best[column]))
    assert table.caption == "kl_total, nats: the 2 largest of 8, ± standard error"
    assert mi.table(results["ablation"], 3).caption.endswith("the 3 largest of 8, ± standard error")


def test_another_variable(results):
    table = mi.table(results["importance"], 1, value="delta_loss_direct")
    assert table.caption.startswith("delta_loss_direct, nats per token")
    with pytest.raises(ValueError, match=r"value='kl_totl' \(did you mean 'kl_total'\?\)"):
        mi.table(results["importance"], value="kl_totl")


def test_positions_have_their_tokens(nano):
    trace = mi.causal_trace(nano, "The capital of France is", subject="France")
    frame = mi.table(trace, 30).frame
    assert dict(zip(frame.pos, frame.token, strict=True))[4] == " France"


def test_what_is_not_finite_is_not_ranked():
    values = xr.DataArray([np.nan, 2.0, -3.0, np.inf], {"component": [*"abcd"]}, name="x")
    table = mi.table(values)
    assert table.frame.component.tolist() == ["c", "b"]
    assert "2 largest of 2" in table.caption
    assert repr(mi.table(values[:1])).endswith("nothing")


def test_tokens_cannot_break_the_page():
    bad = "</td><script>alert(1)</script>"
    page = mi.table(xr.DataArray([1.0, 2.0], {"component": [bad, "b"]}, name="x"))._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mi.table(xr.DataArray([1.0], dims="component"), 0), "k=0; wanted at least 1"),
        (lambda: mi.table(xr.Dataset({"a": ("x", ["t"])})), r"value=None of a result with \[\]"),
        (lambda: mi.table(xr.DataArray([1.0], dims="x", name="a"), value="b"), "of a DataArray"),
    ],
)
def test_what_has_no_table(make, message):
    with pytest.raises(ValueError, match=message):
        unchecked(make)()


@pytest.mark.usefixtures("without_type_checks")
def test_what_is_no_result_is_refused_by_name(nano, tmp_path):
    save: Any = mi.save  # of anything: the checker stops what users give
    run = mi.run(nano, torch.tensor([[0, 5]]))
    measured = "attribute_logits measures a Run"
    given = {
        "'x'": ("x", ""),
        "dict": ({}, ""),
        "Run": (run, measured),
        "Lens": (mi.lens.logit(nano), "lens.read"),
    }
    for shown, (wrong, hint) in given.items():
        for show in (mi.table, mi.top):
            with pytest.raises(ValueError, match=f"result={shown}; wanted a result.*{hint}"):
                show(wrong)
    with pytest.raises(ValueError, match=r"result=Lens; .* a Lens is kept by lens.save"):
        save(mi.lens.logit(nano), tmp_path / "x.nc")
    with pytest.raises(ValueError, match=r"result='r.nc'; wanted a result.* first, then the path"):
        save("r.nc", xr.DataArray(1.0))
    with pytest.raises(ValueError, match="path=DataArray; wanted a name"):
        save(xr.DataArray(1.0), xr.DataArray(1.0))
    with pytest.raises(ValueError, match="there is no folder"):
        save(xr.DataArray(1.0), tmp_path / "none" / "x.nc")


def test_a_result_without_entries_is_listed_whole():
    draws = xr.DataArray([1.0, 3.0], dims="prompt", name="drawn", attrs={"unit": "nats"})
    result = xr.Dataset({"drawn": draws, "one": 2.5, "one_se": 0.5, "right": True, "text": "a"})
    result = result.assign(grid=(("layer", "prompt"), [[1, 2]])).assign_attrs(analysis="check")
    frame = mi.table(result[["drawn", "one", "one_se", "right", "text"]]).frame
    assert frame["quantity"].tolist() == ["drawn", "one", "right"]
    assert frame["value"].tolist() == [2.0, 2.5, True]
    assert frame["standard_error"].tolist()[:2] == [1.0, 0.5]
    assert frame["unit"].tolist() == ["nats", "", ""]
    assert mi.table(result, value="one").frame["value"].tolist() == [2.5]
    assert mi.table(draws).frame["value"].tolist() == [2.0]
    assert repr(mi.table(xr.DataArray(1.0))).startswith("one thing: 1 number")


def test_what_is_listed_first_is_shown_where_no_name_is_known():
    two = xr.Dataset({"n": ("x", [4, 5]), "a": ("x", [1.0, 2.0]), "a_null": ("x", [3.0, 4.0])})
    assert mi.table(two).frame.columns.tolist() == ["x", "a", "a_null"]


def test_texts_beside_numbers_are_joined_and_not_averaged():
    """Of a direction's tokens at each end; of several prompts there is no mean text."""
    words = np.array([[[f"{d}{e}{n}" for n in "abcd"] for e in "+-"] for d in "xy"])
    result = xr.Dataset(
        {
            "singular_value": ("direction", [1.0, 2.0]),
            "text": (("direction", "end", "rank"), words),
            "named": (("prompt", "direction"), [["p", "q"], ["r", "s"]]),
        },
        {"end": ["reads", "writes"]},
        {"analysis": "singular"},
    )
    frame = mi.table(result).frame
    assert frame["reads text"].tolist() == ["y+a | y+b | y+c", "x+a | x+b | x+c"]
    assert frame["writes text"].tolist()[1] == "x-a | x-b | x-c"
    several = result.assign(text=result["named"])
    assert "text" not in mi.table(several).frame
    assert mi.table(several.isel(prompt=[0])).frame["text"].tolist() == ["q", "p"]


def test_the_largest_of_a_grid_are_named(results):
    assert mi.top(results["heads"], 2).component.values[0].startswith("L")
    assert mi.top(results["activity"], 2).component.values[0].startswith("L")
    assert mi.top(results["importance"], 1).name == "kl_total"
    with pytest.raises(ValueError, match="value=None of a result with"):
        mi.top(results["estimates"])


def test_a_table_is_a_frame(results):
    frame = mi.table(results["weights"], 4).frame
    assert isinstance(frame, pd.DataFrame)
    assert {"closest_embed_text", "cosine"} <= {*frame.columns}


@pytest.mark.parametrize(
    ("call", "first"),
    [
        (lambda m: mi.lens.read(m, "The capital of France is"), "layer"),
        (lambda m: mi.heads.compose(m, writers="L0H0", readers=["L1H0.k", "L1H1.q"]), "writer"),
        (lambda m: mi.heads.detect(m, n=2), "component"),
        (lambda m: mi.weights.singular(m, "L1H0.OV"), "direction"),
        (lambda m: mi.neurons.pursue(m, " Paris"), "step"),
    ],
    ids=["lens", "compose", "detect", "singular", "pursue"],
)
def test_results_of_lenses_heads_weights_and_memories_are_tables(nano, call, first):
    shown = mi.table(call(nano), 3)
    assert shown.frame.columns[0] == first
    assert 1 < len(shown.frame) <= 3


def test_several_prompts_are_put_together_as_change_over_gap():
    """A mean of ratios would follow the prompt whose clean and corrupted metric hardly differ."""
    raw = np.array([[0.5, 0.2], [0.1, 0.9], [3.0, -2.0]])
    clean, corrupted = np.array([1.0, 1.2, 0.004]), np.array([0.0, -0.3, 0.0])
    result = xr.Dataset(
        {
            "raw": (("prompt", "component"), raw),
            "normalized": (("prompt", "component"), (raw - corrupted[:, None]) / 1e-3),
            "clean": ("prompt", clean),
            "corrupted": ("prompt", corrupted),
        },
        {"component": ["0.attn", "0.mlp"]},
    )
    wanted = (raw - corrupted[:, None]).mean(0) / (clean - corrupted).mean()
    shown = mi.table(result)
    assert "mean change over mean gap of 3 prompts" in shown.caption
    found = shown.frame.set_index("component")["normalized"]
    np.testing.assert_allclose([found["0.attn"], found["0.mlp"]], wanted)
    assert mi.top(result, 1).component.values.tolist() == ["0.attn"]
    np.testing.assert_allclose(mi.top(result, 1).values, wanted[:1])
    draws = (raw - corrupted[:, None] - wanted * (clean - corrupted)[:, None])[:, 0]
    error = draws.std(ddof=1) / 3**0.5 / (clean - corrupted).mean()
    assert shown.frame["normalized_se"].tolist()[0] == pytest.approx(error)
    with pytest.raises(ValueError, match="equal on average; wanted 'raw', or one prompt"):
        mi.table(result.assign(clean=result.corrupted))


def test_errors_are_over_prompts_whatever_stands_first():
    values = np.random.default_rng(0).normal(size=(2, 3, 50))
    held = xr.DataArray(values, {"component": ["a", "b"]}, ("component", "prompt", "sample"))
    first = mi.table(held).frame
    pd.testing.assert_frame_equal(first, mi.table(held.transpose("sample", ...)).frame)
    wanted = values.mean(2).std(1, ddof=1) / 3**0.5
    np.testing.assert_allclose(first.set_index("component")["value_se"][["a", "b"]], wanted)
