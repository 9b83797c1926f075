"""Identities that hold for every small model, whatever its sizes and processing."""

import numpy as np
import reference
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_models import BACKENDS, random_neox, tiny_tokenizer

from mlp_interp import ablate_direct, ablate_total, attribute_logits, load_model
from mlp_interp.metrics import kl_from_change
from mlp_interp.residual import LEVELS, cache_for, decompose

FEW = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def models(draw):
    heads = draw(st.sampled_from([1, 2, 3]))
    d_head = draw(st.sampled_from([4, 8]))
    source = random_neox(
        parallel=draw(st.booleans()),
        layers=draw(st.integers(1, 3)),
        heads=heads,
        d_model=heads * d_head,
        d_mlp=draw(st.sampled_from([1, 5, 24])),
        vocabulary=draw(st.sampled_from([260, 300])),
        spread=draw(st.sampled_from([0.02, 0.3, 1.0])),
        seed=draw(st.integers(0, 99)),
    )
    return load_model(
        source,
        tokenizer=tiny_tokenizer(),
        backend=draw(st.sampled_from(BACKENDS)),
        processing=draw(st.sampled_from(["folded", "raw"])),
    )


prompts = st.lists(
    st.lists(st.integers(1, 259), min_size=3, max_size=3), min_size=1, max_size=3
).map(torch.tensor)


@FEW
@given(model=models(), tokens=prompts)
def test_the_parts_make_the_whole(model, tokens):
    logits = reference.hooked_logits(model, tokens, {})
    for level in LEVELS:
        cache = cache_for(model, tokens, level=level)
        residual = decompose(model, cache, level=level)
        size = max(1.0, float(residual.total.abs().max()))
        assert residual.error() < 1e-4 * size
        shares = attribute_logits(model, cache, 7, 3, level=level, positions=None)
        difference = (logits[..., 7] - logits[..., 3]).numpy()
        scale = max(1.0, float(logits.abs().max()))
        np.testing.assert_allclose(shares.sum("component"), difference, atol=1e-4 * scale)


@FEW
@given(model=models(), tokens=prompts)
def test_ablations_are_safe_and_right(model, tokens):
    last = f"{model.cfg.n_layers - 1}.mlp"
    cache = reference.full_cache(model, tokens)
    direct = ablate_direct(model, cache, "component", tokens=tokens)
    neurons = ablate_direct(model, cache, "neuron", tokens=tokens)
    total = ablate_total(model, tokens, "component")
    for result in (direct, neurons, total):
        assert np.isfinite(result.kl).all()
        assert (result.kl >= 0).all()
        assert np.isfinite(result.delta_loss[..., :-1]).all()
    np.testing.assert_allclose(
        direct.sel(component=last).kl, total.sel(component=last).kl, rtol=1e-2, atol=1e-4
    )


@settings(FEW, max_examples=60)
@given(
    logits=st.lists(st.floats(-60, 60, width=32), min_size=2, max_size=6),
    scale=st.sampled_from([1e-6, 1e-4, 1e-2, 1.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_kl_is_that_of_float64(logits, scale, seed):
    clean = torch.tensor(logits)
    delta = scale * torch.randn(len(logits), generator=torch.Generator().manual_seed(seed))
    p = clean.softmax(-1)
    found = kl_from_change(p[None], (delta - p @ delta)[None], logits=clean[None])
    a = clean.double().log_softmax(-1)
    t = delta.double() - (a.exp() * delta.double()).sum()
    if t.abs().max() < 0.1:
        expected = torch.log1p((a.exp() * (t**2 / 2 + t**3 / 6 + t**4 / 24)).sum())
    else:
        expected = torch.logsumexp(a + t, -1)
    assert (found >= 0).all()
    # Where one token has all the probability, float32 cannot hold the change's mean better.
    floor = 4 * (1e-7 * float(delta.abs().max())) ** 2 + 1e-7 * float(expected > 1e-3)
    torch.testing.assert_close(found[0].double(), expected, rtol=2e-3, atol=floor)
