"""Effect against cost: exact at coefficient 0, as plain hooks give them, kept when broken off."""

from dataclasses import replace

import numpy as np
import pytest
import reference
import scipy.stats
import torch
import xarray as xr
from random_models import unchecked

from mlp_interp import SweepOptions, load, load_corpus, prompts, save
from mlp_interp.metrics import Custom, kl, logit_difference, probability
from mlp_interp.runs import Runner
from mlp_interp.steering import (
    GenerationOptions,
    Keywords,
    Refusal,
    Score,
    activation_addition,
    by_answer,
    dose_response,
    generate_compare,
    mean_difference,
    output_direction,
    project_out,
    random_direction,
    steer,
)
from mlp_interp.steering import add as add_edits

LENGTH = Score(lambda texts: [float(len(text)) for text in texts], unit="letters")
WRITING = GenerationOptions(max_new_tokens=3, eos=None)


def random(shape, seed, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def direction(site="resid_post", layers=(0, 1, 2)):
    shape = {"z": (4, 8), "post": (64,)}.get(site, (32,))
    dims = {"z": ("head", "d_head"), "post": ("neuron",)}.get(site, ("d_model",))
    coords = {"layer": list(layers)} | ({"head": range(4)} if site == "z" else {})
    values = torch.stack([random(shape, layer) for layer in layers]).numpy()
    return xr.DataArray(values, dims=("layer", *dims), coords=coords, attrs={"site": site})


def random_of(model):
    return random_direction(output_direction(model, "L2N5"), seed=0)


@pytest.fixture
def rows():
    return torch.randint(300, (5, 7), generator=torch.Generator().manual_seed(11))


@pytest.fixture
def difference():
    return logit_difference(torch.tensor([3, 5, 7, 9]), torch.tensor([4, 6, 8, 10]))


def hooks_for(site, layer, coefficient):
    value = coefficient * torch.tensor(direction(site).sel(layer=layer).values).float()
    inner = {"z": "attn.hook_z", "post": "mlp.hook_post"}.get(site, f"hook_{site}")
    return {f"blocks.{layer}.{inner}": lambda x, hook=None: x + value}


@pytest.mark.parametrize("site", ["resid_post", "z"])
def test_as_plain_hooks_give_it(some_model, tokens, rows, difference, site):
    """Effect and cost, against one library pass for each cell and float64 log-softmaxes."""
    model = some_model
    found = dose_response(
        model,
        tokens,
        {"ld": difference},
        direction=direction(site),
        coefficients=[-0.5, 2],
        sweep=SweepOptions(batch_size=2),
        corpus=rows,
    )
    clean = reference.hooked_logits(model, tokens, {})
    text = reference.hooked_logits(model, rows, {})
    assert found.coef.values.tolist() == [-0.5, 0, 2]
    loss = reference.loss(text, rows)
    assert found.attrs["clean_perplexity"] == pytest.approx(float(loss.mean().exp()), rel=1e-4)
    answers, foils = difference.tokens.T
    each = torch.arange(4)
    read = lambda logits: (logits[each, -1, answers] - logits[each, -1, foils]).double()
    for layer in range(3):
        for coefficient in (-0.5, 2.0):
            cell = found.sel(layer=layer, coef=coefficient)
            hooks = hooks_for(site, layer, coefficient)
            values = read(reference.hooked_logits(model, tokens, hooks))
            np.testing.assert_allclose(cell.ld_by_prompt, values, rtol=1e-3, atol=1e-4)
            assert float(cell.ld) == pytest.approx(float(values.mean()), rel=1e-3, abs=1e-4)
            assert float(cell.ld_se) == pytest.approx(scipy.stats.sem(values), rel=1e-3)
            paired = values - read(clean)
            assert float(cell.ld_effect) == pytest.approx(float(paired.mean()), rel=1e-3, abs=2e-4)
            assert float(cell.ld_effect_se) == pytest.approx(scipy.stats.sem(paired), rel=1e-3)
            changed = reference.hooked_logits(model, rows, hooks)
            effects = reference.effects(text, changed, rows)
            sequences = effects["kl"].mean(-1)
            assert float(cell.cost_kl) == pytest.approx(float(sequences.mean()), rel=1e-3)
            assert float(cell.cost_kl_se) == pytest.approx(scipy.stats.sem(sequences), rel=1e-3)
            lost = effects["delta_loss"].nanmean(-1)
            assert float(cell.cost_delta_loss) == pytest.approx(
                float(lost.mean()), rel=1e-3, abs=1e-4
            )
            assert float(cell.cost_delta_loss_se) == pytest.approx(
                scipy.stats.sem(lost), rel=1e-3, abs=1e-5
            )
            ratio = float(reference.loss(changed, rows).mean().exp() / loss.mean().exp())
            assert float(cell.cost_perplexity_ratio) == pytest.approx(ratio, rel=1e-3)
            assert float(cell.cost_perplexity_ratio_se) == pytest.approx(
                ratio * scipy.stats.sem(lost), rel=2e-3, abs=1e-5
            )


def test_coefficient_0_is_exactly_nothing(model, tokens, rows, difference):
    metrics = {"ld": difference, "kl": kl(positions=(-1, 2)), "length": LENGTH}
    found = dose_response(
        model,
        tokens,
        metrics,
        direction=direction(),
        coefficients=[1],
        corpus=rows,
        generation=WRITING,
    )
    zero = found.sel(coef=0)
    for name in ("ld_effect", "ld_effect_se", "kl", "kl_se", "length_effect", "length_effect_se"):
        assert (zero[name] == 0).all(), name
    for name in ("cost_kl", "cost_kl_se", "cost_delta_loss", "cost_delta_loss_se"):
        assert (zero[name] == 0).all(), name
    assert (zero.cost_perplexity_ratio == 1).all()
    assert not zero.useful.any()
    assert (found.kl.sel(coef=1) > 0).all()
    given = dose_response(
        model,
        tokens,
        metrics,
        direction=direction(),
        coefficients=[0, 1],
        corpus=rows,
        generation=WRITING,
    )
    xr.testing.assert_identical(given, found)


def test_texts_are_those_of_generate_compare(kind):
    """Sampled, of unequal length, at every layer and coefficient."""
    texts = ["the cat", "hello", "on the mat"]
    drawn = replace(WRITING, n=2, temperature=1.0, seed=5)
    metrics = {"length": LENGTH, "the": Keywords(["the", "e"])}
    found = dose_response(
        kind(), texts, metrics, direction=direction(), coefficients=[-1, 3], generation=drawn
    )
    assert "cost_kl" not in found
    assert "useful" not in found
    for layer in range(3):
        for coefficient in (-1.0, 3.0):
            edits = add_edits(direction(), coefficient, layers=layer)
            two = generate_compare(kind(), texts, edits, generation=drawn)
            cell = found.sel(layer=layer, coef=coefficient)
            np.testing.assert_array_equal(cell.text, two.text.sel(way="edited"))
            np.testing.assert_array_equal(
                found.text.sel(layer=layer, coef=0), two.text.sel(way="plain")
            )
            for name, score in metrics.items():
                by_prompt = [np.mean(score(list(row))) for row in cell.text.values]
                np.testing.assert_allclose(cell[f"{name}_by_prompt"], by_prompt)
                assert float(cell[name]) == pytest.approx(np.mean(by_prompt))
                assert float(cell[f"{name}_se"]) == pytest.approx(scipy.stats.sem(by_prompt))


def test_metrics_by_name_are_those_of_the_contrast(nano):
    """Read on its clean prompts, and under the names that the metrics have themselves."""
    contrast = prompts.facts(nano, n=3, seed=0)
    turned = {"direction": random_of(nano), "coefficients": [2]}
    by_name = dose_response(nano, contrast, "logit_difference", **turned)
    metric = logit_difference(contrast.answers, contrast.foils)
    by_hand = dose_response(nano, contrast.clean_tokens, metric, **turned)
    xr.testing.assert_identical(by_name, by_hand)
    several = dose_response(nano, contrast, {"ld": "logit_difference", "kl": "kl"}, **turned)
    np.testing.assert_array_equal(several.ld, by_hand.logit_difference)
    assert (several.kl.sel(coef=2) > 0).all()
    scored = dose_response(nano, contrast, Refusal(), **turned, generation=WRITING)
    assert scored.refusal.dims == ("layer", "coef")


@pytest.mark.parametrize("site", ["resid_post", "post"])
def test_a_sweep_is_its_calls_one_by_one(kind, backend, tokens, rows, difference, site):
    model, metrics = kind("parallel", backend, "raw"), {"ld": difference, "length": LENGTH}
    options = {"corpus": rows, "positions": [1, -1], "generation": WRITING}
    whole = dose_response(
        model, tokens, metrics, direction=direction(site), coefficients=[-1, 2], **options
    )
    for layer in (2, 0):
        for coefficient in (-1, 2):
            one = dose_response(
                model,
                tokens,
                metrics,
                direction=direction(site),
                coefficients=[coefficient],
                layers=layer,
                **options,
            )
            alone = dose_response(
                model,
                tokens,
                metrics,
                direction=direction(site).sel(layer=layer),
                coefficients=[coefficient],
                **options,
            )
            xr.testing.assert_identical(one, alone)
            cell = whole.sel(layer=[layer], coef=[float(coefficient)])
            for name in (n for n in one.data_vars if "coef" in one[n].dims):
                mine = one[name].sel(coef=[float(coefficient)])
                if name == "text":
                    assert (mine.values == cell[name].values).all()
                else:
                    np.testing.assert_allclose(cell[name], mine, rtol=1e-4, atol=1e-5)


def test_prompts_of_unequal_lengths_keep_their_places(kind):
    texts = ["the cat", "cat", "mat", "hello"]
    run = lambda given: dose_response(
        kind(),
        given,
        {"kl": kl()},
        direction=direction(),
        coefficients=[2],
        sweep=SweepOptions(batch_size=3),
    )
    together, lengths = run(texts), [len(kind().tokenizer(t)["input_ids"]) for t in texts]
    assert lengths[0] == lengths[3] != lengths[1] == lengths[2]
    for n, text in enumerate(texts):
        np.testing.assert_allclose(
            together.kl_by_prompt[..., n], run([text]).kl_by_prompt[..., 0], rtol=1e-3, atol=1e-6
        )


def test_positions_and_where(kind, tokens, difference):
    """On a prompt's last position, it is the same to read as an edit there; the corpus is whole."""
    found = dose_response(
        kind(),
        tokens,
        {"ld": difference},
        direction=direction(),
        coefficients=[2],
        positions=[-1],
        corpus=tokens,
    )
    everywhere = dose_response(
        kind(), tokens, {"ld": difference}, direction=direction(), coefficients=[2], corpus=tokens
    )
    xr.testing.assert_equal(found.cost_kl, everywhere.cost_kl)
    assert (found.ld.sel(coef=2) != everywhere.ld.sel(coef=2)).any()
    np.testing.assert_allclose(  # in the last layer's output, positions do not meet any more
        found.ld.sel(layer=2, coef=2), everywhere.ld.sel(layer=2, coef=2), rtol=1e-5
    )
    late = dose_response(
        kind(),
        ["the cat"],
        {"length": LENGTH},
        direction=direction(),
        coefficients=[9],
        generation=replace(WRITING, where="new"),
    )
    edits = add_edits(direction(), 9, layers=1)
    two = generate_compare(kind(), ["the cat"], edits, generation=replace(WRITING, where="new"))
    assert late.text.sel(layer=1, coef=9).item() == two.text.sel(way="edited").item()


def test_a_direction_with_positions_goes_to_them(nano, tokens):
    """Of prompts and of the corpus: the first ones, as the difference of two prompts has them."""
    plus = activation_addition(nano, " happy", " sad", 1)
    found = dose_response(
        nano, tokens, {"kl": kl()}, direction=plus, coefficients=[4], corpus=tokens
    )
    runner = Runner.of(nano)
    clean, run = (runner.run(tokens, edits=e) for e in ([], add_edits(plus, 4)))
    effects = reference.effects(clean.logits(), run.logits(), tokens)
    assert found.kl.sel(coef=4).item() == pytest.approx(
        float(effects["kl"][:, -1].mean()), rel=1e-3
    )
    assert found.cost_kl.sel(coef=4).item() == pytest.approx(float(effects["kl"].mean()), rel=1e-3)


def test_projecting_out(kind, tokens, rows, difference):
    found = dose_response(
        kind(),
        tokens,
        {"ld": difference},
        direction=direction(),
        coefficients=[1],
        action="project_out",
        corpus=rows,
    )
    runner = Runner.of(kind())
    for layer in range(3):
        run = runner.run(tokens, edits=project_out(direction(), layers=layer))
        logits = run.logits()[:, -1].gather(-1, difference.tokens)
        np.testing.assert_allclose(
            found.ld_by_prompt.sel(layer=layer, coef=1), logits[:, 0] - logits[:, 1], atol=1e-4
        )


def test_what_is_useful(kind, tokens, rows, difference):
    """By hand from the numbers beside it."""
    model, metrics = kind(), {"ld": difference, "length": LENGTH}
    coefficients = [-3, -1, -0.3, 0.1, 0.5, 1, 3]
    options = {"corpus": rows, "limit_kl": 0.2, "limit_perplexity": 1.3, "generation": WRITING}
    found = dose_response(
        model, tokens, metrics, direction=direction(), coefficients=coefficients, **options
    )
    assert found.useful.any()
    assert not found.useful.all()
    for name in metrics:
        one = found.sel(metric=name)
        fine = (found.cost_kl <= 0.2) & (found.cost_perplexity_ratio <= 1.3)
        useful = fine & (abs(found[f"{name}_effect"]) > 2 * found[f"{name}_effect_se"])
        np.testing.assert_array_equal(one.useful, useful)
        for layer in range(3):
            chosen = found.coef.values[useful.sel(layer=layer)]
            ends = (chosen.min(), chosen.max()) if len(chosen) else (np.nan, np.nan)
            np.testing.assert_array_equal(
                [one.useful_low.sel(layer=layer), one.useful_high.sel(layer=layer)], ends
            )
        size = abs(found[f"{name}_effect"]).where(useful)
        if useful.any():
            best = found.sel(layer=int(one.best_layer), coef=float(one.best_coef))
            assert float(size.max()) == float(abs(best[f"{name}_effect"]))
            assert float(one.best_effect) == float(best[f"{name}_effect"])
    tight = dose_response(
        model,
        tokens,
        {"ld": difference},
        direction=direction(),
        coefficients=[3],
        corpus=rows,
        limit_kl=1e-6,
    )
    assert tight.best_layer.item() == -1
    assert np.isnan([tight.best_coef.item(), tight.best_effect.item()]).all()
    assert tight.useful_low.isnull().all()
    assert "limit_perplexity" not in tight.attrs
    one = dose_response(
        model, tokens[:1], {"length": LENGTH}, direction=direction(), coefficients=[1], corpus=rows
    )
    assert not one.useful.any()


def test_of_equal_effects_the_cheaper_is_best(kind, tokens, rows):
    always = Score(lambda texts: [float(len({*texts}) >= 0) for _ in texts])
    calls = iter([0.0] + [1.0] * 99)
    first_low = Score(lambda texts: [next(calls)] * len(texts))
    found = dose_response(
        kind(),
        tokens,
        {"a": first_low, "b": always},
        direction=direction(),
        coefficients=[0.1, 0.2],
        corpus=rows,
        generation=WRITING,
    )
    costs = found.cost_kl.sel(coef=[0.1, 0.2])
    at = found.sel(metric="a")
    assert float(costs.min()) == float(
        found.cost_kl.sel(layer=int(at.best_layer), coef=float(at.best_coef))
    )
    assert found.best_layer.sel(metric="b").item() == -1


class Stop(Exception):
    """Stands for a kill."""


def stopping(monkeypatch, at=None):
    """Count edited passes and generations; break off at one of them."""
    calls = []
    for name in ("edited", "generate"):
        real = getattr(Runner, name)

        def counted(self, *args, real=real, **kwargs):
            if len(calls) == at:
                raise Stop
            calls.append(None)
            return real(self, *args, **kwargs)

        monkeypatch.setattr(Runner, name, counted)
    return calls


@pytest.mark.parametrize("at", [0, 5, 20, 36])
def test_an_interrupted_sweep_goes_on_where_it_was(
    kind, tokens, rows, difference, tmp_path, monkeypatch, at
):
    model, metrics = kind(), {"ld": difference, "length": LENGTH}
    run = lambda checkpoint=None: dose_response(
        model,
        tokens,
        metrics,
        direction=direction(),
        coefficients=[-1, 2],
        sweep=SweepOptions(batch_size=2, checkpoint=checkpoint),
        corpus=rows,
        generation=WRITING,
    )
    with monkeypatch.context() as patch:
        calls = stopping(patch)
        whole = run()
        total = len(calls)
    with monkeypatch.context() as patch:
        stopping(patch, at)
        with pytest.raises(Stop):
            run(checkpoint=tmp_path)
    with monkeypatch.context() as patch:
        calls = stopping(patch)
        resumed = run(checkpoint=tmp_path)
        lost = (
            (at - 28) % 6 if at > 28 else 0
        )  # of the corpus a batch's cells are measured together
        assert len(calls) == total - at + lost
        again = run(checkpoint=tmp_path)
        assert len(calls) == total - at + lost
    xr.testing.assert_identical(resumed, whole)
    xr.testing.assert_identical(again, whole)


def test_a_damaged_file_is_named_and_done_again(kind, tokens, difference, tmp_path):
    run = lambda: dose_response(
        kind(),
        tokens,
        {"ld": difference},
        direction=direction(),
        coefficients=[1],
        sweep=SweepOptions(checkpoint=tmp_path),
    )
    wanted = run()
    files = sorted(file for file in tmp_path.rglob("*") if file.is_file())
    assert {file.suffix for file in files} == {".safetensors"}
    files[-1].write_bytes(b"half")
    with pytest.warns(UserWarning, match=r"checkpoint '.*' is damaged: .* is computed again"):
        again = run()
    xr.testing.assert_identical(again, wanted)


def test_a_checkpoint_wants_a_model_without_hooks(kind, tokens, difference, tmp_path):
    model = kind()
    run = lambda checkpoint=None: dose_response(
        model,
        tokens,
        {"ld": difference},
        direction=direction(),
        coefficients=[1],
        sweep=SweepOptions(checkpoint=checkpoint),
    )
    with steer(model, add_edits(direction(), 1.0, layers=0)):
        run()
        with pytest.raises(ValueError, match="hooks"):
            run(checkpoint=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_metric_that_fails_loses_nothing(kind, tokens, rows, tmp_path, monkeypatch):
    scored = []

    def fails_once(texts):
        scored.append(None)
        if len(scored) == 4:
            raise Stop
        return [float(len(text)) for text in texts]

    run = lambda score: dose_response(
        kind(),
        tokens,
        {"length": Score(score, unit="letters")},
        direction=direction(),
        coefficients=[-1, 2],
        sweep=SweepOptions(checkpoint=tmp_path),
        corpus=rows,
        generation=WRITING,
    )
    whole = dose_response(
        kind(),
        tokens,
        {"length": LENGTH},
        direction=direction(),
        coefficients=[-1, 2],
        corpus=rows,
        generation=WRITING,
    )
    calls = stopping(monkeypatch)
    with pytest.raises(Stop):
        run(fails_once)
    assert len(calls) == 4
    found = run(fails_once)
    assert len(calls) == 7 + 6
    xr.testing.assert_identical(found, whole)


def test_a_wider_sweep_adds_to_what_is_kept(kind, tokens, rows, tmp_path, monkeypatch, difference):
    run = lambda coefs, batch_size=8, **options: dose_response(
        kind(),
        tokens,
        {"ld": difference},
        coefficients=coefs,
        sweep=SweepOptions(checkpoint=tmp_path, batch_size=batch_size),
        **{"direction": direction(), "corpus": rows, **options},
    )
    calls = stopping(monkeypatch)
    run([1], layers=[1])
    assert len(calls) == 3  # the clean prompts, the cell on them and on the corpus
    run([1, 2], layers=[1, 2])
    assert len(calls) == 3 + 6
    prompt = {"generation": GenerationOptions(where="prompt")}
    for other in ({"corpus": rows.flip(0)}, {"positions": [1]}, {"batch_size": 3}, prompt):
        before = len(calls)
        run([1], layers=[1], **other)
        assert len(calls) > before, other
    before = len(calls)
    run([1], layers=[1])
    assert len(calls) == before
    run([1], layers=[1], direction=direction().copy(data=2 * direction().values))
    assert len(calls) == before + 3


def test_a_result_says_what_was_done_and_can_be_saved(kind, rows, tmp_path):
    texts = ["the cat", "hello"]
    corpus = load_corpus(["the cat sat on the mat; hello world"] * 20, kind(), length=8)
    found = dose_response(
        kind(),
        texts,
        {"length": LENGTH},
        direction=direction(),
        coefficients=[1],
        corpus=corpus,
        generation=replace(WRITING, seed=3),
    )
    assert found.attrs["sha256"] == corpus.attrs["sha256"]
    assert found.attrs["prompts"] == 2
    assert found.attrs["limit_perplexity"] == 1.5
    assert found.length.attrs["unit"] == "letters"
    assert found.cost_kl.attrs["unit"] == "nats per token"
    np.testing.assert_allclose(found.direction_norm, np.linalg.norm(direction().values, axis=-1))
    assert all(isinstance(value, str | int | float) for value in found.attrs.values())
    for suffix in ("nc", "zarr"):
        xr.testing.assert_identical(load(save(found, tmp_path / f"found.{suffix}")), found)


def respond(model, generation=None, **given):
    how = GenerationOptions(**(generation or {}))
    return unchecked(dose_response)(model, generation=how, **given)


def other_site():
    return direction().assign_attrs(site="elsewhere")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"prompts": []}, "prompts is empty"),
        ({"coefficients": []}, r"coefficients=\[\]; wanted at least one besides 0"),
        ({"coefficients": [0]}, r"coefficients=\[0.0\]; wanted at least one besides 0"),
        ({"coefficients": [1, 1]}, "wanted different finite numbers"),
        ({"coefficients": [float("inf")]}, "wanted different finite numbers"),
        ({"coefficients": [2], "action": "project_out"}, "wanted 1 .projected out. and 0"),
        ({"action": "drop"}, "action='drop'; wanted 'add' or 'project_out'"),
        ({"direction": torch.ones(32)}, "layers=None with a bare vector"),
        ({"direction": other_site()}, "site'.='elsewhere'"),
        ({"direction": direction(layers=(0, 5))}, "wanted layers 0 to 2"),
        ({"direction": direction("post").assign_attrs(site="pre")[:, :9]}, r"\(9,\)"),
        ({"layers": [1, 3]}, r"layers=\[1, 3\]; wanted integers from -3 to 2"),
        ({"positions": [30]}, "wanted integers from"),
        ({"metric": {}}, "metric={}; wanted at least one, by name"),
        ({"metric": {"a": 3}}, "metric 'a' is 3; wanted a Metric, Keywords"),
        ({"metric": "logit"}, "metric 'logit' is 'logit'; wanted .* with a Contrast one of"),
        ({"metric": {"a": "kl"}}, "metric 'a' is 'kl'; wanted .* with a Contrast one of"),
        ({"metric": {"text": LENGTH}}, "metric has 'text': text would be there twice"),
        ({"metric": {"cost_kl": LENGTH}}, "cost_kl, cost_kl_se would be there twice"),
        ({"metric": {"a": LENGTH, "a_se": LENGTH}}, "a_se would be there twice"),
        ({"metric": {"p": probability(torch.tensor([1]))}}, "names tokens for 1 prompts; wanted"),
        ({"metric": {"kl": kl(positions=(8,))}}, "reads positions=.8,.; wanted some from"),
        (
            {"metric": {"kl": kl()}, "generation": {"where": "new"}},
            "where='new' with metric 'kl', which is read",
        ),
        ({"generation": {"where": "old"}}, "where='old'; wanted"),
        ({"corpus": "nano"}, "is the name of a corpus; wanted load_corpus"),
        ({"corpus": torch.zeros(2, 1, dtype=torch.long)}, "corpus has sequences of 1 token"),
        ({"corpus": torch.full((2, 3), 300)}, "tokens hold 300"),
        ({"limit_kl": 1.0}, "limit_kl=1.0 without a corpus"),
        ({"limit_kl": 0.0, "corpus": torch.ones(2, 3).long()}, "limit_kl=0.0; wanted more than 0"),
        (
            {"limit_perplexity": 1.0, "corpus": torch.ones(2, 3).long()},
            "limit_perplexity=1.0; wanted more than 1",
        ),
        ({"sweep": SweepOptions(backend="ray")}, "sweep has backend='ray'; wanted 'local'"),
        ({"generation": {"n": 3}}, "n=3 with temperature=0"),
        ({"generation": {"max_new_tokens": 99}}, "max_new_tokens=99 after .* exceeds"),
    ],
)
def test_bad_arguments(kind, monkeypatch, options, text):
    for name in ("run", "generate", "edited"):
        monkeypatch.setattr(Runner, name, None)  # nothing runs before all is checked
    given = {
        "prompts": ["the cat", "hello"],
        "direction": direction(),
        "coefficients": [1.0],
        "metric": {"length": LENGTH},
        **options,
    }
    with pytest.raises(ValueError, match=text):
        respond(kind(), **given)


