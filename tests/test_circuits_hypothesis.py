"""Average unexplained effects against plain hooks, their identities, and their errors."""

from itertools import combinations
from itertools import pairwise as neighbours

import numpy as np
import pytest
import reference
import torch
from contrasts import contrast_of
from random_models import BACKENDS, PROCESSINGS, pairwise, unchecked
from reference_paths import close

from mlp_interp import metrics, paths
from mlp_interp.circuits import evaluate_hypothesis, node_circuits, path_circuits
from mlp_interp.models import Weights

NODES = ["L0H1", "L1H2.q", "L1H2.k", "L2H3.v", "1.attn", "0.mlp", "L1N5", "L1N40", "L2N0"]
EVERYTHING = [f"{layer}.{kind}" for layer in range(3) for kind in ("attn", "mlp")]
KINDS = pairwise(("parallel", "sequential", "gpt2"), BACKENDS, PROCESSINGS)


def slow_circuit(model, contrast, nodes):
    """Metric of a circuit: hooks hold whatever it has not at the corrupted run's values."""
    other = reference.full_cache(model, contrast.corrupted_tokens)

    def holding(name, kept):
        def hook(x, hook=None):
            new = other[name].clone()
            new[:, :, kept] = x[:, :, kept]
            return new

        return hook

    hooks = {}
    for layer in range(model.cfg.n_layers):
        labels = [label.split(".") for label in nodes if label.startswith(f"L{layer}")]
        units = [(int(stem[3:]), stem[2], part) for stem, *part in labels]
        heads = [u for u in units if u[1] == "H"]
        neurons = [unit for unit, kind, _ in units if kind == "N"]
        if f"{layer}.attn" in nodes:
            heads = [(head, "H", []) for head in range(model.cfg.n_heads)]
        if f"{layer}.mlp" in nodes:
            neurons = list(range(model.cfg.d_mlp))
        hooks[f"blocks.{layer}.mlp.hook_post"] = neurons
        hooks[f"blocks.{layer}.attn.hook_z"] = [head for head, *_ in heads]
        for name in "qkv":
            hears = [head for head, _, part in heads if part in ([], [name])]
            hooks[f"blocks.{layer}.attn.hook_{name}"] = hears
    hooks = {name: holding(name, kept) for name, kept in hooks.items()}
    logits = reference.hooked_logits(model, contrast.clean_tokens, hooks)
    rows = torch.arange(len(logits))
    return (logits[rows, -1, contrast.answers] - logits[rows, -1, contrast.foils]).numpy()


@pytest.mark.parametrize(("architecture", "backend", "processing"), KINDS)
def test_every_circuit_is_what_hooks_give(kind, architecture, backend, processing):
    model = kind(architecture, backend, processing, torch.float64)
    contrast = contrast_of(4)
    clean = slow_circuit(model, contrast, EVERYTHING)
    for nodes in (NODES, ["L2H1.q"], ["embed", "1.mlp", "logits"], EVERYTHING):
        found = evaluate_hypothesis(model, contrast, nodes=nodes, draws=0)
        circuit = slow_circuit(model, contrast, nodes)
        close(found.circuit, circuit)
        close(found.clean, clean)
        close(found.aue, np.abs(clean - circuit).mean())
        close(found.ate, np.abs(clean - found.corrupted).mean())
        close(found.explained, 1 - found.aue / found.ate)
        assert float(found.check_everything) < 1e-10
        assert float(found.check_nothing) < 1e-10
    assert float(found.aue) < 1e-10  # the last was the whole model


