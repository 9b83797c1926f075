"""Ablations over a corpus: sums, resumption, ranges, standard errors."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import scipy.stats
import torch
import xarray as xr
from random_models import ARCHITECTURES, BACKENDS, unchecked

from mlp_interp import ablate_direct, ablate_ranges, ablate_total, subupdate_importance
from mlp_interp.ablation import corpus, importance, total
from mlp_interp.ablation.baselines import stand_in
from mlp_interp.corpus import SweepOptions
from mlp_interp.models.padding import which_count
from mlp_interp.residual import cache_for
from mlp_interp.runs import Runner
from mlp_interp.sites import Site

LABELS = ["0.attn", "0.mlp", "1.attn", "1.mlp", "2.attn", "2.mlp"]


@pytest.fixture
def rows():
    """Random ones; one has a BOS between texts."""
    rows = torch.randint(300, (7, 6), generator=torch.Generator().manual_seed(11))
    rows[2, 3] = 0
    return rows


def batches(size, **options):
    return SweepOptions(batch_size=size, shard=size, **options)


def per_sequence(values, rows):
    values = values.transpose("prompt", "component", "pos").values
    each = zip(values, reference.counted(rows), strict=True)
    return np.stack([np.nanmean(x[:, places], -1) for x, places in each], -1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_what_nothing_later_reads_has_its_direct_effect_in_total(kind, architecture, rows):
    """That of the last layer's attention, too, where the MLP beside it does not read it."""
    model = kind(architecture, BACKENDS[0], "raw")
    found = subupdate_importance(model, rows, sweep=batches(7))
    total = per_sequence(ablate_total(model, rows).kl, rows).mean(-1)
    np.testing.assert_allclose(found.kl_total, total, rtol=1e-3, atol=1e-6)
    apart = np.abs(found.kl_later) > 1e-5 * found.kl_total
    last = found.layer == model.cfg.n_layers - 1
    alone = last & ((found.kind == "mlp") | (architecture == "parallel"))
    np.testing.assert_array_equal(apart, ~alone)


@pytest.mark.parametrize("baseline", ["zero", "mean"])
@pytest.mark.parametrize("level", ["component", "head"])
def test_importance_is_the_two_ablations_over_all_sequences_at_once(
    kind, backend, rows, level, baseline
):
    model = kind("parallel", backend, "raw")
    found = subupdate_importance(model, rows, level=level, baseline=baseline, sweep=batches(3))
    cache = cache_for(model, rows, level=level)
    ways = {
        "direct": ablate_direct(model, cache, level, baseline=baseline),
        "direct_frozen": ablate_direct(model, cache, level, baseline=baseline, norm="freeze"),
        "total": ablate_total(model, rows, level, baseline=baseline),
    }
    assert list(found.component.values) == list(ways["total"].component.values)
    by_way = {
        quantity: {way: per_sequence(result[quantity], rows) for way, result in ways.items()}
        for quantity in ("kl", "delta_loss", "top1_changed")
    }
    for quantity in ("kl", "delta_loss"):
        values = by_way[quantity]
        values["later"] = values["total"] - values["direct"]
        values["layernorm"] = values["direct"] - values["direct_frozen"]
        for way, sequences in values.items():
            name = f"{quantity}_{way}"
            np.testing.assert_allclose(
                found[name], sequences.mean(-1), rtol=1e-3, atol=2e-5, err_msg=name
            )
            error = scipy.stats.sem(sequences, axis=-1)
            np.testing.assert_allclose(found[f"{name}_se"], error, rtol=1e-2, atol=2e-5)
    for way in ("direct", "total"):
        changed = by_way["top1_changed"][way]
        np.testing.assert_allclose(found[f"top1_{way}"], changed.mean(-1), atol=0.03)
        ratio = np.exp(found[f"delta_loss_{way}"])
        np.testing.assert_allclose(found[f"perplexity_ratio_{way}"], ratio, rtol=1e-5)
        np.testing.assert_allclose(
            found[f"perplexity_ratio_{way}_se"], ratio * found[f"delta_loss_{way}_se"], rtol=1e-4
        )
    logits = reference.hooked_logits(model, rows, {})
    loss = reference.loss(logits, rows, reference.counted(rows))
    assert found.attrs["clean_loss"] == pytest.approx(loss.mean().item(), rel=1e-5)
    assert found.attrs["clean_loss_se"] == pytest.approx(scipy.stats.sem(loss), rel=1e-4)
    assert found.attrs["sequences"] == 7


