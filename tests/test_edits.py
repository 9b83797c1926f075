"""Edits do what they say, where they say, and leave everything else alone."""

import itertools

import numpy as np
import pytest
import reference
import torch
from random_models import unchecked

from mlp_interp.edits import Add, Clamp, Edit, Fired, Noise, ProjectOut, Scale, Set
from mlp_interp.models import HookForward, Weights
from mlp_interp.runs import Runner
from mlp_interp.sites import Site


def an_activation():
    return torch.randn(2, 5, 4, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("positions", [None, (0,), (1, -1), (3, 2)])
@pytest.mark.parametrize("units", [None, (2,), (3, 0), (-1,)])
@pytest.mark.parametrize("action", ["set", "add", "scale", "clamp", "project_out"])
def test_an_edit_changes_its_selection_and_nothing_else(action, units, positions):
    x = an_activation()
    before = x.clone()
    a, b = torch.arange(8.0), torch.tensor([0.0, 1, 0, 0, 0, 0, 0, 2])
    does = {
        "set": Set(2.5),
        "add": Add(2.5),
        "scale": Scale(2.5),
        "clamp": Clamp(-0.5, 0.2),
        "project_out": ProjectOut(torch.stack([a, b])),
    }[action]
    assert does.name == action
    found = Edit(Site("z", 1), does, positions=positions, units=units).apply(x)
    expected = x.clone()
    across = b - b @ a / (a @ a) * a  # of the second direction, what is not along the first
    for batch in range(2):
        for position in range(5) if positions is None else positions:
            for unit in range(4) if units is None else units:
                old = x[batch, position, unit]
                new = {
                    "set": old * 0 + 2.5,
                    "add": old + 2.5,
                    "scale": old * 2.5,
                    "clamp": torch.tensor([min(max(float(n), -0.5), 0.2) for n in old]),
                    "project_out": old
                    - old @ a / (a @ a) * a
                    - old @ across / (across @ across) * across,
                }[action]
                expected[batch, position, unit] = new
    torch.testing.assert_close(found, expected, atol=1e-6 * (action == "project_out"), rtol=0)
    assert torch.equal(x, before)


def test_tensor_values_go_to_the_places_they_were_made_for():
    x = an_activation()
    value = torch.randn(2, 2, 3, 8, generator=torch.Generator().manual_seed(1))
    found = Edit.set(Site("z", 1), value, positions=(4, 1), units=(3, 0, 2)).apply(x)
    for i, position in enumerate((4, 1)):
        for j, unit in enumerate((3, 0, 2)):
            assert torch.equal(found[:, position, unit], value[:, i, j])
    stream = Edit.add(Site("resid_pre", 0), torch.arange(8.0), positions=(2,))
    y = torch.zeros(2, 5, 8)
    assert torch.equal(stream.apply(y)[1, 2], torch.arange(8.0))
    assert stream.apply(y).sum() == 2 * 28


def test_a_head_or_neuron_in_the_site_selects_it():
    found = Edit.set(Site("post", 0, neuron=3), 9.0).apply(torch.zeros(1, 2, 6))
    assert found.nonzero()[:, 2].unique().tolist() == [3]
    assert Edit.set(Site("q", 0, head=1), 9.0).apply(torch.zeros(1, 2, 3, 4))[0, 0, 1, 0] == 9


def test_a_pattern_is_chosen_by_head_query_and_key_and_stays_causal():
    x = torch.full((2, 3, 4, 4), 0.25).tril()
    found = Edit.set(Site("pattern", 0, head=1), 0.5, positions=(3, 1), keys=(0, 2)).apply(x)
    expected = x.clone()
    expected[:, 1, 3, 0] = expected[:, 1, 3, 2] = expected[:, 1, 1, 0] = 0.5
    assert torch.equal(found, expected)
    assert torch.equal(Edit.add(Site("pattern", 0), 1.0).apply(x), (x + 1).tril())
    moved = torch.rand(2, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    edit = Edit.set(Site("pattern", 0), moved, units=[2], positions=[-1, 2], keys=range(3))
    expected = x.clone()
    expected[:, 2, 3, :3], expected[:, 2, 2, :3] = moved[:, 0, 0], moved[:, 0, 1]
    assert torch.equal(edit.apply(x), expected)


def test_the_constructors_make_the_plain_form():
    site = Site("z", 1)
    made = Edit.clamp("L1H2", low=-1.0, positions=3)
    assert (made.site, made.action.low, made.action.high) == (Site("z", 1, head=2), -1.0, None)
    assert isinstance(made.action, Clamp)
    assert made.positions == (3,)
    for name, action in (("set", Set), ("add", Add), ("scale", Scale)):
        made = getattr(Edit, name)(site, 2.0, positions=range(2), units=torch.tensor([3]))
        assert (made.site, type(made.action), made.action.value) == (site, action, 2.0)
        assert (made.positions, made.units, made.keys) == ((0, 1), (3,), None)
    made = Edit.noise(site, std=0.5, seed=7, units=1)
    assert isinstance(made.action, Noise)
    assert (made.action.std, made.action.seed, made.units) == (0.5, 7, (1,))


def test_an_edit_says_what_it_does():
    said = {
        Edit.set("1.mlp", 0.0): "set at 1.mlp: 0",
        Edit.set("1.mlp", torch.tensor(2.0)): "set at 1.mlp: 2",
        Edit.set("1.mlp", torch.ones(2, 5, 8)): "set at 1.mlp: values (2, 5, 8) of norm 8.944",
        Edit.add("1.mlp", torch.ones(4)): "add at 1.mlp: a vector of norm 2",
        Edit.scale("1.z", 1, units=[3]): "scale at 1.z: 1; heads or neurons 3",
        Edit.clamp("1.mlp", high=torch.ones(32)): "clamp at 1.mlp: bounds",
        Edit.clamp("L1N3", low=0.25, positions=[0, -1]): (
            "clamp at L1N3: 0.25 to None; positions 0, -1"
        ),
        Edit.project_out("1.mlp", torch.eye(3)[:2]): "project_out at 1.mlp: 2 directions",
        Edit.project_out("1.mlp", torch.ones(1, 4)): "project_out at 1.mlp: a vector of norm 2",
        Edit.noise("1.z", std=0.5, seed=7): "noise at 1.z: 0.5, seed 7",
        Edit.set(Site("pattern", 1), 0.0, keys=0): "set at 1.pattern: 0; keys 0",
    }
    assert [str(edit) for edit in said] == list(said.values())
    assert repr(Edit.set("L1H2", 0.5)) == "Edit(set at L1H2: 0.5)"


def test_an_edit_has_values_for_as_many_prompts_as_its_value():
    assert Edit.set("1.z", torch.zeros(3, 1, 4, 8)).prompts == 3
    assert Edit.clamp("1.mlp", low=0.0, high=torch.zeros(2, 9, 32)).prompts == 2
    for alike in (torch.zeros(3, 4, 8), torch.zeros(1, 9, 4, 8), 0.0):
        assert Edit.set("1.z", alike).prompts == 1
    assert Edit.project_out("1.mlp", torch.eye(3)).prompts == 1


@pytest.mark.parametrize("directions", [[[3.0, 4, 0]], [[1, 0, 0], [1, 1e-3, 0], [2, 0, 0.0]]])
def test_a_projection_leaves_nothing_along_its_directions(directions):
    """Of any length, and dependent or nearly so; and nothing else is lost."""
    x = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    directions = torch.tensor(directions, dtype=torch.float64)
    found = Edit.project_out(Site("mlp_out", 0), directions).apply(x)
    assert (found @ directions.T).abs().max() < 1e-12
    removed = (x - found).reshape(-1, 3)
    rank = torch.linalg.matrix_rank(directions)
    both = torch.linalg.matrix_rank(torch.cat([removed, directions]), rtol=1e-9)
    assert both == rank


def test_noise_has_its_size_and_comes_again_from_its_seed():
    x, site = torch.zeros(2, 200, 100), Site("resid_pre", 0)
    found = Edit.noise(site, std=3.0, seed=5).apply(x)
    assert abs(float(found.std()) - 3) < 0.05
    assert abs(float(found.mean())) < 0.05
    assert torch.equal(found, Edit.noise(site, std=3.0, seed=5).apply(x))
    flat = found.transpose(0, 1).flatten(1)
    for other in (found[:, 1:], Edit.noise(site, std=3.0, seed=6).apply(x)[:, :-1]):
        other = other.transpose(0, 1).flatten(1)
        assert (
            abs(float(torch.corrcoef(torch.stack([flat[:-1].flatten(), other.flatten()]))[0, 1]))
            < 0.05
        )
    # At a position it is the same whatever else is chosen or run.
    some = Edit.noise(site, std=3.0, seed=5, positions=(7, 3)).apply(x)
    assert torch.equal(some[:, [3, 7]], found[:, [3, 7]])
    assert some.any(-1).sum() == 4
    wide = Edit.noise(site, std=torch.tensor([0.0, 2.0]), seed=1).apply(torch.zeros(1, 9, 2))
    assert (wide[..., 0] == 0).all()
    assert (wide[..., 1] != 0).all()


class Pair(Add):
    """What a caller without type checks could give."""

    values = ((0.0, 1.0),)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: unchecked_edit(Site("z", 0), "drop"),
            "action='drop'; wanted Set, Add, Scale, Clamp",
        ),
        (lambda: Edit.set(Site("pos_embed"), 0.0), "site='pos_embed' cannot be edited"),
        (lambda: Edit.set(Site("b_O", 1), 0.0), r"site='1\.b_O' cannot be edited"),
        (lambda: Edit.set(Site("mlp_out", 1), 0.0, units=(1,)), "has no heads or neurons"),
        (lambda: Edit.set("L1H2", 0.0, units=1), r"units=\(1,\) beside site='L1H2'; wanted one"),
        (lambda: Edit.set("1.z", 0.0, keys=1), r"keys=\(1,\): site '1\.z' is no pattern"),
        (lambda: Edit.set("1.z", 0.0, positions=[]), r"positions=\(\) at '1\.z' selects nothing"),
        (lambda: Edit.set("1.z", float("nan")), "value of 'set' at '1.z' holds nan; wanted finite"),
        (lambda: Edit.add("1.mlp", torch.tensor([0, torch.inf])), "'add' .* holds inf; wanted fin"),
        (lambda: Edit.clamp("1.z", low=float("nan")), "value of 'clamp' .* holds nan"),
        (lambda: Edit.clamp("1.z"), "low=None and high=None; wanted at least one"),
        (lambda: Edit.clamp("1.z", low=2, high=1.5), "low=2 is above high=1.5"),
        (lambda: Edit(Site("z", 1), Pair(0.0)), r"value=\(0.0, 1.0\) of 'add'; wanted a number"),
        (lambda: Edit.set("1.z", 0.0, positions=1.5), "positions=1.5; wanted integers"),
        (lambda: Edit.set("1.z", 0.0, units=[True]), r"units=\[True\]; wanted integers"),
        (lambda: Edit.set("1.zz", 0.0), r"site='1\.zz' is not .* \(did you mean '1\.z'\?\)"),
        (lambda: Edit.project_out("1.z", torch.zeros(2, 8)), "directions are all zero"),
        (lambda: Edit.project_out("1.z", torch.ones(2, 2, 8)), r"shape \(2, 2, 8\); wanted \[d\]"),
        (lambda: Edit.project_out("L1N2", torch.ones(8)), r"units=\(2,\) .* wanted all neurons"),
        (lambda: Edit.project_out("1.pattern", torch.ones(8)), "'project_out'; wanted set, add"),
        (lambda: Edit.noise("1.pattern", std=1.0, seed=0), "'noise'; wanted set, add, scale or c"),
        (lambda: Edit.noise("1.z", std=-1.0, seed=0), "std=-1.0; wanted none below 0"),
        (lambda: Edit.noise("1.z", std=1.0, seed=-1), "seed=-1; wanted an integer from 0"),
    ],
)
def test_edits_that_cannot_be_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def unchecked_edit(site, action):
    edit = object.__new__(Edit)
    for name, value in {"site": site, "action": action, "units": None}.items():
        object.__setattr__(edit, name, value)
    unchecked(Edit.__post_init__)(edit)


