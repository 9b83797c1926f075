"""Weights, the lean forward and its stand-in through hooks agree with the model itself."""

import dataclasses
import pickle
from types import SimpleNamespace

import pytest
import reference
import torch
from random_models import HAS_HOOKED

from mlp_interp.models import (
    Forward,
    HookForward,
    UnsupportedModel,
    Weights,
    forward_of,
    portable,
)
from mlp_interp.models import engine as engine_module
from mlp_interp.models import forward as forward_module
from mlp_interp.models.forward import KVCache
from mlp_interp.models.norm import Norm
from mlp_interp.models.rotary import Rotary
from mlp_interp.models.unembed import Unembed
from mlp_interp.sites import Site

OBSERVED = ("resid_pre", "q", "k", "v", "z", "attn_out", "pre", "post", "mlp_out", "resid_post")
ENGINES = {"lean": Forward.of, "hooks": lambda model: HookForward(Weights.of(model))}


def recorder(seen):
    def observe(name, layer, x):
        seen[Site(name, layer)] = x.clone()
        return x

    return observe


def test_every_observed_activation_is_the_models(model, tokens):
    cache = reference.full_cache(model, tokens)
    for engine in ENGINES.values():
        forward, seen = engine(model), {}
        final = forward.run(forward.embed(tokens), observe=recorder(seen))
        names = (*OBSERVED, "pre_linear") if model.cfg.gated_mlp else OBSERVED
        assert set(seen) == {Site(name, layer) for name in names for layer in range(3)}
        for site, value in seen.items():
            expected = cache[site.hook_name]
            torch.testing.assert_close(value, expected, atol=2e-5, rtol=1e-4, msg=site.label)
        torch.testing.assert_close(
            final, reference.final_stream(model, cache), atol=2e-5, rtol=1e-4
        )


def test_any_stretch_of_blocks_can_be_run(model, tokens):
    cache = reference.full_cache(model, tokens)
    streams = [cache[f"blocks.{layer}.hook_resid_pre"] for layer in range(3)]
    streams.append(reference.final_stream(model, cache))
    for engine in ENGINES.values():
        forward = engine(model)
        for start, stop in [(0, 2), (1, 3), (2, 2), (2, None), (3, None)]:
            begin, seen = streams[start].clone(), {}
            found = forward.run(begin, start=start, stop=stop, observe=recorder(seen))
            end = 3 if stop is None else stop
            torch.testing.assert_close(found, streams[end], atol=2e-5, rtol=1e-4)
            assert {site.layer for site in seen} == set(range(start, end))
            assert torch.equal(begin, streams[start])  # the input is not changed


@pytest.mark.parametrize("architecture", ["parallel", "sequential", "gpt2"])
def test_what_an_observer_returns_is_gone_on_with(kind, architecture, backend, tokens):
    """Against the library's own hooks, for every place that can be edited."""
    model = kind(architecture, backend, "raw")
    clean = reference.hooked_logits(model, tokens, {})
    engines = [engine(model) for engine in ENGINES.values()]
    for name in OBSERVED:
        site, noise = Site(name, 1), torch.Generator().manual_seed(3)
        change = torch.randn(shape_of(model, name), generator=noise)
        new = lambda x, hook=None, change=change: x + change
        expected = reference.hooked_logits(model, tokens, {site.hook_name: new})
        assert (expected - clean).abs().max() > 0.01
        for forward in engines:
            edited = forward.run(
                forward.embed(tokens),
                observe=lambda n, layer, x, s=site, f=new: f(x) if Site(n, layer) == s else x,
            )
            found = reference.logits(model, edited)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3, msg=site.label)


@pytest.mark.parametrize("architecture", ["parallel", "sequential", "gpt2"])
@pytest.mark.parametrize("processing", ["folded", "raw"])
def test_patterns_and_embeddings_are_seen_and_edited_where_asked(
    kind, architecture, backend, processing, tokens
):
    model = kind(architecture, backend, processing)
    cache = reference.full_cache(model, tokens)
    halve = lambda x, hook=None: x * torch.linspace(0.2, 2, x.shape[-1])
    for engine in ENGINES.values():
        forward, seen = engine(model), {}
        observe = lambda n, layer, x, seen=seen: seen.setdefault((n, layer), x)
        forward.run(forward.embed(tokens, observe=observe), observe=observe, patterns=(0, 2))
        assert {layer for name, layer in seen if name == "pattern"} == {0, 2}
        found = {"hook_embed": seen["embed", 0]}
        found |= {f"blocks.{i}.attn.hook_pattern": seen["pattern", i] for i in (0, 2)}
        for name, value in found.items():
            torch.testing.assert_close(value, cache[name], atol=1e-5, rtol=1e-4)
        for chosen, name in [
            (("pattern", 1), "blocks.1.attn.hook_pattern"),
            (("embed", 0), "hook_embed"),
        ]:
            edit = lambda n, layer, x, c=chosen: halve(x) if (n, layer) == c else x
            edited = forward.run(forward.embed(tokens, observe=edit), observe=edit, patterns=[1])
            expected = reference.hooked_logits(model, tokens, {name: halve})
            found = reference.logits(model, edited)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
            assert (found - reference.hooked_logits(model, tokens, {})).abs().max() > 0.01