def test_identities_of_the_summary(model, rows):
    found = subupdate_importance(model, rows, sweep=batches(4))
    for q in ("kl", "delta_loss"):
        total = found[f"{q}_direct"] + found[f"{q}_later"]
        np.testing.assert_allclose(total, found[f"{q}_total"], rtol=1e-5, atol=1e-6)
        direct = found[f"{q}_direct_frozen"] + found[f"{q}_layernorm"]
        np.testing.assert_allclose(direct, found[f"{q}_direct"], rtol=1e-5, atol=1e-6)
        # Nothing comes after the last MLP, and in a parallel block nothing after its attention.
        last = LABELS[-2:] if model.cfg.parallel_attn_mlp else LABELS[-1:]
        later = found[f"{q}_later"].sel(component=last)
        np.testing.assert_allclose(later, 0, atol=2e-5)
        assert float(abs(found[f"{q}_later"].sel(component="0.mlp"))) > 1e-4


@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_the_batch_size_makes_no_difference(kind, rows, baseline):
    found = [
        subupdate_importance(kind(), rows, baseline=baseline, sweep=batches(size))
        for size in (1, 4, 99)
    ]
    for one in found[1:]:
        for name in found[0].data_vars:
            np.testing.assert_allclose(one[name], found[0][name], rtol=1e-3, atol=1e-5)
        assert one.attrs["clean_loss"] == pytest.approx(found[0].attrs["clean_loss"])


def test_resampling_takes_every_sequence_from_its_batch(kind, rows):
    """Seven sequences in batches of three: no sequence is left alone with itself."""
    model = kind()
    found = subupdate_importance(model, rows, baseline="resample", sweep=batches(3), seed=1)
    assert (found.kl_total > 1e-4).all()
    other = subupdate_importance(model, rows, baseline="resample", sweep=batches(3), seed=2)
    assert not np.allclose(found.kl_total, other.kl_total)
    again = subupdate_importance(model, rows, baseline="resample", sweep=batches(3), seed=1)
    xr.testing.assert_identical(found, again)


def test_every_batch_is_resampled_in_its_own_way(kind, rows, monkeypatch):
    real, seeds = corpus.stand_in, []

    def noted(baseline, batch, *, seed=None, **options):
        if seed is not None:
            seeds.append(seed)
        return real(baseline, batch, seed=seed or 0, **options)

    monkeypatch.setattr(corpus, "stand_in", noted)
    ablate_ranges(kind(), rows[:6], baseline="resample", sweep=batches(2), seed=5)
    assert len(seeds) == len(set(seeds)) == 3


@pytest.mark.parametrize("which", ["mlp", "attn", "both"])
def test_ranges_are_what_plain_hooks_give(some_model, rows, which):
    model = some_model
    found = ablate_ranges(model, rows, kind=which, sweep=batches(4))
    names = ["attn", "mlp"] if which == "both" else [which]
    cache, counted = reference.full_cache(model, rows), reference.counted(rows)
    clean = reference.loss(reference.hooked_logits(model, rows, {}), rows, counted)
    assert found.attrs["clean_perplexity"] == pytest.approx(clean.mean().exp().item(), rel=1e-4)
    for start, end in itertools.product(range(3), repeat=2):
        cell = found.sel(start=start, end=end)
        if end < start:
            assert all(cell[name].isnull() for name in found.data_vars)
            continue
        labels = [f"{layer}.{name}" for layer in range(start, end + 1) for name in names]
        hooks = reference.ablating_hooks(model, cache, labels, counted)
        loss = reference.loss(reference.hooked_logits(model, rows, hooks), rows, counted)
        assert float(cell.perplexity) == pytest.approx(loss.mean().exp().item(), rel=1e-3)
        error = loss.mean().exp().item() * scipy.stats.sem(loss)
        assert float(cell.perplexity_se) == pytest.approx(error, rel=1e-2)
        assert float(cell.delta_loss) == pytest.approx((loss - clean).mean().item(), abs=1e-4)
        assert float(cell.delta_loss_se) == pytest.approx(
            scipy.stats.sem(loss - clean), rel=1e-2, abs=1e-4
        )


