"""MLPs as memories, against plain hooks in float64, on planted neurons, and on nano."""

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from random_models import BACKENDS, VOCABULARY, random_neox, tiny_tokenizer, unchecked
from torch import Tensor
from typer.testing import CliRunner

from mlp_interp import Unembed, load, load_corpus, load_model, plots
from mlp_interp.cli import app
from mlp_interp.corpus import SweepOptions
from mlp_interp.models import Weights
from mlp_interp.models.scan import top_tokens
from mlp_interp.neurons import composition, memories, pursue, update_events
from mlp_interp.neurons.stores.pursuit import _Pursuit
from mlp_interp.sites import Site

ANALYSES = (memories, composition, update_events)


def of_random(
    vocabulary: int = VOCABULARY, sequences: int = 12, length: int = 9, seed: int = 3
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, vocabulary, (sequences, length), generator=generator)


def seen(model: Any, tokens: Tensor, layer: int) -> dict[str, Tensor]:
    """Activations of one layer by plain hooks, in float64."""
    names = ["resid_pre", "post", "mlp_out", "resid_post"]
    hooks = {name: Site(name, layer).hook_name for name in names}
    final = Site("resid_post", model.cfg.n_layers - 1).hook_name
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=[*hooks.values(), final])
    found = {name: cache[hook].double() for name, hook in hooks.items()}
    return found | {"final": cache[final].double()}


def readout(model: Any) -> tuple[Tensor, Tensor, Any]:
    """The readout less its mean over the vocabulary, in float64."""
    unembed = Unembed.of(model)
    weight, bias = unembed.weight.double(), unembed.bias.double()
    return weight - weight.mean(1, keepdim=True), bias, unembed


def values(model: Any, layer: int) -> Tensor:
    return Weights.of(model).parameter(layer, "W_out").double()


def test_memories_are_those_of_plain_hooks(some_model: Any) -> None:
    tokens, k = of_random(), 3
    found = memories(some_model, tokens, k=k, layers=1).isel(layer=0)
    post, weight = seen(some_model, tokens, 1)["post"], readout(some_model)[0]
    logits = values(some_model, 1) @ weight
    size, pos = post[:, 1:].abs().max(1)
    sequence = size.argsort(dim=0, descending=True, stable=True)[:k].T
    place = pos.T.gather(1, sequence) + 1
    np.testing.assert_array_equal(found["sequence"], sequence)
    np.testing.assert_array_equal(found["pos"], place)
    unit = torch.arange(post.shape[-1])[:, None]
    activation = post[sequence, place, unit]
    np.testing.assert_allclose(found["activation"], activation, rtol=1e-4)
    follows = torch.cat([tokens, torch.full_like(tokens[:, :1], -1)], 1)[sequence, place + 1]
    np.testing.assert_array_equal(found["next"], follows)
    known, sign = follows >= 0, activation.sign()
    exchanged = torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))
    for n in range(0, len(logits), 7):
        wanted, signs = follows[n][known[n]], sign[n][known[n]]
        said = logits[:, wanted] * signs  # of every value
        hits = (said >= (logits[:, None] * signs[:, None]).amax(-1)).double().mean(1)
        lift = (said / logits.std(1, correction=0)[:, None]).mean(1)
        ranks = ((logits[n] * signs[:, None]) > said[n][:, None]).sum(1)
        other = exchanged[n]
        signed = logits[n] * sign[other][known[other]][:, None]
        beside = (signed > signed.gather(1, follows[other][known[other]][:, None])).sum(1)
        others = torch.arange(len(logits)) != n
        expected = {
            "agreement": hits[n],
            "agreement_chance": hits[others].mean(),
            "agreement_p": (hits >= hits[n]).double().mean(),
            "lift": lift[n],
            "lift_chance": lift[others].mean(),
            "lift_p": (lift >= lift[n] - 1e-9).double().mean(),
            "rank": ranks.double().nanmedian(),
            "rank_chance": beside.double().nanmedian(),
        }
        for name, value in expected.items():
            got = float(found[name][n])
            assert got == pytest.approx(float(value), rel=1e-3, abs=1e-4, nan_ok=True), (n, name)
        order = (logits[n] * activation[n, 0].sign()).argsort(descending=True)[:5]
        np.testing.assert_array_equal(found["promoted"][n], order)


