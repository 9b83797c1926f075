"""Names of places: labels, hook names, and what is refused."""

import numpy as np
import pytest
import torch
from random_models import unchecked
from reference import full_cache

from mlp_interp.models import Weights
from mlp_interp.sites import (
    ACTIVATIONS,
    HEADS,
    NEURONS,
    STREAM,
    Site,
    component_coords,
    did_you_mean,
    site_of,
)

LABELS = {
    "embed": Site("embed"),
    "pos_embed": Site("pos_embed"),
    "bias": Site("bias"),
    "3.attn": Site("attn_out", 3),
    "12.mlp": Site("mlp_out", 12),
    "L3H5": Site("z", 3, head=5),
    "L10H15.q": Site("q", 10, head=15),
    "L3N669": Site("post", 3, neuron=669),
    "L3N669.pre": Site("pre", 3, neuron=669),
    "3.b_O": Site("b_O", 3),
    "0.b_out": Site("b_out", 0),
    "2.resid_pre": Site("resid_pre", 2),
    "2.z": Site("z", 2),
}


@pytest.mark.parametrize(("label", "site"), LABELS.items())
def test_a_label_reads_back_as_its_site(label, site):
    assert site.label == label
    assert Site.parse(label) == site


def test_hook_names_are_those_of_a_full_cache(model, tokens):
    cache = full_cache(model, tokens)
    sites = [Site("embed"), *(Site(name, layer) for name in ACTIVATIONS for layer in range(3))]
    if model.cfg.positional_embedding_type == "standard":
        sites.append(Site("pos_embed"))
    assert [s.label for s in sites if s.hook_name not in cache] == []


def test_activations_have_the_axes_that_their_site_says(kind, backend, tokens):
    model = kind("parallel", backend)
    cache, weights = full_cache(model, tokens), Weights.of(model)
    sizes = {"batch": 4, "pos": 9, "source": 9, "head": 4, "d_head": 8}
    sizes |= {"d_model": model.cfg.d_model, "neuron": model.cfg.d_mlp}
    assert {*ACTIVATIONS} == {*STREAM, *HEADS, *NEURONS, "pattern"}
    for site in (Site("embed"), *(Site(name, 1) for name in ACTIVATIONS)):
        shape = tuple(sizes[axis] for axis in site.axes)
        assert cache[site.hook_name].shape == shape, site.label
        assert weights.shape_of(site, 4, 9) == shape, site.label


def test_what_a_block_computes_is_listed_in_the_order_of_its_hooks(kind, tokens):
    order = list(full_cache(kind(), tokens))
    hooks = [Site(name, 1).hook_name for name in ACTIVATIONS]
    # A parallel block may run its MLP before or after its attention.
    attention = [h for h in hooks if "mlp" not in h]
    assert [h for h in order if h in attention] == attention


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("hook_z", 1), "name='hook_z'"),
        (("attn_out", None), "layer=None: site 'attn_out' wants a layer"),
        (("embed", 1), "layer=1: site 'embed' wants no layer"),
        (("attn_out", 1, 2), "head=2"),
        (("z", 1, None, 2), "neuron=2"),
        (("attn_out", -1), "layer=-1"),
        (("z", 1, -1), "head=-1"),
        (("post", 1, None, -3), "neuron=-3"),
        (("mlp_uot", 1), r"name='mlp_uot' is not a site \(did you mean 'mlp_out'\?\)"),
        (("hook_q", 1), r"did you mean 'q'\?"),
        (("z", 1, True), "head=True; wanted an integer from 0"),
        (("z", 1.0), r"layer=1\.0; wanted an integer from 0"),
    ],
)
def test_a_site_that_cannot_be_is_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        unchecked(Site.__init__)(object.__new__(Site), *arguments)


