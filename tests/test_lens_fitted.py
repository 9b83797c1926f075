"""Lenses over a corpus and lenses from one: against reads of every text, and closed forms."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from random_models import unchecked

import mlp_interp as mi
from mlp_interp.lens import decoder, linear, logit, mean, over, read, repetition
from mlp_interp.lens.moments import solved

ROWS = [[0, 5, 6, 7, 9, 4], [0, 8, 3, 9], [0, 1, 2, 3, 4, 5]]


def test_over_is_the_mean_of_reads(some_model: Any) -> None:
    lenses = {"logit": logit(some_model), "decoder": decoder(some_model, 1)}
    lenses["ahead"] = replace(lenses["logit"], ahead=1)
    found = over(some_model, ROWS, lenses, sweep=mi.SweepOptions(batch_size=2, shard=2))
    each = read(some_model, ROWS, lenses).isel(pos=slice(1, None))
    for name in ("kl_output", "kl_input", "entropy", "agrees", "logp_next", "logp_input"):
        by_text = each[name].mean("pos")
        values = by_text.mean("prompt").transpose(*found[name].dims)
        np.testing.assert_allclose(found[name], values, atol=2e-5, err_msg=name)
        error = (by_text.std("prompt", ddof=1) / 3**0.5).transpose(*found[name].dims)
        np.testing.assert_allclose(found[f"{name}_se"], error, atol=2e-5, err_msg=name)
    for name in ("kl_output", "rank_next", "rank_input"):
        for share in (0.25, 0.5, 0.75):
            least, most = (
                each[name].quantile(share, ["prompt", "pos"], method=way).drop_vars("quantile")
                for way in ("lower", "higher")
            )
            here = found[f"{name}_quantile"].sel(quantile=share)
            # Bins are known to 2.3%; below the first of them is 0.
            good = (here >= 0.97 * least - 1e-6) & (here <= 1.03 * most + 1e-6)
            assert bool((good | least.isnull()).all()), (name, share)


def test_means_by_position(some_model: Any) -> None:
    lens = decoder(some_model, 1, context="clean")
    options = mi.SweepOptions(batch_size=2, shard=1)
    found = over(some_model, ROWS, lens, by_position=True, first=2, sweep=options)
    assert found["pos"].values.tolist() == [2, 3, 4, 5]
    each = read(some_model, ROWS, lens).isel(pos=slice(2, None))
    for name in ("kl_output", "entropy", "agrees", "logp_next"):
        here, values = found[f"{name}_by_position"], each[name]
        np.testing.assert_allclose(here, values.mean("prompt"), atol=2e-5, err_msg=name)
        count = values.notnull().sum("prompt")
        error = (values.std("prompt", ddof=1) / count**0.5).where(count > 1)
        here = found[f"{name}_by_position_se"]
        np.testing.assert_allclose(here, error, atol=2e-5, err_msg=name)
    plain = over(some_model, ROWS, lens, first=2)
    assert not {*plain.data_vars} & {f"{name}_by_position" for name in plain.data_vars}
    xr.testing.assert_allclose(found[[*plain.data_vars]], plain, atol=1e-5)
    assert found["logp_next_by_position"].attrs["unit"] == "nats"


def test_distances_of_pairs_of_layers(kind: Any) -> None:
    model = kind()
    found = over(model, ROWS[::2], logit(model))
    assert found["kl_pairs"].dims == ("layer", "other")
    np.testing.assert_allclose(found["kl_pairs"].sel(layer=3), found["kl_output"], atol=1e-6)
    np.testing.assert_allclose(found["kl_pairs"].sel(layer=0), found["kl_input"], atol=1e-6)
    np.testing.assert_allclose(found["agreement_pairs"].sel(other=3), found["agrees"], atol=1e-6)
    assert (np.diag(found["kl_pairs"]) == 0).all()


def test_over_goes_on_from_a_checkpoint(kind: Any, tmp_path: Path) -> None:
    model = kind()
    one, other = mean(model, ROWS), mean(model, ROWS[:2])
    options = mi.SweepOptions(batch_size=1, shard=1, checkpoint=tmp_path)
    plain = [
        over(model, ROWS, lens, sweep=mi.SweepOptions(batch_size=1, shard=1))
        for lens in (one, other)
    ]
    kept = [over(model, ROWS, lens, sweep=options) for lens in (one, other)] + [
        over(model, ROWS, one, sweep=options)
    ]
    for here, wanted in zip(kept, [*plain, plain[0]], strict=True):
        np.testing.assert_array_equal(here["kl_output"], wanted["kl_output"])
    assert (kept[0]["kl_output"] != kept[1]["kl_output"]).any()


def test_mean_shifts(kind: Any, tokens: torch.Tensor) -> None:
    model = kind()
    lens = mean(model, tokens)
    run = mi.run(model, tokens)
    kept = [x - x.mean(-1, keepdim=True) for x in (*run.streams[:-1], run.final)]
    shift = (kept[-1] - kept[1])[:, 1:].mean((0, 1))
    assert lens.bias is not None
    torch.testing.assert_close(lens.bias[1], shift, atol=1e-5, rtol=1e-4)
    assert read(model, tokens, lens)["kl_output"].sel(layer=3).max() == 0
    other = mean(kind("parallel", "bridge", "raw"), tokens)
    assert other.bias is not None
    torch.testing.assert_close(lens.bias, other.bias, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ahead", [0, 1])
def test_linear_is_least_squares(some_model: Any, ahead: int) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 300, (12, 20), generator=generator)
    lens = linear(some_model, tokens, ahead=ahead, ridge=1e-9)
    run, keep = mi.run(some_model, tokens), some_model.cfg.normalization_type
    centre = (lambda x: x) if "RMS" in str(keep) else (lambda x: x - x.mean(-1, keepdim=True))
    x = centre(run.streams[1][:, 1 : 20 - ahead]).flatten(0, 1).double()
    y = centre(run.final[:, 1 + ahead :]).flatten(0, 1).double()
    ones = torch.ones(len(x), 1, dtype=x.dtype)
    best = torch.linalg.lstsq(torch.cat([x, ones], 1), y, rcond=1e-5, driver="gelsd").solution
    wanted = torch.cat([x, ones], 1) @ best
    found = lens.translate(x, 1)
    assert ((found - wanted).norm() / wanted.norm()) < 1e-3
    read_ahead = read(some_model, tokens, lens)
    assert read_ahead["kl_output"].isel(pos=slice(20 - ahead, None)).isnull().all()
    if ahead == 0:
        assert read_ahead["kl_output"].sel(layer=3).max() == 0


def test_residuals_are_uncorrelated_with_the_input() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 8, dtype=torch.float64, generator=generator)
    y = x.square() + x @ torch.randn(8, 8, dtype=torch.float64, generator=generator)
    n = len(x)
    weight, bias = solved(x.T @ x / n, x.T @ y / n, x.mean(0), y.mean(0), 0.0)
    left = y - x @ weight - bias
    assert (x.T @ left).abs().max() / n < 1e-8
    # A ridge is a share of the input's variances, whatever their unit.
    tenth = [
        solved(a * a * x.T @ x / n, a * x.T @ y / n, a * x.mean(0), y.mean(0), 0.1)[0] * a
        for a in (1.0, 10.0)
    ]
    torch.testing.assert_close(*tenth)
    assert float(tenth[0].norm()) < 0.97 * float(weight.norm())
    assert left.mean(0).abs().max() < 1e-8


def test_what_padding_says_is_no_target(kind: Any) -> None:
    texts = [[*range(1, 5 + n % 3 * 4)] for n in range(30)]
    eye = torch.eye(32)
    for first, ahead in ((1, 2), (3, 2), (3, 0)):
        lens = linear(kind(), texts, ahead=ahead, first=first, ridge=0.5)
        tokens = sum(max(0, len(text) - first - ahead) for text in texts)
        assert lens.attrs["tokens"] == tokens
        assert lens.weight is not None
        assert torch.equal(lens.weight[-1], eye) == (ahead == 0)  # the end itself, and nothing else
    assert mean(kind(), texts, first=3).attrs["tokens"] == tokens
    with pytest.raises(ValueError, match="corpus has 60 tokens that count; wanted at least 64"):
        linear(kind(), texts[:12], ahead=2)


def test_a_lens_ahead_is_held_against_what_comes_later(kind: Any, tokens: torch.Tensor) -> None:
    """The final stream itself, read against the prediction one position later."""
    model = kind()
    generator = torch.Generator().manual_seed(0)
    lens = linear(model, torch.randint(1, 300, (12, 20), generator=generator), ahead=1)
    found, plain = read(model, tokens, lens, layers=[3]), read(model, tokens, layers=[3])
    np.testing.assert_array_equal(
        found["agrees"].values[:, 0, :-1],
        found["top_id"].values[:, 0, :-1, 0] == plain["top_id"].values[:, 0, 1:, 0],
    )
    assert found["logp_next"].notnull().sum() == 4 * 7
    assert float(found["kl_output"].mean()) > 0.1  # from what comes later, not from itself


def test_lenses_are_the_same_for_raw_and_folded(kind: Any, tokens: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(1, 300, (12, 20), generator=generator)
    lens = linear(kind(), rows, ridge=1e-3)
    same = unchecked(linear)(kind(), rows, ridge=torch.tensor(1e-3, dtype=torch.float64))
    assert torch.equal(same.weight, lens.weight)
    one, other = (
        over(model, tokens, lens) for model in (kind(), kind("parallel", "bridge", "raw"))
    )
    xr.testing.assert_allclose(one["kl_output"], other["kl_output"], atol=1e-4)


def test_planted_decoder_of_nano(nano: Any) -> None:
    corpus = mi.load_corpus("nano", nano, sequences=48, length=64)
    lenses = {
        "logit": logit(nano),
        **{part: decoder(nano, 1, part=part) for part in ("block", "attn", "mlp")},
    }
    found = over(nano, corpus, lenses, layers=[2, 4])["kl_output"].sel(layer=2)
    for name, wanted in {"logit": 1.25, "block": 0.41, "attn": 0.49, "mlp": 1.15}.items():
        assert abs(float(found.sel(lens=name)) - wanted) < 0.1, name


def test_nano_copies_in_layer_1_and_random_models_nowhere(nano: Any, kind: Any) -> None:
    found = repetition(nano, n=8)
    assert (found["rank"][:2] > 100).all()
    assert (found["rank"][2:] == 0).all()
    assert (found["probability"][2:] > 0.5).all()
    assert (found["rank_chance"] > 100).all()
    null = repetition(kind(), n=8, period=12)
    assert (null["rank"] > 20).all()
    # By hand, at one place.
    drawn = torch.randint(277, (8, 12), generator=torch.Generator().manual_seed(0))
    tokens = 1 + drawn  # the tokenizer has 278 ids, of which 0 is BOS
    rows = torch.cat([torch.zeros(8, 1, dtype=torch.long), tokens, tokens], 1)
    with torch.no_grad():
        p = kind()(rows).softmax(-1)[:, 13:24].gather(-1, rows[:, 14:25, None])
    assert abs(float(p.mean()) - float(null["probability"][3])) < 1e-5
    with pytest.raises(ValueError, match="period=40; wanted at most 31"):
        repetition(kind(), period=40)


def test_bad_input(kind: Any) -> None:
    model = kind()
    with pytest.raises(ValueError, match="ahead=6 with texts of 6 tokens"):
        linear(model, ROWS[::2], ahead=6)
    with pytest.raises(ValueError, match="corpus has 10 tokens that count; wanted at least 64"):
        linear(model, ROWS[::2])
    with pytest.raises(ValueError, match="ridge=-1"):
        linear(model, ROWS, ridge=-1)
    with pytest.raises(ValueError, match="ridge=inf; wanted a finite number from 0"):
        linear(model, ROWS, ridge=np.inf)
    for wrong in (np.True_, torch.tensor(True), 10**400, torch.ones(2)):
        with pytest.raises(ValueError, match=r"ridge=.*; wanted a finite number from 0"):
            unchecked(linear)(model, ROWS, ridge=wrong)
    generator = torch.Generator().manual_seed(0)
    lens = linear(model, torch.randint(1, 300, (12, 20), generator=generator), ahead=1)
    with pytest.raises(ValueError, match=r"ahead=1.* with texts of 2 tokens, first=1"):
        over(model, [[0, 5], [0, 6]], lens)  # nothing comes after the second
    with pytest.raises(ValueError, match="first=9"):
        over(model, ROWS, first=9)
