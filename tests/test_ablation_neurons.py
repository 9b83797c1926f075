"""Total effects of single neurons, many passes together, against a pass with a hook for each."""

import numpy as np
import pytest
import reference
import torch
from random_models import ARCHITECTURES, BACKENDS, PROCESSINGS, pairwise
from test_ablation import WAYS, donors

from mlp_interp import ablate_direct, ablate_total
from mlp_interp.ablation import total_neurons
from mlp_interp.models import HookForward, Weights
from mlp_interp.residual import cache_for

NEURONS = ["L1N3", "L0N5", "L1N0", "L1N7", "L2N7", "L0N2"]
"""Out of order, of the first layer and the last, neighbours and not."""


@pytest.fixture
def tokens(tokens):
    """With a BOS between the texts of a row."""
    tokens[1, 4] = 0
    return tokens


@pytest.mark.parametrize(
    ("way", "architecture", "backend", "processing"),
    pairwise([*WAYS], ARCHITECTURES, BACKENDS, PROCESSINGS),
)
def test_each_neuron_is_what_a_hook_gives(kind, way, architecture, backend, processing, tokens):
    model = kind(architecture, backend, processing, torch.float64)
    baseline, first = WAYS[way]
    atol = 1e-9 if backend == "hooked" else 1e-6  # the bridge's norms may be in single precision
    cache, counted = reference.full_cache(model, tokens), reference.counted(tokens, first)
    clean = reference.hooked_logits(model, tokens, {})
    found = ablate_total(model, tokens, NEURONS, first=first, baseline=baseline, seed=2)
    assert list(found.component.values) == NEURONS
    for name in NEURONS:
        hooks = reference.ablating_hooks(model, cache, [name], counted, baseline, donors(4, seed=2))
        changed = reference.hooked_logits(model, tokens, hooks)
        for measure, values in reference.effects(clean, changed, tokens).items():
            np.testing.assert_allclose(
                found.sel(component=name)[measure], values, rtol=1e-5, atol=atol, err_msg=measure
            )


def test_a_few_at_a_time_and_through_hooks_give_the_same(kind, tokens, monkeypatch):
    model = kind("parallel", dtype=torch.float64)
    whole = ablate_total(model, tokens, NEURONS, baseline="mean")
    monkeypatch.setattr(total_neurons, "_TOGETHER", 2 * tokens.numel())
    monkeypatch.setattr(total_neurons, "_HELD", dict.fromkeys((False, True), 1))
    pieces = ablate_total(model, tokens, NEURONS, baseline="mean")
    monkeypatch.setattr("mlp_interp.runs.runner.forward_of", lambda m: HookForward(Weights.of(m)))
    hooks = ablate_total(model, tokens, NEURONS, baseline="mean")
    assert [x.engine for x in (whole, pieces, hooks)] == ["lean", "lean", "hooks"]
    for other in (pieces, hooks):
        np.testing.assert_allclose(other.kl, whole.kl, rtol=1e-6, atol=1e-14)


def test_second_order_in_total(nano, monkeypatch):
    """Within its tolerance, of padded texts too; in the last layer total effects are direct."""
    tokens = torch.randint(1, nano.cfg.d_vocab, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    names = [f"L{layer}N{n}" for layer in (1, 3) for n in range(12)]
    exact = ablate_total(nano, tokens, names, attention_mask=mask)
    assert exact.kl.isnull().sum() == 2 * len(names)
    calls, real = [], total_neurons.estimated
    monkeypatch.setattr(total_neurons, "estimated", lambda *args: calls.append(args) or real(*args))
    for tolerance in (0.1, 1e-3, 0.0):
        found = ablate_total(
            nano, tokens, names, attention_mask=mask, method="second_order", tolerance=tolerance
        )
        np.testing.assert_allclose(found.kl, exact.kl, rtol=max(tolerance, 1e-5), atol=1e-12)
        np.testing.assert_allclose(found.delta_loss, exact.delta_loss, rtol=1e-2, atol=1e-5)
        np.testing.assert_array_equal(found.top1_changed, exact.top1_changed)
    assert len(calls) == 3
    assert found.attrs["exact"] == 0
    assert "second order" in found.attrs["approximation"]
    cache = cache_for(nano, tokens, attention_mask=mask, level="neuron")
    direct = ablate_direct(nano, cache, names[12:])
    np.testing.assert_allclose(exact.kl[12:], direct.kl, rtol=1e-3, atol=1e-11)


def test_second_order_is_of_single_neurons(kind, tokens):
    with pytest.raises(ValueError, match="method='second_order' wants groups of single neurons"):
        ablate_total(kind(), tokens, ["0.mlp"], method="second_order")
