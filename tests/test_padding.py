"""Batches of texts of unequal length: every analysis gives what it gives for each text alone."""

from dataclasses import dataclass

import numpy as np
import pytest
import reference
import torch
import xarray as xr
from random_models import unchecked

import mlp_interp as mi
from mlp_interp.ablation import ablate_ranges, subupdate_importance
from mlp_interp.corpus.reducers import (
    BandExamples,
    CoActivation,
    Covariance,
    Fraction,
    Histogram,
    Loss,
    Mean,
    Moments,
    Norms,
    Reducer,
    TopExamples,
)
from mlp_interp.models.padding import places, right_padded
from mlp_interp.neurons import activity, update_shares, verify_neuron
from mlp_interp.neurons.page.page import neuron_page
from mlp_interp.prompts.texts import padded_texts, texts_of
from mlp_interp.residual import cache_for, decompose, norms

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
LENGTHS = (4, 9, 8)  # one of them a token short of the longest


@pytest.fixture
def texts():
    """Three texts of unequal length, BOS (0, which pads too) first."""
    generator = torch.Generator().manual_seed(5)
    return [[0, *torch.randint(1, 300, (n - 1,), generator=generator).tolist()] for n in LENGTHS]


def padded(texts, side="right", pad=0):
    longest = max(map(len, texts))
    fill = [[pad] * (longest - len(text)) for text in texts]
    pairs = zip(texts, fill, strict=True)
    return torch.tensor([[*t, *f] if side == "right" else [*f, *t] for t, f in pairs])


def mask_of(texts, side="right"):
    return padded([[1] * len(text) for text in texts], side)


def alone(texts):
    return [torch.tensor([text]) for text in texts]


# --- what is padding ---


@pytest.mark.parametrize("side", ["right", "left"])
def test_unequal_texts_are_told_apart(nano, texts, side):
    found = right_padded(nano, padded(texts, side))
    assert found.rows() == texts
    assert found.attrs["data"].startswith("3 texts of 4 to 9 tokens; runs of token 0 at the ")
    assert "beginning" in found.attrs["data"] if side == "left" else "end" in found.attrs["data"]
    masked = right_padded(nano, padded(texts, side), mask_of(texts, side))
    assert masked.rows() == texts
    assert masked.attrs["data"] == "3 texts of 4 to 9 tokens; padding by attention_mask"
    assert padded_texts(nano, texts).rows() == texts
    assert padded_texts(nano, [torch.tensor(text) for text in texts]).rows() == texts


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[0, 5, 6], [0, 7, 8]], [[0, 5, 6], [0, 7, 8]]),  # BOS
        ([[5, 6, 0], [7, 8, 0]], [[5, 6, 0], [7, 8, 0]]),  # every text's own end
        ([[5, 0, 0], [7, 8, 0]], [[5, 0], [7, 8, 0]]),  # the same, one of them shorter
        ([[5, 6, 0], [7, 8, 9]], [[5, 6], [7, 8, 9]]),  # one token short
        ([[0, 0, 5], [0, 7, 8]], [[0, 5], [0, 7, 8]]),  # left, one token short
        ([[0, 0, 5], [6, 7, 8]], [[5], [6, 7, 8]]),  # left, without BOS
        ([[0, 0, 5, 0], [0, 7, 8, 0]], [[0, 5, 0], [0, 7, 8, 0]]),  # left, with ends
        ([[0, 5, 0, 0], [0, 7, 0, 0]], [[0, 5], [0, 7]]),  # to a length that none has
        ([[0, 0, 0], [0, 7, 8]], [[0], [0, 7, 8]]),  # no text but BOS
        ([[5, 6, 0]], [[5, 6, 0]]),
        ([[0, 0]], [[0, 0]]),
    ],
)
@pytest.mark.filterwarnings("ignore:tokens. rows .* end with one token 0")
def test_one_token_for_padding_begin_and_end(nano, rows, expected):
    assert right_padded(nano, torch.tensor(rows)).rows() == expected


