"""Latents exchanged between two runs, one by one and all at once by a gradient."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from contrasts import contrast_of

import mlp_interp as mi
from mlp_interp import latents, residual
from mlp_interp.dictionaries import Dictionary, TopK
from mlp_interp.models import Weights

LAYER = 1


def some(model: Any, reads: str = "mlp_out", writes: str = "mlp_out", **options: Any) -> Dictionary:
    """A random dictionary of a model."""
    d, g = Weights.of(model).d_model, torch.Generator().manual_seed(3)
    W_enc, W_dec = torch.randn(d, 24, generator=g), torch.randn(24, d, generator=g)
    biases = torch.randn(24, generator=g) * 0.1, torch.randn(d, generator=g)
    W_skip = torch.randn(d, d, generator=g) * 0.1
    options = {"layer": LAYER, "W_skip": W_skip, **options}
    return Dictionary(
        W_enc, biases[0], W_dec * 0.2, biases[1], TopK(5), reads=reads, writes=writes, **options
    )


@pytest.fixture(scope="module")
def nano() -> Any:
    return mi.load_model("nano")


PLACES = [("mlp_in", "mlp_out"), ("attn_out", "attn_out")]


def parts(model: Any, one: Dictionary, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each component of a dictionary writes, from the latents in a run."""
    run = mi.run(model, tokens)
    found = latents.activations(run, one)
    written = run[one.site.hook_name]
    values = found.dense()
    each = {f"L{one.layer}F{n}": values[..., n, None] * one.W_dec[n] for n in range(one.n_latents)}
    rest = {"skip": found.skipped, "error": written - one.decode(found)}
    return each | {f"{one.layer}.{name}": x for name, x in rest.items() if x is not None}


@pytest.mark.parametrize(("reads", "writes"), PLACES)
def test_patches_are_those_of_plain_hooks(some_model: Any, reads: str, writes: str) -> None:
    """One forward pass for each component; all of them together are the place."""
    one, contrast = some(some_model, reads, writes), contrast_of(2, 7)
    few = None
    engines: Any = (("denoising", "auto"), ("noising", "hooks"))
    for direction, engine in engines:
        options: Any = {"direction": direction, "positions": [2, 4]}
        found = latents.patch(some_model, contrast, [one], latents=few, engine=engine, **options)
        sides = [contrast.clean_tokens, contrast.corrupted_tokens]
        base, source = reversed(sides) if direction == "denoising" else sides
        taken, own = (parts(some_model, one, tokens) for tokens in (source, base))
        components = found.component.values.tolist()
        assert components[-2:] == [f"{LAYER}.skip", f"{LAYER}.error"]
        moving = [name for name in taken if bool((taken[name] != own[name]).any())]
        assert set(components) == set(few or moving)
        few = [components[0], *components[-2:]]
        for label in few:
            for n, position in enumerate((2, 4)):
                change = torch.zeros_like(own[label])
                change[:, position] = (taken[label] - own[label])[:, position]
                hook = (one.site.hook_name, lambda x, hook, change=change: x + change)
                with torch.no_grad():
                    logits = some_model.run_with_hooks(base, fwd_hooks=[hook])[:, -1]
                rows = torch.arange(len(base))
                wanted = logits[rows, contrast.answers] - logits[rows, contrast.foils]
                mine = found.raw.sel(component=label)[n]
                np.testing.assert_allclose(mine, wanted, atol=2e-4, rtol=1e-4)
        whole = mi.patch(some_model, contrast, sites=[writes], layers=[LAYER], **options)
        np.testing.assert_allclose(found.whole[0], whole.raw[0, 0], atol=2e-4, rtol=1e-4)
        assert float(found.check_everything) < 1e-3
        assert float(found.check_nothing) < 1e-3


