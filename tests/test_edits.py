"""Edits do what they say, where they say, and leave everything else alone."""

import pytest
import reference
import torch
from random_models import unchecked

from mlp_interp.edits import Edit, Runner
from mlp_interp.models import HookForward, Weights
from mlp_interp.sites import Site


def an_activation():
    return torch.randn(2, 5, 4, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("positions", [None, (0,), (1, -1), (3, 2)])
@pytest.mark.parametrize("units", [None, (2,), (3, 0), (-1,)])
@pytest.mark.parametrize("action", ["set", "add", "scale"])
def test_an_edit_changes_its_selection_and_nothing_else(action, units, positions):
    x = an_activation()
    before = x.clone()
    found = Edit(Site("z", 1), action, 2.5, positions=positions, units=units).apply(x)
    expected = x.clone()
    for batch in range(2):
        for position in range(5) if positions is None else positions:
            for unit in range(4) if units is None else units:
                old = x[batch, position, unit]
                new = {"set": old * 0 + 2.5, "add": old + 2.5, "scale": old * 2.5}[action]
                expected[batch, position, unit] = new
    assert torch.equal(found, expected)
    assert torch.equal(x, before)


def test_tensor_values_go_to_the_places_they_were_made_for():
    x = an_activation()
    value = torch.randn(2, 2, 3, 8, generator=torch.Generator().manual_seed(1))
    found = Edit(Site("z", 1), "set", value, positions=(4, 1), units=(3, 0, 2)).apply(x)
    for i, position in enumerate((4, 1)):
        for j, unit in enumerate((3, 0, 2)):
            assert torch.equal(found[:, position, unit], value[:, i, j])
    stream = Edit(Site("resid_pre", 0), "add", torch.arange(8.0), positions=(2,))
    y = torch.zeros(2, 5, 8)
    assert torch.equal(stream.apply(y)[1, 2], torch.arange(8.0))
    assert stream.apply(y).sum() == 2 * 28


def test_a_head_or_neuron_in_the_site_selects_it():
    found = Edit(Site("post", 0, neuron=3), "set", 9.0, units=(1,)).apply(torch.zeros(1, 2, 6))
    assert found.nonzero()[:, 2].unique().tolist() == [3]
    assert Edit(Site("q", 0, head=1), "set", 9.0).apply(torch.zeros(1, 2, 3, 4))[0, 0, 1, 0] == 9


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: unchecked_edit(Site("z", 0), "clamp"), "action='clamp'; wanted 'set', 'add' or"),
        (lambda: Edit(Site("embed"), "set", 0.0), "site='embed' cannot be edited"),
        (lambda: Edit(Site("b_O", 1), "set", 0.0), r"site='1\.b_O' cannot be edited"),
        (lambda: Edit(Site("pattern", 1), "set", 0.0), "cannot be edited"),
        (lambda: Edit(Site("mlp_out", 1), "set", 0.0, units=(1,)), "has no heads or neurons"),
    ],
)
def test_edits_that_cannot_be_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def unchecked_edit(site, action):
    edit = object.__new__(Edit)
    for name, value in {"site": site, "action": action, "value": 0.0, "units": None}.items():
        object.__setattr__(edit, name, value)
    unchecked(Edit.__post_init__)(edit)


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (Edit(Site("z", 1, head=4), "set", 0.0), r"units=\(4,\) at 'L1H4'; wanted .* -4 to 3"),
        (Edit(Site("z", 1), "set", 0.0, units=(0, -5)), r"units=\(0, -5\) at '1.z'"),
        (Edit(Site("z", 1), "set", 0.0, positions=(5,)), r"positions=\(5,\) .* wanted .* -5 to 4"),
    ],
)
def test_selections_outside_the_activation_are_refused(edit, text):
    with pytest.raises(ValueError, match=text):
        edit.apply(an_activation())


EDITS = [
    [Edit(Site("mlp_out", 1), "set", 0.0)],
    [Edit(Site("resid_pre", 0), "scale", 0.5, positions=(0, -2))],
    [Edit(Site("z", 2, head=1), "add", 1.0), Edit(Site("post", 0), "scale", 0.0, units=(3, 5))],
    [Edit(Site("resid_post", 2), "add", torch.linspace(-1, 1, 32))],
    [Edit(Site("v", 1), "set", 0.1, positions=(4,), units=(0,)), Edit(Site("v", 1), "scale", 3.0)],
    [Edit(Site("q", 0), "scale", 2.0), Edit(Site("attn_out", 2), "add", 1.0, positions=(8,))],
]


