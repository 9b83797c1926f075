"""Weights as tables, against the whole matrices in float64 and against what models compute."""

from collections import Counter
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from browser import needs_browser, open_page
from random_models import (
    BACKENDS,
    HAS_HOOKED,
    VOCABULARY,
    hooked,
    random_neox,
    tiny_tokenizer,
    unchecked,
)
from torch import Tensor

from mlp_interp import Unembed, heads, load_corpus, load_model, views
from mlp_interp.corpus import token_streams
from mlp_interp.models import Weights
from mlp_interp.models.heads import Heads
from mlp_interp.models.token_streams import streams_of
from mlp_interp.models.vectors import Vectors
from mlp_interp.sites import Site
from mlp_interp.weights import (
    bigrams,
    embedding_fidelity,
    singular,
    skip_trigrams,
    subspaces,
    table,
    virtual_weights,
)
from mlp_interp.weights._singular import _groups
from mlp_interp.weights.matrices import factors_of
from mlp_interp.weights.ranking import best_of_all, best_of_rows

LABELS = ("direct", "L1H2.OV", "L0H1.QK", "L1.in", "L2.out", "L1N5.in", "L1N5.out")


def labels_of(model: Any) -> list[str]:
    gated = Weights.of(model).gated
    return [x.replace(".in", ".linear") if gated else x for x in LABELS]


def whole(model: Any, label: str, source: str = "extended") -> Tensor:
    """A matrix as its definition has it, in float64."""
    weights = Weights.of(model)
    unembed, streams = Unembed.of(model), streams_of(model, source)
    W = unembed.weight.double()
    W = W - W.mean(1, keepdim=True)
    bias = unembed.bias.double() - unembed.bias.double().mean()
    if label == "direct":
        return unembed.normalize(streams.stream(1).double()) @ W + bias
    layer = int(label[1])
    x = weights.norm.standardize(streams.stream(layer).double())
    if "H" in label:
        head, heads = int(label[3]), Heads.of(weights, layer, scores="QK" in label)
        if label.endswith("OV"):
            return x @ heads.V[head].double() @ heads.O[head].double() @ W
        between = heads.relative(list(range(1, 32))).double().mean(0)
        q = x @ heads.Q[head].double() + heads.b_q[head].double()
        return heads.scale * q @ between @ (x @ heads.K[head].double() + heads.b_k[head]).T
    vectors = Vectors.of(weights, layer)
    read = vectors.linear or vectors.receptor
    if label.endswith("out"):
        found = vectors.value_folded.double() @ W
        return found[5:6] if "N" in label else found
    found = x @ read.folded.double().T + read.bias_folded.double()
    return found[:, 5:6].T if "N" in label else found


def test_tables_are_those_of_the_whole_matrix(some_model: Any) -> None:
    for label in labels_of(some_model):
        matrix = whole(some_model, label)
        found = table(some_model, label, k=4, best=30)
        top = matrix.topk(4, dim=1)
        scale = float(matrix.abs().max())
        np.testing.assert_allclose(found["value"], top.values, atol=2e-5 * scale)
        at = torch.from_numpy(found["column"].values)
        np.testing.assert_allclose(matrix.gather(1, at), top.values, atol=2e-5 * scale)
        best = matrix.flatten().topk(30).values
        np.testing.assert_allclose(found["best_value"], best, atol=2e-5 * scale)
        here = matrix[found["best_row"].values % len(matrix), found["best_column"].values]
        np.testing.assert_allclose(here, best, atol=2e-5 * scale)
        np.testing.assert_allclose(found["mean"], matrix.mean(1), atol=2e-5 * scale)
        np.testing.assert_allclose(found["sd"], matrix.std(1, correction=0), atol=2e-5 * scale)
        if "diagonal" in found:
            np.testing.assert_allclose(found["diagonal"], matrix.diag(), atol=2e-5 * scale)
            z = (matrix.diag() - matrix.mean(1)) / matrix.std(1, correction=0)
            np.testing.assert_allclose(found["diagonal_z"], z, atol=1e-3)
        low = table(some_model, label, k=2, best=3, side="low")
        np.testing.assert_allclose(
            low["best_value"], matrix.flatten().topk(3, largest=False).values, atol=2e-5 * scale
        )