def test_p_values_are_uniform_where_values_know_nothing() -> None:
    model = load_model(random_neox(d_mlp=256), tokenizer=tiny_tokenizer())
    found = memories(model, of_random(sequences=24), k=6)
    for layer in found["layer"].values:
        p = found["lift_p"].sel(layer=layer).values
        assert scipy.stats.kstest(p, "uniform").pvalue > 1e-3
        assert abs(float(found["lift"].sel(layer=layer).mean())) < 0.2


def planted(backend: str, key: int = 5, says: int = 9, neuron: int = 3) -> Any:
    """A model of whose first layer one neuron fires on a token and promotes another."""
    source = random_neox(d_model=64)
    with torch.no_grad():
        block, norm = source.gpt_neox.layers[0], source.gpt_neox.final_layer_norm
        embedding = source.gpt_neox.embed_in.weight[key]
        block.post_attention_layernorm.weight.fill_(1)
        block.post_attention_layernorm.bias.zero_()
        direction = embedding - embedding.mean()
        block.mlp.dense_h_to_4h.weight[neuron] = direction / direction.norm()
        block.mlp.dense_h_to_4h.bias[neuron] = -0.5 * 64**0.5
        block.mlp.dense_4h_to_h.weight[:, neuron] = (
            norm.weight * source.get_output_embeddings().weight[says]
        )
    return load_model(source, tokenizer=tiny_tokenizer(), backend=backend)


def test_a_planted_memory_is_found(backend: str) -> None:
    tokens = of_random(sequences=16)
    tokens[tokens == 5] = 6
    tokens[:, 4], tokens[:, 5] = 5, 9
    found = memories(planted(backend), tokens, layers=0, k=8).isel(layer=0)
    assert float(found["agreement"][3]) == 1
    assert float(found["agreement_p"][3]) <= 2 / 64
    assert float(found["rank"][3]) == 0
    assert list(found["next"][3].values) == [9] * 8
    others = found["agreement"].values[np.arange(64) != 3]
    assert others.mean() < 0.1


def test_composition_is_that_of_plain_hooks(some_model: Any) -> None:
    tokens = of_random()
    found = composition(some_model, tokens, dominant=4, points=[2], sample=1, layers=[0, 2])
    weight, bias, unembed = readout(some_model)
    parallel = Weights.of(some_model).parallel
    for layer in (0, 2):
        x = {name: value[:, 1:] for name, value in seen(some_model, tokens, layer).items()}
        before = x["resid_pre"] if parallel else x["resid_post"] - x["mlp_out"]
        value = unembed.norm.keep(values(some_model, layer))
        b_out = Weights.of(some_model).parameter(layer, "b_out").double()
        says = (x["mlp_out"] @ weight).argmax(-1)
        top, low = (value @ weight).argmax(-1), (value @ weight).argmin(-1)
        memory = torch.where(x["post"] > 0, top, low)
        order = (x["post"].abs() * value.norm(dim=-1)).argsort(-1, descending=True)
        hit = memory == says[..., None]
        parts = x["post"].scatter(-1, order[..., 2:], 0) @ value
        expected = {
            "any": ~hit.any(-1),
            "positive": ~(hit & (x["post"] > 0)).any(-1),
            "dominant": ~hit.gather(-1, order[..., :4]).any(-1),
            "bias": says == (b_out @ weight).argmax(),
            "stream": says == (unembed.normalize(before) @ weight + bias).argmax(-1),
            "after": says == (unembed.normalize(before + x["mlp_out"]) @ weight + bias).argmax(-1),
            "final": says == (unembed.normalize(x["final"]) @ weight + bias).argmax(-1),
            "parts": says == (parts @ weight).argmax(-1),
        }
        mine = found.sel(layer=layer)
        for name, share in expected.items():
            which = mine["compositional"].sel(memories=name) if name in mine.memories else None
            got = mine[name] if which is None else which
            assert float(np.ravel(got)[0]) == pytest.approx(float(share.double().mean()), abs=1e-2)


