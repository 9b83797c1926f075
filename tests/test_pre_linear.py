"""What gated neurons multiply their activations by is a site like the others."""

import numpy as np
import pytest
import torch
from contrasts import contrast_of
from random_models import BACKENDS, build

import mlp_interp as mi
from mlp_interp.corpus.reducers import Moments
from mlp_interp.edits import Edit

NAME = "blocks.1.mlp.hook_pre_linear"
LABEL = "L1N5.pre_linear"


@pytest.fixture(scope="module", params=BACKENDS)
def model(request):
    return build("llama", request.param, "folded")


def hooked_logits(model, tokens, change):
    def hook(x, hook=None):
        x = x.clone()
        change(x)
        return x

    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=[(NAME, hook)])


def differences(logits, contrast):
    rows, last = torch.arange(len(contrast)), logits[:, -1]
    return last[rows, contrast.answers] - last[rows, contrast.foils]


def test_it_is_kept_and_edited(model):
    tokens = contrast_of().clean_tokens
    _, cache = model.run_with_cache(tokens)
    for engine in (
        mi.Runner.of(model),
        mi.Runner(mi.models.HookForward(mi.models.Weights.of(model))),
    ):
        assert "1.pre_linear" in engine.run(tokens, sites="all")
        run = engine.run(tokens, sites="pre_linear")
        torch.testing.assert_close(run["1.pre_linear"], cache[NAME], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(run[LABEL], cache[NAME][..., 5], atol=1e-5, rtol=1e-4)

        def double(x):
            x[:, 2, 5] *= 2

        expected = hooked_logits(model, tokens, double).log_softmax(-1)
        edited = engine.run(tokens, edits=Edit.scale(LABEL, 2.0, positions=[2]))
        torch.testing.assert_close(edited.logits().log_softmax(-1), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("positions", ["all", "each"])
def test_patches_of_it(model, positions):
    contrast = contrast_of(length=5)
    fast, slow = (
        mi.patch(
            model,
            contrast,
            sites=["pre", "pre_linear"],
            layers=[1],
            neurons=[5, 6],
            positions=positions,
            engine=engine,
        )
        for engine in ("auto", "hooks")
    )
    assert (fast.engine, slow.engine) == ("lean", "hooks")
    np.testing.assert_allclose(fast.raw, slow.raw, atol=1e-4)
    clean = model.run_with_cache(contrast.clean_tokens)[1][NAME]
    where = slice(None) if positions == "all" else 3

    def restore(x):
        x[:, where, 6] = clean[:, where, 6]

    expected = differences(hooked_logits(model, contrast.corrupted_tokens, restore), contrast)
    got = fast.raw.sel(site="pre_linear", layer=1, neuron=6)
    got = got if positions == "all" else got.sel(pos=3)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_gradients_at_it(model):
    contrast = contrast_of(length=5)
    sites = ["pre", "pre_linear", "post", "mlp_out"]
    fast, slow = (
        mi.attribution_patch(model, contrast, sites=sites, engine=engine)
        for engine in ("auto", "hooks")
    )
    for name in sites:
        np.testing.assert_allclose(fast[name], slow[name], atol=1e-4, err_msg=name)
    # Each times its change of either factor, to first order.
    clean = model.run_with_cache(contrast.clean_tokens)[1][NAME]
    step = 1e-2

    def toward(x):
        x[:, :, 6] += step * (clean[:, :, 6] - x[:, :, 6])

    ends = [
        differences(hooked_logits(model, contrast.corrupted_tokens, change), contrast)
        for change in (lambda x: None, toward)
    ]
    slope = (ends[1] - ends[0]) / step
    np.testing.assert_allclose(fast.pre_linear.sel(layer=1, neuron=6), slope, atol=5e-3)


def test_sweeps_of_it(model):
    tokens = contrast_of().clean_tokens
    found = mi.sweep(model, tokens, [Moments(site="pre_linear")])["moments.pre_linear"]
    expected = model.run_with_cache(tokens)[1][NAME].mean((0, 1))
    np.testing.assert_allclose(found["mean"].sel(layer=1), expected.detach(), atol=1e-5)


def test_directions_of_it(model):
    tokens = contrast_of()
    found = mi.steering.mean_difference(
        model, tokens.clean_tokens, tokens.corrupted_tokens, site="pre_linear", layers=[1]
    )
    caches = [
        model.run_with_cache(x)[1][NAME][:, -1].mean(0)
        for x in (tokens.clean_tokens, tokens.corrupted_tokens)
    ]
    np.testing.assert_allclose(found[0], (caches[0] - caches[1]).detach(), atol=1e-5)


def test_models_without_gates_have_none():
    model, contrast = build("parallel", BACKENDS[-1], "folded"), contrast_of()
    tokens = contrast.clean_tokens
    for call in (
        lambda: mi.run(model, tokens, sites=["1.pre_linear"]),
        lambda: mi.run(model, tokens, edits=Edit.set(LABEL, 0.0)),
        lambda: mi.patch(model, contrast, sites=["pre_linear"]),
        lambda: mi.attribution_patch(model, contrast, sites=["pre_linear"]),
        lambda: mi.sweep(model, tokens, [Moments(site="pre_linear")]),
        lambda: mi.neurons.maximize(model, LABEL),
        lambda: mi.steering.mean_difference(model, tokens, tokens, site="pre_linear"),
        lambda: mi.steer(model, Edit.set(LABEL, 0.0)).__enter__(),
    ):
        with pytest.raises(ValueError, match="its MLPs are not gated; wanted 'pre' or 'post'"):
            call()
