"""What components and vectors say by themselves: sums, slow references, and chance."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from random_models import BACKENDS, HAS_HOOKED, VOCABULARY, hooked

import mlp_interp as mi
from mlp_interp.lens import read_parts, read_vectors
from mlp_interp.models import Unembed, Weights
from mlp_interp.models.norm import Norm
from mlp_interp.models.vectors import Vectors
from mlp_interp.sites import Site


def by_token(found: xr.Dataset) -> np.ndarray:
    """Logits in the order of the vocabulary, of a result with all tokens."""
    order = found["promoted_id"].values.argsort(-1)
    return np.take_along_axis(found["promoted_logit"].values, order, -1)


@pytest.mark.parametrize("level", ["component", "neuron"])
def test_parts_sum_to_the_logits_less_the_bias(
    some_model: Any, tokens: torch.Tensor, level: Any
) -> None:
    found = read_parts(
        some_model, tokens, level=level, positions=[2, -1], targets=[3, 4, 5, 6], k=VOCABULARY
    )
    with torch.no_grad():
        logits = some_model(tokens)[:, [2, -1]] - Unembed.of(some_model).bias
    logits -= logits.mean(-1, keepdim=True)
    sums = by_token(found).sum(2)
    np.testing.assert_allclose(sums, logits, atol=1e-4)
    target = found["logit_target"].sum("component")
    np.testing.assert_allclose(target, sums[np.arange(4), :, [3, 4, 5, 6]], atol=1e-4)
    lowest = found["suppressed_logit"].isel(rank=slice(None, None, -1))
    np.testing.assert_allclose(found["promoted_logit"], lowest, atol=1e-6)


def streams_before(model: Any, tokens: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """By the library's own cache: what is given to attention or MLP, and what it adds."""
    weights = Weights.of(model)
    _, cache = model.run_with_cache(tokens)
    embedded = cache[Site("resid_pre", 0).hook_name]
    found, before = [], torch.zeros_like(embedded)
    for name in ["embed", *(["pos_embed"] if weights.has_pos_embed else [])]:
        added = cache[Site(name).hook_name].expand_as(embedded)
        found.append((before, added))
        before = before + added
    for layer in range(weights.n_layers):
        stream = cache[Site("resid_pre", layer).hook_name]
        attention, mlp = (cache[Site(n, layer).hook_name] for n in ("attn_out", "mlp_out"))
        found += [(stream, attention), (stream if weights.parallel else stream + attention, mlp)]
    return found


@pytest.mark.parametrize("scale", ["stream", "own"])
def test_what_is_added_is_what_float64_gives(
    some_model: Any, tokens: torch.Tensor, scale: Any
) -> None:
    found = read_parts(some_model, tokens, positions=None, scale=scale, k=2)
    unembed, norm = Unembed.of(some_model), Weights.of(some_model).final_norm
    weight, bias = unembed.weight.double(), unembed.bias.double()
    pairs = [(x.double(), c.double()) for x, c in streams_before(some_model, tokens)]
    final = torch.stack([c for _, c in pairs]).sum(0)

    def logits(x: torch.Tensor) -> torch.Tensor:
        divided = norm.standardize(x) if scale == "own" else norm.keep(x) / norm.scale(final)
        return divided @ weight

    for n, (before, added) in enumerate(pairs):
        p, q = ((logits(x) + bias).log_softmax(-1) for x in (before, before + added))
        kl = (p.exp() * (p - q)).sum(-1)
        here = found.isel(component=n)
        np.testing.assert_allclose(here["kl_added"], kl, atol=1e-6, rtol=2e-3)
        alone = logits(added) - logits(added).mean(-1, keepdim=True)
        np.testing.assert_allclose(here["promoted_logit"], alone.topk(2).values, atol=1e-4)
        chosen = alone.gather(-1, torch.from_numpy(here["suppressed_id"].values))
        np.testing.assert_allclose(chosen, here["suppressed_logit"], atol=1e-4)


