"""Shares sum to the model's logits and are what their formula says."""

import statistics
import time

import numpy as np
import pytest
import reference
import torch
import xarray as xr
from random_models import random_neox, tiny_tokenizer, unchecked

from mlp_interp import attribute_logits, attribute_sources, load_model, prompts, top
from mlp_interp.models import Weights
from mlp_interp.models.unembed import Unembed, mean_direction
from mlp_interp.residual import LEVELS, Layout, cache_for, decompose
from mlp_interp.sites import Site, component_coords

ANSWERS, FOILS = [5, 6, 7, 299], [9, 8, 5, 0]
ROWS = torch.arange(4)


def the_logits(model, tokens):
    return reference.hooked_logits(model, tokens, {}).numpy()


def test_shares_sum_to_the_logit_the_difference_and_the_centred_logit(model, tokens):
    logits = the_logits(model, tokens)
    for level in LEVELS:
        cache = cache_for(model, tokens, level=level)
        for foils in (None, FOILS, "mean"):
            found = attribute_logits(model, cache, ANSWERS, foils, level=level, positions=None)
            expected = logits[ROWS, :, ANSWERS]
            if foils == "mean":
                expected = expected - logits.mean(-1)
            elif foils is not None:
                expected = expected - logits[ROWS, :, foils]
            assert found.dims == ("prompt", "pos", "component")
            np.testing.assert_allclose(found.sum("component"), expected, atol=1e-4)


@pytest.mark.parametrize("architecture", ["parallel", "gpt2"])
@pytest.mark.parametrize("processing", ["folded", "raw"])
def test_each_share_is_its_formula(kind, architecture, processing, backend, tokens):
    """Frozen: c . (W'_answer - W'_foil) / sigma. In float64, from the cache and plain algebra."""
    model = kind(architecture, backend, processing, torch.float64)
    cache = reference.full_cache(model, tokens)
    final = reference.final_stream(model, cache)
    w = getattr(model.ln_final, "w", None)
    unembedding = model.W_U.detach() if w is None else w.detach()[:, None] * model.W_U.detach()
    direction = unembedding[:, ANSWERS] - unembedding[:, FOILS]
    for level in LEVELS:
        found = attribute_logits(model, cache, ANSWERS, FOILS, level=level, positions=[2, -1])
        assert list(found.pos.values) == [2, 8]
        for label, vector in reference.vectors(model, cache, level).items():
            centred = vector - vector.mean(-1, keepdim=True)
            share = torch.einsum("bpd,db->bp", centred, direction)
            share = share / reference.scale(model, final)[..., 0]
            np.testing.assert_allclose(
                found.sel(component=label), share[:, [2, 8]], atol=1e-10, err_msg=label
            )
        bias = reference.frozen_logits(model, 0 * final, final)[:, -1]
        np.testing.assert_allclose(
            found.sel(component="bias")[:, -1], bias[ROWS, ANSWERS] - bias[ROWS, FOILS], atol=1e-10
        )


@pytest.mark.parametrize("processing", ["folded", "raw"])
def test_recomputed_shares_are_what_removal_costs(kind, processing, backend, tokens):
    """Brute force: take each component out, run ln_final and unembed, and see the logit fall."""
    model = kind("sequential", backend, processing, torch.float64)
    cache = reference.full_cache(model, tokens)
    final = reference.final_stream(model, cache)
    clean = reference.logits(model, final)
    for level in LEVELS:
        found = attribute_logits(
            model, cache, ANSWERS, FOILS, level=level, positions=None, norm="recompute"
        )
        for label, vector in list(reference.vectors(model, cache, level).items())[::7]:
            fall = clean - reference.logits(model, final - vector)
            expected = fall[ROWS, :, ANSWERS] - fall[ROWS, :, FOILS]
            np.testing.assert_allclose(
                found.sel(component=label), expected, atol=1e-9, err_msg=label
            )


def test_sources_sum_to_the_heads_share(model, tokens):
    cache = reference.full_cache(model, tokens)
    for foils, position in ((FOILS, -1), (None, 4), ("mean", 0)):
        sources = attribute_sources(model, cache, ANSWERS, foils, positions=position)
        shares = attribute_logits(model, cache, ANSWERS, foils, level="head", positions=position)
        assert sources.dims == ("prompt", "component", "source")
        heads = shares.sel(component=sources.component.values).squeeze("pos", drop=True)
        assert len(heads.component) == 12
        np.testing.assert_allclose(sources.sum("source"), heads, atol=1e-4)
        at = position % 9
        assert int(sources.pos) == at
        assert (sources.values[..., at + 1 :] == 0).all()  # nothing is read from the future


