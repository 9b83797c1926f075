"""Models that are not Pythias: right in all that they are let into, or refused by name."""

from functools import partial

import numpy as np
import pytest
import torch
from architectures import Architecture
from contrasts import contrast_of
from random_models import HAS_HOOKED, VOCABULARY, hooked, tiny_tokenizer

import mlp_interp as mi
from mlp_interp.edits import Edit
from mlp_interp.models import HookForward, Weights, check_model
from mlp_interp.residual import decompose
from mlp_interp.sites import Site

pytestmark = pytest.mark.filterwarnings("ignore")


def bridge(family, **options):
    """A random model of a family in a `TransformerBridge`, weights as they are; and its source."""
    source = Architecture(family, family, options).source()
    loaded = mi.load_model(source, tokenizer=tiny_tokenizer(), backend="bridge", processing="raw")
    return loaded, source


needs_hooked = pytest.mark.skipif(not HAS_HOOKED, reason="the library has no HookedTransformer")


@needs_hooked
@pytest.mark.parametrize("site", ["k", "v"])
def test_shared_keys_and_values_are_patched_once(site):
    model, contrast = hooked(n_key_value_heads=2), contrast_of()
    found = mi.patch(model, contrast, sites=[site])
    assert found.attrs["engine"] == "lean"
    assert found.sizes["head"] == 2
    assert bool(found.changed.all())
    _, cache = model.run_with_cache(contrast.clean_tokens)
    for layer in range(2):
        for head in range(2):
            name = Site(site, layer).hook_name

            def restore(x, hook=None, head=head):
                x = x.clone()
                x[:, :, head] = cache[hook.name][:, :, head]
                return x

            logits = model.run_with_hooks(contrast.corrupted_tokens, fwd_hooks=[(name, restore)])
            rows = torch.arange(len(contrast))
            last = logits[:, -1].detach()
            expected = last[rows, contrast.answers] - last[rows, contrast.foils]
            got = found.raw.isel(site=0).sel(layer=layer, head=head)
            np.testing.assert_allclose(got, expected, atol=1e-4)


@needs_hooked
def test_keys_and_queries_of_other_numbers_are_not_one_grid():
    model = hooked(n_key_value_heads=2)
    with pytest.raises(ValueError, match="keys and values have 2 heads and the others 4"):
        mi.patch(model, contrast_of(), sites=["z", "v"])
    block = Weights.of(model).block(1)
    assert block.W_K.shape == (2, 32, 8)
    assert block.b_V.shape == (2, 8)
    assert torch.equal(block.W_V, model.blocks[1].attn.W_V[::2].detach())


@needs_hooked
def test_heads_need_not_fill_the_stream():
    """4 heads of 12 in a stream of 32: both engines, by position and head."""
    model, contrast = hooked(d_head=12), contrast_of()
    for sites in (["z"], ["resid_pre", "mlp_out"]):
        fast, slow = (
            mi.patch(model, contrast, sites=sites, engine=engine) for engine in ("auto", "hooks")
        )
        assert (fast.engine, slow.engine) == ("lean", "hooks")
        np.testing.assert_allclose(fast.raw, slow.raw, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "options"),
    [("GPTJ", {"rotary_dim": 4}), ("Olmo", {"intermediate_size": 48})],
    ids=["GPTJ", "Olmo"],
)
def test_biases_that_are_not_there_are_zeros(family, options):
    model, source = bridge(family, **options)
    tokens = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = source(tokens).logits.log_softmax(-1)
        _, cache = model.run_with_cache(tokens)
    residual = decompose(model, cache, level="head")
    assert residual.error() < 1e-4
    logits = mi.Unembed.of(model).logits(residual.total).log_softmax(-1)
    torch.testing.assert_close(logits, theirs, atol=1e-4, rtol=0)
    found = check_model(model)
    assert float(found.readout_error) < 1e-4
    assert float(found.residual_error) < 1e-5
    shares = mi.attribute_logits(model, cache, 5, 6, level="head")
    gap = theirs[:, -1, 5] - theirs[:, -1, 6]
    np.testing.assert_allclose(shares.sum("component").isel(pos=-1), gap, atol=1e-4)


def test_the_embedding_is_what_the_model_writes_and_not_its_table():
    """BLOOM normalises what the table gives before it writes it."""
    model, source = bridge("Bloom", n_layer=2, n_head=4)
    tokens = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
    found = mi.ablate_total(model, tokens, ["embed"], first=0)
    with torch.no_grad():
        clean = source(tokens).logits.log_softmax(-1)
        norm = source.transformer.word_embeddings_layernorm
        handle = norm.register_forward_hook(lambda _m, _x, out: 0 * out)
        changed = source(tokens).logits.log_softmax(-1)
        handle.remove()
    kl = (clean.exp() * (clean - changed)).sum(-1)
    np.testing.assert_allclose(found.kl.squeeze("component"), kl, atol=1e-4)
    _, cache = model.run_with_cache(tokens)
    assert decompose(model, cache).error() < 1e-5