def test_one_neuron_alone_is_never_compositional() -> None:
    source = random_neox(d_mlp=1)
    for block in source.gpt_neox.layers:
        block.mlp.dense_4h_to_h.bias.data.zero_()
    model = load_model(source, tokenizer=tiny_tokenizer())
    found = composition(model, of_random(), dominant=1, sample=1)
    assert found["k"].values.tolist() == [1]
    np.testing.assert_array_equal(found["compositional"].sel(memories=["any", "dominant"]), 0)
    np.testing.assert_array_equal(found["parts"], 1)
    assert float(found["compositional_chance"].min()) > 0


@pytest.mark.parametrize("stream", ["read", "left"])
def test_events_are_those_of_plain_hooks(some_model: Any, stream: Any) -> None:
    tokens = of_random()
    found = update_events(some_model, tokens, dominant=4, stream=stream, layers=[1])
    weight, bias, unembed = readout(some_model)
    x = {name: value[:, 1:] for name, value in seen(some_model, tokens, 1).items()}
    whole = stream == "read" and Weights.of(some_model).parallel
    before = x["resid_pre"] if whole else x["resid_post"] - x["mlp_out"]
    after, value = before + x["mlp_out"], values(some_model, 1)
    logits = [unembed.normalize(y) @ weight for y in (before, after)]
    old, new = ((z + bias).argmax(-1) for z in logits)
    final = (unembed.normalize(x["final"]) @ weight + bias).argmax(-1)
    scale = unembed.scale(after)
    b_out = Weights.of(some_model).parameter(1, "b_out").double()
    for event, where in (("changed", old != new), ("settled", (old != new) & (new == final))):
        mine = found.sel(event=event, layer=1)
        assert float(mine["share"]) == pytest.approx(float(where.double().mean()), abs=1e-6)
        own = []
        for name, token in (("new", new), ("old", old)):
            direction = weight.T[token]
            each = x["post"] * (direction @ value.T) / scale
            own.append(each.sum(-1) + (direction @ b_out) / scale[..., 0])
            change = (logits[1] - logits[0]).gather(-1, token[..., None])[..., 0]
            expected = {
                "total": change,
                "promoted": each.clamp_min(0).sum(-1),
                "eliminated": each.clamp_max(0).sum(-1),
                "b_out": (direction @ b_out) / scale[..., 0],
                "norm": change - own[-1],
            }
            order = (x["post"].abs() * unembed.norm.keep(value).norm(dim=-1)).argsort(
                -1, descending=True
            )
            dominant = each.gather(-1, order[..., :4])
            expected["dominant_max"] = dominant.amax(-1)
            expected["dominant_min"] = dominant.amin(-1)
            expected["dominant_mean"] = dominant.mean(-1)
            for what, numbers in expected.items():
                mean = _by_text(numbers, where)
                assert float(mine[what].sel(token=name)) == pytest.approx(
                    mean, abs=2e-3, nan_ok=True
                ), (event, what)
        rise = _by_text((own[0] > -own[1]).double(), where)
        assert float(mine["promotion"]) == pytest.approx(rise, abs=1e-2, nan_ok=True)


def _by_text(numbers: Tensor, where: Tensor) -> float:
    """Mean over the tokens of each text, then over texts that have any."""
    sums, counts = (numbers * where).sum(1), where.sum(1)
    return float((sums / counts)[counts > 0].mean())


def test_parts_of_a_change_sum_to_it(nano: Any) -> None:
    found = update_events(nano, load_corpus("nano", nano, sequences=8, length=32))
    parts = found[["promoted", "eliminated", "b_out", "norm"]].to_dataarray().sum("variable")
    np.testing.assert_allclose(parts, found["total"], atol=1e-4)