UNFIT = [
    (Edit.set(Site("z", 1, head=4), 0.0), r"units=\(4,\) at 'L1H4'; wanted .* -4 to 3"),
    (Edit.set(Site("z", 1), 0.0, units=(0, -5)), r"units=\(0, -5\) at '1.z'"),
    (Edit.set(Site("z", 1), 0.0, positions=(9,)), r"positions=\(9,\) .* wanted .* -9 to 8"),
    (Edit.set(Site("z", 1), 0.0, positions=(1, -8)), r"positions=\(1, -8\) .* -9 to 8, each once"),
    (Edit.set(Site("pattern", 1), 0.0, keys=(9,)), r"keys=\(9,\) at '1.pattern'; wanted"),
    (
        Edit.set(Site("z", 1), torch.zeros(3, 8), units=(0, 1)),
        r"value of shape \(3, 8\) at '1.z'; wanted one that broadcasts to \(4, 9, 2, 8\)",
    ),
    (Edit.clamp("1.mlp", low=torch.zeros(1, 4, 9, 32)), r"value of shape \(1, 4, 9, 32\)"),
    (Edit.project_out("1.z", torch.ones(32)), "directions of width 32 at '1.z'; wanted 8"),
]


@pytest.mark.parametrize(("edit", "text"), UNFIT)
def test_selections_outside_the_activation_are_refused(kind, edit, text, monkeypatch):
    """By the edit alone and, before anything is computed, by the runner."""
    shape = {"pattern": (4, 4, 9, 9), "mlp_out": (4, 9, 32)}.get(edit.site.name, (4, 9, 4, 8))
    with pytest.raises(ValueError, match=text):
        edit.apply(torch.zeros(shape))
    runner, tokens = Runner.of(kind()), torch.zeros(4, 9, dtype=torch.long)
    clean = runner.run(tokens)
    monkeypatch.setattr(runner.forward, "embed", None)
    monkeypatch.setattr(runner.forward, "run", None)
    with pytest.raises(ValueError, match=text):
        runner.run(tokens, edits=[edit])
    with pytest.raises(ValueError, match=text):
        runner.edited(clean, [edit])


