"""Figures and lines of what heads do."""

import pytest
from typer.testing import CliRunner

import mlp_interp as mi
from mlp_interp.cli import app


def test_figures_hold_the_numbers_of_results(nano):
    found = mi.heads.roles(nano, layers=[0, 1])
    figure = mi.plots.roles(found, columns=["copying"])
    assert (figure.data[0].z == found.copying.values).all()
    kernels = mi.heads.positions(nano, distances=8)
    figure = mi.plots.positions(kernels, heads=["L0H0"])
    assert (figure.data[1].y == kernels.score.sel(head="L0H0").values).all()
    composed = mi.heads.compose(nano, readers="k")
    figure = mi.plots.compose(composed)
    assert {text.text for text in figure.layout.annotations} >= {"94", "84"}
    assert "|z| > " in figure.layout.title.text
    parts = mi.heads.split_scores(nano, [[0, 900, 901, 902, 900]], "L1H0", level="head")
    figure = mi.plots.scores(parts, key=2)
    assert figure.data[0].z.max() > 5


def test_figures_refuse_other_results(nano):
    found = mi.heads.roles(nano, layers=[0])
    for draw in (mi.plots.positions, mi.plots.compose):
        with pytest.raises(ValueError, match="result lacks"):
            draw(found)
    parts = mi.heads.split_scores(nano, [[0, 900, 901, 900]], "L1H0")
    with pytest.raises(ValueError, match="key=9; wanted one of"):
        mi.plots.scores(parts, key=9)
    kernels = mi.heads.positions(nano, heads="L0H0", distances=4)
    with pytest.raises(ValueError, match=r"heads=.'L1H0'.; the result holds L0H0"):
        mi.plots.positions(kernels, heads=["L1H0"])


def test_commands(tmp_path):
    out = tmp_path / "found.nc"
    said = CliRunner().invoke(app, ["heads", "L0H0", "--out", str(out)])
    assert said.exit_code == 0, said.output
    assert "L0H0 → L1H0.k  94.3" in said.output
    assert "previous" in mi.load(out)
    said = CliRunner().invoke(app, ["induction", "-n", "4"])
    assert said.exit_code == 0, said.output
    assert said.output.count("strong") == 6
    said = CliRunner().invoke(app, ["heads", "L9H0"])
    assert said.exit_code == 2
    assert "head='L9H0'" in said.output
    said = CliRunner().invoke(app, ["induction", "--out", "x.txt"])
    assert said.exit_code == 2