def test_a_source_is_pattern_times_value(kind, backend, tokens):
    model = kind("gpt2", backend, "raw", torch.float64)
    cache = reference.full_cache(model, tokens)
    found = attribute_sources(model, cache, 7, heads=["L1H2", "L0H3"], positions=6)
    assert list(found.component.values) == ["L1H2", "L0H3"]
    v = cache["blocks.1.attn.hook_v"][:, :, 2]
    written = cache["blocks.1.attn.hook_pattern"][:, 2, 6, :, None] * (v @ model.W_O[1, 2])
    final = reference.final_stream(model, cache)[:, 6]
    direction = model.ln_final.w * model.W_U[:, 7]
    expected = (written - written.mean(-1, keepdim=True)) @ direction
    expected = expected / reference.scale(model, final)
    np.testing.assert_allclose(found.sel(component="L1H2"), expected.detach(), atol=1e-10)


def test_as_many_prompts_as_positions_with_one_token_each(kind, backend):
    """The library's own logit_attrs broadcasts wrongly here, by whole logits."""
    model = kind("parallel", backend)
    tokens = torch.randint(1, 300, (6, 6), generator=torch.Generator().manual_seed(5))
    answers = torch.tensor([1, 2, 3, 4, 5, 6])
    logits = the_logits(model, tokens)
    found = attribute_logits(model, cache_for(model, tokens), answers, positions=None)
    np.testing.assert_allclose(
        found.sum("component"), logits[torch.arange(6), :, answers], atol=1e-4
    )


def test_tokens_may_be_ids_strings_tensors_one_or_many(kind, tokens):
    model = kind()
    cache = cache_for(model, tokens)
    token = model.tokenizer.encode(" the")
    assert len(token) == 1
    expected = attribute_logits(model, cache, [token[0]] * 4, [4] * 4)
    for answers in (" the", token[0], [" the"] * 4, torch.tensor(token * 4)):
        for foils in (4, [4] * 4):
            found = attribute_logits(model, cache, answers, foils)
            xr.testing.assert_identical(found, expected)
    assert list(expected.answer.values) == [" the"] * 4
    assert expected.foil.dims == ("prompt",)


def test_attributes_and_coordinates(kind, tokens):
    model = kind("gpt2")
    found = attribute_logits(model, cache_for(model, tokens, level="neuron"), 5, 6, level="neuron")
    assert found.attrs["unit"] == "logits"
    assert found.attrs["norm"] == "freeze"
    assert found.attrs["level"] == "neuron"
    assert list(found.pos.values) == [8]
    neuron = found.sel(component="L2N127")
    assert (int(neuron.layer), int(neuron.neuron), neuron.kind.item()) == (2, 127, "neuron")
    assert found.component.values[-1] == "bias"
    assert found.component.values[1] == "pos_embed"


def test_a_model_without_tokenizer_names_tokens_by_number(kind, tokens):
    model = kind()
    tokenizer, model.tokenizer = model.tokenizer, None
    try:
        found = attribute_logits(model, cache_for(model, tokens), 5)
        assert list(found.answer.values) == ["#5"] * 4
        with pytest.raises(ValueError, match="has no tokenizer"):
            attribute_logits(model, cache_for(model, tokens), " the")
    finally:
        model.tokenizer = tokenizer


def test_top_keeps_signs_and_order():
    result = xr.DataArray(
        [[[1.0, -5.0, 3.0]], [[1.0, -1.0, -2.0]]],
        dims=("prompt", "pos", "component"),
        coords={"component": ["a", "b", "c"]},
        attrs={"unit": "logits"},
    )
    found = top(result, 2)
    assert list(found.component.values) == ["b", "a"]
    assert list(found.values) == [-3, 1]
    assert found.attrs["unit"] == "logits"
    assert list(top(result, 99).component.values) == ["b", "a", "c"]
    assert list(top(result, 1, dim="prompt").values) == pytest.approx([-2 / 3])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"answers": [1, 2]}, "answers has 2 tokens for 4 prompts"),
        ({"answers": [1] * 5}, "answers has 5 tokens for 4 prompts"),
        ({"answers": 1, "foils": [1, 2, 3]}, "foils has 3 tokens for 4 prompts"),
        ({"answers": 300}, "answers=.*outside the vocabulary of 300"),
        ({"answers": -1}, "answers=.*outside the vocabulary"),
        ({"answers": 1, "foils": [2, 3, 400, 5]}, "foils=.*outside the vocabulary"),
        ({"answers": [1, 2, 3, 4], "foils": [5, 2, 6, 7]}, "foils equal answers in some prompt"),
        ({"answers": "the cat sat"}, r"answers='the cat sat' is \d tokens"),
        ({"answers": ""}, "answers='' is 0 tokens"),
        ({"answers": 1, "foils": ["the cat"] * 4}, "foils='the cat' is"),
        ({"answers": 1, "positions": 9}, "wanted integers from -9 to 8"),
        ({"answers": 1, "norm": "frozen"}, "norm='frozen'; wanted 'freeze' or 'recompute'"),
        ({"answers": 1, "level": "neuron"}, r"level='neuron'\)"),
        ({"answers": None}, "answers=None; wanted token ids or single-token strings"),
        ({"answers": 1.0}, r"answers=1\.0; wanted token ids"),
        ({"answers": True}, "answers holds True; wanted integer token ids"),
        (
            {"answers": torch.tensor([1.0, 2, 3, 4])},
            r"answers holds 1\.0; wanted integer token ids",
        ),
        ({"answers": 1, "foils": [2, 3, None, 4]}, "foils holds None; wanted integer token ids"),
    ],
)
def test_bad_arguments(kind, tokens, arguments, text):
    model = kind()
    with pytest.raises(ValueError, match=text):
        unchecked(attribute_logits)(model, cache_for(model, tokens), **arguments)