def change(**selection):
    """A hook that changes a selection in place, ``{axis: index}``."""
    what = selection.pop("what")

    def hook(x, hook=None):
        x = x.clone()
        every = [range(n) for n in x.shape[:-1]]
        for axis, chosen in selection.items():
            every[int(axis[1:])] = [i % x.shape[int(axis[1:])] for i in chosen]
        for place in itertools.product(*every):
            x[place] = what(x[place])
        return x

    return hook


DIRECTION = torch.linspace(-1, 2, 32)
ROW = torch.linspace(0.5, 1.5, 9)
# Edits, and by hand what they do to each row of the activations: {hook: change}.
CASES = {
    "set": (
        [Edit.set("1.mlp", 0.0)],
        {"blocks.1.hook_mlp_out": change(what=lambda row: 0 * row)},
    ),
    "scale positions": (
        [Edit.scale("0.resid_pre", 0.5, positions=(0, -2))],
        {"blocks.0.hook_resid_pre": change(a1=[0, -2], what=lambda row: row / 2)},
    ),
    "add to a head, silence neurons": (
        [Edit.add("L2H1", 1.0), Edit.scale("0.post", 0.0, units=(3, 5))],
        {
            "blocks.2.attn.hook_z": change(a2=[1], what=lambda row: row + 1),
            "blocks.0.mlp.hook_post": change(
                what=lambda row: (
                    row * torch.tensor([float(i not in (3, 5)) for i in range(len(row))])
                )
            ),
        },
    ),
    "steer": (
        [Edit.add("2.resid_post", DIRECTION)],
        {"blocks.2.hook_resid_post": change(what=lambda row: row + DIRECTION)},
    ),
    "two at one place": (
        [Edit.set("1.v", 0.1, positions=4, units=0), Edit.scale("1.v", 3.0)],
        {
            "blocks.1.attn.hook_v": lambda x, hook=None: (
                3 * change(a1=[4], a2=[0], what=lambda row: 0 * row + 0.1)(x)
            )
        },
    ),
    "queries, attention": (
        [Edit.scale("0.q", 2.0), Edit.add("2.attn", 1.0, positions=(8,))],
        {
            "blocks.0.attn.hook_q": change(what=lambda row: 2 * row),
            "blocks.2.hook_attn_out": change(a1=[8], what=lambda row: row + 1),
        },
    ),
    "clamp": (
        [Edit.clamp("1.pre", low=-0.3, high=0.4), Edit.clamp("2.k", high=0.0, units=[1])],
        {
            "blocks.1.mlp.hook_pre": change(
                what=lambda row: row.where(row < 0.4, 0.4).where(row > -0.3, -0.3)
            ),
            "blocks.2.attn.hook_k": change(a2=[1], what=lambda row: row.where(row < 0, 0)),
        },
    ),
    "project out": (
        [Edit.project_out("1.resid_pre", DIRECTION, positions=[3, 5])],
        {
            "blocks.1.hook_resid_pre": change(
                a1=[3, 5],
                what=lambda row: row - row @ DIRECTION / DIRECTION.norm() ** 2 * DIRECTION,
            )
        },
    ),
    "embed": (
        [Edit.scale("embed", 3.0, positions=[0, 2])],
        {"hook_embed": change(a1=[0, 2], what=lambda row: 3 * row)},
    ),
    "knock out attention": (
        [Edit.set(Site("pattern", 1, head=3), 0.0, positions=[-1, 4], keys=[0, 2])],
        {
            "blocks.1.attn.hook_pattern": change(
                a1=[3],
                a2=[-1, 4],
                what=lambda row: row * torch.tensor([0.0, 1, 0, 1, 1, 1, 1, 1, 1]),
            )
        },
    ),
    "scale attention, and what it gives": (
        [Edit.scale("0.pattern", ROW), Edit.scale("0.z", 1.5)],
        {
            "blocks.0.attn.hook_pattern": change(what=lambda row: ROW * row),
            "blocks.0.attn.hook_z": change(what=lambda row: 1.5 * row),
        },
    ),
}


