"""`mlp-interp neuron`: the summary, the page, the numbers, and one line for wrong input."""

import re
from html import unescape

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import mlp_interp as mi
from mlp_interp.cli import app
from mlp_interp.neurons import neuron_page
from mlp_interp.views.numbers import number, percent

SMALL = ("-n", 8, "-t", 32, "--ablate", 3, "-k", 4)


def run(*arguments):
    return CliRunner().invoke(app, ["neuron", *[str(argument) for argument in arguments]])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("neuron") / "n.html"
    result = run("L3N506", *SMALL, "--seed", 2, "-o", out)
    assert result.exit_code == 0, result.stderr
    return out, result.stdout


@pytest.fixture(scope="module")
def expected(nano):
    corpus = mi.load_corpus("nano", nano, sequences=8, length=32, seed=2)
    return neuron_page(
        nano, "L3N506", corpus, k=4, ablate=3, seed=2, sweep=mi.SweepOptions(batch_size=16)
    )


def test_help_teaches():
    result = run("--help")
    assert result.exit_code == 0
    assert "mlp-interp neuron L3N506" in result.output


def test_the_numbers_are_those_of_neuron_page(written, expected):
    out, _ = written
    found = mi.load(out.with_suffix(".nc"))
    assert found.equals(expected)
    names = sorted(path.name for path in out.parent.iterdir())
    assert names == ["n.html", "n.memories.nc", "n.nc"]


def test_the_summary_says_what_it_does(written, expected):
    _, printed = written
    lines = printed.splitlines()
    assert lines[0].startswith("L3N506 of nano, nano's generated text (heldout), 8 sequences of 32")
    assert percent(expected["fraction"], expected["fraction_se"]) in lines[1]
    assert "'" + str(expected["promoted_text"][0].item()) + "'" in lines[2]
    here = "[" + str(expected["top_text"].sel(context=0)[0].item()) + "]"
    assert here in lines[5]
    assert lines[5].split()[0] == f"{float(expected['top_activation'][0]):.2f}"
    at = {"measure": "kl", "where": "all", "path": "total"}
    assert number(expected["effect"].sel(at), expected["effect_se"].sel(at)) in printed
    assert str(expected["similar"].sel(by="value")[0].item()) in lines[-3]


def test_the_neuron_is_shown_as_a_memory(written, nano):
    out, printed = written
    corpus = mi.load_corpus("nano", nano, sequences=8, length=32, seed=2)
    every = mi.neurons.memories(nano, corpus, layers=3, k=4, seed=2)
    found = mi.load(out.with_suffix(".memories.nc"))
    xr.testing.assert_equal(found, every.sel(neuron=[506]))
    one = found.squeeze()
    chance = f"{percent(one['agreement_chance'])}, p = {number(one['agreement_p'])}"
    assert f"promotes most in {percent(one['agreement'])} (chance {chance})" in printed
    chance = f"{number(one['lift_chance'])}, p = {number(one['lift_p'])}"
    assert f"raised by {number(one['lift'])} sd of all tokens (chance {chance})" in printed
    assert "Does its value say what follows?" in out.read_text(encoding="utf-8")


def test_the_page_is_that_of_the_view(written, expected):
    out, _ = written
    html = out.read_text(encoding="utf-8")
    assert unescape(html).count("<h1>L3N506 of nano</h1>") == 1
    memories = mi.load(out.with_suffix(".memories.nc"))
    assert html == mi.views.neuron(expected, memories=memories).html()


def test_names_are_made_from_the_neuron_and_data_go_where_they_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # a second time over what is there
        result = run("L0N7", *SMALL, "--data", "numbers.zarr", "--no-memory")
        assert result.exit_code == 0, result.stderr
    assert "is raised by" not in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["L0N7.html", "numbers.zarr"]
    assert mi.load("numbers.zarr")["component"].item() == "L0N7"


