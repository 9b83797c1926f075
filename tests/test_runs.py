"""Runs: mappings that every function over caches takes; made by running, editing, of caches."""

import numpy as np
import pytest
import torch
from random_models import unchecked

from mlp_interp import Edit, Site, decompose
from mlp_interp.models import Forward, forward_of
from mlp_interp.runs import Run, kept_sites, run

EDITS = [
    Edit.add("0.resid_post", 0.5, positions=[1]),
    Edit.set("1.mlp", 0.0),
    Edit.scale("L1H2", 2.0, positions=-1),
    Edit.add("1.resid_pre", 0.25),
    Edit.clamp("2.post", high=0.1),
    Edit.scale(Site("q", 2, head=1), 0.5),
    Edit.scale(Site("pattern", 0, head=1), 0.5),
]


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def cache_of(model, tokens, **options):
    with torch.no_grad():
        return model.run_with_cache(tokens, **options)[1]


def test_a_run_holds_what_the_library_caches(model, tokens):
    found, cache = run(model, tokens), cache_of(model, tokens)
    names = [name for name in found if name != "tokens"]
    assert len(names) > 10 * model.cfg.n_layers
    for name in names:
        close(found[name], cache[name].expand_as(found[name]), 1e-4)
    pattern = "blocks.1.attn.hook_pattern"
    if pattern in found:  # computed where it is asked for; not through hooks
        close(found[pattern], cache[pattern], 1e-5)


def test_places_are_named_in_every_way(kind, tokens):
    found = run(kind(), tokens)
    whole = found["blocks.2.hook_mlp_out"]
    for key in (Site("mlp_out", 2), "2.mlp", ("mlp_out", 2), ("mlp_out", -1)):
        assert found[key] is whole, key
    assert torch.equal(found["L1H3"], found["z", 1][:, :, 3])
    assert torch.equal(found[Site("pattern", 1, head=3)], found["pattern", 1][:, 3])
    assert torch.equal(found["L0N7"], found["post", 0][:, :, 7])
    assert found["tokens"] is found.tokens
    with pytest.raises(ValueError, match=r"site='1.z' was not kept by the run, which has"):
        run(kind(), tokens, sites=["1.mlp"]).at(Site("z", 1))


@pytest.mark.usefixtures("without_type_checks")
def test_keys_of_nothing_are_refused_by_name(kind, tokens):
    found = run(kind(), tokens)
    for wrong, said in {
        "9.mlp": "layer=9 in '9.mlp'; wanted layers 0 to 2",
        "blocks.9.hook_mlp_out": "layer=9 in 'blocks.9.hook_mlp_out'; wanted layers 0 to 2",
        "L9H0": "layer=9 in 'L9H0'; wanted layers 0 to 2",
        "L1H4": "'L1H4'; wanted heads 0 to 3",
        "L1N64.pre": "'L1N64.pre'; wanted neurons 0 to 63",
        "nobody": "label='nobody' is not a component label",
        "1.b_O": "'1.b_O' is a parameter",
        ("mlp_out", 9): "wanted layers 0 to 2",
        ("mlp_out", -4): r"layer=-4 in \('mlp_out', -4\); wanted layers -3 to 2",
        ("mlp_out", "1"): "key=.*; wanted a hook name, a label",
        ("x", 1): "name='x' is not a site",
        5: "key=5; wanted a hook name, a label such as",
        None: "key=None; wanted a hook name",
        "pos_embed": "site='pos_embed' was not kept by the run, which has the streams and embed,",
    }.items():
        assert wrong not in found
        assert found.get(wrong) is None
        with pytest.raises(KeyError, match=said):
            found[wrong]
    with pytest.raises(KeyError, match=r"layer=9 .*; wanted layers 0 to 2"):
        found.pattern(9)


@pytest.mark.parametrize("through", ["lean", "hooks"])
def test_edits_in_two_steps_are_edits_in_one(kind, backend, tokens, through, monkeypatch):
    model = kind("parallel", backend, dtype=torch.float64)
    if through == "hooks":
        monkeypatch.setattr("mlp_interp.models.engine.remembered", lambda model, work_out: None)
    assert forward_of(model).engine == through
    sites = ["z", "mlp_out", "pattern"]
    clean = run(model, tokens, sites=sites)
    for cut in range(len(EDITS) + 1):
        first = clean.edited(EDITS[:cut])
        twice, once = first.edited(EDITS[cut:]), run(model, tokens, sites=sites, edits=EDITS)
        close(twice.final, once.final, 1e-12)
        assert twice.fired == once.fired, cut
        assert twice.edits == tuple(EDITS)
        for site in once.kept:
            close(twice.at(site), once.at(site), 1e-12)
        for layer in range(3):
            close(twice["resid_post", layer], once["resid_post", layer], 1e-12)
    assert clean.edited([]) is clean


