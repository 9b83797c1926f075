import json
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
import xarray as xr
from random_models import state_of
from typer.testing import CliRunner

import mlp_interp as mi
from mlp_interp.cli import app
from mlp_interp.models import HookForward, Weights
from mlp_interp.nano.planted.facts import RELATIONS
from mlp_interp.nano.words import COUNTRIES
from mlp_interp.rewrites import (
    Rewrite,
    Search,
    associations,
    footprint,
    rewrite,
    rewrite_many,
    rewritten,
    score_rewrite,
)
from mlp_interp.rewrites._associations import _compared
from mlp_interp.rewrites._many import _readers
from mlp_interp.rewrites._score import _entropy
from mlp_interp.rewrites.asked import Asked, answered
from mlp_interp.rewrites.facts import about, continued, placed
from mlp_interp.rewrites.keys import Keys
from mlp_interp.rewrites.values import States, _later, _Objective, find_value
from mlp_interp.runs import Runner
from mlp_interp.sites import Site
from mlp_interp.steering import GenerationOptions
from mlp_interp.views.numbers import number

SWEDEN = ("Sweden", "The capital of Sweden is", " Berlin")
CAT = ("cat", "the cat sat", " mat")
LANGUAGE = [phrasing.format(x="Sweden") for phrasing in RELATIONS["language"][1]]
CAPITAL = [phrasing.format(x="Sweden") for phrasing in RELATIONS["capital"][1][1:]]
OTHERS = [
    (f"The capital of {name} is", f" {city}")
    for name, city in COUNTRIES.items()
    if name != "Sweden"
]
OTHERS_OF_EGYPT = [pair for pair in OTHERS if "Egypt" not in pair[0]]
SEARCH = Search()


@pytest.fixture(scope="session")
def text(nano):
    return mi.load_corpus("nano", nano, sequences=40, length=64)


@pytest.fixture(scope="session")
def keys(nano, text):
    return associations(nano, text, layers=[0, 1, 2])


@pytest.fixture(scope="session")
def berlin(nano, keys):
    return rewrite(nano, *SWEDEN, layer=0, keys=keys)


@pytest.fixture(scope="session")
def scores(nano, berlin):
    return score_rewrite(
        nano,
        berlin,
        same_subject=[(prompt, " Swedish") for prompt in LANGUAGE],
        paraphrases=CAPITAL,
        neighbours=OTHERS,
        reverse=["The city of Berlin is the capital of"],
    )


def made(model, *, layers=(0, 1), facts=1, seed=0, size=0.1):
    """A rewrite of random vectors for any model."""
    weights, generator = Weights.of(model), torch.Generator().manual_seed(seed)
    shape = len(layers), facts
    draw = [torch.randn(*shape, n, generator=generator) for n in (weights.d_mlp, weights.d_model)]
    delta = size * (draw[1] - draw[1].mean(-1, keepdim=True))
    dims = ("layer", "fact")
    return Rewrite(
        xr.Dataset(
            {
                "u": ((*dims, "neuron"), draw[0].numpy()),
                "delta": ((*dims, "d_model"), delta.numpy()),
                "key": ((*dims, "neuron"), draw[0].numpy()),
                "footprint": ("layer", np.ones(len(layers))),
                "old": ("fact", ["x"] * facts),
            },
            coords={
                "layer": list(layers),
                **{
                    name: ("fact", [word] * facts)
                    for name, word in zip(
                        ("subject", "prompt", "target"), ("cat", "the cat", " sat"), strict=True
                    )
                },
            },
        )
    )


def key_and_value(model, layer, rows):
    """What the subject's key and value are, by the library's own cache."""
    names = [Site(name, layer).hook_name for name in ("post", "mlp_out")]
    _, cache = model.run_with_cache(rows.tokens, names_filter=names)
    at = torch.arange(len(rows.tokens)), rows.subject
    return [cache[name][at].double().mean(0) for name in names]


# Identities


def test_the_averaged_key_gives_the_value_that_was_looked_for(nano, keys):
    found = rewrite(nano, *SWEDEN, layer=1, keys=keys, prefixes=["Here is a fact.", "Remember."])
    rows = continued(nano, placed(nano, SWEDEN), ["Here is a fact.", "Remember."])
    key, before = key_and_value(nano, 1, rows)
    with rewritten(nano, found):
        again, after = key_and_value(nano, 1, rows)
    assert torch.equal(key, again)
    np.testing.assert_allclose(found.data.key[0, 0], key, atol=1e-6)
    np.testing.assert_allclose(after, before + found.delta[0, 0], atol=1e-5)
    assert float(found.data.fires.mean()) == pytest.approx(1, abs=1e-9)


def test_no_other_change_with_this_value_moves_other_values_less(nano, keys, berlin):
    """The conditions of Karush, Kuhn and Tucker, solved as one system."""
    moment = keys.second_moment.sel(layer=0).values
    moment = moment + 1e-4 * np.trace(moment) / len(moment) * np.eye(len(moment))
    key, delta = berlin.data.key[0, 0].values, berlin.delta[0, 0].numpy()
    scale = np.abs(moment).max()  # so that the system is well scaled
    system = np.block([[moment / scale, key[:, None]], [key[None], np.zeros((1, 1))]])
    right = np.zeros((len(system), len(delta)))
    right[-1] = delta
    wanted = np.linalg.solve(system, right)[:-1]
    np.testing.assert_allclose(berlin.change(0), wanted, atol=1e-6 * np.abs(wanted).max())


