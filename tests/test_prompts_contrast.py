"""`Contrast`: tokens exactly as the tokenizer gives them, and one error for each mistake."""

import dataclasses
from functools import partial
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from random_models import tiny_tokenizer

from mlp_interp.prompts import Contrast

CAT = "the cat sat on the mat"
HELLO = "the world sat on the mat"


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def contrast(tokenizer):
    return Contrast.of(
        tokenizer,
        [CAT, HELLO],
        [HELLO, CAT],
        [" cat", " world"],
        [" world", " cat"],
        subjects=["cat", "world"],
        task="sitting",
    )


def direct(**changes):
    fields = {
        "clean_tokens": torch.tensor([[0, 5, 7], [0, 5, 8]]),
        "corrupted_tokens": torch.tensor([[0, 6, 7], [0, 5, 9]]),
        "answers": torch.tensor([1, 2]),
        "foils": torch.tensor([3, 4]),
    }
    return Contrast(**{**fields, **changes})


def test_tokens_are_those_of_the_tokenizer_behind_bos(contrast, tokenizer):
    for tokens, texts in (
        (contrast.clean_tokens, [CAT, HELLO]),
        (contrast.corrupted_tokens, [HELLO, CAT]),
    ):
        expected = [[0, *tokenizer(text)["input_ids"]] for text in texts]
        assert tokens.tolist() == expected
    assert contrast.answers.tolist() == tokenizer.convert_tokens_to_ids(["Ġcat", "Ġworld"])
    assert contrast.foils.tolist() == contrast.answers.tolist()[::-1]
    assert contrast.clean_text == [f"<|endoftext|>{CAT}", f"<|endoftext|>{HELLO}"]
    assert contrast.corrupted_text[0] == f"<|endoftext|>{HELLO}"
    assert contrast.answer_text == [" cat", " world"]
    assert "".join(contrast.token_text("clean")[0]) == contrast.clean_text[0]
    assert contrast.attrs["task"] == "sitting"
    assert contrast.attrs["data"] == f"sitting: 2 pairs of {contrast.length} tokens"


def test_differs_and_subject_are_the_exchanged_word(contrast):
    assert contrast.differs.sum(-1).tolist() == [1, 1]
    assert torch.equal(contrast.subject, contrast.differs)


def test_bos_is_added_once_or_not_at_all(tokenizer):
    def first(text, **options):
        return Contrast.of(tokenizer, text + CAT, text + HELLO, " cat", " on", **options)

    without = first("", prepend_bos=False)
    assert first("").clean_tokens[0, 0] == 0
    assert without.clean_tokens.tolist() == first("").clean_tokens[:, 1:].tolist()
    assert without.attrs["bos"] == "none"
    written = first("<|endoftext|>")
    assert torch.equal(written.clean_tokens, first("").clean_tokens)


def test_subject_of_several_tokens_and_of_a_word_that_stands_twice(tokenizer):
    twice = Contrast.of(
        tokenizer,
        "the cat, the mat; the cat",
        "the cat, the mat; the mat",
        " on",
        " sat",
        subjects=["cat"],
    )
    assert torch.equal(twice.subject, twice.differs)  # the second cat only
    phrase = Contrast.of(tokenizer, CAT, HELLO, " on", " sat", subjects=["cat sat"])
    shown = [t for t, s in zip(phrase.token_text()[0], phrase.subject[0], strict=True) if s]
    assert "".join(shown) == " cat sat"
    with pytest.raises(
        ValueError, match=r"subjects\[0\]='at' stands only inside of other words in"
    ):
        Contrast.of(tokenizer, CAT, HELLO, " on", " sat", subjects=["at"])
    unmarked = Contrast.of(tokenizer, CAT, HELLO, " on", " sat", subjects=[None])
    assert not unmarked.subject.any()


def test_model_gives_the_same_as_its_tokenizer(nano):
    of_model = Contrast.of(nano, "The king is", "The moon is", " king", 17)
    of_tokenizer = Contrast.of(nano.tokenizer, "The king is", "The moon is", " king", 17)
    assert torch.equal(of_model.clean_tokens, of_tokenizer.clean_tokens)
    assert of_model.foils.tolist() == [17]


def test_slicing_length_and_iteration(contrast):
    assert len(contrast) == 2
    assert len(contrast[0]) == len(contrast[-1]) == 1
    assert contrast[-1].clean_text == contrast[1:].clean_text == contrast.clean_text[1:]
    assert [one.answer_text for one in contrast] == [[" cat"], [" world"]]
    assert contrast[1].attrs["data"].startswith("sitting: 1 pairs")
    assert torch.equal(contrast[1].subject, contrast.subject[1:])
    with pytest.raises(IndexError, match="index=2; wanted integers from -2 to 1"):
        contrast[2]
    with pytest.raises(ValueError, match="empty"):
        contrast[2:]


