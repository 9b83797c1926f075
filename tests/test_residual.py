"""Components sum to the stream, at every level and layer, and are what they are called."""

import numpy as np
import pytest
import reference
import torch
from random_models import random_neox, tiny_tokenizer, unchecked

from mlp_interp import load_model
from mlp_interp.models import Weights
from mlp_interp.models.norm import Norm
from mlp_interp.prompts import Contrast
from mlp_interp.residual import LEVELS, cache_for, components, decompose, needed, norms, stream
from mlp_interp.tables import table


def close(found, expected, **options):
    torch.testing.assert_close(found, expected, **{"atol": 2e-5, "rtol": 1e-4, **options})


def test_components_sum_to_the_stream_at_every_level_and_layer(model, tokens):
    cache = reference.full_cache(model, tokens)
    for level in LEVELS:
        for layer in (0, 1, 2, 3, None):
            residual = decompose(model, cache, level=level, layer=layer)
            name = f"blocks.{layer}.hook_resid_pre"
            total = reference.final_stream(model, cache) if layer in (3, None) else cache[name]
            assert torch.equal(residual.total, total)
            assert residual.error() < 1e-4, (level, layer)
            close(residual.sum(), total)


def test_components_are_what_they_are_called(model, tokens):
    """Labels, order and vectors against the plain cache; everything derived against the vectors."""
    cache = reference.full_cache(model, tokens)
    directions = torch.randn(4, 9, 32, generator=torch.Generator().manual_seed(0))
    for level in LEVELS:
        residual = decompose(model, cache, level=level)
        expected = reference.vectors(model, cache, level)
        assert residual.labels == list(expected)
        assert len(residual) == len(expected)
        dense = torch.stack(list(expected.values()), dim=2)
        close(residual.vectors(), dense)
        close(residual.project(directions), torch.einsum("bpcd,bpd->bpc", dense, directions))
        close(residual.project(directions[:1, :1]), dense @ directions[0, 0], atol=1e-4)
        close(residual.square_norms(), dense.square().sum(-1))
        kept = residual.kept_by(Norm("layer", 1e-5))
        plain = dense - dense.mean(-1, keepdim=True)
        close(kept.vectors(), plain)
        close(kept.total, residual.total - residual.total.mean(-1, keepdim=True))
        close(kept.square_norms(), plain.square().sum(-1))
        assert torch.equal(residual.kept_by(Norm("rms", 1e-5)).total, residual.total)
        assert residual.where == "final"


def test_projections_on_a_direction_are_named_and_beside_chance(model, tokens):
    cache = reference.full_cache(model, tokens)
    vector = np.random.default_rng(0).normal(size=32)
    for level in LEVELS:
        expected = reference.vectors(model, cache, level)
        found = decompose(model, cache, level=level, positions=[2, -1]).along(vector)
        assert found.projection.dims == ("prompt", "pos", "component")
        assert found.pos.values.tolist() == [2, 8]
        for label, x in list(expected.items())[::7]:
            x = x[:, [2, 8]].double().detach().numpy()
            one = found.sel(component=label)
            np.testing.assert_allclose(one.projection, x @ vector, atol=1e-4)
            chance = np.linalg.norm(x, axis=-1) * np.linalg.norm(vector) / 32**0.5
            np.testing.assert_allclose(one.projection_chance, chance, rtol=1e-4, atol=1e-6)
        total = reference.final_stream(model, cache)[:, [2, 8]].double().detach().numpy()
        np.testing.assert_allclose(found.projection.sum("component"), total @ vector, atol=1e-3)
    rows = table(found, 3).frame
    largest = np.abs(found.projection.mean(["prompt", "pos"])).sortby(lambda x: -x)
    assert rows.component.tolist() == largest.component.values[:3].tolist()


@pytest.mark.parametrize(
    "wrong", [torch.ones(31), torch.ones(2, 32), torch.full((32,), torch.nan), "north"]
)
def test_a_direction_is_one_finite_vector_as_wide_as_the_stream(model, tokens, wrong):
    residual = decompose(model, reference.full_cache(model, tokens))
    with pytest.raises(ValueError, match=r"direction=.* wanted one finite vector of width 32"):
        residual.along(wrong)


