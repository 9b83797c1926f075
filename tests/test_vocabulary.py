"""One vocabulary: names and indices mean the same wherever a public function takes them."""

import importlib
import inspect
import re
from typing import Any

import pytest
import torch
import xarray as xr
from contrasts import contrast_of

import mlp_interp as mi
from mlp_interp import probes, steering
from mlp_interp.dictionaries import Dictionary, TopK
from mlp_interp.sites import Site

PACKAGES = (
    "ablation circuits corpus features gradients heads latents lens neurons patching paths probes "
    "prompts reach residual rewrites runs steering superposition weights"
).split()
SEVERAL = (
    "layers heads neurons positions sites latents writers readers senders receivers nodes groups"
).split()
ONE = "layer head neuron position site latent component writer reader".split()
TEXTS = ["the cat", "hello world", "a mat", "cat sat"]


def public() -> dict[str, Any]:
    """Every public function, by its name."""
    found = {"attribute_logits": mi.attribute_logits, "attribute_sources": mi.attribute_sources}
    for package in PACKAGES:
        module = importlib.import_module(f"mlp_interp.{package}")
        for name in getattr(module, "__all__", dir(module)):
            value = getattr(module, name)
            if inspect.isfunction(value) and not name.startswith("_"):
                found[f"{package}.{name}"] = value
    return found


PUBLIC = public()
PARAMETERS = {name: inspect.signature(function).parameters for name, function in PUBLIC.items()}


def taking(*wanted: str) -> list[Any]:
    """Each public function with one of some parameters, and that one."""
    return [
        pytest.param(name, parameter, id=f"{name}-{parameter}")
        for name, parameters in PARAMETERS.items()
        for parameter in parameters
        if parameter in wanted
    ]


def test_the_model_comes_first_and_the_metric_after_what_it_is_of():
    for name, parameters in PARAMETERS.items():
        listed = list(parameters.values())
        names = [one.name for one in listed]
        loads = name.split(".")[-1].startswith(("load", "open"))
        assert "model" not in names or loads or names[0] == "model", name
        if "metric" in names and "model" in names:
            place = 3 if "dictionaries" in names else 2
            assert names[place] == "metric", name
            after = listed[place + 1 :]
            assert all(one.kind is one.KEYWORD_ONLY for one in after), name


def test_what_may_be_several_is_named_in_the_plural_and_may_be_one():
    for name, parameters in PARAMETERS.items():
        for parameter in parameters.values():
            taken = str(parameter.annotation)
            if parameter.name in ONE:
                assert "Sequence" not in taken, (name, parameter.name)
            if parameter.name in SEVERAL and "Any" not in taken and "Literal" not in taken:
                assert re.search("Sequence|list|Iterable", taken), (name, parameter.name)
                assert re.match(r"(\w+\.)*(int|str|Site\w*|SupportsInt)\b", taken), (
                    name,
                    parameter.name,
                    taken,
                )


def dictionary(model):
    d = model.cfg.d_model
    rows = torch.randn(24, d, generator=torch.Generator().manual_seed(3))
    return Dictionary(rows.T, torch.zeros(24), rows, torch.zeros(d), TopK(5), 1)


def given(model, name):
    """What a function must be given, and refuses nothing of."""
    rows = [{"text": text, "y": n} for n, text in enumerate(TEXTS * 4)]
    tokens = torch.arange(1, 37).view(4, 9)
    known: dict[str, Any] = {
        "model": model,
        "corpus": tokens,
        "tokens": tokens[:1, 1] if "patchscope" in name else tokens,
        "texts": TEXTS,
        "contrast": contrast_of(),
        "contrasts": contrast_of(),
        "data": probes.Labelled.of(model, rows, text="{text}", y="y"),
        "labels": [True, False, True, False],
        "answers": 5 if name.startswith("attribute") else {"y": "the"},
        "positive": TEXTS[:2],
        "negative": TEXTS[2:],
        "prompts": TEXTS,
        "target": "hello" if "patchscope" in name else torch.arange(32.0),
        "metric": mi.metrics.kl(),
        "coefficients": [1.0],
        "direction": steering.output_direction(model, "L1N3"),
        "task": contrast_of(),
        "cache": mi.run(model, tokens),
        "facts": [("cat", "the cat sat", " on")],
        "keys": xr.Dataset(),
        "layers": 0,
        "prompt": "the cat sat",
        "subject": "cat",
        "dictionary": dictionary(model),
        "dictionaries": [dictionary(model)],
        "factor": 2.0,
        "value": 2.0,
        **{each: names[0] for each, names in NAMES.items()},
    }
    if name in ("latents.absorption", "latents.separate"):
        known["texts"] = {"a": TEXTS, "b": TEXTS[::-1]}
    if name == "heads.match":
        known["readers"] = "L1H0"
    wanted = [one.name for one in PARAMETERS[name].values() if one.default is one.empty]
    return {one: known[one] for one in wanted}


NAMES = {
    "heads": ("L2H3", (-1, -1)),
    "head": ("L2H3", (-1, -1)),
    "neurons": ("L2N61", (-1, -3)),
    "neuron": ("L2N61", (-1, -3)),
    "latents": ("L1F7", 7),
    "latent": ("L1F7", 7),
    "writers": ("L0H1",),
    "readers": ("L1H0.q",),
    "writer": ("L0N1",),
    "reader": ("L2N3",),
    "senders": ("0.mlp",),
    "receivers": ("2.mlp",),
    "nodes": ("0.mlp",),
    "groups": ("0.mlp",),
    "sites": ("0.mlp",),
    "component": ("L0N1",),
    "site": ("L0N1",),
    "matrix": ("L0H1",),
}
"""A name for each kind of argument, in a three-layer model of 4 heads and 64 neurons; and what may
stand for it."""