def slow_chain(model, contrast, path):
    """Metric of one path: what each component computes is recorded and handed on, hook by hook."""
    base = reference.full_cache(model, contrast.corrupted_tokens)
    source = reference.full_cache(model, contrast.clean_tokens)
    layers = range(model.cfg.n_layers)
    held = [f"blocks.{x}.{n}" for x in layers for n in ("attn.hook_z", "hook_mlp_out")]

    def run(values, record=()):
        found = {}

        def hook_for(name):
            def hook(x, hook=None):
                x = values.get(name, x).expand_as(x).clone()
                found[name] = x
                return x

            return hook

        names = {*values, *record}
        logits = reference.hooked_logits(
            model, contrast.corrupted_tokens, {name: hook_for(name) for name in names}
        )
        return logits, found

    def place(label):
        if label == "embed":
            return "hook_embed", slice(None), ()
        stem, _, part = label.partition(".")
        if label.startswith("L"):
            at = f"blocks.{stem[1]}.attn"
            inputs = [f"{at}.hook_{x}" for x in ([part] if part else "qkv")]
            return f"{at}.hook_z", int(stem[3:]), inputs
        if part == "attn":
            at = f"blocks.{stem}.attn"
            return f"{at}.hook_z", slice(None), [f"{at}.hook_{x}" for x in "qkv"]
        return f"blocks.{stem}.hook_mlp_out", slice(None), [f"blocks.{stem}.mlp.hook_pre"]

    def placed(new, name, unit):
        value = base[name].clone()
        value[:, :, unit] = new[:, :, unit]
        return {name: value}

    name, unit, _ = place(path[0])
    sent = placed(source[name], name, unit)
    frozen = {x: base[x] for x in held}
    for _, label in neighbours(path):
        name, unit, inputs = place(label)
        _, heard = run(frozen | sent, inputs)
        inner = slice(None) if name.endswith("mlp_out") else unit
        values = {x: placed(heard[x], x, inner)[x] for x in inputs}
        _, found = run(values, [name])
        sent = placed(found[name], name, unit)
    logits, _ = run(frozen | sent)
    rows = torch.arange(len(logits))
    return (logits[rows, -1, contrast.answers] - logits[rows, -1, contrast.foils]).numpy()


@pytest.mark.parametrize(("architecture", "backend", "processing"), KINDS)
def test_every_path_is_what_hooks_hand_on(kind, architecture, backend, processing):
    model = kind(architecture, backend, processing, torch.float64)
    contrast = contrast_of()
    chains = [
        ["embed", "L0H1", "L1H2.q", "2.mlp"],
        ["0.mlp", "L1H0.v", "L2H3"],
        ["L0H2", "1.attn", "L2H1.k"],
        ["embed", "1.mlp", "L2H2.v"],
        ["1.attn"],
    ]
    if architecture != "parallel":
        chains.append(["L0H2", "0.mlp", "L1H1", "1.mlp"])
    for chain in chains:
        found = evaluate_hypothesis(model, contrast, nodes=[[*chain, "logits"]], draws=0)
        expected = slow_chain(model, contrast, chain)
        close(found.circuit, expected)
        assert found.attrs["nodes"] == [" > ".join([*(x for x in chain), "logits"])]
        assert float(found.check_everything) < 1e-10
        assert float(found.check_nothing) < 1e-10


@pytest.mark.parametrize("architecture", ["parallel", "sequential"])
def test_all_paths_through_some_nodes_are_the_circuit_of_those_nodes(kind, architecture):
    model = kind(architecture, BACKENDS[0], "raw", torch.float64)
    contrast, nodes = contrast_of(), ["L0H1", "0.mlp", "L1H2.q", "L1N5", "2.attn", "L2N7"]
    layer = {"L0H1": 0, "0.mlp": 1, "L1H2.q": 2, "L1N5": 3, "2.attn": 4, "L2N7": 5}

    def hears(one, other):
        if architecture == "sequential" and layer[one] + 1 == layer[other]:
            return True
        return layer[one] // 2 < layer[other] // 2

    inner = [c for size in range(len(nodes) + 1) for c in combinations(nodes, size)]
    inner = [c for c in inner if all(hears(*pair) for pair in neighbours(c))]
    found = evaluate_hypothesis(model, contrast, nodes=[["embed", *c] for c in inner], draws=0)
    # The queries of L1H2 hear the circuit, its keys and values are the other run's in both.
    close(found.circuit, evaluate_hypothesis(model, contrast, nodes=nodes, draws=0).circuit)
    some = [["embed", *c] for c in inner if "0.mlp" not in c]
    few = evaluate_hypothesis(model, contrast, nodes=some, draws=0)
    assert float(np.abs(few.circuit - found.circuit).max()) > 1e-8
    hooks = evaluate_hypothesis(model, contrast, nodes=some[:4], engine="hooks", draws=0)
    lean = evaluate_hypothesis(model, contrast, nodes=some[:4], memory=1e-3, draws=0)
    close(hooks.circuit, lean.circuit)


def test_whole_starts_hold_what_paths_through_them_would_add(kind):
    model, contrast = kind("parallel", BACKENDS[0], "folded", torch.float64), contrast_of()
    one = evaluate_hypothesis(model, contrast, nodes=[["L1H2"], ["embed", "L1H2"]], draws=0)
    inputs = [["L1H2.q"], ["L1H2.k"], ["L1H2.v"]]
    two = evaluate_hypothesis(model, contrast, nodes=inputs, draws=0)
    alone = paths.path_patch(model, contrast, senders="L1H2", receivers="logits")
    close(one.circuit, alone.raw[0, 0])
    close(two.circuit, alone.raw[0, 0])
    partial = evaluate_hypothesis(model, contrast, nodes=inputs[:1], draws=0)
    alone = paths.path_patch(model, contrast, senders="L1H2.q", receivers="logits")
    close(partial.circuit, alone.raw[0, 0])