def both_engines(model):
    return Runner.of(model), Runner(HookForward(Weights.of(model)))


def test_the_runner_gives_what_plain_hooks_give(some_model, tokens):
    model = some_model
    clean_logits = reference.hooked_logits(model, tokens, {})
    cache = reference.full_cache(model, tokens)
    sites = [Site("z", 1, head=2), Site("post", 0), Site("pattern", 2), Site("embed")]
    for runner in both_engines(model):
        clean = runner.run(tokens, sites=sites)
        assert len(clean.streams) == 4
        assert clean.fired == ()
        for layer in range(3):
            expected = cache[f"blocks.{layer}.hook_resid_pre"]
            torch.testing.assert_close(clean.streams[layer], expected, atol=2e-5, rtol=1e-4)
        assert set(clean.kept) == {Site("embed"), Site("z", 1), *sites[1:]}
        for site, value in clean.kept.items():
            torch.testing.assert_close(value, cache[site.hook_name], atol=2e-5, rtol=1e-4)
        kept = [x.clone() for x in (*clean.streams, *clean.kept.values())]
        for name, (edits, hooks) in CASES.items():
            expected = reference.hooked_logits(model, tokens, hooks)
            assert (expected - clean_logits).abs().max() > 1e-3
            run = runner.run(tokens, edits=edits)
            for final in (runner.edited(clean, edits), run.final):
                found = reference.logits(model, final)
                torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3, msg=name)
            assert [fired.times for fired in run.fired] == [1] * len(edits)
            assert all(fired.changed > 0 for fired in run.fired)
        assert all(
            torch.equal(a, b)
            for a, b in zip(kept, (*clean.streams, *clean.kept.values()), strict=True)
        )


def test_a_run_keeps_what_was_edited(kind, backend, tokens):
    """Streams and activations are those that the model went on with."""
    for runner in both_engines(kind("parallel", backend)):
        edits = [
            Edit.set("1.resid_pre", 0.5),
            Edit.scale("1.z", 0.0),
            Edit.add("1.z", 2.0, units=1),
        ]
        run = runner.run(tokens, sites=[Site("z", 1)], edits=edits)
        assert (run.streams[1] == 0.5).all()
        z = run["z", 1]
        assert (z[:, :, 1] == 2).all()
        assert (z[:, :, [0, 2, 3]] == 0).all()
        assert torch.equal(run.final, runner.edited(runner.run(tokens), edits))
        logits = reference.logits(runner.weights.model, run.final)
        torch.testing.assert_close(run.logits(), logits, atol=1e-4, rtol=1e-4)


