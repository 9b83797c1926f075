"""Where texts come near the streams that lists need, and what views and reports say of lists."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from random_models import unchecked

from mlp_interp import SweepOptions, Unembed, load_corpus, views
from mlp_interp.reach import nearest_streams, reachable
from mlp_interp.report import Work
from mlp_interp.report.sections import SECTIONS
from mlp_interp.report.sections import lists as section
from mlp_interp.report.store import Store

TOKENS = torch.arange(60).reshape(5, 12)


@pytest.mark.parametrize("ordered", [False, True])
def test_nearest_streams_are_those_of_a_slow_search(some_model: Any, ordered: bool) -> None:
    found = reachable(some_model, [[5, 9, 100], [7, 8, 200]], ordered=ordered, exclude=[0, 1])
    near = nearest_streams(
        some_model, found, TOKENS, k=3, controls=4, sweep=SweepOptions(batch_size=2, shard=4)
    )
    unembed, name = Unembed.of(some_model), f"blocks.{some_model.cfg.n_layers - 1}.hook_resid_post"
    with torch.no_grad():
        _, cache = some_model.run_with_cache(TOKENS)
        streams = unembed.normalize(cache[name]).double()
        logits = streams @ unembed.weight.double() + unembed.bias.double()
    logits[..., :2] = -torch.inf
    for n, tokens in enumerate(found["token_id"].values):
        wanted = torch.from_numpy(found["stream"].values[n])
        cosine = torch.cosine_similarity(streams[:, 1:], wanted, dim=-1)
        best, pos = cosine.max(1)
        order = best.argsort(descending=True)[:3]
        np.testing.assert_array_equal(near["sequence"][n], order)
        np.testing.assert_array_equal(near["pos"][n], pos[order] + 1)
        np.testing.assert_allclose(near["cosine"][n], best[order], atol=1e-5)
        at = logits[order, pos[order] + 1]
        own = at[:, tokens.tolist()]
        others = at.scatter(1, torch.tensor(tokens).expand(3, -1), -torch.inf).amax(1)
        lead = own.amin(1) - others
        if ordered:
            lead = torch.minimum((own[:, :-1] - own[:, 1:]).amin(1), own[:, -1] - others)
        np.testing.assert_allclose(near["lead"][n], lead, atol=1e-4)
    drawn = np.random.default_rng(0).normal(size=(4, streams.shape[-1]))
    if unembed.norm.kind == "layer":
        drawn -= drawn.mean(1, keepdims=True)
    lengths = np.linalg.norm(drawn, axis=1, keepdims=True)
    real = streams[:, 1:].flatten(0, 1).numpy()
    unit = real / np.linalg.norm(real, axis=1, keepdims=True)
    np.testing.assert_allclose(near["random"], (unit @ (drawn / lengths).T).max(0), atol=1e-5)


def test_a_stream_that_a_text_has_is_found_there(nano: Any) -> None:
    with torch.no_grad():
        logits, cache = nano.run_with_cache(TOKENS)
    found = reachable(nano, logits[3, 7].topk(4).indices[None])
    stream = Unembed.of(nano).normalize(cache["resid_post", nano.cfg.n_layers - 1][3, 7])
    planted = found.assign(stream=(("set", "d_model"), stream[None].double().numpy()))
    near = nearest_streams(nano, planted, TOKENS, k=1, controls=8)
    assert (near["sequence"].item(), near["pos"].item()) == (3, 7)
    assert near["cosine"].item() == pytest.approx(1, abs=1e-5)
    top = logits[3, 7].topk(5).values
    assert near["lead"].item() == pytest.approx(float(top[3] - top[4]), abs=1e-3)
    assert float(near["random"].max()) < 0.7
    ids = TOKENS[3, :8].tolist()
    assert near["context"].item() == nano.tokenizer.decode(ids).replace("\0", "␀")
    # A row padded after its text, and one that is all text, in one batch.
    short = nearest_streams(nano, planted, [TOKENS[3, :8].tolist(), TOKENS[0].tolist()], k=2)
    assert short["cosine"][0, 0].item() == pytest.approx(1, abs=1e-5)


def test_bad_input(nano: Any) -> None:
    found = reachable(nano, [[5, 9]])
    for options, match in (
        ({"k": 6}, "k=6"),
        ({"k": 0}, "k=0"),
        ({"controls": -1}, "controls=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"first": 12}, "first=12"),
        ({"result": found[["lower"]]}, "wanted the Dataset"),
        ({"result": found.isel(d_model=slice(3))}, "streams of 3 numbers"),
    ):
        given = {"result": found, "corpus": TOKENS, "k": 1} | options
        with pytest.raises(ValueError, match=match):
            unchecked(nearest_streams)(nano, **given)
    with pytest.raises(ValueError, match="k=2; wanted at most 1"):
        nearest_streams(nano, found, [[0, 5], [0]], k=2)


def test_the_view_shows_sets_rivals_and_texts(nano: Any) -> None:
    found = reachable(nano, [[" Paris", " London"], [" dog", " cat"]])
    near = nearest_streams(nano, found, TOKENS, k=2)
    planted = near.assign(context=near["context"].where(near["sequence"] < 0, "<b>x</b>\n"))
    html = views.reachable(found, planted, caption="Said & done.").fragment()
    lead = f"{float(found['lower'][0]):.3g}"
    assert f"can be on top; lead {lead} logits" in html
    weights = dict(zip(found["weight_id"].values[0], found["weight"].values[0], strict=True))
    first = int(found["violator_id"][0, 0])
    assert f"{found['violator_text'].values[0, 0]} <small>{100 * weights[first]:.3g}%" in html
    assert html.count("&lt;b&gt;x&lt;/b&gt;↵") == 4
    assert "<b>" not in html
    assert html.endswith("Said &amp; done.</figcaption></figure>")
    assert f"cosine {float(near['cosine'][1, 0]):.3g}" in html
    assert "nearest streams" not in views.reachable(found).fragment()
    order = reachable(nano, [" Paris", " London"], ordered=True)
    assert views.reachable(order).fragment().count("%</small>") == 8
    assert repr(views.reachable(order)) == "Sets(1 sets of tokens)"
    none = found.assign(reachable=found["reachable"] * 0)
    upper = f"{float(found['upper'][1]):.3g}"
    assert f"cannot be on top; lead up to {upper} logits" in views.reachable(none).fragment()
    for given, match in (
        ((found[["lower"]],), "found=Dataset"),
        ((found, near[["lead"]]), "nearest=Dataset"),
        ((found, near.isel(set=[0])), "nearest has 1 sets and found has 2"),
    ):
        with pytest.raises(ValueError, match=match):
            views.reachable(*given)


def test_the_report_says_what_can_be_had(nano: Any, tmp_path: Any, monkeypatch: Any) -> None:
    corpus = load_corpus("nano", nano, sequences=4, length=24)
    work = Work(nano, corpus, Store(tmp_path, "x"), progress=False)
    monkeypatch.setattr(section, "SETS", 2)
    lists = SECTIONS["lists"]
    found = lists.compute(work)
    (told,) = lists.sentences(found)
    median = found.shares.isel(k=0).sel(quantile=0.5)
    assert told == (
        "All 2,048 tokens can be the likeliest; 100% of random lists of 10 can be on top, and "
        f"could lead by {float(median['margin_quantile']):.3g} logits in the median, where the "
        f"model's own 10 lead by {float(median['own_gap_quantile']):.3g}."
    )
    assert lists.numbers(found)["own lead"] == float(median["own_gap_quantile"])
    assert {*lists.parts(found)} == {"firsts", "shares"}
    monkeypatch.setattr(section, "TOKENS", 100)
    few = lists.compute(replace(work, store=Store(tmp_path, "y")))
    worse = few.firsts["reachable"].copy()
    worse[:3] = 0
    some = replace(few, firsts=few.firsts.assign(reachable=worse))
    assert lists.sentences(some)[0].startswith("97 of 100 tokens, drawn from 2,048, can be")
    assert lists.parts(section.Lists()) == {}
    assert lists.sentences(section.Lists()) == []


def test_rows_that_pad_the_vocabulary_are_left_out(kind: Any, tmp_path: Any) -> None:
    model = kind()
    known = len(model.tokenizer)
    corpus = load_corpus(["the cat sat on the mat hello world " * 9], model, length=8)
    work = Work(model, corpus, Store(tmp_path, "x"), progress=False)
    found = SECTIONS["lists"].compute(work)
    assert found.known == min(known, Unembed.of(model).d_vocab)
    assert found.firsts["token_id"].values.tolist() == list(range(found.known))
    assert found.shares.attrs.get("exclude", []) == [*range(known, Unembed.of(model).d_vocab)]
