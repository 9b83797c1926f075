"""Inputs that drive an activation highest are optima; mean embeddings go on as they should."""

import itertools
from dataclasses import fields

import pytest
import reference
import torch
from random_models import build, tiny_tokenizer, unchecked

from mlp_interp import load, save
from mlp_interp.models import HookForward, Weights, forward_of
from mlp_interp.neurons import AscentOptions, maximize
from mlp_interp.neurons.inputs.ascent import ascend
from mlp_interp.neurons.inputs.embeddings import expected_embedding_generate
from mlp_interp.neurons.inputs.search import Search
from mlp_interp.neurons.inputs.space import Space
from mlp_interp.neurons.inputs.target import AscentTarget
from mlp_interp.neurons.inputs.vectors import read_aloud, vocabulary_of
from mlp_interp.runs import Runner
from mlp_interp.sites import Site

SITES = "L1N3 L1N3.pre L2H1 L1H2.q 1.resid_pre 2.mlp 0.attn 2.resid_post 1.post".split()
KNOWN = len(tiny_tokenizer())  # the embedding is padded beyond
QUICK = {"length": 3, "restarts": 2, "steps": 12, "max_new_tokens": 0}
SEARCH = {field.name for field in fields(AscentOptions)}


def driven(model, site, call=maximize, **options):
    """`maximize`, with the options of the search among the others."""
    ascent = {name: options.pop(name) for name in SEARCH & options.keys()}
    return call(model, site, ascent=AscentOptions(**ascent), **options)


def direction_for(model, label):
    site, weights = Site.parse(label), Weights.of(model)
    if site.neuron is not None:
        return None
    if site.name in ("pre", "post"):
        size = weights.d_mlp
    else:
        size = weights.d_model if site.head is None else weights.d_head
    return torch.randn(size, generator=torch.Generator().manual_seed(5))


def activations(model, label, tokens, direction=None, read=1):
    """The slow way: the library's cache, and the activation picked out of it."""
    site = Site.parse(label)
    x = reference.full_cache(model, tokens)[site.hook_name][:, -read:]
    if site.head is not None:
        x = x[:, :, site.head]
    x = x[..., site.neuron] if direction is None else x @ (direction / direction.norm())
    return x.mean(1)


def target_of(model, label, *, sign=1, read=1):
    forward = forward_of(model)
    along = direction_for(model, label)
    unit = None if along is None else (along / along.norm()).to(forward.weights.dtype)
    return AscentTarget(forward, Site.parse(label), sign, unit, read)


def space_of(model, *, length=3, prompt=(0, 5)):
    rows = torch.tensor([list(prompt)], dtype=torch.long)
    return Space(forward_of(model), rows, vocabulary_of(model, None), length)


def test_what_is_driven_is_what_the_model_computes(some_model, tokens):
    model = some_model
    for label, read in itertools.product(SITES, (1, 4)):
        value, score = target_of(model, label, read=read).of_tokens(tokens, batch_size=3)
        expected = activations(model, label, tokens, direction_for(model, label), read)
        torch.testing.assert_close(value, expected, atol=2e-5, rtol=1e-4)
        if label != "L1N3":
            assert torch.equal(score, value)
            lowest = target_of(model, label, sign=-1, read=read)
            torch.testing.assert_close(lowest.of_tokens(tokens, batch_size=9)[1], -value)


@pytest.mark.parametrize("architecture", ["parallel", "sequential", "gpt2"])
def test_gradients_are_those_of_the_objective(kind, architecture):
    model = kind(architecture, processing="raw", dtype=torch.float64)
    space = space_of(model)
    for label, sign in itertools.product(SITES, (1, -1)):
        target = target_of(model, label, sign=sign, read=2)
        x = space.rows[space.start_tokens(3, 0)].requires_grad_()
        (gradient,) = torch.autograd.grad(target(space.stream(x))[1].sum(), x)
        generator = torch.Generator().manual_seed(2)
        step = torch.randn(x.shape, generator=generator, dtype=x.dtype) * 1e-5
        with torch.no_grad():
            up, down = (target(space.stream(x + way * step))[1] for way in (1, -1))
        expected = (gradient * step).sum((1, 2))
        torch.testing.assert_close((up - down) / 2, expected, atol=1e-9, rtol=1e-4)


