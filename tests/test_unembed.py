"""The folded readout gives the model's own logits, whatever the model and its processing."""

import pytest
import reference
import torch
from random_models import HAS_HOOKED, build, hooked

from mlp_interp import steer
from mlp_interp.edits import Edit
from mlp_interp.metrics import logit_difference
from mlp_interp.models import Weights
from mlp_interp.models import unembed as unembed_module
from mlp_interp.models.unembed import Unembed, directions


def test_logits_are_the_models(model, tokens):
    unembed = Unembed.of(model)
    logits, cache = model.run_with_cache(tokens)
    found = unembed.logits(reference.final_stream(model, cache))
    torch.testing.assert_close(found, logits.detach(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", ["parallel", "gpt2"])
@pytest.mark.parametrize("processing", ["folded", "raw"])
def test_logits_are_the_models_in_float64(kind, architecture, processing, backend, tokens):
    model = kind(architecture, backend, processing, torch.float64)
    logits, cache = model.run_with_cache(tokens)
    found = Unembed.of(model).logits(reference.final_stream(model, cache))
    torch.testing.assert_close(found, logits.detach(), atol=1e-10, rtol=0)


def test_logits_of_any_stream_large_or_tiny(model):
    """The epsilon matters where the stream is small; random models do not show that by chance."""
    unembed = Unembed.of(model)
    for size in (1e-4, 1e-2, 1.0, 1e3):
        stream = size * torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
        expected = reference.logits(model, stream)
        torch.testing.assert_close(unembed.logits(stream), expected, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(unembed.scale(stream), reference.scale(model, stream))


def test_normalize_scale_weight_and_bias_make_up_the_logits(model):
    unembed = Unembed.of(model)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    normalized = reference.kept(model, x) / unembed.scale(x)
    torch.testing.assert_close(unembed.normalize(x), normalized, atol=1e-5, rtol=1e-5)
    # W' holds nothing that the norm takes out, so that components need no centring of their own.
    torch.testing.assert_close(unembed.norm.keep(unembed.weight.T), unembed.weight.T)
    by_hand = x @ unembed.weight / unembed.scale(x) + unembed.bias
    torch.testing.assert_close(unembed.logits(x), by_hand, atol=1e-4, rtol=1e-4)


def test_directions_are_columns_of_the_weight(model):
    unembed = Unembed.of(model)
    ids = torch.tensor([[3, 299], [0, 3]])
    directions = unembed.directions(ids)
    assert directions.shape == (2, 2, 32)
    assert torch.equal(directions[0, 1], unembed.weight[:, 299])
    assert torch.equal(directions[1, 0], unembed.weight[:, 0])


def test_folded_and_raw_weights_give_the_same_log_probabilities(kind, backend, tokens):
    found = []
    for processing in ("folded", "raw"):
        model = kind("parallel", backend, processing)
        _, cache = model.run_with_cache(tokens)
        logits = Unembed.of(model).logits(reference.final_stream(model, cache))
        found.append(logits.log_softmax(-1).detach())
    torch.testing.assert_close(*found, atol=2e-4, rtol=0)


@pytest.mark.parametrize("ids", [[300], [-1], [[0, 5], [1000, 2]]])
def test_ids_outside_the_vocabulary_are_refused(kind, ids):
    with pytest.raises(ValueError, match=r"ids outside the vocabulary; wanted 0 to 299"):
        Unembed.of(kind()).directions(torch.tensor(ids))


def test_what_is_no_model_is_refused():
    with pytest.raises(ValueError, match="Linear has no cfg, blocks, W_U"):
        Unembed.of(torch.nn.Linear(2, 2, device="meta"))


def test_nothing_given_can_reach_the_parameters(kind):
    unembed = Unembed.of(kind())
    assert not unembed.weight.requires_grad
    assert not unembed.bias.requires_grad


@pytest.mark.skipif(not HAS_HOOKED, reason="the installed library has no HookedTransformer")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cap", [1.0, 1e4])
def test_a_cap_is_part_of_the_readout(cap):
    """Also where no logit is near it."""
    model = hooked(output_logits_soft_cap=cap)
    tokens = torch.arange(8)[None]
    logits, cache = model.run_with_cache(tokens)
    final = cache["blocks.1.hook_resid_post"]
    torch.testing.assert_close(Unembed.of(model).logits(final), logits, atol=1e-4, rtol=0)
    read = logit_difference(torch.tensor([5]), torch.tensor([6])).reader(model, final[:, -1:])
    found = read(final[:, -1:], torch.tensor([0]))
    torch.testing.assert_close(found, logits[:, -1, 5] - logits[:, -1, 6], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["ln_final", "unembed"])
def test_a_readout_that_somebody_changed_is_refused(name, backend):
    model = build("parallel", backend, "raw")
    Unembed.of(model)
    handle = getattr(model, name).register_forward_hook(lambda _m, _x, out: 1.5 * out)
    with pytest.raises(ValueError, match="has other logits than"):
        Unembed.of(model)
    handle.remove()
    Unembed.of(model)


def test_the_readout_is_compared_once(backend, monkeypatch):
    model, asked = build("gpt2", backend, "folded"), []
    compare = unembed_module.sum_error
    monkeypatch.setattr(unembed_module, "sum_error", lambda *of: asked.append(1) or compare(*of))
    for _ in range(3):
        Unembed.of(model)
        directions(Weights.of(model), torch.tensor([3]))
    assert len(asked) == 1


def test_the_readout_is_compared_without_the_edits_that_are_held(backend):
    """They are of other tokens, and count what they did to those alone."""
    model = build("parallel", backend, "folded")
    edits = [Edit.set("2.mlp", 0.0, positions=40), Edit.add("1.mlp", torch.ones(4, 41, 32))]
    with steer(model, edits) as steering:
        Unembed.of(model)
        assert [fired.times for fired in steering.fired] == [0, 0]
        model(torch.zeros(4, 41, dtype=torch.long))
        assert [fired.times for fired in steering.fired] == [1, 1]
