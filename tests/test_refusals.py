"""What is given in the wrong place, or is of the wrong kind, is refused by name."""

import re
from typing import Any

import pytest
import torch
import xarray as xr

import mlp_interp as mi
from mlp_interp import steering
from mlp_interp.corpus.reducers import CoActivation, Fraction, Mean, quantiles
from mlp_interp.superposition import toy

pytestmark = pytest.mark.usefixtures("without_type_checks")

REDUCERS = {"CoActivation": CoActivation, "Fraction": Fraction, "quantiles": quantiles}


@pytest.fixture(scope="module")
def given(nano) -> dict[str, Any]:
    task = mi.prompts.ioi(nano, n=2, seed=0)
    tokens = torch.tensor([[0, 5, 6]])
    corpus = mi.Corpus(tokens, tokenizer=nano.tokenizer)
    return {"m": nano, "task": task, "tokens": tokens, "corpus": corpus, "text": "The cat"}


@pytest.mark.parametrize(
    "call",
    [
        "attribute_logits(m, text, ' Paris')",
        "attribute_logits(m, task, ' Paris')",
        "attribute_logits(m, tokens, ' Paris')",
        "attribute_sources(m, task, ' Paris')",
        "decompose(m, text)",
        "decompose(m, 3)",
        "ablate_direct(m, task)",
    ],
)
def test_what_is_no_cache(given, call):
    with pytest.raises(
        ValueError, match=r"^cache=(str|Contrast|Tensor|int); wanted the cache, run"
    ):
        eval(f"mi.{call}", {"mi": mi, **given})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("mi.latents.evaluate(m, corpus, corpus)", "dictionary=Corpus; wanted a Dictionary"),
        ("mi.latents.recovery(text, m.W_U.T)", "dictionary='The cat'; wanted a Dictionary"),
        ("mi.dictionaries.save(None, 'x')", "dictionary=NoneType; wanted a Dictionary"),
        ("mi.latents.replace(m, 3, corpus)", "dictionaries=3; wanted a list of one or more"),
        ("mi.latents.replace(m, {'2.mlp': 3}, corpus)", "dictionaries[0]='2.mlp'; wanted a Dict"),
        (
            "mi.features.index(m, ['a', 'b'], {}, dictionaries='my-sae')",
            "dictionaries[0]='my-sae'; wanted a Dictionary",
        ),
        (
            "mi.attribute_logits(m, mi.run(m, tokens), 5, dictionaries=[corpus])",
            "dictionaries[0]=Corpus; wanted a Dictionary",
        ),
        ("mi.lens.save('tuned', 'x.safetensors')", "lens=str; wanted a Lens"),
        (
            "mi.lens.save(mi.lens.logit(m), 'none/x.safetensors')",
            "path='none/x.safetensors': there is no folder 'none'; wanted one",
        ),
        ("mi.ablate_total(m, tokens, 2)", "groups=2; wanted a label"),
        ("mi.ablate_total(m, tokens, {'a': 2})", "groups=2; wanted a label"),
        ("mi.probes.probe_direction(m, 2)", "result has no lines; wanted one of probe"),
        ("mi.probes.place_errors(m)", " has no outputs; wanted one of probe"),
        ("steering.hold('L0N43', 'x')", "value='x'; wanted a finite number"),
        ("steering.scale('2.mlp', None)", "factor=None; wanted a finite number"),
        ("steering.add(m.W_U[:, 0], '2', layers=2)", "coefficient='2'; wanted a finite number"),
        ("steering.add(m.W_U[:, 0], True, layers=2)", "coefficient=True; wanted a finite number"),
        (
            "mi.weights.table(m, 'L2N15.gate')",
            "matrix='L2N15.gate': the MLPs are not gated; wanted L2N15.in",
        ),
        (
            "mi.ablate_total(m, tokens, ['7.mlp'])",
            "site '7.mlp' is not a component of this model: the model has 4 layers; wanted",
        ),
        (
            "mi.lens.read(m, [[5] * 600])",
            f"tokens[0]={str([5] * 600)[:80]}…: sequences of 600 tokens exceed the model's context",
        ),
        ("mi.Runner.of(m).generate(None)", "tokens=NoneType; wanted a Corpus, texts, or"),
        ("toy.toy_models(3, 2, 0.1, rate='x')", "rate='x'; wanted a positive number"),
        ("toy.toy_models(3, 2, 'x')", "probability='x'; wanted numbers above 0"),
        ("toy.toy_models(3, 2, 0.1, 'abc')", "importance='abc'; wanted 3 numbers from 0"),
        ("toy.geometry(m.W_U[:3, :2].cpu(), touching='x')", "touching='x'; wanted a finite number"),
        ("mi.superposition.capacity(8, 2, '0.5')", "noise='0.5'; wanted a positive share"),
        ("mi.superposition.underdetermined(8, '0.5')", "rates='0.5'; wanted shares of tokens"),
        ("mi.superposition.noise_tolerance(m, corpus, level='1')", "level='1'; wanted a positive"),
        ("mi.superposition.noise_tolerance(m, corpus, sizes='12')", "sizes='12'; wanted two or"),
        ("toy.phase_diagram('x', [1.0])", "probabilities='x'; wanted numbers above 0"),
        ("toy.phase_diagram([0.1], [None])", "importances=[None]; wanted positive numbers"),
        ("mi.superposition.modes(m, corpus, own='1')", "own='1'; wanted a number from 0"),
        ("mi.superposition.modes(m, corpus, cosine=None)", "cosine=None; wanted a number between"),
        ("mi.reach.reachable(m, [[5]], tolerance='1')", "tolerance='1'; wanted a positive number"),
        ("mi.reach.reachable_share(m, tolerance=None)", "tolerance=None; wanted a positive number"),
        (
            "mi.Runner.of(m).generate(text, temperature='1')",
            "temperature='1'; wanted a number from",
        ),
        (
            "mi.neurons.expected_embedding_generate(m, text, temperature='1')",
            "temperature='1'; wanted a number from 0",
        ),
        ("Fraction(above='1')", "above='1'; wanted a finite number"),
        ("CoActivation(neurons=['L0N1'], above=None)", "above=None; wanted a finite number"),
        (
            "mi.sweep(m, tokens, Fraction(first=1000))",
            "first=1000: sequences of 3 tokens have no such position",
        ),
        (
            "mi.sweep(m, tokens, Fraction(), options={'checkpoint': 'x'})",
            "options={'checkpoint': 'x'}; wanted mlp_interp.SweepOptions",
        ),
        (
            "quantiles(mi.sweep(m, tokens, Fraction())['fraction.pre'], 0.5)",
            "wanted what Histogram",
        ),
        (
            "steering.dose_response(m, task, 'kl', direction=0, coefficients=1, sweep={})",
            "sweep={}; wanted mlp_interp.SweepOptions",
        ),
        ("mi.superposition.concepts(m, [' John'])", "sets=[' John']; wanted tokens by name"),
        ("mi.reach.reachable(m, [' Paris', ' nosuch'])", "tokens[1]=' nosuch' is "),
        ("mi.reach.reachable(m, [[5], [' nosuch']])", "tokens[1][0]=' nosuch' is "),
        (
            "mi.features.over_revisions('nano', [0, 1], print)",
            "name='nano' is one model of the package, without revisions; wanted one on the hub",
        ),
    ],
)
def test_what_is_of_the_wrong_kind(given, call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        eval(call, {"mi": mi, "steering": steering, "toy": toy, **REDUCERS, **given})


@pytest.mark.parametrize(
    ("name", "near"), [("nan", "nano"), ("Nano", "nano"), ("pile10k", "pile-10k")]
)
def test_a_name_near_a_known_one_asks_no_hub(nano, monkeypatch, name, near):
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr("mlp_interp.corpus.sources.read_hub", never)
    with pytest.raises(ValueError, match=f"source='{name}' is no file .did you mean '{near}'"):
        mi.load_corpus(name, nano)
    with pytest.raises(AssertionError, match="asked"):
        mi.load_corpus(f"owner/{name}", nano)


def test_texts_are_taken_where_tokens_are(nano):
    runner, text = mi.Runner.of(nano), "The cat sat"
    ids = mi.run(nano, text).tokens
    for same in (text, [text], ids, ids.tolist()):
        assert torch.equal(runner.run(same).tokens, ids)
        assert torch.equal(
            runner.generate(same, max_new_tokens=2).tokens,
            runner.generate(ids, max_new_tokens=2).tokens,
        )
    with pytest.raises(ValueError, match="wanted texts of one length"):
        runner.generate([text, "The"])


def test_a_file_of_something_else_is_no_result(tmp_path):
    path = tmp_path / "junk.nc"
    path.write_text("junk")
    with pytest.raises(ValueError, match=r"junk.nc' cannot be read .*; wanted a file written by"):
        mi.load(path)


def test_one_of_several_may_stand_alone(given):
    """A layer, an instance of toy models, labels by name."""
    m, tokens = given["m"], given["tokens"]
    one, same = (mi.sweep(m, tokens, Mean(layers=layers)) for layers in (2, (2,)))
    xr.testing.assert_identical(one["mean.pre"], same["mean.pre"])
    W = toy.toy_models(3, 2, 0.1, steps=2).W.isel(instance=0)
    xr.testing.assert_identical(toy.geometry(W), toy.geometry(W.values))
    prefixes = {"chess": "Topic: chess.", "hockey": "Topic: hockey."}
    texts = ["The rook took the pawn.", "The goalie stopped the puck."]
    scores = mi.features.self_score(m, texts, prefixes)
    by_name = {"hockey": [False, True], "chess": [True, False]}
    xr.testing.assert_identical(
        mi.features.agreement(scores, by_name), mi.features.agreement(scores, ["chess", "hockey"])
    )
    with pytest.raises(ValueError, match=r"labels of \['chess'\]; wanted those of each feature"):
        mi.features.agreement(scores, {"chess": [True, False]})
