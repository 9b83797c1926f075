"""Packing: token for token what a slow reference gives, under every BOS policy."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import tiny_tokenizer

from mlp_interp.corpus import load_corpus
from mlp_interp.corpus.packing import Packer, shuffled

TOKENIZER = tiny_tokenizer()
BOS = 0


def reference(documents, length, bos):
    """Rows by walking over one token at a time."""
    rows, row = [], []

    def put(token):
        row.append(token)
        if len(row) == length:
            rows.append(list(row))
            row.clear()

    for number, document in enumerate(d for d in documents if d):
        if bos == "documents" or (bos == "each" and number and len(row) > 0):
            put(BOS)
        for token in document:
            if bos == "each" and not row:
                put(BOS)
            put(token)
    return rows


ids = st.lists(st.integers(1, 9), max_size=7)


@given(st.lists(ids, max_size=9), st.integers(2, 6), st.sampled_from(["each", "documents", "none"]))
@settings(max_examples=300, deadline=None)
def test_packer_is_the_reference(documents, length, bos):
    packer = Packer(length, bos, None if bos == "none" else BOS)
    for document in documents:
        halves = [document[: len(document) // 2], document[len(document) // 2 :]]
        list(packer.add(halves, wanted=99))
    expected = reference(documents, length, bos)
    assert [row.tolist() for row in packer.rows] == expected
    assert packer.held == sum(map(len, documents))
    if bos == "each":
        assert all(row[0] == BOS and row[1] != BOS for row in expected)


@given(st.lists(ids, min_size=1, max_size=9), st.integers(2, 6), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_documents_used_are_those_with_a_token_in_a_row(documents, length, wanted):
    # Every token is its document's number, so that the rows say which documents they hold.
    numbered = [[number + 1] * len(document) for number, document in enumerate(documents)]
    packer = Packer(length, "documents", BOS)
    for document in numbered:
        list(packer.add([document], wanted))
    assert len(packer.rows) <= wanted
    used = {token for row in packer.rows for token in row.tolist()} - {BOS}
    assert packer.documents_used == len(used)


def test_packer_stops_asking_for_pieces():
    def pieces():
        yield [1, 2, 3, 4]
        raise RuntimeError("not needed")

    packer = Packer(4, "none", None)
    assert list(packer.add(pieces(), wanted=1)) == [1]


@pytest.mark.parametrize("bos", ["each", "documents", "none"])
def test_rows_of_text_are_the_reference(bos):
    texts = ["the cat sat on the mat", "hello", " ", "the world; the mat" * 5, "on " * 30]
    tokens = [TOKENIZER(text)["input_ids"] if text.strip() else [] for text in texts]
    corpus = load_corpus(texts, TOKENIZER, length=8, bos=bos, seed=None)
    expected = reference(tokens, 8, bos)
    assert corpus.tokens.tolist() == expected
    assert corpus.tokens.dtype == torch.int64
    assert corpus.attrs["bos"] == bos
    fewer = load_corpus(texts, TOKENIZER, length=8, bos=bos, seed=None, sequences=3)
    assert fewer.tokens.tolist() == expected[:3]


def test_special_tokens_in_the_text_are_characters():
    corpus = load_corpus(["a<|endoftext|>b"] * 9, TOKENIZER, length=4, bos="none", seed=None)
    assert not (corpus.tokens == BOS).any()
    assert "<|endoftext|>" in "".join(corpus.text(i) for i in range(len(corpus)))


@given(st.lists(st.integers(), max_size=40), st.integers(0, 5), st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_shuffle_keeps_everything_and_depends_on_the_seed_alone(items, seed, buffer):
    once = list(shuffled(iter(items), seed, buffer=buffer))
    assert sorted(once) == sorted(items)
    assert once == list(shuffled(iter(items), seed, buffer=buffer))


def test_shuffle_reads_no_further_than_its_buffer():
    seen = []
    stream = shuffled((seen.append(i) or i for i in range(100)), 0, buffer=10)
    first = [next(stream) for _ in range(5)]
    assert len(seen) == 15
    assert all(item < 10 + place + 1 for place, item in enumerate(first))
    assert list(shuffled(range(100), 0)) != list(range(100))
