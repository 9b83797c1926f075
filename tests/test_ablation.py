"""Direct and total ablation against brute force and the library's own hooks."""

import numpy as np
import pytest
import reference
import torch
from random_models import ARCHITECTURES, BACKENDS, PROCESSINGS, pairwise, unchecked

from mlp_interp import ablate_direct, ablate_total, norms, subupdate_importance
from mlp_interp.ablation.baselines import stand_in
from mlp_interp.ablation.groups import resolve
from mlp_interp.ablation.second_order import SecondOrder
from mlp_interp.metrics import LogitChange
from mlp_interp.models import HookForward, Weights
from mlp_interp.models.norm import Norm
from mlp_interp.models.unembed import Unembed
from mlp_interp.residual import LEVELS, cache_for
from mlp_interp.residual import decompose as residual_decompose
from mlp_interp.sites import Site

GROUPS = {
    "1.attn": ["1.attn"],
    "2.mlp": ["2.mlp"],
    "L1H2": ["L1H2"],
    "L0N7": ["L0N7"],
    "1.b_O": ["1.b_O"],
    "0.b_out": ["0.b_out"],
    "embed": ["embed"],
    "layer 1": ["1.attn", "1.mlp"],
    "mixed": ["0.mlp", "L1H0", "L1H3", "L2N5", "L2N1", "2.attn", "1.b_O"],
}
HOOKED = {k: v for k, v in GROUPS.items() if k not in ("1.b_O", "0.b_out", "mixed")} | {
    "mixed": ["0.mlp", "L1H0", "L1H3", "L2N5", "L2N1", "2.attn"]
}
MEASURES = ("kl", "delta_loss", "top1_changed")
BASELINES = ("zero", "mean", "resample")
WAYS = {baseline: (baseline, 1) for baseline in BASELINES} | {
    "mean of all": ("mean", 0),
    "zero from 3": ("zero", 3),
}
"""Baselines, and from which position on tokens count."""


@pytest.fixture
def tokens(tokens):
    """With a BOS between the texts of a row."""
    tokens[1, 4] = 0
    return tokens


def donors(batch, seed=0):
    """Which sequence stands in for which: read off on numbered sequences."""
    numbered = torch.arange(float(batch)).reshape(-1, 1, 1)
    found = stand_in("resample", torch.ones(batch, 1, dtype=torch.bool), seed=seed)(
        Site("mlp_out", 0), numbered
    )
    return found.flatten().long().tolist()


def everything(model, tokens):
    cache = reference.full_cache(model, tokens)
    vectors = {}
    for level in reversed(LEVELS):
        vectors |= reference.vectors(model, cache, level)
    return cache, vectors


def agree(found, expected, **tolerances):
    for name in MEASURES:
        np.testing.assert_allclose(
            found[name], expected[name], **{"atol": 1e-9, "rtol": 1e-6, **tolerances}, err_msg=name
        )


@pytest.mark.parametrize(
    ("way", "architecture", "backend", "processing"),
    pairwise([*WAYS], ("parallel", "gpt2"), BACKENDS, PROCESSINGS),
)
def test_direct_ablation_is_brute_force_in_float64(
    kind, way, architecture, backend, processing, tokens
):
    """Take the vectors out of the stream, unembed again, compare log-softmaxes."""
    baseline, first = WAYS[way]
    model = kind(architecture, backend, processing, torch.float64)
    cache, vectors = everything(model, tokens)
    final = reference.final_stream(model, cache)
    clean, counted = reference.logits(model, final), reference.counted(tokens, first)
    options = {"baseline": baseline, "first": first, "tokens": tokens, "seed": 3}
    for norm in ("recompute", "freeze"):
        found = ablate_direct(model, cache, GROUPS, norm=norm, **options)
        assert list(found.component.values) == list(GROUPS)
        for name, labels in GROUPS.items():
            gone = sum(
                vectors[x] - reference.replacement(vectors[x], baseline, counted, donors(4, seed=3))
                for x in labels
            )
            if norm == "recompute":
                changed = reference.logits(model, final - gone)
            else:
                changed = reference.frozen_logits(model, final - gone, final)
            agree(found.sel(component=name), reference.effects(clean, changed, tokens))