# Indices along an axis of the result, names of activations of all layers, and results that no model
# is given with.
NO_NAMES = {
    *((f"steering.{name}", "heads") for name in ("mean_difference", "pca_direction")),
    *(("patching.patch", name) for name in ("heads", "neurons", "sites")),
    *((name, "sites") for name in ("gradients.attribution_patch", "patching.causal_trace")),
    *((name, "sites") for name in ("gradients.as_grid", "superposition.noise_tolerance")),
    *((f"runs.{name}", "sites") for name in ("kept_sites",)),
    ("features.about", "neuron"),
    ("residual.check_site", "site"),
}
NAMED = [
    one
    for one in taking(*NAMES)
    if one.values not in NO_NAMES
    and (one.values[1] != "site" or one.values[0] == "neurons.maximize")
]


def same(one, other):
    if isinstance(one, xr.Dataset | xr.DataArray):
        xr.testing.assert_equal(one, other)
    elif isinstance(one, mi.Run):
        assert dict(one).keys() == dict(other).keys()
    else:
        assert repr(one) == repr(other)


@pytest.mark.parametrize(("name", "parameter"), NAMED)
def test_a_name_a_site_and_a_pair_are_the_same(kind, name, parameter):
    model = kind("parallel")
    arguments = given(model, name)
    label, *others = NAMES[parameter]
    label = "L1H0" if (name, parameter) == ("heads.match", "readers") else label
    found = PUBLIC[name](**{**arguments, parameter: label})
    several = [[label]] if parameter in SEVERAL else []
    for other in (Site.parse(label), *several, *others):
        if isinstance(other, tuple) and "model" not in arguments:
            other = (2, 61)  # negatives count from the end of a model
        same(PUBLIC[name](**{**arguments, parameter: other}), found)


@pytest.mark.parametrize(("name", "parameter"), NAMED)
def test_a_misspelt_name_is_answered_with_the_nearest(kind, name, parameter):
    arguments = given(kind("parallel"), name)
    label = NAMES[parameter][0]
    wrong = label.replace("mlp", "mpl").replace("H", "J").replace("N", "M").replace("F", "E")
    with pytest.raises(ValueError, match=rf"{parameter}='{wrong}' .*did you mean '\w"):
        PUBLIC[name](**{**arguments, parameter: wrong})


def several(*wanted):
    """Of `taking`, those that a model is given with and that may be several."""
    return [
        one
        for one in taking(*wanted)
        if "model" in PARAMETERS[one.values[0]]
        and one.values != ("runs.run", "sites")  # what to keep: a set
        and re.search("Sequence|list|Any", str(PARAMETERS[one.values[0]][one.values[1]].annotation))
    ]


@pytest.mark.parametrize(("name", "parameter"), several(*SEVERAL))
def test_what_is_named_twice_is_refused(kind, name, parameter):
    arguments = given(kind("parallel"), name)
    one = {"sites": "attn_out", "layers": 1, "positions": 1}.get(parameter)
    if one is None or (name, parameter) == ("residual.components", "sites"):
        one = NAMES[parameter][0]
    if (name, parameter) in NO_NAMES and parameter in ("heads", "neurons"):  # numbers
        place = "sites" if name == "patching.patch" else "site"
        arguments[place], one = {"heads": "z", "neurons": "post"}[parameter], 1
    with pytest.raises(ValueError, match=parameter):
        PUBLIC[name](**{**arguments, parameter: [one, one]})


@pytest.mark.parametrize(("name", "parameter"), several("layers", "positions"))
def test_indices_that_are_not_there_are_refused(kind, name, parameter):
    arguments = given(kind("parallel"), name)
    with pytest.raises(ValueError, match=rf"{parameter}=\D*99"):
        PUBLIC[name](**{**arguments, parameter: 99})


DESCRIBED = [
    name
    for name in PARAMETERS
    if name.split(".")[0] in ("ablation", "circuits", "gradients", "latents", "patching", "paths")
    and PARAMETERS[name].keys() & {"model"}
    and not PARAMETERS[name].keys() & {"edges", "place", "n_latents", "k_active"}
]


@pytest.mark.parametrize("name", DESCRIBED)
def test_variables_of_results_say_what_they_are(kind, name):
    found = PUBLIC[name](**given(kind("parallel"), name))
    found = found.to_dataset(name="it") if isinstance(found, xr.DataArray) else found
    for variable in found.data_vars.values():
        assert variable.attrs.get("long_name"), variable.name
        assert variable.attrs.get("unit") or variable.dtype.kind in "OUb", variable.name
        assert not re.search("_(error|sem|stderr|std_err)$", str(variable.name))
    said = [
        (x.attrs["long_name"], x.attrs.get("unit"), x.dims)
        for name, x in found.data_vars.items()
        if x.dims and not re.search("_(se|text)$|error", f"{name} {x.attrs['long_name']}")
    ]
    # A page says in the same words what is raised and what is lowered.
    assert len({*said}) == len(said) or name == "latents.page", said
