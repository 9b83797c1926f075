"""Weights that are not finite: one rule, refused by whatever reads the model."""

import pytest
import torch
from random_models import BACKENDS, build, unchecked

import mlp_interp as mi
from mlp_interp.corpus.reducers import CoActivation, Fraction
from mlp_interp.neurons import AscentOptions
from mlp_interp.runs import Runner

TOKENS = torch.tensor([[0, 5, 6, 7], [0, 8, 9, 10]])
WEIGHTS = {
    "b_out": lambda model: model.blocks[0].mlp.b_out,
    "W_in": lambda model: model.blocks[1].mlp.W_in,
    "W_E": lambda model: model.W_E,
    "W_U": lambda model: model.W_U,
}


def generate(model, tokens):
    return Runner.of(model).generate(tokens, max_new_tokens=2, eos=None)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", WEIGHTS)
def test_weights_that_are_not_finite_are_refused(which, wrong):
    model = build("parallel", BACKENDS[0], "folded")
    analyses = [
        generate,
        lambda model, tokens: mi.ablate_total(model, tokens, ["1.mlp"]),
        lambda model, tokens: mi.subupdate_importance(model, tokens),
    ]
    for analysis in analyses:
        analysis(model, TOKENS)
    with torch.no_grad():
        WEIGHTS[which](model).data[5] = wrong
    for analysis in analyses:
        with pytest.raises(ValueError, match=r"(not finite|NaN or infinity).*check_model"):
            analysis(model, TOKENS)


@pytest.mark.parametrize("above", [float("nan"), float("inf")])
def test_thresholds_that_tell_nothing_apart(above):
    for reducer in (Fraction, lambda above: CoActivation(neurons=["L0N1"], above=above)):
        with pytest.raises(ValueError, match=f"above={above}; wanted a finite number"):
            reducer(above=above)


@pytest.mark.parametrize("reducers", [Fraction, "fraction", [Fraction], {"a": Fraction}])
def test_what_is_no_reducer_is_refused(nano, reducers):
    with pytest.raises(ValueError, match=r"reducers\[.*\]=.*; wanted a reducer, as Fraction\(\)"):
        unchecked(mi.sweep)(nano, TOKENS, reducers)


def test_no_steps_are_no_search():
    with pytest.raises(ValueError, match="steps=0; wanted an integer from 1"):
        AscentOptions(steps=0)


def test_prompts_that_no_result_can_hold_are_refused_before_the_work(nano):
    text = "The capital of\0 France is"
    for refused in (
        lambda: mi.causal_trace(nano, text, "France"),
        lambda: mi.steering.generate_compare(nano, [text], [mi.Edit.set("1.mlp", 0.0)]),
        lambda: mi.prompts.Contrast.of(nano, text, text, " Paris", " Rome"),
    ):
        with pytest.raises(ValueError, match="holds a NUL at 14; wanted a text without"):
            refused()


def test_control_characters_do_not_reach_the_terminal(nano):
    text = "The \x1b]0;title\x07 \x9b31m \u202e is"
    shown = repr(mi.prompts.Contrast.of(nano, text, text.replace("is", "of"), " Paris", " Rome"))
    assert all(letter.isprintable() or letter == "\n" for letter in shown)
    assert r"\x1b]0;title\x07" in shown


def test_pages_hold_no_control_characters():
    from mlp_interp.views.document import without_controls

    assert without_controls("a\0b\x1bc\x9bd\n\t<p>é") == "a␀b␛c�d\n\t<p>é"