def test_the_climb_is_the_activation_where_the_neuron_fires_and_has_no_flats(kind):
    target = target_of(kind(), "L0N0")
    pre = torch.tensor([[-40.0], [-9.0], [-5.1], [-4.9], [-1.0], [-0.1], [0.1], [2.0], [9.0]])
    post = target.forward.activate(pre)
    up = target._without_flats(pre, post)
    assert (up.diff(dim=0) > 0).all()
    assert torch.equal(up[6:], post[6:])
    assert torch.equal(up[:6], pre[:6])
    down = AscentTarget(target.forward, target.site, -1, None, 1)._without_flats(pre, post)
    torch.testing.assert_close(down, post, atol=4e-5, rtol=0)
    assert (down[:3].diff(dim=0) < 0).all()


@pytest.mark.parametrize("label", ["L2N7", "1.resid_post"])
def test_one_free_token_is_the_best_of_the_vocabulary(model, label):
    direction, prompt = direction_for(model, label), torch.tensor([0, 7, 9])
    every = torch.cat((prompt.expand(KNOWN, -1), torch.arange(KNOWN)[:, None]), 1)
    values = activations(model, label, every, direction)
    for sign in (1, -1):
        found = driven(
            model,
            label,
            method="coordinate",
            candidates=None,
            direction=direction,
            sign=sign,
            length=1,
            prompt=prompt,
            restarts=1,
            max_new_tokens=0,
        )
        best = (sign * values).max(0)
        assert found["token_id"].item() == best.indices
        assert found["activation"].item() == pytest.approx(sign * float(best.values), abs=2e-5)
        assert found["activation_of_tokens"].item() == found["activation"].item()


@pytest.mark.parametrize("position", [-1, None])
@pytest.mark.parametrize("candidates", [None, 12])
def test_two_free_tokens_are_the_best_pair(kind, position, candidates):
    model, some = kind("parallel"), list(range(10, 34))
    found = driven(
        model,
        "L1N3.pre",
        method="coordinate",
        candidates=candidates,
        length=2,
        position=position,
        vocabulary=some,
        restarts=8,
        steps=24,
        max_new_tokens=0,
    )
    pairs = torch.tensor(list(itertools.product([0], some, some)))
    values = activations(model, "L1N3.pre", pairs, read=1 if position == -1 else 2)
    assert found["token_id"][0].values.tolist() == pairs[values.argmax(), 1:].tolist()
    assert found["activation"][0].item() == pytest.approx(float(values.max()), abs=2e-5)
    assert set(found["token_id"].values.ravel()) <= set(some)
    assert set(found["nearest_id"].values.ravel()) <= set(some)


def test_the_whole_vocabulary_ends_where_no_single_change_helps(kind):
    model = kind("sequential")
    found = driven(
        model, "L2N3.pre", method="coordinate", candidates=None, length=3, steps=999, restarts=1
    )
    assert found.sizes["step"] < 100
    best, tokens = found["activation"].item(), found["token_id"][0].values
    for position in range(3):
        every = torch.tensor([[0, *tokens]]).repeat(KNOWN, 1)
        every[:, 1 + position] = torch.arange(KNOWN)
        assert float(activations(model, "L2N3.pre", every).max()) <= best + 2e-5


def planted(token, *, bias=0.0, processing="folded", backend=None):
    """A model whose neuron L0N5 reads one token's embedding, and that token's share of it."""
    model = build("parallel", backend or "bridge", processing)
    weights = Weights.of(model)
    norm, row = weights.block(0).ln2, weights.W_E[token].clone()
    row = row - row.mean()
    with torch.no_grad():
        mlp = model.blocks[0].mlp
        # Weights of the bridge may be computed from what they wrap: write there.
        W_in, b_in = weights.parameter(0, "W_in"), weights.parameter(0, "b_in")
        receptor = row / row.norm() / norm.w
        W_in[:, 5] = receptor
        b_in[5] = bias - norm.b @ receptor
    del mlp
    return model


