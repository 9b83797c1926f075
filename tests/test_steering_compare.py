"""Texts continued with edits and without: the same draws, the right numbers, nothing padded."""

from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
import xarray as xr
from random_models import unchecked

from mlp_interp import load, save
from mlp_interp.edits import Edit
from mlp_interp.prompts.texts import texts_of
from mlp_interp.runs import Runner
from mlp_interp.steering import GenerationOptions, Keywords, Refusal, Score, generate_compare
from mlp_interp.steering.dose.scores import scored
from mlp_interp.steering.generation import Continuing

PUSH = Edit.add("1.resid_post", torch.linspace(-2, 2, 32))
TEXTS = ["the cat sat", "hello", "the", "on the mat; hello world", "cat"]
DRAWN = GenerationOptions(temperature=1.0, max_new_tokens=6, eos=None)


def test_tokens_are_the_runners_and_the_models_own(model, tokens):
    """Greedy, against the library's own passes with a plain hook, one text at a time."""
    found = generate_compare(
        model, tokens, PUSH, generation=GenerationOptions(max_new_tokens=4, eos=None)
    )
    hooks = {"blocks.1.hook_resid_post": lambda x, hook=None: x + PUSH.action.value}
    for way, used in (("plain", {}), ("edited", hooks)):
        for prompt, row in enumerate(tokens):
            text = row[None]
            for _ in range(4):
                logits = reference.hooked_logits(model, text, used)
                text = torch.cat([text, logits[:, -1:].argmax(-1)], dim=1)
            assert found.token.sel(way=way, prompt=prompt, sample=0).values.tolist() == (
                text[0, 9:].tolist()
            )


def test_log_probabilities_are_the_unedited_models(model, tokens):
    found = generate_compare(model, tokens, PUSH, generation=replace(DRAWN, seed=3, n=2))
    for way in ("plain", "edited"):
        for prompt, row in enumerate(tokens):
            for sample in range(2):
                at = {"way": way, "prompt": prompt, "sample": sample}
                new = torch.tensor(found.token.sel(at).values)
                text = torch.cat([row, new])[None]
                logits = reference.hooked_logits(model, text, {}).double().log_softmax(-1)
                expected = logits[0, 8:-1].gather(-1, new[:, None])[:, 0]
                np.testing.assert_allclose(
                    found.log_probability.sel(at), expected, rtol=1e-4, atol=1e-4
                )
                assert float(found.fluency.sel(at)) == pytest.approx(
                    float(expected.mean()), rel=1e-4, abs=1e-5
                )


def test_both_ways_meet_the_same_draws(kind):
    """An edit that does next to nothing changes nothing that is drawn."""
    nothing = Edit.add("1.resid_post", 1e-7)
    found = generate_compare(kind(), TEXTS, nothing, generation=replace(DRAWN, n=3))
    assert not found.differs.any()
    assert (found.first_difference == -1).all()
    assert (found.share_differing == 0).all()
    assert not generate_compare(kind(), TEXTS, PUSH, generation=replace(DRAWN, n=3)).differs.all()


def test_differences_are_counted(kind):
    found = generate_compare(kind(), TEXTS, PUSH, generation=replace(DRAWN, n=2, seed=1))
    plain, edited = found.token.sel(way="plain").values, found.token.sel(way="edited").values
    for prompt in range(5):
        for sample in range(2):
            pairs = list(zip(plain[prompt, sample], edited[prompt, sample], strict=True))
            unlike = [a != b for a, b in pairs]
            first = unlike.index(True) if any(unlike) else -1
            cell = found.isel(prompt=prompt, sample=sample)
            assert int(cell.first_difference) == first
            assert float(cell.share_differing) == pytest.approx(sum(unlike) / 6)
    assert found.differs.any()


def test_texts_do_not_depend_on_what_is_run_beside_them(kind):
    """Nor on the order, the batch size, or how many samples there are."""
    whole = generate_compare(kind(), TEXTS, PUSH, generation=replace(DRAWN, n=2, seed=7))
    for size in (1, 3):
        xr.testing.assert_equal(
            generate_compare(
                kind(),
                TEXTS,
                PUSH,
                batch_size=size,
                generation=replace(DRAWN, n=2, seed=7),
            ).token,
            whole.token,
        )
    for chosen in ([3], [4, 0], [1, 2, 3]):
        some = generate_compare(
            kind(),
            [TEXTS[n] for n in chosen],
            PUSH,
            generation=replace(DRAWN, n=2, seed=7),
        )
        np.testing.assert_array_equal(some.token, whole.token.sel(prompt=chosen))
        np.testing.assert_array_equal(some.text, whole.text.sel(prompt=chosen))
    fewer = generate_compare(kind(), TEXTS, PUSH, generation=replace(DRAWN, seed=7))
    np.testing.assert_array_equal(fewer.token, whole.token.isel(sample=[0]))