def test_at_a_layer_only_what_came_before_it(model, tokens):
    cache = reference.full_cache(model, tokens)
    residual = decompose(model, cache, level="head", layer=2)
    assert residual.labels == list(reference.vectors(model, cache, "head", layers=2))
    assert residual.where == "2.resid_pre"


@pytest.mark.parametrize("level", LEVELS)
def test_positions(kind, backend, tokens, level):
    model = kind("gpt2", backend)
    cache = cache_for(model, tokens, level=level)
    everything = decompose(model, cache, level=level)
    for position, chosen in [
        (-1, [8]),
        (0, [0]),
        ([3, -2], [3, 7]),
        ((5,), [5]),
        ([3, 1], [3, 1]),
    ]:
        some = decompose(model, cache, level=level, positions=position)
        assert some.positions == tuple(chosen)
        close(some.vectors(), everything.vectors()[:, chosen])
        close(some.total, everything.total[:, chosen])
        close(everything.at(position).vectors(), some.vectors())
        assert everything.at(position).positions == tuple(chosen)
    inner = decompose(model, cache, level=level, positions=[2, 5, 7]).at(-1)
    assert inner.positions == (7,)
    close(inner.vectors(), everything.vectors()[:, [7]])
    assert everything.at(None) is everything


def test_less_takes_stand_ins_off(kind, backend, tokens):
    model = kind("parallel", backend)
    residual = decompose(model, cache_for(model, tokens, level="neuron"), level="neuron")
    order = [1, 2, 3, 0]
    swapped = residual.less(lambda _site, x: x[order])
    close(swapped.vectors(), residual.vectors() - residual.vectors()[order])
    assert torch.equal(swapped.total, residual.total)
    seen = []
    residual.less(lambda site, x: seen.append((site.label, x.shape)) or x)
    assert ("1.z", (4, 9, 4, 8)) in seen
    assert ("1.post", (4, 9, 64)) in seen


def test_components_of_any_kinds_and_orders(model, tokens):
    """Each vector belongs to its own label, in whatever order they were asked for."""
    cache = reference.full_cache(model, tokens)
    neurons = [f"L1N{n}" for n in reversed(range(model.cfg.d_mlp))]
    labels = ["L2H3", "0.mlp", "L2H1", "embed", *neurons, "2.b_O", "1.attn", "L2N7", "0.b_out"]
    found = components(model, cache, labels)
    assert sorted(found.labels) == sorted(labels)
    vectors = found.vectors()
    expected = {
        label: vector
        for level in LEVELS
        for label, vector in reference.vectors(model, cache, level).items()
    }
    for i, label in enumerate(found.labels):
        close(vectors[:, :, i], expected[label], msg=label)
    assert found.level == "selected"


def test_a_cache_for_a_level_holds_what_that_and_coarser_ones_need_and_no_more(model, tokens):
    for level in LEVELS:
        cache = cache_for(model, tokens, level=level)
        names = [*needed(model, level=level), "tokens", "attention_mask"]
        names += needed(model, level="component")
        assert set(names) <= set(cache.keys())
        # The bridge caches the same tensors under other names too.
        assert {v.data_ptr() for v in cache.values()} == {cache[n].data_ptr() for n in names}
        assert torch.equal(cache["tokens"], tokens)
        assert decompose(model, cache, level=level).error() < 1e-4


def test_a_cache_without_batch_dimension(kind, backend, tokens):
    model = kind("gpt2", backend)
    whole = reference.full_cache(model, tokens[:1])
    expected = decompose(model, whole, level="head").vectors()
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens[:1], remove_batch_dim=True)
    assert not cache.has_batch_dim
    close(decompose(model, cache, level="head").vectors(), expected)
    residual = decompose(model, dict(whole.items()), level="head")  # any mapping serves
    close(residual.vectors(), expected)


def test_missing_entries_say_which_names_filter_is_needed(kind, tokens):
    model = kind()
    cache = cache_for(model, tokens, level="head")
    with pytest.raises(ValueError) as caught:
        decompose(model, cache, level="neuron")
    text = str(caught.value)
    assert "cache lacks blocks.0.mlp.hook_post" in text
    assert "3 of the 8 entries" in text
    assert "names_filter=needed(model, level='neuron')" in text
    assert "cache_for(model, tokens, level='neuron')" in text
    del cache.cache_dict["blocks.1.hook_attn_out"]
    with pytest.raises(ValueError, match=r"cache lacks blocks\.1\.hook_attn_out \(1 of the 2"):
        components(model, cache, ["1.attn"])