@pytest.mark.parametrize(
    "label",
    ["", "L3", "L3X5", "3.", "mlp", "L-1H2", "-1.mlp", "3.mlp ", "L3H5\n", "3.mlp\n", "٣.mlp"],
)
def test_text_that_is_no_label_is_refused(label):
    with pytest.raises(ValueError, match=r"is not a component label|is not a site"):
        Site.parse(label)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("3.mpl", "3.mlp"),
        ("l3h5", "L3H5"),
        ("L12M7", "L12N7"),
        ("mlp.3", "3.mlp"),
        ("L3H5.qq", "L3H5.q"),
        ("embd", "embed"),
        ("blocks.3.hook_mlp_out", "3.mlp"),
        ("blocks.11.attn.hook_z", "11.z"),
    ],
)
def test_an_error_names_the_nearest_label(text, nearest):
    with pytest.raises(ValueError, match=rf"label='{text}' is no.* \(did you mean '{nearest}'\?\)"):
        Site.parse(text)


def test_nothing_is_guessed_where_nothing_is_near():
    assert did_you_mean("xyz", ["embed", "mlp_out"]) == ""
    assert did_you_mean("Embed", ["mlp_out", "embed"]) == " (did you mean 'embed'?)"


def test_a_site_is_named_in_many_ways():
    neuron = Site("post", 3, neuron=669)
    pairs = [(3, 669), [3, 669], np.array([3, 669]), torch.tensor([3, 669]), (np.int64(3), 669)]
    for given in ("L3N669", neuron, *pairs):
        assert site_of(given, kind="neuron") == neuron
    assert site_of((3, 5), kind="head") == site_of("L3H5") == Site("z", 3, head=5)
    assert site_of("3.mlp", kind="mlp") == site_of(Site("mlp_out", 3))
    assert site_of("L3N669.pre").whole == Site("pre", 3)


@pytest.mark.parametrize(
    ("given", "kind", "text"),
    [
        ("L3H5", "neuron", "neurons='L3H5' is no neuron; wanted e.g. 'L3N669'"),
        (Site("post", 3), "neuron", r"neurons='3\.post' is no neuron; wanted"),
        ("L3N669.pre", "neuron", r"neurons='L3N669\.pre' is no neuron"),
        ("embed", "head", "neurons='embed' is no head; wanted e.g. 'L3H5'"),
        ("L3N6 69", None, r"neurons='L3N6 69' is not a component label \(did you mean"),
        ((3, 669), None, r"neurons=\(3, 669\); wanted a label such as"),
        ((3, 669), "mlp", r"neurons=\(3, 669\); wanted a label such as"),
        ((3,), "neuron", r"neurons=\(3,\); wanted a label such as 'L3N669', a Site or the pair"),
        ((3, -1), "neuron", r"neurons=\(3, -1\); wanted .* counted from 0"),
        ((3, True), "neuron", r"neurons=\(3, True\); wanted"),
        ((3, 1.5), "head", r"neurons=\(3, 1\.5\); wanted a label such as 'L3H5'"),
        (7, "neuron", r"neurons=7; wanted a label such as 'L3N669'"),
        (None, None, r"neurons=None; wanted a label"),
    ],
)
def test_what_names_no_site_is_refused(given, kind, text):
    with pytest.raises(ValueError, match=text):
        unchecked(site_of)(given, kind=kind, argument="neurons")


def test_a_parameter_has_neither_hook_nor_activation():
    for what in ("hook_name", "axes"):
        with pytest.raises(ValueError, match=r"'3\.b_O' is a parameter"):
            getattr(Site("b_O", 3), what)


def test_component_coordinates():
    coords = component_coords([LABELS[name] for name in ("embed", "L3H5", "3.b_O", "L3N669")])
    values = {name: list(value) for name, (dim, value) in coords.items() if dim == "component"}
    assert values == {
        "component": ["embed", "L3H5", "3.b_O", "L3N669"],
        "kind": ["embed", "head", "bias", "neuron"],
        "layer": [-1, 3, 3, 3],
        "head": [-1, 5, -1, -1],
        "neuron": [-1, -1, -1, 669],
    }
    assert coords["layer"][1].dtype == np.int64
    assert coords["component"][1].dtype.kind == "U"  # object arrays do not survive netCDF alike