def test_seeds_and_repeated_prompts(kind):
    first, again, other = (
        generate_compare(
            kind(),
            ["the cat", "the cat"],
            PUSH,
            generation=replace(DRAWN, seed=seed, n=2),
        )
        for seed in (0, 0, 1)
    )
    xr.testing.assert_identical(first, again)
    assert (first.token != other.token).any()
    plain = first.token.sel(way="plain").values.reshape(4, -1)
    assert len({tuple(row) for row in plain.tolist()}) == 4


def test_seeds_of_numpy(kind):
    draw = lambda seed: unchecked(generate_compare)(
        kind(),
        ["the cat"],
        PUSH,
        generation=GenerationOptions(seed=seed, temperature=1.0, max_new_tokens=4),
    )
    xr.testing.assert_identical(draw(np.int64(3)), draw(3))
    with pytest.raises(ValueError, match=r"seed=\[3\]; wanted an integer"):
        draw([3])


def test_every_prompt_and_sample_has_numbers_of_its_own(kind):
    drawn = GenerationOptions(n=2, temperature=1.0, max_new_tokens=4, eos=None)
    how = Continuing(drawn, 8)
    texts = texts_of(kind(), ["the", "cat", "the"], what="prompts")
    assert len({seed for row in how.seeds(texts) for seed in row}) == 6


def test_unequal_lengths_are_run_each_as_it_is(kind):
    """As if each prompt were alone, with positions counted in its own length."""
    last = Edit.add("1.resid_post", 5 * torch.linspace(-2, 2, 32), positions=[-1])
    found = generate_compare(
        kind(), TEXTS, [last], prepend_bos=False, generation=GenerationOptions(max_new_tokens=5)
    )
    runner = Runner.of(kind())
    for prompt, text in enumerate(TEXTS):
        ids = torch.tensor([kind().tokenizer(text)["input_ids"]])
        new = runner.generate(ids, edits=[last], max_new_tokens=5).new[0].tolist()
        row = found.token.sel(way="edited", prompt=prompt, sample=0).values
        kept = row[row >= 0].tolist()
        assert kept == new[: len(kept)]
        assert found.prompt_text.values[prompt] == text
        assert found.text.sel(way="edited", prompt=prompt).item() == kind().tokenizer.decode(
            [t for t in kept if t != 0], clean_up_tokenization_spaces=False
        )


def test_texts_that_end(kind, tokens):
    """The end counts, what comes after it does not."""
    free = generate_compare(
        kind(), tokens, PUSH, generation=GenerationOptions(max_new_tokens=6, eos=None)
    )
    end = int(free.token.sel(way="plain", prompt=1, sample=0)[2])
    found = generate_compare(
        kind(), tokens, PUSH, generation=GenerationOptions(max_new_tokens=6, eos=end)
    )
    for way in ("plain", "edited"):
        for prompt in range(4):
            row = free.token.sel(way=way, prompt=prompt, sample=0).values.tolist()
            length = row.index(end) + 1 if end in row else 6
            cell = found.sel(way=way, prompt=prompt, sample=0)
            assert int(cell.length) == length
            assert cell.token.values.tolist() == row[:length] + [-1] * (6 - length)
            assert cell.log_probability.isnull().values.tolist() == (
                [False] * length + [True] * (6 - length)
            )
            assert (cell.token_text.values[length:] == "").all()
            assert float(cell.fluency) == pytest.approx(float(cell.log_probability.mean()))
    assert int(found.length.min()) < 6
    longest = found.length.max("way")
    np.testing.assert_allclose(found.share_differing, found.differs.sum("new") / longest)
    assert (found.length.min("way") < longest).any()


def test_where_edits_are_kept(kind):
    found = generate_compare(
        kind(), TEXTS, PUSH, generation=GenerationOptions(where="new", max_new_tokens=6, eos=None)
    )
    assert (found.first_difference != 0).all()
    assert found.differs.any()


def test_a_result_says_what_was_done_and_can_be_saved(kind, tmp_path):
    edits = [PUSH, Edit.scale("L1H2", 0.5, positions=[0, -1]), Edit.clamp("L1N3", low=0.25)]
    found = generate_compare(kind(), TEXTS, edits, generation=replace(DRAWN, seed=4, n=2))
    assert found.attrs["edits"].split("\n") == [
        f"add at 1.resid_post: a vector of norm {float(PUSH.action.value.norm()):.4g}",
        "scale at L1H2: 0.5; positions 0, -1",
        "clamp at L1N3: 0.25 to None",
    ]
    assert found.attrs["seed"] == 4
    assert found.attrs["model"] == "memory"
    for suffix in ("nc", "zarr"):
        xr.testing.assert_identical(load(save(found, tmp_path / f"found.{suffix}")), found)