def test_counts_say_what_changed(kind, backend, tokens):
    for runner in both_engines(kind("parallel", backend)):
        clean = runner.run(tokens, sites=[Site("z", 1)])
        edits = [
            Edit.set("1.z", 100.0, positions=[0, 3], units=[1]),
            Edit.add("2.mlp", 0.0),
            Edit.replace("1.z", clean, units=[2]),
            Edit.scale("1.pattern", 2.0, keys=[-1]),
        ]
        fired = runner.run(tokens, edits=edits).fired
        assert fired[0] == Fired(1, 4 * 2 * 1 * 8)
        assert fired[1] == Fired(1, 0)  # fired, and changed nothing
        assert fired[3] == Fired(1, 4 * 4)  # of the last key only the last query knows
        assert runner.run(tokens, edits=edits[2:3]).fired == (Fired(1, 0),)


def test_values_of_another_run_are_put_in_their_places(some_model, tokens):
    model = some_model
    other_tokens = tokens.flip(0)
    other = reference.full_cache(model, other_tokens)
    sites = [Site("z", 1), Site("pattern", 2), Site("mlp_out", 0)]
    for runner in both_engines(model):
        source = runner.run(other_tokens, sites=sites)
        one = runner.run(other_tokens[:1, :5], sites=sites)
        everything = runner.run(tokens, edits=[Edit.replace("0.resid_pre", source)])
        torch.testing.assert_close(everything.final, source.final)
        for edit, name, to, come, values in [
            (Edit.replace("1.z", source), "blocks.1.attn.hook_z", ..., ..., other),
            (
                Edit.replace("L1H2", source, positions=[3, -1]),
                "blocks.1.attn.hook_z",
                (slice(None), [3, 8], 2),
                (slice(None), [3, 8], 2),
                other,
            ),
            (
                Edit.replace("0.mlp", source, positions=[4, 1], sources=[0, -2]),
                "blocks.0.hook_mlp_out",
                (slice(None), [4, 1]),
                (slice(None), [0, 7]),
                other,
            ),
            (
                Edit.replace("0.mlp", one, positions=6, sources=4, for_all=True),
                "blocks.0.hook_mlp_out",
                (slice(None), 6),
                (slice(0, 1), 4),
                other,
            ),
            (
                Edit.replace("2.pattern", source, units=[1, 3], positions=[8]),
                "blocks.2.attn.hook_pattern",
                (slice(None), [1, 3], 8),
                (slice(None), [1, 3], 8),
                other,
            ),
        ]:

            def hook(x, hook=None, to=to, come=come, values=values[name]):
                x = x.clone()
                x[to] = values[come]
                return x

            expected = reference.hooked_logits(model, tokens, {name: hook})
            found = reference.logits(model, runner.run(tokens, edits=[edit]).final)
            torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda run: Edit.replace("1.z", run),
            "site='1.z' was not kept by the run, which has the streams and .*0.mlp",
        ),
        (lambda run: Edit.replace("3.resid_pre", run), "site='3.resid_pre' was not kept"),
        (
            lambda run: Edit.replace("0.mlp", run, positions=9),
            r"positions=\(9,\) at '0.mlp'; wanted",
        ),
        (
            lambda run: Edit.replace("0.mlp", run, positions=[1], sources=[1, 2]),
            "one for each posi",
        ),
        (
            lambda run: Edit.replace("0.mlp", run, sources=[1]),
            r"positions=None; wanted one for each",
        ),
    ],
)
def test_values_that_a_run_does_not_have_are_refused(kind, tokens, make, text):
    run = Runner.of(kind()).run(tokens, sites=[Site("mlp_out", 0)])
    with pytest.raises(ValueError, match=text):
        make(run)


def test_runs_of_other_lengths_want_positions(kind, tokens):
    runner = Runner.of(kind())
    short = runner.run(tokens[:, :5])
    with pytest.raises(ValueError, match=r"value of shape \(4, 5, 32\) .* to \(4, 9, 32\)"):
        runner.run(tokens, edits=[Edit.replace("1.resid_pre", short)])


def test_edits_apply_in_the_order_given(kind, tokens):
    runner = Runner.of(kind())
    clean = runner.run(tokens)
    add, double = Edit.add(Site("mlp_out", 2), 1.0), Edit.scale(Site("mlp_out", 2), 2.0)
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
    edits = [Edit.set(Site("mlp_out", layer), 0.0) for layer in layers]
    text = rf"edits at {layers[-1]}\.mlp never fire; wanted layers 0 to 2"
    for run in (
        lambda: runner.edited(clean, edits),
        lambda: runner.run(tokens, edits=edits),
        lambda: runner.generate(tokens, edits=edits),
    ):
        with pytest.raises(ValueError, match=text):
            run()


