"""The shipped tokenizer and a fresh one agree, and keep the words whole."""

from itertools import islice

import pytest
from transformers import AutoTokenizer

from mlp_interp.nano import weights_path
from mlp_interp.nano.corpus import documents
from mlp_interp.nano.tokenizer import VOCABULARY, train_tokenizer, whole_words


def test_words_are_single_tokens(tokenizer):
    assert [word for word in whole_words() if len(tokenizer.encode(word)) != 1] == []


def test_round_trip(tokenizer):
    texts = [*islice(documents("heldout", 0), 300), " Ünïcode – 東京 🙂\n\ttabs  and   spaces"]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_numbers_are_cut_into_pairs_of_digits(tokenizer):
    cut = [tokenizer.decode([token]) for token in tokenizer.encode("in 1732, 5 and 123")]
    assert cut == ["in", " 17", "32", ",", " 5", " and", " 12", "3"]


def test_special_tokens(tokenizer):
    assert len(tokenizer) == VOCABULARY
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        assert getattr(tokenizer, name) == "<|endoftext|>"
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    # As in Pythia, nothing is put before the text.
    assert tokenizer.encode("The") == tokenizer.encode("The", add_special_tokens=False)


def test_auto_tokenizer_reads_the_same(tokenizer):
    auto = AutoTokenizer.from_pretrained(weights_path())
    for text in islice(documents("heldout", 1), 100):
        assert auto.encode(text) == tokenizer.encode(text)


@pytest.mark.slow
def test_training_reproduces_it(tokenizer):
    fresh = train_tokenizer(seed=0)
    assert fresh.get_vocab() == tokenizer.get_vocab()