def test_one_token_at_the_end_of_some_rows_is_padding_or_text(nano):
    tokens = torch.tensor([[0, 5, 6, 0], [0, 7, 8, 9]])
    with pytest.warns(
        UserWarning, match=r"rows \[0\] of 2 end with one token 0, which pads and ends"
    ):
        assert right_padded(nano, tokens).rows() == [[0, 5, 6], [0, 7, 8, 9]]
    corpus = mi.corpus.Corpus(tokens)
    for given, mask in ((tokens, torch.ones_like(tokens)), (corpus, None), (tokens.tolist(), None)):
        # No warning, and the cache says on that all of it is text.
        cache = cache_for(nano, given, attention_mask=mask)
        assert decompose(nano, cache).real is None


def test_what_the_librarys_own_padding_is(nano):
    prompts = ["The cat sat.", "The cat sat on the mat and then it went to sleep again"]
    for side in ("right", "left"):
        tokens = nano.to_tokens(prompts, padding_side=side)
        rows = right_padded(nano, tokens).rows()
        assert rows == [nano.to_tokens(prompt)[0].tolist() for prompt in prompts]
        assert rows == [list(row) for row in texts_of(nano, prompts, what="prompts").rows]


def test_a_token_that_only_pads_is_padding_everywhere(nano, monkeypatch):
    monkeypatch.setattr(type(nano.tokenizer), "pad_token_id", 9, raising=False)
    found = right_padded(nano, torch.tensor([[0, 5, 9], [0, 9, 9]]))
    assert found.rows() == [[0, 5], [0]]
    assert right_padded(nano, torch.tensor([[9, 5, 6]])).rows() == [[5, 6]]
    with pytest.raises(ValueError, match="begin and end with runs of the padding token 9"):
        right_padded(nano, torch.tensor([[9, 5, 6], [5, 6, 9]]))
    with pytest.raises(ValueError, match="row 1 are nothing but padding"):
        right_padded(nano, torch.tensor([[4, 5, 6], [9, 9, 9]]))


def test_a_corpus_is_packed(nano):
    corpus = mi.corpus.Corpus(torch.tensor([[0, 5, 6, 0], [0, 7, 0, 0]]))
    assert right_padded(nano, corpus).padding is None
    with pytest.raises(ValueError, match="attention_mask beside a corpus"):
        right_padded(nano, corpus, torch.ones(2, 4))


def test_a_mask_of_ones_says_that_nothing_is_padding(nano):
    tokens = torch.tensor([[0, 5, 0], [0, 7, 8]])
    assert right_padded(nano, tokens, torch.ones_like(tokens)).padding is None


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.ones(2, 3), r"attention_mask=\(2, 3\)"),
        (torch.full((2, 4), 2), "wanted zeros and ones"),
        (torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1]]), "2 runs of ones in row 1"),
        (torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]]), "0 runs of ones in row 0"),
    ],
)
def test_masks_that_are_none(nano, mask, words):
    with pytest.raises(ValueError, match=words):
        right_padded(nano, torch.ones(2, 4, dtype=torch.long), mask)


def test_padding_may_be_no_token_of_the_model(nano, texts):
    found = right_padded(nano, padded(texts, pad=99_999), mask_of(texts))
    assert found.rows() == texts
    assert int(found.tokens.max()) < 300


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "tokens is empty"),
        ([[]], r"tokens\[0\]=\[\]"),
        ([[1, 2.5]], r"tokens\[0\]=\[1, 2.5\]"),
        (["a", ""], r"tokens\[1\]=''"),
        ([[1, 10**6]], "wanted ids from 0"),
        (torch.zeros(1, 1, 3).long(), "wanted a Corpus, texts, or an integer tensor"),
        (None, "wanted a Corpus, texts, or an integer tensor"),
        ("nano", "is the name of a corpus"),
        (__file__, "is the name of a corpus"),
    ],
)
def test_what_are_no_texts(nano, given, words):
    with pytest.raises(ValueError, match=words):
        padded_texts(nano, given)


def test_a_mask_beside_texts(nano):
    with pytest.raises(ValueError, match="attention_mask beside texts"):
        padded_texts(nano, ["a", "b"], torch.ones(2, 1))


def test_positions_of_each_text():
    real = torch.tensor([[True, True, False], [True, True, True]])
    columns, wanted = places([-1, 0], 3, real)
    assert columns == (0, 1, 2)
    assert wanted.tolist() == [[True, True, False], [True, False, True]]
    for positions, words in ((-3, "text 0 has 2 tokens"), (3, "of 3"), ([0, 0], "each once")):
        with pytest.raises(ValueError, match=words):
            places(positions, 3, real)


