"""Whatever holds activations serves: the library's caches in all their forms, and dicts."""

import numpy as np
import pytest
import reference
import torch
import xarray as xr
from random_models import unchecked

from mlp_interp.ablation import ablate_direct
from mlp_interp.attribution import attribute_logits, attribute_sources
from mlp_interp.edits import Edit
from mlp_interp.models.caches import cached, cached_tokens, check_cached
from mlp_interp.residual import components, decompose, needed
from mlp_interp.runs import Runner, run
from mlp_interp.sites import Site
from mlp_interp.tables import top

LABELS = ["embed", "L1H2", "2.mlp", "L0N7"]
HEADS = ["L1H2", "L2H0"]


def a_filter(model):
    """Hook names that all functions below read, and no others."""
    names = {*needed(model, level="component"), *needed(model, level="neuron")}
    return {*names, *(Site(name, layer).hook_name for name in ("v", "pattern") for layer in (1, 2))}


def caches(model, tokens):
    """One text's activations in every form in which somebody may have kept them."""
    names = a_filter(model)
    with torch.no_grad():
        whole = model.run_with_cache(tokens)[1]
        some = model.run_with_cache(tokens, names_filter=lambda name: name in names)[1]
        bare = model.run_with_cache(tokens, remove_batch_dim=True)[1]
    assert names <= set(some) < set(whole)  # the bridge keeps other names of the same, too
    assert not bare.has_batch_dim
    return {
        "all": whole,
        "names_filter": some,
        "no batch dimension": bare,
        "dict": dict(some.items()),
        "dict, no batch dimension": dict(bare.items()),
        "run": run(model, tokens),
    }


def analyses(model, cache):
    """What each function over caches makes of one."""
    return {
        "decompose": decompose(model, cache, level="head", positions=[1, -1]).vectors(),
        "components": components(model, cache, LABELS, positions=-2).vectors(),
        "attribute_logits": attribute_logits(model, cache, 7, 9, level="neuron", positions=None),
        "attribute_sources": attribute_sources(model, cache, 7, heads=HEADS, positions=[3, -1]),
        "ablate_direct": ablate_direct(model, cache, LABELS, positions=[0, -2]).drop_attrs(),
    }


@pytest.mark.parametrize("architecture", ["parallel", "gpt2"])
def test_a_cache_in_any_form_gives_the_same(kind, backend, architecture, tokens):
    model = kind(architecture, backend)
    made = {how: analyses(model, cache) for how, cache in caches(model, tokens[:1]).items()}
    expected = made.pop("all")
    assert len(made) == 5
    for how, found in made.items():
        for name, value in found.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(value, expected[name], msg=f"{name} on {how}")
            else:
                if how == "run":  # it knows its tokens, hence losses
                    value = value.where(expected[name].notnull())
                if "source_token" in value.coords:
                    read = [model.tokenizer.decode([token]) for token in tokens[0].tolist()]
                    assert value.source_token.values.tolist() == [read]
                    value = value.drop_vars("source_token")
                xr.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-6)


def test_values_to_put_in_come_from_a_cache_in_any_form(kind, backend, tokens):
    """The same as from a run, and as the library's own hook gives."""
    model = kind("parallel", backend)
    runner, other = Runner.of(model), tokens[1:2]
    site = Site("z", 1)
    value = reference.full_cache(model, other)[site.hook_name]

    def hook(x, hook=None):
        x = x.clone()
        x[:, [2, 5], 3] = value[:, [4, 7], 3]
        return x

    expected = reference.hooked_logits(model, tokens, {site.hook_name: hook})
    assert (expected - reference.hooked_logits(model, tokens, {})).abs().max() > 1e-3
    kept = {**caches(model, other), "run": runner.run(other, sites=[site])}
    for how, cache in kept.items():
        edit = Edit.replace("L1H3", cache, positions=[2, 5], sources=[4, 7], for_all=True)
        found = reference.logits(model, runner.run(tokens, edits=[edit]).final)
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3, msg=how)