@pytest.mark.parametrize("level", LEVELS)
def test_needed_names_are_enough(kind, backend, tokens, level):
    model = kind("gpt2", backend, "raw")
    for layer in (0, 2, None):
        names = needed(model, level=level, layer=layer)
        assert len(set(names)) == len(names)
        with torch.no_grad():
            _, cache = model.run_with_cache(tokens, names_filter=names)
        assert decompose(model, cache, level=level, layer=layer).error() < 1e-4


def test_bad_arguments(kind, tokens):
    model = kind()
    cache = cache_for(model, tokens)
    with pytest.raises(
        ValueError, match=r"level='heads'; wanted one of 'component', 'head', 'neuron'"
    ):
        unchecked(decompose)(model, cache, level="heads")
    with pytest.raises(ValueError, match="level='x'"):
        unchecked(needed)(model, level="x")
    for layer in (4, -1):
        with pytest.raises(ValueError, match=rf"layer={layer}; wanted 0 to 3"):
            decompose(model, cache, layer=layer)
    for position in (9, -10, [0, 9], [1, -8], []):
        with pytest.raises(ValueError, match=r"wanted .* from -9 to 8"):
            decompose(model, cache, positions=position)
    for position in (1.5, [0, "a"], True, [0, 1.0]):
        with pytest.raises(ValueError, match=r"positions=.*; wanted integers from -9 to 8, each"):
            unchecked(decompose)(model, cache, positions=position)
    for site in ("3.mlp", "L0H4", "L0N64", "pos_embed", "1.resid_pre", "L0H1.q", "1.z", "bias"):
        with pytest.raises(ValueError, match=r"is not a component of this model[^;]*; wanted e"):
            components(model, cache, [site])


def test_nan_in_the_stream_is_refused(kind, tokens):
    model = kind()
    cache = dict(cache_for(model, tokens).items())
    cache["blocks.2.hook_resid_post"] = cache["blocks.2.hook_resid_post"].clone()
    cache["blocks.2.hook_resid_post"][1, 2, 3] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity in the residual stream"):
        decompose(model, cache)
    assert decompose(model, cache, positions=1).error() < 1e-4  # elsewhere it is sound


def test_vectors_that_would_fill_the_memory_are_refused(kind, tokens, monkeypatch):
    model = kind()
    residual = decompose(model, cache_for(model, tokens, level="neuron"), level="neuron")
    monkeypatch.setattr(stream, "_MAX_DENSE", residual.total.numel() * len(residual) - 1)
    with pytest.raises(ValueError, match=r"vectors of 211 components at \(4, 9\) positions"):
        residual.vectors()
    monkeypatch.setattr(stream, "_MAX_DENSE", residual.total.numel() * len(residual))
    residual.vectors()


def test_inputs_are_not_changed(kind, backend, tokens):
    model = kind("parallel", backend)
    cache = reference.full_cache(model, tokens)
    before = {name: value.clone() for name, value in cache.items()}
    residual = decompose(model, cache, level="neuron")
    residual.kept_by(Norm("layer", 1e-5)).less(lambda _s, x: 0 * x).square_norms()
    residual.sum()
    for name, value in cache.items():
        assert torch.equal(value.nan_to_num(), before[name].nan_to_num()), name


def test_no_gradient_reaches_the_parameters(kind, tokens):
    model = kind()
    cache = {
        k: v.requires_grad_()
        for k, v in cache_for(model, tokens, level="neuron").items()
        if v.is_floating_point()
    }
    residual = decompose(model, cache, level="neuron")
    assert not residual.total.requires_grad
    assert not residual.vectors().requires_grad


def test_the_repr_says_what_it_is(kind, tokens):
    model = kind()
    text = repr(decompose(model, cache_for(model, tokens, level="neuron"), level="neuron"))
    assert "final stream, level='neuron'" in text
    assert "4 prompt(s) x 9 position(s) x d_model 32" in text
    assert "211 components: " in text
    for count in ("1 embed", "12 head", "192 neuron", "6 bias"):
        assert count in text
    assert "embed, L0H0, L0H1, L0H2, …, L2N62, L2N63, 2.b_out" in text


