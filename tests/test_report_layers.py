"""The report's sections on lenses, heads and memories: sentences are what results say."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr

import mlp_interp as mi
from mlp_interp.neurons.stores.best import best
from mlp_interp.report import Work
from mlp_interp.report.attempt import attempt
from mlp_interp.report.sections import SECTIONS
from mlp_interp.report.sections.heads import HeadRoles
from mlp_interp.report.store import Store


@pytest.fixture(scope="module")
def work(nano: Any, tmp_path_factory: Any) -> Work:
    corpus = mi.load_corpus("nano", nano, sequences=4, length=48)
    return Work(
        nano, corpus, Store(tmp_path_factory.mktemp("parts"), "x"), prompts=4, progress=False
    )


@pytest.fixture(scope="module")
def found(work: Work) -> dict[str, Any]:
    return {name: SECTIONS[name].compute(work) for name in ("lens", "heads", "memories")}


def test_layers_are_those_of_the_lenses(found: dict[str, Any]) -> None:
    depth = found["lens"]
    text = " ".join(SECTIONS["lens"].sentences(depth))
    first = int(np.argmax(depth.over["agrees"].sel(lens="logit").values >= 0.5))
    assert f"enters layer {first} is the first" in text
    assert "2 (induction)" in text
    assert (depth.tasks.sel(task="induction") == 0).values.tolist() == [False] * 2 + [True] * 3
    shown = SECTIONS["lens"].show(depth)
    assert len(shown["blocks"]) == 2


def test_heads_have_the_planted_circuits(found: dict[str, Any]) -> None:
    heads = found["heads"]
    text = " ".join(SECTIONS["heads"].sentences(heads))
    for reader in range(6):
        assert f"L0H0 → L1H{reader}" in text
    assert "L0H0 looks most at the previous token" in text
    z = mi.heads.compose(mi.load_model("nano")).z
    np.testing.assert_allclose(heads.pairs["z"][0], z.max())
    losses = SECTIONS["heads"].numbers(heads)["losses"]
    assert [*losses.values()] == sorted(losses.values(), reverse=True)


def test_memories_are_the_best(work: Work, found: dict[str, Any]) -> None:
    held = found["memories"]
    whole = mi.neurons.memories(work.model, work.corpus)
    listed = held.best["agreement"].values
    np.testing.assert_allclose(listed, np.sort(whole["agreement"].values.ravel())[::-1][:10])
    assert best(whole, 3)["component"].values.tolist() == held.best["component"].values[:3].tolist()
    assert not {"example", "context"} & {*held.neurons.dims}
    row = SECTIONS["memories"].show(held)["best"][0]
    assert row["trigger"]


def test_what_a_model_does_not_have_is_left_out_with_a_note(work: Work) -> None:
    def refused() -> Any:
        raise ValueError("no heads")

    work = replace(work, notes=[])
    assert attempt(work, "Heads", refused) is None
    assert attempt(work, "Heads", refused) is None
    assert work.notes == ["Heads is left out: no heads."]
    nothing = HeadRoles()
    section = SECTIONS["heads"]
    assert section.sentences(nothing) == []
    assert section.parts(nothing) == {}
    assert section.show(nothing)["maps"] is None


def test_no_circuits_are_no_circuits(found: dict[str, Any]) -> None:
    none = found["heads"].induction.isel(circuit=[])
    weak = found["heads"].induction.isel(circuit=[-1])
    said = [SECTIONS["heads"].sentences(HeadRoles(induction=x))[0] for x in (none, weak)]
    assert said[0] == "No pair of heads is an induction circuit that texts confirm."
    assert "weights alone would say so of 1." in said[1]


def test_large_models_stay_small_on_the_page(found: dict[str, Any]) -> None:
    """Twenty-four layers of four thousand neurons are drawn by some of their quantiles."""
    held = found["memories"]
    rng = np.random.default_rng(0)
    size = {"layer": 24, "neuron": 4096}
    neurons = xr.Dataset(
        {
            name: (("layer", "neuron"), rng.random((24, 4096)))
            for name in ("agreement", "agreement_chance", "rank", "rank_chance")
        },
        {name: range(n) for name, n in size.items()},
        held.neurons.attrs,
    )
    figure = SECTIONS["memories"].show(type(held)(neurons, held.best, held.events))["memories"]
    assert len(figure.json) < 600_000
