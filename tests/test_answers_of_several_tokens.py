"""Answers of several tokens: all of them where a metric can sum, the first where one is read."""

import numpy as np
import pytest
import torch
from contrasts import contrast_of
from random_models import BACKENDS, unchecked

import mlp_interp as mi
from mlp_interp import Contrast, metrics
from mlp_interp.interchange import Question

ANSWERS = ((3, 9, 4), (4,), (5, 3))


def contrast_of_several():
    """Pairs of 5 to 7 tokens whose answers have 3, 1 and 2."""
    pairs = [contrast_of(1, length, seed=length) for length in (6, 7, 5)]
    longest = 7
    clean, corrupted = (
        torch.cat(
            [torch.nn.functional.pad(getattr(p, side), (0, longest - p.length)) for p in pairs]
        )
        for side in ("clean_tokens", "corrupted_tokens")
    )
    return Contrast(
        clean_tokens=clean,
        corrupted_tokens=corrupted,
        answers=torch.tensor([tokens[0] for tokens in ANSWERS]),
        foils=torch.tensor([60, 61, 62]),
        answer_tokens=ANSWERS,
        lengths=torch.tensor([6, 7, 5]),
    )


@torch.no_grad()
def by_the_model(model, prompt, answer, hooks=()):
    """Log-probability of the answer after the prompt: token by token, from the model's logits."""
    row, total = list(prompt), 0.0
    for number, token in enumerate(answer):
        run = [*row, *answer[:number]]
        logits = model.run_with_hooks(torch.tensor([run]), fwd_hooks=list(hooks))
        total += float(logits[0, -1].double().log_softmax(-1)[token])
    return total