@pytest.mark.parametrize("norm", ["recompute", "freeze"])
def test_direct_ablation_of_every_neuron_is_brute_force(kind, backend, norm, tokens):
    """The fast path for single neurons, on all of them and in any order."""
    model = kind("sequential", backend, "raw", torch.float64)
    cache, vectors = everything(model, tokens)
    final = reference.final_stream(model, cache)
    clean = reference.logits(model, final)
    labels = [f"L{layer}N{n}" for layer in (2, 0, 1) for n in reversed(range(64))]
    for baseline in ("zero", "resample"):
        found = ablate_direct(
            model, cache, labels, norm=norm, baseline=baseline, tokens=tokens, positions=[1, -2]
        )
        assert list(found.component.values) == labels
        assert list(found.pos.values) == [1, 7]
        for label in labels[::17]:
            gone = vectors[label] - reference.replacement(
                vectors[label], baseline, reference.counted(tokens), donors(4)
            )
            if norm == "recompute":
                changed = reference.logits(model, final - gone)
            else:
                changed = reference.frozen_logits(model, final - gone, final)
            expected = reference.effects(clean, changed, tokens)
            expected = {k: v[:, [1, 7]] for k, v in expected.items()}
            agree(found.sel(component=label), expected)


def test_float32_agrees_with_float64(kind, backend, tokens):
    """Neurons' KLs go down to 1e-10 nats; each is right to a thousandth, and none is negative."""
    narrow, wide = (
        ablate_direct(model, cache_for(model, tokens, level="neuron"), "neuron")
        for model in (
            kind("parallel", backend, "folded"),
            kind("parallel", backend, "folded", torch.float64),
        )
    )
    assert float(wide.kl.min()) < 1e-7
    np.testing.assert_allclose(narrow.kl, wide.kl, rtol=1e-3, atol=1e-11)
    np.testing.assert_allclose(narrow.delta_loss, wide.delta_loss, rtol=1e-3, atol=1e-5)
    assert bool((narrow.kl >= 0).all())


@pytest.mark.parametrize(
    ("way", "architecture", "backend", "processing"),
    pairwise([*WAYS], ARCHITECTURES, BACKENDS, PROCESSINGS),
)
def test_total_ablation_is_what_plain_hooks_give(
    kind, way, architecture, backend, processing, tokens
):
    model = kind(architecture, backend, processing)
    baseline, first = WAYS[way]
    cache, counted = reference.full_cache(model, tokens), reference.counted(tokens, first)
    clean = reference.hooked_logits(model, tokens, {})
    found = ablate_total(model, tokens, HOOKED, first=first, baseline=baseline, seed=2)
    for name, labels in HOOKED.items():
        hooks = reference.ablating_hooks(model, cache, labels, counted, baseline, donors(4, seed=2))
        changed = reference.hooked_logits(model, tokens, hooks)
        expected = reference.effects(clean, changed, tokens)
        del expected["top1_changed"]  # ties of float32 logits may fall either way
        one = found.sel(component=name)
        for measure, values in expected.items():
            np.testing.assert_allclose(
                one[measure], values, rtol=2e-3, atol=2e-5, err_msg=f"{name} {measure}"
            )


def test_biases_in_total(kind, backend, tokens):
    """Against a model whose biases are set to zero."""
    model = kind("gpt2", backend, "raw")
    clean = reference.hooked_logits(model, tokens, {})
    found = ablate_total(model, tokens, ["1.b_O", "0.b_out", "pos_embed"], first=0)
    for label, module, hook in [
        ("1.b_O", model.blocks[1].attn.b_O, "blocks.1.hook_attn_out"),
        ("0.b_out", model.blocks[0].mlp.b_out, "blocks.0.hook_mlp_out"),
    ]:
        changed = reference.hooked_logits(model, tokens, {hook: lambda x, hook, b=module: x - b})
        expected = reference.effects(clean, changed, tokens)["kl"]
        np.testing.assert_allclose(
            found.sel(component=label).kl, expected.detach(), rtol=2e-3, atol=1e-5
        )
    changed = reference.hooked_logits(model, tokens, {"hook_pos_embed": lambda x, hook: 0 * x})
    expected = reference.effects(clean, changed, tokens)["kl"]
    np.testing.assert_allclose(found.sel(component="pos_embed").kl, expected, rtol=2e-3, atol=1e-5)