# --- ablation ---


@pytest.mark.parametrize(
    ("side", "told"), [("right", "token"), ("left", "token"), ("left", "mask")]
)
def test_total_ablation_is_that_of_each_text_alone(kind, backend, texts, side, told):
    model = kind("parallel", backend, "folded")
    mask = mask_of(texts, side) if told == "mask" else None
    groups = ["1.mlp", "0.attn", "L1H2", "embed"]
    found = mi.ablate_total(model, padded(texts, side), groups, attention_mask=mask)
    each = [mi.ablate_total(model, tokens, groups) for tokens in alone(texts)]
    agree(found, each)
    assert found.attrs["data"].startswith("3 texts of 4 to 9 tokens")


def agree(found, each):
    """Each text's numbers are its own, the rest is NaN, and means are over real tokens."""
    for name in ("kl", "delta_loss", "top1_changed"):
        for n, one in enumerate(each):
            length = one.sizes["pos"]
            row = found[name].isel(prompt=n)
            np.testing.assert_allclose(row[..., :length], one[name][:, 0], **CLOSE)
            assert row[..., length:].isnull().all()
    for name in ("kl_mean", "delta_loss_mean", "top1_change_rate"):
        means = xr.concat([one[name] for one in each], "text")
        np.testing.assert_allclose(found[name], means.mean("text"), **CLOSE)


def test_the_smallest_input_of_the_fault(nano):
    one = "The cat sat on"
    other = "The cat sat on the mat and then the dog went to the house again"
    found = mi.ablate_total(nano, nano.to_tokens([one, other]), ["2.mlp"])
    each = [mi.ablate_total(nano, nano.to_tokens(text), ["2.mlp"]) for text in (one, other)]
    agree(found, each)
    agree(mi.ablate_total(nano, [one, other], ["2.mlp"]), each)


@pytest.mark.parametrize("given", ["mask", "cache_for", "run", "tokens", "embeddings"])
def test_direct_ablation_is_that_of_each_text_alone(kind, backend, texts, given):
    model = kind("sequential", backend, "raw")
    tokens, options = padded(texts), {}
    if given == "cache_for":
        cache = cache_for(model, texts)
    elif given == "run":
        cache = mi.run(model, tokens, sites=["attn_out", "mlp_out"])
    else:
        _, cache = model.run_with_cache(tokens)
        options = {"attention_mask": mask_of(texts)} if given == "mask" else {}
        options |= {} if given == "embeddings" else {"tokens": tokens}
    groups = ["1.mlp", "0.attn"]
    found = mi.ablate_direct(model, cache, groups, **options)
    each = [mi.ablate_direct(model, cache_for(model, t), groups) for t in alone(texts)]
    agree(found, each)


@pytest.mark.parametrize("method", ["exact", "second_order"])
def test_direct_ablation_of_neurons_at_the_last_token(kind, backend, texts, method):
    model = kind("parallel", backend, "folded")
    cache = cache_for(model, padded(texts), level="neuron")
    neurons = ["L1N3", "L0N7"]
    found = mi.ablate_direct(model, cache, neurons, positions=-1, method=method)
    assert found.pos.values.tolist() == [3, 7, 8]
    for n, tokens in enumerate(alone(texts)):
        own = cache_for(model, tokens, level="neuron")
        one = mi.ablate_direct(model, own, neurons, positions=-1, method=method)
        row = found.kl.isel(prompt=n)
        np.testing.assert_allclose(row.sel(pos=LENGTHS[n] - 1), one.kl[:, 0, 0], **CLOSE)
        assert int(row.notnull().sum()) == len(neurons)


def mean_over(model, texts, site):
    """Mean activation over the real tokens but the first, each text run alone."""
    runs = [
        mi.run(model, tokens, sites=[site]).at(mi.Site.parse(site))[0, 1:]
        for tokens in alone(texts)
    ]
    return torch.cat(runs).mean(0)