def test_processing_and_class_change_nothing(kind: Any) -> None:
    models = [kind("parallel", BACKENDS[0], "folded"), kind("parallel", BACKENDS[-1], "raw")]
    for label in LABELS:
        folded, raw = (table(model, label, k=3, best=9) for model in models)
        for name in ("value", "mean", "sd", "best_value"):
            np.testing.assert_allclose(raw[name], folded[name], atol=1e-3)
        assert folded.attrs["exact"] == raw.attrs["exact"]
    for analysis, given in ((singular, ("L1H2.OV",)), (subspaces, ("L0H1", "L1H0.k"))):
        folded, raw = (analysis(model, *given) for model in models)
        name = "singular_value" if analysis is singular else "cosine"
        np.testing.assert_allclose(raw[name], folded[name], atol=1e-3)


def test_scores_of_the_first_layer_are_those_of_the_table(kind: Any, tokens: Tensor) -> None:
    model = kind()
    name = "blocks.0.attn.hook_attn_scores"
    with torch.no_grad():
        scores = model.run_with_cache(tokens, names_filter=[name])[1][name]
    for distance in (0, 3):
        factors = factors_of(Weights.of(model), "L0H2.QK", "embed", distance)
        query, key = tokens[:, distance:], tokens[:, : tokens.shape[1] - distance]
        expected = (factors.left[query] * factors.right[key]).sum(-1)
        found = scores[:, 2].diagonal(-distance, 1, 2)
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert factors.attrs["exact"] == 1


def test_neurons_of_the_first_layer_read_what_the_table_says(kind: Any, tokens: Tensor) -> None:
    model, site = kind(), Site("pre", 0).hook_name
    with torch.no_grad():
        pre = model.run_with_cache(tokens, names_filter=[site])[1][site]
    factors = factors_of(Weights.of(model), "L0.in", "embed", None)
    np.testing.assert_allclose(pre, factors.left[tokens] @ factors.right.T, atol=1e-4)