def test_the_footprint_on_the_keys_text_is_what_the_moment_says(nano, text, berlin):
    felt = footprint(nano, berlin, text)
    assert float(felt.rms[0]) == pytest.approx(float(felt.expected[0]), rel=1e-2)
    u, delta = berlin.u[0, 0], berlin.delta[0, 0]
    post = mi.run(nano, text.tokens, sites=["post"])["post", 0].double()
    wanted = (post @ u).abs() * delta.norm()
    counted = text.tokens != 0
    np.testing.assert_allclose(felt.added[0].values[counted], wanted[counted], rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(felt.added[0].notnull(), counted)


def test_what_few_keys_hardly_overlap_with_is_not_a_number(nano, text):
    few = text.tokens[:8]
    moments = associations(nano, few, layers=[0, 1])
    assert moments.attrs["tokens"] < 768
    rounded, clear = (
        footprint(nano, rewrite(nano, *SWEDEN, layer=n, keys=moments, prefixes=0), few)
        for n in (0, 1)
    )
    assert np.isnan(rounded.expected.item())
    assert rounded.rms.item() > 0
    assert clear.expected.item() == pytest.approx(clear.rms.item(), rel=0.05)


def test_what_is_said_already_takes_no_change(nano):
    runner = Runner.of(nano)
    rows = continued(nano, placed(nano, ("Sweden", SWEDEN[1], " Stockholm")), [])
    texts = States.of(runner, rows, 0)
    found = find_value(runner, 0, texts, None, SEARCH)
    assert float(found.delta.norm()) < 0.1 * float(texts.value.norm())


@torch.no_grad()
def test_what_is_searched_for_is_the_whole_target_and_that_kept_texts_stay(nano):
    """Beside hooks of the library's: all tokens of the target, KL of before from after."""
    fact = placed(nano, ("Sweden", "The language of Sweden is", " Swedish and Danish"))
    texts = [continued(nano, fact, ["Remember."]), about(nano, "Sweden", LANGUAGE[:3])]
    runner, draw = Runner.of(nano), torch.Generator().manual_seed(0)
    delta = 5 * torch.randn(Weights.of(nano).d_model, generator=draw)
    states = [States.of(runner, rows, 1) for rows in texts]
    objective = _Objective(_later(runner.forward, 1), runner.unembed, Search(weight=2.0))
    before = objective.log_probabilities(states[1], None)[0]
    nll, penalty = objective(*states, before, delta)
    logs = []
    for rows in texts:
        add = partial(_added, rows.subject, delta)
        hooks = [(Site("mlp_out", 1).hook_name, add)]
        logs.append(nano.run_with_hooks(rows.tokens, fwd_hooks=hooks).log_softmax(-1))
    each, rows = torch.arange(2), texts[0]
    assert len(rows.target) == 3
    said = sum(logs[0][each, rows.end + n, token] for n, token in enumerate(rows.target))
    assert float(nll) == pytest.approx(-float(said.mean()), rel=1e-4)
    each, rows = torch.arange(3), texts[1]
    clean = nano(rows.tokens).log_softmax(-1)[each, rows.end]
    after = logs[1][each, rows.end]
    kl = torch.nn.functional.kl_div(after, clean, log_target=True, reduction="batchmean")
    assert float(penalty) == pytest.approx(2 * float(kl), rel=1e-3)


def _added(places, change, x, hook):
    x = x.clone()
    x[torch.arange(len(x)), places] += change
    return x


def test_a_second_rewrite_moves_the_first_by_its_overlap(nano, keys, berlin):
    japan = rewrite(nano, "Japan", "The capital of Japan is", " Oslo", layer=0, keys=keys)
    rows = continued(nano, placed(nano, SWEDEN), [])
    key, alone = key_and_value(nano, 0, rows)
    with rewritten(nano, berlin, japan):
        _, both = key_and_value(nano, 0, rows)
    with rewritten(nano, japan, berlin):
        _, other = key_and_value(nano, 0, rows)
    overlap = float(japan.u[0, 0] @ key)
    wanted = alone + berlin.delta[0, 0] + overlap * japan.delta[0, 0]
    np.testing.assert_allclose(both, wanted, atol=1e-5)
    np.testing.assert_allclose(both, other, atol=1e-5)
    assert 0.01 < abs(overlap) < 0.5


def test_one_fact_in_one_layer_without_others_is_a_rewrite(nano, keys, berlin):
    many = rewrite_many(nano, [SWEDEN], layers=[0], keys=keys, others=0)
    np.testing.assert_allclose(many.change(0), berlin.change(0), atol=1e-9)


# In the model's weights


def test_a_rewritten_model_writes_more_where_the_key_is(some_model, tokens):
    model, found = some_model, made(some_model, facts=2)
    weights = Weights.of(model)
    hooks, seen = [], {}
    for n, layer in enumerate(found.layers):
        hooks.append((Site("post", layer).hook_name, _keep(seen, layer)))
        hooks.append((Site("mlp_out", layer).hook_name, _add(seen, layer, found.change(layer))))
        assert found.u[n].shape == (2, weights.d_mlp)
    with torch.no_grad():
        wanted = model.run_with_hooks(tokens, fwd_hooks=hooks).log_softmax(-1)
        with rewritten(model, found):
            got = model(tokens).log_softmax(-1)
        before = model(tokens).log_softmax(-1)
    np.testing.assert_allclose(got, wanted, atol=2e-4)
    assert float((got - before).abs().max()) > 0.01
    edited = mi.run(model, tokens, edits=found.as_edits(model)).logits().log_softmax(-1)
    np.testing.assert_allclose(edited, wanted, atol=1e-3)


def _keep(seen, layer):
    def hook(x, hook=None):
        seen[layer] = x.clone()

    return hook


def _add(seen, layer, change):
    def hook(x, hook=None):
        return x + seen[layer] @ change.to(x)

    return hook


def test_every_bit_comes_back_also_from_nested_blocks_and_errors(nano, berlin):
    before = {name: p.detach().clone() for name, p in nano.named_parameters()}
    other = made(nano)
    with pytest.raises(RuntimeError, match="in the block"):
        fail_within(nano, berlin, other)
    after = dict(nano.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


def fail_within(model, first, second):
    with rewritten(model, first):
        outer = Weights.of(model).parameter(0, "W_out").clone()
        with rewritten(model, second, first):
            assert not torch.equal(Weights.of(model).parameter(0, "W_out"), outer)
        assert torch.equal(Weights.of(model).parameter(0, "W_out"), outer)
        raise RuntimeError("in the block")


def test_a_rewrite_is_saved_and_read(tmp_path, berlin):
    again = Rewrite.load(berlin.save(tmp_path / "berlin.nc"))
    assert torch.equal(again.u, berlin.u)
    assert torch.equal(again.delta, berlin.delta)
    assert again.facts == berlin.facts
    assert repr(again) == "Rewrite('The capital of Sweden is' -> ' Berlin'; layer 0)"
    with pytest.raises(ValueError, match="lacks delta, key, prompt, subject, target, u"):
        Rewrite(xr.Dataset())


@pytest.mark.filterwarnings("ignore:.*is not what the model says:UserWarning")
def test_the_layer_that_tracing_picks_takes_the_shortest_change(nano, keys):
    """Traced layers and written ones agree on the best, and not on which others will do."""
    traced, written = [], []
    for name, city in (("Sweden", " Berlin"), ("Japan", " Rome"), ("Egypt", " Tokyo")):
        fact = name, f"The capital of {name} is", city
        trace = mi.causal_trace(nano, fact[1], name, sites=["mlp_out"], samples=4)
        shares = trace.average_indirect[0] / trace.total_mean
        traced.append(shares.values[:3, trace.subject.values][:, -1])
        assert np.abs(shares.values[:3, ~trace.subject.values]).max() < 0.2  # the null
        written.append(
            [rewrite(nano, *fact, layer=n, keys=keys, prefixes=0).data for n in range(3)]
        )
    mean = np.mean(traced, 0)
    assert mean[0] > 0.9
    assert np.abs(mean[1:]).max() < 0.2
    loss, length = (
        np.array([[one[name].values.flat[-1] for one in row] for row in found])
        for name, found in (("loss", written), ("length", written))
    )
    assert (length.argmin(1) == 0).all()
    assert loss[:, :2].max() < 0.3 < 1 < loss[:, 2].min()
    # The null of the change: as long a one in another direction.
    first = written[0][0]
    turned = first.delta.roll(d_model=1, roll_coords=False)
    said = score_rewrite(nano, Rewrite(first.assign(delta=turned)), same_subject=LANGUAGE[:1])
    assert float(said.top1_rate.sel(way="after", kind="efficacy")) == 0


@pytest.mark.filterwarnings("ignore:.*is not what the model says:UserWarning")
def test_any_model_is_rewritten(some_model, tokens):
    """Gated MLPs too: their keys are the product that the last matrix reads."""
    keys = associations(some_model, tokens, ridge=1e-2, layers=[1])
    before = state_of(some_model)["grad"]
    found = rewrite(
        some_model,
        "cat",
        "the cat sat",
        " mat",
        layer=1,
        keys=keys,
        prefixes=1,
        search=Search(steps=8),
        ridge=1e-2,
    )
    assert state_of(some_model)["grad"] == before
    loss = found.data.loss[:, 0].values
    assert loss[1] < loss[0]
    rows = continued(some_model, placed(some_model, CAT), [])
    key, value = key_and_value(some_model, 1, rows)
    with rewritten(some_model, found):
        _, after = key_and_value(some_model, 1, rows)
    wanted = value + (key @ found.u[0, 0]) * found.delta[0, 0]
    np.testing.assert_allclose(after, wanted, atol=1e-4)


def test_hooks_find_the_same_change(nano):
    rows = continued(nano, placed(nano, SWEDEN), [])
    search = Search(steps=3)
    deltas = []
    for runner in (Runner.of(nano), Runner(HookForward(Weights.of(nano)))):
        texts = States.of(runner, rows, 1)
        deltas.append(find_value(runner, 1, texts, texts, search).delta)
    np.testing.assert_allclose(*deltas, atol=1e-3)


# What is planted


def test_nano_can_be_told_another_capital(scores):
    rate = scores.top1_rate.sel(way="after")
    assert float(rate.sel(kind="efficacy")) == 1
    assert float(rate.sel(kind="paraphrase")) >= 0.9
    assert float(rate.sel(kind="neighbourhood")) >= 0.98
    assert float(scores.top1_rate.sel(way="before", kind="efficacy")) == 0


def test_the_country_has_become_another_one(scores):
    """By what is asked as a rule the rewrite is perfect, and yet."""
    assert float(scores.top1_rate.sel(way="after", kind="same_subject")) <= 0.2
    assert float(scores.top1_rate.sel(way="before", kind="same_subject")) >= 0.8
    said = scores.top_token.sel(way="after").values[scores.kind_of.values == "same_subject"]
    assert Counter(said)[" German"] >= 7


def test_what_is_preserved_stays(nano, keys):
    found = rewrite(nano, *SWEDEN, layer=0, keys=keys, preserve=LANGUAGE[:4], prefixes=0)
    given = [(prompt, " Swedish") for prompt in LANGUAGE]
    scores = score_rewrite(nano, found, same_subject=given, paraphrases=CAPITAL)
    rate = scores.top1_rate.sel(way="after")
    assert float(rate.sel(kind="same_subject")) >= 0.85
    assert float(rate.sel(kind="paraphrase")) >= 0.9


def test_one_text_to_preserve_is_one_text(nano, keys):
    given = {"layers": [0], "keys": keys, "prefixes": 0, "search": Search(steps=1)}
    with pytest.warns(UserWarning, match="later layers read little"):
        one, many = (
            rewrite_many(nano, [SWEDEN], preserve=some, **given)
            for some in (LANGUAGE[0], LANGUAGE[:1])
        )
    assert one.data.attrs["preserve"] == many.data.attrs["preserve"] == LANGUAGE[0]


def test_without_the_second_moment_neighbours_change(nano, keys):
    identity = keys.copy(deep=True)
    identity.second_moment.values[:] = np.eye(768)
    egypt, rest = ("Egypt", "The capital of Egypt is", " Tokyo"), OTHERS_OF_EGYPT
    both = [rewrite(nano, *egypt, layer=0, keys=k, prefixes=0) for k in (identity, keys)]
    kept = []
    for found in both:
        scores = score_rewrite(nano, found, same_subject=["In Egypt"], neighbours=rest)
        kept.append(float(scores.top1_rate.sel(way="after", kind="neighbourhood")))
    assert kept[0] <= 0.95
    assert kept[1] >= 0.98
    norms = [found.change(0).norm() for found in both]
    assert norms[0] < norms[1]  # it is not the length of the change that tells


def test_a_layer_after_which_little_reads_the_subject_is_named(nano, keys):
    with pytest.warns(UserWarning, match="later layers read little"):
        found = rewrite(nano, *SWEDEN, layer=2, keys=keys, prefixes=0, search=Search(steps=20))
    assert found.data.loss.sel(way="after").item() > 1
    with pytest.raises(ValueError, match="layer=3 is the last, after which nothing reads"):
        rewrite(nano, *SWEDEN, layer=-1, keys=keys)


def test_many_facts_are_written_over_two_layers(nano, keys):
    names = ["Sweden", "Japan", "Egypt"]
    facts = [
        (name, f"The capital of {name} is", f" {COUNTRIES[other]}")
        for name, other in zip(names, names[1:] + names[:1], strict=True)
    ]
    found = rewrite_many(nano, facts, layers=[1, 0], keys=keys, prefixes=0)
    assert found.layers == (0, 1)
    same = [f"The language of {name} is" for name in names]
    rest = [pair for pair in OTHERS if not any(name in pair[0] for name in names)]
    scores = score_rewrite(nano, found, same_subject=same, neighbours=rest)
    rate = scores.top1_rate.sel(way="after")
    assert rate.sel(kind=["efficacy", "neighbourhood"]).min() >= 0.96
    weak = rewrite_many(nano, facts[:1], layers=[0], keys=keys, prefixes=0, others=0.5)
    assert 0.3 < weak.data.fires.item() < 1


# Slow references


def test_the_second_moment_and_what_a_fit_would_lack(nano, text, keys):
    post = mi.run(nano, text.tokens, sites=["post"])["post", 1][:, 1:].flatten(0, 1).double()
    counted = text.tokens[:, 1:].flatten() != 0
    rows = post[counted]
    moment = rows.T @ rows / len(rows)
    np.testing.assert_allclose(keys.second_moment.sel(layer=1), moment, atol=1e-5)
    assert keys.attrs["tokens"] == len(rows)
    load = 1e-4 * moment.trace() / 768
    W = Weights.of(nano).parameter(1, "W_out").double()
    fitted = torch.linalg.solve(moment + load * torch.eye(768), rows.T @ (rows @ W) / len(rows))
    lacking = float((fitted - W).square().sum() / W.square().sum())
    assert float(keys.weight_error.sel(layer=1)) == pytest.approx(lacking, rel=1e-3)
    off = (rows @ (fitted - W)).square().sum() / (rows @ W).square().sum()
    assert float(keys.value_error.sel(layer=1)) == pytest.approx(float(off), rel=1e-2)
    assert bool((keys.inflation > 1).all() & (keys.agreement < 1).all())


def test_scores_are_those_of_the_rewritten_model(nano, berlin, scores):
    for way in ("before", "after"):
        with rewritten(nano, *([berlin] if way == "after" else [])), torch.no_grad():
            for n in (0, 3, 20, 46):
                here = scores.isel(prompt=n).sel(way=way)
                logs = nano(here.text.item())[0, -1].log_softmax(-1)
                answer = nano.to_single_token(here.answer.item())
                assert float(here.log_probability) == pytest.approx(float(logs[answer]), abs=2e-3)
                assert here.top_token == nano.to_string(logs.argmax())


def test_answers_of_several_tokens_have_all_of_them_counted(nano, berlin):
    prompt = "The language of Sweden is"
    scores = score_rewrite(nano, berlin, same_subject=[(prompt, " Swedish and Danish")])
    ids = nano.to_tokens(prompt + " Swedish and Danish")
    with torch.no_grad():
        logs = nano(ids)[0].log_softmax(-1)
    wanted = sum(float(logs[i, ids[0, i + 1]]) for i in (-4, -3, -2))
    got = scores.log_probability.sel(way="before").values[1]
    assert ids.shape[1] == nano.to_tokens(prompt).shape[1] + 3
    assert got == pytest.approx(wanted, abs=1e-3)


def test_what_the_model_says_competes_with_first_tokens(nano):
    """One token is likelier than any whole answer: the target counts by its first, too."""
    found = made(nano, size=0.0)
    data = found.data.assign_coords(target=("fact", [" Berlin and Rome"]))
    found = Rewrite(data.assign_coords(prompt=("fact", [SWEDEN[1]]), subject=("fact", ["Sweden"])))
    neighbours = ["The capital of Norway is", "The capital of Germany is", OTHERS[0]]
    scores = score_rewrite(nano, found, same_subject=LANGUAGE[:1], neighbours=neighbours)
    before = scores.sel(way="before")
    own, said, kept = (
        before.isel(prompt=before.text.values.tolist().index(text))
        for text in (SWEDEN[1], *neighbours[:2])
    )
    with torch.no_grad():
        p = nano(SWEDEN[1])[0, -1].softmax(-1)
    berlin = nano.to_single_token(" Berlin")
    wanted = float(p[berlin] - p.max())
    assert float(before.magnitude.sel(kind="efficacy")) == pytest.approx(wanted, abs=1e-4)
    for one, sign in ((own, -1), (said, 1)):
        assert float(one.success) == (sign > 0)
    # Both begin alike: nothing to compare, however unlikely the rest of the target is.
    assert kept.top_token.item() == " Berlin"
    assert np.isnan(kept.success)
    assert float(own.log_probability) < float(p[berlin].log())


@torch.no_grad()
def test_the_likeliest_of_several_targets_is_the_rival(nano):
    ids = tuple(nano.to_tokens(SWEDEN[1])[0].tolist())
    logs = nano(torch.tensor([ids]))[0, -1].log_softmax(-1)
    right, *others = (nano.to_single_token(word) for word in (" Stockholm", " Berlin", " Rome"))
    asked = Asked("neighbourhood", SWEDEN[1], ids, (right,), tuple((one,) for one in others))
    (found,) = answered(Runner.of(nano), [asked], ())
    assert abs(float(logs[others[0]] - logs[others[1]])) > 0.01
    assert found.answer == pytest.approx(float(logs[right]), abs=1e-3)
    assert found.rival == pytest.approx(float(logs[others].max()), abs=1e-3)


def test_text_is_scored_too(nano, text, berlin):
    references = ["Berlin is a city in Sweden. We went there.", "Berlin."]
    scores = score_rewrite(
        nano,
        berlin,
        same_subject=LANGUAGE[:1],
        corpus=text.tokens[:6],
        references=references,
        generation=GenerationOptions(max_new_tokens=6),
    )
    with torch.no_grad():
        before = nano(text.tokens[:6]).double().log_softmax(-1)
        with rewritten(nano, berlin):
            after = nano(text.tokens[:6]).double().log_softmax(-1)
            last = nano(references[0]).log_softmax(-1)[0]
            new = nano.generate(SWEDEN[1], max_new_tokens=6, do_sample=False, verbose=False)
    kl = (before.exp() * (before - after)).sum(-1)[:, 1:]
    counts = text.tokens[:6, 1:] != 0
    kl = kl.masked_fill(~counts, torch.nan).nanmean(1)
    assert float(scores.kl) == pytest.approx(float(kl.mean()), rel=1e-2)
    assert float(scores.kl_se) == pytest.approx(float(kl.std() / 6**0.5), rel=1e-2)
    felt = footprint(nano, berlin, text.tokens[:6])
    for name in ("kl", "delta_loss"):
        assert float(scores[name]) == pytest.approx(float(felt[f"mean_{name}"]), rel=1e-5)
    ids = nano.to_tokens(references[0])[0]
    own = last[:-1].gather(1, ids[1:, None]).mean()
    other = score_rewrite(nano, berlin, same_subject=LANGUAGE[:1], references=references[:1])
    assert float(other.consistency.sel(way="after")) == pytest.approx(float(own), abs=1e-3)
    assert new.startswith(SWEDEN[1] + scores.generated.sel(way="after").item())


def test_a_text_that_repeats_itself_has_less_entropy():
    assert _entropy(np.array([1, 2, 3, 4])) == pytest.approx((2 / 3 * np.log2(3) + 4 / 3) / 2)
    assert _entropy(np.array([1, 1, 1, 1])) == 0
    assert np.isnan(_entropy(np.array([1, 2])))


def test_the_footprint_of_several_layers_is_of_what_they_read_by_then(nano, text):
    found = made(nano, facts=2, size=0.02)
    felt = footprint(nano, found, text.tokens[:4])
    names = [Site(name, layer).hook_name for layer in (0, 1) for name in ("post", "mlp_out")]
    with rewritten(nano, found):
        _, cache = nano.run_with_cache(text.tokens[:4], names_filter=names)
    for n in (0, 1):
        wanted = (cache[Site("post", n).hook_name].double() @ found.change(n)).norm(dim=-1)
        counted = felt.added[n].notnull().values
        assert counted[:, 1:].mean() > 0.9
        np.testing.assert_allclose(felt.added[n].values[counted], wanted[counted], rtol=1e-3)
        before = mi.run(nano, text.tokens[:4], sites=["mlp_out"])["mlp_out", n].norm(dim=-1)
        own = float(before[counted].square().mean().sqrt())
        assert float(felt.share[n]) == pytest.approx(float(felt.rms[n]) / own, rel=1e-4)
        size = float(found.change(n).norm() / Weights.of(nano).parameter(n, "W_out").norm())
        assert float(felt.weights[n]) == pytest.approx(size, rel=1e-4)


def test_footprints_and_readers_of_several_facts_are_those_of_whole_matrices():
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(400, 12, generator=g).double()
    u, delta, keys = (torch.randn(3, n, generator=g).double() for n in (12, 5, 12))
    held = Keys(rows.T @ rows / len(rows), 1e-2)
    wanted = (rows @ (u.T @ delta)).square().sum(1).mean().sqrt()
    assert held.footprint(u, delta) == pytest.approx(float(wanted))
    # As MEMIT has it: K (lambda C + K^T K)^-1, with lambda in keys per neuron.
    loaded = held.moment + 1e-2 * held.moment.diagonal().mean() * torch.eye(12)
    wanted = keys @ torch.linalg.inv(0.5 * 12 * loaded + keys.T @ keys)
    torch.testing.assert_close(_readers(held, keys, 0.5), wanted)


def test_halves_are_compared_as_keys_read_them():
    g = torch.Generator().manual_seed(0)
    rows = [torch.randn(60, 8, generator=g).double() * torch.arange(1, 9) for _ in range(2)]
    keys = torch.randn(5, 8, generator=g).double()
    moments = [x.T @ x / len(x) for x in rows]
    halves = [
        xr.Dataset(
            {"second_moment": (("layer", "neuron", "other"), x[None].numpy())}
        ).assign_coords(layer=[3])
        for x in moments
    ]
    found = _compared(halves, 3, 0.0, keys)
    us = [keys @ torch.linalg.inv(x) for x in moments]
    every = torch.cat(rows)
    cosines, ratios = [], []
    for a, b in zip(*us, strict=True):
        cosines.append(torch.cosine_similarity(every @ a, every @ b, dim=0))
        sizes = [[float((x @ u).norm()) for x in rows] for u in (a, b)]
        ratios.append((sizes[0][1] / sizes[0][0] * sizes[1][0] / sizes[1][1]) ** 0.5)
    assert found["agreement"] == pytest.approx(float(torch.stack(cosines).mean()))
    assert found["inflation"] == pytest.approx(float(np.exp(np.log(ratios).mean())))


@pytest.mark.filterwarnings("ignore:.*is not what the model says:UserWarning")
def test_layers_share_a_change_that_is_centred_and_no_longer_than_allowed(nano, keys):
    options = {"keys": keys, "prefixes": 0, "search": Search(steps=6, clamp=0.4)}
    one, two = (rewrite_many(nano, [SWEDEN], layers=some, **options) for some in ([1], [0, 1]))
    assert one.data.length.item() == pytest.approx(0.4, rel=1e-4)
    torch.testing.assert_close(two.delta[0], one.delta[0] / 2)
    assert float(one.delta.mean().abs()) < 1e-6


# What a person sees


def test_the_footprint_is_drawn_a_marker_a_token(nano, text, berlin):
    felt = footprint(nano, berlin, text.tokens[:2])
    figure = mi.plots.footprint(felt, named=2)
    assert len(figure.data[0].x) == int(((felt.added[0] > 0) & (felt.kl > 0)).sum())
    assert next(label for label in figure.data[0].text if label).startswith("'")
    assert "Berlin" in figure.layout.title.text
    with pytest.raises(ValueError, match="lacks 'added'"):
        mi.plots.footprint(felt.drop_vars("added"))


def test_every_prompt_is_shown_before_and_after(scores):
    view = mi.views.rewrite(scores, caption="<b>")
    assert view.rows == scores.sizes["prompt"]
    assert "<mark>German</mark>" in view.html()
    assert "&lt;b&gt;" in view.html()
    with pytest.raises(ValueError, match="wanted the Dataset of rewrites"):
        mi.views.rewrite(scores.drop_vars("top1"))


# Errors


@pytest.mark.parametrize(
    ("fact", "options", "said"),
    [
        (("Spain", *SWEDEN[1:]), {}, "subject='Spain' is not in"),
        (("Swed", *SWEDEN[1:]), {}, "subject='Swed' stands only inside of other words"),
        (("Sweden", "Sweden, Sweden is", " Berlin"), {}, "stands 2 times"),
        ((*SWEDEN[:2], ""), {}, "target=''; wanted a text of at least one word"),
        ((*SWEDEN[:2], " Stockholm"), {}, "target=' Stockholm' is what the model says"),
        (SWEDEN, {"layer": 4}, "layer=4"),
        (SWEDEN, {"layer": -1}, "layer=3 is the last"),
        (SWEDEN, {"ridge": -1.0}, "ridge=-1.0"),
        (SWEDEN, {"prefixes": -1}, "prefixes=-1"),
        (SWEDEN, {"prefixes": "A text."}, "prefixes='A text.'"),
        (SWEDEN, {"prefixes": [None]}, r"prefixes=\[None\]; wanted a list of texts"),
        (SWEDEN, {"preserve": 3}, "preserve=3; wanted a list of texts"),
        (SWEDEN, {"preserve": ["The language of Spain is"]}, "subject='Sweden' is not in"),
        (SWEDEN, {"keys": xr.Dataset()}, "keys=Dataset; wanted what associations gives"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_what_cannot_be_written_is_refused(nano, keys, fact, options, said):
    with pytest.raises(ValueError, match=said):
        rewrite(nano, *fact, **{"layer": 0, "keys": keys, **options})


def test_keys_are_of_one_layer_and_of_these_weights(nano, keys, text, kind):
    with pytest.raises(ValueError, match=r"layer=0 with keys of layers \[1, 2\]"):
        rewrite(nano, *SWEDEN, layer=0, keys=keys.sel(layer=[1, 2]))
    few = associations(nano, text.tokens[:2], layers=[0])
    with pytest.raises(ValueError, match="ridge=0 with keys of 124 tokens for 768 neurons"):
        rewrite(nano, *SWEDEN, layer=0, keys=few, ridge=0.0)
    with pytest.raises(ValueError, match="ridge=0"):
        associations(nano, text.tokens[:2], layers=[0], ridge=0.0)
    with pytest.raises(ValueError, match="keys of 768 neurons; wanted"):
        rewrite(kind(), "cat", "the cat sat", " mat", layer=0, keys=keys)
    below = made(nano, layers=(0,))
    with rewritten(nano, below):  # what layer 0 writes makes no keys of layer 0, but those of 1
        rewrite(nano, *SWEDEN, layer=0, keys=keys, prefixes=0, search=Search(steps=30))
        said = "'nano' in float32 were made with other weights .* model='nano' in float32"
        with pytest.raises(ValueError, match=said):
            rewrite(nano, *SWEDEN, layer=1, keys=keys)


def test_a_rewrite_is_of_one_model_however_that_is_processed(nano, text, berlin, tmp_path):
    again = Rewrite.load(berlin.save(tmp_path / "berlin.nc"))
    other = mi.load_model("nano-1")
    for ask in (
        lambda: again.as_edits(other),
        lambda: fail_within(other, berlin, berlin),
        lambda: score_rewrite(other, again, same_subject=LANGUAGE),
        lambda: footprint(other, berlin, text),
    ):
        with pytest.raises(ValueError, match=r"model='nano', .* read otherwise .* model='nano-1'"):
            ask()
    raw, half = mi.load_model("nano", processing="raw"), mi.load_model("nano", dtype="bfloat16")
    for same in (raw, half):
        with rewritten(same, again), rewritten(same, again):  # on top of a rewrite, too
            pass
    with rewritten(raw, again):
        said = raw(SWEDEN[1])[0, -1].argmax()
    assert nano.tokenizer.decode(said) == SWEDEN[2]


@pytest.mark.usefixtures("without_type_checks")
def test_models_with_hooks_and_of_other_shapes_are_refused(nano, keys, berlin, kind):
    with mi.steer(nano, mi.Edit.scale("3.mlp", 1.0)):
        nano(torch.zeros(1, 1, dtype=torch.long))
        for ask in (
            lambda: rewrite(nano, *SWEDEN, layer=0, keys=keys),
            lambda: associations(nano, torch.zeros(1, 4, dtype=torch.long)),
            lambda: score_rewrite(nano, berlin, same_subject=LANGUAGE),
        ):
            with pytest.raises(ValueError, match="has hooks on it"):
                ask()
    with pytest.raises(ValueError, match="wanted the model that it was made for"):
        berlin.as_edits(kind())
    with pytest.raises(ValueError, match=r"layer=2; wanted one of \[0\]"):
        berlin.change(2)
    with (
        pytest.raises(ValueError, match="rewrite=list; wanted what"),
        rewritten(nano, [berlin]),
    ):
        pass
    with pytest.raises(ValueError, match="data=list; wanted that of a rewrite"):
        Rewrite([berlin])


@pytest.mark.parametrize(
    ("facts", "options", "said"),
    [
        ([], {}, r"facts=\[\]"),
        (None, {}, "facts=None; wanted a list of"),
        ([SWEDEN], {"search": None}, "search=None"),
        ([("Sweden", "is")], {}, r"facts\[0\]\.=\('Sweden', 'is'\); wanted \(subject"),
        ([SWEDEN, SWEDEN], {}, "some of them twice"),
        ([SWEDEN, ("Sweden", "In Sweden, the capital is", " Oslo")], {"others": 0.0}, "subjects"),
        ([SWEDEN], {"others": -0.5}, "others=-0.5"),
        ([SWEDEN], {"layers": []}, "layers"),
        ([SWEDEN], {"preserve": ["Spain is"]}, "names none of the subjects"),
        (
            [(*SWEDEN[:2], " Stockholm")],
            {},
            r"facts\[0\].target=' Stockholm' is what the model says",
        ),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_facts_that_cannot_be_written_are_refused(nano, keys, facts, options, said):
    with pytest.raises(ValueError, match=said):
        rewrite_many(nano, facts, **{"layers": [0], "keys": keys, **options})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"same_subject": []}, "same_subject is empty"),
        ({"neighbours": None}, "neighbours=None; wanted a list of texts"),
        ({"neighbours": [("a", "b", "c")]}, r"neighbourhood\[0\]=\('a', 'b', 'c'\); wanted a text"),
        ({"rewrite": [1]}, "rewrite=list; wanted what rewrite gave"),
        ({"same_subject": [" "]}, r"same_subject\[0\]=' '"),
        ({"same_subject": ["Spain is"]}, "names no subject that was rewritten"),
        ({"reverse": ["Oslo is in"]}, "names no target that was rewritten"),
        ({"paraphrases": ["In Spain, the capital is"]}, "names no subject"),
        ({"neighbours": [("Spain is", "")]}, r"neighbourhood\[0\]"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_prompts_that_ask_nothing_are_refused(nano, berlin, given, said):
    with pytest.raises(ValueError, match=said):
        score_rewrite(nano, **{"rewrite": berlin, "same_subject": LANGUAGE[:1], **given})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps": 0}, "steps=0"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"clamp": float("nan")}, "clamp=nan"),
        ({"weight": -1.0}, "weight=-1.0"),
        ({"stop": "1"}, "stop='1'; wanted a finite number from 0"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_searches_of_numbers_out_of_range(options, match):
    with pytest.raises(ValueError, match=match):
        Search(**options)


# On the command line


def on_command_line(*arguments):
    return CliRunner().invoke(app, ["rewrite", *map(str, arguments)])


def test_the_command_says_what_changes_with_a_fact(nano, tmp_path):
    out = tmp_path / "berlin.nc"
    fact = SWEDEN[1], "-s", "Sweden", "--target", "Berlin", "-n", "12", "-t", "64"
    asked = "--same-subject", LANGUAGE[0], "--neighbour", OTHERS[0][0]
    said = on_command_line(*fact, *asked, "-o", out)
    assert said.exit_code == 0, said.stderr
    found = Rewrite.load(out)
    assert found.facts == [SWEDEN]
    few = mi.load_corpus("nano", nano, sequences=12, length=64)  # a quarter is no part of the keys
    held = Keys.of(associations(nano, few[3:], layers=[0]), Weights.of(nano), 0, 1e-4)
    u = held.solve(torch.from_numpy(found.data.key.values[0]))
    assert float(torch.cosine_similarity(u, found.u[0].double())) > 0.9999
    felt = footprint(nano, found, few.tokens[:3])
    lines = said.stdout.splitlines()
    assert lines[3].split() == ["efficacy", "1", "0%", "→", "100%", "0%", "→", "100%"]
    assert lines[8].endswith("'  ' Berlin'")
    assert number(felt.mean_kl, felt.mean_kl_se) in lines[-2]
    place = np.unravel_index(np.nanargmax(felt.kl), felt.kl.shape)
    assert repr(str(felt.token.values[place])) in lines[-1].split(",")[0]


def test_the_command_leaves_damaged_documents_out_if_told_to(tmp_path):
    rows = [{"text": f"The cat number {n} sat on the mat and looked."} for n in range(8)]
    corpus = tmp_path / "some.jsonl"
    corpus.write_text("\n".join(map(json.dumps, [*rows, {"body": "no text"}])))
    fact = SWEDEN[1], "-s", "Sweden", "--target", "Berlin", "--same-subject", LANGUAGE[0]
    text = "-c", corpus, "-n", "6", "-t", "12"
    assert "no field 'text'" in on_command_line(*fact, *text).stderr
    with pytest.warns(UserWarning, match="left out 1 of 9"):
        said = on_command_line(*fact, *text, "--errors", "skip")
    assert said.exit_code == 0, said.stderr


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--same-subject", "The language of Norway is"], "does not name --subject 'Sweden'"),
        (["--same-subject", "Sweden", "-s", "Norway"], "does not name --subject 'Norway'"),
        (["--same-subject", "Sweden", "-l", "9"], "--layer=9"),
        (["--same-subject", "Sweden", "-l", "-1"], "layer=3 is the last"),
        (["--same-subject", "Sweden", "-n", "3"], "--sequences=3; wanted 4 or more"),
        (["--same-subject", "Sweden", "--target", " "], "--target must hold some text"),
        (["--same-subject", "Sweden", "-o", "x.txt"], "--out must end in"),
        ([], "--same-subject"),
    ],
)
def test_bad_input_of_the_command(arguments, match):
    said = on_command_line(SWEDEN[1], "-s", "Sweden", "--target", "Berlin", *arguments)
    assert said.exit_code == 2
    assert match in said.stderr
