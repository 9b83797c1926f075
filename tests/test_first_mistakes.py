"""What a newcomer gets wrong first is answered with the call to make, or does what was meant."""

import numpy as np
import pytest
import reference
import torch
import xarray as xr
from contrasts import contrast_of
from random_models import build, random_neox, unchecked
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import mlp_interp
from mlp_interp import (
    Edit,
    attribute_logits,
    attribution_patch,
    edge_attribution,
    load_model,
    patch,
    path_patch,
    run,
)
from mlp_interp.ablation import ablate_direct
from mlp_interp.models.options import check_choice
from mlp_interp.prompts import Contrast
from mlp_interp.prompts.texts import texts_of
from mlp_interp.residual import cache_for
from mlp_interp.sites import Site


@pytest.mark.parametrize(
    ("name", "near"),
    [("patchs", r" \(did you mean 'patch'\?\)"), ("zzzz", ""), ("__wrapped__", "")],
)
def test_a_misspelt_name_gets_the_nearest(name, near):
    with pytest.raises(AttributeError, match=f"{name}'?{near}$"):
        getattr(mlp_interp, name)


def word_tokenizer():
    """One token a word; what it does not know is ``<unk>``."""
    words = ["<unk>", "<s>", "the", "cat", "sat", "ran"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")


def test_words_that_the_tokenizer_does_not_know_are_named():
    model = load_model(random_neox(layers=1), tokenizer=word_tokenizer())
    with pytest.warns(UserWarning, match="does not know 'dog', 'flew', which the model reads as"):
        rows = texts_of(model, ["the cat sat", "the dog flew dog"], what="prompts").rows
    assert rows == ((1, 2, 3, 4), (1, 2, 0, 0, 0))
    with pytest.warns(UserWarning, match="does not know 'dog', which"):
        Contrast.of(model, ["the cat"], ["the dog"], "sat", "ran")
    assert texts_of(model, ["the <unk>"], what="prompts").rows == ((1, 2, 0),)  # as it was meant


def test_losses_of_a_bare_cache_are_read_off_its_embeddings_or_left_out(kind, backend, tokens):
    model = kind("parallel", backend)
    names = ["blocks.0.hook_mlp_out", "blocks.2.hook_resid_post"]
    _, bare = model.run_with_cache(tokens, names_filter=names)
    _, embedded = model.run_with_cache(tokens, names_filter=[*names, "hook_embed"])
    told = ablate_direct(model, embedded, ["0.mlp"], first=0)
    with torch.no_grad():
        final = bare["blocks.2.hook_resid_post"]
        clean = model.unembed(model.ln_final(final))
        changed = model.unembed(model.ln_final(final - bare["blocks.0.hook_mlp_out"]))
    expected = reference.effects(clean, changed, tokens)
    np.testing.assert_allclose(told.delta_loss[0], expected["delta_loss"], atol=1e-4)
    assert not told.delta_loss_mean.isnull().any()
    without = ablate_direct(model, bare, ["0.mlp"], first=0)
    np.testing.assert_allclose(without.kl[0], expected["kl"], atol=1e-4)
    names = " ".join(map(str, without.variables))
    assert "loss" not in names
    assert "perplexity" not in names


def test_half_precision_is_said_to_be_too_coarse(backend, tokens):
    model = build("parallel", backend, "folded", torch.bfloat16)
    cache = cache_for(model, tokens)
    with pytest.warns(UserWarning, match=r"bfloat16.*load it with dtype=torch\.float32"):
        attribute_logits(model, cache, 5)


def test_one_prompts_values_go_into_many_only_where_that_is_said(kind, backend, tokens):
    model = kind("parallel", backend)
    other, many = run(model, tokens[:1]), run(model, tokens)
    for site, positions in (("1.mlp", None), ("1.mlp", [2]), ("L1H2", None), ("1.resid_pre", -1)):
        edit = Edit.replace(site, other, positions=positions)
        with pytest.raises(ValueError, match="for_all=True puts those of one prompt into all"):
            many.edited([edit])
        meant = Edit.replace(site, other, positions=positions, for_all=True)
        rows = [run(model, tokens[n : n + 1]).edited(edit).final for n in range(4)]
        torch.testing.assert_close(many.edited(meant).final, torch.cat(rows), atol=1e-5, rtol=1e-4)
    short = run(model, tokens[:, :1])
    with pytest.raises(ValueError, match=r"values of shape \(4, 1, 32\) at '1.mlp', from another"):
        many.edited(Edit.replace("1.mlp", short))


def test_one_edit_is_as_good_as_a_list(kind, tokens):
    model = kind()
    edit = Edit.set("1.mlp", 0.0)
    clean, listed = run(model, tokens), run(model, tokens, edits=[edit])
    for found in (run(model, tokens, edits=edit), clean.edited(edit)):
        torch.testing.assert_close(found.final, listed.final)
        assert found.fired == listed.fired
    with pytest.raises(ValueError, match=r"edits\[0\]='1.mlp'; wanted an Edit"):
        unchecked(clean.edited.__func__)(clean, ["1.mlp"])


def test_what_is_no_contrast_and_what_is_no_metric(kind, tokens):
    model, contrast = kind(), contrast_of()
    for analysis in (patch, path_patch, attribution_patch, edge_attribution):
        with pytest.raises(ValueError, match=r"contrasts?=Tensor; wanted the pairs of a Contrast"):
            unchecked(analysis)(model, tokens)
    with pytest.raises(ValueError, match=r"wanted one number an item"):
        patch(model, contrast, lambda logits: logits.mean())
    with pytest.raises(ValueError, match=r"function of 0 arguments; wanted one of the logits"):
        patch(model, contrast, lambda: 0.0)


def test_unknown_words_are_answered_with_the_nearest(kind, tokens):
    model, contrast = kind(), contrast_of()
    for near, call in {
        "'mean'": lambda: unchecked(mlp_interp.ablate_total)(model, tokens, baseline="maen"),
        "'logit_difference'": lambda: patch(model, contrast, "logit_diference"),
        "'spectral'": lambda: unchecked(mlp_interp.heads.compose)(model, measure="spectrl"),
    }.items():
        with pytest.raises(ValueError, match=rf"; wanted .* \(did you mean {near}\?\)$"):
            call()
    with pytest.raises(ValueError, match=r"word='x'; wanted 'chess'$"):
        check_choice("word", "x", ["chess"])


def test_sites_name_what_labels_name(kind):
    weights, model = mlp_interp.weights, kind()
    head, queries, neuron = Site("z", 0, head=1), Site("q", 1, head=0), Site("post", 0, neuron=3)
    found = weights.subspaces(model, head, [queries])
    xr.testing.assert_identical(found, weights.subspaces(model, "L0H1", ["L1H0.q"]))
    found = weights.virtual_weights(model, neuron, "L1", best=5)
    xr.testing.assert_identical(found, weights.virtual_weights(model, "L0N3", "L1", best=5))


def test_tokens_below_0_are_no_tokens(kind):
    with pytest.raises(ValueError, match=r"tokens\[1\]=-1; wanted a token id from 0 to 299"):
        mlp_interp.reach.reachable(kind(), [5, -1])


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ("mlp", r"sites=.*'mlp'.*\(did you mean 'mlp_out'\?\)"),
        ("attn", r"sites=.*'attn'.*\(did you mean 'attn_out'\?\)"),
        ("1.resid_mid", "parallel blocks have no resid_mid"),
        ("resid_mid", "parallel blocks have no resid_mid"),
    ],
)
def test_unknown_sites_are_answered_with_the_next(kind, tokens, sites, message):
    with pytest.raises(ValueError, match=message):
        run(kind(), tokens, sites=sites)
    with pytest.raises(ValueError, match=message):
        patch(kind(), contrast_of(), sites=sites)