@pytest.mark.parametrize("processing", ["folded", "raw"])
def test_a_planted_token_is_found_by_both(processing, backend):
    model = planted(77, processing=processing, backend=backend)
    assert float(activations(model, "L0N5.pre", torch.tensor([[0, 77]]))) > 5
    top = 32**0.5  # a unit receptor on a vector of variance 1
    options = {"length": 2, "restarts": 2, "max_new_tokens": 0}
    for method in ({"steps": 60, "rate": 0.3}, {"method": "coordinate", "steps": 8}):
        found = driven(model, "L0N5", **method, **options)
        assert (found["token_id"][:, 1] == 77).all(), method
        assert found["activation"].values == pytest.approx(top, abs=2e-2)
        assert (found["cosine"][:, 1, 0] > 0.999).all()
        assert (found["nearest_id"][:, 1, 0] == 77).all()
        assert found["token_text"][0, 1] == tiny_tokenizer().decode([77])
        assert found["activation_of_tokens"].values == pytest.approx(top, abs=2e-2)


def test_a_neuron_that_does_not_fire_at_the_start_is_climbed(backend):
    model = planted(77, bias=-5.0, backend=backend)
    found = driven(model, "L0N5", length=1, restarts=3, steps=60, rate=0.3, max_new_tokens=0)
    assert (found["trace"][:, 0] < -2).all()  # the pre-activation; the activation is flat
    assert (found["activation"] > 0.4).all()
    assert (found["token_id"] == 77).all()
    found = driven(model, "L0N5", method="coordinate", length=1, restarts=3, max_new_tokens=0)
    assert (found["trace"].diff("step") >= 0).all()
    assert (found["token_id"] == 77).all()


def test_vectors_climb_beyond_tokens_and_keep_tokens_norms(model):
    options = {"length": 3, "restarts": 2, "max_new_tokens": 0}
    found = driven(model, "L2N7.pre", steps=25, rate=0.3, **options)
    text = driven(model, "L2N7.pre", method="coordinate", candidates=24, steps=6, **options)
    assert found["activation"][0] > text["activation"][0]
    assert (found["activation"].diff("restart") <= 0).all()
    W_E = Weights.of(model).W_E[:KNOWN]
    norms = reference.kept(model, W_E).norm(dim=-1)
    sizes = torch.tensor(found["embedding"].values).norm(dim=-1)
    assert norms.quantile(0.03) <= sizes.min()
    assert sizes.max() <= norms.quantile(0.97)
    if not reference.is_rms(model):
        assert abs(found["embedding"].mean("d_model")).max() < 1e-6
    # The vectors, put in by a hook, drive the model itself as far.
    rows = torch.tensor(found["embedding"].values)
    tokens = torch.zeros(2, 4, dtype=torch.long)

    def put(x, hook=None):
        return torch.cat((x[:, :1], rows), 1)

    seen = []
    hooks = [("hook_embed", put), (Site("pre", 2).hook_name, lambda x, hook=None: seen.append(x))]
    with torch.no_grad():
        model.run_with_hooks(tokens, return_type=None, fwd_hooks=hooks)
    expected = seen[0][:, -1, 7].detach().numpy()
    assert found["activation"].values == pytest.approx(expected, abs=1e-3)


def test_folded_and_raw_weights_have_the_same_optima(kind):
    found = [driven(kind("parallel", processing=p), "L1N3.pre", **QUICK) for p in ("folded", "raw")]
    assert found[0]["activation"].values == pytest.approx(found[1]["activation"].values, abs=1e-2)


def test_staying_near_tokens(kind):
    model = kind("parallel")
    found = {
        near: driven(
            model,
            "L1N3.pre",
            length=3,
            near_tokens=near,
            steps=80,
            rate=0.2,
            restarts=3,
            max_new_tokens=0,
        )
        for near in (0.0, 2.0, 200.0)
    }
    distance = [float(d["distance"].mean()) for d in found.values()]
    assert distance[0] > 1.3 * distance[1] > 1.3 * 1.3 * distance[2]
    assert distance[2] < 0.01
    free, _, near = found.values()
    assert free["activation"][0] > near["activation"][0]
    gaps = [float(abs(d["activation"] - d["activation_of_tokens"]).mean()) for d in found.values()]
    assert gaps[2] < 0.3 * gaps[0]
    assert near["cosine"].isel(rank=0).min() > 0.98