@pytest.mark.parametrize("analysis", ANALYSES)
def test_processing_class_and_shards_change_nothing(kind: Any, analysis: Any) -> None:
    tokens = of_random()
    expected = analysis(kind("parallel", BACKENDS[0], "folded"), tokens)
    raw = analysis(kind("parallel", BACKENDS[-1], "raw"), tokens)
    shards = analysis(
        kind("parallel", BACKENDS[0], "folded"), tokens, sweep=SweepOptions(batch_size=3, shard=3)
    )
    for name in ("activation", "agreement", "lift", "rank", "share", "total", "norm", "parts"):
        if name in expected:
            np.testing.assert_allclose(raw[name], expected[name], atol=2e-3)
            np.testing.assert_allclose(shards[name], expected[name], atol=1e-4)


@pytest.mark.parametrize("analysis", ANALYSES)
def test_padding_does_not_count(kind: Any, analysis: Any) -> None:
    # An odd number of texts: half of all positions is then not half of the texts.
    model, tokens = kind("llama"), of_random(sequences=5)
    options: Any = {} if analysis is memories else {"sample": 1}
    expected = analysis(model, tokens, **options)
    padded = torch.cat([tokens, torch.zeros_like(tokens[:, :3])], dim=1)
    mask = torch.ones_like(padded)
    mask[:, tokens.shape[1] :] = 0
    found = analysis(model, padded, attention_mask=mask, **options)
    for name in expected.data_vars:
        if str(name) in found and found[name].dtype.kind == "f":
            np.testing.assert_allclose(found[name], expected[name], atol=1e-4)


def test_nano_has_the_memories_that_it_is_known_to_have(nano: Any) -> None:
    corpus = load_corpus("nano", nano, sequences=192, length=64)
    found = memories(nano, corpus)
    mean = found[["agreement", "agreement_chance"]].mean("neuron")
    assert bool((mean["agreement"] > 5 * mean["agreement_chance"]).all())
    assert bool((found["rank"].median("neuron") < 300).all())
    chance = found["rank_chance"].mean("neuron")  # values exchanged, of 2,048 tokens
    assert bool((chance > 700).all() & (chance < 1300).all())
    events = update_events(nano, corpus.tokens[:24]).sel(event="changed")
    assert bool((events["promotion"] >= 0.6).all())
    assert int(events["promotion"].values.argmin()) == 1
    shares = composition(nano, corpus.tokens[:24], points=[])
    dominant = shares["compositional"] - shares["compositional_chance"]
    assert bool((dominant.sel(memories="dominant") < -0.1).all())


def test_top_tokens_are_those_of_all_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(size, generator=generator) for size in ((8, 3000), (500, 8)))
    bias = torch.randn(3000, generator=generator)
    assert torch.equal(top_tokens(weight, x), (x @ weight).argmax(-1))
    assert torch.equal(top_tokens(weight, x, bias), (x @ weight + bias).argmax(-1))
    half = weight.bfloat16()
    assert torch.equal(top_tokens(half, x), (x @ half.float()).argmax(-1))


def test_half_precision_is_read_as_single(kind: Any) -> None:
    tokens, half = of_random(), kind(dtype=torch.bfloat16)
    share = composition(half, tokens, sample=1)["compositional"]
    expected = composition(kind(), tokens, sample=1)["compositional"]
    np.testing.assert_allclose(share, expected, atol=0.1)
    share = update_events(half, tokens)["share"]
    np.testing.assert_allclose(share, update_events(kind(), tokens)["share"], atol=0.1)


def test_neurons_without_triggers_have_nothing(backend: str) -> None:
    source = random_neox()
    block = source.gpt_neox.layers[0]
    with torch.no_grad():
        block.mlp.dense_h_to_4h.weight[3] = 0
        block.mlp.dense_h_to_4h.bias[3] = 0
        block.post_attention_layernorm.bias.zero_()
    model = load_model(source, tokenizer=tiny_tokenizer(), backend=backend)
    found = memories(model, of_random(length=2), layers=0, k=2).isel(layer=0)
    assert not found["activation"].isel(neuron=3).any()
    assert found["promoted"].isel(neuron=3).values.tolist() == [-1] * 5
    assert found["promoted_text"].isel(neuron=3).values.tolist() == [""] * 5
    # All others fire, at the end of a text: nothing follows.
    assert bool((found["promoted"].drop_sel(neuron=3) >= 0).all())
    for name in ("agreement", "agreement_chance", "agreement_p", "lift", "lift_p", "rank"):
        assert found[name].isnull().all(), name


