"""Evidence for a neuron: against plain hooks in float64, and a planted feature of nano."""

import re
from random import Random

import numpy as np
import pytest
import torch
from contrasts import exactness
from random_models import FEW, VOCABULARY, build, unchecked

import mlp_interp as mi
from mlp_interp import Site
from mlp_interp.metrics.separation import auroc, threshold_table
from mlp_interp.nano import french, topics
from mlp_interp.neurons import promoted_tokens, verify_neuron
from mlp_interp.neurons.evidence.controls import against_controls
from mlp_interp.prompts.texts import texts_of

TEXTS = ["the cat sat", "hello world; the cat", "mat mat", "on the mat sat the cat"]
LAYER, NEURON = 1, 7


def rows(model, texts):
    """Texts as token ids behind BOS, one row each."""
    return [torch.tensor([[0, *model.tokenizer(text)["input_ids"]]]) for text in texts]


def plainly(model, tokens, neuron=None, value=None):
    """Log-probabilities and the layer's activations, one text, BOS left out of the ablation."""
    seen = []

    def hook(post, hook):
        if neuron is not None:
            post = post.clone()
            post[:, 1:, neuron] = value
        seen.append(post.detach().clone())
        return post

    with torch.no_grad():
        logits = model.run_with_hooks(
            tokens, fwd_hooks=[(Site("post", LAYER).hook_name, hook)], return_type="logits"
        )
    return logits.double().log_softmax(-1)[0], seen[0][0].double()


def mean_and_error(values):
    return np.mean(values), np.std(values, ddof=1) / np.sqrt(len(values))


@pytest.mark.parametrize(("architecture", "backend", "processing"), FEW)
@pytest.mark.parametrize("baseline", ["mean", 0.75])
def test_all_of_it_is_what_plain_hooks_say(kind, architecture, backend, processing, baseline):
    model = kind(architecture, backend, processing, torch.float64)
    exact = max(1e-9, exactness(architecture, backend))
    generator = torch.Generator().manual_seed(3)
    positive = torch.randint(1, VOCABULARY, (3, 6), generator=generator)
    positive[:, 0] = 0
    found = verify_neuron(
        model, (LAYER, NEURON), positive, TEXTS, baseline=baseline, controls=2, k=4, batch_size=2
    )
    neurons = found["neuron"].values.tolist()
    assert neurons[0] == NEURON
    assert len({*neurons}) == 3
    texts = [*positive[:, None], *rows(model, TEXTS)]
    clean = [plainly(model, tokens) for tokens in texts]
    tokens_of_interest = promoted_tokens(model, (LAYER, NEURON), k=4)["promoted"].values
    for i, neuron in enumerate(neurons):
        post = [x[1:, neuron] for _, x in clean]
        mean = torch.cat(post).mean() if baseline == "mean" else torch.tensor(0.75)
        np.testing.assert_allclose(found["held_at"][i], mean, rtol=exact)
        loss = found["loss"].isel(component=i)
        for j, (tokens, (before, _)) in enumerate(zip(texts, clean, strict=True)):
            activation = found["activation"].isel(component=i, prompt=j)
            np.testing.assert_allclose(
                activation, [post[j].max(), post[j].mean()], rtol=exact, atol=exact
            )
            after, _ = plainly(model, tokens, neuron, mean)
            p, change = before.exp(), before - after
            expected = {
                "delta_loss": change[1:-1].gather(1, tokens[0, 2:, None]).mean(),
                "kl": (p * change).sum(-1)[1:].mean(),
                "promoted": change[1:, tokens_of_interest].mean(),
            }
            for name, value in expected.items():
                mine = float(loss.sel(measure=name).isel(prompt=j))
                close = {"rtol": 1e-5, "atol": exact / 10}
                np.testing.assert_allclose(mine, value, **close, err_msg=name)
    lost = found["loss"].values
    for m in range(3):
        for i in range(3):
            sides = mean_and_error(lost[m, i, :3]), mean_and_error(lost[m, i, 3:])
            means = [sides[0][0], sides[1][0], sides[0][0] - sides[1][0]]
            errors = [sides[0][1], sides[1][1], np.hypot(sides[0][1], sides[1][1])]
            np.testing.assert_allclose(found["effect"][m, :, i], means, rtol=1e-9)
            np.testing.assert_allclose(found["effect_se"][m, :, i], errors, rtol=1e-6)