def test_an_edited_run_shares_what_lies_below(kind, tokens):
    clean = run(kind(), tokens)
    later = clean.edited([Edit.set("2.mlp", 0.0)])
    assert all(later.streams[n] is clean.streams[n] for n in range(3))
    assert later["z", 1] is clean["z", 1]
    assert later["mlp_out", 2].abs().max() == 0
    with pytest.raises(ValueError, match="was not kept by the run"):
        run(kind(), tokens, sites=()).edited([Edit.set("2.mlp", 0.0)], sites=[Site("z", 0)])


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("architecture", ["parallel", "sequential"])
def test_what_a_block_wrote_is_computed_anew_only_where_that_changes(
    kind, architecture, at, tokens, monkeypatch
):
    model = kind(architecture, dtype=torch.float64)
    read_by_mlp = {"pre"} if architecture == "sequential" else set[str]()
    computed: set[str] = set()
    for name in ("heads", "pre"):
        own = getattr(Forward, name)

        def counted(self, layer, x, name=name, own=own):
            computed.update({name} if layer == at else ())
            return own(self, layer, x)

        monkeypatch.setattr(Forward, name, counted)
    anew = {
        "resid_pre": {"heads", "pre"},
        **{name: {"heads", *read_by_mlp} for name in ("q", "v", "z", "pattern")},
        "attn_out": read_by_mlp,
        **{name: {"pre"} for name in ("pre", "post")},
        **{name: set[str]() for name in ("mlp_out", "resid_post")},
    }
    sites = ["attn_out", "mlp_out"]
    clean, bare = run(model, tokens, sites=sites), run(model, tokens, sites=())
    for name, expected in anew.items():
        for one in ("attn_out", "mlp_out", name):
            edits = [Edit.scale(Site(one, at), 0.5), Edit.scale(Site(name, at), 3.0, positions=[1])]
            computed.clear()
            found = clean.edited(edits)
            assert computed == expected | anew[one], (name, one)
            full = run(model, tokens, sites=sites, edits=edits)
            for layer in range(model.cfg.n_layers):
                close(found["resid_post", layer], full["resid_post", layer], 1e-12)
            assert found.fired == full.fired
            computed.clear()
            close(clean.edited(edits[:1]).edited(edits[1:]).final, full.final, 1e-12)
            close(bare.edited(edits).final, full.final, 1e-12)
    computed.clear()
    asked = clean.edited(
        [Edit.scale(Site("mlp_out", at), 0.5)], sites=[Site("z", at), Site("post", at)]
    )
    assert computed == {"heads", "pre"}
    assert Site("z", at) in asked.kept


@pytest.mark.parametrize("architecture", ["parallel", "sequential", "gpt2"])
def test_a_cache_becomes_a_run(kind, backend, architecture, tokens):
    model = kind(architecture, backend, dtype=torch.float64)
    expected, whole = run(model, tokens), cache_of(model, tokens)
    ends = ("hook_embed", "hook_pos_embed", "hook_resid_pre", "hook_resid_post")
    parts = ("hook_embed", "hook_pos_embed", "hook_attn_out", "hook_mlp_out")
    made = {
        "all": Run.of_cache(model, whole),
        "dict": Run.of_cache(model, dict(whole.items())),
        "streams": Run.of_cache(
            model, cache_of(model, tokens, names_filter=lambda name: name.endswith(ends))
        ),
        "outputs": Run.of_cache(
            model, cache_of(model, tokens, names_filter=lambda name: name.endswith(parts))
        ),
        "one": Run.of_cache(model, cache_of(model, tokens[:1], remove_batch_dim=True)),
    }
    for how, found in made.items():
        rows = slice(1 if how == "one" else None)
        assert torch.equal(found.tokens, tokens[rows]), how
        close(found.final, expected.final[rows], 1e-5)  # the library's rotary table is float32
        close(found.attention(1).z, expected["z", 1][rows], 1e-5)
        close(
            found.edited([Edit.set("1.mlp", 0.0)], sites=()).final,
            expected.edited([Edit.set("1.mlp", 0.0)]).final[rows],
            1e-5,
        )
    assert Run.of_cache(model, expected) is expected


