"""What the command line refuses before it loads torch, and corpora of several files."""

import json
import subprocess
import sys
from contextlib import nullcontext

import pytest
from typer.testing import CliRunner

from mlp_interp import metrics
from mlp_interp.cli import app, early
from mlp_interp.nano.tasks import task_names

PROMPT = "The capital of France is"
REFUSED = {
    "attribute": [
        (["", "-a", "Paris"], "must hold some text"),
        ([PROMPT, "-a", " "], "--answer must hold some text"),
        (["bad \udcff bytes", "-a", "Paris"], "no valid Unicode at 4"),
        ([PROMPT, "-a", "Paris", "-m", "./nowhere"], "--model './nowhere' is no directory"),
        ([PROMPT, "-a", "Paris", "-m", "mlp_interp"], "has no config.json"),
    ],
    "patch": [
        (["--task", "ioj"], "did you mean 'ioi'"),
        (["--task", "ioi", "--metric", "logits"], "--metric 'logits'"),
        (["--task", "ioi", "-s", "banana"], "--sites 'banana'"),
        (["--clean", "", "-a", "a", "--corrupted", "b", "-f", "c"], "--clean must hold"),
    ],
    "neuron": [
        (["L3N5", "-c", "nosuch.txt"], "--corpus 'nosuch.txt' is no file here"),
        (["L3N5", "-c", "nano", "-c", "nosuch/*.jsonl"], "stands for no file"),
    ],
    "report": [
        (["-c", "nosuch.jsonl.zst"], "is no file here"),
        (["-m", "~/nowhere"], "is no directory here"),
        (["--out", "report.pdf"], "must end in .html"),
    ],
}


def test_names_are_those_that_there_are():
    assert {*early.TASKS} == {*task_names()}
    assert early.METRICS == metrics.METRICS


def test_what_needs_no_model_is_refused_without_torch():
    code = f"""
import sys
from typer.testing import CliRunner
from mlp_interp.cli import app
for command, cases in {REFUSED!r}.items():
    for arguments, text in cases:
        result = CliRunner().invoke(app, [command, *arguments])
        assert result.exit_code == 2, (arguments, result.output)
        assert text in result.stderr, (arguments, result.stderr)
        assert len(result.stderr.splitlines()) == 1, result.stderr
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_names_that_may_be_on_the_hub_pass():
    for name in ("nano", "pythia-70m", "owner/name"):
        early.check_model(name)
    early.check_corpus(["nano", "NeelNanda/pile-10k", "pile"])


@pytest.mark.parametrize("skip", [False, True], ids=["refuse", "skip"])
def test_a_corpus_of_several_files_and_another_field(tmp_path, skip):
    for number in range(2):
        rows = [{"body": f"The cat number {number} sat on the mat and looked."}] * 8
        rows += [{"text": "no body"}] if skip else []
        (tmp_path / f"{number}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sources = [x for n in range(2) for x in ("-c", str(tmp_path / f"{n}.jsonl"))]
    options = ["-n", "6", "-t", "12", "--ablate", "2", "-k", "3", "--field", "body"]
    options += ["--errors", "skip"] if skip else []
    page = tmp_path / "page.html"
    command = ["neuron", "L3N506", *sources, *options, "-o", str(page)]
    left_out = pytest.warns(UserWarning, match="left out 2 of 18") if skip else nullcontext()
    with left_out:
        result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    assert "2 files" in page.read_text()