def test_the_cost_of_distance_is_differentiated(kind):
    space = space_of(kind(dtype=torch.float64))
    x = space.rows[space.start_tokens(2, 1)] * 1.2 + 0.05 * space.rows[space.start_tokens(2, 3)]
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(space.distance(x).sum(), x)
    slow = torch.stack([(v - space.rows).square().sum(-1).min() for v in x.flatten(0, 1)])
    torch.testing.assert_close(space.distance(x).flatten(), slow / space.norms[0] ** 2)
    step = 1e-6 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    with torch.no_grad():
        change = (space.distance(x + step) - space.distance(x - step)).sum() / 2
    torch.testing.assert_close(change, (gradient * step).sum(), atol=0, rtol=1e-4)


def test_the_best_vectors_met_are_kept(kind):
    space = space_of(kind())
    along = torch.randn(32, generator=torch.Generator().manual_seed(1))

    def waves(stream):
        score = (4 * stream[:, -1] @ along).sin()  # long steps overshoot here
        return score, score

    start = space.start_vectors(3, 0)
    kept, trace = ascend(waves, space, start, steps=15, rate=1.0, near_tokens=0.0)
    torch.testing.assert_close(waves(space.stream(kept))[1], trace.max(1).values)
    assert (trace.max(1).values > trace[:, -1]).any()
    nothing, trace = ascend(waves, space, start, steps=0, rate=0.1, near_tokens=0.0)
    assert trace.shape == (3, 1)
    torch.testing.assert_close(nothing, space.project(start))
    sizes = start.norm(dim=-1)
    torch.testing.assert_close(sizes, torch.full_like(sizes, space.norms[0]))


@pytest.mark.parametrize("method", ["gradient", "coordinate"])
def test_a_seed_gives_the_same_and_another_seed_something_else(kind, method):
    model = kind("gpt2")
    first, again, other = (
        driven(model, "L1N3", method=method, **QUICK, seed=seed) for seed in (3, 3, 4)
    )
    assert first.identical(again)
    assert not (first["token_id"].values == other["token_id"].values).all()
    assert first.sizes["restart"] == 2
    assert (first["activation"].values >= first["trace"][:, 0].values).all()


@pytest.mark.parametrize("method", ["gradient", "coordinate"])
def test_it_does_not_matter_how_the_caller_has_set_gradients(method, backend):
    plain = driven(build("parallel", backend, "folded"), "L1N3", method=method, **QUICK)
    with torch.no_grad():
        assert driven(build("parallel", backend, "folded"), "L1N3", method=method, **QUICK).equals(
            plain
        )
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        model = build("parallel", backend, "folded")  # even weights that are inference tensors
        forward_of(model)
        assert driven(model, "L1N3", method=method, **QUICK).equals(plain)
        assert torch.is_inference_mode_enabled()


def test_no_hook_reaches_the_gradient_but_the_search_by_trial_goes_on(backend):
    model = build("parallel", backend, "folded")
    clean = driven(model, "L1N3.pre", method="coordinate", candidates=None, length=1, restarts=1)
    model.add_hook("blocks.0.hook_mlp_out", lambda x, hook=None: -3 * x)
    try:
        assert isinstance(forward_of(model), HookForward)
        with pytest.raises(ValueError, match=r"method='gradient'.*hooks.*wanted method='coord"):
            driven(model, "L1N3.pre")
        found = driven(
            model, "L1N3.pre", method="coordinate", candidates=None, length=1, restarts=1
        )
        every = torch.tensor([[0, token] for token in range(KNOWN)])
        values = activations(model, "L1N3.pre", every)
        drawn = driven(
            model, "L1N3.pre", method="coordinate", length=2, candidates=30, restarts=2, steps=9
        )
    finally:
        model.reset_hooks()
    assert found["token_id"].item() == values.argmax()
    assert found["activation"].item() == pytest.approx(float(values.max()), abs=2e-5)
    assert found["activation"].item() != pytest.approx(clean["activation"].item(), abs=1e-3)
    assert (drawn["trace"].diff("step") >= 0).all()
    assert found.attrs["engine"] == "hooks"
    assert drawn["activation"][0] > drawn["trace"][:, 0].max()


