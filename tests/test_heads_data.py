"""Heads on texts: detection, parts of scores, shares of what is read, induction circuits."""

import numpy as np
import pytest
import torch
import xarray as xr
from random_models import BACKENDS, HAS_HOOKED

import mlp_interp as mi
from mlp_interp import heads as of_heads
from mlp_interp.heads._key_path import KeyPath
from mlp_interp.heads._keys import KINDS, Keys, attended
from mlp_interp.heads._repeated import Repeated
from mlp_interp.models import Unembed, Weights
from mlp_interp.models.heads import Heads
from mlp_interp.residual import needed

STRONG = [f"L0H0 → L1H{head}" for head in range(6)]


def patterns(model, tokens, layer, what="pattern"):
    name = f"blocks.{layer}.attn.hook_{what}"
    return model.run_with_cache(tokens, names_filter=[name])[1][name]


def keys_of(row, kind, i):
    """By the words of the documentation."""
    same = [j for j in range(i) if row[j] == row[i]]
    return {
        "previous": [i - 1],
        "self": [i],
        "first": [0],
        "duplicate": same,
        "induction": [j + 1 for j in same if j + 1 < i],
    }[kind]


def test_detection_is_a_loop_over_patterns(some_model):
    tokens = torch.randint(1, 9, (3, 12), generator=torch.Generator().manual_seed(0))
    found = of_heads.detect(some_model, tokens, batch_size=2)
    for layer in range(2):
        pattern = patterns(some_model, tokens, layer).double()
        distance = [
            torch.stack([pattern[:, :, i, i - d] for i in range(d, 12)]).mean((0, 1))
            for d in range(12)
        ]
        for kind in KINDS:
            scores, expected = [], []
            for row, text in zip(pattern, tokens.tolist(), strict=True):
                each = [(i, keys) for i in range(1, 12) if (keys := keys_of(text, kind, i))]
                scores.append(torch.stack([row[:, i, keys].sum(-1) for i, keys in each]).mean(0))
                chance = [
                    sum(distance[i - j] for j in keys)
                    if kind in ("duplicate", "induction")
                    else torch.full((4,), 1 / (i + 1))
                    for i, keys in each
                ]
                expected.append(torch.stack(chance).double().mean(0))
            here = found.sel(kind=kind, layer=layer)
            scores = torch.stack(scores)
            np.testing.assert_allclose(here.score, scores.mean(0), atol=1e-5)
            np.testing.assert_allclose(here.score_se, scores.std(0) / 3**0.5, atol=1e-5)
            np.testing.assert_allclose(here.expected, torch.stack(expected).mean(0), atol=1e-5)


def test_padding_has_no_part_in_detection(nano):
    texts = [[0, 5, 6, 5, 6, 7], [0, 9, 8, 9, 8], [0, 3, 4]]
    both = of_heads.detect(nano, texts)
    each = xr.concat([of_heads.detect(nano, [text]) for text in texts], "text").mean("text")
    np.testing.assert_allclose(both.score, each.score, atol=1e-5)
    nothing = of_heads.detect(nano, texts[2:]).score.sel(kind=["duplicate", "induction"])
    assert np.isnan(nothing).all()  # not 0: no query was there
    for kind in ("previous", "first", "self"):
        mine, wanted = (x.expected.sel(kind=kind) for x in (both, each))
        np.testing.assert_allclose(mine, wanted, atol=1e-6)
    # The others' are of what is usual at these distances, over all texts together.
    alone = [patterns(nano, torch.tensor([text]), 1)[0].double() for text in texts]
    usual = [
        torch.stack([x[:, i, i - d] for x in alone for i in range(d, x.shape[1])]).mean(0)
        for d in range(6)
    ]
    for kind in ("duplicate", "induction"):
        asked = [[keys_of(text, kind, i) for i in range(len(text))] for text in texts[:2]]
        sums = [
            torch.stack([sum(usual[i - j] for j in keys) for i, keys in enumerate(one) if keys])
            for one in asked
        ]
        own = torch.stack([one.mean(0) for one in sums]).mean(0)
        np.testing.assert_allclose(both.expected.sel(kind=kind, layer=1), own, atol=1e-6)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_mask_says_what_is_text(kind, backend, side):
    """Of a tokenizer that does not tell: its padding token is a word, too."""
    model = kind("parallel", backend, "raw")
    texts = [[5, 6, 5, 6, 7], [9, 8, 9], [4, 4, 3, 3, 7]]
    tokens, mask = torch.full((3, 5), 6), torch.ones(3, 5, dtype=torch.int64)
    for row, text in enumerate(texts):
        there = slice(0, len(text)) if side == "right" else slice(5 - len(text), 5)
        tokens[row, there] = torch.tensor(text)
        mask[row] = 0
        mask[row, there] = 1
    for analysis in (of_heads.detect, lambda *x, **o: of_heads.read_shares(*x, "L1H2.k", **o)):
        wanted, found = analysis(model, texts), analysis(model, tokens, attention_mask=mask)
        xr.testing.assert_allclose(wanted, found, atol=1e-5)


