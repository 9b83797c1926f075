"""Values that cannot be meant are refused by the name of their argument, before any work."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from contrasts import contrast_of
from random_models import build, random_neox, tiny_tokenizer, unchecked

import mlp_interp as mi
from mlp_interp import metrics, neurons, steering
from mlp_interp.corpus import SweepOptions
from mlp_interp.models import HookForward
from mlp_interp.models.indices import count
from mlp_interp.models.options import checked_seed
from mlp_interp.patching import causal_trace
from mlp_interp.residual import cache_for, components, decompose
from mlp_interp.runs import Run


def trace(model, **options):
    return unchecked(causal_trace)(model, "the cat sat", "cat", **options)


def made(kind, **options):
    """A dataclass as users make it: without the runtime type checks of the tests."""
    one = object.__new__(kind)
    for field in dataclasses.fields(kind):
        object.__setattr__(one, field.name, options.get(field.name, field.default))
    unchecked(kind.__post_init__)(one)
    return one


def resampled(analysis, *args):
    return lambda m, t: unchecked(analysis)(m, t, *args, baseline="resample", seed=None)


def generated(**options):
    return lambda m, t: unchecked(mi.Runner.generate)(mi.Runner.of(m), t, **options)


def hypothesis(**options):
    return lambda m, t: unchecked(mi.evaluate_hypothesis)(
        m, contrast_of(), nodes=["L1H0"], **options
    )


def top(k):
    return lambda m, t: unchecked(mi.top)(mi.attribute_logits(m, cache_for(m, t), 5), k)


SEEDS = {
    "trace": lambda m, t: trace(m, samples=1, seed=None),
    "ablate_total": resampled(mi.ablate_total, ["0.mlp"]),
    "importance": resampled(mi.subupdate_importance),
    "hypothesis": hypothesis(draws=1, seed=None),
    "options": lambda m, t: made(steering.GenerationOptions, seed=None),
    "maximize": lambda m, t: made(neurons.AscentOptions, seed=None),
    "few": lambda m, t: unchecked(steering.FewShot.of.__func__)(
        steering.FewShot, [("a", "b"), ("c", "d"), ("e", "f")], shots=2, seed=None
    ),
}
COUNTS = {
    "samples=1.5": lambda m, t: trace(m, samples=1.5),
    "draws=1.5": hypothesis(draws=1.5),
    "batch_size=2.5": lambda m, t: unchecked(mi.norms)(m, t, batch_size=2.5),
    "batch_size=2.0": lambda m, t: made(SweepOptions, batch_size=2.0),
    "shard=3.0": lambda m, t: made(SweepOptions, shard=3.0),
    "n=2.0": lambda m, t: made(steering.GenerationOptions, n=2.0),
    "max_new_tokens=2.5": generated(max_new_tokens=2.5),
    "top_k=2.5": generated(max_new_tokens=1, temperature=1.0, top_k=2.5),
    "k=3.0": top(3.0),
    "k=True": top(True),
}


@pytest.mark.parametrize("name", SEEDS)
def test_results_that_are_the_same_every_time_want_a_seed(kind, tokens, name):
    with pytest.raises(ValueError, match="seed=None; wanted an integer from 0"):
        SEEDS[name](kind(), tokens)


def test_planted_tasks_want_a_seed_and_a_number(nano):
    with pytest.raises(ValueError, match="seed=None; wanted an integer"):
        unchecked(mi.prompts.ioi)(nano, n=2, seed=None)
    with pytest.raises(ValueError, match=r"n=2\.0; wanted an integer from 1"):
        unchecked(mi.prompts.ioi)(nano, n=2.0)


@pytest.mark.parametrize("text", COUNTS)
def test_counts_are_integers(kind, tokens, text):
    with pytest.raises(ValueError, match=rf"{text}; wanted an integer from"):
        COUNTS[text](kind(), tokens)


def test_integers_of_other_libraries_are_integers():
    assert [count("k", k) for k in (3, np.int64(3), torch.tensor(3))] == [3, 3, 3]
    assert type(checked_seed(np.uint8(7))) is int
    assert made(SweepOptions, batch_size=np.int64(2)).batch_size == 2


@pytest.mark.parametrize("memory", [math.inf, math.nan])
def test_memory_is_a_number(kind, memory):
    for analysis in (mi.patch, mi.path_patch, mi.attribution_patch, mi.edge_attribution):
        with pytest.raises(ValueError, match=f"memory={memory}; wanted a number of MiB above 0"):
            analysis(kind(), contrast_of(), memory=memory)


@pytest.mark.parametrize(
    "function",
    [
        lambda logits, prompts: logits[:, 0].argmax(-1).float(),
        lambda logits, prompts: logits[:, 0, 5].detach(),
        lambda logits, prompts: (logits[:, 0, 5] > 0).float(),
    ],
)
def test_a_metric_without_a_gradient_cannot_be_estimated(kind, engine, function):
    metric = metrics.Custom(name="mine", unit="logits", function=function)
    for analysis in (mi.attribution_patch, mi.edge_attribution):
        with pytest.raises(ValueError, match="metric='mine' has no gradient"):
            analysis(kind(), contrast_of(), metric, engine=engine)
    assert mi.patch(kind(), contrast_of(), metric).raw.notnull().all()


def test_a_cache_of_another_model_of_the_same_shape(kind, backend, tokens):
    model = kind("parallel", backend)
    other = mi.load_model(random_neox(seed=5), tokenizer=tiny_tokenizer(), backend=backend)
    for level in ("component", "head"):
        for cache in (cache_for(other, tokens, level=level), mi.run(other, tokens)):
            with pytest.raises(ValueError, match=r"cache is of a model .* with other weights"):
                decompose(model, cache, level=level)
            with pytest.raises(ValueError, match=r"cache is of a model .* with other weights"):
                components(model, cache, ["1.mlp"])
            with pytest.raises(ValueError, match=r"cache is of a model .* with other weights"):
                mi.ablate_direct(model, cache, ["1.mlp"])
    _, full = other.run_with_cache(tokens)
    with pytest.raises(ValueError, match=r"cache is of a model .* with other weights"):
        mi.attribute_sources(model, full, 5)
    same = build("parallel", backend, "folded")  # a copy is as good
    assert decompose(model, cache_for(same, tokens)).error() < 1e-4


def test_a_run_through_hooks_is_one_of_the_same_model(kind, tokens):
    model = kind()
    run = Run.record(HookForward(mi.models.Weights.of(model)), tokens, sites=[mi.Site("z", 1)])
    assert components(model, run, ["L1H2"]).labels == ["L1H2"]


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda m, t: components(m, cache_for(m, t), ["0.mlp", "0.mlp"]), "sites"),
        (lambda m, t: mi.path_patch(m, contrast_of(), senders=["0.mlp", "0.mlp"]), "senders"),
        (lambda m, t: mi.path_patch(m, contrast_of(), receivers=["1.mlp"] * 2), "receivers"),
    ],
)
def test_what_is_named_twice(kind, tokens, call, name):
    with pytest.raises(ValueError, match=rf"{name}=\['.\.mlp', '.\.mlp'\]; wanted each once"):
        call(kind(), tokens)


@pytest.mark.parametrize("where", [-1, slice(3, None)])
def test_a_cache_of_some_positions_does_not_say_which(kind, backend, tokens, where):
    model, contrast = kind("parallel", backend), contrast_of()
    _, sliced = model.run_with_cache(tokens, pos_slice=where)
    for call in (
        lambda: mi.attribute_logits(model, sliced, 5),
        lambda: mi.attribute_sources(model, sliced, 5),
        lambda: components(model, sliced, ["1.mlp"]),
    ):
        with pytest.raises(
            ValueError, match=r"positions?.*, as pos_slice leaves them, and does not"
        ):
            call()
    names = mi.residual.needed(model)
    _, bare = model.run_with_cache(contrast.clean_tokens, pos_slice=where, names_filter=names)
    if where == -1:
        with pytest.raises(ValueError, match="one position of longer texts, as pos_slice leaves"):
            mi.attribute_logits(model, bare, 5)
    with pytest.raises(ValueError, match=r"pos_slice|wanted those of the contrast's prompts"):
        mi.attribute_logits(model, bare, contrast)


def test_texts_of_one_token_are_whole(model):
    tokens = torch.tensor([[5], [7]])
    _, cache = model.run_with_cache(tokens, names_filter=mi.residual.needed(model))
    assert decompose(model, cache).positions == (0,)