@pytest.mark.parametrize("engine", ["lean", "hooks"])
def test_an_engine_that_passes_an_edit_by_is_found_out(kind, tokens, engine, monkeypatch):
    runner = both_engines(kind())[engine == "hooks"]
    clean, edits = runner.run(tokens), [Edit.set("1.mlp", 0.0), Edit.set("2.mlp", 0.0)]
    run = runner.forward.run

    def blind(*args, observe, **kwargs):
        return run(
            *args,
            **kwargs,
            observe=lambda n, i, x: x if n == "mlp_out" and i == 1 else observe(n, i, x),
        )

    monkeypatch.setattr(runner.forward, "run", blind)
    for act in (lambda: runner.run(tokens, edits=edits), lambda: runner.edited(clean, edits)):
        with pytest.raises(ValueError, match=r"edits at 1\.mlp never fired in this"):
            act()


def test_what_a_run_cannot_do_is_refused(kind, backend, tokens):
    runner = Runner.of(kind("parallel", backend))
    for site in (Site("z", 3), Site("b_O", 0)):
        with pytest.raises(ValueError, match=rf"site='{site.label}' cannot be kept; wanted one of"):
            runner.run(tokens, sites=[site])


class Stop(Exception):
    """Raised in the middle of a pass."""


class Raising(Set):
    """An action that fails when a pass comes to it."""

    def __call__(self, old, selection):
        raise Stop


@pytest.mark.parametrize("engine", ["lean", "hooks"])
def test_an_error_in_the_middle_leaves_the_model_as_it_was(kind, backend, tokens, engine):
    """The fixture compares weights, hooks, gradients and mode after the test."""
    model = kind("parallel", backend)
    runner = both_engines(model)[engine == "hooks"]
    clean = runner.run(tokens, sites=[Site("mlp_out", 0)])
    edits = [
        Edit.set("0.pattern", 0.0),
        Edit.scale("embed", 2.0),
        Edit(Site("z", 1), Raising(0.0)),
    ]
    for run in (
        lambda: runner.edited(clean, edits),
        lambda: runner.run(tokens, edits=edits),
        lambda: runner.generate(tokens, edits=edits, temperature=1.0),
    ):
        with pytest.raises(Stop):
            run()
        assert torch.is_grad_enabled()
    assert torch.equal(runner.run(tokens).final, clean.final)


def test_training_mode_and_gradients_stay(kind, backend, tokens):
    model = kind("parallel", backend, "raw")
    model.train()
    try:
        runner = Runner.of(model)
        final = runner.edited(runner.run(tokens), [Edit.set(Site("mlp_out", 1), 0.0)])
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


def continued(model, tokens, hooks, steps):
    """Greedy generation by the library's whole forward pass at every step."""
    for _ in range(steps):
        logits = reference.hooked_logits(model, tokens, hooks)
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], 1)
    return tokens


def at_least(n, what):
    """A hook on all positions from n on."""

    def hook(x, hook=None):
        x = x.clone()
        x[:, n:] = what(x[:, n:])
        return x

    return hook


STEERING = torch.linspace(-8, 8, 32)
# Edits of a generation after 5 tokens, and the hooks that each forward pass of it would have.
HELD = {
    "none": ([], {}, "all"),
    "everywhere": (
        [Edit.add("1.resid_post", STEERING)],
        {"blocks.1.hook_resid_post": lambda x, hook=None: x + STEERING},
        "all",
    ),
    "the last of the prompt, and one to come": (
        [Edit.set("L1H2", 4.0, positions=[-1, 6]), Edit.clamp("0.post", high=0.1)],
        {
            "blocks.1.attn.hook_z": lambda x, hook=None: torch.cat(
                [change(a1=[i], a2=[2], what=lambda row: 0 * row + 4)(x)[:, i : i + 1]
                if i in (4, 6) else x[:, i : i + 1] for i in range(x.shape[1])], 1
            ),
            "blocks.0.mlp.hook_post": lambda x, hook=None: x.clamp(max=0.1),
        },
        "all",
    ),
    "only where new tokens are read": (
        [Edit.add("embed", STEERING), Edit.scale("2.k", -1.0, positions=[0])],
        {
            "hook_embed": at_least(5, lambda x: x + STEERING),
            "blocks.2.attn.hook_k": change(a1=[0], what=lambda row: -row),
        },
        "new",
    ),
    "only where the prompt is read": (
        [Edit.add("1.resid_post", STEERING)],
        {
            "blocks.1.hook_resid_post": lambda x, hook=None: torch.cat(
                [x[:, :5] + STEERING, x[:, 5:]], 1
            )
        },
        "prompt",
    ),
    "attention": (
        [Edit.set("1.pattern", 0.0, keys=[0, 6]), Edit.scale("2.pattern", 2.0, units=3)],
        {
            "blocks.1.attn.hook_pattern": lambda x, hook=None: x
            * torch.tensor([float(i not in (0, 6)) for i in range(x.shape[-1])]),
            "blocks.2.attn.hook_pattern": change(a1=[3], what=lambda row: 2 * row),
        },
        "all",
    ),
    "values of their own for positions": (
        [Edit.set("1.mlp", torch.stack([STEERING, -STEERING]), positions=[7, 2])],
        {
            "blocks.1.hook_mlp_out": lambda x, hook=None: torch.cat(
                [STEERING.expand_as(x[:, :1]) if i == 7 else -STEERING.expand_as(x[:, :1])
                if i == 2 else x[:, i : i + 1] for i in range(x.shape[1])], 1
            )
        },
        "all",
    ),
}  # fmt: skip


