"""Planted tasks as clean/corrupted pairs."""

import dataclasses
import re
from itertools import combinations, islice, permutations

import pytest

from mlp_interp.nano.corpus import documents
from mlp_interp.nano.example import Example
from mlp_interp.nano.splits import in_split
from mlp_interp.nano.tasks import examples, task_names
from mlp_interp.nano.words import NAMES

# Tasks whose held-out prompts, with their answers, no training text may contain.
SEPARATE = ("ioi", "facts", "agreement", "sentiment", "refusal", "antonyms", "greater_than")


@pytest.mark.parametrize("task", task_names())
def test_pairs_are_equally_long_and_answers_single_tokens(task, tokenizer):
    for pair in examples(task, n=100, seed=0):
        clean, corrupted = tokenizer.encode(pair.clean), tokenizer.encode(pair.corrupted)
        assert len(clean) == len(corrupted)
        assert clean != corrupted
        for word in {pair.answer, pair.foil, *pair.answers, *pair.foils}:
            assert len(tokenizer.encode(word)) == 1
            # The answer follows as a token of its own.
            assert tokenizer.encode(pair.clean + word)[:-1] == clean


@pytest.mark.parametrize("task", task_names())
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_pairs_are_different_and_deterministic(task, split):
    pairs = examples(task, n=30, seed=5, split=split)
    assert len(set(pairs)) == 30
    assert pairs == examples(task, n=30, seed=5, split=split)
    assert pairs != examples(task, n=30, seed=6, split=split)
    assert pairs[:10] == examples(task, n=10, seed=5, split=split)


@pytest.mark.parametrize("task", task_names())
def test_answer_and_foil(task):
    for pair in examples(task, n=100, seed=1):
        assert pair.answer in pair.answers
        assert pair.foil in pair.foils
        assert not set(pair.answers) & set(pair.foils)
        assert pair.subject is not None
        assert pair.subject in pair.clean


@pytest.fixture(scope="module")
def training_text():
    return "\n\n".join(islice(documents("train", 0), 5_000))


@pytest.mark.parametrize("task", SEPARATE)
def test_training_text_holds_no_heldout_prompt(task, training_text):
    for pair in examples(task, n=100, seed=2):
        # Antonym lists are held out by their last two questions, so the last lines decide.
        prompt = "\n".join(pair.clean.split("\n")[-4:])
        # Whole words: " win" is not " winter".
        assert not re.search(re.escape(prompt + pair.answer) + r"\b", training_text)


def test_no_fact_is_asked_where_a_longer_phrasing_goes_on():
    for pair in examples("facts", n=300, seed=0):
        assert not pair.clean.endswith(" is in")


def test_greater_than_sets():
    for pair in examples("greater_than", n=100, seed=0):
        start = int(pair.subject)
        assert sorted(pair.answers + pair.foils) == [f"{year:02d}" for year in range(100)]
        assert all(int(year) > start for year in pair.answers)
        assert all(int(year) <= start for year in pair.foils)
        assert 1 < int(pair.foil) <= start < int(pair.answer)


def test_accept_chooses_the_words():
    names = {f" {name}" for name in NAMES[:12]}
    others = {" shop", " park", " ring", " book"}
    for pair in examples("ioi", n=30, seed=0, accept=(names | others).__contains__):
        assert {pair.answer, pair.foil} <= names


def test_no_heldout_combination_is_an_error():
    # Four names of which no pair is held out: a search without end, if nobody bounds it.
    free = next(
        four
        for four in combinations(NAMES, 4)
        if not any(in_split("heldout", "ioi", *pair) for pair in permutations(four, 2))
    )
    accepted = {f" {word}" for word in (*free, "shop", "park", "ring", "book")}
    with pytest.raises(ValueError, match="task 'ioi': accept left 4 words, and no combination"):
        examples("ioi", n=1, seed=0, accept=accepted.__contains__)


@pytest.mark.parametrize("task", task_names())
def test_too_few_words_are_an_error(task):
    with pytest.raises(ValueError, match=rf"task '{task}': accept left 0 of \d+"):
        examples(task, n=1, seed=0, accept=lambda word: False)


def test_years_that_are_single_tokens_are_an_error():
    with pytest.raises(ValueError, match="accept left 0 years that are not one piece"):
        examples("greater_than", n=1, seed=0, accept=lambda word: len(word) > 0)


def test_bad_arguments():
    with pytest.raises(ValueError, match="task is 'iol', expected one of ioi, facts"):
        examples("iol", n=1, seed=0)
    with pytest.raises(ValueError, match="n is 0, expected at least 1"):
        examples("ioi", n=0, seed=0)
    with pytest.raises(ValueError, match="split is 'test'"):
        examples("ioi", n=1, seed=0, split="test")
    with pytest.raises(ValueError, match=r"n is 1000, expected at most \d+: task 'counting'"):
        examples("counting", n=1000, seed=0)


def test_example_defaults():
    pair = Example(clean="a", corrupted="b", answer=" c", foil=" d")
    assert (pair.answers, pair.foils, pair.subject) == ((" c",), (" d",), None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        pair.answer = " e"  # type: ignore[misc]