def test_heads_and_neurons_are_added_to_what_their_block_was_given(
    kind: Any, tokens: torch.Tensor
) -> None:
    for architecture in ("parallel", "sequential"):
        model = kind(architecture)
        weights, norm = Weights.of(model), Weights.of(model).final_norm
        cache = mi.cache_for(model, tokens, level="neuron")
        parts = mi.decompose(model, cache, level="neuron", positions=-1)
        vectors = dict(zip(parts.labels, parts.vectors()[0, 0].double(), strict=True))
        stream = mlp = mi.run(model, tokens).streams[1][0, -1].double()
        if not weights.parallel:
            heads = [f"L1H{n}" for n in range(weights.n_heads)]
            mlp = torch.stack([stream, *(vectors[name] for name in [*heads, "1.b_O"])]).sum(0)
        found = read_parts(model, tokens, level="neuron", scale="own")
        unembed = Unembed.of(model)
        for label, before in (("L1H2", stream), ("1.b_O", stream), ("L1N5", mlp), ("1.b_out", mlp)):
            p, q = (
                (norm.standardize(x) @ unembed.weight.double() + unembed.bias).log_softmax(-1)
                for x in (before, before + vectors[label])
            )
            kl = float((p.exp() * (p - q)).sum())
            here = float(found["kl_added"].sel(component=label)[0, 0])
            assert here == pytest.approx(kl, rel=5e-3, abs=1e-9), label


def test_parts_of_processed_and_raw_weights_and_of_padded_texts(kind: Any) -> None:
    rows = [[0, 5, 6, 7, 9], [0, 8, 3]]
    for architecture in ("parallel", "gpt2"):
        one = read_parts(kind(architecture), rows, positions=None, scale="own", k=3)
        other = kind(architecture, BACKENDS[-1], "raw")
        raw = read_parts(other, rows, positions=None, scale="own", k=3)
        for name in ("kl_added", "promoted_logit", "suppressed_logit"):
            np.testing.assert_allclose(one[name], raw[name], atol=1e-3, err_msg=name)
        alone = read_parts(kind(architecture), rows[1:], positions=None, scale="own", k=3)
        here = one.sel(prompt=[1], pos=[0, 1, 2])
        np.testing.assert_allclose(here["kl_added"], alone["kl_added"], atol=1e-5)
        assert one["kl_added"].sel(prompt=1, pos=[3, 4]).isnull().all()
        assert (one["promoted_id"].sel(prompt=1, pos=[3, 4]) == -1).all()
        assert (one["promoted_text"].sel(prompt=1, pos=[3, 4]) == "").all()


def test_parts_of_an_edited_run(kind: Any, tokens: torch.Tensor) -> None:
    model = kind()
    wanted = mi.residual.needed(model)
    run = mi.run(model, tokens, sites=[Site.of_hook(name) for name in wanted])
    plain = read_parts(model, tokens)
    np.testing.assert_allclose(read_parts(model, run)["kl_added"], plain["kl_added"], atol=1e-6)
    direction = torch.ones(run.final.shape[-1]).index_fill(0, torch.arange(8), -3.0)
    found = read_parts(model, run.edited(mi.Edit.add("1.resid_post", direction)), k=VOCABULARY)
    assert "edit:1.resid_post" in found["component"].values
    written = found.sel(component="edit:1.resid_post").isel(prompt=0, pos=0)
    alone = read_vectors(model, direction, scale="own", k=VOCABULARY)
    assert written["promoted_id"].values[0] == alone["promoted_id"].values[0, 0]
    assert (written["promoted_logit"] / alone["promoted_logit"][0]).std() < 1e-4


def test_the_component_that_says_the_answer_on_nano(nano: Any) -> None:
    found = read_parts(nano, "The capital of France is").isel(prompt=0, pos=0)
    assert found["promoted_text"].sel(component="2.attn").values[0] == " Paris"
    assert found.attrs["sums"] == "to the logits less the readout's bias"


