"""Every public function that gives results, by a call of whose result there is a table."""

import inspect
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import xarray as xr

import mlp_interp as mi

# Those that the page of questions does not call, in the names of its code.
OTHERS = (
    'mi.features.about(index, "L3N323")',
    'mi.gradients.as_grid(mi.attribution_patch(model, task, sites="z"), "z")',
    "mi.latents.recovery(sae, model.W_out[2, :4])",
    "mi.neurons.antipodal_pairs(model, below=-0.2, k=5)",
    'mi.neurons.expected_embedding_generate(model, "the cat", max_new_tokens=2)',
    "mi.neurons.verdict(mi.neurons.verify_neuron(model, 'L0N4', texts[:2], texts[4:], controls=2))",
    "mi.latents.direction(model, sae, 17)",
    "mi.latents.page(model, sae, 17, corpus, ablate=1)",
    'mi.neurons.activations(model, "L0N4", texts[:2])',
    "mi.lens.over(model, corpus)",
    "mi.probes.probe_direction(mi.probes.probe(model, numbered, controls=2), 2)",
    "mi.probes.place_errors(mi.probes.probe(model, placed, folds=2, controls=2))",
    "mi.reach.with_certificate(model, lists)",
    "mi.rewrites.footprint(model, berlin, corpus[:2])",
    "mi.rewrites.score_rewrite(model, berlin, same_subject=asking, corpus=corpus[:2])",
    "mi.rewrites.score_rewrite(model, berlin, same_subject=asking)",
    "mi.superposition.capacity(64, 4, 0.1)",
    "mi.superposition.toy.toy_models(3, 2, [0.5], steps=2)",
    "mi.superposition.toy.geometry(model.W_out[2, :3])",
    "mi.superposition.toy.phase_diagram([0.5], [1.0], steps=0)",
    "mi.superposition.toy.thomson(3, 2, steps=2)",
    'mi.steering.activation_addition(model, " Love", " Hate", 1)',
    "mi.steering.function_vector(model, task, n_heads=2)",
    "mi.steering.head_effects(model, task)",
    'mi.steering.output_direction(model, "L3N5")',
    "mi.steering.pca_direction(model, asked, harmless)",
    "mi.steering.random_direction(refusal, seed=0)",
)
# What they give is what another one gave.
_PASSED_ON = ("mi.load", "mi.test_hypothesis", "mi.features.over_revisions")
_MADE = """
fact = "Sweden", "The capital of Sweden is", " Berlin"
berlin = mi.rewrites.rewrite(
    model, *fact, layer=0, keys=mi.rewrites.associations(model, corpus, layers=[0])
)
asking = ["The language of Sweden is"]
places = [("Paris", 49, 2), ("Rome", 42, 12), ("Berlin", 53, 13), ("Madrid", 40, -4)]
placed = mi.probes.Labelled.of(
    model,
    [dict(zip(("city", "latitude", "longitude"), place)) for place in places],
    text="He went to {city}",
    y=["latitude", "longitude"],
    entity="city",
)
"""


def results(calls: list[str], found: list[Any], names: dict[str, Any]) -> dict[str, Any]:
    """Results by call: of those that were made, and of all the others.

    Args:
        calls: What was called.
        found: What came of it.
        names: Of the code of the page.
    """
    exec(_MADE, names)
    made = dict(zip(calls, found, strict=True)) | {call: eval(call, names) for call in OTHERS}
    return {call: x for call, x in made.items() if isinstance(x, xr.DataArray | xr.Dataset)}


def left_out(made: Mapping[str, Any]) -> list[str]:
    """Functions that give a result and that no call names."""
    called = {name for call in made for name in _named(call)}
    names: dict[Any, list[str]] = defaultdict(list)
    for function, name in _giving_results(mi, "mi"):
        names[function].append(name)
    return [each[0] for each in names.values() if not {*each} & {*called, *_PASSED_ON}]


def _named(call: str) -> list[str]:
    names = re.findall(r"(?:mi|steering)\.[\w.]+(?=\()", call)
    return [name if name.startswith("mi.") else f"mi.{name}" for name in names]


def _giving_results(module: ModuleType, path: str) -> Iterator[tuple[Any, str]]:
    for name in getattr(module, "__all__", ()):
        found = getattr(module, name)
        if isinstance(found, ModuleType):
            yield from _giving_results(found, f"{path}.{name}")
        elif inspect.isfunction(found) and not found.__module__.startswith("mlp_interp.tables"):
            gives = str(inspect.signature(found).return_annotation)
            if "xarray" in gives and not gives.startswith("dict"):
                yield found, f"{path}.{name}"