def test_random_paths_keep_their_shape(kind):
    weights = Weights.of(kind("parallel"))
    given = [["embed", "L0H1", "L1H2.q", "2.mlp"], ["L0H1", "L1N3", "logits"]]
    given = [path_circuits.path_of(weights, path) for path in given]
    drawn = path_circuits.random_paths(weights, given, np.random.default_rng(1))
    assert [[s.name for s in path] for path in drawn] == [[s.name for s in p] for p in given]
    assert [[s.layer for s in path] for path in drawn] == [[s.layer for s in p] for p in given]
    assert drawn[0][1] == drawn[1][0]
    assert drawn != given
    found = evaluate_hypothesis(kind("parallel"), contrast_of(), nodes=[["L0H1"]], draws=3)
    assert found.random.shape == (3, 2)


def test_random_circuits_are_of_the_same_kinds_and_repeat(kind):
    model, contrast = kind("parallel", BACKENDS[0], "folded", torch.float64), contrast_of()
    nodes = ["L0H1", "L1H2", "1.mlp", "L2N3"]
    first = evaluate_hypothesis(model, contrast, nodes=nodes, draws=4, seed=3)
    again = evaluate_hypothesis(model, contrast, nodes=nodes, draws=4, seed=3)
    other = evaluate_hypothesis(model, contrast, nodes=nodes, draws=4, seed=4)
    close(first.random, again.random, atol=0)
    assert float(np.abs(first.random - other.random).max()) > 0
    close(first.random_aue, np.abs(first.clean - first.random).mean("prompt"))
    close(first.random_explained, 1 - first.random_aue / first.ate)
    close(first.as_good, (first.random_aue <= first.aue).mean())
    # All heads, drawn at random, are all heads.
    heads = [f"L{layer}H{head}" for layer in range(3) for head in range(4)]
    found = evaluate_hypothesis(model, contrast, nodes=heads, draws=2)
    close(found.random[0], found.circuit)
    assert float(found.as_good) == 1
    mlps = evaluate_hypothesis(model, contrast, nodes=["0.mlp", "1.mlp", "2.mlp"], draws=1)
    close(mlps.random[0], mlps.circuit)


def test_random_nodes_keep_which_inputs_hear(kind):
    weights = Weights.of(kind("parallel"))
    nodes = [node_circuits.node_of(weights, label) for label in NODES]
    drawn = node_circuits.random_nodes(weights, nodes, np.random.default_rng(0))
    assert sorted(node.name for node in drawn) == sorted(node.name for node in nodes)
    heads = [(node.layer, node.head) for node in drawn if node.head is not None]
    assert len(heads) == len(set(heads)) == 4


def test_pairs_of_several_lots_count_alike(kind):
    """Both ways round, or of other lengths: as if each were measured by itself."""
    model = kind("sequential", BACKENDS[0], "raw", torch.float64)
    one, two = contrast_of(3), contrast_of(2, seed=5)
    short = type(two)(
        clean_tokens=two.clean_tokens[:, :5],
        corrupted_tokens=two.corrupted_tokens[:, :5],
        answers=two.answers,
        foils=two.foils,
    )
    lots = [one, one.swap(), short]
    found = evaluate_hypothesis(model, lots, nodes=NODES, draws=2)
    apart = [evaluate_hypothesis(model, lot, nodes=NODES, draws=2) for lot in lots]
    for name in ("circuit", "clean", "random", "unexplained"):
        close(found[name], np.concatenate([x[name] for x in apart], axis=-1))
    assert found.contrast.values.tolist() == [0] * 3 + [1] * 3 + [2] * 2
    left, total = np.abs(found.unexplained.values), np.abs(found.total.values)
    close(found.aue_se, left.std(ddof=1) / np.sqrt(8), rtol=1e-6)
    # The share's error to first order, against leaving out one pair at a time.
    shares = [np.delete(left, i).mean() / np.delete(total, i).mean() for i in range(8)]
    jackknife = np.sqrt(7 / 8 * np.square(np.array(shares) - np.mean(shares)).sum())
    assert float(found.explained_se) == pytest.approx(jackknife, rel=0.3)


