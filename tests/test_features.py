"""Texts that a model scores itself, and contrast sets that it writes."""

from random import Random

import numpy as np
import pytest
import torch
from random_models import unchecked

from mlp_interp import features
from mlp_interp.edits import Edit
from mlp_interp.nano.topics import TOPICS, document
from mlp_interp.steering import GenerationOptions, steer

TEXTS = ["the cat sat on the mat", "hello", "hello world; the mat"]
DRAWS = GenerationOptions(n=12, temperature=1.0, max_new_tokens=10, seed=3)


@pytest.fixture(scope="module")
def topics(nano):
    """Held-out paragraphs of nine topics without their headings, scored for every topic."""
    rng, texts, labels = Random("features"), [], []
    while len(texts) < 18:
        text = document(rng, "heldout").split(". ", 1)
        topic = text[0].removeprefix("Topic: ")
        if topic != text[0] and labels.count(topic) < 2:
            texts.append(" ".join(text[1].split(" ")[:24]))
            labels.append(topic)
    prefixes = {topic: f"Topic: {topic}." for topic in TOPICS}
    return texts, labels, features.self_score(nano, texts, prefixes)


def plain(model, context, tokens):
    """Log-probability of each token, by the library's own forward pass."""
    with torch.no_grad():
        logits = model(torch.tensor([[*context, *tokens]])).double().log_softmax(-1)
    rows = logits[0, len(context) - 1 : -1]
    return rows[torch.arange(len(tokens)), tokens].numpy()


def test_scores_are_differences_of_log_probabilities(some_model):
    model, prefix = some_model, "on the mat"
    edit = Edit.scale("1.mlp", 0.5)
    found = features.self_score(model, TEXTS, {"prefix": prefix, "edit": edit}, batch_size=2)
    encode = lambda text: model.tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = model.tokenizer.bos_token_id
    bos = model.tokenizer.eos_token_id if bos is None else bos
    for n, text in enumerate(TEXTS):
        tokens = encode(" " + text)
        before = plain(model, [bos], tokens)
        with steer(model, edit):
            edited = plain(model, [bos], tokens)
        behind = plain(model, [bos, *encode(prefix)], tokens)
        for row, after in enumerate((behind, edited)):
            got = found.isel(feature=row, prompt=n)
            np.testing.assert_allclose(
                got.token_score[: len(tokens)], after - before, atol=2e-4, rtol=0
            )
            assert np.isnan(got.token_score[len(tokens) :]).all()
            np.testing.assert_allclose(got.score, (after - before).mean(), atol=1e-4)
            np.testing.assert_allclose(got.total, (after - before).sum(), atol=1e-3)
            np.testing.assert_allclose(got.log_probability, after.mean(), atol=1e-4)
            several = len(tokens) > 1
            spread = (after - before).std(ddof=1) / len(tokens) ** 0.5 if several else np.nan
            np.testing.assert_allclose(got.score_se, spread, atol=1e-4)


def test_turned_round_a_score_changes_its_sign(kind):
    model = kind()
    one = features.self_score(model, TEXTS, "the cat", against="hello")
    other = features.self_score(model, TEXTS, "hello", against="the cat")
    np.testing.assert_allclose(one.token_score, -other.token_score, atol=1e-6)
    same = features.self_score(model, TEXTS, "hello", against="hello")
    assert float(np.abs(same.total).max()) == 0
    pair = {"one": "the cat", "other": "hello"}
    both = features.self_score(model, TEXTS, pair, against="others")
    np.testing.assert_allclose(both.token_score[0], one.token_score[0], atol=1e-9)


def test_others_are_a_mixture(kind):
    three = {"a": "the cat", "b": "hello", "c": "on the mat"}
    found = features.self_score(kind(), TEXTS, three, against="others")
    total = (found.log_probability * found.length).values
    mixed = np.log(np.exp(total[1:]).mean(0))
    np.testing.assert_allclose(found.total[0], total[0] - mixed, atol=1e-6)
    np.testing.assert_allclose(found.token_score.sum("pos"), found.total, atol=1e-6)


def test_texts_may_be_token_ids(kind):
    model = kind()
    encode = lambda text: model.tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = [encode(" " + text) for text in TEXTS]
    texts = features.self_score(model, TEXTS, "the cat")
    for given in (ids, [[0, *row] for row in ids]):
        found = features.self_score(model, given, "the cat")
        np.testing.assert_array_equal(found.token_score, texts.token_score)
    apart = features.self_score(model, TEXTS[1], "the cat", separator="")
    assert apart.length.item() == len(encode("hello"))


def test_topics_are_told_by_their_headings(topics):
    _, labels, scores = topics
    found = features.agreement(scores, labels)
    assert float(found["first"]) >= 0.8
    assert float(found["first_chance"]) == pytest.approx(1 / 9)
    assert float(found.auroc.min()) > 0.8
    assert float(found.auroc.mean()) > 0.9


def test_a_prefix_that_was_never_trained_tells_nothing(nano, topics):
    texts, labels, _ = topics
    scores = features.self_score(nano, texts, "Sarcastic:", controls=5)
    rows = [features.agreement(scores, np.array(labels) == topic) for topic in TOPICS]
    auroc = np.array([float(row.auroc[0]) for row in rows])
    assert abs(auroc.mean() - 0.5) < 2 * auroc.std(ddof=1) / 3
    # By topic: no further from 0.5 than random tokens, beside which headings stand out.
    control = np.stack([row.auroc_control.values[0] for row in rows])
    spread = np.sqrt(((control - 0.5) ** 2).mean())
    assert np.sqrt(((auroc - 0.5) ** 2).mean()) < 2 * spread


