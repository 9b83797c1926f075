"""Edits that are held on a model: the same as a runner's, in force everywhere, gone afterwards."""

import warnings
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from random_models import assert_same_state, state_of, unchecked

from mlp_interp.edits import Edit
from mlp_interp.edits.edit import EDITABLE
from mlp_interp.runs import Runner
from mlp_interp.sites import Site
from mlp_interp.steering import (
    GenerationOptions,
    add,
    generate_compare,
    hold,
    output_direction,
    project_out,
    random_direction,
    scale,
    steer,
)

STEERING = torch.linspace(-8, 8, 32)


def site_of(name: str) -> Site:
    return Site(name) if name == "embed" else Site(name, 1)


def log_probs(logits: torch.Tensor) -> torch.Tensor:
    return logits.detach().double().log_softmax(-1)


def by_runner(model: Any, tokens: torch.Tensor, edits: Any) -> torch.Tensor:
    runner = Runner.of(model)
    return log_probs(runner.run(tokens, edits=edits).logits())


def generated(model: Any, prompt: torch.Tensor, *, cache: bool, new: int = 5) -> torch.Tensor:
    # A tokenizer without a padding token stops HookedTransformer, even where there is no padding.
    padding, model.tokenizer.pad_token = model.tokenizer.pad_token, model.tokenizer.eos_token
    options = {"do_sample": False, "stop_at_eos": False, "verbose": False}
    try:
        return model.generate(prompt, max_new_tokens=new, use_past_kv_cache=cache, **options)
    finally:
        model.tokenizer.pad_token = padding


def without_hooks(model, edits, tokens, way):
    with steer(model, edits):
        model.run_with_cache(tokens)
        if way == "reset_hooks":
            model.reset_hooks()
        else:
            model.hook_dict[Site("mlp_out", 1).hook_name].remove_hooks("fwd")
        return model(tokens)


@pytest.mark.parametrize("way", ["reset_hooks", "remove_hooks"])
def test_edits_taken_off_inside_of_the_block_are_named(kind, backend, tokens, way):
    model, edits = kind("parallel", backend), Edit.set("1.mlp", 0.0)
    before = model(tokens)
    with pytest.warns(UserWarning, match=r"^hooks of the edits at 1.mlp were taken off") as caught:
        after = without_hooks(model, edits, tokens, way)
    assert torch.equal(after, before)
    assert [warning.filename for warning in caught] == [__file__]
    model.reset_hooks()


def test_every_site_as_a_runner_edits_it(some_model, tokens):
    model = some_model
    for name in EDITABLE:
        edits = [Edit.scale(site_of(name), 0.3), Edit.add(site_of(name), 0.5, positions=[-1, 2])]
        before = log_probs(model(tokens))
        with steer(model, edits) as steering:
            found = log_probs(model(tokens))
        assert torch.allclose(found, by_runner(model, tokens, edits), atol=1e-4), name
        assert [fired.times for fired in steering.fired] == [1, 1]
        assert all(fired.changed for fired in steering.fired)
        assert torch.equal(log_probs(model(tokens)), before)


@pytest.mark.parametrize("where", ["all", "prompt", "new"])
def test_generation_as_a_runners(some_model, tokens, where):
    model = some_model
    prompt = tokens[:3, :5]
    plain = generated(model, prompt, cache=True)
    turned = 0
    names = (
        ("k", "pattern", "z", "post", "resid_post") if where == "all" else ("pattern", "mlp_out")
    )
    for name in names:
        edit = Edit.scale(site_of(name), -1.0)
        expected = Runner.of(model).generate(
            prompt, edits=[edit], where=where, max_new_tokens=5, eos=None
        )
        for cache in (True, False):
            with steer(model, edit, where=where) as steering:
                found = generated(model, prompt, cache=cache)
            assert torch.equal(found, expected.tokens), (name, cache)
            (fired,), (wanted,) = steering.fired, expected.fired
            if cache:
                assert fired == wanted
        turned += not torch.equal(expected.tokens, plain)
    assert turned  # else the edits are too weak to test anything
    assert torch.equal(generated(model, prompt, cache=True), plain)