@needs_hooked
@pytest.mark.parametrize(
    "options",
    [
        {"normalization_type": None},
        {"normalization_type": "RMS"},
        {"normalization_type": "RMS", "parallel_attn_mlp": True},
        {"normalization_type": "LN", "final_rms": True},
        {"normalization_type": "LN", "gated_mlp": True, "act_fn": "silu"},
    ],
    ids=str,
)
def test_any_norm_is_what_direct_effects_and_gradients_go_through(options):
    """By the model's own final modules, autograd, and its own forward pass."""
    model, contrast = hooked(**options), contrast_of(length=5)
    tokens, rows = contrast.clean_tokens, torch.arange(len(contrast))
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
    assert bool(check_model(model).ok)
    norm = getattr(model, "ln_final", torch.nn.Identity())
    readout = lambda stream: model.unembed(norm(stream)).detach()
    final = cache["blocks.1.hook_resid_post"]

    shares = mi.attribute_logits(model, cache, contrast, level="head")
    gap = logits[rows, -1, contrast.answers] - logits[rows, -1, contrast.foils]
    np.testing.assert_allclose(shares.sum("component").isel(pos=-1), gap, atol=1e-4)

    removed = readout(final - cache["blocks.0.hook_mlp_out"])
    clean, other = logits.log_softmax(-1), removed.log_softmax(-1)
    found = mi.ablate_direct(model, cache, ["0.mlp"], tokens=tokens, first=0)
    kl = (clean.exp() * (clean - other)).sum(-1)
    np.testing.assert_allclose(found.kl.squeeze("component"), kl, rtol=1e-3, atol=1e-5)

    taken = mi.attribute_logits(model, cache, contrast, norm="recompute")
    left = removed[rows, -1, contrast.answers] - removed[rows, -1, contrast.foils]
    fall = taken.sel(component=taken.component == "0.mlp").isel(pos=-1).squeeze("component")
    np.testing.assert_allclose(fall, gap - left, atol=1e-4)

    sites = ["resid_pre", "mlp_out", "q", "v", "pre", "post"]
    for function in (partial(mi.attribution_patch, sites=sites), mi.edge_attribution):
        fast, slow = (function(model, contrast, engine=engine) for engine in ("auto", "hooks"))
        # The library adds a bias to gated activations, which the lean forward does not.
        lean = "hooks" if "gated_mlp" in options else "lean"
        assert (fast.engine, slow.engine) == (lean, "hooks")
        for name in fast.data_vars:
            np.testing.assert_allclose(fast[name], slow[name], atol=1e-4, err_msg=name)
    for kept in (
        {"sites": ["resid_pre", "mlp_out"], "positions": [2, -1]},
        {"sites": ["k", "v"], "heads": [1, 3]},
        {"sites": ["pre"], "neurons": [2, 5]},
    ):
        fast, slow = (
            mi.patch(model, contrast, engine=engine, **kept) for engine in ("auto", "hooks")
        )
        np.testing.assert_allclose(fast.raw, slow.raw, atol=1e-4)


def test_patterns_that_a_model_does_not_go_on_with_cannot_be_edited():
    """GPT-Neo on the bridge shows its patterns and mixes with others of its own."""
    model, source = bridge(
        "GPTNeo", num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]
    )
    contrast, edit = contrast_of(), Edit.set("1.pattern", 0.0)
    message = "edits at '1.pattern' do nothing in model="
    for call in (
        lambda: mi.run(model, contrast.clean_tokens, edits=edit),
        lambda: mi.patch(model, contrast, sites="pattern", layers=[1]),
        lambda: mi.steer(model, edit).__enter__(),
        lambda: mi.Runner.of(model).generate(contrast.clean_tokens, edits=edit, max_new_tokens=1),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    # What comes of other edits is as in the source.
    changed = mi.run(model, contrast.clean_tokens, edits=Edit.set("1.attn", 0.0))
    handle = source.transformer.h[1].attn.register_forward_hook(lambda _m, _x, y: (0 * y[0], y[1]))
    with torch.no_grad():
        theirs = source(contrast.clean_tokens).logits.log_softmax(-1)
    handle.remove()
    ours = mi.Unembed.of(model).logits(changed.final).log_softmax(-1)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@needs_hooked
@pytest.mark.parametrize("name", ["q", "k", "v", "z", "pattern", "pre", "post"])
def test_edits_that_reach_are_let_through(name):
    model, tokens = hooked(), torch.arange(8)[None]
    runner = mi.Runner(HookForward(Weights.of(model)))
    found = runner.run(tokens, edits=Edit.scale(Site(name, 1), 0.5))
    assert bool((found.final != runner.run(tokens).final).any())


@needs_hooked
def test_a_model_that_cannot_predict_what_it_reads_has_no_losses():
    model = hooked(d_vocab_out=30)
    tokens = torch.tensor([[3, 5, 7, 9]])
    assert mi.subupdate_importance(model, tokens).kl_total.notnull().all()
    for analysis in (mi.subupdate_importance, mi.ablate_total):
        with pytest.raises(ValueError, match="tokens hold 40, which a model of 30 logits cannot"):
            analysis(model, torch.tensor([[3, 5, 40, 9]]))