def test_a_neuron_that_writes_nothing_costs_nothing(backend):
    model = build("sequential", backend, "folded", torch.float32)
    with torch.no_grad():
        model.blocks[LAYER].mlp.W_out[NEURON] = 0.0
    found = verify_neuron(model, (LAYER, NEURON), TEXTS[:2], TEXTS[2:], baseline=5.0, controls=3)
    mine = found.isel(component=0)
    assert float(abs(mine["loss"]).max()) == 0
    assert float(abs(found["loss"].isel(component=slice(1, None))).min()) > 0


def test_separation_counts_pairs_and_thresholds(kind):
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 6, 11) / 2, rng.integers(-2, 4, 7) / 2
    pairs = [(a > b) + 0.5 * (a == b) for a in positive for b in negative]
    assert auroc(positive, negative) == pytest.approx(np.mean(pairs))
    table = threshold_table(positive, negative)
    assert len(table["threshold"]) == len({*positive, *negative})
    for i, cut in enumerate(table["threshold"]):
        hits, false = sum(positive >= cut), sum(negative >= cut)
        precision, recall = hits / (hits + false), hits / 11
        assert table["precision"][i] == pytest.approx(precision)
        assert table["recall"][i] == pytest.approx(recall)
        assert table["f1"][i] == pytest.approx(2 * precision * recall / (precision + recall))
        assert table["balanced_accuracy"][i] == pytest.approx(
            (recall + sum(negative < cut) / 7) / 2
        )


def test_neighbouring_numbers_can_be_told_apart():
    low, high = np.array([1.0]), np.nextafter(np.array([1.0]), 2)
    assert threshold_table(high, low)["balanced_accuracy"].max() == 1


def test_thresholds_of_a_neuron_are_those_of_its_activations(kind):
    found = verify_neuron(kind("parallel"), (0, 3), TEXTS[:2], TEXTS[1:], controls=1)
    for summary in ("max", "mean"):
        values = found["activation"].sel(summary=summary).isel(component=0).values
        table = threshold_table(values[:2], values[2:])
        here = found.sel(summary=summary)
        assert float(here["auroc"][0]) == auroc(values[:2], values[2:])
        for criterion in ("f1", "balanced_accuracy"):
            at = table[criterion].argmax()
            assert float(here["best"].sel(criterion=criterion)) == table[criterion][at]
            assert float(here["best_threshold"].sel(criterion=criterion)) == table["threshold"][at]
        np.testing.assert_array_equal(here["threshold"].dropna("step"), table["threshold"])


def test_the_place_among_controls():
    found = {
        name: float(values)
        for name, values in against_controls(
            np.array([2.0, 1.0, 2.0, 4.0, 0.0]), (), "", "nats"
        ).items()
    }
    assert found["control_mean"] == 1.75
    assert found["z"] == pytest.approx(0.25 / np.std([1, 2, 4, 0], ddof=1))
    assert (found["rank"], found["percentile"], found["p_value"]) == (2, 50, 3 / 5)
    alone = against_controls(np.array([2.0, 1.0]), (), "", "nats")
    assert np.isnan(alone["z"].values)
    assert np.isnan(alone["control_std"].values)


def test_without_a_number_there_is_no_place_and_no_p():
    values = np.array([[np.nan, 1.0, 2.0], [1.5, np.nan, 1.0], [3.0, np.nan, np.nan]])
    found = {n: x.values for n, x in against_controls(values, ("where",), "", "nats").items()}
    np.testing.assert_array_equal(found["rank"], [np.nan, 1, np.nan])
    np.testing.assert_array_equal(found["percentile"], [np.nan, 100, np.nan])
    np.testing.assert_array_equal(found["p_value"], [np.nan, 1 / 2, np.nan])
    np.testing.assert_array_equal(found["control_mean"], [1.5, 1, np.nan])
    assert np.isnan(found["z"]).all()


def test_a_text_too_short_to_predict_anything_has_no_loss_and_no_p(nano):
    found = verify_neuron(nano, (2, 5), ["A"], ["The cat sat.", "He likes it"], controls=2)
    found = found.sel(measure="delta_loss")
    for name in ("effect", "z", "rank", "percentile", "p_value"):
        known = found[name].isel(component=0) if name == "effect" else found[name]
        assert np.isnan(known.sel(where=["positive", "difference"])).all(), name
        assert np.isfinite(known.sel(where="negative")), name