def test_positions_of_a_generation_count_in_the_whole_text(model, tokens):
    """Also of a prompt of one token, after which a pass over one position goes on."""
    for length in (1, 5):
        prompt = tokens[:3, :length]
        edits = [
            Edit.add("1.resid_post", STEERING, positions=[-1, length + 1]),
            Edit.set("L2H1", 3.0, positions=[length]),
        ]
        expected = Runner.of(model).generate(prompt, edits=edits, max_new_tokens=4, eos=None)
        for cache in (True, False):
            with steer(model, edits):
                found = generated(model, prompt, cache=cache, new=4)
            assert torch.equal(found, expected.tokens), (length, cache)


def test_a_first_new_token_is_the_models_own(kind, tokens):
    model, prompt = kind(), tokens[:, :5]
    plain = generated(model, prompt, cache=True)
    with steer(model, Edit.set("2.resid_post", STEERING), where="new"):
        found = generated(model, prompt, cache=True)
    assert torch.equal(found[:, :6], plain[:, :6])
    assert not torch.equal(found[:, 6:], plain[:, 6:])


def test_a_generation_passes_the_embedding_or_says_so(kind, backend, tokens):
    model, prompt = kind("parallel", backend), tokens[:, :5]
    edits = [Edit.add("embed", STEERING, positions=[1, 6])]
    if backend == "hooked":
        with (
            pytest.raises(ValueError, match="generate does not pass through its hook at 'embed'"),
            steer(model, edits),
        ):
            generated(model, prompt, cache=True)
        return
    expected = Runner.of(model).generate(prompt, edits=edits, max_new_tokens=4, eos=None)
    for cache in (True, False):
        with steer(model, edits):
            assert torch.equal(generated(model, prompt, cache=cache, new=4), expected.tokens)


def test_hugging_faces_own_generation(kind, tokens):
    model, prompt = kind("parallel", "bridge"), tokens[:, :5]
    edits = [Edit.add("1.resid_post", STEERING)]
    for where in ("all", "new", "prompt"):
        expected = Runner.of(model).generate(
            prompt, edits=edits, where=where, max_new_tokens=4, eos=None
        )
        with steer(model, edits, where=where):
            found = model.hf_generate(
                prompt, max_new_tokens=4, do_sample=False, stop_at_eos=False, eos_token_id=None
            )
        assert torch.equal(torch.as_tensor(found), expected.tokens), where


def test_generations_and_passes_of_several_lengths_in_one_block(kind, tokens):
    model = kind()
    edit = Edit.add("1.resid_post", STEERING, positions=[-1])
    prompts = tokens[:, :5], tokens[:2, :3]
    runner = Runner.of(model)
    texts = [
        runner.generate(prompt, edits=[edit], max_new_tokens=3, eos=None).tokens
        for prompt in prompts
    ]
    passes = [by_runner(model, prompt, [edit]) for prompt in prompts]
    with steer(model, edit) as steering:
        for prompt, text, logits in zip(prompts, texts, passes, strict=True):
            assert torch.equal(generated(model, prompt, cache=True, new=3), text)
            assert torch.allclose(log_probs(model(prompt)), logits, atol=1e-4)
    assert steering.fired[0].times == 4


def test_caches_and_hooks_see_the_edited_model(kind, backend, tokens):
    model = kind("parallel", backend)
    edit = Edit.add("1.resid_post", STEERING)
    name = edit.site.hook_name
    with torch.no_grad():
        _, clean = model.run_with_cache(tokens, names_filter=[name])
        clean = clean[name].clone()
    seen = []
    with steer(model, edit), torch.no_grad():
        logits, cache = model.run_with_cache(tokens, names_filter=[name])
        hooked = model.run_with_hooks(
            tokens, fwd_hooks=[(name, lambda x, hook=None: seen.append(x.clone()))]
        )
        again = model(tokens)
    assert torch.allclose(cache[name], clean + STEERING, atol=1e-5)
    assert torch.allclose(seen[0], clean + STEERING, atol=1e-5)
    assert torch.allclose(log_probs(logits), by_runner(model, tokens, [edit]), atol=1e-4)
    assert torch.equal(hooked, logits)
    assert torch.equal(again, logits)


