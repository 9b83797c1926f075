"""What all results on neurons have in common: attributes, finite weights, seeds, texts."""

import re

import numpy as np
import pytest
import torch
import xarray as xr
from random_models import BACKENDS, build, unchecked

import mlp_interp as mi
from mlp_interp import neurons
from mlp_interp.models.options import checked_count

TEXTS = ["the cat sat", "mat mat hello"]


def corpus_for(model):
    tokens = torch.randint(1, 250, (4, 9), generator=torch.Generator().manual_seed(5))
    return mi.Corpus(tokens, tokenizer=model.tokenizer)


FUNCTIONS = {
    "activity": lambda m, c: neurons.activity(m, c),
    "outliers": lambda m, c: neurons.outliers(neurons.activity(m, c), k=3),
    "neuron_page": lambda m, c: neurons.neuron_page(m, "L1N7", c, k=3, ablate=2),
    "verify_neuron": lambda m, c: neurons.verify_neuron(m, "L1N7", TEXTS, TEXTS[:1], controls=2),
    "neuron_weights": lambda m, c: neurons.neuron_weights(m, k=2),
    "promoted_tokens": lambda m, c: neurons.promoted_tokens(m, "L1N7", k=2),
    "nearest_neurons": lambda m, c: neurons.nearest_neurons(m, "L1N7", k=2),
    "antipodal_pairs": lambda m, c: neurons.antipodal_pairs(m, k=2),
    "update_shares": lambda m, c: neurons.update_shares(m, c),
    "expected_embedding_generate": lambda m, c: neurons.expected_embedding_generate(
        m, "the cat", max_new_tokens=2
    ),
    "activations": lambda m, c: neurons.activations(m, "L1N7", TEXTS),
    "verdict": lambda m, c: neurons.verdict(
        neurons.verify_neuron(m, "L1N7", TEXTS, TEXTS[:1], controls=2)
    ),
    "memories": lambda m, c: neurons.memories(m, c, k=2, controls=1),
    "composition": lambda m, c: neurons.composition(m, c, dominant=2),
    "update_events": lambda m, c: neurons.update_events(m, c, dominant=2),
    "clusters": lambda m, c: neurons.clusters(m, k=3, controls=2),
    "pursue": lambda m, c: neurons.pursue(m, 5, steps=2),
    "maximize": lambda m, c: neurons.maximize(
        m, "L1N7", length=2, max_new_tokens=1, ascent=neurons.AscentOptions(steps=1, restarts=1)
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_say_what_they_are(kind, name):
    assert {*FUNCTIONS} == {*neurons.__all__} - {"AscentOptions"}
    model = kind("parallel")
    found = FUNCTIONS[name](model, corpus_for(model))
    wanted = {"unit", "long_name", "data", "model", "exact"}
    wanted |= set() if found.attrs.get("exact") == 1 else {"approximation"}
    assert not wanted - found.attrs.keys()
    for variable, values in getattr(found, "data_vars", {}).items():
        assert values.attrs.get("unit"), variable
        assert values.attrs.get("long_name"), variable


@pytest.mark.parametrize("name", sorted({*FUNCTIONS} - {"outliers"}))
def test_weights_that_are_not_finite_are_refused_first(monkeypatch, name):
    model = build("parallel", BACKENDS[0], "folded", torch.float32)
    with torch.no_grad():
        model.blocks[1].mlp.W_out[3, 4] = torch.nan

    def never(*args, **kwargs):
        raise AssertionError("swept")

    for place in ("sweeps.activity.run_sweep", "sweeps.updates.run_sweep", "page.page.run_sweep"):
        monkeypatch.setattr(f"mlp_interp.neurons.{place}", never)
    with pytest.raises(ValueError, match="NaN or infinity"):
        FUNCTIONS[name](model, corpus_for(model))


@pytest.mark.parametrize("seed", ["a", -1, True, 1.5])
def test_a_seed_is_checked_before_anything_runs(kind, seed):
    model = kind("parallel")
    wanted = re.escape(f"seed={seed!r}; wanted an integer")
    with pytest.raises(ValueError, match=wanted):
        unchecked(neurons.neuron_page)(model, (1, 7), corpus_for(model), k=3, seed=seed)
    with pytest.raises(ValueError, match=wanted):
        unchecked(neurons.verify_neuron)(model, (1, 7), TEXTS, TEXTS, controls=2, seed=seed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": True}, "baseline=True; wanted"),
        ({"positive": None}, "positive=None; wanted"),
        ({"negative": 3}, "negative=3; wanted"),
    ],
)
def test_what_is_no_baseline_and_no_texts(kind, options, message):
    given = {"positive": TEXTS, "negative": TEXTS, "controls": 2, **options}
    with pytest.raises(ValueError, match=re.escape(message)):
        unchecked(neurons.verify_neuron)(kind("parallel"), (1, 7), **given)


def test_few_neurons(kind):
    model = kind("parallel")
    found = neurons.activity(model, corpus_for(model))
    few = found.isel(layer=[0], neuron=slice(5))
    assert neurons.outliers(few).sizes["component"] == 5
    with pytest.raises(ValueError, match="k=1, but the number of other neurons is 0"):
        checked_count(1, 0, "other neurons")


def test_the_character_nul_can_be_saved(kind, tmp_path):
    model = kind("parallel")
    (nul,) = model.tokenizer("\0")["input_ids"]
    prompt = torch.tensor([0, nul])
    search = neurons.AscentOptions(vocabulary=[nul], steps=1, restarts=1)
    found = neurons.maximize(model, "L1N7", prompt=prompt, length=2, ascent=search)
    assert found["text"].values.tolist() == ["␀␀"]
    assert np.all(found["token_text"] == "␀")
    assert found.attrs["prompt"].endswith("␀")
    assert found.identical(xr.load_dataset(mi.save(found, tmp_path / "found.nc")))
    found = neurons.expected_embedding_generate(model, prompt, max_new_tokens=1)
    assert found.attrs["prompt"].endswith("␀")
    mi.save(found, tmp_path / "text.nc")