@pytest.mark.parametrize("engine", ["auto", "hooks"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_sum_over_the_answers_tokens(kind, backend, engine):
    model, contrast = kind("parallel", backend, "folded"), contrast_of_several()
    result = mi.patch(
        model, contrast, "answer_log_probability", sites="resid_pre", layers=[1], engine=engine
    )
    assert result.attrs["unit"] == "nats"
    assert result.attrs["answers"] == "the first tokens of several"
    assert result.sizes["pos"] == 8
    for side in ("clean", "corrupted"):
        rows = contrast.rows(side)
        wanted = [by_the_model(model, row, a) for row, a in zip(rows, ANSWERS, strict=True)]
        np.testing.assert_allclose(result[side], wanted, atol=1e-5)


def test_a_cell_is_that_of_the_models_own_hooks(kind):
    """Among the prompt's positions and at one of the answer's."""
    model, contrast = kind("sequential", BACKENDS[0], "raw"), contrast_of_several()
    found = mi.patch(model, contrast, "answer_log_probability", sites="mlp_out", layers=[0])
    clean, corrupted = (contrast.rows(side)[0] for side in ("clean", "corrupted"))
    whole = torch.tensor([[*clean, *ANSWERS[0][:-1]]])
    _, cache = model.run_with_cache(whole)
    name = "blocks.0.hook_mlp_out"
    for position in (2, 7):

        def hook(value, hook, position=position):
            if value.shape[1] > position:
                value[:, position] = cache[name][:, position]
            return value

        wanted = by_the_model(model, corrupted, ANSWERS[0], [(name, hook)])
        cell = found.raw.sel(site="mlp_out", layer=0, pos=position, prompt=0)
        assert float(cell) == pytest.approx(wanted, abs=1e-5)


def test_every_analysis_of_two_runs_takes_it_and_says_the_same(kind):
    model, contrast = kind("parallel", BACKENDS[0], "folded"), contrast_of_several()
    metric = "answer_log_probability"
    results = [
        mi.patch(model, contrast, metric, sites="resid_pre", layers=[0]),
        mi.attribution_patch(model, contrast, metric, sites=["mlp_out"]),
        mi.edge_attribution(model, contrast, metric),
        mi.path_patch(model, contrast, metric, receivers=["1.mlp"], senders=["L0H0"]),
        mi.evaluate_hypothesis(model, contrast, metric, nodes=["0.mlp"], draws=1),
    ]
    for result in results:
        for side in ("clean", "corrupted"):
            if side in result:
                np.testing.assert_allclose(
                    np.asarray(result[side]).ravel()[:3], results[0][side], atol=1e-5
                )
        assert result.attrs["metric"] == metric
        assert result.attrs["answers"] == "the first tokens of several"
    assert sum("clean" in result for result in results) >= 4


def test_estimates_sum_to_the_change_of_the_metric(kind):
    """Integrated gradients are complete: also over the answer's own positions."""
    model, contrast = kind("parallel", BACKENDS[0], "folded"), contrast_of_several()
    found = mi.attribution_patch(
        model, contrast, "answer_log_probability", sites=["resid_pre"], steps=24
    )
    total = found.resid_pre.sel(layer=0).sum("pos")
    np.testing.assert_allclose(total, found.clean - found.corrupted, atol=1e-3)


def test_of_one_token_it_is_the_log_probability(kind):
    model, contrast = kind("gpt2", BACKENDS[0], "raw"), contrast_of()
    one, other = (
        mi.patch(model, contrast, name, sites="z", layers=[1])
        for name in ("answer_log_probability", "log_probability")
    )
    np.testing.assert_allclose(one.raw, other.raw, atol=1e-6)
    assert "answers" not in one.attrs


def test_what_reads_one_token_reads_the_first(kind):
    model, contrast = kind("parallel", BACKENDS[0], "folded"), contrast_of_several()
    first = Contrast(
        clean_tokens=contrast.clean_tokens,
        corrupted_tokens=contrast.corrupted_tokens,
        answers=contrast.answers,
        foils=contrast.foils,
        lengths=contrast.lengths,
    )
    one, other = (mi.patch(model, c, sites="z", layers=[0]) for c in (contrast, first))
    np.testing.assert_array_equal(one.raw, other.raw)
    assert one.attrs["answers"] == "the first tokens of several"
    run = mi.run(model, contrast[0].clean_tokens)
    shares = mi.attribute_logits(model, run, contrast[0])
    assert shares.attrs["answers"] == "the first tokens of several"


def test_swapped_chosen_and_moved_with_their_prompts():
    contrast = contrast_of_several()
    assert contrast.swap().foil_tokens == ANSWERS
    assert contrast.swap().answer_tokens == ((60,), (61,), (62,))
    assert contrast[[2, 0]].answer_tokens == (ANSWERS[2], ANSWERS[0])
    assert contrast.answer_text == ["#3 #9 #4", "#4", "#5 #3"]
    followed = contrast.followed_by(ANSWERS)
    assert followed.real.sum(-1).tolist() == [8, 7, 6]
    assert followed.rows("corrupted")[0] == [*contrast.rows("corrupted")[0], 3, 9]
    assert not (followed.differs & ~contrast.followed_by(ANSWERS).real).any()


def test_texts_give_all_their_tokens(nano):
    pair = "The capital of France is", "The capital of Italy is"
    contrast = Contrast.of(nano, *pair, answers=" Paris.", foils=" Rome")
    paris, stop = nano.tokenizer(" Paris.").input_ids
    assert contrast.answer_tokens == ((paris, stop),)
    assert contrast.answer_text == [" Paris."]
    assert "answer ' Paris.' (2 tokens), foil ' Rome'" in repr(contrast)


@unchecked
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c: c.followed_by([[1], [2]]), "wanted at least one for each of 3 prompts"),
        (lambda c: c.followed_by([[1], [], [2]]), "wanted at least one for each of 3 prompts"),
        (lambda c: metrics.answer_log_probability([[1], []]), "wanted at least one token"),
        (lambda c: metrics.answer_log_probability([]), "wanted at least one token"),
        (
            lambda c: metrics.metric_for(metrics.answer_log_probability([[1]]), c),
            "names tokens for 1 prompts; wanted 3",
        ),
    ],
)
def test_bad_continuations(make, message):
    with pytest.raises(ValueError, match=message):
        make(contrast_of_several())


def test_whole_answers_begin_with_the_single_ones():
    pair = contrast_of(1)
    fields = (pair.clean_tokens, pair.corrupted_tokens, pair.answers, pair.foils)
    with pytest.raises(ValueError, match=r"answer_tokens=.* wanted tokens of each prompt"):
        Contrast(*fields, answer_tokens=((9, 3),))


def test_answer_and_foil_that_begin_alike(nano):
    pair = "The capital of France is", "The capital of Italy is"
    with pytest.raises(ValueError, match="begin with the same token"):
        Contrast.of(nano, *pair, answers=" Paris.", foils=" Paris and")


def test_doses_read_the_prompts_themselves(nano):
    contrast = mi.prompts.facts(nano, n=2, seed=0)
    run = mi.run(nano, contrast.clean_tokens)
    direction = mi.steering.mean_difference(nano, run, mi.run(nano, contrast.corrupted_tokens))
    with pytest.raises(ValueError, match="reads tokens that follow the prompts"):
        mi.steering.dose_response(
            nano,
            contrast,
            "answer_log_probability",
            direction=direction,
            coefficients=[1.0],
        )


def test_a_question_runs_the_answer(kind):
    question = Question.of(
        kind("parallel", BACKENDS[0], "folded"), contrast_of_several(), "answer_log_probability"
    )
    assert question.read == [5, 6, 7]
    assert [part.read for part in question.by_length()] == [[4, 5], [6], [5, 6, 7]]