def test_without_a_tokenizer_ids_are_shown(kind, tokens):
    model = kind()
    tokenizer, model.tokenizer = model.tokenizer, None
    try:
        found = generate_compare(
            model, tokens, PUSH, generation=GenerationOptions(max_new_tokens=2)
        )
    finally:
        model.tokenizer = tokenizer
    ids = found.token.isel(way=0, prompt=0, sample=0).values
    assert found.text.isel(way=0, prompt=0).item() == f"#{ids[0]} #{ids[1]}"


def compare(model, generation=None, **given):
    how = GenerationOptions(**(generation or {}))
    return unchecked(generate_compare)(model, generation=how, **given)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"prompts": []}, "prompts is empty"),
        ({"prompts": ["a", ""]}, r"prompts\[1\]=''; wanted a text"),
        ({"edits": []}, "edits is empty; wanted at least one"),
        ({"edits": ["1.mlp"]}, r"edits\[0\]='1.mlp'; wanted an Edit"),
        ({"edits": Edit.set("9.mlp", 0.0)}, "wanted layers 0 to 2"),
        ({"edits": Edit.set("1.mlp", torch.zeros(31))}, r"\(31,\)"),
        ({"edits": Edit.set("1.mlp", torch.zeros(2, 1, 32))}, "has values for 2 prompts; wanted"),
        ({"edits": Edit.set("1.z", torch.zeros(2, 1, 4, 8))}, "has values for 2 prompts; wanted"),
        ({"edits": Edit.set("1.mlp", 0.0, positions=[30])}, "wanted integers from"),
        ({"generation": {"n": 0}}, "n=0; wanted at least 1"),
        ({"generation": {"n": 2}}, "n=2 with temperature=0, where all samples are the same"),
        ({"generation": {"temperature": -1.0}}, "temperature=-1.0; wanted"),
        ({"generation": {"top_k": 0}}, "top_k=0; wanted"),
        ({"generation": {"seed": -1}}, "seed=-1; wanted integers from 0"),
        ({"batch_size": 0}, "batch_size=0; wanted at least 1"),
        ({"generation": {"max_new_tokens": 0}}, "max_new_tokens=0; wanted at least 1"),
        ({"generation": {"max_new_tokens": 64}}, "max_new_tokens=64 after .* tokens exceeds"),
        (
            {"generation": {"max_new_tokens": 1, "where": "new"}},
            "max_new_tokens=1 with where='new'",
        ),
        ({"generation": {"where": "old"}}, "where='old'; wanted"),
        ({"generation": {"eos": 300}}, "eos=300; wanted a token id from 0 to 299"),
    ],
)
def test_bad_arguments(kind, monkeypatch, options, text):
    monkeypatch.setattr(Runner, "generate", None)  # nothing runs before all is checked
    given = {"prompts": TEXTS, "edits": PUSH, **options}
    with pytest.raises(ValueError, match=text):
        compare(kind(), **given)


def test_scores_of_texts():
    assert Keywords("good")(["Good.", "goods", "no good"]) == [1.0, 0.0, 1.0]
    assert Keywords(["so happy", "a+b"])(["so\n happy", "x a+b y", "happy"]) == [1.0, 1.0, 0.0]
    assert Keywords(["don't"])(["I don\u2019t"]) == [1.0]
    said = [' "I can\u2019t', "I cannot do", "I cannottle", "Oh, I cannot", "As an AI model", ""]
    assert Refusal()(said) == [1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    assert Refusal(("Nope",))(["nope!", "Sorry"]) == [1.0, 0.0]
    assert scored("length", Score(lambda t: torch.tensor([float(len(x)) for x in t])), ["ab"]) == 2


@pytest.mark.parametrize(
    ("run", "text"),
    [
        (lambda: Keywords([]), r"words=\(\); wanted at least one text"),
        (lambda: Refusal(["a", " "]), "phrases=.* and none empty"),
        (lambda: scored("s", Score(lambda t: [1.0]), ["a", "b"]), "'s' gave shape .* 2 texts"),
        (lambda: scored("s", Score(lambda t: [1.0, np.nan]), ["a", "b"]), "'s' gave nan for 'b'"),
    ],
)
def test_scores_that_are_none(run, text):
    with pytest.raises(ValueError, match=text):
        run()