def test_differences_are_those_of_direct_attribution(nano: Any) -> None:
    task = mi.prompts.facts(nano, n=3, seed=0)
    cache = mi.cache_for(nano, task.clean_tokens, level="head")
    shares = mi.attribute_logits(nano, cache, task, level="head")
    found = read_parts(nano, task, level="head")
    wanted = shares.sel(component=found["component"])
    np.testing.assert_allclose(found["logit_difference"], wanted, atol=1e-4)


def test_vectors_are_read_as_the_readout_does(some_model: Any) -> None:
    weights, unembed = Weights.of(some_model), Unembed.of(some_model)
    values = Vectors.of(weights, 1).value
    found = read_vectors(some_model, values, k=VOCABULARY)
    norm = Norm(weights.final_norm.kind, 0.0)
    kept = norm.keep(values)
    logits = norm.standardize(kept) @ unembed.weight
    logits -= logits.mean(-1, keepdim=True)
    order = found["promoted_id"].values.argsort(-1)
    here = np.take_along_axis(found["promoted_logit"].values, order, -1)
    np.testing.assert_allclose(here, logits.numpy(force=True), atol=1e-4)
    np.testing.assert_allclose(found["length"], kept.norm(dim=-1).numpy(force=True), rtol=1e-5)
    same = read_vectors(some_model, 1000 * values, k=VOCABULARY)
    plain = read_vectors(some_model, values, scale=2.0, k=3)
    factor = norm.scale(kept).numpy(force=True) / 2
    wanted = found["promoted_logit"][:, :3].values * factor
    np.testing.assert_allclose(plain["promoted_logit"], wanted, rtol=1e-4)
    np.testing.assert_array_equal(plain["promoted_p"], found["promoted_p"])
    assert (same["promoted_id"][:, 0] == found["promoted_id"][:, 0]).all()


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1e25])
def test_lengths_of_vectors_do_not_matter(some_model: Any, size: float) -> None:
    weights = Weights.of(some_model)
    values = Vectors.of(weights, 1).value_folded[:4].double()
    found, other = (read_vectors(some_model, s * values, k=3) for s in (1.0, size))
    factor = 1 if weights.final_norm.kind != "none" else size
    np.testing.assert_array_equal(other["promoted_id"], found["promoted_id"])
    np.testing.assert_allclose(other["promoted_logit"], factor * found["promoted_logit"], rtol=1e-3)
    np.testing.assert_array_equal(other["promoted_p"], found["promoted_p"])
    np.testing.assert_allclose(other["length"], size * found["length"], rtol=1e-5)
    plain = read_vectors(some_model, size * values, scale=size, k=3)
    np.testing.assert_allclose(plain["promoted_logit"].max("rank"), plain["promoted_logit"][:, 0])
    assert plain["promoted_logit"].notnull().all()
    assert (plain["promoted_logit"][:, 0] > 0).all()


@pytest.mark.skipif(not HAS_HOOKED, reason="the library has no HookedTransformer")
def test_parts_sum_to_logits_before_their_cap() -> None:
    model = hooked(output_logits_soft_cap=1.0, d_mlp=12)
    tokens = torch.arange(1, 10)[None]
    found = read_parts(model, tokens, targets=7, k=VOCABULARY)
    capped = model(tokens)[0, -1].detach().double()
    before = torch.atanh(capped)
    b_U = Unembed.of(model).bias.detach().double()
    wanted = (before - b_U) - (before - b_U).mean()
    assert float(found["logit_target"].sum()) == pytest.approx(float(wanted[7]), abs=1e-4)
    assert found.attrs["sums"].endswith("before the cap on logits")
    assert "before the cap" in found["logit_target"].attrs["long_name"]