def test_means_as_baselines_are_over_real_tokens(kind, backend, texts):
    model = kind("parallel", backend, "folded")
    mean = mean_over(model, texts, "1.mlp")
    found = mi.ablate_total(model, padded(texts), ["1.mlp"], baseline="mean")
    direct = mi.ablate_direct(model, cache_for(model, texts), ["2.mlp"], baseline="mean")
    last = mi.ablate_total(model, texts, ["2.mlp"], baseline="mean")
    for n, tokens in enumerate(alone(texts)):
        clean = model(tokens).log_softmax(-1)
        edit = mi.Edit.set("1.mlp", mean, positions=range(1, tokens.shape[1]))
        edited = mi.run(model, tokens, edits=[edit]).logits().log_softmax(-1)
        kl = (clean.exp() * (clean - edited)).sum(-1)[0]
        np.testing.assert_allclose(found.kl[0, n, : len(kl)], kl.detach(), **CLOSE)
        np.testing.assert_allclose(direct.kl[0, n], last.kl[0, n], **CLOSE)


def test_resampling_wants_texts_of_one_length(kind, texts):
    model = kind()
    words = "baseline='resample' with texts of 4 to 9 tokens"
    with pytest.raises(ValueError, match=words):
        mi.ablate_total(model, padded(texts), baseline="resample")
    with pytest.raises(ValueError, match=words):
        mi.ablate_direct(model, cache_for(model, texts), baseline="resample")
    for analysis in (subupdate_importance, ablate_ranges):
        with pytest.raises(ValueError, match=words):
            analysis(model, padded(texts), baseline="resample")


@pytest.mark.parametrize(("baseline", "side"), [("zero", "left"), ("mean", "right")])
def test_importance_and_ranges_are_means_over_texts(kind, backend, texts, baseline, side):
    model = kind("parallel", backend, "folded")
    options = mi.SweepOptions(batch_size=2, shard=2)
    given, labels = padded(texts, side), ["0.attn", "0.mlp", "1.attn", "1.mlp", "2.attn", "2.mlp"]
    found = subupdate_importance(model, given, baseline=baseline, sweep=options)
    total = mi.ablate_total(model, given, labels, baseline=baseline)
    direct = mi.ablate_direct(model, cache_for(model, given), labels, baseline=baseline)
    for way, expected in (("total", total), ("direct", direct)):
        for name in ("kl", "delta_loss"):
            np.testing.assert_allclose(found[f"{name}_{way}"], expected[f"{name}_mean"], **CLOSE)
            np.testing.assert_allclose(found[f"{name}_{way}_se"], expected[f"{name}_se"], **CLOSE)
    if baseline == "zero":
        losses = [reference.loss(model(t), t, reference.counted(t)).item() for t in alone(texts)]
        np.testing.assert_allclose(found.attrs["clean_loss"], np.mean(losses), **CLOSE)
    ranges = ablate_ranges(model, given, baseline=baseline, sweep=options)
    one = mi.ablate_total(model, given, {"a": ["1.mlp", "2.mlp"]}, baseline=baseline)
    np.testing.assert_allclose(
        ranges.delta_loss.sel(start=1, end=2), one.delta_loss_mean.item(), **CLOSE
    )


# --- decomposition and attribution ---


@pytest.mark.parametrize(
    ("level", "norm"), [("component", "freeze"), ("head", "recompute"), ("neuron", "freeze")]
)
def test_attribution_at_each_texts_last_token(kind, backend, texts, level, norm):
    model = kind("parallel", backend, "folded")
    options = {"level": level, "norm": norm}
    found = mi.attribute_logits(model, cache_for(model, texts, level=level), 5, 6, **options)
    assert found.pos.values.tolist() == [3, 7, 8]
    for n, tokens in enumerate(alone(texts)):
        own = cache_for(model, tokens, level=level)
        one = mi.attribute_logits(model, own, 5, 6, **options)
        row = found.isel(prompt=n)
        np.testing.assert_allclose(row.sel(pos=LENGTHS[n] - 1), one[0, 0], **CLOSE)
        assert int(row.notnull().all("component").sum()) == 1
        logits = model(tokens)[0, -1].detach()
        if norm == "freeze":
            total = float(row.sel(pos=LENGTHS[n] - 1).sum())
            assert total == pytest.approx(float(logits[5] - logits[6]), abs=1e-4)
    assert "3 texts of 4 to 9 tokens" in found.attrs["data"]