def test_continuations_are_greedy(some_model):
    model = some_model
    prompt = torch.tensor([3, 4])
    found = driven(
        model, "L1N3", method="coordinate", **{**QUICK, "max_new_tokens": 5}, prompt=prompt
    )
    tokens = torch.cat((prompt.expand(2, -1), torch.tensor(found["token_id"].values)), 1)
    expected = Runner.of(model).generate(tokens, max_new_tokens=5, eos=None).new
    decoded = [tiny_tokenizer().decode(row) for row in expected.tolist()]
    assert found["continuation"].values.tolist() == decoded
    assert found["continuation_of_tokens"].values.tolist() == decoded
    forward = forward_of(model)
    for engine in (forward, HookForward(Weights.of(model))):
        stream = engine.embed(tokens)
        again = read_aloud(engine, Runner(forward).unembed, stream, steps=5)
        assert torch.equal(again, expected)
    free = driven(model, "L1N3", **{**QUICK, "max_new_tokens": 5}, prompt=prompt)
    tokens = torch.cat((prompt.expand(2, -1), torch.tensor(free["token_id"].values)), 1)
    expected = Runner.of(model).generate(tokens, max_new_tokens=5, eos=None).new
    decoded = [tiny_tokenizer().decode(row) for row in expected.tolist()]
    assert free["continuation_of_tokens"].values.tolist() == decoded


def test_results_save_and_say_what_was_done(kind, tmp_path):
    model = kind("parallel")
    for method in ("gradient", "coordinate"):
        found = driven(model, "L1N3", method=method, prompt="the cat", sign=-1, **QUICK)
        assert load(save(found, tmp_path / f"{method}.nc")).identical(found)
        assert found.attrs["site"] == "L1N3"
        assert found.attrs["prompt"] == "<|endoftext|>the cat"
        assert found.attrs["method"] == method
        assert found.attrs["engine"] == "lean"
    bare = driven(model, "L1N3", prepend_bos=False, **QUICK)
    assert bare.attrs["prompt"] == ""
    mixed = expected_embedding_generate(model, "the cat", max_new_tokens=3)
    assert load(save(mixed, tmp_path / "mixed.nc")).identical(mixed)


