"""A neuron's page: every part against a plain computation, and what it refuses."""

import re

import numpy as np
import pytest
import torch
from random_models import unchecked

import mlp_interp as mi
from mlp_interp import Site
from mlp_interp.neurons import nearest_neurons, neuron_page, neuron_weights, promoted_tokens

LAYER, NEURON = 1, 7


def corpus_for(model):
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(1, 250, (6, 12), generator=generator)
    tokens[:, 0] = 0
    return mi.Corpus(tokens, tokenizer=model.tokenizer)


def page_of(model, checkpoint=None, **options):
    sweep = mi.SweepOptions(batch_size=2, checkpoint=checkpoint)
    wanted = {"k": 3, "examples": 2, "before": 3, "after": 2, "ablate": 4, "sweep": sweep}
    return neuron_page(model, (LAYER, NEURON), corpus_for(model), **{**wanted, **options})


def plainly(model, tokens, value=None):
    """Log-probabilities, pre- and post-activation and final stream, by the library's hooks."""
    seen = {}

    def edit(post, hook):
        seen["post"] = post[..., NEURON].clone()
        if value is None:
            return post
        post = post.clone()
        post[:, 1:, NEURON] = value
        return post

    def keep(name):
        return lambda x, hook: seen.__setitem__(name, x.clone())

    hooks = [
        (Site("post", LAYER).hook_name, edit),
        (Site("pre", LAYER).hook_name, keep("pre")),
        (Site("resid_post", model.cfg.n_layers - 1).hook_name, keep("final")),
    ]
    with torch.no_grad():
        logits = model.run_with_hooks(tokens, fwd_hooks=hooks, return_type="logits")
    return logits.double().log_softmax(-1), seen["pre"][..., NEURON], seen["post"], seen["final"]