def test_bad_arguments_of_sources(kind, tokens):
    model = kind()
    cache = reference.full_cache(model, tokens)
    for heads, wanted in ((["L3H0"], "layer from 0 to 2"), (["L0H1", "L2H4"], "head from 0 to 3")):
        with pytest.raises(ValueError, match=f"heads='{heads[-1]}'; wanted a {wanted}"):
            attribute_sources(model, cache, 1, heads=heads)
    for head in ("2.mlp", "2.z", "L0N3", "L0H1.q"):
        with pytest.raises(ValueError, match=rf"heads='{head}' is no head; wanted e\.g\. 'L3H5'"):
            attribute_sources(model, cache, 1, heads=["L0H0", head])
    with pytest.raises(
        ValueError, match=r"heads=\['L0H1', 'L0H1'\]; wanted at least one head, each once"
    ):
        attribute_sources(model, cache, 1, heads=["L0H1", "L0H1"])
    with pytest.raises(ValueError, match=r"heads=\[\]; wanted at least one head"):
        attribute_sources(model, cache, 1, heads=[])
    for position in (9, -10):
        with pytest.raises(ValueError, match=rf"positions=\[?{position}\]?; wanted .* -9 to 8"):
            attribute_sources(model, cache, 1, positions=position)
    with pytest.raises(ValueError, match=r"cache lacks blocks\.0\.attn\.hook_pattern"):
        attribute_sources(model, cache_for(model, tokens), 1)


def test_bad_arguments_of_top():
    result = xr.DataArray([1.0], dims="component")
    with pytest.raises(ValueError, match="dim='head' is not a dimension"):
        top(result, dim="head")
    with pytest.raises(ValueError, match="k=0; wanted at least 1"):
        top(result, 0)


def test_the_readout_is_where_the_scale_comes_from(kind, tokens):
    """The epsilon is in the scale: a stream near zero shows it, a usual one does not."""
    model = kind("parallel", processing="raw")
    names = {*cache_for(model, tokens)} - {"tokens", "attention_mask"}
    cache = {k: v * 1e-3 for k, v in cache_for(model, tokens).items() if k in names}
    found = attribute_logits(model, cache, ANSWERS)
    stream = cache["blocks.2.hook_resid_post"]
    expected = reference.logits(model, stream)[ROWS, -1, ANSWERS]
    np.testing.assert_allclose(found.sum("component").squeeze(), expected, atol=1e-4)
    assert Unembed.of(model).norm.eps == 1e-5


def test_neurons_are_not_named_one_by_one(kind, backend, tokens, monkeypatch):
    """What 3% of a forward pass allows: a few sites, a few columns, labels made once."""
    model = kind("parallel", backend)
    cache = cache_for(model, tokens, level="neuron")
    first = attribute_logits(model, cache, ANSWERS, FOILS, level="neuron")
    made = []
    checked = Site.__post_init__
    monkeypatch.setattr(Site, "__post_init__", lambda site: made.append(site) or checked(site))
    monkeypatch.setattr(Unembed, "of", lambda _model: pytest.fail("the whole readout was folded"))
    again = attribute_logits(model, cache, ANSWERS, FOILS, level="neuron")
    xr.testing.assert_identical(again, first)
    assert len(made) < 50
    attribute_logits(model, cache, ANSWERS, "mean", level="neuron")