def test_texts_tell_what_is_real_from_another_device():
    tokens, real = (
        torch.tensor([[0, 5, 5], [0, 6, 0]]),
        torch.tensor([[True] * 3, [True, True, False]]),
    )
    assert attended(tokens.to("meta"), "previous", real).device.type == "meta"
    assert Keys.of(tokens, KINDS, real).queries.tolist() == [[2, 1, 0, 2, 2], [1, 0, 0, 1, 1]]


def test_keys_are_found_batch_by_batch(nano, monkeypatch):
    sizes, of = [], Keys.of.__func__
    counted = classmethod(
        lambda cls, tokens, *rest: sizes.append(len(tokens)) or of(cls, tokens, *rest)
    )
    monkeypatch.setattr(Keys, "of", counted)
    found = of_heads.detect(nano, n=7, period=4, batch_size=3)
    assert sizes == [3, 3, 3, 3, 3]  # eight of them without a repetition
    chance = found.expected_se.sel(layer=1)
    assert (chance.sel(kind=["duplicate", "induction"]) > 0).all()
    assert np.isnan(chance.sel(kind=["previous", "first", "self"])).all()
    assert found.queries.sel(kind=["previous", "induction"]).values.tolist() == [56, 28]
    # These eight are asked about the places where the others have a repetition.
    pattern = patterns(nano, Repeated.of(Weights.of(nano), 7, 4, 0).controls, 1).double()
    for kind, back in (("duplicate", 4), ("induction", 3)):
        paid = pattern[:, :, range(5, 9), range(5 - back, 9 - back)].mean(-1)
        here = found.sel(kind=kind, layer=1)
        np.testing.assert_allclose(here.expected, paid.mean(0), atol=1e-6)
        np.testing.assert_allclose(here.expected_se, paid.std(0) / 8**0.5, atol=1e-6)


def test_texts_that_come_twice(nano):
    weights = Weights.of(nano)
    drawn = Repeated.of(weights, 8, 10, seed=1)
    assert drawn.tokens.shape == (8, 21)
    assert torch.equal(drawn.tokens[:, 1:11], drawn.tokens[:, 11:])
    assert bool((drawn.tokens[:, 0] == 0).all())
    for row in (*drawn.tokens[:, 1:11], *drawn.controls[:, 1:]):
        assert len(set(row.tolist())) == len(row)
        assert 0 not in row
    keys = attended(drawn.tokens, "induction")[0]
    assert keys.nonzero().tolist() == [[i, i - 9] for i in range(11, 21)]