def test_activity_is_that_of_all_activations(model):
    page, tokens = page_of(model), corpus_for(model).tokens
    _, pre, post, _ = plainly(model, tokens)
    pre, post = pre[:, 1:], post[:, 1:]
    each = (pre > 0).double().mean(1)
    np.testing.assert_allclose(page["fraction"], each.mean(), rtol=1e-6)
    np.testing.assert_allclose(page["fraction_se"], each.std() / 6**0.5, rtol=1e-6)
    for i, x in enumerate((pre, post)):
        here = page.isel(site=i)
        np.testing.assert_allclose(here["mean"], x.mean(), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(here["std"], x.std(), rtol=1e-4)
        np.testing.assert_allclose(here["greatest"], x.max(), rtol=1e-4)
        low, high = page["bin_low"].values, page["bin_high"].values
        counts = [int(((x >= a) & (x < b)).sum()) for a, b in zip(low, high, strict=True)]
        assert abs(here["histogram"].values - counts).sum() <= 2  # the edge of a bin
        assert int(here["histogram"].sum()) == x.numel()
    assert page.attrs["positions"] == pre.numel()


def test_examples_are_where_they_say_and_read_as_they_are(model):
    page, corpus = page_of(model), corpus_for(model)
    _, _, post, _ = plainly(model, corpus.tokens)
    best = post[:, 1:].max(1).values.sort(descending=True).values[:3]
    np.testing.assert_allclose(page["top_activation"], best, rtol=1e-4, atol=1e-6)
    assert page["context"].values.tolist() == [-3, -2, -1, 0, 1, 2]
    strings = [corpus.token_text(n) for n in range(6)]
    shown = 0
    for prefix in ("top", "band"):
        names = ["activation", "sequence", "pos", "text", "around", "token"]
        parts = [page[f"{prefix}_{name}"].values for name in names]
        parts = [x.reshape(-1, 6) if i > 2 else x.ravel() for i, x in enumerate(parts)]
        for activation, sequence, pos, text, around, token in zip(*parts, strict=True):
            if sequence < 0:
                assert np.isnan(activation)
                assert set(text) == {""}
                continue
            shown += 1
            np.testing.assert_allclose(activation, post[sequence, pos], rtol=1e-4, atol=1e-6)
            for offset, (word, value, t) in enumerate(zip(text, around, token, strict=True), -3):
                at = pos + offset
                if 0 <= at < 12:
                    assert word == strings[sequence][at].replace("\0", "␀")
                    assert t == corpus.tokens[sequence, at]
                    np.testing.assert_allclose(value, post[sequence, at], rtol=1e-4, atol=1e-6)
                else:
                    assert word == ""
                    assert np.isnan(value)
    assert shown > 6


def test_bands_hold_every_position_once(model):
    page = page_of(model)
    _, pre, post, _ = plainly(model, corpus_for(model).tokens)
    pre, post = pre[:, 1:], post[:, 1:]
    assert int(page["band_count"].sum()) == pre.numel()
    # By the activation: a gated neuron's has a sign that its gate does not tell.
    assert int(page["band_count"][0]) == int((post <= 0).sum())
    assert model.cfg.gated_mlp or torch.equal(post <= 0, pre <= 0)
    firing = post[post > 0].numpy()
    shares = [np.mean(firing < edge) for edge in page["band_low"].values[2:]]
    width = 1 / 8 + 1.5 / len(firing)  # of a bin, and of one activation
    quantiles = np.quantile(firing, [0.5, 0.9, 0.99][: len(shares)])
    np.testing.assert_allclose(page["band_low"].values[2:], quantiles, rtol=0.3, atol=width)


def test_effects_are_those_of_taking_it_away(kind, backend):
    """In float64: total by a hook, direct by subtraction from the final stream."""
    for architecture, processing in (("parallel", "raw"), ("sequential", "folded")):
        model = kind(architecture, backend, processing, torch.float64)
        page = page_of(model)
        order = torch.randperm(6, generator=torch.Generator().manual_seed(0))[:4].sort().values
        tokens = corpus_for(model).tokens[order]
        _, _, post, _ = plainly(model, corpus_for(model).tokens)
        held = post[:, 1:].mean()
        np.testing.assert_allclose(page.attrs["held_at"], held, rtol=1e-6)
        before, pre, post, final = plainly(model, tokens)
        words = promoted_tokens(model, (LAYER, NEURON), k=3)
        value = model.blocks[LAYER].mlp.W_out[NEURON].detach()
        stream = final - (post - held)[..., None] * value
        with torch.no_grad():
            directly = model.unembed(model.ln_final(stream)).double().log_softmax(-1)
        after = {"direct": directly, "total": plainly(model, tokens, held)[0]}
        firing = pre[:, 1:] > 0
        for path, q in after.items():
            change, p = (before - q)[:, 1:], before.exp()[:, 1:]
            loss = change[:, :-1].gather(2, tokens[:, 2:, None])[..., 0]
            by_token = {
                "delta_loss": torch.cat([loss, torch.full((4, 1), torch.nan)], dim=1),
                "kl": (p * change).sum(-1),
                "promoted": change[..., words["promoted"].values].mean(-1),
            }
            for measure, x in by_token.items():
                for where, mask in (("all", firing | True), ("firing", firing)):
                    each = torch.where(mask, x, torch.nan).nanmean(1)
                    each = each[~each.isnan()].numpy()
                    here = page.sel(measure=measure, path=path, where=where)
                    close = {"rtol": 1e-5, "atol": 1e-10, "err_msg": f"{path} {measure} {where}"}
                    np.testing.assert_allclose(here["effect"], each.mean(), **close)
                    several = len(each) > 1
                    error = each.std(ddof=1) / len(each) ** 0.5 if several else np.nan
                    np.testing.assert_allclose(here["effect_se"], error, **close)
        whole = page["effect"]
        parts = whole.sel(path="direct") + whole.sel(path="later")
        np.testing.assert_allclose(parts, whole.sel(path="total"), rtol=1e-6, atol=1e-12)

        # What it adds to the logits, sigma held, less its mean over all tokens.
        sigma = (final.var(-1, correction=0, keepdim=True) + model.cfg.eps).sqrt()
        scale = getattr(model.ln_final, "w", None)
        centred = value - value.mean()
        added = post[..., None] * (centred if scale is None else centred * scale) / sigma
        logits = (added @ model.W_U)[:, 1:].detach()
        logits = logits - logits.mean(-1, keepdim=True)
        each = torch.where(firing[..., None], logits, torch.nan).nanmean(1).nanmean(0)
        for name in ("promoted", "suppressed"):
            np.testing.assert_allclose(page[f"{name}_direct"], each[words[name].values], rtol=1e-5)


def test_the_last_layer_has_no_later_layers(kind):
    model = kind("parallel", dtype=torch.float64)
    page = neuron_page(model, (2, 3), corpus_for(model), k=3, ablate=3)
    assert float(abs(page["effect"].sel(path="later")).max()) < 1e-12
    assert float(page["effect"].sel(path="total", measure="kl", where="all")) > 1e-9


def test_weights_tokens_and_neighbours_are_those_of_their_own_functions(model):
    page = page_of(model)
    weights = neuron_weights(model, layers=[LAYER], tokens=False).isel(layer=0, neuron=NEURON)
    for name in weights.data_vars:
        assert float(page[name]) == float(weights[name])
    words = promoted_tokens(model, (LAYER, NEURON), k=3)
    for name in words.data_vars:
        assert page[name].values.tolist() == words[name].values.tolist()
    for by in ("value", "receptor"):
        near = nearest_neurons(model, (LAYER, NEURON), k=3, by=by)
        here = page.sel(by=by)
        assert here["similar"].values.tolist() == near["component"].values.tolist()
        np.testing.assert_array_equal(here["similar_value_cosine"], near["value_cosine"])
        np.testing.assert_array_equal(here["similar_receptor_cosine"], near["receptor_cosine"])


def test_a_neuron_that_never_fires_has_a_page(kind, backend):
    model = kind("parallel", backend)
    corpus = corpus_for(model)
    _, pre, _, _ = plainly(model, corpus.tokens)
    quiet = mi.Corpus(corpus.tokens[:, : 1 + 1], tokenizer=model.tokenizer)
    never = [i for i, row in enumerate(pre[:, 1:2]) if float(row.max()) <= 0]
    assert never
    page = neuron_page(model, (LAYER, NEURON), mi.Corpus(quiet.tokens[never]), k=2, ablate=2)
    assert float(page["fraction"]) == 0
    assert page.sizes["band"] == 2
    assert page["band_count"].values.tolist() == [len(never), 0]
    assert np.isnan(page["effect"].sel(where="firing")).all()
    assert np.isnan(page["direct_coefficient"])


def test_it_saves_goes_on_and_says_where_it_is_from(kind, tmp_path):
    model = kind("parallel")
    page = page_of(model, checkpoint=tmp_path / "parts")
    assert len(list((tmp_path / "parts").iterdir())) == 2
    assert page_of(model, checkpoint=tmp_path / "parts").identical(page)
    assert page_of(model).identical(page)
    assert mi.load(mi.save(page, tmp_path / "page.nc")).identical(page)
    assert {"model", "processing", "data", "seed", "sha256"} <= page.attrs.keys()
    for name, values in page.data_vars.items():
        assert values.attrs.get("unit"), name


def test_without_bos_nothing_is_left_out(kind):
    model = kind("parallel")
    tokens = corpus_for(model).tokens[:, 1:]
    assert neuron_page(model, (0, 0), tokens, k=2, ablate=2).attrs["first"] == 0


@pytest.mark.parametrize(
    ("neuron", "options", "message"),
    [
        ("L3N0", {}, "neuron='L3N0'; wanted a layer from 0 to 2"),
        ("L0N64", {}, "neuron='L0N64'; wanted a neuron from 0 to 63"),
        ("L0N0", {"k": 0}, "k=0"),
        ("L0N0", {"k": 64}, "k=64; wanted an integer from 1 to 63"),
        ("L0N0", {"examples": 0}, "examples=0"),
        ("L0N0", {"ablate": 0}, "ablate=0"),
        ("L0N0", {"before": -1}, "before=-1"),
    ],
)
def test_errors(kind, neuron, options, message):
    model = kind("parallel")
    with pytest.raises(ValueError, match=re.escape(message)):
        unchecked(neuron_page)(model, neuron, corpus_for(model), **options)


def test_tokens_of_another_model_are_refused(kind):
    with pytest.raises(ValueError, match="999"):
        neuron_page(kind("parallel"), (0, 0), torch.full((2, 4), 999))
