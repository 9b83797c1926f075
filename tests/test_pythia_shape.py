"""A random model of Pythia-70m's shape, from a Hugging Face directory, through every function."""

import resource

import numpy as np
import pytest
import torch
from random_models import random_neox, tiny_tokenizer

import mlp_interp as mi

pytestmark = pytest.mark.slow

SENTENCES = ["the cat sat on the mat; hello world " * 12] * 8


@pytest.fixture(scope="module")
def pythia(tmp_path_factory):
    path = tmp_path_factory.mktemp("pythia-70m-random")
    random_neox(
        layers=6, d_model=512, heads=8, d_mlp=2048, vocabulary=50_304, context=2048, spread=0.02
    ).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return mi.load_model(path)


@pytest.fixture(scope="module")
def corpus(pythia):
    return mi.load_corpus(SENTENCES, pythia, sequences=4, length=32)


def test_loading_gives_what_the_weights_say(pythia):
    check = mi.check_model(pythia)
    assert bool(check.ok)
    assert float(check.log_prob_error) < 1e-4


@pytest.mark.parametrize("level", ["component", "head", "neuron"])
def test_decomposition_and_attribution_add_up(pythia, corpus, level):
    tokens = corpus.tokens[:2]
    cache = mi.cache_for(pythia, tokens, level=level)
    assert mi.decompose(pythia, cache, level=level).error() < 1e-4
    shares = mi.attribute_logits(pythia, cache, [5, 6], [7, 8], level=level)
    logits = pythia(tokens)[:, -1].detach()
    wanted = logits[[0, 1], [5, 6]] - logits[[0, 1], [7, 8]]
    np.testing.assert_allclose(shares.sum("component").values[:, 0], wanted, atol=1e-4)


def test_sources_add_up_to_heads(pythia, corpus):
    _, cache = pythia.run_with_cache(corpus.tokens[:2])
    sources = mi.attribute_sources(pythia, cache, 5, 6)
    heads = mi.attribute_logits(pythia, cache, 5, 6, level="head")
    heads = heads.sel(component=sources.component.values)[:, 0]
    np.testing.assert_allclose(sources.sum("source").values, heads.values, atol=1e-5)


def test_importance_splits_and_the_last_layer_is_direct(pythia, corpus):
    result = mi.subupdate_importance(pythia, corpus, sweep=mi.SweepOptions(batch_size=2))
    np.testing.assert_allclose(result.kl_direct + result.kl_later, result.kl_total, rtol=1e-5)
    last = result.sel(component="5.mlp")
    np.testing.assert_allclose(last.kl_total, last.kl_direct, rtol=1e-3)


def test_ranges_and_norms(pythia, corpus):
    ranges = mi.ablate_ranges(pythia, corpus[:2])
    assert int(ranges.perplexity.notnull().sum()) == 21
    assert bool((mi.norms(pythia, corpus).norm > 0).all())


def test_every_neuron_of_every_layer(pythia, corpus):
    """12,288 neurons at one position: the second-order form is within its tolerance of exact."""
    cache = mi.cache_for(pythia, corpus.tokens[:1], level="neuron")
    fast = mi.ablate_direct(pythia, cache, "neuron", positions=-1, method="second_order")
    assert fast.sizes["component"] == 6 * 2048
    some = [str(label) for label in fast.component.values[::97]]
    exact = mi.ablate_direct(pythia, cache, some, positions=-1)
    np.testing.assert_allclose(fast.kl.sel(component=some), exact.kl, rtol=1e-2, atol=1e-12)


def test_memory_does_not_grow_with_vocabulary_times_components(pythia, corpus):
    """All logits of all ablations would be 12 x 4 x 32 x 50,304 numbers, 309 MB a copy."""
    cache = mi.cache_for(pythia, corpus.tokens)
    mi.ablate_direct(pythia, cache, ["0.mlp"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mi.ablate_direct(pythia, cache)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    assert grown < 150


def test_nothing_is_left_on_the_model(pythia):
    assert not torch.is_grad_enabled() or all(p.grad is None for p in pythia.parameters())