def test_what_a_cache_says_that_blocks_wrote_is_not_gone_on_with(kind, tokens):
    """All that is known of it is that the model repeats its streams."""
    model = kind(dtype=torch.float64)
    cache = dict(cache_of(model, tokens).items())
    cache["blocks.1.hook_mlp_out"] = cache["blocks.1.hook_mlp_out"] + 1
    edits = [Edit.set("2.mlp", 0.0), Edit.scale("1.attn", 0.5)]
    expected, found = run(model, tokens, edits=edits), Run.of_cache(model, cache)
    found = found.edited(edits[0], sites=[Site("mlp_out", 1)]).cut()
    close(found.edited(edits[1], sites=()).final, expected.final, 1e-5)


def test_caches_that_do_not_suffice_say_what_would(kind, tokens):
    model = kind()
    some = cache_of(model, tokens, names_filter=lambda name: name.endswith("hook_mlp_out"))
    with pytest.raises(
        ValueError, match=r"cache lacks the stream at the input of block 0 and hook_e"
    ):
        Run.of_cache(model, some)
    streams = cache_of(model, tokens, names_filter=lambda name: "hook_resid" in name)
    edited = {name: x + 1 for name, x in streams.items()}
    with pytest.raises(ValueError, match=r"sequence 0, position 0 that is no token's"):
        Run.of_cache(model, edited)
    with pytest.raises(ValueError, match=r"tokens=\(4, 3\) beside a cache of \(4, 9\)"):
        Run.of_cache(model, streams, tokens=tokens[:, :3])
    with pytest.raises(ValueError, match="is a run of another model"):
        Run.of_cache(kind("sequential"), run(model, tokens))


def test_a_run_without_edits_decomposes(model, tokens):
    residual = decompose(model, run(model, tokens), level="head")
    assert residual.error() < 1e-3


def test_what_is_kept_is_what_was_named(kind, tokens):
    weights = forward_of(kind()).weights
    assert [site.label for site in kept_sites(weights, "mlp_out")] == ["0.mlp", "1.mlp", "2.mlp"]
    named = ["2.mlp", "blocks.1.attn.hook_z", Site("post", 0), "L0H1"]
    assert [site.label for site in kept_sites(weights, named)] == ["2.mlp", "1.z", "0.post", "L0H1"]
    assert "pattern" not in {site.name for site in kept_sites(weights, "all")}
    with pytest.raises(ValueError, match=r"sites='nobody' is not .*; wanted 'all', 'resid_pre',"):
        run(kind(), tokens, sites="nobody")


def test_rows_and_beginnings_of_a_run_are_runs(kind, tokens):
    whole = run(kind(), tokens, sites=["z", "pattern"])
    part = whole.cut(rows=slice(1, 3), length=5)
    alone = run(kind(), tokens[1:3, :5], sites=["z", "pattern"])
    assert (part.batch, part.length) == (2, 5)
    for name in alone:
        close(part[name], alone[name], 1e-5)


def test_a_run_is_itself_and_knows_what_it_holds(kind, tokens, monkeypatch):
    one, other = run(kind(), tokens), run(kind(), tokens)
    assert one == one != other
    assert len({one, other, one}) == 2
    monkeypatch.setattr(Run, "scores", None)  # nothing is computed to say what is there
    assert "blocks.1.attn.hook_pattern" in one
    assert ("pattern", 2) in one
    assert ("pattern", 3) not in one
    assert "blocks.7.hook_mlp_out" not in one


def test_logits_at_positions_that_are_not_there(kind, tokens):
    made = run(kind(), tokens)
    np.testing.assert_array_equal(made.logits(np.int64(-1)), made.logits([8]))
    for positions in (9, [0, 0], "last"):
        with pytest.raises(ValueError, match=r"positions=.*; wanted"):
            unchecked(Run.logits)(made, positions)
    with pytest.raises(ValueError, match="beside a run of others"):
        Run.of_cache(kind(), made, tokens=tokens + 1)


def test_a_cache_that_the_model_does_not_repeat_is_not_gone_on_from(kind, tokens):
    """Whichever of its prompts differs: here the last, by a mask of padding."""
    model, mask = kind(), torch.ones_like(tokens)
    mask[-1, 2] = 0
    with torch.no_grad():
        masked = model.run_with_cache(tokens, attention_mask=mask)[1]
    made, plain = Run.of_cache(model, masked), Run.of_cache(model, cache_of(model, tokens))
    with pytest.raises(ValueError, match="cache ends elsewhere than the model does"):
        made.edited([Edit.scale("1.mlp", 1.0)])
    same = plain.edited([Edit.scale("1.mlp", 1.0)])
    close(same.edited([Edit.scale("2.mlp", 1.0)]).final, plain.final)