def test_estimates_are_those_of_autograd(some_model: Any) -> None:
    """Change times gradient; of all components together, that of the place."""
    reads, writes = PLACES[0]
    one, contrast = some(some_model, reads, writes), contrast_of(2, 7)
    leaves: list[torch.Tensor] = []

    def keep(x: torch.Tensor, hook: Any) -> torch.Tensor:
        leaves.append(x.detach().requires_grad_())
        return leaves[-1]

    rows = torch.arange(2)
    logits = some_model.run_with_hooks(
        contrast.corrupted_tokens, fwd_hooks=[(one.site.hook_name, keep)]
    )[:, -1]
    value = (logits[rows, contrast.answers] - logits[rows, contrast.foils]).sum()
    (gradient,) = torch.autograd.grad(value, leaves)
    taken, own = (
        parts(some_model, one, side) for side in (contrast.clean_tokens, contrast.corrupted_tokens)
    )
    found = latents.attribution_patch(some_model, contrast, [one], positions="each")
    for label in found.component.values:
        wanted = ((taken[label] - own[label]) * gradient).sum(-1).T
        mine = found.estimate.sel(component=label)
        np.testing.assert_allclose(mine, wanted, atol=2e-4, rtol=1e-3)
    np.testing.assert_allclose(found.estimate.sum("component"), found.whole[0], atol=1e-3)
    engines: Any = (("auto", 1), ("hooks", 3))
    for engine, steps in engines:
        place = mi.attribution_patch(some_model, contrast, sites=[writes], steps=steps)[writes]
        found = latents.attribution_patch(some_model, contrast, [one], steps=steps, engine=engine)
        wanted = place.sel(layer=LAYER).sum("pos")
        np.testing.assert_allclose(found.whole[0], wanted, atol=1e-3, rtol=1e-4)
        np.testing.assert_allclose(found.estimate.sum("component"), wanted, atol=1e-3, rtol=1e-4)


def test_all_latents_and_the_error_are_the_place(nano: Any) -> None:
    """Of several layers and lengths, as each pair by itself."""
    task = mi.Contrast.of(
        nano,
        ["The capital of France is", "My friend says that the capital of Sweden is"],
        ["The capital of Italy is", "My friend says that the capital of Norway is"],
        [" Paris", " Stockholm"],
        [" Rome", " Oslo"],
    )
    assert task.lengths is not None
    both = [some(nano, "mlp_in"), some(nano, "resid_post", "resid_post", layer=3)]
    estimates = latents.attribution_patch(nano, task, both, positions="each")
    summed = latents.attribution_patch(nano, task, both, memory=1.0)
    np.testing.assert_allclose(estimates.estimate.sum("pos"), summed.estimate, atol=1e-4)
    first = {"component": estimates.layer == LAYER}
    gap = estimates.estimate[first].sum("component") - estimates.whole[0]
    assert float(abs(gap).max()) < 1e-3
    assert bool(estimates.estimate[:, -1, 0].isnull().all())
    found = latents.patch(nano, task, both, latents=["L1F3", "3.error", "1.error"])
    assert found.component.values.tolist() == ["L1F3", "3.error", "1.error"]
    assert found.kind.values.tolist() == ["latent", "error", "error"]
    assert found.place.values.tolist() == ["1.mlp", "3.resid_post"]
    for n in range(2):
        alone = latents.patch(nano, task[[n]], both, latents=["L1F3", "3.error", "1.error"])
        np.testing.assert_allclose(found.raw[:, n], alone.raw[:, 0], atol=1e-4)
    np.testing.assert_allclose(found.whole.sel(place="3.resid_post"), found.clean, atol=1e-3)


def test_one_dictionary_is_as_good_as_a_list(nano: Any) -> None:
    task, one = mi.prompts.facts(nano, n=2, seed=0), some(nano)
    cache = mi.cache_for(nano, task.clean_tokens, dictionaries=one)
    for ask in (
        lambda given: latents.patch(nano, task, given, latents=[3, "1.error"]),
        lambda given: latents.attribution_patch(nano, task, given),
        lambda given: latents.replace(nano, given, task.clean_tokens),
        lambda given: mi.attribute_logits(nano, cache, task, dictionaries=given),
    ):
        xr.testing.assert_identical(ask(one), ask([one]))
    alone = mi.decompose(nano, cache, dictionaries=one)
    assert "1.error" in [site.label for site in alone.sites]
    assert alone.sites == mi.decompose(nano, cache, dictionaries=[one]).sites
    needed = residual.needed
    assert needed(nano, dictionaries=one) == needed(nano, dictionaries=[one])


