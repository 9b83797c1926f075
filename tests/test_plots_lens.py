"""Figures of lenses: what is on them is what is in the result."""

from typing import Any

import numpy as np
import pytest

import mlp_interp as mi
from mlp_interp import lens as lenses
from mlp_interp import plots as figures

plots: Any = figures
TEXTS = ["The capital of France is", "Anna gave the book to John"]


def test_the_grid_holds_the_result(nano: Any) -> None:
    found = lenses.read(nano, TEXTS, k=2)
    for variable in ("kl_output", "rank_output"):
        heat = plots.lens(found, variable, prompt=0).data[0]
        there = found["token"].values[0] != ""
        wanted = found[variable].values[0][:, there]
        drawn = np.asarray(heat.z)
        np.testing.assert_allclose(drawn if "kl" in variable else 10**drawn - 1, wanted, atol=1e-3)
    assert heat.text[4][-1] == plots.lens(found, prompt=0).data[0].text[4][-1]
    assert "kl_output" in heat.customdata[2][1]
    stars = [note.text for note in plots.lens(found).layout.annotations]
    assert sum(text.endswith("*") for text in stars) == int(
        (found["top_text"][0, -1, :, 0] == found["next_token"][0])[: there.sum() - 1].sum()
    )


def test_markup_in_tokens_is_drawn_as_it_is(nano: Any) -> None:
    found = lenses.read(nano, TEXTS[:1], k=2)
    found["top_text"][:] = "<b>x"
    assert plots.lens(found).data[0].text[0][0] == "&lt;b&gt;x"
    assert "<b>x" not in plots.lens(found).data[0].customdata[0][0]


def test_depth_has_a_line_for_each_lens(kind: Any, tokens: Any) -> None:
    model = kind()
    found = lenses.over(model, tokens, {"a": lenses.logit(model), "b": lenses.decoder(model, 1)})
    lines = [trace for trace in plots.lens_depth(found).data if trace.mode]
    assert len(lines) == 8
    np.testing.assert_allclose(lines[0].y, found["kl_output"].sel(lens="a"))
    assert list(lines[1].x) == [0, 1, 2, 3]


def test_trajectories(nano: Any) -> None:
    task = mi.prompts.facts(nano, n=2, seed=0)
    found = lenses.read(nano, task)
    figure = plots.trajectory(found, prompt=1)
    np.testing.assert_allclose(figure.data[0].y, np.exp(found["logp_target"][1, :, -1]), rtol=1e-5)
    assert [line.name for line in figure.data[:2]] == ["target", "foil"]


def test_bad_results(nano: Any, kind: Any, tokens: Any) -> None:
    found = lenses.read(nano, TEXTS)
    with pytest.raises(ValueError, match="lacks 'nothing'"):
        plots.lens(found, "nothing")
    with pytest.raises(ValueError, match="prompt=2; wanted one of 2"):
        plots.lens(found, prompt=2)
    with pytest.raises(ValueError, match="pos=40"):
        plots.trajectory(found, 40)
    with pytest.raises(ValueError, match="tokens has 'zzz'"):
        plots.trajectory(found, tokens=["zzz"])
    with pytest.raises(ValueError, match="lacks"):
        plots.lens_depth(found)
    model = kind()
    both = lenses.read(model, tokens, {"a": lenses.logit(model), "b": lenses.decoder(model, 1)})
    with pytest.raises(ValueError, match="lenses 'a', 'b'; wanted one"):
        plots.lens(both)