@pytest.mark.parametrize("pieces", [(9,), (1,) * 9, (4, 1, 3, 1)])
def test_a_text_can_be_run_in_pieces(model, tokens, pieces):
    """Keys and values remembered; with and without attention patterns as matrices."""
    forward = Forward.of(model)
    whole = forward.run(forward.embed(tokens))
    for patterns in ((), (0, 1, 2)):
        kv_cache, done, first = KVCache(), [], 0
        for piece in tokens.split(pieces, dim=1):
            assert kv_cache.length == first
            stream = forward.embed(piece, first=first)
            done.append(forward.run(stream, kv_cache=kv_cache, patterns=patterns))
            first += piece.shape[1]
        torch.testing.assert_close(torch.cat(done, 1), whole, atol=2e-5, rtol=1e-4)


def shape_of(model, name):
    if name in ("q", "k", "v", "z"):
        return (4, 9, 4, 8)
    return (4, 9, model.cfg.d_mlp if name in ("pre", "post") else 32)


def test_an_observer_may_keep_what_it_sees(kind, backend, tokens):
    """Later blocks do not write into what an observer was given."""
    for engine in ENGINES.values():
        forward, kept, copies = engine(kind("parallel", backend)), [], []

        def observe(name, layer, x, kept=kept, copies=copies):
            kept.append(x)
            copies.append(x.clone())
            return x

        forward.run(forward.embed(tokens), observe=observe)
        assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


def test_the_lean_forward_serves_every_kind(model):
    assert forward_of(model).engine == "lean"


@pytest.mark.parametrize("processing", ["folded", "raw"])
def test_the_lean_forward_is_exact_in_float64(kind, backend, processing, tokens):
    model = kind("parallel", backend, processing, torch.float64)
    forward = Forward.of(model)
    final = reference.final_stream(model, reference.full_cache(model, tokens))
    torch.testing.assert_close(forward.run(forward.embed(tokens)), final, atol=1e-10, rtol=0)


