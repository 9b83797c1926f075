"""The command line: exit status, one-line errors, help that teaches."""

import json
import re
import subprocess
import sys

import pytest
import xarray as xr
from typer.testing import CliRunner

from mlp_interp import models
from mlp_interp.cli import app
from mlp_interp.results import load

PROMPT = "The capital of France is"


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("command", [[], ["report"], ["check"], ["attribute"]])
def test_help_shows_examples(command):
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert f"mlp-interp {' '.join(command)}".strip() in result.output


def test_help_loads_no_model_library():
    code = (
        "import sys, mlp_interp.cli; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformer_lens', 'plotly')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_version():
    assert re.fullmatch(r"mlp-interp \d+\.\d+.*\n", run("--version").output)


def test_check_passes():
    result = run("check", "nano", "--device", "cpu")
    assert result.exit_code == 0
    assert re.search(r"^ok\s+true$", result.output, re.MULTILINE)
    assert "residual_error" in result.output


def test_a_failed_check_is_status_one(monkeypatch):
    attrs = dict.fromkeys(("model", "revision", "processing", "dtype", "device", "backend"), "x")
    failed = xr.Dataset({"ok": False, "residual_error": 0.5}, attrs=attrs)
    monkeypatch.setattr(models, "check_model", lambda model: failed)
    result = run("check", "nano", "--device", "cpu")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize("level", ["component", "head", "neuron"])
def test_shares_sum_to_the_logit_difference(level):
    result = run("attribute", PROMPT, "-a", "Paris", "-f", "Rome", "-l", level, "-k", 3)
    assert result.exit_code == 0, result.stderr
    values = [float(line.split()[-1]) for line in result.output.splitlines() if " +" in line
              or re.search(r" -\d+\.\d{3}$", line)]  # fmt: skip
    *parts, total = values
    assert sum(parts) == pytest.approx(total, abs=3e-3)
    assert "logit(' Paris') - logit(' Rome')" in result.output


def test_neurons_are_named_at_their_level():
    result = run("attribute", PROMPT, "-a", "Paris", "-l", "neuron", "-k", 3)
    names = [line.split()[0] for line in result.output.splitlines() if line.startswith("  L")]
    assert len(names) == 3
    assert all("N" in name for name in names)
    assert "24 of head" in result.output


def test_shares_as_json_and_as_a_file(tmp_path):
    out = tmp_path / "shares.nc"
    result = run("attribute", PROMPT, "-a", "Paris", "-f", "Rome", "-k", 2, "--json", "-o", out)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["answer"], found["foil"], found["rank"]) == (" Paris", " Rome", 1)
    *parts, total = (row["share"] for row in found["shares"])
    assert sum(parts) == pytest.approx(total, abs=1e-5)
    assert load(out).sum().item() == pytest.approx(total, abs=1e-5)
    assert found["about"]["model"] == "nano"


def test_characters_of_several_tokens_are_shown_whole():
    result = run("attribute", "The 😀 שלום is", "-a", "Paris", "-k", 1)
    assert "'<|endoftext|>The 😀 שלום is'" in result.output


def test_report_writes_three_files(tmp_path):
    out = tmp_path / "r.html"
    result = run("report", "-n", 2, "-t", 16, "--prompts", 2, "--device", "cpu", "-o", out)
    assert result.exit_code == 0, result.stderr
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".html", ".json", ".nc"]
    assert "most important in total" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "pythia-71m"], "nearest name"),
        (["attribute", PROMPT, "-a", "Paris Rome"], "answer="),
        (["attribute", " ", "-a", "Paris"], "prompt must hold some text"),
        (["attribute", PROMPT, "-a", ""], "--answer must hold some text"),
        (["attribute", "bad \udcff", "-a", "Paris"], "is no valid Unicode at 4"),
        (["attribute", PROMPT, "-a", "Paris", "-o", "x.csv"], "--out must end in .nc"),
        (["patch", "--task", "ioi", "-n", 10**9], "wanted at most 100,000 pairs"),
        (["report", "-n", 10**8], "wanted at most 1,000,000,000 in memory"),
        (["report", "--out", "report.pdf"], "must end in .html"),
        (["report", "--corpus", "missing.jsonl"], "missing.jsonl"),
        (["report", "--revision", "step1"], "revision"),
    ],
)
def test_bad_input_is_one_line_and_status_two(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def test_debug_shows_the_traceback():
    result = run("check", "pythia-71m", "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr


@pytest.mark.parametrize("arguments", [["report", "--length", "1"], ["nonsense"], ["attribute"]])
def test_wrong_usage_is_status_two(arguments):
    assert run(*arguments).exit_code == 2


def test_an_interruption_says_how_to_go_on(monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "load_model", interrupt)
    result = run("report")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
