"""Analyses that take gradients give the same in inference mode and under autocast."""

import numpy as np
import pytest
import torch
import xarray as xr
from contrasts import contrast_of
from random_models import BACKENDS, build

import mlp_interp as mi
from mlp_interp.dictionaries import Dictionary, TopK
from mlp_interp.models.own_mode import own_mode
from mlp_interp.neurons import AscentOptions
from mlp_interp.runs import run

MODES = {
    "inference": lambda: torch.inference_mode(),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}
ANALYSES = {
    "attribution_patch": mi.attribution_patch,
    "edge_attribution": mi.edge_attribution,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ANALYSES)
def test_gradients_are_the_same_in_every_mode(kind, backend, engine, mode, name):
    model = kind("parallel", backend, "raw")
    options = {"engine": engine, "steps": 2}
    expected = ANALYSES[name](model, contrast_of(), "probability", **options)
    with MODES[mode]():
        contrast = contrast_of()
        found = ANALYSES[name](model, contrast, "probability", **options)
        if mode == "inference":
            both = contrast.clean_tokens, contrast.corrupted_tokens
            runs = [run(model, tokens) for tokens in both]
            same = ANALYSES[name](model, contrast, "probability", runs=runs, **options)
            xr.testing.assert_allclose(same, expected, atol=1e-6)
        assert torch.is_inference_mode_enabled() == (mode == "inference")
        assert torch.is_autocast_enabled("cpu") == (mode == "autocast")
    xr.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_what_weights_and_layers_say_is_the_same_in_every_mode(kind, mode):
    model = kind("parallel", BACKENDS[0], "raw")
    tokens = torch.tensor([[0, 5, 6, 5, 6, 7], [0, 9, 8, 9, 8, 8]])

    def all_of_them():
        return [
            mi.heads.compose(model, measure="overlap"),
            mi.heads.detect(model, tokens),
            mi.heads.match(model, sample=64),
            mi.heads.read_shares(model, tokens, "L1H2.k"),
            mi.weights.table(model, "L1H2.OV", k=2, best=2),
            mi.weights.subspaces(model, "L0H1", "L1H0.q"),
            mi.lens.read(model, tokens, k=2),
            mi.lens.over(model, tokens),
            mi.lens.read_parts(model, tokens),
            mi.neurons.composition(model, tokens),
            mi.neurons.pursue(model, 5, steps=2),
        ]

    _same_in(MODES[mode], all_of_them)


@pytest.mark.parametrize("mode", MODES)
def test_exchanges_are_the_same_in_every_mode(kind, mode):
    model, contrast = kind("sequential", BACKENDS[0], "raw"), contrast_of()
    edges = mi.edge_attribution(model, contrast)

    def all_of_them():
        return [
            mi.patch(model, contrast, "kl", sites="z", layers=[1]),
            mi.path_patch(model, contrast, "kl", receivers="2.mlp"),
            mi.faithfulness(model, contrast, edges=edges, fractions=[0.2]),
            mi.evaluate_hypothesis(model, contrast, nodes="2.mlp", draws=1),
            mi.causal_trace(model, "the cat sat", "cat", samples=2),
        ]

    _same_in(MODES[mode], all_of_them)


@pytest.mark.parametrize("mode", MODES)
def test_latents_are_the_same_in_every_mode(kind, mode, tokens):
    model = kind("parallel", BACKENDS[0], "raw")
    sae, named = some_dictionary(model), {"a": tokens, "b": tokens.flip(1), "c": tokens.flip(0, 1)}

    def all_of_them():
        return [
            mi.latents.ablate(model, tokens, sae, path="direct"),
            mi.latents.absorption(model, sae, named),
            mi.latents.activity(model, sae, tokens),
            mi.latents.evaluate(model, sae, tokens),
            mi.latents.page(model, sae, 0, tokens, ablate=2),
            mi.latents.replace(model, [sae], tokens),
            mi.latents.separate(model, sae, named),
        ]

    _same_in(MODES[mode], all_of_them)
    ran = run(model, tokens)
    with MODES[mode]():
        found = mi.latents.activations(ran, sae)
    torch.testing.assert_close(found.values, mi.latents.activations(ran, sae).values)