def test_a_value_of_zeros_says_nothing(backend: str) -> None:
    source = random_neox()
    with torch.no_grad():
        source.gpt_neox.layers[1].mlp.dense_4h_to_h.weight[:, 3] = 0
    model = load_model(source, tokenizer=tiny_tokenizer(), backend=backend)
    found = memories(model, of_random(), layers=1, k=2).isel(layer=0)
    assert found["activation"].isel(neuron=3).all()
    assert found["promoted"].isel(neuron=3).values.tolist() == [-1] * 5
    for name in ("agreement", "agreement_chance", "agreement_p", "lift", "lift_p", "rank"):
        assert found[name].isnull().values.nonzero()[0].tolist() == [3], name


def test_pursuit_finds_the_values_of_which_a_vector_is_made(nano: Any) -> None:
    value = torch.cat([values(nano, 0)[[7, 300]], values(nano, 2)[[11]]])
    found = pursue(nano, 3 * value[0] - 2 * value[1] + value[2], steps=3)
    assert {*found["component"].values[1:]} == {"L0N7", "L0N300", "L2N11"}
    assert float(found["explained"][-1]) == pytest.approx(1, abs=1e-6)
    by_name = dict(zip(found["component"].values, found["coefficient"].values, strict=True))
    assert by_name["L0N300"] == pytest.approx(-2, abs=1e-5)
    assert float(found["explained_chance"][-1]) < 0.5
    plain = pursue(nano, value[0], steps=2, refit=False, signs="positive")
    assert plain["component"].values[1] == "L0N7"
    assert bool((plain["coefficient"][1:] > 0).all())


def test_pursuit_with_positive_coefficients_takes_nothing_that_points_away() -> None:
    target = torch.tensor([[-1.0, -2.0, 0.0]])
    found = _Pursuit.of(target, torch.eye(2, 3), 2, "positive", refit=False)
    assert found.coefficient.tolist() == [[0, 0]]
    assert found.explained[-1].tolist() == [0]


def test_pursuit_in_double_precision(kind: Any, backend: str) -> None:
    one, other = (
        pursue(kind("parallel", backend, "raw", dtype), 5, steps=3)
        for dtype in (torch.float32, torch.float64)
    )
    assert one["component"].values.tolist() == other["component"].values.tolist()
    for name in ("coefficient", "explained", "promoted_logit"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-3, err_msg=name)


