"""Analyses that take gradients give the same in inference mode and under autocast."""

import numpy as np
import pytest
import torch
import xarray as xr
from contrasts import contrast_of
from random_models import BACKENDS, build

import mlp_interp as mi
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

    expected = all_of_them()
    with MODES[mode]():
        found = all_of_them()
    for one, other in zip(found, expected, strict=True):
        xr.testing.assert_allclose(one, other, atol=1e-5)


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

    expected = all_of_them()
    with MODES[mode]():
        found = all_of_them()
    for one, same in zip(found, expected, strict=True):
        xr.testing.assert_allclose(one, same, rtol=1e-5, atol=1e-6)


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