@pytest.mark.parametrize("first", [0, 1])
def test_norms_are_the_naive_ones(model, tokens, first):
    tokens[1, 4] = 0  # BOS between texts
    cache = reference.full_cache(model, tokens)
    found = norms(model, tokens, first=first, batch_size=3)
    counted = reference.counted(tokens, first)
    others = [[pos for pos in range(9) if pos not in places] for places in counted]

    def row_of(vector):
        norm = vector.norm(dim=-1)
        sizes, rest = (
            np.array([float(norm[n, pos]) for n, places in enumerate(chosen) for pos in places])
            for chosen in (counted, others)
        )
        rest = rest.mean() if len(rest) else np.nan
        return [*np.quantile(sizes, [0.25, 0.5, 0.75]), sizes.mean(), rest]

    expected = reference.vectors(model, cache)
    assert list(found.component.values) == list(expected)
    for label, vector in expected.items():
        row = row_of(vector)
        np.testing.assert_allclose(found.norm.sel(component=label), row, rtol=1e-4, err_msg=label)
    streams = [cache[f"blocks.{layer}.hook_resid_pre"] for layer in range(3)]
    for layer, stream_ in enumerate([*streams, reference.final_stream(model, cache)]):
        row = row_of(stream_)
        np.testing.assert_allclose(found.resid_norm.sel(resid_layer=layer), row, rtol=1e-4)
    assert list(found.stat.values) == ["q25", "median", "q75", "mean", "first"]
    assert found.norm.attrs["unit"] == found.attrs["unit"] == "L2 norm"
    assert found.attrs["data"] == "4 x 9 tokens"


def test_norms_do_not_depend_on_the_batch_size(kind, tokens):
    model = kind("parallel")
    a, b = (norms(model, tokens, batch_size=size) for size in (1, 16))
    np.testing.assert_allclose(a.norm, b.norm, rtol=1e-5)
    np.testing.assert_allclose(a.resid_norm, b.resid_norm, rtol=1e-5)


def test_norms_want_tokens(kind):
    with pytest.raises(ValueError, match="is empty"):
        norms(kind(), torch.zeros(0, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"batch_size=0; wanted at least 1"):
        norms(kind(), torch.zeros(2, 3, dtype=torch.long), batch_size=0)


def test_norms_of_bad_weights_are_refused(backend, tokens):
    model = load_model(random_neox(layers=2), tokenizer=tiny_tokenizer(), backend=backend)
    model.blocks[1].mlp.W_out.data[3, 5] = torch.nan
    with pytest.raises(ValueError, match=r"NaN or infinity.*check_model\(model\)"):
        norms(model, tokens)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (torch.zeros(1, 5, 1).long(), r"tokens=\(1, 5, 1\); wanted a Corpus, texts, or an integer"),
        ("nano", "tokens='nano' is the name of a corpus"),
        (torch.zeros(2, 3), r"tokens=\(2, 3\); wanted a Corpus, texts, or an integer tensor"),
        (torch.zeros(2, 0, dtype=torch.long), r"tokens=\(2, 0\) is empty"),
        (None, "tokens=NoneType; wanted"),
        (
            Contrast(
                torch.tensor([[1, 2]]), torch.tensor([[1, 3]]), torch.tensor([4]), torch.tensor([5])
            ),
            "tokens=Contrast has two sides; wanted its clean_tokens",
        ),
    ],
)
def test_tokens_that_cannot_be_run(kind, given, text):
    model = kind()
    with pytest.raises(ValueError, match=text):
        unchecked(cache_for)(model, given)
    if not isinstance(given, Contrast | str):
        with pytest.raises(ValueError, match=text):
            unchecked(Weights.checked)(Weights.of(model), given)


def test_weights_of_components_are_read_from_the_right_layer(kind, backend):
    """A guard for the reference itself: no two layers share their matrices."""
    weights = Weights.of(kind("parallel", backend))
    assert not torch.equal(weights.block(0).W_out, weights.block(1).W_out)