def assert_same(found, held):
    """The model's; zero where it has none, and once for all heads that share it."""
    if held is None:
        assert not found.any()
    else:
        assert torch.equal(found, held[:: len(held) // len(found)])


def test_weights_are_the_models(model):
    weights = Weights.of(model)
    assert (weights.n_layers, weights.n_heads, weights.d_model) == (3, 4, 32)
    assert (weights.d_head, weights.d_vocab, weights.d_mlp) == (8, 300, model.cfg.d_mlp)
    rms = Norm("rms", 1e-6)
    assert weights.norm == (rms if reference.is_rms(model) else Norm("layer", 1e-5))
    assert weights.dtype == torch.float32
    assert weights.has_pos_embed == (model.cfg.positional_embedding_type == "standard")
    for layer in range(3):
        block = weights.block(layer)
        for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
            assert_same(getattr(block, name), getattr(model.blocks[layer].attn, name))
        for name in ("W_in", "b_in", "W_out", "b_out"):
            assert_same(getattr(block, name), getattr(model.blocks[layer].mlp, name))
        for value in vars(block).values():
            assert isinstance(value, torch.Tensor) is False or not value.requires_grad
    for name in ("W_E", "W_U", "b_U"):
        assert torch.equal(getattr(weights, name), getattr(model, name))


def test_layer_norms_are_folded_in_folded_models_only(kind, backend):
    for processing in ("folded", "raw"):
        weights = Weights.of(kind("sequential", backend, processing))
        block = weights.block(1)
        found = {norm.folded for norm in (block.ln1, block.ln2, weights.ln_final)}
        assert found == {processing == "folded"}


@pytest.mark.parametrize(
    ("flag", "value", "text"),
    [
        ("act_fn", "solu", "activation 'solu'"),
        ("num_experts", 4, "mixture-of-experts"),
        ("use_local_attn", True, "local attention"),
        ("scale_attn_by_inverse_layer_idx", True, "by layer"),
        ("positional_embedding_type", "alibi", "positions of type 'alibi'"),
        pytest.param(
            "rotary_adjacent_pairs",
            True,
            "adjacent pairs",
            # The bridge says so of models that do not.
            marks=pytest.mark.skipif(not HAS_HOOKED, reason="the bridge keeps its own tables"),
        ),
        ("attn_scores_soft_cap", 30.0, "caps attention scores"),
        ("attention_dir", "bidirectional", "both directions"),
    ],
)
def test_features_it_does_not_have_are_refused_and_hooks_take_over(kind, flag, value, text):
    model = kind()
    before = getattr(model.cfg, flag)
    try:
        setattr(model.cfg, flag, value)
        with pytest.raises(UnsupportedModel, match=text):
            Forward.of(model)
        assert forward_of(model).engine == "hooks"
    finally:
        setattr(model.cfg, flag, before)


def test_a_forward_that_computes_something_else_is_refused(kind, backend, monkeypatch):
    """Each line of the lean forward that is broken is caught by the comparison with the model."""
    model = kind("parallel", backend, "raw")
    for name, broken in {
        "rotary_at": lambda *given: Rotary(),
        "_fold": lambda norm, weight, bias: (weight.T.contiguous(), bias),
        "_attention_scale": lambda weights: 1.0,
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(forward_module, name, broken)
            with pytest.raises(UnsupportedModel, match="differs from the model's own by"):
                Forward.of(model)
            patch.setattr(engine_module, "remembered", lambda model, work_out: work_out())
            assert forward_of(model).engine == "hooks"
    with monkeypatch.context() as patch:
        block = Weights.block
        without = lambda self, layer: dataclasses.replace(block(self, layer), b_O=torch.zeros(32))
        patch.setattr(Weights, "block", without)
        with pytest.raises(UnsupportedModel, match="differs"):
            Forward.of(model)


@pytest.mark.skipif(not HAS_HOOKED, reason="builds a HookedTransformer config")
@pytest.mark.parametrize(
    "feature",
    [
        {"use_local_attn": True, "window_size": 3, "attn_types": ["global", "local"]},
        {"act_fn": "gelu_new", "attn_scores_soft_cap": 2.0},
        {"scale_attn_by_inverse_layer_idx": True},
        {"positional_embedding_type": "shortformer"},
    ],
    ids=lambda feature: next(iter(feature)),
)
def test_unsupported_models_run_through_hooks_with_the_right_numbers(feature, tokens):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    cfg = {
        "n_layers": 2,
        "d_model": 32,
        "d_head": 8,
        "n_heads": 4,
        "n_ctx": 16,
        "d_vocab": 300,
        "act_fn": "gelu",
        "normalization_type": "LN",
        "device": "cpu",
        **feature,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = HookedTransformer(HookedTransformerConfig(**cfg)).eval()
    forward = forward_of(model)
    assert forward.engine == "hooks"
    cache = reference.full_cache(model, tokens)
    final = forward.run(cache["blocks.1.hook_resid_pre"], start=1)
    torch.testing.assert_close(final, reference.final_stream(model, cache))
    edited = forward.run(
        forward.embed(tokens), observe=lambda n, _, x: 0 * x if n == "mlp_out" else x
    )
    hooks = {f"blocks.{i}.hook_mlp_out": lambda x, hook: 0 * x for i in range(2)}
    expected = reference.hooked_logits(model, tokens, hooks)
    torch.testing.assert_close(reference.logits(model, edited), expected, atol=1e-5, rtol=1e-4)


def test_models_with_other_norms_are_refused():
    cfg = SimpleNamespace(normalization_type="batch", model_name="odd")
    model = SimpleNamespace(cfg=cfg, blocks=[], ln_final=None, W_U=torch.zeros(2, 2))
    with pytest.raises(ValueError, match="model='odd' normalises with batch; wanted LayerNorm"):
        Weights.of(model)
    with pytest.raises(ValueError, match="str has no cfg"):
        forward_of("pythia-70m")


def test_hooks_do_not_take_what_is_run_for_padding(kind, backend):
    model = kind("parallel", backend, "raw")
    forward, tokenizer = HookForward(Weights.of(model)), model.tokenizer
    middle = forward.run(forward.embed(torch.tensor([[3, 5, 6, 7]])), stop=1)
    expected = forward.run(middle, start=1)
    before = tokenizer.padding_side, tokenizer.pad_token
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.convert_ids_to_tokens(0)
    try:
        assert torch.equal(forward.run(middle, start=1), expected)
    finally:
        tokenizer.padding_side, tokenizer.pad_token = before


def test_a_portable_forward_pass_gives_the_same_bits(model, tokens):
    """Also after pickling, which models of the library do not all survive."""
    forward = forward_of(model)
    if not isinstance(forward, Forward):
        pytest.skip("the lean forward does not serve this model")
    sent = pickle.loads(pickle.dumps(portable(forward)))
    mine, theirs = {}, {}
    for passed, seen in ((forward, mine), (sent, theirs)):

        def observe(name, layer, x, seen=seen):
            seen[name, layer] = x
            return x

        with torch.no_grad():
            final = passed.run(passed.embed(tokens), observe=observe)
            seen["logits", 0] = Unembed.of(passed.weights.model).logits(final)
    assert mine.keys() == theirs.keys()
    for place, value in mine.items():
        assert torch.equal(value, theirs[place]), place
    for name in ("W_O", "b_O", "W_out", "b_out"):
        here, there = (x.weights.parameter(1, name) for x in (forward, sent))
        assert torch.equal(here, there)
        assert here.stride() == there.stride()  # or products would round differently
    checked = sent.weights.checked(tokens)
    assert torch.equal(checked, tokens)
    with pytest.raises(ValueError, match="wanted ids from 0"):
        sent.weights.checked(torch.full((1, 2), 10_000))
    again = portable(sent, "cpu")
    assert torch.equal(again.run(again.embed(tokens)), sent.run(sent.embed(tokens)))
