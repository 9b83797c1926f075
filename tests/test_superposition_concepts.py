"""Concepts in the readout: whitening, planted sets and steps, nano's own categories."""

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from mlp_interp import load, save
from mlp_interp.nano.topics import TOPICS
from mlp_interp.nano.words import CITIES, COUNTRIES, FEMALE, NAMES, PLACES
from mlp_interp.superposition import _concepts, concepts


@pytest.fixture(scope="module")
def white():
    """Three hundred directions in 24 dimensions, of which the first twenty have one in common."""
    x = (
        torch.randn(24, 300, generator=torch.Generator().manual_seed(0))
        * torch.arange(1, 25)[:, None]
    )
    x[:, :20] += 40 * torch.randn(24, 1, generator=torch.Generator().manual_seed(1))
    x = x - x.mean(1, keepdim=True)
    return _concepts.whitened(x)


def test_white_is_white(white):
    np.testing.assert_allclose(white.T @ white / 300, np.eye(24), atol=1e-9)
    turned = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(2))).Q
    again = _concepts.whitened((white @ turned.double()).T * 3)
    np.testing.assert_allclose(again @ again.T, white @ white.T, atol=1e-8)
    flat = _concepts.whitened(torch.cat([white.T, white.T[:1]]))  # one direction comes twice
    np.testing.assert_allclose((flat @ flat.T), white @ white.T, atol=1e-8)


def test_a_planted_set_stands_out_by_hand(white):
    tokens = tuple(range(10))
    share = []
    for n in tokens:
        direction = white[[t for t in tokens if t != n]].mean(0)
        others = white[10:] @ direction
        share.append(float((others < white[n] @ direction).double().mean()))
    found = _concepts._auroc(white, tokens)
    np.testing.assert_allclose(found, np.mean(share), atol=1e-9)
    assert found > 0.95
    assert abs(_concepts._auroc(white, tuple(range(100, 130))) - 0.5) < 0.2


def test_random_children_are_at_right_angles_too(white):
    """Which is why steps have controls."""
    draws = np.random.default_rng(0)
    random = _concepts._random(np.arange(20), 10, 50, draws)
    steps = [_concepts._step(white, range(20), tokens) for tokens in random]
    assert abs(np.mean(steps)) < 0.1


def test_countries_of_nano_are_a_concept(nano, tmp_path):
    names = [f" {name}" for name in COUNTRIES]
    known = [n for n in names if len(nano.tokenizer.encode(n, add_special_tokens=False)) == 1]
    sets = {"countries": known, "some": known[:8]}
    found = concepts(nano, sets, parents={"some": "countries"}, controls=10)
    assert (found["auroc"] > 0.9).all()
    assert (found["auroc_control"] < 0.75).all()
    np.testing.assert_allclose(np.diag(found["cosine"]), 1)
    assert abs(float(found["step_cosine"][0])) < 0.5
    kept: Any = load(save(found, tmp_path / "concepts.nc"))
    assert kept.identical(found)


def test_kinds_of_words_are_concepts_of_nano_and_topics_hardly(nano):
    """Topics put words beside each other in texts, kinds of words put them in each other's place.

    The words of a topic are those that its sentences have and no other topic's.
    """
    one = lambda word: len(nano.tokenizer.encode(word, add_special_tokens=False)) == 1
    of = {t: {f" {w}" for s in v for w in re.findall(r"[a-z]{4,}", s)} for t, v in TOPICS.items()}
    many = Counter(word for found in of.values() for word in found)
    topics = {t: sorted(w for w in ws if many[w] == 1 and one(w)) for t, ws in of.items()}
    kinds = {"names": NAMES, "women": FEMALE, "places": PLACES, "cities": CITIES}
    sets = {name: [f" {word}" for word in words] for name, words in kinds.items()} | topics
    found = concepts(nano, sets, parents={"women": "names"}, controls=10)
    beyond = found["auroc"] - found["auroc_control"]
    assert (found["auroc"].sel(concept=list(kinds)) > 0.99).all()
    assert (beyond > 3 * found["auroc_control_sd"]).sel(concept=list(kinds)).all()
    longer = (found["norm"] - found["norm_control"]) / found["norm_control_sd"]
    assert (longer.sel(concept=list(kinds)) > 8).all()
    # All topics together are beyond random sets, each by itself need not be.
    of_topics = beyond.sel(concept=list(topics))
    error = found["auroc_control_sd"].sel(concept=list(topics)).mean() / len(topics) ** 0.5
    assert of_topics.mean() > 3 * error
    assert of_topics.mean() < 0.35
    assert longer.sel(concept=list(topics)).max() < longer.sel(concept=list(kinds)).min()
    # A random half of the names is at as right an angle to all of them as women are.
    step = (found["step_cosine"] - found["step_cosine_control"]) / found["step_cosine_control_sd"]
    assert abs(step.item()) < 3


def test_what_concepts_refuse(nano):
    for options, text in [
        ({"sets": {}}, "sets is empty"),
        ({"sets": {"a": [1, 2]}}, "three or more"),
        ({"sets": {"a": [1, 2, 2]}}, "each once"),
        ({"sets": {"a": [1, 2, 9999]}}, "ids from 0"),
        ({"sets": {"a": [1, 2, 3]}, "parents": {"a": "b"}}, "all tokens of the first"),
        ({"sets": {"a": [1, 2, 3]}, "controls": 1}, "controls=1"),
        ({"sets": {"a": [" qwxz", 2, 3]}}, "qwxz"),
    ]:
        with pytest.raises(ValueError, match=text):
            concepts(nano, **options)