def test_a_latent_that_is_the_same_in_both_runs_changes_nothing(nano: Any) -> None:
    task, one = mi.prompts.facts(nano, n=2, seed=0), some(nano)
    moving = latents.attribution_patch(nano, task, [one]).component.values
    idle = next(n for n in range(24) if f"L1F{n}" not in moving)
    found = latents.patch(nano, task, [one], latents=[idle, "1.error"])
    np.testing.assert_array_equal(found.raw[0], found.corrupted)
    assert found.changed.values.tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize(
    ("given", "options", "text"),
    [
        ([], {}, r"dictionaries=\[\]; wanted a list"),
        (3, {}, "dictionaries=3; wanted a list of one or more, or a Dictionary"),
        ("a path", {}, r"dictionaries\[0\]='a path'; wanted a Dictionary"),
        ([0, 0], {}, "has 2 of layer 1; wanted one, for latents"),
        ([0], {"latents": ["L2F3"]}, "latents='L2F3' of"),
        ([0], {"latents": ["L1F24"]}, "latents=24"),
        ([0], {"latents": ["1.latents"]}, "latents='1.latents' of"),
        ([2], {"latents": ["1.skip"]}, "latents='1.skip' of .* has no W_skip"),
        ([0], {"latents": []}, r"latents=\[\]; wanted at least one"),
        ([0], {"positions": "some"}, "positions='some'; wanted"),
        ([0, 1], {"latents": [3]}, "latents=3 of 2 dictionaries; wanted labels, 'L1F0', say"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_patches_of_latents_that_are_refused(
    nano: Any, given: Any, options: Any, text: str
) -> None:
    task, three = (
        mi.prompts.facts(nano, n=1, seed=0),
        [some(nano), some(nano, layer=2), some(nano, W_skip=None)],
    )
    chosen: Any = [three[n] for n in given] if isinstance(given, list) else given
    with pytest.raises(ValueError, match=text):
        latents.patch(nano, task, chosen, **options)
    if not set(options) & {"latents"}:
        with pytest.raises(ValueError, match=text):
            latents.attribution_patch(nano, task, chosen, **options)


@pytest.mark.parametrize("reads", ["mlp_in", "mlp_normalized", "resid_post"])
def test_virtual_weights_are_what_a_write_moves(some_model: Any, reads: str) -> None:
    """Slow reference: what a small write into the stream does before the rule, scale held."""
    weights = Weights.of(some_model)
    writes = "mlp_out" if reads != "resid_post" else "resid_post"
    writer, reader = some(some_model, layer=0), some(some_model, reads, writes, layer=2)
    found = latents.virtual_weights(some_model, writer, reader, k=24, best=3)
    rows = writer.W_dec.double()
    if reads == "resid_post":
        moved = rows
    else:  # a norm that divides by 1
        centred = rows - rows.mean(-1, keepdim=True) * (weights.norm.kind == "layer")
        moved = centred * (weights.block(2).ln2.w.double() if reads == "mlp_in" else 1.0)
    wanted = moved @ reader.W_enc.double()
    mine = np.take_along_axis(wanted.numpy(), found.column.values, 1)
    np.testing.assert_allclose(found.value, mine, atol=1e-4, rtol=1e-4)
    assert str(found.row_text[3].values) == "L0F3"
    assert str(found.best_column_text[0].values).startswith("L2F")


def test_virtual_weights_to_tokens_and_from_neurons(nano: Any) -> None:
    one, read = some(nano, "mlp_in", layer=2), mi.Unembed.of(nano)
    found = latents.virtual_weights(nano, one, "unembed", k=4, best=3)
    logits = read.norm.keep(one.W_dec) @ read.weight
    wanted = (logits - logits.mean(-1, keepdim=True)).topk(4).values
    np.testing.assert_allclose(found.value, wanted, atol=1e-3, rtol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same = latents.virtual_weights(nano, one, "unembed", k=4, best=3)
    np.testing.assert_array_equal(same.value, found.value)
    assert "L1N" in str(latents.virtual_weights(nano, "L1", one, k=2, best=2).row_text[0].values)
    for writer, reader, text in (
        (one, "L2", "wanted a later one"),
        ("L0", some(nano, "resid_post", "resid_post", layer=2), "wanted a dictionary, or"),
        (some(nano, layer=0), some(nano, layer=2), "reads what a module writes"),
        (some(nano, layer=0, W_skip=None, normalize="layer_norm"), "unembed", "depends on text"),
    ):
        with pytest.raises(ValueError, match=text):
            latents.virtual_weights(nano, writer, reader)