@pytest.mark.parametrize("side", ["right", "left"])
def test_attribution_in_caches_of_ones_own(kind, backend, texts, side):
    """Left-padded caches are right where the library masks the padding; others are told apart."""
    model = kind("parallel", backend, "folded")
    tokens, mask = padded(texts, side), mask_of(texts, side)
    _, cache = model.run_with_cache(tokens, attention_mask=mask)
    by_mask = mi.attribute_logits(model, cache, 5, attention_mask=mask)
    by_token = mi.attribute_logits(model, cache, 5)
    xr.testing.assert_equal(by_mask, by_token)
    for n, one in enumerate(alone(texts)):
        expected = mi.attribute_logits(model, cache_for(model, one), 5)
        column = 8 if side == "left" else LENGTHS[n] - 1
        np.testing.assert_allclose(
            by_mask.isel(prompt=n).sel(pos=column), expected[0, 0], rtol=1e-3, atol=1e-4
        )


def test_logits_of_a_run_count_from_each_texts_end(kind, backend, texts):
    model = kind("parallel", backend, "folded")
    together = mi.run(model, padded(texts), sites=["attn_out", "mlp_out"])
    edited = together.edited([mi.Edit.scale("1.mlp", 0.5)])
    found = together.logits([0, -1, 2, -4])
    for n, tokens in enumerate(alone(texts)):
        own = mi.run(model, tokens)
        np.testing.assert_allclose(found[n], own.logits(slice(None))[0, [0, -1, 2, -4]], **CLOSE)
        last = own.edited([mi.Edit.scale("1.mlp", 0.5)]).logits(-1)
        np.testing.assert_allclose(edited.logits(-1)[n], last[0], **CLOSE)
        shares = mi.attribute_logits(model, together, 5, 6).isel(prompt=n).sum("component")
        difference = float(found[n, 1, 5] - found[n, 1, 6])
        assert float(shares.sel(pos=LENGTHS[n] - 1)) == pytest.approx(difference, abs=1e-4)
    of_rows = together.logits(slice(-1, None)), together.logits()[:, -1:]
    np.testing.assert_allclose(*of_rows, **CLOSE)
    with pytest.raises(ValueError, match="positions=-5; text 0 has 4 tokens"):
        together.logits(-5)
    with pytest.raises(ValueError, match="each once"):
        together.logits([-1, -1])


def test_all_positions_and_residuals_of_padded_texts(kind, backend, texts):
    model = kind("parallel", backend, "folded")
    residual = decompose(model, cache_for(model, texts), positions=None)
    assert residual.error() < 1e-4
    assert residual.real.sum(1).tolist() == list(LENGTHS)
    directions = torch.ones(1, 1, 32)
    for x in (residual.vectors(), residual.project(directions), residual.square_norms()):
        assert torch.equal(~x.isnan().flatten(2).any(-1), residual.real)
    last = residual.at(-1)
    assert last.positions == (3, 7, 8)
    for n, tokens in enumerate(alone(texts)):
        own = decompose(model, cache_for(model, tokens))
        np.testing.assert_allclose(
            residual.square_norms()[n, : LENGTHS[n]], own.square_norms()[0], **CLOSE
        )


def test_sources_at_each_texts_last_token(kind, backend, texts):
    model = kind("parallel", backend, "folded")
    mask, tokens = mask_of(texts), padded(texts)
    _, cache = model.run_with_cache(tokens)
    found = mi.attribute_sources(model, cache, 5, attention_mask=mask)
    assert found.dims == ("prompt", "component", "source")
    assert found.pos.values.tolist() == [3, 8, 7]
    several = mi.attribute_sources(model, cache, 5, positions=[0, -1])
    assert several.pos.values.tolist() == [0, 3, 7, 8]
    for n, one in enumerate(alone(texts)):
        _, own = model.run_with_cache(one)
        expected = mi.attribute_sources(model, own, 5)[0]
        length = LENGTHS[n]
        np.testing.assert_allclose(found[n, :, :length], expected, **CLOSE)
        assert found[n, :, length:].isnull().all()
        row = several.isel(prompt=n).sel(pos=length - 1)
        np.testing.assert_allclose(row[:, :length], expected, **CLOSE)


def test_a_run_of_texts_padded_at_the_left_is_refused(kind, texts):
    model = kind()
    run = mi.run(model, padded(texts, "left"), sites=["attn_out", "mlp_out"])
    with pytest.raises(ValueError, match="padded at the left, which attend to their padding"):
        mi.attribute_logits(model, run, 5)
    with pytest.raises(ValueError, match="padded at the left, which attend to their padding"):
        run.logits(-1)


