"""Directions against plain loops over hooked forward passes, in float64."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from random_models import unchecked
from scipy.stats import mannwhitneyu

from mlp_interp import load, prompts, save
from mlp_interp.edits import Edit
from mlp_interp.prompts import Contrast
from mlp_interp.runs import Runner, run
from mlp_interp.sites import Site
from mlp_interp.steering import (
    FewShot,
    activation_addition,
    add,
    by_answer,
    function_vector,
    head_effects,
    mean_difference,
    output_direction,
    pca_direction,
    random_direction,
    steer,
)

POSITIVE = ["the cat sat", "hello world hello", "the cat", "on the mat;", "cat cat cat hello"]
NEGATIVE = ["world; world", "sat on", "the the", "mat", "hello; the mat sat"]
SITES = {
    "resid_pre": ("layer", "d_model"),
    "resid_post": ("layer", "d_model"),
    "attn_out": ("layer", "d_model"),
    "mlp_out": ("layer", "d_model"),
    "z": ("layer", "head", "d_head"),
    "k": ("layer", "head", "d_head"),
    "post": ("layer", "neuron"),
}


def ids(model: Any, text: str) -> torch.Tensor:
    tokens = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return torch.tensor([[model.tokenizer.eos_token_id, *tokens]])


def seen(model: Any, tokens: torch.Tensor, name: str) -> torch.Tensor:
    """One activation of one text, ``[pos, ...]``."""
    found = []
    with torch.no_grad():
        hooks = [(name, lambda x, hook=None: found.append(x.detach().clone()))]
        model.run_with_hooks(tokens, fwd_hooks=hooks)
    return found[0][0]


def by_loop(model: Any, texts: list[str], site: str, layer: int, read: Any) -> np.ndarray:
    name = Site(site, layer).hook_name
    return np.stack([read(seen(model, ids(model, text), name)).numpy() for text in texts])


READ = {
    "last": lambda x: x[-1],
    "mean": lambda x: x[1:].mean(0),
    1: lambda x: x[1],
    -2: lambda x: x[-2],
}


def test_mean_difference_is_that_of_a_loop(model):
    compare_with_loop(model, "resid_post")
    compare_with_loop(model, "z")


@pytest.mark.parametrize("site", SITES)
def test_mean_difference_at_other_sites(kind, backend, site):
    compare_with_loop(kind("sequential", backend), site)


def compare_with_loop(model: Any, site: str) -> None:
    direction = mean_difference(model, POSITIVE, NEGATIVE[:4], site=site, layers=[2, 0])
    assert direction.dims == SITES[site]
    assert direction.layer.values.tolist() == [2, 0]
    for layer in (0, 2):
        first = by_loop(model, POSITIVE, site, layer, READ["last"])
        second = by_loop(model, NEGATIVE[:4], site, layer, READ["last"])
        expected = first.astype(np.float64).mean(0) - second.astype(np.float64).mean(0)
        found = direction.sel(layer=layer)
        np.testing.assert_allclose(found.values, expected, atol=1e-5)
        np.testing.assert_allclose(found.norm, np.linalg.norm(expected, axis=-1), rtol=1e-4)
        along = (first * expected).sum(-1), (second * expected).sum(-1)
        auroc = mannwhitneyu(*along, axis=0).statistic / (len(first) * len(second))
        np.testing.assert_allclose(found.separation, auroc)


@pytest.mark.parametrize("positions", list(READ))
def test_positions(kind, backend, positions):
    model = kind("parallel", backend, "folded", torch.float64)
    direction = mean_difference(model, POSITIVE, NEGATIVE, layers=1, positions=positions)
    first, second = (
        by_loop(model, texts, "resid_post", 1, READ[positions]) for texts in (POSITIVE, NEGATIVE)
    )
    np.testing.assert_allclose(direction[0].values, first.mean(0) - second.mean(0), atol=1e-10)


def test_tokens_are_taken_as_they_are_and_batches_do_not_matter(kind, tokens):
    model = kind()
    direction = mean_difference(model, tokens, tokens.flip(1), site="z", heads=[3, 1])
    again = mean_difference(model, tokens, tokens.flip(1), site="z", batch_size=3)
    assert direction["head"].values.tolist() == [3, 1]
    np.testing.assert_allclose(direction, again.sel(head=[3, 1]), atol=1e-6)
    z = seen(model, tokens[2:3], Site("z", 1).hook_name)
    one = mean_difference(model, tokens[2:3], tokens[2:3, :4], site="z", layers=1)
    shorter = seen(model, tokens[2:3, :4], Site("z", 1).hook_name)
    np.testing.assert_allclose(one[0].values, z[-1] - shorter[-1], atol=1e-5)
    plain = mean_difference(model, ["cat"], ["mat"], prepend_bos=False)
    assert not np.allclose(plain, mean_difference(model, ["cat"], ["mat"]))


@pytest.mark.parametrize("site", ["resid_post", "z"])
def test_principal_components_are_numpys(kind, backend, site):
    model = kind("parallel", backend)
    direction = pca_direction(model, POSITIVE, NEGATIVE, site=site, layers=[1, 2])
    for layer in (1, 2):
        pairs = by_loop(model, POSITIVE, site, layer, READ["last"]) - by_loop(
            model, NEGATIVE, site, layer, READ["last"]
        )
        blocks = [pairs] if site == "resid_post" else list(pairs.swapaxes(0, 1))
        found = direction.sel(layer=layer)
        for n, block in enumerate(blocks):
            one = found if site == "resid_post" else found.isel(head=n)
            # Pairs both ways round, centred: their covariance is that of the differences.
            both = np.concatenate((block, -block)).astype(np.float64)
            values, vectors = np.linalg.eigh(np.cov(both.T, bias=True))
            axis = vectors[:, -1] * np.sign((block.mean(0) * vectors[:, -1]).sum())
            np.testing.assert_allclose(one.values, axis * np.sqrt(values[-1]), atol=1e-4)
            assert float(one.explained) == pytest.approx(values[-1] / values.sum(), rel=1e-5)
            assert float((block @ one.values).mean()) > 0
            assert 0 <= float(one.separation) <= 1


def test_coefficient_one_moves_one_mean_onto_the_other(kind):
    model = kind()
    direction = mean_difference(model, POSITIVE, NEGATIVE, layers=2)
    name = Site("resid_post", 2).hook_name
    with steer(model, add(direction, 1.0)):
        moved = by_loop(model, NEGATIVE, "resid_post", 2, READ["last"])
    there = by_loop(model, POSITIVE, "resid_post", 2, READ["last"])
    assert name
    np.testing.assert_allclose(moved.mean(0), there.mean(0), atol=1e-5)


def test_activation_addition_position_by_position(kind, backend):
    model = kind("parallel", backend)
    for plus, minus in (("the cat sat", "world hello cat"), ("the cat sat on", "mat")):
        direction = activation_addition(model, plus, minus, 1)
        rows = [ids(model, plus), ids(model, minus)]
        length = max(row.shape[1] for row in rows)
        space = model.tokenizer(" ", add_special_tokens=False)["input_ids"][0]
        rows = [torch.cat((row, torch.full((1, length - row.shape[1]), space)), 1) for row in rows]
        first, second = (seen(model, row, Site("resid_pre", 1).hook_name) for row in rows)
        assert direction.dims == ("layer", "pos", "d_model")
        np.testing.assert_allclose(direction[0].values, first - second, atol=1e-5)
        assert np.allclose(direction.norm[0, 0], 0)
        text = ids(model, "hello hello world cat sat on the mat")
        edited = Edit.add(
            "1.resid_pre", 2.0 * (first - second), positions=range(direction.sizes["pos"])
        )
        runner = Runner.of(model)
        expected = runner.run(text, edits=[edited]).final
        found = runner.run(text, edits=add(direction, 2.0)).final
        assert torch.allclose(found, expected, atol=1e-4)


def test_a_tokenizer_without_spaces(kind, monkeypatch):
    model = kind()
    monkeypatch.setattr("mlp_interp.steering.directions.single.encode", lambda *_: [1, 2])
    with pytest.raises(ValueError, match="plus has 4 tokens and minus 2, and the tokenizer has no"):
        activation_addition(model, "the cat sat", "mat", 1)


def test_what_components_write(model):
    weights = Runner.of(model).weights
    neuron = output_direction(model, "L1N7")
    assert neuron.layer.values.tolist() == [1]
    np.testing.assert_allclose(neuron[0], weights.block(1).W_out[7], rtol=1e-6)
    head = output_direction(model, "L2H1", prompts=POSITIVE)
    z = by_loop(model, POSITIVE, "z", 2, READ["last"])[:, 1].mean(0)
    np.testing.assert_allclose(head[0], z @ weights.block(2).W_O[1].numpy(), atol=1e-5)


def test_random_directions_are_as_long_and_no_more(kind):
    direction = mean_difference(kind(), POSITIVE, NEGATIVE, site="z")
    control = random_direction(direction, seed=3)
    np.testing.assert_allclose(np.linalg.norm(control, axis=-1), direction.norm)
    xr.testing.assert_identical(control, random_direction(direction, seed=3))
    assert not np.allclose(control, random_direction(direction, seed=4))
    assert "separation" not in control.coords
    cosines = (control * direction).sum("d_head") / direction.norm**2
    assert float(abs(cosines).max()) < 0.99


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_directions_save_and_load(kind, tmp_path, suffix):
    model = kind()
    made = [
        mean_difference(model, POSITIVE, NEGATIVE, site="z"),
        pca_direction(model, POSITIVE, NEGATIVE),
        activation_addition(model, "the cat sat", "mat", 1),
        function_vector(model, TASK, n_heads=3),
        random_direction(output_direction(model, "L1N7"), seed=1),
    ]
    for n, direction in enumerate(made):
        assert direction.attrs["unit"] == "activation"
        assert {
            "site",
            "method",
            "long_name",
            "data",
            "model",
            "n_layers",
        } <= direction.attrs.keys()
        read = load(save(direction, tmp_path / f"{n}{suffix}"))
        xr.testing.assert_equal(read, direction)
        for name, value in direction.attrs.items():
            assert np.array_equal(read.attrs[name], value), name
        assert add(read, 2.0, layers=1)[0].site == add(direction, 2.0, layers=1)[0].site


# Function vectors.

TASK = FewShot(
    prompts=["the cat sat on the", "hello world hello", "mat; the mat sat", "cat on the cat"],
    answers=[" mat", " world", " the", " on"],
    uninformative=["sat sat on the", "cat", "hello the mat sat world", "on hello"],
)


def effects_by_loop(model: Any, task: FewShot) -> np.ndarray:
    """One plain hooked forward pass for each head and prompt."""
    layers, heads = int(model.cfg.n_layers), int(model.cfg.n_heads)
    means = [
        by_loop(model, list(task.prompts), "z", n, READ["last"]).mean(0) for n in range(layers)
    ]
    answers = [model.tokenizer(a, add_special_tokens=False)["input_ids"][0] for a in task.answers]
    effects = np.zeros((layers, heads, len(answers)))
    for n, (text, answer) in enumerate(zip(task.uninformative, answers, strict=True)):
        tokens = ids(model, text)
        before = model(tokens)[0, -1].double().log_softmax(-1)[answer].item()
        for layer in range(layers):
            for head in range(heads):

                def put(x, hook=None, layer=layer, head=head):
                    x = x.clone()
                    x[:, -1, head] = torch.from_numpy(means[layer][head])
                    return x

                hooks = [(Site("z", layer).hook_name, put)]
                logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
                after = logits[0, -1].double().log_softmax(-1)[answer].item()
                effects[layer, head, n] = after - before
    return effects


def test_mediation_is_that_of_a_loop(some_model):
    model = some_model
    expected = effects_by_loop(model, TASK)
    found = head_effects(model, TASK, batch_size=2)
    np.testing.assert_allclose(found.values, expected.mean(-1), atol=2e-4)
    np.testing.assert_allclose(found.effect_se, expected.std(-1, ddof=1) / 2, atol=2e-4)
    assert found.attrs["unit"] == "nats"


def test_function_vectors_sum_what_their_heads_write(kind, backend):
    model = kind("gpt2", backend, "raw")
    vector = function_vector(model, TASK, n_heads=4, layers=[1, 2])
    effects = effects_by_loop(model, TASK).mean(-1)
    best = [divmod(int(n), 4) for n in np.argsort(-effects, axis=None)[:4]]
    assert vector.attrs["heads"] == ", ".join(f"L{layer}H{head}" for layer, head in best)
    np.testing.assert_allclose(
        vector.attrs["effects"], [effects[place] for place in best], atol=2e-4
    )
    weights = Runner.of(model).weights
    expected = sum(
        by_loop(model, list(TASK.prompts), "z", layer, READ["last"])[:, head].mean(0)
        @ weights.block(layer).W_O[head].numpy()
        for layer, head in best
    )
    assert vector.layer.values.tolist() == [1, 2]
    for row in vector:
        np.testing.assert_allclose(row, expected, atol=1e-4)
    named = function_vector(
        model,
        FewShot(TASK.prompts, TASK.answers),
        heads=vector.attrs["heads"].split(", "),
        layers=1,
    )
    np.testing.assert_allclose(named[0], vector[0], atol=1e-12)


def test_a_contrast_is_a_task(kind, tokens):
    model = kind()
    contrast = Contrast(
        clean_tokens=tokens,
        corrupted_tokens=tokens.roll(1, 0),
        answers=torch.tensor([5, 6, 7, 8]),
        foils=torch.tensor([9, 9, 9, 9]),
    )
    runner = Runner.of(model)
    z = runner.run(tokens, sites=[Site("z", 1)]).at(Site("z", 1))[:, -1, 2].mean(0)
    edit = Edit.set("L1H2", z, positions=-1)

    def score(edits: list[Edit]) -> torch.Tensor:
        logits = runner.run(contrast.corrupted_tokens, edits=edits).logits()[:, -1]
        return logits.double().log_softmax(-1).gather(1, contrast.answers[:, None])

    expected = float((score([edit]) - score([])).mean())
    assert float(head_effects(model, contrast).sel(layer=1, head=2)) == pytest.approx(
        expected, abs=1e-5
    )


def test_few_shot_prompts():
    pairs = [(str(n), f"w{n}") for n in range(9)]
    task = FewShot.of(pairs, n=6, shots=4, line="{x}: {y}\n", seed=1)
    assert task == FewShot.of(pairs, n=6, shots=4, line="{x}: {y}\n", seed=1)
    assert task != FewShot.of(pairs, n=6, shots=4, line="{x}: {y}\n", seed=2)
    for prompt, answer, other in zip(task.prompts, task.answers, task.uninformative, strict=True):
        *shown, asked = prompt.split("\n")
        *mixed, same = other.split("\n")
        assert asked == same == f"{answer.removeprefix(' w')}:"
        assert len(shown) == 4
        assert all(line.split(": ")[1] == f"w{line.split(':')[0]}" for line in shown)
        assert asked[:-1] not in {line.split(":")[0] for line in shown}
        assert sorted(line.split(": ")[1] for line in mixed) == sorted(
            line.split(": ")[1] for line in shown
        )
    assert task.prompts != task.uninformative


@pytest.mark.parametrize("shots", [2, 3, 5])
@pytest.mark.parametrize("kinds", [2, 3, 12])
def test_no_example_of_an_uninformative_prompt_is_right(shots, kinds):
    right = {str(n): f"w{n % kinds}" for n in range(12)}
    task = FewShot.of(list(right.items()), n=40, shots=shots, line="{x} {y}\n", seed=3)
    for prompt, other in zip(task.prompts, task.uninformative, strict=True):
        shown, mixed = (
            [line.split(" ") for line in text.split("\n")[:-1]] for text in (prompt, other)
        )
        assert [x for x, _ in mixed] == [x for x, _ in shown]
        assert all(y == right[x] for x, y in shown)
        assert all(y != right[x] and y in right.values() for x, y in mixed)
        answers = sorted(y for _, y in shown)
        if max(map(answers.count, answers)) <= shots / 2:
            assert sorted(y for _, y in mixed) == answers


def test_sides_of_a_contrast(nano):
    from mlp_interp.prompts import sentiment

    contrast = sentiment(nano, n=12, seed=0)
    good, bad = by_answer(contrast, [" great", " positive", " good"])
    for n, answer in enumerate(contrast.answer_text):
        clean = contrast.clean_tokens[n]
        assert torch.equal(good[n] if answer in (" great", " positive", " good") else bad[n], clean)
    with pytest.raises(ValueError, match=r"answers=' great': pair \d+ has answer .* and foil"):
        by_answer(contrast, " great")


def refusals(model: Any) -> list[Any]:
    make, pca = unchecked(mean_difference), unchecked(pca_direction)
    vector, effects = unchecked(function_vector), unchecked(head_effects)
    pos, neg = POSITIVE, NEGATIVE
    return [
        (lambda: make(model, [], neg), "positive is empty; wanted at least one prompt"),
        (lambda: make(model, pos, ["a", ""]), r"negative\[1\]=''; wanted a text"),
        (lambda: make(model, pos, ["cat" * 99]), r"negative\[0\]='cat.*exceed the model's context"),
        (lambda: make(model, pos, neg, site="pattern"), "site='pattern'; wanted one of resid_pre"),
        (lambda: make(model, pos, neg, layers=3), r"layers=\[3\]; wanted integers from -3 to 2"),
        (lambda: make(model, pos, neg, layers=[]), r"layers=\[\]; wanted at least one integer"),
        (lambda: make(model, pos, neg, heads=0), "heads=0: site 'resid_post' has no heads"),
        (lambda: make(model, pos, neg, site="z", heads=[4]), r"heads=\[4\]; wanted .* -4 to 3"),
        (lambda: make(model, pos, neg, positions=2), "positions=2, but a prompt of negative has 2"),
        (lambda: make(model, pos, neg, positions="all"), "positions='all'; wanted 'last', 'mean'"),
        (lambda: make(model, pos, neg, batch_size=0), "batch_size=0; wanted at least 1"),
        (lambda: make(model, torch.tensor([[300]]), neg), "tokens hold 300; wanted ids"),
        (lambda: pca(model, pos, neg[:3]), "positive has 5 prompts and negative 3; wanted pairs"),
        (lambda: pca(model, pos, pos), "positive and negative do not differ"),
        (
            lambda: activation_addition(model, "a", "b", 3),
            "layer=3; wanted an integer from -3 to 2",
        ),
        (lambda: activation_addition(model, "a", "b", 1, site="z"), "site='z'; wanted one of"),
        (lambda: activation_addition(model, "", "b", 1), r"plus\[0\]=''; wanted a text"),
        (lambda: output_direction(model, "1.mlp"), "component='1.mlp'; wanted a neuron or a head"),
        (
            lambda: output_direction(model, "L1N64"),
            "component='L1N64'; wanted a neuron from 0 to 63",
        ),
        (
            lambda: output_direction(model, "L1H1"),
            "prompts=None with component='L1H1'; wanted some",
        ),
        (lambda: output_direction(model, "L1N1", prompts=pos), "component='L1N1'; wanted none"),
        (lambda: FewShot([], []), "prompts has 0 texts for 0 prompts"),
        (lambda: FewShot(["a"], ["b", "c"]), "answers has 2 texts for 1 prompts; wanted one"),
        (lambda: FewShot(["a"], ["b"], []), "uninformative has 0 texts for 1 prompts"),
        (lambda: FewShot.of([("a", "b")], shots=1), "n=32, shots=1 with 1 pairs; wanted"),
        (lambda: FewShot.of([("a", "b")] * 3, shots=1), "shots=1 with 3 pairs; wanted .* from 2"),
        (lambda: FewShot.of([("a", "b")] * 3, shots=2), "pairs all have the answer 'b'"),
        (
            lambda: FewShot.of([("a", "b"), ("c", "d")] * 2, shots=2, line="{y} {x}"),
            "line=.*; wanted {x}, then",
        ),
        (lambda: effects(model, FewShot(pos, neg)), "uninformative=None; wanted prompts"),
        (lambda: effects(model, pos), "task=list; wanted a FewShot or a Contrast"),
        (lambda: effects(model, FewShot(pos, [""] * 5, neg)), "answers: '' is no token"),
        (lambda: vector(model, FewShot(pos, neg)), "uninformative=None; wanted prompts"),
        (
            lambda: vector(model, TASK, heads="best"),
            "heads='best' is not a component label; wanted 'auto', or",
        ),
        (lambda: vector(model, TASK, n_heads=13), "n_heads=13; wanted 1 to 12"),
        (lambda: vector(model, TASK, heads=[]), r"heads=\[\]; wanted at least one head, each once"),
        (lambda: vector(model, TASK, heads=["1.mlp"]), "heads='1.mlp' is no head"),
        (lambda: vector(model, TASK, heads=["L1H4"]), "heads='L1H4'; wanted a head from 0 to 3"),
        (lambda: vector(model, TASK, layers=[7]), r"layers=\[7\]; wanted integers from -3"),
    ]


@pytest.mark.parametrize("n", range(38))
def test_directions_refuse(kind, n):
    call, message = refusals(kind())[n]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("maker", [mean_difference, pca_direction])
@pytest.mark.parametrize("positions", ["last", "mean", -2])
def test_directions_of_runs_and_caches(nano, maker, positions):
    harmful, harmless = by_answer(prompts.refusal(nano, n=6, seed=0), " Sorry")
    for site in ("resid_post", "z"):
        expected = maker(nano, harmful, harmless, site=site, layers=[1, -1], positions=positions)
        runs = [run(nano, tokens, sites=[site]) for tokens in (harmful, harmless)]
        with torch.no_grad():
            caches = [nano.run_with_cache(tokens)[1] for tokens in (harmful, harmless)]
        for pair in (runs, caches, (runs[0], harmless)):
            found = maker(nano, *pair, site=site, layers=[1, -1], positions=positions)
            np.testing.assert_allclose(found, expected, atol=1e-4)
            np.testing.assert_allclose(found.separation, expected.separation)
    with pytest.raises(ValueError, match="positions='first'; wanted 'last', 'mean' or an integer"):
        unchecked(maker)(nano, *runs, site="z", positions="first")
    with pytest.raises(ValueError, match="positions=99; wanted an integer from"):
        maker(nano, *runs, site="z", positions=99)
    with pytest.raises(ValueError, match=r"cache lacks blocks.0.mlp.hook_post"):
        maker(nano, *runs, site="post")