@pytest.mark.parametrize("architecture", ["parallel", "sequential", "gpt2"])
@pytest.mark.parametrize("processing", ["folded", "raw"])
def test_the_runner_gives_what_plain_hooks_give(kind, architecture, backend, processing, tokens):
    model = kind(architecture, backend, processing)
    clean_logits = reference.hooked_logits(model, tokens, {})
    for runner in (Runner.of(model), Runner(HookForward(Weights.of(model)))):
        clean = runner.run(tokens, sites=[Site("z", 1, head=2), Site("post", 0)])
        cache = reference.full_cache(model, tokens)
        assert len(clean.streams) == 4
        for layer in range(3):
            expected = cache[f"blocks.{layer}.hook_resid_pre"]
            torch.testing.assert_close(clean.streams[layer], expected, atol=2e-5, rtol=1e-4)
        assert set(clean.seen) == {Site("z", 1), Site("post", 0)}
        torch.testing.assert_close(
            clean.seen[Site("z", 1)], cache["blocks.1.attn.hook_z"], atol=2e-5, rtol=1e-4
        )
        kept = [x.clone() for x in clean.streams]
        for edits in EDITS:
            hooks = {}
            for edit in edits:
                earlier = hooks.get(edit.site.hook_name)
                hooks[edit.site.hook_name] = lambda x, hook=None, e=edit, f=earlier: e.apply(
                    x if f is None else f(x)
                )
            expected = reference.hooked_logits(model, tokens, hooks)
            found = reference.logits(model, runner.edited(clean, edits))
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
            assert (found - clean_logits).abs().max() > 1e-3
        assert all(torch.equal(a, b) for a, b in zip(kept, clean.streams, strict=True))


def test_edits_apply_in_the_order_given(kind, tokens):
    runner = Runner.of(kind())
    clean = runner.run(tokens)
    add, double = Edit(Site("mlp_out", 2), "add", 1.0), Edit(Site("mlp_out", 2), "scale", 2.0)
    a, b = runner.edited(clean, [add, double]), runner.edited(clean, [double, add])
    torch.testing.assert_close(a - b, torch.ones_like(a), atol=1e-5, rtol=0)


def test_no_edits_give_the_clean_stream(kind, tokens):
    runner = Runner.of(kind())
    clean = runner.run(tokens)
    assert runner.edited(clean, []) is clean.final


@pytest.mark.parametrize("layers", [(3,), (0, 3), (7,)])
def test_edits_that_never_fire_are_refused(kind, backend, tokens, layers):
    runner = Runner.of(kind("parallel", backend))
    clean = runner.run(tokens)
    edits = [Edit(Site("mlp_out", layer), "set", 0.0) for layer in layers]
    with pytest.raises(
        ValueError, match=rf"edits at {layers[-1]}\.mlp never fired; wanted layers 0"
    ):
        runner.edited(clean, edits)


@pytest.mark.parametrize("engine", ["lean", "hooks"])
def test_an_error_in_the_middle_leaves_the_model_as_it_was(kind, backend, tokens, engine):
    """The fixture compares weights, hooks, gradients and mode after the test."""
    model = kind("parallel", backend)
    runner = Runner.of(model) if engine == "lean" else Runner(HookForward(Weights.of(model)))
    clean = runner.run(tokens)
    for edit in (
        Edit(Site("z", 1, head=9), "set", 0.0),
        Edit(Site("mlp_out", 1), "set", torch.zeros(7)),
    ):
        with pytest.raises((ValueError, RuntimeError)):
            runner.edited(clean, [edit])
    assert torch.equal(runner.run(tokens).final, clean.final)


def test_training_mode_and_gradients_stay(kind, backend, tokens):
    model = kind("parallel", backend, "raw")
    model.train()
    try:
        runner = Runner.of(model)
        final = runner.edited(runner.run(tokens), [Edit(Site("mlp_out", 1), "set", 0.0)])
        assert model.training
        assert not final.requires_grad
        with torch.enable_grad():
            assert not runner.run(tokens).final.requires_grad
            assert torch.is_grad_enabled()
    finally:
        model.eval()


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (torch.tensor([[0, 300]]), r"tokens hold 300; wanted ids from 0 to 299"),
        (torch.tensor([[0, -1]]), r"tokens hold -1; wanted ids from 0 to 299"),
        (torch.zeros(1, 65, dtype=torch.long), r"65 tokens .* context of 64"),
    ],
)
def test_tokens_the_model_cannot_take_are_refused(kind, backend, tokens, text):
    with pytest.raises(ValueError, match=text):
        Runner.of(kind("parallel", backend)).run(tokens)
