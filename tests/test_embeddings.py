"""What tokens begin their streams with: rows of W_E, times a number in some families."""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES
from random_models import tiny_tokenizer

import mlp_interp as mi
from mlp_interp import neurons
from mlp_interp.models import Weights, forward_of
from mlp_interp.models.tokens import tokens_in

pytestmark = pytest.mark.filterwarnings("ignore")
COORDINATE = neurons.AscentOptions(method="coordinate", steps=3)
TOKENS = torch.tensor([[0, 7, 19, 23], [0, 5, 3, 90]])


def loaded(family):
    (architecture,) = (a for a in ARCHITECTURES if a.family == family)
    return mi.load_model(architecture.source(), tokenizer=tiny_tokenizer(), backend="bridge")


@pytest.fixture(scope="module", params=["Gemma", "GPTNeoX"])
def model(request):
    return loaded(request.param)


def test_they_are_what_the_first_block_reads(model):
    _, cache = model.run_with_cache(TOKENS)
    embeddings = forward_of(model).embeddings()
    torch.testing.assert_close(embeddings[TOKENS], cache["blocks.0.hook_resid_pre"].detach())


@pytest.mark.parametrize("family", ["Gemma", "GPTNeoX"])
def test_tokens_and_their_losses_are_read_off_a_bare_cache(family):
    model = loaded(family)
    _, cache = model.run_with_cache(TOKENS)
    assert torch.equal(tokens_in(Weights.of(model), cache), TOKENS)
    bare = {name: cache[name] for name in cache if name != "tokens"}
    found = mi.ablate_direct(model, bare, ["0.mlp"])
    known = mi.ablate_direct(model, mi.cache_for(model, TOKENS), ["0.mlp"])
    np.testing.assert_allclose(found.delta_loss, known.delta_loss, atol=1e-5)


def test_a_free_token_drives_a_neuron_as_the_model_says(model):
    best = neurons.maximize(model, "L1N3", length=1, prompt=TOKENS[0], ascent=COORDINATE)
    (token,) = best["token_id"].isel(restart=0).values.ravel().tolist()
    _, cache = model.run_with_cache(torch.tensor([[*TOKENS[0].tolist(), token]]))
    own = float(cache["blocks.1.mlp.hook_post"][0, -1, 3])
    assert best["activation_of_tokens"].isel(restart=0).item() == pytest.approx(own, abs=1e-5)


def test_without_temperature_embeddings_are_those_of_greedy_tokens(model):
    found = neurons.expected_embedding_generate(model, TOKENS[0], max_new_tokens=4, temperature=0.0)
    row = TOKENS[0].tolist()
    with torch.no_grad():
        for _ in range(4):
            row.append(int(model(torch.tensor([row]))[0, -1].argmax()))
    assert found["token_id"].values.tolist() == row[4:]


def test_other_embeddings_are_refused():
    with pytest.raises(ValueError, match="begins its stream with other vectors than rows of W_E"):
        neurons.maximize(loaded("Bloom"), "L1N3", length=1, ascent=COORDINATE)


def test_where_tokens_cannot_be_read_losses_are_left_out():
    model = loaded("Bloom")
    _, cache = model.run_with_cache(TOKENS)
    found = mi.ablate_direct(model, {**cache}, ["0.mlp"])
    known = mi.ablate_direct(model, mi.cache_for(model, TOKENS), ["0.mlp"])
    np.testing.assert_allclose(found.kl, known.kl, atol=1e-5)
    assert "delta_loss" not in found or bool(found.delta_loss.isnull().all())
