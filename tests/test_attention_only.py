"""Models without MLPs: as those whose MLPs are zeros, and refused where MLPs are asked about."""

from functools import partial

import numpy as np
import pytest
import torch
from contrasts import contrast_of
from random_models import HAS_HOOKED, hooked

import mlp_interp as mi
from mlp_interp.corpus.reducers import Fraction
from mlp_interp.edits import Edit
from mlp_interp.models import Weights, check_model, forward_of, portable
from mlp_interp.models.heads import Heads
from mlp_interp.models.token_streams import streams_of
from mlp_interp.residual import decompose

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not HAS_HOOKED, reason="the library has no HookedTransformer"),
]
CONTRAST = contrast_of()
TOKENS = CONTRAST.clean_tokens


@pytest.fixture(scope="module", params=["LN", None], ids=["LayerNorm", "no norm"])
def models(request):
    """A model of attention alone, and one with the same attention and MLPs of zeros."""
    alone = hooked(attn_only=True, normalization_type=request.param)
    other = hooked(d_mlp=5, normalization_type=request.param)
    for name, value in other.named_parameters():
        given = dict(alone.named_parameters()).get(name)
        value.data.copy_(torch.zeros_like(value) if given is None else given)
    return alone, other


@torch.no_grad()
def test_levels_are_heads_and_sum(models):
    alone, _ = models
    assert forward_of(alone).engine == "lean"
    assert bool(check_model(alone).ok)
    logits, cache = alone.run_with_cache(TOKENS)
    for level in ("component", "head", "neuron"):
        found = decompose(alone, cache, level=level)
        assert found.error() < 1e-5
        assert not any(label.endswith((".mlp", ".b_out")) for label in found.labels)
    shares = mi.attribute_logits(alone, cache, 5, 6, level="head", positions=-1)
    gap = logits[:, -1, 5] - logits[:, -1, 6]
    np.testing.assert_allclose(shares.sum("component").isel(pos=0), gap, atol=1e-4)
    kept = mi.run(alone, TOKENS, sites="all")
    assert "1.attn" in kept
    assert "1.mlp" not in kept
    again = mi.Runner(portable(forward_of(alone))).run(TOKENS)
    torch.testing.assert_close(again.final, kept.final)


ANALYSES = {
    "total": lambda m: mi.ablate_total(m, TOKENS, ["0.attn", "L1H2"]).kl,
    "importance": lambda m: mi.subupdate_importance(m, TOKENS).kl_total.sel(component="0.attn"),
    "ranges": lambda m: mi.ablate_ranges(m, TOKENS, kind="attn").delta_loss,
    "norms": lambda m: mi.norms(m, TOKENS).resid_norm,
    "patch": lambda m: mi.patch(m, CONTRAST, sites=["resid_pre", "attn_out"]).raw,
    "hooks": lambda m: mi.patch(m, CONTRAST, sites=["z", "v"], engine="hooks").raw,
    "trace": lambda m: (
        mi.causal_trace(
            m, "hello world the cat", "world", samples=2, sites=["resid_post", "attn_out"]
        ).restored
    ),
    "gradients": lambda m: mi.attribution_patch(m, CONTRAST).z,
    "edges": lambda m: mi.edge_attribution(m, CONTRAST).estimate,
    "faithful": lambda m: (
        mi.faithfulness(
            m, CONTRAST, edges=mi.edge_attribution(m, CONTRAST), fractions=[0, 0.2, 1]
        ).metric
    ),
    "paths": lambda m: (
        mi.path_patch(
            m, CONTRAST, senders=["embed", "L0H1"], receivers=["L1H2.q"], freeze="attention"
        ).raw
    ),
    "hypothesis": lambda m: (
        mi.evaluate_hypothesis(m, CONTRAST, nodes=["L0H1", "L1H2"], draws=2).circuit
    ),
    "path": lambda m: (
        mi.evaluate_hypothesis(
            m, CONTRAST, nodes=[["embed", "L0H1", "L1H2.q", "logits"]], draws=0
        ).circuit
    ),
    "text": lambda m: mi.Runner.of(m).generate(TOKENS, max_new_tokens=3).tokens,
}


@pytest.mark.parametrize("name", ANALYSES)
def test_all_is_as_with_mlps_of_zeros(models, name):
    found, expected = (ANALYSES[name](model) for model in models)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_levels_without_mlps(models):
    alone, _ = models
    senders = mi.path_patch(alone, CONTRAST, senders="component", receivers="logits").sender
    assert [*senders.values] == ["embed", "0.attn", "1.attn"]
    assert [*mi.ablate_total(alone, TOKENS, "component").component.values] == ["0.attn", "1.attn"]


@torch.no_grad()
def test_what_asks_about_mlps_is_refused(models):
    alone, _ = models
    _, cache = alone.run_with_cache(TOKENS)
    neurons = mi.neurons
    for call in (
        lambda: mi.ablate_total(alone, TOKENS, ["0.mlp"]),
        lambda: mi.ablate_total(alone, TOKENS, "neuron"),
        lambda: mi.ablate_direct(alone, cache, ["L0N1"]),
        lambda: mi.ablate_ranges(alone, TOKENS),
        lambda: mi.patch(alone, CONTRAST, sites=["mlp_out"]),
        lambda: mi.attribution_patch(alone, CONTRAST, sites=["post"]),
        lambda: mi.edge_attribution(alone, CONTRAST, engine="hooks"),
        lambda: mi.path_patch(alone, CONTRAST, senders=["0.mlp"], receivers="logits"),
        lambda: mi.run(alone, TOKENS, edits=Edit.set("1.mlp", 0.0)),
        lambda: mi.run(alone, TOKENS, sites=["1.post"]),
        lambda: mi.sweep(alone, TOKENS, [Fraction()]),
        lambda: neurons.maximize(alone, "L1N3"),
        lambda: neurons.neuron_weights(alone),
        lambda: neurons.activity(alone, TOKENS),
        lambda: neurons.update_shares(alone, TOKENS),
        lambda: neurons.nearest_neurons(alone, "L1N3"),
        lambda: neurons.neuron_page(alone, "L1N3", TOKENS),
        partial(neurons.promoted_tokens, alone, "L1N3"),
    ):
        with pytest.raises(ValueError, match="it is attention-only; wanted what attention"):
            call()


def test_streams_of_tokens_are_exact():
    alone = hooked(attn_only=True, positional_embedding_type="rotary", rotary_dim=4)
    streams = streams_of(alone, "extended")
    assert streams.exact == {0: True, 1: True, 2: False}
    assert "MLP" not in streams.approximation
    _, cache = alone.run_with_cache(TOKENS)
    weights = Weights.of(alone)
    z, keep = cache["z", 0] - Heads.of(weights, 0).b_v, weights.norm.keep
    varying = torch.einsum("bphd,hdm->bpm", z, weights.block(0).W_O)
    expected = keep(cache["resid_post", 0] - varying)
    torch.testing.assert_close(keep(streams.stream(1)[TOKENS]), expected, atol=1e-4, rtol=1e-4)
