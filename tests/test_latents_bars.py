"""How good dictionaries of nano must become, and beside what: minutes of training."""

import time
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch

import mlp_interp as mi
from mlp_interp import latents
from mlp_interp.dictionaries import Relu
from mlp_interp.latents._separate import random_like
from mlp_interp.models import Unembed
from mlp_interp.nano.corpus import MIXTURE

pytestmark = pytest.mark.slow

SIZE: Any = {"n_latents": 1024, "k": 24, "batch_size": 512, "steps": 500}


@pytest.fixture(scope="module")
def nano() -> Any:
    return mi.load_model("nano")


@pytest.fixture(scope="module")
def corpus(nano: Any) -> Any:
    return mi.load_corpus("nano", nano, sequences=500, length=128)


def test_a_model_of_transcoders_is_nearly_the_model(nano: Any, corpus: Any) -> None:
    """All four MLPs at once, against text and tasks that were not trained on."""
    start = time.process_time()
    every = [latents.train(nano, corpus, f"{n}.mlp", reads="mlp_in", **SIZE) for n in range(4)]
    spent = time.process_time() - start
    heldout = mi.load_corpus("nano", nano, sequences=64, length=128, seed=1)
    found = latents.replace(nano, every, heldout)
    print(f"\ntraining: {spent:.0f} s of processor time")
    print(found.kl.to_pandas().round(4), found[["fvu", "fvu_linear"]].to_pandas().round(3))
    assert float(found.kl.sel(replaced="all", by="dictionary")) <= 0.12
    for name in ("ioi", "agreement", "facts", "antonyms"):
        task = getattr(mi.prompts, name)(nano, n=40, seed=0)
        share = right(nano, task, every)
        print(f"{name}: {share:.2f} right at top-1")
        if name in ("ioi", "agreement"):
            assert share >= 0.95, name
    assert spent <= 120


def right(model: Any, task: Any, every: Any) -> float:
    """Share of prompts whose answer is the likeliest token with dictionaries in their places."""
    where = task.real.clone()
    where[:, 0] = False
    edits = [mi.Edit.latents(one, {}, error="drop", where=where) for one in every]
    run = mi.run(model, task.clean_tokens, edits=edits)
    ends = task.real.sum(-1) - 1
    logits = Unembed.of(model).logits(run.final[torch.arange(len(ends)), ends])
    return float((logits.argmax(-1).cpu() == task.answers).double().mean())


def test_single_latents_tell_texts_better_than_random_directions(nano: Any, corpus: Any) -> None:
    """Each kind of nano's documents against all others; the random ones with ReLU, too."""
    one = latents.train(nano, corpus, "2.mlp", **{**SIZE, "k": 16, "steps": 900})
    kinds = {
        name: [writer(Random(f"{name} {n}"), "heldout") for n in range(60)]
        for name, (writer, _) in MIXTURE.items()
    }
    found = latents.separate(nano, one, kinds).auroc.mean("kind").to_series()
    mean = torch.zeros(one.W_enc.shape[0])
    relu = replace(random_like(one, mean, 1, 0), activation=Relu())
    lone = latents.separate(nano, relu, kinds).auroc.mean("kind")
    found["random, ReLU"] = float(lone.sel(source="latents"))
    print("", found.round(3), sep="\n")
    assert found["latents"] >= 0.95
    assert found["latents"] >= found["random, ReLU"] + 0.05
