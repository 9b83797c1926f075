"""`mlp-interp lens` and `tune-lens`: the grid, the files, and one line for wrong input."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import mlp_interp as mi
from mlp_interp.cli import app

TEXT = "The capital of France is"


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_grid_and_the_files(nano: Any, tmp_path: Path) -> None:
    out = tmp_path / "l.html"
    result = run("lens", TEXT, "--answer", "Paris", "--lens", "decoder:1", "-o", out)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("layer 4")
    assert "·Paris" in lines[0]
    assert lines[0].endswith("#1")
    assert lines[5].startswith("layer 0") or lines[4].startswith("layer 0")
    found: Any = mi.load(out.with_suffix(".nc"))
    wanted = mi.lens.read(nano, [TEXT], mi.lens.decoder(nano, 1), targets=" Paris")
    assert found.equals(wanted)
    page = out.read_text()
    assert "What each layer would say" in page
    assert 'src="http' not in page


def test_a_lens_is_trained_and_used(tmp_path: Path) -> None:
    made = tmp_path / "t.safetensors"
    options = ("-n", 4, "-t", 32, "--steps", 2, "--batch-size", 2)
    result = run("tune-lens", "-o", made, *options)
    assert result.exit_code == 0, result.stderr
    assert "2 steps of 2 sequences" in result.stdout
    result = run("lens", TEXT, "--lens", made, "-o", tmp_path / "l.html")
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--lens", "decoder:x"], "wanted decoder:N"),
        (["--lens", "nothing"], "wanted 'logit'"),
        (["--lens", "decoder:9"], "blocks=9; wanted at most 3"),
        (["--answer", "no such word"], "targets=' no such word' is"),
        (["-o", "page.txt"], "--out must end in .html"),
        (["--color", "nothing", "-o", "/tmp"], "--out must end in .html"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    rest = [] if "-o" in arguments else ["-o", str(tmp_path / "l.html")]
    result = run("lens", TEXT, *arguments, *rest)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