def test_analyses_inside_see_the_edited_model(kind, backend, tokens):
    """What they edit comes after what is held, also where they start from a middle layer."""
    model = kind("sequential", backend)
    held, theirs = Edit.scale("0.mlp", -1.0), Edit.add("1.resid_pre", STEERING)
    expected = by_runner(model, tokens, [held, theirs])
    clean = by_runner(model, tokens, [held])
    with steer(model, held):
        runner = Runner.of(model)
        run = runner.run(tokens)
        inside = log_probs(run.logits())
        edited = log_probs(runner.unembed.logits(runner.edited(run, [theirs])))
    assert torch.allclose(inside, clean, atol=1e-4)
    assert torch.allclose(edited, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("positions", "where"), [([-1], "all"), ([2], "all"), (None, "new"), (None, "prompt")]
)
def test_a_runners_generation_cannot_be_followed(kind, backend, tokens, positions, where):
    model, everywhere = kind("sequential", backend), Edit.add("1.mlp", STEERING)
    edit = Edit.add("1.mlp", STEERING, positions=positions)
    expected = Runner.of(model).generate(tokens, edits=[everywhere], max_new_tokens=3).tokens
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the edits that never fired
        with steer(model, edit, where=where):
            with pytest.raises(ValueError, match=r"'1.mlp' .* is held by steer.* wanted it given"):
                Runner.of(model).generate(tokens, max_new_tokens=3)
            with pytest.raises(ValueError, match="is held by steer"):
                generate_compare(
                    model,
                    tokens,
                    Edit.set("2.mlp", 0.0),
                    generation=GenerationOptions(max_new_tokens=3),
                )
            model(tokens)  # a pass of its own is as ever
    with steer(model, everywhere):
        assert torch.equal(Runner.of(model).generate(tokens, max_new_tokens=3).tokens, expected)


def test_nested_blocks_are_one_list(model, tokens):
    edits = [
        Edit.add("1.resid_post", STEERING),
        Edit.clamp("1.resid_post", high=2.0),
        Edit.scale("1.resid_post", 3.0),
    ]
    with steer(model, edits[:1]), steer(model, edits[1:2]) as middle, steer(model, edits[2:]):
        nested = log_probs(model(tokens))
        text = generated(model, tokens[:, :5], cache=True)
    assert middle.fired[0].times == 1 + 5
    with steer(model, edits):
        assert torch.equal(log_probs(model(tokens)), nested)
        assert torch.equal(generated(model, tokens[:, :5], cache=True), text)
    assert torch.allclose(nested, by_runner(model, tokens, edits), atol=1e-4)
    with steer(model, edits[::-1]):
        assert not torch.allclose(log_probs(model(tokens)), nested, atol=1e-2)


def test_an_inner_block_ends_and_the_outer_one_goes_on(kind, tokens):
    model, outer = kind(), Edit.add("1.resid_post", STEERING)
    with steer(model, outer):
        before = log_probs(model(tokens))
        with steer(model, Edit.set("2.mlp", 0.0)):
            assert not torch.equal(log_probs(model(tokens)), before)
        assert torch.equal(log_probs(model(tokens)), before)


class Stopped(Exception):
    pass


def test_nothing_is_left(model, tokens):
    generated(model, tokens[:, :3], cache=True)  # the library notes things on the model itself
    state, own, before = state_of(model), dict(vars(model)), log_probs(model(tokens))
    edits = [Edit.set(site_of(name), 0.1) for name in EDITABLE]

    def blocks():
        with steer(model, edits[1:]), steer(model, edits[:1]):
            model(tokens)
            yield
            generated(model, tokens[:, :3], cache=False)  # raises on one class for embed
            raise Stopped

    for stop in (False, True):
        block = blocks()
        next(block)
        with pytest.raises((Stopped, ValueError) if stop else Stopped):
            next(block) if stop else block.throw(Stopped())
        assert_same_state(state, state_of(model))
        assert vars(model).keys() == own.keys()
        assert all(vars(model)[name] is own[name] for name in own if callable(own[name]))
        assert vars(model).get("context_level") == own.get("context_level")
        assert torch.equal(log_probs(model(tokens)), before)


