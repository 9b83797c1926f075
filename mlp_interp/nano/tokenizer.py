"""Byte-level BPE trained on the nano corpus, with GPT-NeoX's conventions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from mlp_interp.nano import words
from mlp_interp.nano.corpus import documents
from mlp_interp.nano.planted import refusal, sentiment
from mlp_interp.nano.planted.years import CENTURIES, DIGITS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["END_OF_TEXT", "VOCABULARY", "train_tokenizer", "whole_words"]

END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 2048
_DOCUMENTS = 20_000
# How often every word that must be one token is shown besides: enough to win its merges.
_REPEATS = 400


def whole_words() -> list[str]:
    """Return the texts that must be single tokens, with their leading space if they have one."""
    plain: set[str] = {*words.NAMES, *words.PLACES, *words.OBJECTS, *words.COLOURS}
    plain |= {*words.NUMBERS, *words.CITIES, *words.NOUNS, *map(words.plural, words.NOUNS)}
    for table in (words.COUNTRIES, words.LANGUAGES, words.FRENCH_WORDS, words.PAST_TENSES):
        plain |= {*table.keys(), *table.values()}
    plain |= {part for landmark in words.LANDMARKS for part in landmark.split()}
    plain |= {word for pair in words.ANTONYMS for word in pair}
    plain |= {*sentiment.WORDS, *sentiment.VERDICTS, *refusal.WORDS}
    plain |= {str(number) for number in range(61)} | set(CENTURIES)
    return [f" {word}" for word in sorted(plain)] + list(DIGITS)


def _texts(seed: int) -> Iterator[str]:
    yield from islice(documents("train", seed), _DOCUMENTS)
    for _ in range(_REPEATS):
        yield from whole_words()


def train_tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    """Train the tokenizer.

    Numbers are cut into pairs of digits from the left before BPE, so that a year is always
    its century and its two last digits.

    Returns:
        A tokenizer whose beginning, end, unknown and padding token is ``<|endoftext|>``,
        id 0, as in Pythia.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[0-9]{1,2}"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_texts(seed), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