@pytest.mark.parametrize("mode", MODES)
def test_neurons_and_directions_are_the_same_in_every_mode(kind, mode, tokens):
    model = kind("parallel", BACKENDS[0], "raw")
    ids = tokens.tolist()
    direction = mi.steering.mean_difference(model, ids[:2], ids[2:])
    sets = mi.reach.reachable(model, [[5, 6]])

    def all_of_them():
        return [
            mi.neurons.activations(model, "L1N3", tokens),
            mi.neurons.activity(model, tokens),
            mi.neurons.antipodal_pairs(model, k=5),
            mi.neurons.expected_embedding_generate(model, tokens[:1], max_new_tokens=2),
            mi.neurons.nearest_neurons(model, "L1N3"),
            mi.neurons.neuron_page(model, "L1N3", tokens),
            mi.neurons.neuron_weights(model, k=2),
            mi.neurons.promoted_tokens(model, "L1N3"),
            mi.neurons.update_shares(model, tokens),
            mi.neurons.verify_neuron(model, "L1N3", ids[:2], ids[2:], controls=2),
            mi.reach.argmaxable(model, tokens=range(9)),
            mi.reach.nearest_streams(model, sets, tokens, k=2, controls=2),
            mi.reach.reachable(model, [[5, 6]]),
            mi.reach.reachable_share(model, [2], n=2),
            mi.reach.with_certificate(model, sets),
            mi.steering.activation_addition(model, "the cat", "the dog", 1),
            mi.steering.dose_response(
                model, contrast_of(), "kl", direction=direction, coefficients=[1.0], layers=1
            ),
            mi.steering.function_vector(model, contrast_of()),
            mi.steering.head_effects(model, contrast_of()),
            mi.steering.mean_difference(model, ids[:2], ids[2:]),
            mi.steering.output_direction(model, "L1H2", prompts=ids[:1]),
            mi.steering.pca_direction(model, ids[:2], ids[2:]),
        ]

    _same_in(MODES[mode], all_of_them)


@pytest.mark.parametrize("mode", MODES)
def test_features_and_superposition_are_the_same_in_every_mode(kind, mode, tokens):
    model = kind("parallel", BACKENDS[0], "folded")
    texts = torch.cat([tokens, tokens.flip(1)])
    corpus = mi.Corpus(texts)
    truth = {"a": torch.arange(8).numpy() % 2 == 0}

    def all_of_them():
        return [
            mi.features.index(model, corpus, truth, permutations=0),
            mi.features.universal(model, kind("parallel", BACKENDS[0], "raw"), corpus),
            mi.features.self_score(model, ["the cat sat", "on the mat"], "hello world"),
            mi.superposition.concepts(model, {"a": range(5, 15), "b": range(20, 30)}, controls=2),
            mi.superposition.modes(model, texts[:2], positions=-1, k=9),
            mi.superposition.noise_tolerance(model, texts, layers=1, sizes=(0.1, 0.2)),
            mi.superposition.overlaps(model, texts, layers=1, top=2, controls=2),
            mi.superposition.spectrum(model, texts),
        ]

    _same_in(MODES[mode], all_of_them)


def some_dictionary(model):
    generator = torch.Generator().manual_seed(0)
    d, latents = model.cfg.d_model, 24
    W_enc, W_dec = (
        torch.randn(*shape, generator=generator) for shape in ((d, latents), (latents, d))
    )
    return Dictionary(W_enc, torch.zeros(latents), W_dec, torch.zeros(d), TopK(5), 1)


def _same_in(mode, compute):
    expected = compute()
    with mode():
        found = compute()
    for one, same in zip(found, expected, strict=True):
        xr.testing.assert_allclose(one, same, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_remembered_in_a_mode_serves_outside_it(mode):
    contrast = contrast_of()
    first, second = (build("sequential", BACKENDS[0], "raw") for _ in range(2))
    expected = mi.attribution_patch(first, contrast, "kl")
    with MODES[mode](), torch.no_grad():
        mi.patch(second, contrast, "kl", layers=[0])
    found = mi.attribution_patch(second, contrast, "kl")
    for name, values in expected.data_vars.items():
        np.testing.assert_array_equal(found[name], values)


def test_a_model_made_in_inference_mode_is_refused_by_name():
    with torch.inference_mode():
        model = build("parallel", BACKENDS[0], "folded")
    for analysis in ANALYSES.values():
        with pytest.raises(ValueError, match=r"was made inside torch.inference_mode\(\)"):
            analysis(model, contrast_of())


def test_neurons_are_driven_in_inference_mode(kind):
    options = {"length": 3, "ascent": AscentOptions(steps=2, restarts=2)}
    expected = mi.neurons.maximize(kind(), "L1N3", **options)
    with torch.inference_mode():
        found = mi.neurons.maximize(kind(), "L1N3", **options)
    np.testing.assert_allclose(found.activation, expected.activation)


@pytest.mark.parametrize("gradients", [True, False])
def test_gradient_mode_stays(gradients):
    with torch.set_grad_enabled(gradients), own_mode():
        assert torch.is_grad_enabled() == gradients
    with torch.inference_mode(), own_mode():
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()


def test_a_lens_is_fitted_in_every_mode(kind, tokens):
    model = kind("parallel")
    expected = mi.lens.tuned(model, tokens, steps=2)
    for mode in MODES.values():
        with mode():
            found = mi.lens.tuned(model, tokens, steps=2)
        torch.testing.assert_close(found.weight, expected.weight)


def test_autocast_is_said_where_it_rounds(kind, tokens):
    model = kind("parallel")
    exact = mi.ablate_total(model, tokens, ["1.mlp"])
    with MODES["autocast"](), pytest.warns(UserWarning, match="autocast is on: .* half precision"):
        rounded = mi.ablate_total(model, tokens, ["1.mlp"])
    assert float(abs(rounded.kl - exact.kl).max()) > 1e-6
    mi.ablate_total(model, tokens, ["1.mlp"])
