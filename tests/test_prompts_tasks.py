"""The planted tasks: in nano's words, and in whatever words another tokenizer keeps whole."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mlp_interp import prompts
from mlp_interp.nano import words
from mlp_interp.nano.tasks import examples, task_names
from mlp_interp.prompts import planted

TASKS = tuple(sorted(set(prompts.__all__) - {"Contrast", "by_place", "places"}))


def tokenizer_with(whole):
    """A byte-level BPE tokenizer that keeps `whole` in one piece and splits all other words."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=20_000,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([f" {word}" for word in whole] * 4, trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=end, eos_token=end)


def nano_keeps_whole(nano):
    return lambda word: len(nano.tokenizer.tokenize(word)) == 1


def test_every_planted_task_has_a_builder():
    assert set(TASKS) == set(task_names())


@pytest.mark.parametrize("task", TASKS)
def test_nano_speaks_every_task(nano, task):
    build = getattr(prompts, task)
    contrast = build(nano, 12, 3)
    assert len(contrast) == 12
    assert (contrast.clean_tokens[:, 0] == nano.tokenizer.bos_token_id).all()
    assert contrast.attrs["seed"] == 3
    assert contrast.attrs["tokenizer"] == "nano"
    assert contrast.subject is not None
    # Something of the subject was exchanged, in every pair.
    assert (contrast.subject & contrast.differs).any(-1).all()
    pairs = list(zip(contrast.clean_text, contrast.corrupted_text, strict=True))
    assert len(set(pairs)) == 12
    again = build(nano, 12, 3)
    assert torch.equal(again.clean_tokens, contrast.clean_tokens)
    assert set(build(nano, 12, 4).clean_text) != set(contrast.clean_text)


@pytest.mark.parametrize("task", ["ioi", "greater_than"])
def test_the_text_is_the_generators(nano, task):
    written = {}
    contrast = getattr(prompts, task)(nano, n=8)
    # Which word a pair asks for may depend on the words that the tokenizer keeps whole.
    for example in examples(task, n=64, seed=0, accept=nano_keeps_whole(nano)):
        written[example.clean] = example
    for one in contrast:
        example = written[one.clean_text[0].removeprefix("<|endoftext|>")]
        assert one.corrupted_text == [f"<|endoftext|>{example.corrupted}"]
        assert (one.answer_text, one.foil_text) == ([example.answer], [example.foil])
        ids = nano.tokenizer.convert_ids_to_tokens
        shown = {word.removeprefix("Ġ") for word in ids(list(one.all_answers[0]))}
        assert shown == {word.strip() for word in example.answers}


def test_greater_than_splits_all_years(nano):
    for one in prompts.greater_than(nano, n=8):
        right, wrong = (
            sorted(int(nano.tokenizer.decode([token])) for token in tokens)
            for tokens in (one.all_answers[0], one.all_foils[0])
        )
        assert wrong + right == list(range(100))
        subject = [t for t, s in zip(one.token_text()[0], one.subject[0], strict=True) if s]
        assert wrong[-1] == int("".join(subject))


def test_only_words_that_are_whole_are_used():
    names = words.NAMES[:6]
    others = words.PLACES[:4] + words.OBJECTS[:4]
    tokenizer = tokenizer_with(names + others)
    contrast = prompts.ioi(tokenizer, n=10)
    assert len({row.shape for row in contrast.clean_tokens}) == 1
    used = {word.strip() for word in contrast.answer_text + contrast.foil_text}
    assert used <= set(names)
    assert (contrast.differs.sum(-1) == 1).all()


def test_too_few_whole_words():
    tokenizer = tokenizer_with((*words.NAMES[:2], *words.PLACES, *words.OBJECTS))
    message = r"task 'ioi' cannot give n=5 prompts in the words that are single tokens .* left 2 of"
    with pytest.raises(ValueError, match=message):
        prompts.ioi(tokenizer, n=5)


def test_too_few_of_one_length(monkeypatch):
    """The task has 12 pairs in all, and in a tokenizer of bytes they differ in length."""
    pairs = examples("ioi", n=12, seed=0)

    def twelve(task, *, n, **options):
        if n > 12:
            raise ValueError(f"n is {n}, expected at most 12")
        return pairs[:n]

    monkeypatch.setattr(planted, "examples", twelve)
    tokenizer = tokenizer_with(words.NAMES + words.PLACES + words.OBJECTS)
    message = r"task 'ioi' has only \d+ prompts of one length .*; wanted n=12: ask for fewer"
    with pytest.raises(ValueError, match=message):
        prompts.ioi(tokenizer, n=12)
    with pytest.raises(ValueError, match=r"cannot give n=13 .*: n is 13, expected at most 12"):
        prompts.ioi(tokenizer, n=13)


def test_n_below_one(nano):
    with pytest.raises(ValueError, match="n=0; wanted at least 1"):
        prompts.ioi(nano, 0)


def test_train_split_and_bos(nano):
    without = prompts.ioi(nano, n=4, split="train", prepend_bos=False)
    assert without.attrs["split"] == "train"
    assert (without.clean_tokens != nano.tokenizer.bos_token_id).all()
    held_out = set(prompts.ioi(nano, n=50, prepend_bos=False).clean_text)
    assert not held_out & set(without.clean_text)


def test_prompts_are_encoded_together(nano, monkeypatch):
    """What is asked of the tokenizer grows with the task's words, not with the prompts."""
    tokenizer_class, asked = type(nano.tokenizer), []
    call = tokenizer_class.__call__
    monkeypatch.setattr(
        tokenizer_class, "__call__", lambda self, *a, **k: asked.append(a) or call(self, *a, **k)
    )
    counts = []
    for n in (20, 80):
        asked.clear()
        prompts.ioi(nano, n=n, seed=0)
        counts.append(len(asked))
    assert counts[1] < counts[0] + 80