def test_agreement_counts_pairs(topics):
    _, labels, scores = topics
    found = features.agreement(scores, labels)
    pairs = features.rank_pairs(scores)
    assert pairs.sizes["pair"] == 18 * 17 // 2
    value = scores.score.values
    for n, name in enumerate(found.feature.values):
        mine = np.array(labels) == name
        wins = value[n][mine][:, None] > value[n][~mine]
        assert found.auroc[n] == pytest.approx(wins.mean())
        assert found.positives[n] == 2
        assert found.auroc_null_se[n] == pytest.approx((19 / 12 / 2 / 16) ** 0.5)
    some = features.rank_pairs(scores, [(0, -1)])
    np.testing.assert_allclose(some.difference[:, 0], value[:, 0] - value[:, -1])
    assert (some.first.item(), some.second.item()) == (0, 17)
    se = scores.score_se.values
    np.testing.assert_allclose(some.difference_se[:, 0], np.hypot(se[:, 0], se[:, -1]))
    assert float(pairs.confidence.min()) >= 0.5


@pytest.fixture(scope="module")
def written(nano):
    return features.self_generate(nano, "Topic: chess.", generation=DRAWS)


def test_contrast_sets_are_of_the_feature_and_apart(nano, written):
    found = written
    again = features.self_generate(nano, "Topic: chess.", generation=DRAWS)
    assert found.identical(again)
    sets = {
        (side, out): features.contrast_texts(found, side, held_out=out)
        for side in ("positive", "negative")
        for out in (False, True)
    }
    every = [text for texts in sets.values() for text in texts]
    assert len({*every}) == len(every) == int(found.kept.sum())
    assert all(sets.values())
    positive = found.where(found.side == "positive", drop=True)
    kept = positive.kept.astype(bool)
    assert float(positive.score[kept].min()) >= float(positive.score[~kept].max())
    negative = found.where(found.side == "negative", drop=True)
    assert float(positive.score[kept].min()) > float(negative.score[negative.kept == 1].max())
    scores = features.self_score(nano, [*map(str, found.text.values)], "Topic: chess.")
    np.testing.assert_allclose(found.score, scores.score[0], atol=1e-5)


def test_contrast_sets_by_edits(kind):
    model = kind()
    edit = Edit.scale("0.mlp", -3.0)
    found = features.self_generate(model, edit, generation=DRAWS, keep=1.0, held_out=0.0)
    assert bool(found.kept.all())
    assert not bool(found.held_out.any())


NO_CHOICE = {"a": "the cat", "b": "hello"}


@pytest.mark.parametrize(
    ("texts", "feature", "options", "says"),
    [
        (TEXTS, "a ", {}, "features='a ' ends in white space"),
        (TEXTS, {}, {}, "features={}"),
        (TEXTS, 3, {}, "features=3; wanted a prefix"),
        (TEXTS, {"x": None}, {}, r"features\['x'\]=None"),
        ([], "a", {}, "texts is empty"),
        (["", "b"], "a", {}, r"texts\[0\]=''"),
        ([[0]], "a", {}, r"texts\[0\] is nothing but BOS"),
        (["hello " * 80], "a", {}, "exceed the model's context"),
        ([" ".join(["hello"] * 62)], "a cat", {}, "the model reads 64 at most"),
        (TEXTS, "a", {"against": "others"}, "against='others' with the one feature"),
        (TEXTS, "a", {"against": 2}, "against=2; wanted a prefix"),
        (TEXTS, "a", {"controls": -1}, "controls=-1"),
        (TEXTS, Edit.scale("0.mlp", 0.0), {"controls": 1}, "has no prefix"),
        (TEXTS, Edit.scale("9.mlp", 0.0), {}, "9"),
        (TEXTS, "a", {"batch_size": 0}, "batch_size=0"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_scores_refuse(kind, texts, feature, options, says):
    with pytest.raises(ValueError, match=says):
        unchecked(features.self_score)(kind(), texts, feature, **options)


def test_pairs_and_labels_that_are_none(kind):
    scores = features.self_score(kind(), TEXTS, NO_CHOICE)
    one = features.self_score(kind(), TEXTS, "hello")
    for pairs, says in (([], "at least one pair"), ([(0, 3)], "pairs=3"), ([(1, 1)], "two diff")):
        with pytest.raises(ValueError, match=says):
            features.rank_pairs(scores, pairs)
    for found, labels, says in (
        (scores, ["a", "b"], "for 3 texts"),
        (scores, ["a", "a", "a"], "to 3 of 3 texts"),
        (scores, [True, False, True], "wanted names"),
        (one, [1.0, 2.0, 3.0], "float64"),
        (one, [False] * 3, "to 0 of 3 texts"),
    ):
        with pytest.raises(ValueError, match=says):
            features.agreement(found, labels)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep": 0.0}, "keep=0.0"),
        ({"held_out": 1.0}, "held_out=1.0"),
        ({"keep": 0.05}, "leaves"),
        ({"against": "the cat"}, "are the same"),
        ({"generation": GenerationOptions(n=3, temperature=1.0)}, "n=3; wanted at least 4"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_contrast_sets_refuse(kind, options, says):
    given = {"generation": DRAWS, **options}
    with pytest.raises(ValueError, match=says):
        features.self_generate(kind(), "the cat", **given)


def test_no_such_side(written):
    with pytest.raises(ValueError, match="side='both'"):
        unchecked(features.contrast_texts)(written, "both")