def test_coordinates_are_those_of_the_sites(kind, tokens):
    for architecture in ("parallel", "gpt2"):
        model = kind(architecture)
        for level in LEVELS:
            residual = decompose(model, cache_for(model, tokens, level=level), level=level)
            expected = xr.Coordinates(component_coords([*residual.sites, Site("bias")]))
            found = Layout.of(Weights.of(model), level).coordinates()
            xr.testing.assert_identical(found.to_dataset(), expected.to_dataset())


def test_one_result_cannot_relabel_another(kind, tokens):
    model = kind()
    cache = cache_for(model, tokens)
    found = attribute_logits(model, cache, 5)
    with pytest.raises(ValueError, match="read-only"):
        found.layer.values[0] = 7
    found.values[...] = 0
    found.layer.attrs["unit"] = "other"
    again = attribute_logits(model, cache, 5)
    assert again.layer.attrs == {}
    assert not (again.values == 0).all()


def test_the_mean_direction_follows_the_weights(backend, tokens):
    source = random_neox(layers=1)
    model = load_model(source, tokenizer=tiny_tokenizer(), backend=backend, processing="raw")
    weights = Weights.of(model)
    matrix = model.unembed.W_U
    for change in ("none", "data", "in place"):
        with torch.no_grad():
            if change == "data":
                matrix.data[:, 100:] += 3.0
            elif change == "in place":
                matrix[:, 7] += 3.0
        unembed = Unembed.of(model)
        direction, bias = mean_direction(weights)
        torch.testing.assert_close(direction, unembed.weight.mean(-1), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(bias, unembed.bias.mean(), atol=1e-6, rtol=1e-5)


def test_a_contrast_brings_foils_and_provenance(nano):
    task = prompts.ioi(nano, n=3, seed=4)
    cache = cache_for(nano, task.clean_tokens, level="head")
    found = attribute_logits(nano, cache, task, level="head")
    plain = attribute_logits(nano, cache, task.answers, task.foils, level="head")
    xr.testing.assert_equal(found, plain)
    assert plain.attrs["data"] == "3 prompts"
    for name in ("task", "seed", "split", "data", "tokenizer"):
        assert found.attrs[name] == task.attrs[name]
    assert found.attrs["prompts"] == "clean"
    assert found.attrs["model"] == "nano"
    corrupted = cache_for(nano, task.corrupted_tokens)
    assert attribute_logits(nano, corrupted, task).attrs["prompts"] == "corrupted"
    mean = attribute_logits(nano, cache, task, "mean", level="head")
    expected = attribute_logits(nano, cache, task.answers, "mean", level="head")
    xr.testing.assert_equal(mean, expected)
    _, full = nano.run_with_cache(task.clean_tokens)
    assert attribute_sources(nano, full, task, heads=["L3H0"]).attrs["seed"] == 4
    with pytest.raises(ValueError, match=r"cache is of \(2, 17\) tokens; wanted those of"):
        attribute_logits(nano, cache_for(nano, task.clean_tokens[:2]), task)


@pytest.mark.parametrize("norm", ["freeze", "recompute"])
def test_weights_that_went_bad_after_the_run(backend, tokens, norm):
    """The cache is sound and the value vectors are not: no share may pass for a number."""
    model = load_model(random_neox(layers=2), tokenizer=tiny_tokenizer(), backend=backend)
    cache = cache_for(model, tokens, level="neuron")
    model.blocks[0].mlp.W_out.data[3, 5] = torch.nan
    with pytest.raises(ValueError, match=r"NaN or infinity.*check_model\(model\)"):
        attribute_logits(model, cache, 5, level="neuron", norm=norm)
    cache = cache_for(model, tokens, level="neuron")
    with pytest.raises(ValueError, match=r"NaN or infinity.*check_model\(model\)"):
        attribute_logits(model, cache, 5, level="neuron")


@pytest.mark.bench
def test_all_neurons_in_a_few_percent_of_a_forward_pass(backend):
    """Pythia-70m's shape, 64 tokens, one direction at one position; both run in turn."""
    source = random_neox(layers=6, d_model=512, heads=8, d_mlp=2048, vocabulary=50_304)
    model = load_model(source, tokenizer=tiny_tokenizer(), backend=backend)
    tokens = torch.randint(50_304, (1, 64), generator=torch.Generator().manual_seed(0))
    cache = cache_for(model, tokens, level="neuron")
    ways = {
        "run": lambda: model(tokens),
        "attribute": lambda: attribute_logits(model, cache, 5, 9, level="neuron"),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for _ in range(15):
            for name, way in ways.items():
                start = time.process_time()
                way()
                times[name].append(time.process_time() - start)
    ratio = statistics.median(times["attribute"]) / statistics.median(times["run"])
    assert ratio < 0.03, f"{ratio:.1%} of a forward pass"