def test_the_model_itself_gives_the_same(kind, backend):
    model, contrast = kind("gpt2", backend, "raw", torch.float64), contrast_of()
    lean = evaluate_hypothesis(model, contrast, nodes=NODES, draws=2)
    hooks = evaluate_hypothesis(model, contrast, nodes=NODES, draws=2, engine="hooks", memory=1e-3)
    assert (lean.engine, hooks.engine) == ("lean", "hooks")
    for name in ("circuit", "random", "aue", "explained"):
        close(hooks[name], lean[name])


def test_the_same_circuit_drawn_is_as_good_whatever_made_the_runs(kind):
    """Whose rounding is larger than that of batches: paths through one head are drawn again."""
    model, contrast = kind("sequential", processing="raw"), contrast_of(1, 7)
    with torch.no_grad():
        sides = contrast.clean_tokens, contrast.corrupted_tokens
        runs = [model.run_with_cache(tokens)[1] for tokens in sides]
    options = {"nodes": [["embed", "0.mlp", "L1H1.q", "logits"]], "draws": 1}
    found, expected = (
        evaluate_hypothesis(model, contrast, runs=given, **options) for given in (runs, None)
    )
    np.testing.assert_allclose(found.random, expected.random, atol=1e-4)
    assert float(found.as_good) == float(expected.as_good) == 1


def test_pairs_without_an_effect_have_no_share(kind):
    contrast = contrast_of()
    metric = metrics.Custom(
        name="constant", unit="logits", function=lambda logits, _: 0 * logits[:, 0, 0]
    )
    found = evaluate_hypothesis(kind("parallel"), contrast, metric, nodes=["0.mlp"], draws=1)
    assert float(found.ate) == float(found.aue) == 0
    assert np.isnan(found.explained)
    alone = evaluate_hypothesis(kind("parallel"), contrast[0], nodes=["0.mlp"], draws=0)
    assert np.isnan(alone.aue_se)
    assert np.isnan(alone.as_good)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"nodes": []}, r"nodes=\[\] is no circuit; wanted labels such as L3H5"),
        ({"nodes": ["embed", "logits"]}, "is no circuit"),
        ({"nodes": ["L3H0"]}, "nodes='L3H0'; wanted a layer from 0 to 2"),
        ({"nodes": ["L0H4.v"]}, "nodes='L0H4.v'; wanted a head from 0 to 3"),
        (
            {"nodes": ["head"]},
            r"nodes='head' is not a component label .*; wanted 'embed', 'logits', or a label",
        ),
        ({"nodes": ["1.resid_pre"]}, "nodes='1.resid_pre' computes nothing"),
        ({"nodes": ["L0H0.pattern"]}, "nodes='L0H0.pattern' computes nothing"),
        ({"nodes": ["0.mlp", ["0.mlp"]]}, "mixes nodes and paths; wanted labels, or lists"),
        ({"nodes": [["logits"]]}, "is no path; wanted components in order"),
        ({"nodes": [["0.mlp", "embed"]]}, "is no path"),
        ({"nodes": [["0.mlp", "logits", "1.mlp"]]}, "is no path"),
        ({"nodes": [["1.mlp", "L1H0"]]}, "is no path: 1.mlp writes after L1H0 reads"),
        ({"nodes": [["L0H1", "0.mlp"]]}, "is no path: L0H1 writes after 0.mlp reads"),
        ({"nodes": [["nothing"]]}, "nodes='nothing' is not a component label"),
        ({"nodes": 5}, "nodes=5; wanted"),
        ({"contrasts": []}, r"contrasts=\[\] is empty"),
        ({"draws": -1}, "draws=-1; wanted at least 0"),
        ({"seed": -2}, "seed=-2; wanted an integer from 0"),
        ({"engine": "lean"}, "engine='lean'; wanted 'auto' or 'hooks'"),
        ({"memory": -1.0}, "memory=-1.0; wanted a number of MiB above 0"),
        ({"metric": "loss"}, "metric='loss'"),
        (
            {"metric": metrics.kl(), "contrasts": [contrast_of(), contrast_of()]},
            "metric='kl' is a Metric for 2 contrasts; wanted its name",
        ),
    ],
)
def test_errors(kind, options, text):
    options = {"contrasts": contrast_of(), "nodes": ["0.mlp"], **options}
    with pytest.raises(ValueError, match=text):
        unchecked(evaluate_hypothesis)(kind("parallel"), **options)