def test_a_model_without_a_tokenizer(backend):
    model = build("parallel", backend, "folded")
    model.tokenizer = None
    with pytest.raises(ValueError, match="has no tokenizer"):
        driven(model, "L1N3")
    prompt = torch.tensor([4, 5])
    found = driven(model, "L1N3", prompt=prompt, method="coordinate", **QUICK)
    assert found["token_text"][0, 0] == f"#{int(found['token_id'][0, 0])}"
    assert found.attrs["prompt"] == "#4 #5"
    assert expected_embedding_generate(model, prompt, max_new_tokens=1)["text"].item()[0] == "#"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"site": "L3N3"}, "site='L3N3'; wanted a layer from 0 to 2"),
        ({"site": "L1N64"}, "wanted a neuron from 0 to 63"),
        ({"site": "L1H4", "direction": torch.ones(8)}, "wanted a head from 0 to 3"),
        ({"site": "L1H1"}, r"site='L1H1' without direction; wanted a neuron"),
        ({"direction": torch.ones(32)}, r"'L1N3' with direction; wanted a neuron"),
        ({"site": Site("z", 1), "direction": torch.ones(8)}, "names no head"),
        ({"site": "embed", "direction": torch.ones(32)}, "site='embed'; wanted"),
        ({"site": "1.resid_post", "direction": torch.ones(8)}, r"direction=\(8,\).*wanted.*32"),
        ({"site": "1.resid_post", "direction": torch.zeros(32)}, r"length 0.0; wanted"),
        ({"site": "1.mlp", "direction": torch.full((32,), torch.nan)}, r"length nan"),
        ({"site": "what"}, "site='what' is not a component label"),
        ({"method": "guess"}, "method='guess'; wanted"),
        ({"sign": 0}, "sign=0; wanted"),
        ({"length": 0}, "length=0; wanted an integer from 1"),
        ({"restarts": 0}, "restarts=0"),
        ({"steps": 0}, "steps=0; wanted an integer from 1"),
        ({"candidates": 0}, "candidates=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"max_new_tokens": -1}, "max_new_tokens=-1"),
        ({"near_tokens": -1.0}, "near_tokens=-1.0; wanted"),
        ({"rate": 0.0}, "rate=0.0; wanted"),
        ({"near_tokens": 1.0, "method": "coordinate"}, "near_tokens=1.0 is for method='gradient'"),
        ({"rate": 0.2, "method": "coordinate"}, "rate=0.2 is for method='gradient'; wanted 0.1"),
        ({"candidates": 8}, "candidates=8 is for method='coordinate'; wanted 64"),
        ({"candidates": None}, "candidates=None is for method='coordinate'; wanted 64"),
        ({"position": 2}, "position=2 of length=8 free positions"),
        ({"length": 60}, "length=60 and max_new_tokens=10 after 1 tokens exceed.*64"),
        ({"prompt": torch.tensor([[1], [2]])}, r"prompt=\(2, 1\); wanted token ids"),
        ({"prompt": torch.tensor([300])}, "tokens hold 300"),
        ({"vocabulary": []}, r"vocabulary=\(0,\)"),
        ({"vocabulary": torch.tensor([0.5])}, "vocabulary=.*float"),
        ({"vocabulary": [1, 300]}, "vocabulary holds 300; wanted ids from 0 to 299"),
        ({"vocabulary": [-1]}, "vocabulary holds -1"),
        ({"vocabulary": [1, 1]}, "vocabulary holds a token twice"),
    ],
)
def test_maximize_refuses(kind, options, error):
    with pytest.raises(ValueError, match=error):
        driven(kind(), call=unchecked(maximize), **{"site": "L1N3", **options})


def slow_mixture(model, tokens, steps, temperature):
    """One whole forward of the library a step, with mean embeddings put in by a hook."""
    W_E = model.W_E.detach()
    rows, seen = W_E[tokens], []
    for _ in range(steps):
        with torch.no_grad():
            logits = model.run_with_hooks(
                torch.zeros(rows.shape[:2], dtype=torch.long),
                return_type="logits",
                fwd_hooks=[("hook_embed", lambda x, hook=None, rows=rows: rows)],
            )[:, -1]
        p = (logits.double() / temperature).softmax(-1)
        seen.append(p[0])
        rows = torch.cat((rows, (p.to(W_E.dtype) @ W_E)[:, None]), 1)
    return torch.stack(seen), rows[0, tokens.shape[1] :]


@pytest.mark.parametrize("temperature", [0.7, 3])
def test_mean_embeddings_are_those_of_a_slow_loop(model, temperature):
    tokens = torch.tensor([[0, 9, 60, 3]])
    found = expected_embedding_generate(model, tokens, max_new_tokens=5, temperature=temperature)
    p, mean = slow_mixture(model, tokens, 5, temperature)
    assert found["token_id"].values.tolist() == p.argmax(-1).tolist()
    assert found["probability"].values == pytest.approx(p.max(-1).values.numpy(), rel=1e-3)
    entropy = -(p * p.log()).sum(-1)
    assert found["entropy"].values == pytest.approx(entropy.numpy(), rel=1e-3)
    W_E = Weights.of(model).W_E
    rows, mean = (reference.kept(model, x) for x in (W_E[:KNOWN], mean))
    cosine = torch.nn.functional.cosine_similarity(mean[:, None], rows, dim=-1)
    assert found["nearest_id"].values.tolist() == cosine.argmax(-1).tolist()
    assert found["cosine"].values == pytest.approx(cosine.max(-1).values.numpy(), rel=1e-3)
    ratio = mean.norm(dim=-1) / rows.norm(dim=-1).mean()
    assert found["relative_norm"].values == pytest.approx(ratio.numpy(), rel=1e-3)
    assert found["text"].item() == tiny_tokenizer().decode(found["token_id"].values.tolist())