def test_generation_is_the_models_own_with_the_same_hooks(some_model, tokens):
    """Greedy, with keys and values remembered, without, and through hooks."""
    model = some_model
    prompt = tokens[:2, :5]
    lean, hooks = both_engines(model)
    plain = continued(model, prompt, {}, 4)
    for name, (edits, by_hand, where) in HELD.items():
        expected = continued(model, prompt, by_hand, 4)
        assert torch.equal(expected, plain) == (name == "none"), name
        for runner, use_cache in ((lean, True), (lean, False), (hooks, True)):
            found = runner.generate(
                prompt, edits=edits, where=where, max_new_tokens=4, eos=None, use_cache=use_cache
            )
            assert torch.equal(found.tokens, expected), (name, use_cache)
            assert torch.equal(found.new, expected[:, 5:])
            assert all(fired.times and fired.changed for fired in found.fired)


def test_a_generation_counts_the_steps_that_an_edit_was_in(kind, tokens):
    edits = [
        Edit.scale("1.mlp", 0.5),
        Edit.scale("1.mlp", 0.5, positions=[0]),
        Edit.scale("1.mlp", 0.5, positions=[6, 7]),
        Edit.add("0.mlp", 0.0),
    ]
    runner = Runner.of(kind())
    fired = runner.generate(tokens[:, :5], edits=edits, max_new_tokens=4, eos=None).fired
    assert [f.times for f in fired] == [4, 1, 2, 4]
    assert [f.changed for f in fired] == [4 * 8 * 32, 4 * 32, 4 * 2 * 32, 0]


def test_noise_is_the_same_however_a_text_is_run(kind, tokens):
    lean, hooks = both_engines(kind())
    edits = [
        Edit.noise("1.resid_pre", std=2.0, seed=3),
        Edit.noise("2.z", std=1.0, seed=4, units=1),
    ]
    texts = [
        runner.generate(tokens, edits=edits, max_new_tokens=6, eos=None, use_cache=use_cache).tokens
        for runner, use_cache in ((lean, True), (lean, False), (hooks, True))
    ]
    assert torch.equal(texts[0], texts[1])
    assert torch.equal(texts[0], texts[2])
    assert not torch.equal(texts[0], lean.generate(tokens, max_new_tokens=6, eos=None).tokens)


def test_draws_come_again_from_their_seed(kind, backend, tokens):
    lean, hooks = both_engines(kind("parallel", backend))
    draw = lambda runner=lean, **how: (
        runner.generate(tokens, max_new_tokens=8, eos=None, **how).tokens
    )
    first = draw(temperature=1.0, seed=1)
    assert torch.equal(first, draw(temperature=1.0, seed=1))
    assert torch.equal(first, draw(temperature=1, seed=1, runner=hooks))
    assert torch.equal(first, draw(temperature=1.0, seed=1, use_cache=False))
    assert not torch.equal(first, draw(temperature=1.0, seed=2))
    greedy = draw()
    assert torch.equal(greedy, draw(temperature=1.0, top_k=1, seed=1))
    assert torch.equal(greedy, draw(temperature=1e-4, seed=1))
    assert not torch.equal(greedy, first)


@pytest.mark.parametrize(
    ("seed", "same"), [(np.int64(3), 3), (np.arange(4), range(4)), ((4, 5, 6, 7), [4, 5, 6, 7])]
)
def test_seeds_of_numpy(kind, tokens, seed, same):
    runner = Runner.of(kind())
    draw = lambda seed: unchecked(Runner.generate)(
        runner, tokens, seed=seed, temperature=1.0, max_new_tokens=3
    )
    assert torch.equal(draw(seed).tokens, draw(same).tokens)


def test_rows_draw_for_themselves(kind, tokens):
    """A text depends on its own seed: not on its neighbours, nor on how many there are."""
    runner = Runner.of(kind())
    draw = lambda rows, seed: (
        runner.generate(rows, max_new_tokens=8, temperature=1.0, seed=seed, eos=None).tokens
    )
    seeds = [5, 0, 2**40, 5]
    together = draw(tokens, seeds)
    for row, seed in enumerate(seeds):
        one = tokens[row : row + 1]
        assert torch.equal(draw(one, [seed]), together[row : row + 1])
        assert torch.equal(draw(one, seed), together[row : row + 1])
    assert torch.equal(draw(tokens.flip(0), seeds[::-1]), together.flip(0))
    same = draw(tokens[:1].expand(4, -1), seeds)
    assert torch.equal(same[0], same[3])
    assert len({tuple(row) for row in same.tolist()}) == 3
    assert len({tuple(row) for row in draw(tokens[:1].expand(4, -1), 5).tolist()}) == 4