def test_an_edit_that_does_not_fit_leaves_nothing(model, tokens):
    state, before = state_of(model), log_probs(model(tokens))
    with (
        pytest.raises(ValueError, match=r"positions=\(20,\) at '1.mlp'; wanted integers from -9"),
        steer(model, Edit.set("1.mlp", 0.0, positions=20)),
    ):
        model(tokens)
    with (
        pytest.raises(ValueError, match=r"value of shape \(5,\)"),
        steer(model, Edit.set("1.mlp", torch.ones(5))),
    ):
        generated(model, tokens, cache=True)
    assert_same_state(state, state_of(model))
    assert torch.equal(log_probs(model(tokens)), before)


def test_a_method_of_the_users_own_comes_back(kind, tokens, monkeypatch):
    model = kind()
    mine = lambda *args, **kwargs: "mine"
    monkeypatch.setitem(vars(model), "generate", mine)
    with pytest.warns(UserWarning, match="never fired"), steer(model, Edit.set("1.mlp", 0.0)):
        assert model.generate() == "mine"
    assert vars(model)["generate"] is mine


def test_gradients_pass(kind, backend, tokens):
    model = kind("parallel", backend)
    edit = Edit.project_out("1.resid_post", STEERING)
    found = {}

    def keep(x, hook=None):
        found["x"] = x
        x.retain_grad()

    with torch.no_grad(), steer(model, edit):
        generated(model, tokens[:, :3], cache=True)  # under inference mode
    with steer(model, edit):
        hooks = [(Site("resid_pre", 1).hook_name, keep)]
        logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
        logits[:, -1].sum().backward()
    assert bool(found["x"].grad.abs().sum() > 0)
    model.zero_grad(set_to_none=True)


def test_an_edit_that_never_fires_warns_by_name(kind, tokens):
    model = kind()
    edits = [Edit.set("1.mlp", 0.0), Edit.set("L2H1", 0.0, positions=[12])]
    with (
        pytest.warns(UserWarning, match="^edits at L2H1 never fired in this block") as caught,
        steer(model, edits) as steering,
    ):
        generated(model, tokens[:, :5], cache=True, new=4)
    assert caught[0].filename == __file__
    assert [fired.times for fired in steering.fired] == [4, 0]
    with pytest.warns(UserWarning, match="never fired"), steer(model, edits[:1], where="new"):
        model(tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Stopped), steer(model, edits):
            raise Stopped


def test_no_edits_are_fine(kind, tokens):
    model = kind()
    before = model(tokens)
    with steer(model, []) as steering:
        assert torch.equal(model(tokens), before)
    assert steering.fired == ()


@pytest.mark.parametrize(
    ("edits", "where", "message"),
    [
        ([Edit.set("3.mlp", 0.0)], "all", "edits at 3.mlp never fire; wanted layers 0 to 2"),
        ([Edit.set("1.mlp", 0.0)], "old", "where='old'; wanted 'all', 'prompt' or 'new'"),
        (["1.mlp"], "all", r"edits\[0\]='1.mlp'; wanted an Edit"),
    ],
)
def test_steer_refuses(kind, edits, where, message):
    hold_on = contextmanager(unchecked(steer))
    with pytest.raises(ValueError, match=message), hold_on(kind(), edits, where=where):
        pass


@pytest.mark.parametrize("name", ["hook_mlp_in", "hook_attn_in", "attn.hook_result"])
def test_places_that_hooks_may_pass_by_cannot_be_edited(name):
    short = name.split("hook_")[1]
    with pytest.raises(ValueError, match="is not a component label"):
        Edit.set(f"1.{short}", 0.0)


def test_streams_of_tokens_are_refused(kind, backend, tokens):
    model = kind("parallel", backend)
    with (
        pytest.raises(ValueError, match="generate_stream cannot be steered; wanted generate"),
        steer(model, Edit.set("1.mlp", 0.0)),
    ):
        model.generate_stream(tokens, max_new_tokens=2)