def test_positions_that_a_text_has_not(kind, texts):
    model = kind()
    cache = cache_for(model, texts)
    with pytest.raises(ValueError, match="text 0 has 4 tokens"):
        mi.attribute_logits(model, cache, 5, positions=-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_norms_are_over_real_tokens(kind, backend, texts, side):
    model = kind("parallel", backend, "folded")
    found = norms(model, padded(texts, side), batch_size=2)
    own = [decompose(model, cache_for(model, t)).square_norms()[0, 1:].sqrt() for t in alone(texts)]
    values = torch.cat(own)
    np.testing.assert_allclose(found.norm.sel(stat="mean"), values.mean(0), **CLOSE)
    quartiles = np.quantile(values.numpy(), 0.25, axis=0)
    np.testing.assert_allclose(found.norm.sel(stat="q25"), quartiles, **CLOSE)


# --- sweeps and neurons ---


def activations(model, texts, site, layer=1):
    name = mi.Site(site, layer).hook_name
    return [model.run_with_cache(t)[1][name][0].detach().double().numpy() for t in alone(texts)]


@pytest.mark.parametrize("side", ["right", "left"])
def test_activity_is_over_real_tokens(kind, backend, texts, side):
    model = kind("sequential", backend, "raw")
    found = activity(model, padded(texts, side), sweep=mi.SweepOptions(batch_size=2, shard=2))
    pre = [x[1:] for x in activations(model, texts, "pre")]
    every, one = np.concatenate(pre), found.sel(layer=1)
    np.testing.assert_allclose(one.fraction, (every > 0).mean(0), **CLOSE)
    np.testing.assert_allclose(one["mean"], every.mean(0), **CLOSE)
    np.testing.assert_allclose(one["std"], every.std(0, ddof=1), **CLOSE)
    np.testing.assert_allclose(one.greatest, every.max(0), **CLOSE)
    np.testing.assert_allclose(one.least, every.min(0), **CLOSE)
    post = np.concatenate([x[1:] for x in activations(model, texts, "post")])
    np.testing.assert_allclose(one.mean_post, post.mean(0), **CLOSE)
    assert (found["count"].sum("bin") == len(every)).all()
    assert found.attrs["entries"] == len(every) == sum(LENGTHS) - 3
    # The share is a ratio of sums: its error is that of the residuals of each text.
    share, sizes = (every > 0).mean(0), [len(x) for x in pre]
    rest = np.stack([(x > 0).sum(0) - share * n for x, n in zip(pre, sizes, strict=True)])
    error = np.sqrt((rest**2).sum(0) * 3 / 2) / sum(sizes)
    np.testing.assert_allclose(one.fraction_se, error, **CLOSE)
    for pos in (3, 7, 8):
        reached = [(x[pos - 1] > 0).mean() for x in pre if len(x) >= pos]
        np.testing.assert_allclose(one.by_position.sel(pos=pos), np.mean(reached), **CLOSE)
    assert one.by_position_se.isnull().sum() == 1  # a single text reaches the last position


def test_update_shares_are_over_real_tokens(kind, backend, texts):
    model = kind("parallel", backend, "folded")
    options = {"points": [1, 8, 64], "layers": [1]}
    found = update_shares(model, padded(texts), **options)
    each = [update_shares(model, tokens, **options) for tokens in alone(texts)]
    for name in ("cosine", "needed", "negative_share", "negative_norm_share"):
        np.testing.assert_allclose(found[name], np.mean([x[name] for x in each], axis=0), **CLOSE)
    sizes = np.array(LENGTHS) - 1
    for name in ("virtual_bias",):
        means = np.stack([x[name].values for x in each])
        expected = (means * sizes[:, None, None]).sum(0) / sizes.sum()
        np.testing.assert_allclose(found[name], expected, **CLOSE)
    assert found.attrs["entries"] == sizes.sum()
    assert found.attrs["without_direction"] == 0
    thinned = update_shares(model, padded(texts), **options, sample=3)
    assert thinned.attrs["entries"] == sum(-(-n // 3) for n in sizes)


@pytest.mark.parametrize("side", ["right", "left"])
def test_every_reducer_leaves_padding_out(kind, backend, texts, side):
    model = kind("parallel", backend, "folded")
    reducers = {
        "mean": Mean(site="mlp_out", layers=(1,)),
        "by_position": Mean(site="mlp_out", layers=(1,), by_position=True),
        "norms": Norms(site="mlp_out", layers=(1,)),
        "loss": Loss(),
        "top": TopExamples(k=3, before=2, after=3, layers=(1,)),
        "bands": BandExamples(neuron="L1N3", edges=(-1e9, 1e9), k=50),
        "pairs": CoActivation(neurons=("L1N3", "L0N2")),
        "heads": Moments(site="z", layers=(1,)),
        "covariance": Covariance(site="mlp_out", layers=(1,)),
    }
    options = mi.SweepOptions(batch_size=2, shard=2)
    found = mi.sweep(model, padded(texts, side), reducers, options=options)
    written = activations(model, texts, "mlp_out")
    every = np.concatenate(written)
    np.testing.assert_allclose(found["mean"]["mean"][0], every.mean(0), **CLOSE)
    second = every.T @ every / len(every)
    np.testing.assert_allclose(found["covariance"]["second_moment"][0], second, **CLOSE)
    np.testing.assert_allclose(found["by_position"]["mean"][0, 8], written[1][8], **CLOSE)
    np.testing.assert_allclose(
        found["by_position"]["mean"][0, 5], (written[1][5] + written[2][5]) / 2, **CLOSE
    )
    sizes = [np.linalg.norm(x, axis=-1) for x in written]
    np.testing.assert_allclose(found["norms"]["norm"], np.mean([x.mean() for x in sizes]), **CLOSE)
    np.testing.assert_allclose(found["norms"]["by_position"][0, 8], sizes[1][8], **CLOSE)
    np.testing.assert_allclose(found["norms"]["greatest"], max(x.max() for x in sizes), **CLOSE)
    losses = [model(t, return_type="loss").item() for t in alone(texts)]
    np.testing.assert_allclose(found["loss"]["loss"], np.mean(losses), **CLOSE)
    assert found["loss"].sizes["pos"] == 8
    pre = activations(model, texts, "pre")
    best = np.sort(np.stack([x.max(0) for x in pre]), axis=0)[::-1].T
    np.testing.assert_allclose(found["top"]["activation"][0], best, **CLOSE)
    for name in ("top", "bands"):  # nothing beyond a text's end, in examples or around them
        shown = found[name]
        ends = np.array(LENGTHS)[shown.sequence.values][..., None]
        at = shown.pos.values[..., None] + shown.context.values
        inside = (at >= 0) & (at < ends) & (shown.sequence.values >= 0)[..., None]
        assert ((shown.token.values >= 0) == inside).all()
        assert (np.isfinite(shown.around.values) == inside).all()
    assert int(found["bands"]["count"].sum()) == sum(LENGTHS)
    assert found["pairs"].attrs["entries"] == sum(LENGTHS)
    active = np.concatenate([x[:, 3] > 0 for x in pre])
    assert int(found["pairs"]["both"][0, 0]) == active.sum()
    z = np.concatenate(activations(model, texts, "z"))
    np.testing.assert_allclose(found["heads"]["mean"][0], z.mean(0), **CLOSE)


@dataclass(frozen=True, kw_only=True)
class Counting(Reducer):
    """A reducer of somebody's own, who has not thought of padding."""

    @property
    def name(self):
        return "counting"

    def empty(self, shape):
        return {"n": torch.zeros(())}

    def result(self, state, shape):
        return xr.Dataset()


def test_a_reducer_that_does_not_know_padding_is_refused(kind, texts):
    model = kind()
    with pytest.raises(ValueError, match=r"reducers\['counting'\] does not leave out padding"):
        mi.sweep(model, padded(texts), [Fraction(), Counting()])
    assert "counting" in mi.sweep(model, padded(texts[1:2]), Counting())


def test_texts_too_short_are_refused(kind, texts):
    model = kind()
    short = [*texts, [0]]
    with pytest.raises(ValueError, match="first=1: sequences of 1 tokens"):
        activity(model, short)
    with pytest.raises(ValueError, match="sequences of 1 token have no next token"):
        subupdate_importance(model, short)
    assert int(mi.ablate_total(model, short, ["1.mlp"]).kl[0, 3].notnull().sum()) == 1


def test_lengths_are_part_of_a_checkpoints_name(kind, texts, tmp_path):
    model = kind()
    options = mi.SweepOptions(checkpoint=tmp_path)
    tokens = padded(texts)
    first = mi.sweep(model, tokens, Histogram(), options=options)["histogram.pre"]
    ones = torch.ones_like(tokens)
    whole = mi.sweep(model, tokens, Histogram(), attention_mask=ones, options=options)
    assert int(first["count"].sum()) < int(whole["histogram.pre"]["count"].sum())
    again = mi.sweep(model, tokens, Histogram(), options=options)["histogram.pre"]
    xr.testing.assert_identical(first, again)


@pytest.mark.parametrize("side", ["right", "left"])
def test_evidence_for_a_neuron_is_that_of_the_texts(kind, backend, texts, side):
    model = kind("parallel", backend, "folded")
    options = {"controls": 3, "k": 5}
    found = verify_neuron(model, "L1N3", padded(texts, side), texts[::-1], **options)
    listed = verify_neuron(model, "L1N3", texts, texts[::-1], **options)
    xr.testing.assert_allclose(found, listed)
    np.testing.assert_allclose(found.activation[..., :3], found.activation[..., :2:-1], **CLOSE)
    assert "4 to 9 tokens; runs of token 0" in found.attrs["data"]


def test_the_page_of_a_neuron_counts_real_tokens_only(kind, texts):
    model = kind("parallel", processing="folded")
    options = {"k": 3, "examples": 2, "ablate": 3}
    page = neuron_page(model, "L1N3", padded(texts), **options)
    pre = np.concatenate([x[1:, 3] for x in activations(model, texts, "pre")])
    assert float(page["fraction"]) == pytest.approx((pre > 0).mean())
    assert page.attrs["positions"] == len(pre)
    masked = neuron_page(
        model, "L1N3", padded(texts, pad=7), attention_mask=mask_of(texts), **options
    )
    for name in ("effect", "effect_se", "direct_coefficient", "band_count"):
        np.testing.assert_allclose(page[name], masked[name], **CLOSE)


@pytest.mark.parametrize("positions", ["last", "mean", 0, -2])
def test_directions_leave_padding_out(kind, backend, texts, positions):
    model = kind("parallel", backend, "folded")
    find = mi.steering.mean_difference
    other = [[0, 5, 6], [0, 7, 8]]
    options = {"layers": [1], "positions": positions}
    expected = find(model, texts, other, **options)
    found = find(model, padded(texts, "left"), torch.tensor(other), **options)
    _, cache = model.run_with_cache(padded(texts))
    cached = find(model, cache, torch.tensor(other), **options)
    np.testing.assert_allclose(found, expected, **CLOSE)
    np.testing.assert_allclose(cached, expected, **CLOSE)


def test_the_cost_of_steering_is_that_of_each_text(kind, backend, texts, tmp_path):
    model = kind("parallel", backend, "folded")

    def cost(corpus):
        return mi.steering.dose_response(
            model,
            torch.tensor(texts[:1]),
            mi.metrics.kl(),
            direction=mi.steering.output_direction(model, "L1N3"),
            coefficients=[1.0],
            corpus=corpus,
            sweep=mi.SweepOptions(batch_size=2, checkpoint=tmp_path),
        )

    each = [cost(text) for text in alone(texts)]
    found = cost(padded(texts))
    for name in ("cost_kl", "cost_delta_loss"):
        expected = np.mean([one[name].values for one in each], axis=0)
        np.testing.assert_allclose(found[name], expected, **CLOSE)
    assert "4 to 9 tokens; runs of token 0" in found.attrs["data"]
    xr.testing.assert_allclose(cost(texts)["cost_kl"], found["cost_kl"])
    longer = [*texts[:1], [*texts[1]], [*texts[2], 0]]  # the same tokens, one of them text
    assert not np.allclose(cost(longer)["cost_kl"], found["cost_kl"], rtol=1e-6)


def test_no_option_is_needed_for_unpadded_tokens(kind, tokens):
    """The same bits with a mask of ones, and without."""
    model = kind()
    ones = torch.ones_like(tokens)
    for analysis in (mi.ablate_total, activity, norms):
        analysis = unchecked(analysis)
        xr.testing.assert_identical(
            analysis(model, tokens), analysis(model, tokens, attention_mask=ones)
        )
