"""Models that cap their logits: everything that is read of logits is of capped ones."""

import numpy as np
import pytest
import torch
from contrasts import contrast_of
from random_models import HAS_HOOKED, hooked

import mlp_interp as mi
from mlp_interp.corpus.reducers import Loss
from mlp_interp.models import Unembed, check_model, forward_of, portable
from mlp_interp.residual import components

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not HAS_HOOKED, reason="the library has no HookedTransformer"),
]
CAP = 0.5
CONTRAST = contrast_of(length=5)
TOKENS = CONTRAST.clean_tokens


@pytest.fixture(scope="module")
def model():
    return hooked(output_logits_soft_cap=CAP, d_mlp=12)


def effects(model, tokens, written):
    """KL, change of the loss, and whether the top changes, of less in the stream; in float64."""
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
        other = model.unembed(model.ln_final(cache["blocks.1.hook_resid_post"] - written))
    other = CAP * torch.tanh(other / CAP)
    clean, other = (x.double().log_softmax(-1) for x in (logits, other))
    kl = (clean.exp() * (clean - other)).sum(-1)
    chosen = tokens[:, 1:, None]
    rise = (clean[:, :-1] - other[:, :-1]).gather(-1, chosen)[..., 0]
    return kl, rise, (clean.argmax(-1) != other.argmax(-1)).double()


def test_the_readout_bites_and_is_the_models(model):
    assert bool(check_model(model).ok)
    assert forward_of(model).engine == "lean"
    with torch.no_grad():
        logits, cache = model.run_with_cache(TOKENS)
    final = cache["blocks.1.hook_resid_post"]
    unembed = Unembed.of(model)
    torch.testing.assert_close(unembed.logits(final), logits, atol=1e-5, rtol=0)
    bare = unembed.normalize(final) @ unembed.weight + unembed.bias
    assert (bare - logits).abs().max() > CAP
    again = Unembed.of(portable(forward_of(model)).weights.model)
    torch.testing.assert_close(again.logits(final), logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", ["recompute", "freeze"])
@pytest.mark.parametrize("label", ["0.mlp", "L1N3", "L0H2"])
def test_direct_effects(model, label, norm):
    _, cache = model.run_with_cache(TOKENS)
    written = components(model, cache, [label]).vectors()[:, :, 0]
    found = mi.ablate_direct(model, cache, [label], tokens=TOKENS, norm=norm, first=0)
    if norm == "freeze":
        unembed = Unembed.of(model)
        final = cache["blocks.1.hook_resid_post"]
        kept = unembed.norm.keep(final - written) / unembed.scale(final)
        bare = kept @ unembed.weight + unembed.bias
        other = (CAP * torch.tanh(bare / CAP)).double().log_softmax(-1)
        clean = unembed.logits(final).double().log_softmax(-1)
        kl = (clean.exp() * (clean - other)).sum(-1)
        np.testing.assert_allclose(found.kl[0], kl.detach(), rtol=1e-3, atol=1e-9)
        return
    kl, rise, top = effects(model, TOKENS, written)
    np.testing.assert_allclose(found.kl[0], kl, rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(found.delta_loss[0, :, :-1], rise, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(found.top1_changed[0], top)


def test_small_effects_keep_their_precision():
    """KLs of 1e-12 nats, against float64."""
    small, exact = (hooked(output_logits_soft_cap=CAP, d_mlp=12) for _ in range(2))
    with torch.no_grad():
        for model in (small, exact):
            model.blocks[1].mlp.W_out[3] *= 1e-5
    exact = exact.to(torch.float64)
    found, expected = (
        mi.ablate_direct(m, m.run_with_cache(TOKENS)[1], ["L1N3"], tokens=TOKENS, first=0).kl
        for m in (small, exact)
    )
    assert float(expected.max()) < 1e-9
    np.testing.assert_allclose(found, expected, rtol=2e-2, atol=1e-16)


@pytest.mark.parametrize("metric", ["logit_difference", "log_probability", "kl"])
@pytest.mark.parametrize("engine", ["auto", "hooks"])
def test_metrics(model, metric, engine):
    found = mi.patch(model, CONTRAST, metric, sites=["mlp_out"], layers=[1], engine=engine)
    name, rows = "blocks.1.hook_mlp_out", torch.arange(len(CONTRAST))
    with torch.no_grad():
        clean, cache = model.run_with_cache(TOKENS)

        def restore(x, hook=None):
            x = x.clone()
            x[:, -1] = cache[name][:, -1]
            return x

        hooks = [(name, restore)]
        last = model.run_with_hooks(CONTRAST.corrupted_tokens, fwd_hooks=hooks)[:, -1]
    log_probs, clean = last.log_softmax(-1), clean[:, -1].log_softmax(-1)
    expected = {
        "logit_difference": last[rows, CONTRAST.answers] - last[rows, CONTRAST.foils],
        "log_probability": log_probs[rows, CONTRAST.answers],
        "kl": (clean.exp() * (clean - log_probs)).sum(-1),
    }[metric]
    got = found.raw.isel(site=0, layer=0).sel(pos=4)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("metric", ["logit_difference", "kl"])
def test_gradients(model, metric):
    fast, slow = (
        mi.attribution_patch(model, CONTRAST, metric, sites=["mlp_out", "z"], engine=engine)
        for engine in ("auto", "hooks")
    )
    for name in ("mlp_out", "z"):
        np.testing.assert_allclose(fast[name], slow[name], atol=1e-5)
    if metric == "kl":
        return
    # Integrated, they sum to the whole.
    many = mi.attribution_patch(model, CONTRAST, metric, sites=["resid_pre"], steps=32)
    whole = many.resid_pre.sel(layer=0).sum("pos")
    np.testing.assert_allclose(whole, many.clean - many.corrupted, atol=2e-3)


@torch.no_grad()
def test_totals_losses_and_shares(model):
    found = mi.ablate_total(model, TOKENS, ["0.mlp", "L1N3"], first=0)
    for row, (name, unit) in enumerate([("0.hook_mlp_out", ...), ("1.mlp.hook_post", 3)]):

        def silence(x, hook=None, unit=unit):
            x = x.clone()
            x[(...,) if unit is ... else (..., unit)] = 0
            return x

        clean = model(TOKENS).double().log_softmax(-1)
        other = model.run_with_hooks(TOKENS, fwd_hooks=[(f"blocks.{name}", silence)])
        other = other.double().log_softmax(-1)
        kl = (clean.exp() * (clean - other)).sum(-1)
        np.testing.assert_allclose(found.kl[row], kl, rtol=1e-3, atol=1e-8)
    chosen = clean[:, :-1].gather(-1, TOKENS[:, 1:, None])
    loss = mi.sweep(model, TOKENS, [Loss()])["loss"]["loss"]
    np.testing.assert_allclose(loss, -chosen.mean(), rtol=1e-5)
    _, cache = model.run_with_cache(TOKENS)
    shares = mi.attribute_logits(model, cache, CONTRAST)
    assert shares.long_name.endswith("before the cap on logits")


def test_what_takes_one_direction_is_refused(model):
    _, cache = model.run_with_cache(TOKENS)
    with pytest.raises(ValueError, match=r"capped at 0\.5; wanted 'exact'"):
        mi.ablate_direct(model, cache, "neuron", method="second_order")
    with pytest.raises(ValueError, match=r"capped at 0\.5; wanted a model without a cap"):
        mi.neurons.neuron_page(model, "L1N3", TOKENS, k=2, ablate=2)