@pytest.mark.parametrize(("rows", "columns", "k"), [(5, 7, 7), (400, 2100, 3), (3, 1024, 40)])
def test_ranking_is_that_of_the_product(rows: int, columns: int, k: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    left = torch.randn(rows, 6, generator=generator)
    right = torch.randn(columns, 6, generator=generator) - 9 * left.mean()
    product = left @ right.T
    found = best_of_rows(left, right, k)
    np.testing.assert_allclose(found[0], product.topk(k, dim=1).values, atol=1e-5)
    np.testing.assert_allclose(product.gather(1, found[1]), found[0], atol=1e-5)
    for best in (1, k + 2, min(500, product.numel())):
        values, row, column = best_of_all(left, right, found, best)
        np.testing.assert_allclose(values, product.flatten().topk(best).values, atol=1e-5)
        np.testing.assert_allclose(product[row, column], values, atol=1e-5)
        assert len({*zip(row.tolist(), column.tolist(), strict=True)}) == best


def test_one_row_may_hold_all_that_is_best() -> None:
    left = torch.tensor([[1.0, 0.0], [0.0, 0.1]])
    right = torch.stack([torch.arange(50.0), torch.ones(50)], dim=1)
    values, rows, _ = best_of_all(left, right, best_of_rows(left, right, 2), 20)
    assert values.tolist() == [*range(49, 29, -1)]
    assert not rows.any()


def planted(backend: str, writes: Tensor, query: int = 5, key: int = 7) -> Any:
    """A model whose only head writes one token for each of some, and looks from one for another."""
    source = random_neox(layers=1, d_model=64, heads=1)
    with torch.no_grad():
        block, base = source.gpt_neox.layers[0], source.gpt_neox
        block.input_layernorm.weight.fill_(1)
        for bias in (block.input_layernorm.bias, *(x.bias for x in block.attention.children())):
            bias.zero_()
        x = torch.nn.functional.layer_norm(base.embed_in.weight, (64,))
        logits = base.final_layer_norm.weight * source.get_output_embeddings().weight
        queries, keys, values = block.attention.query_key_value.weight.zero_().chunk(3)
        queries[40], keys[40] = x[query] / 8, x[key] / 8  # entries from 32 on are not rotated
        values[:] = (logits[writes] - logits.mean(0)).T @ x[: len(writes)] / 64
        block.attention.dense.weight.copy_(torch.eye(64))
    return load_model(source, tokenizer=tiny_tokenizer(), backend=backend)


def test_what_a_head_writes_for_other_tokens_is_no_copying(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(60, generator=generator)
    shuffled = torch.empty_like(order)
    shuffled[order] = order.roll(1)  # a circle, which leaves none at its place
    for writes, copies in ((shuffled, False), (torch.arange(60), True)):
        model = planted(backend, writes)
        found = table(model, "L0H0.OV", source="embed", k=1, best=1)
        assert float((found["column"][:60, 0].values == writes.numpy()).mean()) > 0.9
        role = heads.roles(model, source="embed", scan=True).sel(layer=0, head=0)
        assert (float(found["diagonal_z"][:60].mean()) > 3) == copies
        assert (float(role.copying) > 0.8) == copies
        assert (abs(float(role.copying)) < 3 * float(role.copying_null)) != copies
        assert (float(role.copying_top1) > 0.15) == copies


def test_a_planted_trigram_is_found(backend: str) -> None:
    model = planted(backend, torch.arange(60).roll(1))
    found = skip_trigrams(model, "L0H0", source="embed", k=3, per_token=2, distance=4)
    first = found.isel(source=0, place=0)
    assert [int(first[x]) for x in ("source_id", "destination", "out")] == [7, 5, 6]
    assert float(first["attention"]) > 0.8
    assert float(found["attention"].isel(source=slice(1, 3)).max()) < 0.6
    assert float(first["effect"]) > float(first["null"]) + 3 * float(first["null_sd"])


def test_skip_trigrams_are_those_of_whole_tables(some_model: Any) -> None:
    found = skip_trigrams(some_model, "L1H2", k=4, per_token=3, keys=9)
    # Ids beyond the tokenizer's stand in no text.
    size = len(some_model.tokenizer)
    assert size < VOCABULARY
    scores, ov = (whole(some_model, f"L1H2.{x}")[:size, :size] for x in ("QK", "OV"))
    odds = scores.exp() / scores.exp().mean(1, keepdim=True) / 8
    attention = (odds / (1 + odds)).T
    effect, source = (attention.amax(1) * ov.amax(1)).topk(4)
    np.testing.assert_allclose(found["effect"], effect, rtol=1e-4)
    np.testing.assert_array_equal(found["source_id"], source)
    for name, matrix in (("attention", attention), ("ov", ov), ("score", scores.T)):
        ids = found["out" if name == "ov" else "destination"].values
        here = matrix[source[:, None], torch.from_numpy(ids)]
        np.testing.assert_allclose(found[name], here, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["attention"], attention[source].topk(3).values, rtol=1e-4)
    np.testing.assert_allclose(found["ov"], ov[source].topk(3).values, rtol=1e-4)
    every = skip_trigrams(some_model, "L1H2", k=size, per_token=1, keys=9)["null"]
    # Whose is written for whom is as good as independent.
    together = float(attention.amax(1).mean() * ov.amax(1).mean())
    assert float(every.mean()) == pytest.approx(together, rel=0.02)
    assert float(every[0]) < float(attention.max() * ov.max())


def test_singular_directions_are_those_of_the_centred_matrix(some_model: Any) -> None:
    matrix = whole(some_model, "L1H2.OV")
    matrix = matrix - matrix.mean(0) - matrix.mean(1, keepdim=True) + matrix.mean()
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = singular(some_model, "L1H2.OV", k=3, tokens=2)
    np.testing.assert_allclose(found["singular_value"], s[:3], rtol=1e-4)
    np.testing.assert_allclose(found["share"], (s**2 / (s**2).sum())[:3], rtol=1e-4)
    assert found.attrs["rank"] == pytest.approx(float((s**2).sum() ** 2 / (s**4).sum()), rel=1e-4)
    for i in range(3):
        both = torch.cat([u[:, i], vh[i]])
        turn = both[both.abs().argmax()].sign()
        for end, vector in (("reads", u[:, i] * turn), ("writes", vh[i] * turn)):
            for sign in (1, -1):
                mine = found.isel(direction=i).sel(end=end, sign=sign)
                at = (sign * vector).topk(2)
                np.testing.assert_allclose(mine["entry"], sign * at.values, atol=1e-4)
                np.testing.assert_array_equal(mine["id"], at.indices)


def test_directions_of_equal_values_are_one_group() -> None:
    assert _groups(torch.tensor([3.0, 2.0, 2.0 - 1e-4, 1.0])).tolist() == [0, 1, 1, 2]


def test_equal_singular_values_have_no_tokens(monkeypatch: Any, nano: Any) -> None:
    monkeypatch.setattr("mlp_interp.weights._singular._SAME", 1.0)
    found = singular(nano, "L1H0.OV", k=2)
    assert bool((found["id"] == -1).all())
    assert bool(found["entry"].isnull().all())


def test_virtual_weights_are_products_of_vectors(some_model: Any) -> None:
    weights = Weights.of(some_model)
    found = virtual_weights(some_model, "L0", "L2", k=2, best=5)
    write, read = Vectors.of(weights, 0).value_folded, Vectors.of(weights, 2).receptor.folded
    product = write @ read.T
    np.testing.assert_allclose(found["value"], product.topk(2, dim=1).values, atol=1e-4)
    dimensions = weights.d_model - (weights.norm.kind == "layer")
    random = torch.randn(4000, weights.d_model, generator=torch.Generator().manual_seed(0))
    random = weights.norm.keep(random)
    random = random / random.norm(dim=1, keepdim=True) * read.square().sum(1).mean().sqrt()
    assert float(found["null_sd"][0]) == pytest.approx(float((random @ write[0]).std()), rel=0.1)
    even = write[0].norm() * read.square().sum(1).mean().sqrt() / dimensions**0.5
    assert float(found["null_sd"][0]) == pytest.approx(float(even), rel=1e-4)
    one = virtual_weights(some_model, "L0N3", "L1N4", best=1)
    assert one["value"].shape == (1, 1)
    assert str(one["column_text"].values[0, 0]) == "L1N4"
    # Pairs, whoever holds them, and what a neuron reads.
    for writer, reader in ((np.array([0, 3]), torch.tensor([1, 4])), ("L0N3", "L1N4.pre")):
        same = unchecked(virtual_weights)(some_model, writer, reader, best=1)
        np.testing.assert_array_equal(same["value"], one["value"])
        assert same.attrs["writer"] in ("L0N3", "[0, 3]")
    tokens = virtual_weights(some_model, "embed", "L0N3", best=1)
    assert tokens.sizes["row"] == VOCABULARY


def test_angles_are_those_of_scipy(kind: Any) -> None:
    model = kind()
    found = subspaces(model, ["L0H1", "0.mlp", "embed"], ["L1H0.q", "2.mlp", "unembed"], energy=0.8)
    heads = Heads.of(Weights.of(model), 0), Heads.of(Weights.of(model), 1)
    bases = []
    for matrix, rank in (
        (heads[0].O[1], int(found["writer_rank"][0])),
        (heads[1].Q[0].T, int(found["reader_rank"][0])),
    ):
        _, s, vh = torch.linalg.svd(matrix.double())
        share = (s**2).cumsum(0) / (s**2).sum()
        assert int((share < 0.8).sum()) + 1 == rank
        bases.append(vh[:rank].T)
    angles = np.cos(np.sort(scipy.linalg.subspace_angles(*(x.numpy() for x in bases))))
    cosines = found["cosine"][0, 0].dropna("angle")
    np.testing.assert_allclose(cosines, angles, atol=1e-5)
    assert float(found["overlap"][0, 0]) == pytest.approx(float((angles**2).mean()), abs=1e-5)
    assert bool((found["overlap"] <= 1).all())
    turns = torch.randn(400, 31, 31, generator=torch.Generator().manual_seed(0)).double()
    turns = torch.linalg.qr(turns)[0]
    a, b = int(found["writer_rank"][1]), int(found["reader_rank"][0])
    assert a != b
    random = turns[:, :a, :b].square().sum((1, 2)).mean() / min(a, b)
    assert float(found["overlap_chance"][1, 0]) == pytest.approx(float(random), rel=0.015)


@pytest.mark.parametrize("which", ["writer", "reader"])
def test_what_is_zero_has_no_subspace(backend: str, which: str) -> None:
    source = random_neox()
    with torch.no_grad():
        if which == "writer":
            source.gpt_neox.layers[0].attention.dense.weight[:, 8:16] = 0  # of head 1
        else:
            source.gpt_neox.layers[2].mlp.dense_h_to_4h.weight.zero_()
    model = load_model(source, tokenizer=tiny_tokenizer(), backend=backend)
    found = subspaces(model, "L0H1", "2.mlp")
    assert found[f"{which}_rank"].values.tolist() == [0]
    assert found["overlap"].isnull().all()
    assert found["overlap_chance"].isnull().all()


def test_bigrams_are_those_of_a_loop(some_model: Any) -> None:
    """Of texts of few tokens, which are padded by one of them; some follow as the path has it."""
    logits = Unembed.of(some_model).logits(streams_of(some_model, "embed").stream(0))
    top, rng = logits.argmax(-1).tolist(), np.random.default_rng(0)
    texts = []
    for length in (16, 9, 13, 14):
        standing = rng.integers(1, 4, length // 2 + 1).tolist()
        follow = [top[a] if rng.random() < 0.7 else int(rng.integers(1, 4)) for a in standing]
        texts.append([0, *chain(*zip(standing, follow, strict=True))][:length])
    texts += [[0, 4, top[4], 7, 4], [0, 7, 4]]  # 4 stands before padding, and once before a word
    padded = torch.tensor([text + [2] * (16 - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (16 - len(text)) for text in texts])
    found = bigrams(some_model, padded, attention_mask=mask)
    pairs = [[*pairwise(text[1:])] for text in texts]
    every = Counter(chain(*pairs))
    first, after = (Counter(pair[end] for pair in every.elements()) for end in (0, 1))
    losses = {
        "bigram_loss": lambda a, b: -np.log(every[a, b] / first[a]),
        "unigram_loss": lambda a, b: -np.log(after[b] / every.total()),
    }
    likely = {
        a: min(every, key=lambda pair, a=a: (pair[0] != a, -every[pair], pair)) for a in first
    }
    for path, source, layer in (("embed", "embed", 0), ("embed+0.mlp", "extended", 1)):
        logits = Unembed.of(some_model).logits(streams_of(some_model, source).stream(layer))
        logp, top = logits.double().log_softmax(-1), logits.argmax(-1).tolist()
        loss = np.array([np.mean([-float(logp[pair]) for pair in text]) for text in pairs])
        mine = found.sel(path=path)
        assert float(mine["loss"]) == pytest.approx(loss.mean(), abs=1e-4)
        assert float(mine["loss_se"]) == pytest.approx(scipy.stats.sem(loss), abs=1e-4)
        same = [top[a] == likely[a][1] for a, _ in every.elements()]
        assert float(mine["agreement"]) == pytest.approx(np.mean(same), abs=1e-6)
        assert path != "embed" or np.mean(same) > 0.2
    for name, own in losses.items():
        each = np.array([np.mean([own(*pair) for pair in text]) for text in pairs])
        assert float(found[name]) == pytest.approx(each.mean(), abs=1e-6)
        assert float(found[f"{name}_se"]) == pytest.approx(scipy.stats.sem(each), abs=1e-6)


def test_after_the_only_block_comes_the_readout(backend: str, tokens: Tensor) -> None:
    model = load_model(random_neox(layers=1), tokenizer=tiny_tokenizer(), backend=backend)
    weights, unembed = Weights.of(model), Unembed.of(model)
    names = ["blocks.0.hook_resid_post", "blocks.0.attn.hook_z"]
    with torch.no_grad():
        cache = model.run_with_cache(tokens, names_filter=names)[1]
    varying = cache[names[1]] - Heads.of(weights, 0).b_v
    stream = cache[names[0]] - torch.einsum("bphd,hdm->bpm", varying, weights.block(0).W_O)
    logp = unembed.logits(stream).log_softmax(-1)[:, 1:-1]
    loss = -logp.gather(2, tokens[:, 2:, None]).mean((1, 2))
    found = bigrams(model, tokens)["loss"]
    assert float(found.sel(path="embed+0.mlp")) == pytest.approx(float(loss.mean()), abs=1e-4)
    direct = [factors_of(weights, "direct", source, None) for source in ("extended", "embed")]
    row = direct[0].left[tokens[0, 3]] @ direct[0].right.T
    np.testing.assert_allclose(row - row.mean(), _centred(unembed, stream[0, 3]), atol=1e-4)
    assert "approximation" not in streams_of(model, "extended").attrs([1])
    assert streams_of(model, "embed").exact == {0: True, 1: False}


def _centred(unembed: Unembed, stream: Tensor) -> Tensor:
    logits = unembed.logits(stream)
    return logits - logits.mean()


def _padded(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The same with three tokens more that are padding, and the mask that says so."""
    padded = torch.cat([tokens, torch.zeros_like(tokens[:, :3])], dim=1)
    mask = torch.ones_like(padded)
    mask[:, tokens.shape[1] :] = 0
    return padded, mask


@pytest.mark.skipif(not HAS_HOOKED, reason="only this class takes any sizes")
def test_what_the_model_cannot_predict_is_no_pair() -> None:
    model = hooked(d_vocab_out=50)
    assert bigrams(model, [[0, 60, 5, 49]], paths="embed").loss.notnull().all()
    with pytest.raises(
        ValueError, match="no token after that position which the model can predict"
    ):
        bigrams(model, [[0, 5, 60, 49]])


def test_padding_is_in_no_pair(kind: Any, tokens: Tensor) -> None:
    expected = bigrams(kind(), tokens)
    padded, mask = _padded(tokens)
    found = bigrams(kind(), padded, attention_mask=mask)
    for name in expected.data_vars:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6)


def test_all_coordinates_make_the_vector(kind: Any, tokens: Tensor) -> None:
    found = embedding_fidelity(kind(), tokens, keep=[1, VOCABULARY], sample=16)
    exact = found.sel(way="pseudoinverse", k=VOCABULARY)
    np.testing.assert_allclose(exact[["value", "stream", "chance"]].to_dataarray(), 1, atol=1e-6)
    assert bool((found["value"].sel(k=1) < 0.95).all())
    assert found.attrs["exact"] == 0
    assert "16 vectors, drawn" in found.attrs["approximation"]
    found = embedding_fidelity(kind(), sample=64)
    assert found.attrs["exact"] == 1
    assert found.k.values.tolist() == [10, 100]  # of 1000 there are not so many tokens


def test_padding_and_later_texts_are_in_no_stream(kind: Any, tokens: Tensor) -> None:
    tokens = torch.cat([tokens, tokens.flip(0)])
    padded, mask = _padded(torch.cat([tokens, tokens + 1]).clamp_max(VOCABULARY - 1))
    expected = embedding_fidelity(kind(), tokens, keep=[9], layers=1)
    found = embedding_fidelity(kind(), padded, attention_mask=mask, keep=[9], layers=1)
    for name in ("stream", "stream_se"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6)
    assert found.attrs["data"].startswith("first 8 sequences of 16 texts of 9 to 9 tokens")


def test_nano_bigrams_and_copying(nano: Any) -> None:
    corpus = load_corpus("nano", nano, sequences=64, length=64)
    found = bigrams(nano, corpus)
    direct, extended = found["loss"].values
    assert direct > extended + 2
    assert extended < float(found["unigram_loss"]) - 1
    copied = [table(nano, f"L1H{h}.OV", k=1, best=1) for h in (0, 5)]
    for one in copied:
        assert one.attrs["exact"] == 1
        assert float((one["column"][:, 0] == one["row_id"]).mean()) > 0.7
        assert float(one["diagonal_z"].mean()) > 3.5
    streams = token_streams(nano, corpus, layers=2, least=5)
    means = table(nano, "L2H4.OV", source=streams, k=1, best=1)
    assert means.sizes["row"] == len(streams.tokens)
    assert means.attrs["exact"] == 0
    assert "mean streams" in means.attrs["approximation"]
    words = table(nano, "L2H4.OV", tokens=[" Paris", " London"], k=2, best=3)
    assert [str(x) for x in words["row_text"].values] == [" Paris", " London"]


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("call", "given", "options", "text"),
    [
        (
            table,
            "L1H2.VO",
            {},
            r"matrix='L1H2.VO' is none \(did you mean 'L1H2.OV'\?\); wanted a label such as direct",
        ),
        (table, 7, {}, "matrix=7 is none; wanted a label"),
        (table, "L9.out", {}, "wanted a layer from 0 to 2"),
        (table, "L1H9.OV", {}, "wanted a head from 0 to 3"),
        (table, "L1N99.out", {}, "wanted a neuron from 0 to 63"),
        (table, "L1N5.OV", {}, "wanted a head, as L1H3.OV"),
        (table, "L1.QK", {}, "wanted a head"),
        (table, "L1.gate", {}, "not gated; wanted L1.in"),
        (table, "L1H2.OV", {"distance": 1}, "distance=1 with matrix='L1H2.OV'; wanted it with QK"),
        (table, "L1H2.QK", {"distance": -1}, "distance=-1; wanted at least 0"),
        (table, "L1H2.QK", {"distance": 64}, "distance=64; wanted at most 63"),
        (table, "L1.out", {"k": 301}, "k=301; wanted an integer from 1 to 300"),
        (table, "L1.out", {"best": 0}, "best=0; wanted an integer"),
        (table, "L1.out", {"side": "top"}, "side='top'; wanted 'high' or 'low'"),
        (table, "direct", {"source": "mlp"}, "source='mlp'"),
        (table, "direct", {"tokens": [999]}, "tokens holds 999; wanted tokens that are rows"),
        (table, "direct", {"tokens": []}, "tokens is empty"),
        (table, "direct", {"tokens": 3.5}, "tokens holds 3.5; wanted tokens that are rows"),
        (singular, "L1H2.OV", {"k": 9}, "k=9; wanted an integer from 1 to 8"),
        (skip_trigrams, "L7H0", {}, "head='L7H0'"),
        (skip_trigrams, "1.mlp", {}, "head='1.mlp'"),
        (skip_trigrams, "L1H2", {"k": 279}, "k=279; wanted an integer from 1 to 278"),
        (skip_trigrams, "L1H2", {"per_token": 0}, "per_token=0"),
        (skip_trigrams, "L1H2", {"keys": 1}, "keys=1; wanted at least 2"),
        (skip_trigrams, "L1H2", {"distance": 64}, "distance=64; wanted at most 63"),
        (skip_trigrams, "L1H2", {"seed": -1}, "seed=-1"),
        (singular, "L1H2.OV", {"tokens": 0}, "tokens=0"),
        (embedding_fidelity, None, {"keep": [0]}, "keep=0"),
        (embedding_fidelity, None, {"keep": ()}, "keep=..; wanted at least one"),
        (embedding_fidelity, None, {"keep": [5, 5]}, "keep=.5, 5.; .* each once"),
        (embedding_fidelity, None, {"layers": 5}, "layers="),
        (embedding_fidelity, None, {"keep": [1], "seed": -1}, "seed=-1"),
        (bigrams, torch.ones(2, 9, dtype=torch.long), {"paths": ["mlp"]}, "paths="),
        (bigrams, torch.ones(2, 9, dtype=torch.long), {"paths": 3}, "paths="),
        (bigrams, torch.ones(2, 9, dtype=torch.long), {"first": -1}, "first=-1; wanted a position"),
        (bigrams, torch.ones(2, 2, dtype=torch.long), {}, "first=1: a text of the corpus has no"),
    ],
)
def test_what_is_refused(kind: Any, call: Any, given: Any, options: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        unchecked(call)(kind(), given, **options)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("call", "writer", "reader", "options", "text"),
    [
        (virtual_weights, "L2", "L2", {}, "reader='L2' does not read what writer='L2' writes"),
        (virtual_weights, "L0H1", "L2", {}, "writer='L0H1'; wanted 'embed', a layer's neurons"),
        (virtual_weights, "L0", "L9", {}, "reader='9.post'; wanted a layer"),
        (virtual_weights, "L0N64", "L1", {}, "writer='L0N64'"),
        (virtual_weights, "0.pre", "L1", {}, "writer='0.pre'; wanted 'embed', a layer's neurons"),
        (virtual_weights, "L0N5.pre", "L1", {}, "writer='L0N5.pre'; wanted 'embed'"),
        (virtual_weights, "L0", "L1", {"best": "x"}, "best='x'; wanted an integer from 1"),
        (virtual_weights, "L0", "L1", {"k": None}, "k=None; wanted an integer from 1"),
        (subspaces, "L0H1", "L1H0", {}, "readers='L1H0'; wanted 'L1H3.q'"),
        (subspaces, "L0H1.q", "L1H0.q", {}, "writers='L0H1.q'"),
        (subspaces, "L7H1", "L1H0.q", {}, "writers='L7H1'"),
        (subspaces, [], "unembed", {}, "writers="),
        (subspaces, "embed", "unembed", {"energy": 1}, "energy=1"),
        (subspaces, 5, "unembed", {}, "writers=5; wanted"),
    ],
)
def test_pairs_that_are_refused(
    kind: Any, call: Any, writer: Any, reader: Any, options: Any, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        unchecked(call)(kind(), writer, reader, **options)


def test_gated_mlps_read_with_two_matrices(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"two matrices; wanted L1\.gate or L1"):
        table(kind("llama"), "L1.in")
    assert table(kind("llama"), "L1.gate", k=1, best=1).attrs["exact"] == 0


HOSTILE = "</script><img src=x onerror=alert(1)>"


@needs_browser
def test_the_page_of_a_table_shows_its_rows_and_tokens_stay_text(kind: Any, tmp_path: Any) -> None:
    found = table(kind(), "L1H2.OV", k=3, best=2)
    found["column_text"][0, 0] = HOSTILE
    view = views.table(found.isel(row=slice(0, 8)), shown=5)
    assert HOSTILE not in view.html()
    page, said = open_page(view.html(), tmp_path)
    assert not said
    assert page.count("<tr>") == 1 + 5
    assert "8 rows, the first 5 shown" in page
    assert "<img" not in page.replace("&lt;img", "")
    saved = view.save(tmp_path / "table.html")
    assert saved.read_text() == view.html()


def test_views_of_tables_refuse(kind: Any) -> None:
    found = table(kind(), "L1.out", k=1, best=1)
    assert repr(views.table(found)) == "Table(L1.out, 64 rows)"
    with pytest.raises(ValueError, match="lacks value"):
        views.table(found.drop_vars("value"))
    with pytest.raises(ValueError, match="shown=0"):
        views.table(found, shown=0)