def test_what_a_cache_lacks_is_named_with_the_filter_that_keeps_it(kind, tokens):
    model = kind()
    with torch.no_grad():
        cache = model.run_with_cache(tokens, names_filter="blocks.0.hook_mlp_out")[1]
    for some in (cache, dict(cache.items())):
        with pytest.raises(
            ValueError, match=r"cache lacks blocks\.1\.attn\.hook_z .*names_filter=\['blocks\.1\.at"
        ):
            Edit.replace("L1H2", some)
        with pytest.raises(ValueError, match=r"names_filter=\[.*hook_mlp_out', .*resid_post'\]"):
            components(model, some, ["0.mlp"])
        with pytest.raises(
            ValueError, match=r"names_filter=\[.*'blocks\.1\.attn\.hook_v', .*resid_post'\]"
        ):
            attribute_sources(model, some, 1, heads=["L1H2"])
    many = [Site("mlp_out", layer) for layer in range(20)]
    with pytest.raises(
        ValueError, match=r"hook_mlp_out, … \(19 of the 20 entries needed\); .* a names_filter that"
    ):
        check_cached(cache, many)


def test_what_has_another_shape_is_refused():
    site = Site("mlp_out", 1)
    assert cached({site.hook_name: torch.ones(5, 8)}, site).shape == (1, 5, 8)
    with pytest.raises(ValueError, match=r"hook_mlp_out'\]=\(2, 5, 4, 8\); wanted \[batch, pos, d"):
        cached({site.hook_name: torch.ones(2, 5, 4, 8)}, site)


def test_the_tokens_of_a_cache(kind, tokens):
    runner = Runner.of(kind())
    assert torch.equal(cached_tokens({"tokens": tokens}), tokens)
    assert torch.equal(cached_tokens({"tokens": tokens[0]}), tokens[:1])
    assert cached_tokens(reference.full_cache(runner.weights.model, tokens)) is None


def test_losses_come_with_tokens_in_a_cache_or_beside_it(kind, tokens):
    model = kind()
    cache = dict(reference.full_cache(model, tokens).items())
    beside = ablate_direct(model, cache, ["1.mlp"], tokens=tokens)
    assert np.isfinite(beside.delta_loss[..., :-1]).all()
    xr.testing.assert_identical(
        ablate_direct(model, {**cache, "tokens": tokens}, ["1.mlp"]), beside
    )


def test_several_positions_of_a_head_are_each_of_them(kind, backend, tokens):
    model = kind("parallel", backend)
    cache = reference.full_cache(model, tokens)
    several = attribute_sources(model, cache, 7, heads=HEADS, positions=[5, -2])
    assert several.dims == ("prompt", "pos", "component", "source")
    for position in (5, 7):
        one = attribute_sources(model, cache, 7, heads=HEADS, positions=position)
        xr.testing.assert_allclose(several.sel(pos=position), one)
        assert one.pos.item() == position


def a_grid():
    values = np.arange(12.0).reshape(2, 3, 2) - 5.75
    labels = [[f"L{layer}H{head}" for head in range(2)] for layer in range(3)]
    coords = {"component": (("layer", "head"), labels), "layer": range(3)}
    return xr.DataArray(values, coords, ("prompt", "layer", "head"), attrs={"unit": "logits"})


def test_top_of_a_grid_that_says_its_components():
    best = top(a_grid(), 2)
    assert best.dims == ("component",)
    assert best.component.values.tolist() == ["L0H0", "L2H1"]
    assert best.values.tolist() == [-2.75, 2.25]
    assert best.layer.values.tolist() == [0, 2]
    assert best.attrs == {"unit": "logits"}


@pytest.mark.parametrize("name", ["component", "sender", "receiver", "node", "site"])
def test_top_finds_what_is_ranked(name):
    result = xr.DataArray(np.eye(3) * [1, -3, 2], {name: list("abc")}, (name, "fraction"))
    assert top(result, 2)[name].values.tolist() == ["b", "c"]
    assert top(result, 1, dim="fraction").values.tolist() == [-1.0]


def test_top_wants_a_dimension():
    with pytest.raises(ValueError, match=r"dim='component' is not a dimension .*'layer'"):
        top(a_grid().drop_vars("component").isel(head=0, drop=True))
    with pytest.raises(ValueError, match="dim='pos' is not a dimension"):
        top(a_grid().isel(prompt=0).assign_coords(pos=3), dim="pos")


def test_what_is_no_cache_is_said_to_be_none(kind, tokens):
    model = kind()
    with torch.no_grad():
        pair = model.run_with_cache(tokens)
    for given, message in ((pair, r"cache=the pair \(logits, cache\)"), (tokens, "cache=Tensor")):
        for function in (decompose, unchecked(attribute_sources)):
            with pytest.raises(ValueError, match=f"{message}; wanted the cache, run_with_cache"):
                function(model, given, *([[5] * 4] if function is not decompose else []))
