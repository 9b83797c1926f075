"""`mlp-interp patch`: the table, the page, the data beside it, and one line for wrong input."""

import re
from html import unescape

import numpy as np
import pytest
import xarray as xr
from browser import needs_browser, open_page
from typer.testing import CliRunner

from mlp_interp import patch, prompts
from mlp_interp.cli import app
from mlp_interp.cli.early import METRICS, TASKS

OWN = [
    "--clean", "The capital of France is", "--answer", "Paris",
    "--corrupted", "The capital of Italy is", "--foil", " Rome",
]  # fmt: skip


def run(*arguments):
    return CliRunner().invoke(app, ["patch", *[str(argument) for argument in arguments]])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("patch") / "p.html"
    result = run("--task", "ioi", "-n", 3, "--sites", "attn_out", "-s", "z,post", "-o", out)
    assert result.exit_code == 0, result.stderr
    return out, result.stdout


def test_help_teaches():
    result = run("--help")
    assert result.exit_code == 0
    assert "mlp-interp patch --task ioi" in result.output
    words = set(re.findall(r"\w+", result.output))
    assert {*TASKS, *METRICS} <= words


def test_the_data_are_those_of_patch(written, nano):
    out, _ = written
    tree = xr.open_datatree(out.with_suffix(".nc"), engine="h5netcdf")
    assert set(tree.children) == {"stream", "head", "neuron"}
    expected = patch(nano, prompts.ioi(nano, n=3, seed=0), sites="z")
    found = tree["head"].to_dataset()
    np.testing.assert_allclose(found.normalized, expected.normalized, atol=1e-6)
    tree.close()


def test_the_table_has_the_strongest_cells_of_each_site(written, nano):
    _, printed = written
    blocks = [block.splitlines() for block in printed.split("\n\n")]
    assert [block[0] for block in blocks[1:4]] == ["attn_out", "z", "post"]
    assert all(len(block) == 4 for block in blocks[1:4])
    found = patch(nano, prompts.ioi(nano, n=3, seed=0), sites="z").isel(site=0)
    mean = (found.raw - found.corrupted).mean("prompt") / (found.clean - found.corrupted).mean()
    layer, head = np.unravel_index(np.abs(mean.values).argmax(), mean.shape)
    first = blocks[2][1].split()
    assert first[0] == f"L{layer}H{head}"
    assert float(first[1]) == pytest.approx(mean.values.max(), abs=1e-3)
    assert first[2] == "±"
    assert re.search(r"attn at \d+ ' ", blocks[1][1])


def test_the_page_asks_for_nothing_and_holds_the_table(written):
    out, printed = written
    html = out.read_text(encoding="utf-8")
    assert html.count('class="plot"') == 3
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", html)
    assert printed.split("\n\n")[1] in unescape(html)
    assert "default-src 'none'" in unescape(html)


@needs_browser
def test_the_page_draws_its_figures_offline(written, tmp_path):
    out, _ = written
    document, errors = open_page(out.read_text(encoding="utf-8"), tmp_path)
    assert errors == []
    assert document.count('class="main-svg"') >= 3


def test_prompts_of_ones_own_and_noising(tmp_path):
    out = tmp_path / "own.html"
    result = run(*OWN, "--direction", "noising", "--sites", "resid_pre", "-k", 24, "-o", out)
    assert result.exit_code == 0, result.stderr
    assert re.search(r"0\.resid_pre at 4 ' France' → ' Italy' +[+-]0\.000\n", result.stdout)
    assert "±" not in result.stdout


def test_texts_are_shown_and_never_run(tmp_path):
    out = tmp_path / "own.html"
    evil = "<script>alert(1)</script> The capital of"
    result = run(
        "--clean", f"{evil} France is", "--answer", "Paris",
        "--corrupted", f"{evil} Italy is", "--foil", "Rome", "-s", "attn_out", "-o", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "<script>alert" not in out.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "mlp-interp patch --task ioi"),
        (OWN[:4], "missing --corrupted, --foil"),
        ([*OWN, "--task", "ioi"], "not both"),
        (["--task", "ioj"], "--task 'ioj' (did you mean 'ioi'?); wanted one of"),
        (["--task", "ioi", "--sites", "resid_mid"], "--sites 'resid_mid' (parallel blocks"),
        (["--task", "ioi", "--sites", ","], "--sites ''"),
        (["--task", "ioi", "--metric", "bits"], "--metric 'bits'"),
        (["--task", "ioi", "--out", "p.pdf"], "must end in .html"),
        (["--task", "ioi", "--out", "missing/p.html"], "folder that exists"),
        ([*OWN[:-1], "Rome Paris"], "--foil ' Rome Paris' is 2 tokens, of which --metric logit_d"),
        ([*OWN[:5], "The capital is", *OWN[6:]], "length"),
    ],
)
def test_bad_input_is_one_line_and_status_two(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not list(tmp_path.iterdir())


def test_a_task_may_be_spelled_with_hyphens(tmp_path):
    out = tmp_path / "p.html"
    arguments = ("--task", "greater-than", "-n", 2, "-s", "attn_out", "-o", out)
    result = run(*arguments, "--metric", "probability_difference")
    assert result.exit_code == 0, result.stderr
    assert "greater_than: 2 pairs" in result.stdout