def test_without_temperature_it_is_greedy_generation(model):
    tokens = torch.tensor([[0, 9, 60, 3]])
    expected = Runner.of(model).generate(tokens, max_new_tokens=12, eos=None).new[0].tolist()
    for temperature in (0, 0.0, 1e-12):
        found = expected_embedding_generate(
            model, tokens, max_new_tokens=12, temperature=temperature
        )
        assert found["token_id"].values.tolist() == expected
        assert found["nearest_id"].values.tolist() == expected
        assert (found["entropy"] == 0).all()
        assert (found["probability"] == 1).all()
        assert found["cosine"].values == pytest.approx(1)


def test_a_hot_mixture_is_the_mean_of_all_tokens(kind):
    model = kind("parallel")
    found = expected_embedding_generate(model, "the", max_new_tokens=2, temperature=1e9)
    assert found["entropy"].values == pytest.approx(torch.tensor(300.0).log().item())
    W_E = Weights.of(model).W_E
    rows = W_E - W_E.mean(-1, keepdim=True)
    expected = rows.mean(0).norm() / rows[:KNOWN].norm(dim=-1).mean()
    assert found["relative_norm"].values == pytest.approx(float(expected), rel=1e-3)


def test_mean_embeddings_on_a_model_that_only_hooks_serve(backend):
    model = build("gpt2", backend, "raw")
    model.add_hook("blocks.1.hook_mlp_out", lambda x, hook=None: 2 * x)
    try:
        found = expected_embedding_generate(model, torch.tensor([4, 5]), max_new_tokens=4)
        p, _ = slow_mixture(model, torch.tensor([[4, 5]]), 4, 1.0)
        greedy = Runner.of(model).generate(torch.tensor([[4, 5]]), max_new_tokens=4, eos=None)
        cold = expected_embedding_generate(
            model, torch.tensor([4, 5]), max_new_tokens=4, temperature=0
        )
    finally:
        model.reset_hooks()
    assert found["probability"].values == pytest.approx(p.max(-1).values.numpy(), rel=1e-3)
    assert cold["token_id"].values.tolist() == greedy.new[0].tolist()
    assert found.attrs["engine"] == "hooks"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"temperature": -1.0}, "temperature=-1.0; wanted a number from 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"max_new_tokens": 0}, "max_new_tokens=0; wanted at least 1"),
        ({"max_new_tokens": 64}, "max_new_tokens=64 after 2 tokens exceeds.*64"),
        ({"prompt": "", "prepend_bos": False}, "prompt='' is empty"),
        ({"prompt": torch.tensor([-1])}, "tokens hold -1"),
        ({"prompt": torch.zeros(1, 1, 1, dtype=torch.long)}, r"prompt=\(1, 1, 1\); wanted"),
    ],
)
def test_mean_embeddings_refuse(kind, options, error):
    with pytest.raises(ValueError, match=error):
        expected_embedding_generate(kind(), **{"prompt": "the", **options})


def test_candidates_are_those_of_largest_first_order_gain(kind):
    model = kind("parallel", dtype=torch.float64)
    target, space = target_of(model, "L1N3.pre"), space_of(model)
    chosen = space.start_tokens(2, 0)
    search = Search(target, space, steps=1, candidates=8, batch_size=99, seed=0)
    gains = search._gains(chosen, 1)
    rows, small = space.rows, 1e-5
    before = target(space.stream(rows[chosen]))[1]
    for token in (3, 99, 250):
        moved = rows[chosen].clone()
        moved[:, 1] = torch.lerp(moved[:, 1], rows[token], small)
        slope = (target(space.stream(moved))[1] - before) / small
        here = gains.gather(1, chosen[:, 1:2])[:, 0]
        torch.testing.assert_close(gains[:, token] - here, slope, atol=1e-3, rtol=1e-3)
    tried = search._candidates(chosen, 1, torch.Generator().manual_seed(0))
    assert tried.shape == (2, 8)
    assert tried[:, :6].tolist() == gains.topk(6).indices.tolist()