def test_controls_come_from_the_seed_and_are_others(kind):
    model = kind("parallel")
    d_mlp = model.cfg.d_mlp
    every = verify_neuron(model, (0, 5), TEXTS[:1], TEXTS[1:2], controls=d_mlp - 1, k=1)
    assert sorted(every["neuron"].values.tolist()) == list(range(d_mlp))
    first, again, other = (
        verify_neuron(model, (0, 5), TEXTS[:1], TEXTS[1:2], controls=6, k=1, seed=seed)
        for seed in (1, 1, 2)
    )
    assert first.equals(again)
    assert first["neuron"].values.tolist() != other["neuron"].values.tolist()
    assert np.isnan(first["effect_se"]).all()  # one text says nothing of its spread


def test_it_saves_and_loads(kind, tmp_path):
    found = verify_neuron(kind("parallel"), (0, 5), TEXTS[:2], TEXTS[2:], controls=2)
    assert mi.load(mi.save(found, tmp_path / "v.nc")).identical(found)


def sentences(model, make, count, seed, length=64):
    """The first tokens of documents, so that all run together."""
    rng, found = Random(seed), []
    while len(found) < count:
        row = texts_of(model, make(rng, "heldout"), what="text").rows[0]
        if len(row) >= length:
            found.append(row[:length])
    return torch.tensor(found)


def most_telling(model, positive, negative, layer):
    """The neuron of a layer whose mean activation tells two sets of texts apart best."""
    sides = []
    for tokens in (positive, negative):
        cache = mi.cache_for(model, tokens, level="neuron")
        sides.append(cache[Site("post", layer).hook_name][:, 1:].mean(1).numpy())
    area, gap = auroc(*sides), sides[0].mean(0) - sides[1].mean(0)
    return int(np.lexsort((-gap, -area))[0])


def test_nano_has_a_french_neuron_and_a_random_one_is_none(nano):
    """The claim: without one neuron of the last layer French is predicted worse, and only French.

    It is chosen on other texts than it is tested on.
    """
    both = french.document, topics.document
    chosen_on = [sentences(nano, make, 24, seed) for seed, make in enumerate(both)]
    tested_on = [sentences(nano, make, 32, seed + 10) for seed, make in enumerate(both)]
    neuron = most_telling(nano, *chosen_on, layer=3)
    found = verify_neuron(nano, (3, neuron), *tested_on, controls=15, batch_size=32)
    assert float(found["auroc"].sel(summary="mean")[0]) > 0.99
    assert float(found["auroc"].sel(summary="max")[0]) > 0.99
    for measure, z in (("delta_loss", 6), ("kl", 10), ("promoted", 10)):
        specific = found.sel(measure=measure, where="difference")
        assert int(specific["rank"]) == 1, measure
        assert float(specific["p_value"]) == 1 / 16
        assert float(specific["z"]) > z
    loss = found["effect"].sel(measure="delta_loss").isel(component=0)
    error = found["effect_se"].sel(measure="delta_loss").isel(component=0)
    assert float(loss.sel(where="positive")) > 3 * float(error.sel(where="positive"))
    assert float(loss.sel(where="positive")) > 4 * abs(float(loss.sel(where="negative")))

    fewer = [side[:12] for side in tested_on]
    random = verify_neuron(nano, (3, (neuron + 17) % 768), *fewer, controls=7)
    specific = random.sel(where="difference")
    assert float(abs(specific["z"]).max()) < 3
    assert float(random["effect"][1, 0, 0]) < float(found["effect"][1, 0, 0]) / 20


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("L3N0", TEXTS, TEXTS), {}, "neuron='L3N0'; wanted a layer from 0 to 2"),
        (("L0N64", TEXTS, TEXTS), {}, "neuron='L0N64'; wanted a neuron from 0 to 63"),
        (("L0N0", [], TEXTS), {}, "positive is empty"),
        (("L0N0", TEXTS, ["a", ""]), {}, "negative[1]=''"),
        (("L0N0", TEXTS, torch.full((1, 3), 999)), {}, "999"),
        (("L0N0", TEXTS, TEXTS), {"baseline": "median"}, "baseline='median'"),
        (("L0N0", TEXTS, TEXTS), {"baseline": float("nan")}, "baseline=nan"),
        (("L0N0", TEXTS, TEXTS), {"controls": 0}, "controls=0; wanted an integer from 1 to 63"),
        (("L0N0", TEXTS, TEXTS), {"controls": 64}, "controls=64"),
        (("L0N0", TEXTS, TEXTS), {"k": 0}, "k=0"),
        (("L0N0", TEXTS, TEXTS), {"batch_size": 0}, "batch_size=0"),
    ],
)
def test_errors(kind, arguments, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        unchecked(verify_neuron)(kind("parallel"), *arguments, **options)
