"""Numbers that real Pythia models must give; only where their weights lie in the local cache."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import try_to_load_from_cache

import mlp_interp as mi
from mlp_interp.neurons import neuron_weights

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
NEEDED = ("config.json", "tokenizer.json")

KNOWN = json.loads(Path(__file__).with_name("reference_pythia.json").read_text())
LAYERS = {"70m": 6, "160m": 12, "410m": 24, "1b": 16}


def cached(name, monkeypatch, **options):
    """A model from the local Hugging Face cache, without asking the hub; else skip."""
    repo = f"EleutherAI/{name}"
    files = {f: try_to_load_from_cache(repo, f) for f in (*NEEDED, *WEIGHTS)}
    here = {f for f, path in files.items() if isinstance(path, str)}
    if not (here.issuperset(NEEDED) and here.intersection(WEIGHTS)):
        pytest.skip(f"no weights of {repo} in the local Hugging Face cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return mi.load_model(name, device="cpu", **options)


@torch.no_grad()
def test_the_loss_of_hello_world(monkeypatch):
    """TransformerLens' own acceptance test, which also only bounds the loss from above: the number
    is older than the release of the weights that now bear the name."""
    model = cached("pythia-70m", monkeypatch)
    tokens = model.to_tokens("Hello world!", prepend_bos=True)
    loss = float(model(tokens, return_type="loss"))
    assert 3 < loss < 4.659344673 + 1e-4


@pytest.mark.parametrize("size", LAYERS)
def test_norms_and_angles_of_neurons(size, monkeypatch):
    model = cached(f"pythia-{size}-deduped-v0", monkeypatch, processing="raw")
    found = neuron_weights(model, tokens=False)
    for name in ("receptor_norm", "value_norm"):
        for statistic, known in KNOWN[name][size].items():
            measured = getattr(found[name], statistic)("neuron")
            np.testing.assert_allclose(measured, known, atol=1e-3, err_msg=f"{statistic} {name}")
    if size in KNOWN["median_cosine"]:
        known = KNOWN["median_cosine"][size]
        np.testing.assert_allclose(found.cosine.median("neuron"), known, atol=5e-3)


@pytest.mark.parametrize("size", LAYERS)
def test_the_known_numbers_are_whole(size):
    for name in ("receptor_norm", "value_norm"):
        known = {statistic: np.array(x) for statistic, x in KNOWN[name][size].items()}
        assert {len(x) for x in known.values()} == {LAYERS[size]}
        for middle in ("mean", "median"):
            assert (known["min"] < known[middle]).all()
            assert (known[middle] < known["max"]).all()
    assert len(KNOWN["median_cosine"].get(size, range(LAYERS[size]))) == LAYERS[size]