def test_ranges_of_blocks_are_ranges(kind, rows, monkeypatch):
    """Three layers in two blocks: the first two layers, the last one, all."""
    model = kind()
    whole = ablate_ranges(model, rows, sweep=batches(4))
    told: list[float] = []
    monkeypatch.setattr("mlp_interp.metrics.rows._CHANGES", 1)
    few = SweepOptions(batch_size=4, shard=4, progress=told.append)
    found = ablate_ranges(model, rows, blocks=2, sweep=few)
    assert (found.start.values.tolist(), found.end.values.tolist()) == ([0, 2], [1, 2])
    for start, end in ((0, 1), (0, 2), (2, 2)):
        one, same = (found.sel(start=start, end=end), whole.sel(start=start, end=end))
        for name in found.data_vars:
            assert float(one[name]) == pytest.approx(float(same[name]), rel=1e-5)
    assert all(found.sel(start=2, end=1)[name].isnull() for name in found.data_vars)
    # Who waits is told of steps within a batch.
    assert told == sorted(told)
    assert told[-1] == 1
    assert len(set(told)) > 1 + -(-len(rows) // 4)
    for wrong in (0, 4):
        with pytest.raises(ValueError, match=f"blocks={wrong}"):
            ablate_ranges(model, rows, blocks=wrong)


def counting(monkeypatch, fail_at=None):
    """Count the batches that are computed; break off at one of them."""
    real, calls = importance.total_changes, []

    def changes(*args, **kwargs):
        if len(calls) == fail_at:
            raise KeyboardInterrupt
        calls.append(None)
        return real(*args, **kwargs)

    monkeypatch.setattr(importance, "total_changes", changes)
    return calls


ANALYSES = {
    "importance": subupdate_importance,
    "ranges": ablate_ranges,
}


@pytest.mark.parametrize("analysis", ANALYSES)
@pytest.mark.parametrize("baseline", ["zero", "mean", "resample"])
def test_an_interrupted_run_goes_on_where_it_was(
    kind, rows, analysis, baseline, tmp_path, monkeypatch
):
    model, run, rows = kind(), ANALYSES[analysis], rows[:6]
    options = {"baseline": baseline}
    kept = batches(2, checkpoint=tmp_path)
    whole = run(model, rows, sweep=batches(2), **options)
    with monkeypatch.context() as patch:
        counting(patch, fail_at=2)
        with pytest.raises(KeyboardInterrupt):
            run(model, rows, sweep=kept, **options)
    with monkeypatch.context() as patch:
        calls = counting(patch)
        resumed = run(model, rows, sweep=kept, **options)
        assert len(calls) == 1
        again = run(model, rows, sweep=kept, **options)
        assert len(calls) == 1
    xr.testing.assert_identical(resumed, whole)
    xr.testing.assert_identical(again, whole)


def test_other_options_models_and_tokens_do_not_reuse_batches(kind, rows, tmp_path, monkeypatch):
    model = kind("parallel")
    calls = counting(monkeypatch)
    run = lambda m=model, r=rows, f=subupdate_importance, size=7, **options: f(
        m, r, sweep=batches(size, checkpoint=tmp_path), **options
    )
    others = [
        run,
        lambda: run(baseline="mean"),
        lambda: run(baseline="resample"),
        lambda: run(baseline="resample", seed=1),
        lambda: run(size=6),
        lambda: run(level="head"),
        lambda: run(r=rows.flip(0)),
        lambda: run(r=rows[:, :5]),
        lambda: run(r=rows[:6]),
        lambda: run(m=kind("parallel", processing="raw")),
        lambda: run(m=kind("sequential")),
        *(lambda b=b: run(m=kind("parallel", b)) for b in BACKENDS[1:]),
        lambda: run(f=ablate_ranges, kind="mlp"),
        lambda: run(f=ablate_ranges, kind="attn"),
    ]
    for number, other in enumerate(others):
        before = len(calls)
        other()
        assert len(calls) > before, number
        after = len(calls)
        other()
        assert len(calls) == after, number


def test_edited_weights_do_not_reuse_batches(kind, rows, tmp_path, monkeypatch, backend):
    model = kind("parallel", backend)
    calls = counting(monkeypatch)
    subupdate_importance(model, rows, sweep=batches(8, checkpoint=tmp_path))
    weight = model.blocks[1].mlp.W_out.data
    kept = weight.clone()
    try:
        weight.mul_(1.001)
        subupdate_importance(model, rows, sweep=batches(8, checkpoint=tmp_path))
        assert len(calls) == 2
    finally:
        weight.copy_(kept)


def test_where_numbers_come_from_is_kept(kind, rows):
    corpus = SimpleNamespace(tokens=rows, attrs={"data": "seven lines", "sha256": "abc"})
    for run in ANALYSES.values():
        found = run(kind(), corpus, baseline="mean", seed=5)
        assert found.attrs["data"] == "seven lines"
        assert found.attrs["sha256"] == "abc"
        assert found.attrs["baseline"] == "mean"
        assert found.attrs["seed"] == 5
        assert found.attrs["model"] == "memory"
        assert all(isinstance(v, str | int | float) for v in found.attrs.values())


def test_bad_arguments(kind, rows):
    model = kind()
    for name, run in ANALYSES.items():
        run = unchecked(run)
        with pytest.raises(ValueError, match="is empty"):
            run(model, rows[:0])
        with pytest.raises(ValueError, match="is the name of a corpus; wanted load_corpus"):
            run(model, "nano")
        with pytest.raises(ValueError, match="sequences of 1 token have no next token"):
            run(model, rows[:, :1], first=0)
        with pytest.raises(ValueError, match="first=1 with 7 texts of up to 1 tokens"):
            run(model, rows[:, :1])
        with pytest.raises(ValueError, match="baseline='resample' with 1 sequence"):
            run(model, rows[:1], baseline="resample")
        with pytest.raises(ValueError, match="tokens hold 300"):
            run(model, rows + 300 - rows.max())
        if name == "importance":
            with pytest.raises(ValueError, match="level='neuron'; wanted 'component' or 'head'"):
                run(model, rows, level="neuron")
        else:
            with pytest.raises(ValueError, match="kind='mlps'; wanted 'mlp', 'attn' or 'both'"):
                run(model, rows, kind="mlps")


def test_groups_that_begin_alike_share_their_runs(kind, rows):
    """A range goes on from the range that ends a layer before: as each by itself does."""
    runner = Runner.of(kind())
    layers = range(runner.weights.n_layers)
    groups = [
        tuple(Site(name, layer) for layer in range(a, b + 1) for name in ("attn_out", "mlp_out"))
        for a in layers
        for b in range(a, len(layers))
    ]
    groups += [(Site("z", 0, head=0),), (Site("z", 0, head=0), Site("z", 0, head=1))]
    groups += [groups[0], groups[0], (Site("embed"),), (Site("embed"), Site("post", 1, neuron=3))]
    clean = runner.run(rows, sites=total.read_sites({str(n): g for n, g in enumerate(groups)}))
    stand = stand_in("mean", which_count(runner.weights.model, rows, None, 1))
    found = total.total_changes(runner, clean, groups, stand)
    for sites, change in zip(groups, found, strict=True):
        alone = runner.edited(clean, total.edits_for(runner.weights, clean, sites, stand))
        expected = runner.unembed.normalize(alone) - runner.unembed.normalize(clean.final)
        torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("analysis", ANALYSES)
def test_a_batch_in_which_no_token_counts_adds_nothing(kind, rows, analysis):
    """Short texts, each in a batch of its own: there is nothing to take away from them."""
    model, run = kind(), ANALYSES[analysis]
    mask = torch.ones_like(rows)
    mask[3:5, 2:] = 0
    kept = [0, 1, 2, 5, 6]
    found = run(model, rows, attention_mask=mask, first=3, sweep=batches(1))
    expected = run(model, rows[kept], attention_mask=mask[kept], first=3, sweep=batches(1))
    for name in expected.data_vars:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-7)


def test_perplexities_of_large_losses_are_numbers():
    loss = xr.DataArray(np.array([100.0], dtype=np.float32))
    found, error = importance._exponential(loss, 0.1 * loss)
    np.testing.assert_allclose(found, np.exp(100.0))
    np.testing.assert_allclose(error, 10 * np.exp(100.0), rtol=1e-6)