def test_chance_is_what_random_directions_give(kind: Any) -> None:
    model = kind()
    weights, unembed = Weights.of(model), Unembed.of(model)
    drawn = torch.randn(400, weights.d_model, generator=torch.Generator().manual_seed(5))
    found = read_vectors(model, drawn, k=2, controls=200)
    # Even between 0 and 1, as a p has to be where nothing is there; its mean's error is 0.014.
    for name in ("promoted_p", "suppressed_p"):
        assert abs(float(found[name].mean()) - 0.5) < 0.06, name
        assert abs(float((found[name] < 0.25).mean()) - 0.25) < 0.08, name
    for name in ("promoted", "suppressed"):
        logit, random = found[f"{name}_logit"], found[f"{name}_random"]
        np.testing.assert_allclose(logit.mean("component"), random.mean("component"), rtol=0.05)
    # A token's own direction is beyond chance, and so is its opposite.
    token = unembed.weight[:, [7]].T - unembed.weight.mean(1)
    own = read_vectors(model, torch.cat([token, -token]), k=1, controls=200)
    assert own["promoted_id"][0, 0] == own["suppressed_id"][1, 0] == 7
    assert own["promoted_p"][0] == own["suppressed_p"][1] == pytest.approx(1 / 201)


def test_vectors_keep_their_names(kind: Any) -> None:
    model = kind()
    drawn = torch.randn(2, Weights.of(model).d_model, generator=torch.Generator().manual_seed(5))
    named = xr.DataArray(drawn.numpy(), dims=("layer", "d_model"), coords={"layer": [1, 2]})
    found = read_vectors(model, named.transpose("d_model", "layer"), k=1)
    assert found["component"].values.tolist() == ["layer 1", "layer 2"]
    assert read_vectors(model, drawn[0], k=1)["component"].values.tolist() == ["0"]
    plain = read_vectors(model, [*drawn], labels=["a", "b"], k=1)
    np.testing.assert_array_equal(plain["promoted_logit"], found["promoted_logit"])
    assert plain["component"].values.tolist() == ["a", "b"]
    zero = read_vectors(model, torch.zeros(Weights.of(model).d_model), k=1)
    assert zero["promoted_logit"].item() == 0
    assert zero["promoted_p"].item() == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"vectors": torch.ones(3)}, r"vectors=\(1, 3\)"),
        ({"vectors": "x"}, "vectors='x'; wanted floats"),
        ({"vectors": [torch.ones(32), torch.ones(31)]}, "vectors=list; wanted floats"),
        ({"vectors": torch.full((2, 32), torch.nan)}, "vectors holds NaN"),
        ({"vectors": xr.DataArray(np.ones((1, 1, 32)), dims=("a", "b", "d_model"))}, "has dims"),
        ({"scale": 0.0}, "scale=0.0; wanted 'own' or a positive number"),
        ({"scale": "stream"}, "scale='stream'"),
        ({"scale": True}, "scale=True"),
        ({"vectors": torch.full((2, 32), 1e300, dtype=torch.float64)}, "vectors holds"),
        ({"labels": ["a"]}, "labels has 1 names for 2 vectors"),
        ({"k": 0}, "k=0"),
        ({"controls": 0}, "controls=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_vectors(kind: Any, options: Any, said: str, without_type_checks: None) -> None:
    model = kind()
    width = Weights.of(model).d_model
    assert width == 32
    with pytest.raises(ValueError, match=said):
        read_vectors(model, **{"vectors": torch.ones(2, width), **options})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"level": "latent"}, "level='latent'"),
        ({"scale": 2.0}, "scale=2.0"),
        ({"positions": 30}, "positions"),
        ({"targets": " nothing at all"}, "targets"),
        ({"k": 301}, "k=301"),
    ],
)
def test_bad_parts(
    kind: Any, tokens: torch.Tensor, options: Any, said: str, without_type_checks: None
) -> None:
    with pytest.raises(ValueError, match=said):
        read_parts(kind(), tokens, **options)