def test_what_is_finished_is_taken_over(tmp_path, monkeypatch):
    parts = tmp_path / "parts"
    arguments = ("L3N506", *SMALL, "--checkpoint", parts, "-o", tmp_path / "n.html")

    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("mlp_interp.neurons.page.page.removal", interrupted)
        result = run(*arguments)
    assert result.exit_code == 130
    assert "goes on with what is finished" in result.stderr
    kept = {path: path.stat().st_mtime_ns for path in parts.rglob("*.safetensors")}
    assert len(kept) == 2
    assert not (tmp_path / "n.html").exists()
    assert run(*arguments).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_text_of_ones_own(tmp_path):
    text = tmp_path / "mine.txt"
    evil = "<script>alert(1)</script> Le chat est noir. "
    text.write_text(evil * 30, encoding="utf-8")
    out = tmp_path / "n.html"
    result = run("L3N506", *SMALL[2:], "-c", text, "-o", out)
    assert result.exit_code == 0, result.stderr
    assert "<script>alert" not in out.read_text(encoding="utf-8")
    assert np.isfinite(mi.load(out.with_suffix(".nc"))["fraction"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["3N506"], "neuron='3N506'; wanted a label such as L3N669"),
        (["L3H5"], "neuron='L3H5'"),
        (["L3N506.pre"], "neuron='L3N506.pre'"),
        (["L4N0"], "neuron='L4N0'; wanted a layer from 0 to 3"),
        (["L0N768"], "neuron='L0N768'; wanted a neuron from 0 to 767"),
        (["L3N506", "--out", "p.pdf"], "must end in .html"),
        (["L3N506", "--out", "missing/p.html"], "folder that exists"),
        (["L3N506", "--data", "p.csv"], "must end in .nc or .zarr"),
        (["L3N506", "--corpus", "none.txt"], "none.txt"),
        (["L3N506", "-k", "5000"], "k=5000"),
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


def test_it_is_among_the_commands():
    output = CliRunner().invoke(app, ["--help"]).output
    assert re.search(r"^\s+neuron\s", output, re.MULTILINE)


NEVER = ("--model", "no such model")  # what is refused is refused before a model is loaded


def contents(folder):
    return {str(path.relative_to(folder)): path.is_dir() for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_a_folder_of_other_things_is_never_replaced(suffix, tmp_path):
    data = tmp_path / f"mine{suffix}"
    data.mkdir()
    (data / "thesis.txt").write_text("years of work")
    before = contents(tmp_path)
    result = run("L0N7", *NEVER, "-o", tmp_path / "n.html", "--data", data)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --data wanted")
    assert contents(tmp_path) == before


def test_a_link_to_a_store_is_not_followed(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".zgroup").touch()
    (tmp_path / "link.zarr").symlink_to(tmp_path / "store")
    result = run("L0N7", *NEVER, "-o", tmp_path / "n.html", "--data", tmp_path / "link.zarr")
    assert "error: --data wanted a zarr store or nothing yet" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "d.html"], "--out wanted a file, got the folder 'd.html'"),
        (["--out", "file/p.html"], "--out wanted a folder, got the file"),
        (["--data", "missing/p.nc"], "--data must lie in a folder that exists"),
        (["--checkpoint", "file"], "--checkpoint wanted a folder, got the file"),
        (["--checkpoint", "file/deeper"], "--checkpoint wanted a folder, got the file"),
    ],
)
def test_paths_are_checked_before_a_model_is_loaded(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.html").mkdir()
    (tmp_path / "file").touch()
    result = run("L0N7", *NEVER, *arguments)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert message in result.stderr
    assert sorted(contents(tmp_path)) == ["d.html", "file"]


def test_folders_without_the_right_to_write_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("mlp_interp.cli.options.os.access", lambda *_: False)
    result = run("L0N7", *NEVER, "-o", tmp_path / "n.html")
    assert "error: --out wanted a folder to write to" in result.stderr


@pytest.mark.parametrize("command", [["report"], ["patch", "--task", "ioi"]])
@pytest.mark.parametrize("taken", ["p.html", "p.nc"])
def test_other_pages_check_their_paths_too(command, taken, tmp_path):
    (tmp_path / taken).mkdir()
    given = [*command, *NEVER, "-o", str(tmp_path / "p.html")]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 2
    assert "error: --out wanted a file, got the folder" in result.stderr