def test_pursuit_leaves_what_is_orthogonal_to_what_was_taken(nano: Any) -> None:
    found = pursue(nano, " Paris", steps=5, controls=64)
    assert found["promoted_text"].values[0, 0] == " Paris"
    taken = [
        values(nano, int(a))[int(b)] for a, b in zip(found.layer[1:], found.neuron[1:], strict=True)
    ]
    basis = torch.stack(taken)
    basis = basis - basis.mean(1, keepdim=True)
    target = readout(nano)[0][:, nano.tokenizer.encode(" Paris")[-1]]
    left = target - torch.linalg.lstsq(basis.T, target[:, None]).solution[:, 0] @ basis
    explained = 1 - left.square().sum() / target.square().sum()
    assert float(found["explained"][-1]) == pytest.approx(float(explained), abs=1e-5)
    assert bool((found["explained_chance"].diff("step") > 0).all())


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"layers": 9}, "layers=.*9"),
        ({"k": 0}, "k=0; wanted at least 1"),
        ({"tokens": 9999}, "tokens=9999; wanted an integer from 1 to 300"),
        ({"controls": -1}, "controls=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"before": -1}, "before=-1"),
    ],
)
def test_memories_refuses(kind: Any, options: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        unchecked(memories)(kind(), of_random(), **options)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("analysis", "options", "text"),
    [
        (composition, {"dominant": 65}, "dominant=65; wanted an integer from 1 to 64"),
        (composition, {"points": [0]}, "points=0; wanted an integer from 1 to 64"),
        (composition, {"points": [2, 2]}, "points=.2, 2.; wanted at least one number of neurons"),
        (composition, {"sample": 0}, "sample=0"),
        (update_events, {"dominant": 0}, "dominant=0"),
        (update_events, {"stream": "mid"}, "stream='mid'; wanted 'read' or 'left'"),
        (update_events, {"layers": [1, 1]}, "layers=.*each once"),
    ],
)
def test_reducers_of_updates_refuse(kind: Any, analysis: Any, options: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        unchecked(analysis)(kind(), of_random(), **options)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("target", "options", "text"),
    [
        (" Paris Paris", {}, "target=.* is 2 tokens"),
        (9999, {}, "target=9999; wanted a token id from 0 to 2047"),
        (torch.ones(3), {}, "wanted a token, or a vector of 192 numbers"),
        (None, {}, "target=NoneType"),
        (torch.ones(192), {}, "target is zero or not finite"),
        (5, {"steps": 200}, "steps=200; wanted an integer from 1 to 192"),
        (5, {"signs": "some"}, "signs='some'"),
        (5, {"controls": 0}, "controls=0"),
    ],
)
def test_pursue_refuses(nano: Any, target: Any, options: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        unchecked(pursue)(nano, target, **options)


def test_figures_show_the_numbers_of_the_results(kind: Any) -> None:
    tokens = of_random()
    found = memories(kind(), tokens, k=3)
    figure = plots.memories(found)
    mean = found["agreement"].mean("neuron")
    np.testing.assert_allclose(figure.data[0].y, mean)
    assert [trace.name for trace in figure.data[2:4]] == ["layer 0", "layer 0"]
    assert figure.data[2].y[-1] == pytest.approx(1 - found["rank"][0].isnull().mean().item())
    events = update_events(kind(), tokens)
    figure = plots.update_events(events, event="settled")
    total = events["total"].sel(event="settled").transpose("layer", "token")
    marks = figure.data[-1]
    np.testing.assert_allclose(marks.y, total.values.ravel())
    stacks = figure.data[2:-1]
    np.testing.assert_allclose(sum(np.asarray(bar.y) for bar in stacks), marks.y, atol=1e-4)
    with pytest.raises(ValueError, match=r"event='none'; wanted one of 'changed', 'settled'"):
        plots.update_events(events, event="none")
    with pytest.raises(ValueError, match="lacks 'share'"):
        plots.update_events(found)


def test_the_command_prints_and_writes_what_was_measured(
    tmp_path: Any, nano: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "memories.nc"
    monkeypatch.setattr("mlp_interp.corpus.job.BAR_AFTER", 0.0)  # as on a slow machine
    size = ["-n", "8", "-t", "16", "-k", "2", "--seed", "1"]
    done = CliRunner().invoke(app, ["memories", *size, "-o", str(path)])
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    expected = memories(nano, load_corpus("nano", nano, sequences=8, length=16, seed=1), seed=1)
    found = load(path)
    np.testing.assert_allclose(found["agreement"], expected["agreement"])
    lines = done.stdout.splitlines()
    assert lines[0].startswith("neurons of nano as memories, nano's generated text")
    row = lines[2].split()
    assert row[0] == "0"
    assert str(int(expected["rank"][0].median())) in row
    best = lines[-2].split()[0]
    layer, neuron = map(int, best[1:].split("N"))
    assert float(expected["agreement"][layer, neuron]) == float(expected["agreement"].max())
    refused = CliRunner().invoke(app, ["memories", "-o", str(tmp_path / "x.txt")])
    assert refused.exit_code == 2
    assert "--out must end in .nc or .zarr" in refused.stderr
