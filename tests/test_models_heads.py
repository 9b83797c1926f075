"""Heads as folded matrices, rotations by distance, and what stands for tokens."""

from dataclasses import replace

import pytest
import torch

from mlp_interp import corpus as corpora
from mlp_interp.models import Weights, forward_of
from mlp_interp.models.heads import Heads
from mlp_interp.models.token_streams import streams_of


def cached(model, tokens, *names):
    _, cache = model.run_with_cache(tokens, names_filter=list(names))
    return [cache[name] for name in names]


def test_scores_of_any_layer_come_from_distances(some_model, tokens):
    weights = Weights.of(some_model)
    for layer in (0, 2):
        stream, pattern = cached(
            some_model,
            tokens,
            f"blocks.{layer}.hook_resid_pre",
            f"blocks.{layer}.attn.hook_pattern",
        )
        heads = Heads.of(weights, layer)
        read = weights.norm.standardize(stream)[:, None]
        q, k = read @ heads.Q + heads.b_q[:, None], read @ heads.K + heads.b_k[:, None]
        between = heads.relative(range(tokens.shape[1]))
        scores = torch.full((*q.shape[:3], q.shape[2]), -torch.inf)
        for i in range(tokens.shape[1]):
            for j in range(i + 1):
                turned = q[:, :, i] @ between[i - j]
                scores[:, :, i, j] = (turned * k[:, :, j]).sum(-1) * heads.scale
        torch.testing.assert_close(scores.softmax(-1), pattern, atol=1e-5, rtol=1e-4)


def test_values_and_what_is_written(some_model, tokens):
    weights = Weights.of(some_model)
    stream, pattern, out = cached(
        some_model,
        tokens,
        "blocks.1.hook_resid_pre",
        "blocks.1.attn.hook_pattern",
        "blocks.1.hook_attn_out",
    )
    heads = Heads.of(weights, 1)
    values = weights.norm.standardize(stream)[:, None] @ heads.V + heads.b_v[:, None]
    written = (pattern @ values @ heads.O).sum(1) + weights.norm.keep(weights.block(1).b_O)
    torch.testing.assert_close(written, weights.norm.keep(out), atol=1e-4, rtol=1e-4)


def test_layer_0_patterns_from_tables_of_tokens(kind, backend):
    model = kind("parallel", backend, "raw")
    tokens = torch.randint(300, (2, 40), generator=torch.Generator().manual_seed(0))
    heads = Heads.of(Weights.of(model), 0)
    rows = Weights.of(model).norm.standardize(streams_of(model, "embed").stream(0))
    q, k = rows @ heads.Q + heads.b_q[:, None], rows @ heads.K + heads.b_k[:, None]
    between = heads.relative(range(40))
    distance = torch.arange(40)[:, None] - torch.arange(40)
    tables = torch.einsum("hqd,tde,hke->htqk", q, between, k) * heads.scale
    texts = tokens[:, :, None], tokens[:, None, :]
    scores = tables[:, distance.clamp_min(0), *texts].transpose(0, 1)
    scores = scores.masked_fill(distance < 0, -torch.inf)
    (pattern,) = cached(model, tokens, "blocks.0.attn.hook_pattern")
    torch.testing.assert_close(scores.softmax(-1), pattern, atol=1e-5, rtol=0)


@pytest.mark.parametrize("processing", ["raw", "folded"])
def test_the_extended_stream_of_parallel_models_is_exact(kind, backend, processing, tokens):
    model = kind("parallel", backend, processing)
    weights = Weights.of(model)
    streams = streams_of(model, "extended")
    assert streams.exact == {0: True, 1: True, 2: False, 3: False}
    stream, z = cached(model, tokens, "blocks.1.hook_resid_pre", "blocks.0.attn.hook_z")
    varying = z - Heads.of(weights, 0).b_v
    stream = stream - torch.einsum("bphd,hdm->bpm", varying, weights.block(0).W_O)
    keep = weights.norm.keep
    torch.testing.assert_close(keep(streams.stream(1)[tokens]), keep(stream), atol=1e-4, rtol=1e-4)


def test_streams_are_those_of_any_processing(kind, backend):
    a, b = (kind("sequential", backend, processing) for processing in ("raw", "folded"))
    norm = Weights.of(a).norm
    for source in ("embed", "extended"):
        first, second = (streams_of(model, source) for model in (a, b))
        read = [norm.standardize(x.stream(1)) for x in (first, second)]
        torch.testing.assert_close(*read, atol=1e-4, rtol=1e-4)
        assert not first.exact[1]
        assert "MLP 0" in first.approximation or source == "embed"
    with pytest.raises(ValueError, match="streams of another model"):
        streams_of(b, first)


def test_mean_streams_of_tokens(kind, backend):
    model = kind("gpt2", backend, "raw")
    tokens = torch.randint(1, 6, (20, 8), generator=torch.Generator().manual_seed(0))
    found = corpora.token_streams(model, tokens, layers=[-1], least=20, first=2)
    (stream,) = cached(model, tokens, "blocks.2.hook_resid_pre")
    at = tokens[:, 2:]
    for token, mean, seen in zip(found.tokens, found.stream(2), found.counts, strict=True):
        rows = stream[:, 2:][at == token]
        assert len(rows) == seen
        torch.testing.assert_close(mean, rows.mean(0), atol=1e-5, rtol=1e-4)
    assert set(found.tokens.tolist()) == {t for t in range(1, 6) if (at == t).sum() >= 20}
    assert streams_of(model, found) is found
    assert found.attrs([2])["exact"] == 0
    with pytest.raises(ValueError, match=r"streams of layers \[2\]; wanted layer 1"):
        found.stream(1)
    with pytest.raises(ValueError, match="least=1000: no token"):
        corpora.token_streams(model, tokens, least=1000)


def test_a_head_s_space_may_be_rotated_in_its_value(nano):
    heads = Heads.of(Weights.of(nano), 1)
    turn = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))[0]
    turned = replace(heads, V=heads.V @ turn, b_v=heads.b_v @ turn, O=turn.T @ heads.O)
    torch.testing.assert_close(turned.constant, heads.constant, atol=1e-4, rtol=1e-4)


def test_what_scores_leave_out_is_refused(kind, backend, nano):
    model = kind("parallel", backend, "raw")
    weights = Weights.of(model)
    cfg = model.cfg
    for flag, value, text in [
        ("attn_scores_soft_cap", 3.0, "caps attention scores"),
        ("positional_embedding_type", "alibi", "positions of type 'alibi'"),
        ("use_local_attn", True, "local attention"),
    ]:
        before = getattr(cfg, flag)
        try:
            setattr(cfg, flag, value)
            with pytest.raises(ValueError, match=text):
                Heads.of(weights, 0)
            Heads.of(weights, 0, scores=False)
        finally:
            setattr(cfg, flag, before)
    with pytest.raises(ValueError, match="distance=-1; wanted one from 0 to 63"):
        Heads.of(weights, 0).relative([2, -1])
    with pytest.raises(ValueError, match="distance=64"):
        Heads.of(weights, 0).relative([64])
    with pytest.raises(ValueError, match="wanted 'embed', 'extended' or TokenStreams"):
        streams_of(nano, "unembed")
    assert forward_of(nano).engine == "lean"