# Turning: from directions and labels to edits.


def direction(site: str, model: Any, layers: tuple[int, ...] = (0, 1, 2)) -> xr.DataArray:
    dims = {"z": ("layer", "head", "d_head"), "post": ("layer", "neuron")}
    sizes = {"layer": len(layers), "head": 4, "d_head": 8, "neuron": 64, "d_model": 32}
    names = dims.get(site, ("layer", "d_model"))
    values = np.random.default_rng(5).standard_normal([sizes[name] for name in names])
    coords: dict[str, Any] = {"layer": list(layers)}
    if site == "z":
        coords["head"] = range(4)
    norm = (names[:-1], np.linalg.norm(values, axis=-1))
    attrs = {"site": site, "long_name": "test", "n_layers": 3}
    return xr.DataArray(values, dims=names, coords={**coords, "norm": norm}, attrs=attrs)


@pytest.mark.parametrize("site", ["resid_pre", "mlp_out", "z", "post"])
def test_adding_is_addition(kind, tokens, site):
    model, found = kind(), direction(site, kind())
    vectors = torch.from_numpy(found.values).float()
    for layers in (1, [2, 0]):
        chosen = [layers] if isinstance(layers, int) else layers
        hooks = [
            (
                Site(site, layer).hook_name,
                lambda x, hook=None, layer=layer: torch.cat(
                    [x[:, :3], x[:, 3:4] - 1.5 * vectors[layer], x[:, 4:]], 1
                ),
            )
            for layer in chosen
        ]
        expected = log_probs(model.run_with_hooks(tokens, fwd_hooks=hooks))
        with steer(model, add(found, -1.5, layers=layers, positions=3)):
            assert torch.allclose(log_probs(model(tokens)), expected, atol=1e-5)


@pytest.mark.parametrize("site", ["resid_post", "z", "post"])
def test_projecting_out_leaves_nothing_along_it(kind, tokens, site):
    model, found = kind(), direction(site, kind())
    name = Site(site, 1).hook_name
    with torch.no_grad(), steer(model, project_out(found, layers=1)):
        _, cache = model.run_with_cache(tokens, names_filter=[name])
    along = torch.einsum(
        "bp...d,...d->bp...", cache[name], torch.from_numpy(found.values[1]).float()
    )
    assert float(along.abs().max()) < 1e-4


def test_projecting_out_everywhere(model, tokens):
    """No stream has anything along the direction, also with added positions."""
    found = direction("resid_post", model).sel(layer=1)
    vector = torch.from_numpy(found.values).float()
    with steer(model, project_out(found, everywhere=True)):
        names = [Site("resid_post", layer).hook_name for layer in range(3)]
        with torch.no_grad():
            logits, cache = model.run_with_cache(tokens, names_filter=names)
    for name in names:
        assert float((cache[name] @ vector).abs().max()) < 1e-4
    hooks = [
        (
            Site(name, layer).hook_name,
            lambda x, hook=None: x - (x @ vector)[..., None] * vector / (vector @ vector),
        )
        for name, layer in [("resid_pre", 0)]
        + [(n, i) for i in range(3) for n in ("attn_out", "mlp_out")]
    ]
    expected = model.run_with_hooks(tokens, fwd_hooks=hooks)
    assert torch.allclose(log_probs(logits), log_probs(expected), atol=1e-4)


def test_directions_with_positions_of_their_own(kind, tokens):
    found = direction("resid_pre", kind(), (1,)).expand_dims(pos=2).copy()
    found[1] *= 2
    (edit,) = add(found, 3.0)
    assert edit.positions == (0, 1)
    (elsewhere,) = add(found, 3.0, positions=[4, -1])
    assert elsewhere.positions == (4, -1)
    vectors = torch.from_numpy(found.values).float()[:, 0]
    added = edit.apply(torch.zeros(2, 5, 32))
    assert torch.allclose(added[0, :2], 3 * vectors)
    assert not added[:, 2:].any()