@pytest.mark.parametrize("level", ["component", "head"])
def test_parts_sum_to_the_scores_of_the_model(some_model, tokens, level):
    found = of_heads.split_scores(some_model, tokens, "L2H3", level=level, queries=None)
    scores = patterns(some_model, tokens, 2)[:, 3]
    ours = torch.from_numpy(found.score.values).masked_fill(
        torch.from_numpy(found.score.isnull().values), -torch.inf
    )
    torch.testing.assert_close(ours.softmax(-1), scores, atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(
        found.parts.sum(("query_component", "key_component"), skipna=False),
        found.score,
        rtol=1e-4,
        atol=1e-4,
    )
    one = of_heads.split_scores(some_model, tokens, (2, 3), level=level, queries=-2, keys=[1, 3])
    np.testing.assert_allclose(
        one.parts, found.parts.sel(query=[7], key=[1, 3]), rtol=1e-4, atol=1e-5
    )


def test_shares_of_what_is_read(some_model, tokens):
    readers = ["L2H1.q", "L2H3.k", "L1H0.v"]
    found = of_heads.read_shares(some_model, tokens, readers, level="head", batch_size=3)
    np.testing.assert_allclose(found.share.sum("component"), 1, atol=1e-4)
    before = found.share.sel(reader="L1H0.v")
    assert bool(before.sel(component="L1H0").isnull())
    weights = Weights.of(some_model)
    names = needed(some_model, level="head", layer=2)
    _, cache = some_model.run_with_cache(tokens, names_filter=names)
    residual = mi.decompose(some_model, cache, level="head", layer=2)
    read = weights.norm.keep(residual.vectors()) / weights.norm.scale(residual.total)[..., None]
    q = (read[:, 1:] @ Heads.of(weights, 2).Q[1]).flatten(0, 1).double()
    q = q - q.mean(0)
    share = (q * q.sum(1, keepdim=True)).sum((0, 2)) / q.sum(1).square().sum()
    np.testing.assert_allclose(found.share.sel(reader="L2H1.q"), share, atol=1e-4)
    deviation = (q.sum(1).square().sum() / len(q)).sqrt()
    assert found.deviation.sel(reader="L2H1.q").item() == pytest.approx(float(deviation), rel=1e-4)


def test_what_neurons_read(kind, backend, tokens):
    model = kind("parallel", backend, "raw")
    found = of_heads.read_shares(model, tokens, "L1N7.pre")
    np.testing.assert_allclose(found.share.sum("component"), 1, atol=1e-4)
    pre = model.run_with_cache(tokens, names_filter=["blocks.1.mlp.hook_pre"])[1]
    deviation = pre["blocks.1.mlp.hook_pre"][:, 1:, 7].std(correction=0)
    assert float(found.deviation[0]) == pytest.approx(float(deviation), rel=1e-4)
    with pytest.raises(ValueError, match="read what attention wrote in the same block"):
        of_heads.read_shares(kind("sequential", backend, "raw"), tokens, "L1N7.pre")


@pytest.mark.parametrize(
    ("backend", "processing"), [*zip(BACKENDS[::-1], ("raw", "folded"), strict=False)]
)
def test_nano_s_induction_circuits(backend, processing):
    model = mi.load_model("nano", backend=backend, processing=processing)
    found = of_heads.induction(model, n=8)
    strong = found.where(found.strength == "strong", drop=True)
    assert sorted(strong.circuit.values) == STRONG
    assert bool((found.compose_z.diff("circuit") <= 0).all())
    assert sorted(found.circuit.values[found.strength.values == "weak"]) == [
        "L0H0 → L2H0",
        "L0H0 → L2H4",
    ]
    assert float(strong.score.min()) > 0.9
    assert float(strong.score_share.min()) > 0.95
    assert float(found.expected.max()) < 0.05
    assert bool((strong.knockout > 0).all())
    tokens = Repeated.of(Weights.of(model), 8, 24, 0).tokens
    given = of_heads.induction(model, tokens=tokens)
    np.testing.assert_allclose(given.score, found.score, atol=1e-5)
    np.testing.assert_allclose(given.knockout, found.knockout, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_induction_circuits_in_other_precisions(dtype):
    model = mi.load_model("nano", dtype=dtype, processing="raw")
    found = of_heads.induction(model, n=2, period=12)
    assert set(STRONG) <= set(found.circuit.values[found.strength.values == "strong"])
    assert bool(found.knockout.notnull().all())


def test_a_cut_key_path_is_the_model_with_other_keys(nano):
    found = of_heads.induction(nano, n=8).sel(circuit="L0H0 → L1H2")
    tokens = Repeated.of(Weights.of(nano), 8, 24, 0).tokens
    weights = Weights.of(nano)
    names = ["blocks.0.attn.hook_z", "blocks.1.hook_resid_pre"]
    logits, cache = nano.run_with_cache(tokens, names_filter=names)
    block, stream = weights.block(1), cache["blocks.1.hook_resid_pre"]
    wrote = cache["blocks.0.attn.hook_z"][:, :, 0] @ weights.block(0).W_O[0]
    keys = weights.norm.keep(wrote / weights.norm.scale(stream)) * block.ln1.w @ block.W_K[2]

    def cut(k, hook):
        k = k.clone()
        k[:, :, 2] -= keys - keys.mean((0, 1))
        return k

    without = nano.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_k", cut)])
    queries, wanted = slice(25, 48), tokens[:, 26:49]
    loss = [
        -x[:, queries].log_softmax(-1).gather(2, wanted[..., None]).mean().item()
        for x in (without, logits)
    ]
    assert float(found.knockout) == pytest.approx(loss[0] - loss[1], abs=1e-4)
    asked = {"level": "head", "queries": range(25, 49)}
    parts = of_heads.split_scores(nano, tokens[:4], "L1H2", **asked).parts.sum("query_component")
    margin = np.zeros(parts.sizes["key_component"])
    for i, of_query in enumerate(parts.values.swapaxes(0, 1)):
        keys = of_query[:, : 26 + i]
        margin += (keys[:, i + 2] - np.delete(keys, i + 2, axis=1).mean(1)).sum(0)
    few = of_heads.induction(nano, tokens=tokens[:4]).sel(circuit="L0H0 → L1H2")
    share = margin[list(parts.key_component.values).index("L0H0")] / margin.sum()
    assert float(few.score_share) == pytest.approx(share, abs=1e-3)


def test_circuits_of_texts_that_end_in_what_pads(nano):
    rows = [[0, 905, 906, 907, 905, 906, 0], [0, 915, 916, 917, 915, 916, 917]]
    found = of_heads.induction(nano, tokens=rows).sel(circuit="L0H0 → L1H3")
    data = of_heads.detect(nano, rows, kinds="induction").sel(kind="induction", layer=1, head=3)
    assert float(found.score) == pytest.approx(float(data.score), abs=1e-6)
    assert np.isfinite(float(found.knockout))


def test_no_circuits_in_random_models(kind, backend):
    for architecture in ("parallel", "sequential", "llama"):
        found = of_heads.induction(kind(architecture, backend, "raw"), n=4, period=8)
        assert found.sizes["circuit"] == 0
        assert (
            found.attrs["exact"] == 0
        )  # nothing was found, in layers of which something is missing


@pytest.mark.skipif(not HAS_HOOKED, reason="changes parameters by their names")
def test_circuits_follow_their_heads_and_go_with_biases(tmp_path):
    model = mi.load_model("nano", backend="hooked")
    order = {0: [2, 1, 0, 3, 4, 5], 1: [5, 4, 3, 2, 1, 0]}
    with torch.no_grad():
        for layer, places in order.items():
            attention = model.blocks[layer].attn
            for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V"):
                matrix = getattr(attention, name)
                matrix.copy_(matrix[places].clone())
    found = of_heads.induction(model, n=4)
    strong = found.circuit.values[found.strength.values == "strong"]
    assert sorted(strong) == [f"L0H2 → L1H{head}" for head in range(6)]
    assert mi.load(mi.save(found, tmp_path / "found.nc")).identical(found)
    with torch.no_grad():
        model.blocks[1].attn.W_O[3] *= -1  # matches, and copies no longer
    found = of_heads.induction(model, n=2)
    assert {"L0H2 → L1H2", "L0H2 → L1H4"} <= set(found.circuit.values)
    assert "L0H2 → L1H3" not in found.circuit
    with torch.no_grad():
        model.blocks[-1].attn.load_state_dict(model.blocks[0].attn.state_dict())
        for bias in (model.blocks[0].attn.b_Q, model.blocks[0].attn.b_K):
            bias[2] = 0
    # The last layer has the only head that attends to the previous token: for none to read.
    assert of_heads.induction(model, n=4).sizes["circuit"] == 0


def test_attention_that_another_part_of_keys_makes_is_no_strong_circuit(nano, monkeypatch):
    monkeypatch.setattr(KeyPath, "measured", lambda self: (0.49, torch.ones(2)))
    found = of_heads.induction(nano, n=2, period=12)
    assert float(found.score.max()) > 0.9
    assert set(found.strength.values) == {"weak"}


@pytest.mark.skipif(not HAS_HOOKED, reason="only this class's keys are hooked by head")
def test_a_key_path_to_heads_that_share_keys(kind):
    """Beside hooks of the library's, in a model that writes much of the same everywhere."""
    model = kind("llama", "hooked", "raw")
    weights = Weights.of(model)
    tokens = Repeated.of(weights, 4, 6, 0).tokens
    heads = [Heads.of(weights, layer) for layer in range(2)]
    path = KeyPath(heads[0], 1, heads[1], 3, tokens, Unembed.of(model))
    names = ["blocks.0.attn.hook_z", "blocks.1.hook_resid_pre"]
    logits, cache = model.run_with_cache(tokens, names_filter=names)
    stream, block = cache["blocks.1.hook_resid_pre"], model.blocks[1]
    wrote = cache["blocks.0.attn.hook_z"][:, :, 1] @ model.blocks[0].attn.W_O[1]
    keys = wrote / weights.norm.scale(stream) * block.ln1.w @ block.attn.W_K[3]
    keys = keys - keys.mean((0, 1))

    def cut(k, hook):
        k = k.clone()
        k[:, :, 3 // (4 // k.shape[2])] -= keys
        return k

    without = model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_k", cut)])
    queries, wanted = slice(7, 12), tokens[:, 8:13]
    rise = [
        -x[:, queries].log_softmax(-1).gather(2, wanted[..., None])[..., 0].double().mean(1)
        for x in (without, logits)
    ]
    torch.testing.assert_close(path.measured()[1], rise[0] - rise[1], atol=2e-6, rtol=1e-3)


def test_bad_questions_on_data(nano, without_type_checks):
    tokens = torch.tensor([[0, 5, 6, 5, 6]])
    for error, call in [
        ("kinds='copy'", lambda: of_heads.detect(nano, kinds="copy")),
        ("kinds=5; wanted 'previous'", lambda: of_heads.detect(nano, kinds=5)),
        (
            "attention_mask beside corpus=None",
            lambda: of_heads.detect(nano, attention_mask=torch.ones(1, 5)),
        ),
        ("each once", lambda: of_heads.detect(nano, kinds=["self", "self"])),
        ("kinds=..; wanted at least one", lambda: of_heads.detect(nano, kinds=())),
        ("n=0; wanted at least 1", lambda: of_heads.detect(nano, n=0)),
        ("period=900; .* fit twice", lambda: of_heads.detect(nano, period=900)),
        ("batch_size=0", lambda: of_heads.detect(nano, batch_size=0)),
        ("wanted ids from 0", lambda: of_heads.detect(nano, tokens + 9999)),
        ("a text has no token that comes", lambda: of_heads.induction(nano, tokens=tokens[:, :3])),
        ("a text has no token that comes", lambda: of_heads.induction(nano, tokens=tokens[:, :4])),
        (
            "tokens=2 texts of 3 to 5 tokens; padded at the end; wanted texts of one length",
            lambda: of_heads.induction(nano, tokens=[[0, 5, 6, 5, 6], [0, 7, 8]]),
        ),
        (
            "wanted texts of one length",
            lambda: of_heads.induction(nano, tokens=torch.tensor([[0, 5, 6, 5, 6, 0, 0]])),
        ),
        ("head='L4H0'", lambda: of_heads.split_scores(nano, tokens, "L4H0")),
        ("level='neuron'", lambda: of_heads.split_scores(nano, tokens, "L1H0", level="neuron")),
        ("queries=.5.; wanted", lambda: of_heads.split_scores(nano, tokens, "L1H0", queries=5)),
        (
            "have .* parts, .* GiB; .* name queries and keys",
            lambda: of_heads.split_scores(
                nano, tokens.repeat(99, 20), "L3H0", level="head", queries=None
            ),
        ),
        ("readers='L1H9.q'", lambda: of_heads.read_shares(nano, tokens, "L1H9.q")),
        ("readers=None; wanted a label", lambda: of_heads.read_shares(nano, tokens, None)),
        ("readers='1.mlp'", lambda: of_heads.read_shares(nano, tokens, "1.mlp")),
        ("readers=..; wanted at least one", lambda: of_heads.read_shares(nano, tokens, [])),
        ("first=9", lambda: of_heads.read_shares(nano, tokens, "L1H0.q", first=9)),
    ]:
        with pytest.raises(ValueError, match=error):
            call()
