"""Names of places: labels, hook names, and what is refused."""

import numpy as np
import pytest
from reference import full_cache

from mlp_interp.sites import Site, component_coords

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
    layered = "resid_pre resid_post attn_out mlp_out q k v z pattern pre post".split()
    sites = [Site("embed"), *(Site(name, layer) for name in layered for layer in range(3))]
    if model.cfg.positional_embedding_type == "standard":
        sites.append(Site("pos_embed"))
    assert [s.label for s in sites if s.hook_name not in cache] == []


def test_units_of_hooks_have_the_axis_their_site_says(model, tokens):
    cache = full_cache(model, tokens)
    for name in ("q", "k", "v", "z"):
        assert cache[Site(name, 1).hook_name].shape == (4, 9, 4, 8)
    assert cache[Site("pattern", 1).hook_name].shape == (4, 4, 9, 9)
    assert cache[Site("post", 1).hook_name].shape == (4, 9, model.cfg.d_mlp)


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
    ],
)
def test_a_site_that_cannot_be_is_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        Site(*arguments)


@pytest.mark.parametrize(
    "label",
    ["", "L3", "L3X5", "3.", "mlp", "L-1H2", "-1.mlp", "3.mlp ", "L3H5\n", "3.mlp\n", "٣.mlp"],
)
def test_text_that_is_no_label_is_refused(label):
    with pytest.raises(ValueError, match=r"is not a component label|is not a site"):
        Site.parse(label)


def test_a_parameter_has_no_hook():
    with pytest.raises(ValueError, match=r"'3\.b_O' is a parameter"):
        _ = Site("b_O", 3).hook_name


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