def test_metrics_give_numbers(kind, tokens):
    bad = Custom(name="bad", unit="logits", function=lambda logits, _: logits[:, 0, 0] * torch.nan)
    with pytest.raises(ValueError, match=r"metric='bad' is nan after the clean prompt 0"):
        dose_response(kind(), tokens, {"a": bad}, direction=direction(), coefficients=[1])
    with pytest.raises(ValueError, match="metric 'a' gave shape"):
        dose_response(
            kind(),
            tokens,
            {"a": Score(lambda t: [1.0])},
            direction=direction(),
            coefficients=[1],
            generation=WRITING,
        )


def test_nanos_refusals_are_turned_both_ways_and_by_no_random_direction(nano):
    """The planted behaviour: at one layer, on held-out requests, at a cost of a few per cent."""
    made = by_answer(prompts.refusal(nano, n=48, seed=1, split="train"), " Sorry")
    refusal = mean_difference(nano, *made, layers=2)
    harmful, harmless = by_answer(prompts.refusal(nano, n=20, seed=0), " Sorry")
    corpus = load_corpus("nano", nano, sequences=8, length=64)
    options = {
        "generation": GenerationOptions(max_new_tokens=3),
        "sweep": SweepOptions(batch_size=20),
        "corpus": corpus,
    }
    rate = {"refusal": Refusal(("Sorry",))}
    run = lambda tokens, used, coefs: dose_response(
        nano, tokens, rate, direction=used, coefficients=coefs, **options
    )
    down = run(harmful, refusal, [-1.25]).sel(layer=2)
    up = run(harmless, refusal, [1.25]).sel(layer=2)
    assert down.refusal.values.tolist()[1] == 1
    assert down.refusal.values[0] <= 0.05
    assert up.refusal.values[0] == 0
    assert up.refusal.values[1] >= 0.95
    for found in (down, up):
        assert float(found.cost_perplexity_ratio.max()) < 1.15
        assert found.best_layer.item() == 2
    for seed in (0, 1):
        control = random_direction(refusal, seed=seed)
        for tokens, sign, before in ((harmful, -1.25, 1.0), (harmless, 1.25, 0.0)):
            found = run(tokens, control, [sign])
            assert (found.refusal == before).all()
            assert not found.useful.any()