def test_the_last_mlp_acts_directly_and_in_no_other_way(model, tokens):
    cache = cache_for(model, tokens)
    for baseline in BASELINES:
        direct = ablate_direct(model, cache, ["2.mlp"], baseline=baseline)
        total = ablate_total(model, tokens, ["2.mlp"], baseline=baseline)
        np.testing.assert_allclose(direct.kl, total.kl, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(direct.delta_loss, total.delta_loss, rtol=1e-3, atol=1e-4)


def test_hooks_give_the_same_totals(kind, backend, tokens, monkeypatch):
    """Models that the lean forward does not serve run through hooks."""
    model = kind("parallel", backend)
    lean = ablate_total(model, tokens, GROUPS, baseline="mean")
    monkeypatch.setattr("mlp_interp.runs.runner.forward_of", lambda m: HookForward(Weights.of(m)))
    hooks = ablate_total(model, tokens, GROUPS, baseline="mean")
    assert (lean.attrs["engine"], hooks.attrs["engine"]) == ("lean", "hooks")
    np.testing.assert_allclose(lean.kl, hooks.kl, rtol=1e-3, atol=1e-5)


def test_everything_taken_out_leaves_the_readouts_bias(kind, backend, tokens):
    model = kind("parallel", backend, "raw", torch.float64)
    cache = cache_for(model, tokens)
    final = reference.final_stream(model, cache)
    parts = ["embed", *(f"{i}.{name}" for i in range(3) for name in ("attn", "mlp"))]
    found = ablate_direct(model, cache, {"all": parts}, first=0)
    clean, nothing = reference.logits(model, final), reference.logits(model, 0 * final)
    agree(
        found.sel(component="all"), reference.effects(clean, nothing, tokens), rtol=1e-4, atol=1e-6
    )


def test_aggregates_are_means_over_tokens_then_sequences(kind, tokens):
    found = ablate_direct(kind(), cache_for(kind(), tokens))
    counted = reference.counted(tokens)
    for variable, mean, error in [
        ("kl", "kl_mean", "kl_se"),
        ("delta_loss", "delta_loss_mean", "delta_loss_se"),
        ("top1_changed", "top1_change_rate", "top1_change_rate_se"),
    ]:
        rows = zip(found[variable].transpose("prompt", ...).values, counted, strict=True)
        sequences = np.stack([np.nanmean(row[:, places], -1) for row, places in rows], -1)
        np.testing.assert_allclose(found[mean], sequences.mean(-1), rtol=1e-5)
        np.testing.assert_allclose(
            found[error], sequences.std(-1, ddof=1) / np.sqrt(4), rtol=1e-4, atol=1e-7
        )
    np.testing.assert_allclose(found.perplexity_ratio, np.exp(found.delta_loss_mean), rtol=1e-5)
    np.testing.assert_allclose(
        found.perplexity_ratio_se, found.perplexity_ratio * found.delta_loss_se, rtol=1e-4
    )
    assert found.delta_loss[..., -1].isnull().all()
    assert not found.delta_loss[..., :-1].isnull().any()


def test_one_sequence_has_no_standard_error(kind, tokens):
    found = ablate_total(kind(), tokens[:1], ["0.mlp"])
    assert found.kl_se.isnull().all()
    assert not found.kl_mean.isnull().any()


def test_losses_want_tokens(kind, tokens):
    model = kind()
    cache = dict(cache_for(model, tokens).items())
    with_tokens = ablate_direct(model, cache, first=0)
    del cache["tokens"]
    told = ablate_direct(model, cache, first=0)  # by the embeddings
    np.testing.assert_array_equal(told.delta_loss, with_tokens.delta_loss)
    del cache["hook_embed"]
    without = ablate_direct(model, cache, first=0)
    assert "delta_loss" not in without
    np.testing.assert_array_equal(without.kl, with_tokens.kl)
    given = ablate_direct(model, cache, tokens=tokens, first=0)
    np.testing.assert_array_equal(given.delta_loss, with_tokens.delta_loss)
    with pytest.raises(ValueError, match=r"tokens=\(2, 9\) do not match the cache's \(4, 9\)"):
        ablate_direct(model, cache, tokens=tokens[:2])


def test_a_cache_without_batch_dimension(kind, backend, tokens):
    model = kind("parallel", backend)
    expected = ablate_direct(model, cache_for(model, tokens[:1]))
    cache = cache_for(model, tokens[:1])
    cache.remove_batch_dim()
    found = ablate_direct(model, cache)
    np.testing.assert_allclose(found.delta_loss, expected.delta_loss, rtol=1e-5)


def test_where_it_is_measured(kind, tokens):
    model = kind()
    cache = cache_for(model, tokens)
    for baseline in BASELINES:
        everywhere = ablate_direct(model, cache, baseline=baseline)
        some = ablate_direct(model, cache, positions=[-1, 2], baseline=baseline)
        assert list(some.pos.values) == [8, 2]
        np.testing.assert_allclose(some.kl, everywhere.kl[..., [8, 2]], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(
            some.delta_loss, everywhere.delta_loss[..., [8, 2]], rtol=1e-3, atol=1e-5
        )


def test_levels_name_their_groups(kind, tokens):
    model = kind("gpt2")
    weights = Weights.of(model)
    for level, count in (("component", 6), ("head", 12), ("neuron", 3 * 128)):
        named = resolve(weights, level)
        assert len(named) == count
        assert all(len(sites) == 1 for sites in named.values())
    named = ablate_total(model, tokens, {"mine": ["0.mlp", "1.mlp"], "L0H1": ["L0H1"]})
    assert list(named.component.values) == ["mine", "L0H1"]
    assert list(named.kind.values) == ["group", "head"]
    assert list(named.layer.values) == [-1, 0]
    assert named.kl.attrs["unit"] == "nats"
    assert named.attrs["analysis"] == "total ablation"


def test_little_memory_gives_the_same_numbers(kind, tokens, monkeypatch):
    """Chunks of rows and of groups are an implementation detail."""
    from mlp_interp.metrics import rows
    from mlp_interp.models import scan

    model = kind()
    cache = reference.full_cache(model, tokens)
    groups = ["1.attn", "2.mlp", "L1H2", "L0N7", "1.b_O", "0.b_out", "embed"]
    whole = ablate_direct(model, cache, groups), ablate_direct(model, cache, "neuron")
    monkeypatch.setattr(rows, "_CHANGES", 1)
    monkeypatch.setattr(rows, "rows_for", lambda unembed: 5)
    monkeypatch.setattr(scan, "_ROWS", 1)
    pieces = ablate_direct(model, cache, groups), ablate_direct(model, cache, "neuron")
    for a, b in zip(whole, pieces, strict=True):
        np.testing.assert_allclose(a.kl, b.kl, rtol=1e-3, atol=1e-10)
        np.testing.assert_allclose(a.delta_loss, b.delta_loss, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("batch", [2, 3, 7])
@pytest.mark.parametrize("seed", range(4))
def test_no_sequence_stands_in_for_itself(batch, seed):
    found = donors(batch, seed)
    assert sorted(found) == list(range(batch))
    assert all(i != donor for i, donor in enumerate(found))
    assert donors(batch, seed) == found


def test_seeds_differ():
    assert len({tuple(donors(7, seed)) for seed in range(10)}) > 1


def test_a_mean_is_over_sequences_and_positions(kind, tokens):
    residual = residual_decompose(kind(), cache_for(kind(), tokens))
    x = residual.vectors()[:, :, 1]
    counts = torch.ones_like(tokens, dtype=torch.bool)
    found = stand_in("mean", counts)(Site("attn_out", 0), x)
    torch.testing.assert_close(found, x.flatten(0, 1).mean(0).expand_as(x))


@pytest.mark.parametrize("analysis", [ablate_total, subupdate_importance, norms])
def test_where_no_token_counts(kind, analysis):
    with pytest.raises(ValueError, match=r"first=1 with 1 texts of up to 2 tokens; wanted one"):
        analysis(kind(), torch.zeros(1, 2, dtype=torch.long), attention_mask=torch.ones(1, 2))
    with pytest.raises(ValueError, match="first=-1; wanted a position from 0"):
        analysis(kind(), torch.ones(2, 3, dtype=torch.long), first=-1)


def test_without_tokens_bos_counts_after_the_first_position(kind, tokens):
    model = kind()
    cache = dict(cache_for(model, tokens).items())
    known = ablate_direct(model, cache, ["1.mlp"])
    for name in ("tokens", "hook_embed"):  # either tells what was run
        del cache[name]
    unknown = ablate_direct(model, cache, ["1.mlp"])
    assert float(known.kl[0, 1, 4]) == 0
    assert float(unknown.kl[0, 1, 4]) > 0
    assert (unknown.kl[:, :, 0] == 0).all()


@pytest.mark.parametrize(
    ("groups", "text"),
    [
        ("heads", r"groups='heads' is .*mean 'head'.*; wanted 'component', 'head', 'neuron', or"),
        ([], "groups is empty"),
        ({}, "groups is empty"),
        ({"a": []}, "group 'a' is empty"),
        (["0.mlp", "1.mlp", "0.mlp"], "names a component twice"),
        ({"a": ["L0H1", "L0H1"]}, "group 'a' names a component twice"),
        ({"a": ["0.mlp", "L0N3"]}, r"holds 'L0N3' and the whole '0\.mlp'"),
        ({"a": ["1.attn", "L0H1", "1.b_O"]}, r"holds '1\.b_O' and the whole '1\.attn'"),
        (["3.mlp"], "is not a component of this model"),
        (["L0H4"], "'L0H4' is not a component of this model: the model has 4 heads"),
        (["mlp"], "is not a component label"),
        (["1.resid_pre"], "is not a component of this model"),
        (["pos_embed"], "is not a component of this model"),
    ],
)
def test_bad_groups(kind, tokens, groups, text):
    model = kind()
    with pytest.raises(ValueError, match=text):
        ablate_direct(model, cache_for(model, tokens), groups)
    with pytest.raises(ValueError, match=text):
        ablate_total(model, tokens, groups)


@pytest.mark.usefixtures("without_type_checks")
def test_bad_options(kind, tokens):
    model = kind()
    cache, direct = cache_for(model, tokens), unchecked(ablate_direct)
    with pytest.raises(ValueError, match="norm='frozen'; wanted 'recompute' or 'freeze'"):
        direct(model, cache, norm="frozen")
    with pytest.raises(ValueError, match="method='fast'; wanted 'exact' or 'second_order'"):
        direct(model, cache, method="fast")
    with pytest.raises(ValueError, match="method='second_order' wants groups of single neurons"):
        direct(model, cache, method="second_order")
    with pytest.raises(ValueError, match="tolerance=-1"):
        direct(model, cache, ["L0N1"], method="second_order", tolerance=-1.0)
    with pytest.raises(ValueError, match="tolerance='x'; wanted 0 or more"):
        direct(model, cache, ["L0N1"], method="second_order", tolerance="x")
    with pytest.raises(ValueError, match="baseline='median'; wanted 'zero', 'mean' or 'resample'"):
        direct(model, cache, baseline="median")
    with pytest.raises(ValueError, match="baseline='median'"):
        unchecked(ablate_total)(model, tokens, baseline="median")
    with pytest.raises(ValueError, match="baseline='resample' with 1 sequence; wanted at least 2"):
        ablate_total(model, tokens[:1], baseline="resample")
    with pytest.raises(ValueError, match=r"cache lacks blocks\.0\.attn\.hook_z"):
        direct(model, cache, ["L0H1"])
    with pytest.raises(ValueError, match="wanted integers from -9 to 8"):
        direct(model, cache, positions=9)
    with pytest.raises(ValueError, match="wanted a Corpus, texts, or an integer tensor"):
        unchecked(ablate_total)(model, tokens[None])


def test_an_error_in_the_middle_leaves_the_model_as_it_was(kind, backend, tokens, monkeypatch):
    """The fixture compares the model's state after the test."""
    model, calls = kind("parallel", backend), []

    def fail(self, clean, edits):
        calls.append(edits)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return clean.final

    monkeypatch.setattr("mlp_interp.runs.Runner.edited", fail)
    with pytest.raises(KeyboardInterrupt):
        ablate_total(model, tokens)
    assert len(calls) == 3


def test_second_order_falls_back_where_its_bound_does_not_hold(nano, monkeypatch):
    """With no tolerance all neurons are computed exactly, with some only those beyond it."""
    tokens = torch.randint(nano.cfg.d_vocab, (2, 6), generator=torch.Generator().manual_seed(0))
    cache = cache_for(nano, tokens, level="neuron")
    real, counts = SecondOrder.__call__, []

    def noted(self, change, tolerance):
        effects, holds = real(self, change, tolerance)
        counts.append((int((~holds).sum()), holds.numel()))
        return effects, holds

    monkeypatch.setattr(SecondOrder, "__call__", noted)

    def share(tolerance):
        counts.clear()
        ablate_direct(
            nano, cache, "neuron", positions=[1, 4], method="second_order", tolerance=tolerance
        )
        return sum(done for done, _ in counts) / sum(size for _, size in counts)

    shares = [share(tolerance) for tolerance in (0.0, 1e-6, 1e-2, 10.0)]
    assert shares[0] > 0.98  # all but neurons that do nothing at all
    assert shares == sorted(shares, reverse=True)
    assert shares[2] < 0.5  # it is worth having
    assert shares[1] > shares[2]


def test_second_order_leaves_open_whether_an_unlikely_token_wins():
    """However large the tolerance: the estimate looks at the head of the vocabulary only."""
    weight, bias = torch.zeros(2, 2000), torch.zeros(2000)
    weight[0, 1999] = 1.0  # neither among the likeliest nor among the longest directions
    weight[1, 1000:1300] = 2.0
    bias[:512] = 0.02
    clean = LogitChange.of(
        Unembed(weight, bias, Norm("layer", 1e-5)), torch.zeros(1, 2), torch.tensor([-1])
    )
    changes = torch.tensor([[0.1, 0.0], [0.001, 0.0]])
    assert clean.effects(changes[:, None]).top1_changed.flatten().tolist() == [1, 0]
    effects, holds = SecondOrder.of(clean)(changes, 1e9)
    assert holds.tolist() == [False, True]
    assert effects.top1_changed[1] == 0


@pytest.mark.parametrize("norm", ["recompute", "freeze"])
def test_second_order_is_within_its_tolerance(nano, norm):
    tokens = torch.randint(nano.cfg.d_vocab, (2, 6), generator=torch.Generator().manual_seed(0))
    cache = cache_for(nano, tokens, level="neuron")
    exact = ablate_direct(nano, cache, "neuron", norm=norm, positions=[1, 4])
    for tolerance in (1e-2, 1e-4):
        found = ablate_direct(
            nano, cache, "neuron", norm=norm, positions=[1, 4], method="second_order",
            tolerance=tolerance,
        )  # fmt: skip
        np.testing.assert_allclose(found.kl, exact.kl, rtol=max(tolerance, 1e-3), atol=1e-12)
        np.testing.assert_array_equal(found.top1_changed, exact.top1_changed)
        np.testing.assert_allclose(found.delta_loss, exact.delta_loss, rtol=1e-2, atol=1e-5)
    never = ablate_direct(
        nano, cache, "neuron", norm=norm, positions=[1, 4], method="second_order", tolerance=0.0
    )
    np.testing.assert_allclose(never.kl, exact.kl, rtol=1e-3, atol=1e-12)