@pytest.mark.parametrize(
    ("index", "chosen"),
    [
        (np.int64(1), [1]),
        (torch.tensor(-1), [1]),
        ([1, 0], [1, 0]),
        ((1, 1), [1, 1]),
        (np.array([1, -2]), [1, 0]),
        (torch.tensor([1]), [1]),
        ([False, True], [1]),
        (np.array([True, False]), [0]),
        (torch.tensor([True, True]), [0, 1]),
        (slice(None, None, -1), [1, 0]),
        (range(2), [0, 1]),
    ],
)
def test_indices_of_any_kind(contrast, index, chosen):
    some = contrast[index]
    assert some.clean_text == [contrast.clean_text[prompt] for prompt in chosen]
    assert some.answer_text == [contrast.answer_text[prompt] for prompt in chosen]
    assert some.all_foils == tuple(contrast.all_foils[prompt] for prompt in chosen)
    assert torch.equal(some.subject, contrast.subject[chosen])


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([0, 2], "index=2; wanted integers from -2 to 1"),
        (1.0, "index=1.0; wanted integers"),
        ("clean", "index='clean'; wanted integers"),
        (True, "index=True; wanted integers"),
        ([True], "index of 1 bools; wanted one for each of 2"),
        (np.array([[0, 1]]), r"index=\[0, 1\]; wanted integers"),
        (None, "index=None; wanted integers"),
    ],
)
def test_indices_of_no_prompts(contrast, index, message):
    with pytest.raises(IndexError, match=message):
        contrast[index]
    with pytest.raises(ValueError, match=r"index=\[\] is empty; wanted some of 2 prompts"):
        contrast[[]]


def test_swap_exchanges_everything_and_twice_is_nothing(contrast):
    swapped = contrast.swap()
    assert torch.equal(swapped.clean_tokens, contrast.corrupted_tokens)
    assert torch.equal(swapped.answers, contrast.foils)
    assert swapped.all_answers == contrast.all_foils
    again = swapped.swap()
    for field in ("clean_tokens", "corrupted_tokens", "answers", "foils"):
        assert torch.equal(getattr(again, field), getattr(contrast, field))


