"""One analysis at many checkpoints."""

import weakref
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from random_models import random_neox, tiny_tokenizer, unchecked

import mlp_interp.features._revisions as module
from mlp_interp import load_model
from mlp_interp.corpus import Corpus
from mlp_interp.features import PYTHIA_REVISIONS, over_revisions
from mlp_interp.features.asked import check_asked
from mlp_interp.neurons import neuron_weights

STEPS = (1, 2, 8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three random models as revisions of a training run."""
    folder, tokenizer = tmp_path_factory.mktemp("run"), tiny_tokenizer()
    for step in STEPS:
        at = folder / "revisions" / f"step{step}"
        random_neox(layers=1, seed=step).save_pretrained(at)
        tokenizer.save_pretrained(at)
    return folder


@pytest.fixture(scope="module")
def models(run):
    return {step: load_model(run / "revisions" / f"step{step}") for step in STEPS}


@pytest.fixture
def loaded(monkeypatch, models):
    """Models that are loaded once for all tests; what was asked for is kept."""
    asked = []

    def load(name, **options):
        asked.append((name, options))
        step = int(str(name).rpartition("step")[2]) if "step" in str(name) else 1
        return models[step]

    monkeypatch.setattr(module, "load_model", load)
    monkeypatch.setattr(module.gc, "collect", lambda: 0)  # slow beside all that tests hold
    return asked


def first_logits(model, tokens):
    """Logits of one token, as a DataArray with labels."""
    first_logits.steps.append(model.cfg.model_name)
    with torch.no_grad():
        found = model(tokens)[0, -1, :5]
    return xr.DataArray(
        found.numpy(), dims="token", coords={"token": list("abcde")}, attrs={"unit": "logits"}
    )


def as_many(model):
    return xr.Dataset({"x": ("n", np.zeros(2 if model.cfg.model_name == "step1" else 3))})


def others(model):
    return xr.DataArray(np.zeros(1), dims="name", coords={"name": [model.cfg.model_name]})


def alone(model):
    """Whether the model before this one is gone."""
    gone = alone.before is None or alone.before() is None
    alone.before = weakref.ref(model)
    return xr.DataArray(gone)


def nothing(model):
    return 3.0


TOKENS = torch.tensor([[0, 5, 6]])


@pytest.fixture(autouse=True)
def counted():
    first_logits.steps = []


def test_revisions_are_the_analysis_of_each(run, models):
    found = over_revisions(run, [8, 1], first_logits, step_tokens=100, tokens=TOKENS)
    assert isinstance(found, xr.DataArray)
    assert found.dims == ("revision", "token")
    assert found.revision.values.tolist() == ["step1", "step8"]
    assert found.step.values.tolist() == [1, 8]
    assert found.tokens.values.tolist() == [100, 800]
    assert found.attrs["unit"] == "logits"
    for step in (1, 8):
        one = first_logits(models[step], TOKENS)
        np.testing.assert_array_equal(found.sel(revision=f"step{step}"), one)
    alone.before = None
    assert over_revisions(run, [1, 2], alone).all()
    weights = over_revisions(run, [2], neuron_weights, load={"processing": "raw"})
    assert weights.sizes["revision"] == 1
    assert weights.attrs["processing"] == "raw"
    assert np.isnan(weights.tokens).all()


@pytest.mark.usefixtures("loaded")
def test_a_run_that_was_interrupted_goes_on(run, tmp_path):
    options = {"folder": tmp_path / "kept", "tokens": TOKENS}
    some = over_revisions(run, [1, 2], first_logits, **options)
    assert first_logits.steps == ["step1", "step2"]
    found = over_revisions(run, STEPS, first_logits, **options)
    assert first_logits.steps == ["step1", "step2", "step8"]
    xr.testing.assert_identical(found.isel(revision=[0, 1]), some)
    assert {f.suffix for f in (tmp_path / "kept").iterdir()} == {".nc", ".json"}
    (tmp_path / "kept" / "step2.nc").write_bytes(b"half")
    with pytest.warns(UserWarning, match="damaged"):
        again = over_revisions(run, STEPS, first_logits, **options)
    xr.testing.assert_identical(again, found)
    assert first_logits.steps[3:] == ["step2"]


@pytest.mark.usefixtures("loaded")
def test_a_folder_answers_one_question(run, tmp_path):
    kept = tmp_path / "kept"
    over_revisions(run, [1], first_logits, folder=kept, tokens=TOKENS)
    for analysis, options, says in (
        (first_logits, {"tokens": TOKENS + 1}, "options"),
        (first_logits, {"tokens": TOKENS, "load": {"processing": "raw"}}, "options"),
        (as_many, {"tokens": TOKENS}, "analysis"),
        (lambda model: None, {}, "has no name"),
    ):
        with pytest.raises(ValueError, match=says):
            over_revisions(run, [1], analysis, folder=kept, **options)
    other = tmp_path / "other"
    other.mkdir()
    (other / "revisions").symlink_to(run / "revisions")
    with pytest.raises(ValueError, match="for model='/"):
        over_revisions(other, [1], first_logits, folder=kept, tokens=TOKENS)


@dataclass
class Wanted:
    where: str
    values: Any


def test_other_values_are_other_questions(tmp_path):
    """Each is told from what differs in the middle, where no repr shows it."""
    long, other = np.zeros(5000), np.zeros(5000)
    other[2500] = 1
    named = xr.DataArray(long, dims="n", coords={"m": ("n", other)}, attrs={"unit": "a"})
    corpus = Corpus(torch.tensor([[1, 2]]))
    for n, (one, two) in enumerate(
        [
            (named, named + xr.DataArray(other, dims="n")),
            (named, named.assign_coords(m=("n", long))),
            (named, named.assign_attrs(unit="b")),
            (named.to_dataset(name="x"), named.to_dataset(name="y")),
            (named.assign_attrs(sha256="0"), (named + 1).assign_attrs(sha256="0")),
            (named.astype(str).astype(object), (named + 1).astype(str).astype(object)),
            (corpus, Corpus(torch.tensor([[1, 3]]))),
            (Wanted("a", long), Wanted("a", other)),
            (torch.tensor([1.0, 2.0]).bfloat16(), torch.tensor([1.0, 3.0]).bfloat16()),
            (torch.tensor(1.0), torch.tensor(2.0)),
            ({1: 2}, {"1": 2}),
            ({1, 2}, {1, 3}),
            (np.float32(1), np.float32(2)),
            (first_logits, as_many),
            (Path("a"), Path("b")),
            (float("nan"), 1.0),
        ]
    ):
        check_asked(tmp_path / str(n), "m", as_many, {"x": one})
        check_asked(tmp_path / str(n), "m", as_many, {"x": deepcopy(one)})
        with pytest.raises(ValueError, match="holds results for options"):
            check_asked(tmp_path / str(n), "m", as_many, {"x": two})
    for value in (object(), lambda: 1, torch.nn.Identity(), iter([])):
        with pytest.raises(ValueError, match=r"x\['a'\]\[0\] is a .*cannot be told from others"):
            check_asked(tmp_path / "new", "m", as_many, {"x": {"a": [value]}})
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(
    ("analysis", "says"),
    [
        (as_many, r"gave \{'x': \{'n': 3\}\} at step 2 and \{'x': \{'n': 2\}\} at step 1"),
        (others, "other labels of 'name' at step 2 than at step 1"),
        (nothing, "analysis gave float at step 1"),
        (7, "analysis=7; wanted a function"),
    ],
)
def test_results_that_do_not_lie_side_by_side(run, analysis, says):
    with pytest.raises(ValueError, match=says):
        unchecked(over_revisions)(run, [1, 2], analysis)


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([], r"revisions=\[\]"),
        ([1, 1], r"revisions=\[1, 1\]"),
        ([1.5], "revisions=.*integers"),
        ([1, 4], r"revisions has 4; wanted some of '.*revisions': \[1, 2, 8\]"),
    ],
)
def test_revisions_that_are_not_there(run, steps, says):
    with pytest.raises(ValueError, match=says):
        unchecked(over_revisions)(run, steps, first_logits, tokens=TOKENS)


def test_pythias_revisions(run, loaded):
    assert len(PYTHIA_REVISIONS) == 154
    assert PYTHIA_REVISIONS[:4] == (0, 1, 2, 4)
    assert PYTHIA_REVISIONS[10:12] == (512, 1000)
    assert PYTHIA_REVISIONS[-1] == 143_000
    half = {"dtype": "half"}
    found = over_revisions("70m", [1000, 512], first_logits, tokens=TOKENS, load=half)
    assert found.tokens.values.tolist() == [512 * 2_097_152, 1000 * 2_097_152]
    assert loaded == [("70m", {"revision": f"step{step}", **half}) for step in (512, 1000)]
    over_revisions("owner/model", [3], first_logits, tokens=TOKENS)
    assert loaded[-1] == ("owner/model", {"revision": "step3"})
    with pytest.raises(ValueError, match="revisions has 3; wanted some of the published steps"):
        over_revisions("EleutherAI/pythia-70m", [3], first_logits, tokens=TOKENS)
    with pytest.raises(ValueError, match="step_tokens=0"):
        over_revisions(run, [1], first_logits, step_tokens=0)