def test_edits_do_not_shift_the_draws(kind, tokens):
    """A nearly zero edit leaves drawn texts, and one at the first step alone all later numbers."""
    runner = Runner.of(kind())
    draw = lambda edits: (
        runner.generate(
            tokens[:, :5], edits=edits, max_new_tokens=8, temperature=1.0, seed=3, eos=None
        ).new
    )
    assert torch.equal(draw([]), draw([Edit.add("1.resid_post", 1e-7)]))
    # All logits equal: what is drawn is the numbers alone, from the second step on.
    blank = Edit.scale("2.resid_post", 0.0)
    swayed = Edit.set("2.resid_post", 50 * runner.unembed.directions(torch.tensor(7)), positions=4)
    first, second = draw([blank]), draw([blank, swayed])
    assert not torch.equal(first[:, 0], second[:, 0])
    assert torch.equal(first[:, 1:], second[:, 1:])


def test_draws_follow_the_models_probabilities(kind):
    """Two thousand draws of one token, within four standard errors; top-k keeps its k."""
    model = kind()
    prompt = torch.tensor([[5, 9, 11]])
    for top_k in (None, 4):
        logits = reference.hooked_logits(model, prompt, {})[0, -1].double() / 0.7
        if top_k is not None:
            logits[logits.argsort(descending=True)[top_k:]] = -torch.inf
        wanted = logits.softmax(-1)
        found = Runner.of(model).generate(
            prompt.expand(2000, -1),
            max_new_tokens=1,
            temperature=0.7,
            top_k=top_k,
            seed=0,
            eos=None,
        )
        rates = torch.bincount(found.new[:, 0], minlength=300) / 2000
        errors = (wanted * (1 - wanted) / 2000).sqrt()
        assert ((rates - wanted).abs() <= 4 * errors + 1e-3).all()
        assert (rates[wanted == 0] == 0).all()


def test_texts_end_where_their_end_comes(kind, backend, tokens):
    runner = Runner.of(kind("parallel", backend))
    free = runner.generate(tokens, max_new_tokens=8, temperature=1.0, eos=None).new
    end = int(free[1, 2])
    found = runner.generate(tokens, max_new_tokens=8, temperature=1.0, eos=end).new
    for before, after in zip(free.tolist(), found.tolist(), strict=True):
        stop = before.index(end) if end in before else len(before)
        assert after[:stop] == before[: len(after)][:stop]
        assert set(after[stop:]) <= {end}
    late = [Edit.set("1.mlp", 0.0), Edit.set("1.mlp", 0.0, positions=[15])]
    same = runner.generate(tokens[1:2], max_new_tokens=8, edits=late, eos=None).new
    alone = runner.generate(tokens[1:2], max_new_tokens=8, edits=late, eos=int(same[0, 0]))
    assert alone.new.tolist() == [[int(same[0, 0])]]  # all have ended: no more steps
    assert [fired.times for fired in alone.fired] == [1, 0]
    model_end = runner.weights.model.tokenizer.eos_token_id
    always = [Edit.set("2.resid_post", 100 * runner.unembed.directions(torch.tensor(model_end)))]
    assert runner.generate(tokens, edits=always).new.tolist() == [[model_end]] * 4
    assert runner.generate(tokens, edits=always, eos=None).new.shape == (4, 20)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0; wanted at least 1"),
        (
            {"max_new_tokens": 56},
            "max_new_tokens=56 after 9 tokens exceeds the model's context of 64",
        ),
        ({"temperature": -0.1}, "temperature=-0.1; wanted a number from 0"),
        ({"temperature": float("nan")}, "temperature=nan; wanted a number from 0"),
        ({"top_k": 0}, "top_k=0; wanted at least 1, or None"),
        ({"seed": -1}, "seed=-1; wanted integers from 0"),
        ({"seed": [1, 2, -3, 4]}, r"seed=\[1, 2, -3, 4\]; wanted integers from 0"),
        ({"seed": "abc"}, "seed='abc'; wanted integers from 0"),
        ({"seed": 1.5}, "seed=1.5; wanted integers from 0"),
        ({"seed": [1, 2, 3, None]}, "None.; wanted integers from 0"),
        ({"seed": [1, 2]}, "seed has 2 entries for 4 rows; wanted as many"),
        ({"eos": 300}, "eos=300; wanted a token id from 0 to 299"),
        ({"where": "old"}, "where='old'; wanted 'all', 'prompt' or 'new'"),
        (
            {"edits": [Edit.set("1.mlp", 0.0, positions=[12])]},
            "wanted integers from -9 to 11, each once",
        ),
        ({"edits": [Edit.set("1.mlp", torch.zeros(9, 32))]}, r"broadcasts to \(4, pos, 32\)"),
        (
            {"edits": [Edit.set("1.mlp", 0.0)], "where": "new", "max_new_tokens": 1},
            "max_new_tokens=1 with where='new': the edit at '1.mlp' never fires",
        ),
    ],
)
def test_generations_that_cannot_be_are_refused(kind, tokens, options, text, monkeypatch):
    runner = Runner.of(kind())
    monkeypatch.setattr(runner.forward, "embed", None)
    with pytest.raises(ValueError, match=text):
        unchecked(Runner.generate)(runner, tokens, **{"max_new_tokens": 4, **options})


def test_a_prompt_has_tokens(kind):
    with pytest.raises(ValueError, match="is empty; wanted at least one token"):
        Runner.of(kind()).generate(torch.zeros(2, 0, dtype=torch.long))