def test_inputs_are_not_changed():
    attrs = {"task": "mine"}
    direct(attrs=attrs)
    assert attrs == {"task": "mine"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        direct().answers = torch.tensor([1, 2])


def test_without_a_tokenizer_ids_are_shown():
    assert direct().clean_text == ["#0 #5 #7", "#0 #5 #8"]
    assert "#0‹#5›#7" in repr(direct())


def test_repr_shows_the_first_pair(contrast):
    assert repr(contrast).splitlines() == [
        f"Contrast(task='sitting', prompts=2, length={contrast.length})",
        "  clean[0]     <|endoftext|>the‹ cat› sat on the mat",
        "  corrupted[0] <|endoftext|>the‹ world› sat on the mat",
        "  answer ' cat', foil ' world'",
    ]


class Text(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.data = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.data += data


def test_html_shows_markup_as_text(tokenizer):
    nasty = "</td><script>alert(1)</script><img onerror=x>"
    contrast = Contrast.of(
        tokenizer, f"{nasty} cat", f"{nasty} mat", " cat", " mat", task="<b>mine</b>"
    )
    page = Text(contrast._repr_html_())
    assert set(page.tags) == {"table", "caption", "thead", "tbody", "tr", "th", "td", "mark"}
    assert nasty in page.data
    assert "<b>mine</b>" in page.data


def test_html_says_how_many_pairs_it_leaves_out(contrast):
    many = Contrast.of(tiny_tokenizer(), [CAT] * 11, [HELLO] * 11, [" cat"] * 11, [" on"] * 11)
    assert "3 more not shown" in many._repr_html_()
    assert many._repr_html_().count("<mark>") == 2 * 8
    assert "more" not in contrast._repr_html_()


@given(st.text(min_size=1, max_size=30).filter(str.strip), st.booleans())
@example("a\0b", True)
@settings(max_examples=25, deadline=None)
def test_any_text_survives(text, prepend_bos):
    tokenizer = tiny_tokenizer_once()
    pair = partial(Contrast.of, tokenizer, text + " cat", text + " mat", " on", " sat")
    if "\0" in text:  # no file of results can hold it
        with pytest.raises(ValueError, match="holds a NUL"):
            pair(prepend_bos=prepend_bos)
        return
    contrast = pair(prepend_bos=prepend_bos)
    bos = "<|endoftext|>" if prepend_bos else ""
    assert contrast.clean_text == [f"{bos}{text} cat"]
    assert contrast.differs.sum() == 1
    assert set(Text(contrast._repr_html_()).tags) <= {
        *("table", "caption", "thead", "tbody", "tr", "th", "td", "mark")
    }


def tiny_tokenizer_once(made=[]):  # noqa: B006
    if not made:
        made.append(tiny_tokenizer())
    return made[0]


def of(tokenizer, clean=CAT, corrupted=HELLO, answers=" cat", foils=" world", **options):
    return Contrast.of(tokenizer, clean, corrupted, answers, foils, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clean": []}, "got clean=0, corrupted=1, answers=1, foils=1; wanted equally many"),
        ({"clean": [], "corrupted": [], "answers": [], "foils": []}, "at least one"),
        ({"clean": [CAT, CAT]}, "got clean=2, corrupted=1"),
        ({"subjects": []}, "subjects=0; wanted equally many"),
        ({"clean": "  "}, r"clean\[0\]='  '; wanted a prompt of at least one word"),
        ({"corrupted": "hello " + HELLO}, r"prompt 0: clean has 7 tokens and corrupted has 9"),
        ({"corrupted": "hello " + HELLO}, r"corrupted <\|endoftext\|>\|he\|llo\| the\| world"),
        (
            {"answers": "world"},
            r"\['wor', 'ld'\]; wanted .*' world', with a leading space, is one$",
        ),
        ({"foils": ""}, r"foils\[0\]='' is 0 tokens \[\]"),
        ({"foils": " cat"}, "prompt 0: answer and foil are the same token ' cat'"),
        ({"corrupted": CAT}, r"prompt 0: clean and corrupted are the same tokens '<\|endoftext"),
        ({"answers": 300}, r"answers\[0\]: token 300 is outside the vocabulary; wanted 0 to 277"),
        ({"answers": -1}, "token -1 is outside"),
        ({"subjects": ["dog"]}, r"subjects\[0\]='dog' is not in clean prompt 'the cat"),
    ],
)
def test_bad_texts(tokenizer, changes, message):
    with pytest.raises(ValueError, match=message):
        of(tokenizer, **changes)


def test_tokenizer_that_is_none_or_has_no_bos():
    with pytest.raises(ValueError, match="model=object has no tokenizer; wanted a model with"):
        of(object())
    bare = tiny_tokenizer()
    bare.bos_token = bare.eos_token = bare.unk_token = None
    with pytest.raises(ValueError, match="has neither a BOS nor an EOS token"):
        of(bare)
    assert of(bare, prepend_bos=False).length == 6


def test_tokenizer_larger_than_the_model():
    model = SimpleNamespace(
        tokenizer=tiny_tokenizer(), cfg=SimpleNamespace(d_vocab=260, device=None)
    )
    with pytest.raises(ValueError, match=r"clean\[0\]: token 2\d\d is outside the vocabulary"):
        of(model, answers=5, foils=6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clean_tokens": torch.zeros(3).long()}, r"clean_tokens=\(3,\); wanted a tensor \[prompt"),
        ({"answers": torch.tensor([1.0, 2.0])}, "answers is torch.float32; wanted integer"),
        ({"answers": [1, 2]}, "answers=list; wanted shape"),
        ({"clean_tokens": torch.zeros(0, 3).long()}, r"clean_tokens=\(0, 3\) is empty"),
        (
            {"corrupted_tokens": torch.zeros(2, 4).long()},
            r"corrupted_tokens=\(2, 4\); wanted",
        ),
        ({"answers": torch.tensor([1])}, r"answers=\(1,\); wanted shape \(2,\)"),
        ({"foils": torch.tensor([3, -4])}, "foils holds -4; wanted token ids from 0"),
        ({"foils": torch.tensor([3, 2])}, "prompt 1: answer and foil are the same token '#2'"),
        ({"corrupted_tokens": torch.tensor([[0, 6, 7], [0, 5, 8]])}, "prompt 1: clean and corrupt"),
        ({"subject": torch.ones(2, 2).bool()}, r"subject=\(2, 2\) of torch.bool; wanted booleans"),
        ({"all_answers": ((1,),)}, "all_answers has 1 entries; wanted one for each of 2"),
        ({"all_answers": ((1,), (5,))}, r"prompt 1: all_answers=\(5,\) lacks token 2 of answers"),
        ({"all_foils": ((3, 1), (4,))}, r"prompt 0: tokens \[1\] are in all_answers and in all_f"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_bad_tensors(changes, message):
    with pytest.raises(ValueError, match=message):
        direct(**changes)


@pytest.mark.usefixtures("without_type_checks")
def test_token_text_of_neither():
    with pytest.raises(ValueError, match="which='dirty'; wanted 'clean' or 'corrupted'"):
        direct().token_text("dirty")