def test_heads_that_were_chosen(kind, tokens):
    found = direction("z", kind()).isel(head=[2, 0])
    x = add(found, layers=1)[0].apply(torch.zeros(1, 1, 4, 8))
    assert torch.allclose(x[0, 0, 2], torch.from_numpy(found.values[1, 0]).float())
    assert torch.allclose(x[0, 0, 0], torch.from_numpy(found.values[1, 1]).float())
    assert not x[:, :, [1, 3]].any()
    one = add(found.sel(head=0), layers=1)[0].apply(torch.zeros(1, 1, 4, 8))
    assert torch.allclose(one[0, 0, 0], x[0, 0, 0])
    assert not one[:, :, 1:].any()


def test_neurons_held_and_components_scaled(kind, tokens):
    model = kind()
    for label, site in (("L1N7", "post"), ("L1N7.pre", "pre")):
        name = Site(site, 1).hook_name
        with torch.no_grad(), steer(model, hold(label, xr.DataArray(2.5))):
            _, cache = model.run_with_cache(tokens, names_filter=[name])
        assert bool((cache[name][..., 7] == 2.5).all())
    for label in ("1.mlp", "0.attn", "L2H1", "L1N7"):
        (edit,) = scale(label, 2.0)
        with steer(model, edit):
            found = log_probs(model(tokens))
        assert torch.allclose(found, by_runner(model, tokens, [edit]), atol=1e-4)


def test_a_neuron_held_high_is_its_value_vector_added(kind, tokens):
    """In the last layer nothing comes after the MLP but the readout."""
    model = kind()
    name = Site("post", 2).hook_name
    _, cache = model.run_with_cache(tokens, names_filter=[name])
    value = output_direction(model, "L2N9")
    with steer(model, [Edit.set("L2N9", cache[name][..., 9:10].detach() + 4.0)]):
        held = log_probs(model(tokens))
    with steer(model, add(value, 4.0)):
        assert torch.allclose(log_probs(model(tokens)), held, atol=1e-4)


def refusals() -> list[Any]:
    stream, heads = direction("resid_post", None), direction("z", None)
    there = stream.sel(layer=1)
    return [
        (lambda: add(stream), r"layers=None with a direction at layers \[0, 1, 2\]"),
        (lambda: add(stream, layers=3), "layers=.3.; wanted integers from -3 to 2"),
        (lambda: add(stream, layers=[1, 1]), r"layers=\[1, 1\]; wanted .* each once"),
        (lambda: add(there, float("inf")), "coefficient=inf; wanted a finite number"),
        (lambda: add(there.values), "layers=None with a bare vector; wanted"),
        (lambda: add(there.values, layers=-1), "layers=-1 with a bare vector; wanted"),
        (lambda: add(stream.values, layers=1), r"direction=ndarray \(3, 32\); wanted a DataArray"),
        (
            lambda: add([1.0, float("nan")], layers=1),
            r"direction=list \(\); wanted .* finite vector",
        ),
        (lambda: unchecked(add)("up", layers=1), r"direction=str \(\); wanted"),
        (lambda: add(there.drop_attrs()), r"attrs\['site'\]=None.*arithmetic"),
        (lambda: add(stream.rename(d_model="d_head")), "direction has dims .*; wanted"),
        (lambda: add(there.expand_dims(pos=2), positions=[1]), r"positions=\[1\] for .* of 2"),
        (lambda: project_out(there.expand_dims(pos=2)), "direction has positions"),
        (lambda: project_out(heads, layers=1, everywhere=True), "everywhere=True with 1 layers"),
        (lambda: project_out(stream, layers=[0, 1], everywhere=True), "everywhere=True with 2"),
        (lambda: hold("3.mlp", 1.0), "neuron='3.mlp'; wanted a neuron"),
        (lambda: hold("L1N3", float("nan")), "holds nan; wanted finite"),
        (lambda: scale("L2", 1.0), "component='L2' is not a component label"),
        (lambda: random_direction(stream.drop_vars("norm"), seed=0), "like has no norm"),
    ]


@pytest.mark.parametrize("n", range(15))
def test_turning_refuses(n):
    call, message = refusals()[n]
    with pytest.raises(ValueError, match=message):
        call()
