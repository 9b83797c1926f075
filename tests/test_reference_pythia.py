"""Numbers that real Pythia models must give; only where their weights lie in the local cache.

`make pythia` gets the weights and requires these. With `--record`, what is measured is written to
`reference_pythia.json`, and is asked of everybody from then on.
"""

from itertools import product

import numpy as np
import pytest
import pythia
import torch
from english import documents
from pythia import KNOWN, NAMES
from random_models import BACKENDS, PROCESSINGS
from transformers import AutoModelForCausalLM

import mlp_interp as mi
from mlp_interp.neurons import activity, neuron_weights

LAYERS = {"70m": 6, "160m": 12, "410m": 24, "1b": 16}
NORMS = ("receptor_norm", "value_norm")


def cached(name, monkeypatch, **options):
    """A model from the local Hugging Face cache, without asking the hub; else skip or fail."""
    return mi.load_model(pythia.repository(name, monkeypatch), device="cpu", **options)


# It is what was published.


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
    for name in NORMS:
        for statistic, known in KNOWN[name][size].items():
            measured = getattr(found[name], statistic)("neuron")
            np.testing.assert_allclose(measured, known, atol=1e-3, err_msg=f"{statistic} {name}")
        # Which neuron is longest says that neurons are in order.
        assert found[name].argmax("neuron").values.tolist() == KNOWN["longest"][name][size]
    known = KNOWN["median_cosine"][size]
    np.testing.assert_allclose(found.cosine.median("neuron"), known, atol=5e-3)


@pytest.mark.parametrize("size", ["70m", "160m", "410m"])
def test_how_often_neurons_fire(size, monkeypatch):
    """Published on the Pile: a fraction of 0.2 is common, and every layer has outliers above 0.8.
    The text is another here, so the bounds are wide."""
    model = cached(f"pythia-{size}-deduped-v0", monkeypatch)
    corpus = mi.load_corpus(documents(), model, sequences=32, length=128)
    fraction = activity(model, corpus).fraction
    assert 0.1 < float(fraction.median()) < 0.3
    assert float(fraction.max("neuron").min()) > 0.7
    for label, known in KNOWN["fires"].get(size, {}).items():
        site = mi.Site.parse(label)
        assert float(fraction.sel(layer=site.layer, neuron=site.unit)) > known - 0.2, label


@pytest.mark.parametrize("size", KNOWN["induction"]["strongest"])
def test_induction_heads(size, monkeypatch):
    scores = pythia.induction_scores(cached(f"pythia-{size}-deduped", monkeypatch))
    known = KNOWN["induction"]
    assert float(scores.max()) == pytest.approx(known["strongest"][size], abs=0.01)
    assert abs(int((scores > known["threshold"]).sum()) - known["heads"][size]) <= 1


# It is loaded right.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("backend", "processing"), [*product(BACKENDS, PROCESSINGS)])
def test_it_computes_what_its_source_says(name, backend, processing, monkeypatch):
    check = mi.check_model(cached(name, monkeypatch, backend=backend, processing=processing))
    for error in ("log_prob_error", "readout_error", "residual_error"):
        assert float(check[error]) < 3e-4, error
    assert bool(check.ok)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_log_probabilities_at_every_position(name, monkeypatch):
    """At 512 positions: a wrong rotary embedding shows in the later ones."""
    source = AutoModelForCausalLM.from_pretrained(
        pythia.repository(name, monkeypatch), dtype=torch.float32
    ).eval()
    model = cached(name, monkeypatch)
    tokens = mi.load_corpus(documents(), model, sequences=1, length=512).tokens
    found, known = (logits.log_softmax(-1) for logits in (model(tokens), source(tokens).logits))
    by_position = (found - known).abs().amax((0, 2))
    assert float(by_position.max()) < 1e-3, by_position


@pytest.mark.parametrize("name", NAMES)
def test_what_was_measured_before(name, monkeypatch, request):
    recording, known = request.config.getoption("--record"), KNOWN.get("measured", {}).get(name)
    model = cached(name, monkeypatch)
    if not recording and known is None:
        pytest.skip(f"nobody has recorded {name} yet; --record does")
    found = pythia.measured(model)
    if recording:
        pythia.record(name, found)
    else:
        assert_equal(found, known)


def assert_equal(found, known, where=""):
    assert type(found) is type(known), where
    if isinstance(known, dict):
        assert found.keys() == known.keys(), where
        for key, value in known.items():
            assert_equal(found[key], value, f"{where} {key}")
    elif isinstance(known, str):
        assert found == known, where
    else:
        np.testing.assert_allclose(found, known, rtol=5e-3, atol=1e-3, err_msg=where)


# What is known is whole, and what is missing is said.


@pytest.mark.parametrize("size", LAYERS)
def test_the_known_numbers_are_whole(size):
    for name in NORMS:
        known = {statistic: np.array(x) for statistic, x in KNOWN[name][size].items()}
        assert {len(x) for x in known.values()} == {LAYERS[size]}
        for middle in ("mean", "median"):
            assert (known["min"] < known[middle]).all()
            assert (known[middle] < known["max"]).all()
        assert len({*KNOWN["longest"][name][size]}) == LAYERS[size]
    assert len(KNOWN["median_cosine"][size]) == LAYERS[size]


@pytest.mark.parametrize(
    ("variable", "name", "outcome"),
    [
        ("", "pythia-70m", pytest.skip.Exception),
        ("require", "pythia-410m-deduped", pytest.skip.Exception),
        ("require", "pythia-70m", pytest.fail.Exception),
        ("all", "pythia-410m-deduped", pytest.fail.Exception),
    ],
)
def test_a_missing_model_fails_where_it_is_required(variable, name, outcome, monkeypatch):
    monkeypatch.setattr(pythia, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setenv("MLP_INTERP_PYTHIA", variable)
    with pytest.raises(outcome, match=f"no weights of EleutherAI/{name} in the local"):
        pythia.repository(name, monkeypatch)


def test_what_is_recorded_is_asked_again(nano, monkeypatch, tmp_path):
    monkeypatch.setattr(pythia, "NUMBERS", tmp_path / "numbers.json")
    pythia.NUMBERS.write_text('{"source": "χ", "measured": {"other": {"x": [1, 2]}}}')
    numbers = pythia.measured(nano)
    pythia.record("nano", numbers)
    known = pythia.json.loads(pythia.NUMBERS.read_text())
    assert known["source"] == "χ"
    assert known["measured"]["other"] == {"x": [1, 2]}
    assert_equal(numbers, known["measured"]["nano"])
    known["measured"]["nano"]["kl_total"]["1.mlp"] += 0.1
    with pytest.raises(AssertionError, match=r"kl_total 1\.mlp"):
        assert_equal(numbers, known["measured"]["nano"])
    assert set(numbers["kl_direct"]) >= {"0.attn", "3.mlp"}
    assert np.shape(numbers["induction"]) == (nano.cfg.n_layers, nano.cfg.n_heads)


@torch.no_grad()
def test_induction_scores_against_a_loop(nano):
    found = pythia.induction_scores(nano, sequences=3, period=5, batch=2)
    half = torch.randint(nano.cfg.d_vocab, (3, 5), generator=torch.Generator().manual_seed(0))
    _, cache = nano.run_with_cache(torch.cat([half, half], 1))
    for layer in range(nano.cfg.n_layers):
        pattern = cache["pattern", layer]
        known = sum(pattern[:, :, 5 + i, i + 1].mean(0) for i in range(5)) / 5
        torch.testing.assert_close(found[layer], known)
