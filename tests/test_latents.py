"""Dictionaries in the model: edits of latents, training, and what is lost with them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mlp_interp as mi
from mlp_interp import latents
from mlp_interp.dictionaries import Dictionary, JumpRelu, TopK
from mlp_interp.latents._separate import random_like
from mlp_interp.latents.learner import Learner, beginning
from mlp_interp.latents.rows import Rows, pairs_of
from mlp_interp.models import Weights, forward_of
from mlp_interp.runs import Runner

LAYER = 1


def some(model: Any, reads: str = "mlp_out", *, writes: str = "mlp_out", n: int = 24) -> Dictionary:
    """A random dictionary of a model."""
    d = Weights.of(model).d_model
    g = torch.Generator().manual_seed(3)
    W_enc, W_dec = torch.randn(d, n, generator=g), torch.randn(n, d, generator=g)
    biases = torch.randn(n, generator=g) * 0.1, torch.randn(d, generator=g)
    return Dictionary(W_enc, biases[0], W_dec, biases[1], TopK(5), LAYER, reads, writes)


@pytest.fixture(scope="module")
def nano() -> Any:
    return mi.load_model("nano")


@pytest.fixture(scope="module")
def corpus(nano: Any) -> Any:
    return mi.load_corpus("nano", nano, sequences=24, length=64)


@pytest.fixture(scope="module")
def trained(nano: Any, corpus: Any) -> dict[str, Dictionary]:
    """An SAE and a transcoder, trained for a second."""
    options: Any = {"n_latents": 96, "k": 8, "steps": 40, "batch_size": 256}
    return {
        "sae": latents.train(nano, corpus, "2.mlp", **options),
        "transcoder": latents.train(nano, corpus, "1.mlp", reads="mlp_in", **options),
    }


def read_by_hand(model: Any, one: Dictionary, tokens: torch.Tensor) -> torch.Tensor:
    """What a dictionary reads, seen by a hook of torch's on the MLP itself."""
    if one.is_sae:
        _, cache = model.run_with_cache(tokens)
        return cache[one.site.hook_name]
    seen = []
    mlp = model.blocks[LAYER].mlp
    handle = mlp.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    model(tokens)
    handle.remove()
    return seen[0].detach()


@pytest.mark.parametrize("reads", ["mlp_out", "mlp_in"])
def test_own_values_change_nothing(some_model: Any, tokens: torch.Tensor, reads: str) -> None:
    one = some(some_model, reads)
    run = mi.run(some_model, tokens)
    own = latents.activations(run, one).dense()
    for positions in (None, [1, 3]):
        at = slice(None) if positions is None else positions
        changes: Any = {n: ("set", own[:, at, n]) for n in range(one.n_latents)}
        same = run.edited(mi.Edit.latents(one, changes, positions=positions))
        assert torch.equal(same.final, run.final)
        assert (same.fired[0].times, same.fired[0].changed) == (1, 0)


@pytest.mark.parametrize("reads", ["mlp_out", "mlp_in"])
def test_a_splice_is_that_of_plain_hooks(some_model: Any, tokens: torch.Tensor, reads: str) -> None:
    one = some(some_model, reads)
    with torch.no_grad():
        rebuilt, _ = one(read_by_hand(some_model, one, tokens))
        hook = (one.site.hook_name, lambda _x, hook: rebuilt)
        final = (
            f"blocks.{some_model.cfg.n_layers - 1}.hook_resid_post",
            lambda x, hook: kept.append(x),
        )
        kept: list[torch.Tensor] = []
        some_model.run_with_hooks(tokens, fwd_hooks=[hook, final])
    run = mi.run(some_model, tokens, edits=mi.Edit.latents(one, {}, error="drop"))
    torch.testing.assert_close(run.final, kept[0], atol=2e-4, rtol=1e-4)
    error = torch.ones(1)
    other = mi.run(some_model, tokens, edits=mi.Edit.latents(one, {}, error=error))
    torch.testing.assert_close(other["1.mlp"], rebuilt + 1, atol=2e-4, rtol=1e-4)


def test_latents_set_scaled_and_added_to(nano: Any) -> None:
    """What is written changes by the change of activations times decoder rows, and no more."""
    one, tokens = some(nano, "mlp_in"), torch.tensor([[0, 5, 6, 9, 7]])
    clean = mi.run(nano, tokens)
    own = latents.activations(clean, one).dense()
    active = int(own[0, 2].argmax())
    edits: Any = {
        "set": (7.0 - own[..., active], {active: ("set", 7.0)}),
        "scale": (own[..., active] * 2, {active: ("scale", 3.0)}),
        "add": (torch.full_like(own[..., active], 2.0), {active: ("add", 2.0)}),
    }
    for change, changes in edits.values():
        found = clean.edited(mi.Edit.latents(one, changes))
        wanted = clean["1.mlp"] + change[..., None] * one.W_dec[active]
        torch.testing.assert_close(found["1.mlp"], wanted, atol=1e-4, rtol=1e-5)
    where = torch.tensor([[False, True, False, True, False]])
    found = clean.edited(mi.Edit.latents(one, {active: ("set", 7.0)}, where=where))
    apart = (found["1.mlp"] != clean["1.mlp"]).any(-1)
    assert torch.equal(apart, where)
    dropped = clean.edited(mi.Edit.latents(one, {active: ("set", 0.0)}, error="drop"))
    rest = own.clone()
    rest[..., active] = 0
    wanted = rest @ one.W_dec + one.b_dec
    torch.testing.assert_close(dropped["1.mlp"], wanted, atol=1e-4, rtol=1e-4)


def test_one_sequence_is_warned_of(nano: Any) -> None:
    tokens = torch.arange(24)[None]
    with pytest.warns(UserWarning, match="corpus has one sequence, of 24 tokens; a dictionary"):
        latents.train(nano, tokens, "1.mlp", n_latents=4, k=1, steps=1, batch_size=8)
    with pytest.warns(UserWarning, match="corpus has one sequence, of 24 tokens; a tuned lens"):
        mi.lens.tuned(nano, tokens, steps=1)


def test_latents_are_changed_by_label_as_by_number(nano: Any) -> None:
    one, tokens = some(nano), torch.tensor([[0, 5, 6, 9]])
    number, label, place = (
        mi.run(nano, tokens, edits=mi.Edit.latents(one, {3: ("scale", 2.0), name: ("set", 40.0)}))
        for name in (5, "L1F5", mi.Site("latents", 1, neuron=5))
    )
    assert not torch.equal(number.final, mi.run(nano, tokens).final)
    assert torch.equal(label.final, number.final)
    assert torch.equal(place.final, number.final)


def test_generation_with_latents_held(nano: Any) -> None:
    """The same tokens with keys and values kept, and without."""
    tokens = torch.tensor([[0, 5, 6, 9]])
    for reads in ("mlp_out", "mlp_in"):
        edit = mi.Edit.latents(some(nano, reads), {3: ("set", 40.0)})
        texts = [
            Runner.of(nano)
            .generate(tokens, edits=edit and [edit], max_new_tokens=4, eos=None, use_cache=cache)
            .tokens
            for cache in (True, False)
        ]
        assert torch.equal(*texts)


@pytest.mark.parametrize(
    ("changes", "options", "text"),
    [
        ({99: ("set", 0.0)}, {}, "latents=99"),
        ({"L1F99": ("set", 0.0)}, {}, "latents=99"),
        ({"L2F3": ("set", 0.0)}, {}, r"latents='L2F3' of .*; wanted 'L1F0', say"),
        ({3: ("set", 0.0), "L1F3": ("set", 1.0)}, {}, "L1F3"),
        ({3: 0.0}, {}, r"changes=\{3: 0.0\}; wanted \('set', 0.0\), say"),
        (3, {}, "changes=3; wanted changes by latent"),
        ({1: ("double", 0.0)}, {}, "how='double'; wanted 'set', 'scale' or 'add'"),
        ({1: ("set", torch.nan)}, {}, "holds nan; wanted finite numbers"),
        ({}, {}, r"latents=\{\} with error='keep' changes nothing"),
        ({1: ("set", 0.0)}, {"error": "half"}, "error='half'; wanted 'keep', 'drop' or 'beside'"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_edits_that_are_refused(nano: Any, changes: Any, options: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        mi.Edit.latents(some(nano), changes, **options)
    with pytest.raises(ValueError, match=r"reads another place; wanted it in a run"):
        mi.Edit.latents(some(nano, "mlp_in"), {1: ("set", 0.0)}).apply(torch.zeros(1, 2, 192))
    raw = Dictionary(**{**vars(some(nano)), "wants": "raw"})
    with pytest.raises(ValueError, match=r"wants raw weights"):
        mi.run(nano, torch.tensor([[0, 1]]), edits=mi.Edit.latents(raw, {1: ("set", 0.0)}))


def test_training_learns_and_is_the_same_again(
    nano: Any, corpus: Any, trained: dict[str, Dictionary], tmp_path: Path, monkeypatch: Any
) -> None:
    """Resumed from the middle, the numbers are the same to the last bit."""
    options: Any = {"n_latents": 96, "k": 8, "steps": 40, "batch_size": 256}
    monkeypatch.setattr("mlp_interp.latents._train._KEEP_EVERY", 15)
    step = Learner.step
    done = []

    def stops(self: Any, state: Any, x: Any, y: Any) -> float:
        if len(done) == 20:
            raise KeyboardInterrupt
        done.append(1)
        return step(self, state, x, y)

    monkeypatch.setattr("mlp_interp.latents.learner.Learner.step", stops)
    with pytest.raises(KeyboardInterrupt):
        latents.train(nano, corpus, "2.mlp", checkpoint=tmp_path, **options)
    monkeypatch.setattr("mlp_interp.latents.learner.Learner.step", step)
    again = latents.train(nano, corpus, "2.mlp", checkpoint=tmp_path, **options)
    sae = trained["sae"]
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(again, name), getattr(sae, name)), name
    assert sae.attrs["fvu_last"] < 0.5
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(96))
    assert (sae.wants, sae.attrs["model"], sae.attrs["k"]) == ("folded", "nano", 8)
    x, y = pairs_of(forward_of(nano), sae, corpus.tokens, corpus.tokens > 0)
    rebuilt, _ = sae(x)
    assert float((rebuilt - y).square().sum() / (y - y.mean(0)).square().sum()) < 0.5


def test_a_batch_topk_step_is_that_of_dense_products() -> None:
    """Value and gradients of the sparse sum, whatever threshold is guessed."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(40, 12, generator=g)
    for running in (0.0, 0.5, 9.0):
        state = beginning(x, x, 30, 0)
        state["step"] += 1
        state["threshold"] += running
        held = {k: state[k].requires_grad_() for k in ("W_enc", "b_enc", "W_dec", "b_dec")}
        pre = x @ held["W_enc"] + held["b_enc"]
        learner = Learner("batch_topk", 4, 1e-3, 10, 5)
        rebuilt, active = learner._rebuilt(state, held, pre)
        least = pre.detach().flatten().sort().values[-160]
        kept = pre.relu() * (pre.detach() >= least)
        wanted = kept @ held["W_dec"] + held["b_dec"]
        torch.testing.assert_close(rebuilt, wanted)
        assert torch.equal(active, (kept > 0).any(0))
        torch.testing.assert_close(state["threshold"], running + 0.02 * (least - running))
        mine, theirs = (
            torch.autograd.grad((y - x).square().sum(), [*held.values()], retain_graph=True)
            for y in (rebuilt, wanted)
        )
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_steps_are_those_of_torch_s_adam() -> None:
    """Slow reference: dense products; rows of length 1, and dead latents pulled to what is left."""
    g = torch.Generator().manual_seed(0)
    data = [torch.randn(256, 6, generator=g) * 3 + 1 for _ in range(5)]
    state, learner = beginning(data[0], data[0], 20, 0), Learner("topk", 3, 0.01, 5, 2)
    state["b_enc"][:8] -= 2.2  # above 0 at times, and never among the largest
    mean, scale = data[0].mean(0), (data[0] - data[0].mean(0)).square().mean().sqrt()
    held = {k: state[k].clone().requires_grad_() for k in ("W_enc", "b_enc", "W_dec", "b_dec")}
    adam, idle = torch.optim.Adam(held.values()), torch.zeros(20)
    for step, x in enumerate(data, 1):
        told = learner.step(state, x, x)
        y = (x - mean) / scale
        pre = y @ held["W_enc"] + held["b_enc"]
        kept = pre.relu() * (pre >= pre.topk(3).values[:, -1:])
        left = y - kept @ held["W_dec"] - held["b_dec"]
        loss = left.square().mean()
        assert told == pytest.approx(float(loss.detach()), rel=1e-4)
        dead = (idle >= 2).nonzero()[:, 0]
        total = loss
        if len(dead):
            some = pre[:, dead]
            few = min(3, len(dead))  # half of the width, or all
            assert bool((some > 0).any())
            pulled = (some.relu() * (some >= some.topk(few).values[:, -1:])) @ held["W_dec"][dead]
            target = left.detach()
            total = loss + (target - pulled).square().mean() / target.square().mean() / 32
        idle += 1
        idle[(kept > 0).any(0)] = 0
        adam.zero_grad()
        total.backward()
        rows = held["W_dec"]
        rows.grad -= (rows.grad * rows.detach()).sum(1, keepdim=True) * rows.detach()
        adam.param_groups[0]["lr"] = 0.01 * min(1.0, (6 - step) / 1.5)
        adam.step()
        with torch.no_grad():
            rows /= rows.norm(dim=1, keepdim=True)
        for name, x_held in held.items():
            torch.testing.assert_close(state[name], x_held.detach(), atol=2e-4, rtol=1e-3)
    assert len(dead)
    assert torch.equal(state["idle"].float(), idle)


def test_pools_hold_every_row_once_a_round(nano: Any, corpus: Any) -> None:
    tokens = corpus.tokens[:5]
    counts = torch.ones_like(tokens, dtype=torch.bool)
    counts[:, 0] = False
    one = some(nano)
    x, _ = pairs_of(forward_of(nano), one, tokens, counts)
    for pool in (64 * 2, 64 * 5):  # three pools of up to two sequences, or one of all
        made = Rows(forward_of(nano), one, tokens, counts, pool, 0)
        rounds = torch.cat([pair[0] for pair in made.batches(21, 0, 2 * len(x) // 21)])
        for part in rounds.split(len(x)):
            found, wanted = (z.sum(-1).sort().values for z in (part, x))
            torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-4)
        later = [*made.batches(21, 17, 30)]
        fresh = Rows(forward_of(nano), one, tokens, counts, pool, 0)
        for a, b in zip(later, [*fresh.batches(21, 0, 30)][17:], strict=True):
            assert torch.equal(a[0], b[0])


def test_batch_topk_and_dead_latents(nano: Any, corpus: Any) -> None:
    """What comes back acts on each token alone, and is about as sparse."""
    options: Any = {"n_latents": 96, "k": 8, "steps": 40, "batch_size": 256}
    one = latents.train(nano, corpus, "2.mlp", kind="batch_topk", dead=20, **options)
    assert isinstance(one.activation, JumpRelu)
    x, _ = pairs_of(forward_of(nano), one, corpus.tokens, corpus.tokens > 0)
    l0 = one.encode(x).active.sum(-1).double().mean()
    assert 5 < float(l0) < 11
    alone = one.encode(x[:3]).dense()
    torch.testing.assert_close(alone, one.encode(x).dense()[:3])


def losses_by_hand(
    model: Any, one: Dictionary, rows: torch.Tensor
) -> tuple[dict[str, Any], dict[str, Any], torch.Tensor, torch.Tensor]:
    """KL and loss of each sequence with plain hooks, in float64; what is read and written."""
    name, counts = one.site.hook_name, rows != 0  # BOS begins every document
    kept = [model.run_with_cache(row[None])[1] for row in rows]
    written = torch.cat([cache[name][0][some] for cache, some in zip(kept, counts, strict=True)])
    kls: dict[str, list[float]] = {"dictionary": [], "zero": [], "mean": []}
    lost: dict[str, list[float]] = {k: [] for k in kls}
    reads = []
    for row, cache, some in zip(rows, kept, counts, strict=True):
        own = cache[name]
        read = own
        if not one.is_sae:
            stream = cache[f"blocks.{one.layer}.hook_resid_pre"]
            read = torch.nn.functional.layer_norm(stream, stream.shape[-1:], eps=1e-5)
        reads.append(read[0][some])
        clean = model(row[None])[0].double().log_softmax(-1)
        puts = {"dictionary": one(read)[0], "zero": own * 0, "mean": written.mean(0).expand_as(own)}
        for k, value in puts.items():
            put = torch.where(some[None, :, None], value, own)
            hooks = [(name, lambda _x, hook, put=put: put)]
            changed = model.run_with_hooks(row[None], fwd_hooks=hooks)[0].double().log_softmax(-1)
            kls[k].append(float((clean.exp() * (clean - changed)).sum(-1)[some].mean()))
            delta = (clean - changed)[:-1].gather(1, row[1:, None])[:, 0]
            lost[k].append(float(delta[some[:-1]].mean()))
    return kls, lost, torch.cat(reads), written


@pytest.mark.parametrize("which", ["sae", "transcoder"])
def test_texts_in_which_nothing_counts_change_nothing(nano: Any, trained: Any, which: str) -> None:
    """They are runs of no row, alone in their batch; one is refused where it is all there is."""
    one, tokens = trained[which], torch.tensor([[0, 5, 6, 7], [0, 9, 9, 9]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
    given: Any = {"attention_mask": mask, "batch_size": 1}
    found = latents.evaluate(nano, one, tokens, **given)
    alone = latents.evaluate(nano, one, tokens[:1], attention_mask=mask[:1])
    replaced = latents.replace(nano, [one], tokens, **given)
    for name in ("kl", "delta_loss"):
        np.testing.assert_allclose(found[name], alone[name], atol=1e-6)
    splices = ["dictionary", "zero", "mean"]
    got = replaced.kl.isel(replaced=0).sel(by=splices)
    np.testing.assert_allclose(got, found.kl.sel(splice=splices), atol=1e-6)
    np.testing.assert_allclose(found.fvu, alone.fvu, rtol=1e-6)
    verbs: Any = ((latents.evaluate, one), (latents.replace, [one]))
    for verb, what in verbs:
        with pytest.raises(ValueError, match="first=1 with 1 texts of up to 4 tokens"):
            verb(nano, what, tokens[1:], attention_mask=mask[1:])


@pytest.mark.parametrize("which", ["sae", "transcoder"])
def test_evaluation_is_that_of_plain_hooks(
    nano: Any, corpus: Any, trained: Any, which: str
) -> None:
    """Slow reference: one sequence at a time; position 0 and every BOS are spared."""
    one, few = trained[which], corpus[:3]
    found = latents.evaluate(nano, one, few, batch_size=2)
    with torch.no_grad():
        kls, lost, x, y = losses_by_hand(nano, one, few.tokens)
        rebuilt, active = one(x)
    fvu = (rebuilt - y).square().sum() / (y - y.mean(0)).square().sum()
    np.testing.assert_allclose(float(found.fvu), float(fvu), rtol=1e-4)
    cosine = torch.nn.functional.cosine_similarity(rebuilt, y, dim=-1).mean()
    np.testing.assert_allclose(float(found.cosine), float(cosine), rtol=1e-4)
    dense = active.dense()
    np.testing.assert_allclose(float(found.l0), (dense > 0).sum(-1).double().mean(), rtol=1e-6)
    np.testing.assert_allclose(found.density, (dense > 0).double().mean(0), atol=1e-9)
    np.testing.assert_allclose(found.dead, (dense == 0).all(0).double().mean())
    np.testing.assert_allclose(found.dense, ((dense > 0).double().mean(0) > 0.1).double().mean())
    strength = dense.double().sum(0) / (dense > 0).sum(0)
    np.testing.assert_allclose(found.mean_active, strength, rtol=1e-4)
    ratio = (rebuilt.norm(dim=-1) / y.norm(dim=-1)).mean()
    np.testing.assert_allclose(found.norm_ratio, ratio, rtol=1e-4)
    pos = (few.tokens != 0).nonzero()[:, 1]
    for place in (5, 20):
        here = y[pos == place]
        left = (rebuilt[pos == place] - here).square().sum()
        wanted = left / (here - here.mean(0)).square().sum()
        np.testing.assert_allclose(found.fvu_by_pos[place], wanted, rtol=1e-3)
        l0 = (dense[pos == place] > 0).sum(-1).double().mean()
        np.testing.assert_allclose(found.l0_by_pos[place], l0)
    for k, values in kls.items():
        np.testing.assert_allclose(found.kl.sel(splice=k), np.mean(values), rtol=1e-3)
        np.testing.assert_allclose(found.delta_loss.sel(splice=k), np.mean(lost[k]), atol=1e-5)
        error = np.std(values, ddof=1) / len(values) ** 0.5
        np.testing.assert_allclose(found.kl_se.sel(splice=k), error, rtol=2e-3)
    for k in ("zero", "mean"):
        removed = np.array(lost[k])
        matters = abs(removed.mean()) >= 2 * removed.std(ddof=1) / len(removed) ** 0.5
        mine = np.array(lost["dictionary"])
        wanted = 1 - mine.mean() / removed.mean() if matters else np.nan
        np.testing.assert_allclose(found.recovered.sel(baseline=k), wanted, rtol=1e-2)
        # The error of a ratio of means, by the delta method.
        apart = (mine - mine.mean() / removed.mean() * removed) / removed.mean()
        error = apart.std(ddof=1) / len(removed) ** 0.5 if matters else np.nan
        np.testing.assert_allclose(found.recovered_se.sel(baseline=k), error, rtol=5e-2)
    assert np.isnan(found.kl_by_pos.isel(pos=0)).all()


def test_a_ratio_of_noise_over_noise_is_not_told(nano: Any, corpus: Any, trained: Any) -> None:
    """Nano's third MLP hardly matters to the loss: no recovered share, but a KL."""
    found = latents.evaluate(nano, trained["sae"], corpus[:8])
    assert np.isnan(found.recovered).all()
    assert float(found.kl.sel(splice="zero")) > 3 * float(found.kl_se.sel(splice="zero"))
    raw = Dictionary(**{**vars(trained["sae"]), "wants": "raw"})
    with pytest.raises(ValueError, match=r"wants raw weights"):
        latents.evaluate(nano, raw, corpus)


@pytest.mark.parametrize(
    ("place", "options", "text"),
    [
        ("2.mlp_in", {}, "place='2.mlp_in'; wanted"),
        ("9.mlp", {}, "place is of layer 9"),
        ("2.mlp", {"reads": "z"}, "reads='z'; wanted"),
        ("2.mlp", {"k": 65}, "k=65; wanted at most 64"),
        ("2.mlp", {"kind": "relu"}, "kind='relu'; wanted"),
        ("2.mlp", {"steps": 0}, "steps=0; wanted at least 1"),
        ("2.mlp", {"lr": 0.0}, "lr=0.0; wanted a finite number above 0"),
        ("2.mlp", {"lr": float("inf")}, "lr=inf; wanted a finite number above 0"),
        ("2.mlp", {"seed": -1}, "seed=-1; wanted"),
        ("2.mlp", {"first": 64}, "first=64 with"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_training_that_is_refused(
    nano: Any, corpus: Any, place: str, options: Any, text: str
) -> None:
    given = {"n_latents": 64, "k": 4, **options}
    with pytest.raises(ValueError, match=text):
        latents.train(nano, corpus, place, **given)


def test_a_single_latent_is_trained_and_a_single_token_is_not(nano: Any, corpus: Any) -> None:
    one = latents.train(nano, corpus, "2.mlp", n_latents=1, k=1, steps=40, batch_size=64)
    x = mi.run(nano, corpus.tokens[:2])["2.mlp"][:, 1:]
    plain = (x - x.mean((0, 1))).square().sum()
    assert 0 < (one(x)[0] - x).square().sum() / plain < 1
    with pytest.raises(ValueError, match="is the same at all 2 tokens"):
        latents.train(nano, torch.tensor([[0, 5], [0, 5]]), "2.mlp", n_latents=2, k=1)


@pytest.mark.parametrize("reads", ["mlp_out", "mlp_in"])
def test_the_error_is_always_a_component(some_model: Any, tokens: torch.Tensor, reads: str) -> None:
    """Latents, bias, what passes by and error sum to the stream; each is what it says."""
    d = Weights.of(some_model).d_model
    skip = torch.randn(d, d, generator=torch.Generator().manual_seed(5)) * 0.1
    one = replace(some(some_model, reads), W_skip=skip)
    run = mi.run(some_model, tokens)
    residual = mi.decompose(some_model, run, dictionaries=[one], positions=[2, -1])
    whole = mi.decompose(some_model, run, positions=[2, -1])
    assert residual.error() < 1e-4 * max(1.0, float(residual.total.abs().max()))
    assert {"1.b_dec", "1.skip", "1.error"} < set(residual.labels)
    assert "1.mlp" not in residual.labels
    rest = [label for label in whole.labels if label != "1.mlp"]
    assert [label for label in residual.labels if label in rest] == rest
    found = latents.activations(run, one)
    dense = found.dense()[:, [2, -1]]
    vectors = dict(zip(residual.labels, residual.vectors().unbind(2), strict=True))
    for n in range(one.n_latents):
        if bool((dense[..., n] > 0).any()):
            wanted = dense[..., n, None] * one.W_dec[n]
            torch.testing.assert_close(vectors[f"L1F{n}"], wanted, atol=1e-4, rtol=1e-4)
        else:
            assert f"L1F{n}" not in vectors
    error = (run["1.mlp"] - one.decode(found))[:, [2, -1]]
    torch.testing.assert_close(vectors["1.error"], error, atol=1e-4, rtol=1e-4)
    # Through a dictionary that normalises what it reads, too.
    if one.is_sae:
        norm = replace(one, normalize="layer_norm")
        split = mi.decompose(some_model, run, dictionaries=[norm])
        assert split.error() < 1e-3
        skipped = split.vectors()[:, :, split.labels.index("1.skip")]
        spread = run["1.mlp"].std(-1, keepdim=True) + 1e-5
        read = (run["1.mlp"] - run["1.mlp"].mean(-1, keepdim=True)) / spread
        torch.testing.assert_close(skipped, read @ skip * spread, atol=1e-4, rtol=1e-3)


def test_a_cache_keeps_what_a_transcoder_reads(some_model: Any, tokens: torch.Tensor) -> None:
    """Components do not tell it: what the text of the error asks for is enough."""
    given: Any = {"dictionaries": [some(some_model, "mlp_in")]}
    wanted = mi.decompose(some_model, mi.run(some_model, tokens), **given)
    names = mi.residual.needed(some_model, **given)
    caches = [
        some_model.run_with_cache(tokens, names_filter=names)[1],
        mi.cache_for(some_model, tokens, **given),
        mi.cache_for(some_model, tokens, level="neuron", **given),
    ]
    for cache in caches:
        found = mi.decompose(some_model, cache, **given)
        assert found.labels == wanted.labels
        torch.testing.assert_close(found.vectors(), wanted.vectors(), atol=1e-4, rtol=1e-4)
    how = r"needed\(model, level='component', dictionaries=dictionaries\), or use cache_for\(mod"
    with pytest.raises(ValueError, match=rf"cache lacks blocks.1.hook_resid_pre .*filter={how}"):
        mi.decompose(some_model, mi.cache_for(some_model, tokens), **given)


def test_shares_of_latents_sum_to_the_logit(nano: Any, trained: Any) -> None:
    task = mi.prompts.ioi(nano, n=3, seed=0)
    run = mi.run(nano, task.clean_tokens)
    both = [*trained.values()]
    shares = mi.attribute_logits(nano, run, task, dictionaries=both)
    whole = mi.attribute_logits(nano, run, task)
    np.testing.assert_allclose(shares.sum("component"), whole.sum("component"), atol=1e-4)
    kinds = shares.groupby("kind").sum()
    assert {"latent", "error", "bias"} < set(kinds.kind.values)
    part = shares.sel(component=(shares.layer == 1) & (shares.kind != "attn"))
    np.testing.assert_allclose(part.sum("component"), whole.sel(component="1.mlp"), atol=1e-4)
    assert mi.Site.parse("L3F17") == mi.Site("latents", 3, neuron=17)
    assert mi.Site("latents", 3, neuron=17).label == "L3F17"


def test_dictionaries_that_do_not_split(nano: Any, trained: Any) -> None:
    run = mi.run(nano, torch.tensor([[0, 5, 6]]))
    sae, transcoder = trained.values()
    with pytest.raises(ValueError, match=r"has 2 of layer 2; wanted one"):
        mi.decompose(nano, run, dictionaries=[sae, sae])
    with pytest.raises(ValueError, match=r"is of 2.mlp; wanted one component .* level='neuron'"):
        mi.decompose(nano, run, level="neuron", dictionaries=[sae])
    stream = replace(sae, reads="resid_post", writes="resid_post")
    with pytest.raises(ValueError, match=r"is of 2.resid_post; wanted one component"):
        mi.decompose(nano, run, dictionaries=[stream])
    with pytest.raises(ValueError, match=r"dictionaries\[1\] wants raw weights"):
        mi.decompose(nano, run, dictionaries=[sae, replace(transcoder, wants="raw")])


def test_replacing_is_that_of_plain_hooks(nano: Any, corpus: Any, trained: Any) -> None:
    """All at once, later dictionaries read what earlier ones made; with the error kept, nothing."""
    sae, transcoder = trained.values()
    few = corpus[:2]
    found = latents.replace(nano, [sae, transcoder], few, batch_size=1)
    assert found.replaced.values.tolist() == ["1.mlp", "2.mlp", "all"]
    assert float(found.kl.sel(by="frozen_error").max()) < 1e-6
    kls = []
    for row in few.tokens:
        counts = (row != 0)[None, :, None]
        kept: dict[str, torch.Tensor] = {}

        def reads(x: torch.Tensor, hook: Any, kept: Any = kept) -> None:
            kept["x"] = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-5)

        def writes(x: torch.Tensor, hook: Any, kept: Any = kept, at: Any = counts) -> torch.Tensor:
            return torch.where(at, transcoder(kept["x"])[0], x)

        def rebuilds(x: torch.Tensor, hook: Any, at: Any = counts) -> torch.Tensor:
            return torch.where(at, sae(x)[0], x)

        names = ("blocks.1.hook_resid_pre", "blocks.1.hook_mlp_out", "blocks.2.hook_mlp_out")
        hooks = [*zip(names, (reads, writes, rebuilds), strict=True)]
        with torch.no_grad():
            clean = nano(row[None])[0].double().log_softmax(-1)
            changed = nano.run_with_hooks(row[None], fwd_hooks=hooks)[0].double().log_softmax(-1)
        kls.append(float((clean.exp() * (clean - changed)).sum(-1)[counts[0, :, 0]].mean()))
    figure: Any = mi.plots.replacement(found)
    drawn = {line.name: line for line in figure.data}
    assert list(drawn) == ["zero", "mean", "linear map", "dictionary"]
    assert list(drawn["dictionary"].y) == ["1.mlp", "2.mlp", "all"]
    np.testing.assert_allclose(drawn["dictionary"].x, found.kl.sel(by="dictionary"))
    with pytest.raises(ValueError, match=r"latents\.replace"):
        mi.plots.replacement(found.drop_vars("kl"))
    found_kl = float(found.kl.sel(replaced="all", by="dictionary"))
    np.testing.assert_allclose(found_kl, np.mean(kls), rtol=1e-3)
    alone = latents.evaluate(nano, transcoder, few)
    for by in ("zero", "mean"):
        mine = float(found.kl.sel(replaced="1.mlp", by=by))
        np.testing.assert_allclose(mine, float(alone.kl.sel(splice=by)), rtol=1e-3)
    np.testing.assert_allclose(found.fvu[0], alone.fvu, rtol=1e-4)


def test_the_linear_map_is_least_squares(nano: Any, corpus: Any, trained: Any) -> None:
    one, few = trained["transcoder"], corpus[:8]
    found = latents.replace(nano, [one], few)
    x, y = (z.double() for z in pairs_of(forward_of(nano), one, few.tokens, few.tokens != 0))
    x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    left = (y - x @ torch.linalg.lstsq(x, y).solution).square().sum()
    wanted = left / (y - y.mean(0)).square().sum()
    np.testing.assert_allclose(found.fvu_linear[0], float(wanted), atol=2e-3)
    with pytest.raises(ValueError, match="wanted a list of one or more"):
        latents.replace(nano, [], few)
    with pytest.raises(ValueError, match=r"1\.mlp"):
        latents.replace(nano, [one, one], few)


def test_the_best_latent_beside_its_controls(nano: Any, trained: Any) -> None:
    """Slow reference: every latent by hand, one text at a time."""
    one = trained["sae"]
    kinds = {
        name: getattr(mi.prompts, name)(nano, n=6, seed=0).clean_text for name in ("ioi", "facts")
    }
    found = latents.separate(nano, one, kinds, pooling="max", seed=3)
    assert found.source.values.tolist() == ["latents", "random", "neurons"]
    texts = [text for some in kinds.values() for text in some]
    runs, kind = [mi.run(nano, text) for text in texts], np.repeat([0, 1], 6)
    active = [latents.activations(run, one).dense()[0, 1:] for run in runs]
    # The control reads less the mean, and is as sparse: several are active, not one.
    k = round(float(np.mean([int(x) for some in active for x in (some != 0).sum(-1)])))
    mean = torch.cat([run["mlp_out", 2][0, 1:] for run in runs]).double().mean(0)
    control, chooses = random_like(one, mean, k, 3), np.zeros(12, dtype=bool)
    assert k > 1
    order = np.random.default_rng(3)
    for n in range(2):
        chooses[order.permutation(np.flatnonzero(kind == n))[:3]] = True
    for source, given in {"latents": one, "random": control}.items():
        pooled = [latents.activations(run, given).dense()[0, 1:].amax(0).numpy() for run in runs]
        values, here = np.stack(pooled), found.sel(source=source)
        for n in range(2):
            scores = [
                by_pairs(x[chooses & (kind == n)], x[chooses & (kind != n)]) for x in values.T
            ]
            best = int(here.best[n])
            assert scores[best] == max(scores) == float(here.auroc_chosen[n])
            x = values[:, best]
            wanted = by_pairs(x[~chooses & (kind == n)], x[~chooses & (kind != n)])
            np.testing.assert_allclose(here.auroc[n], wanted)
    again = latents.separate(nano, one, kinds, pooling="max", seed=3, batch_size=5)
    np.testing.assert_allclose(again.auroc, found.auroc)


def by_pairs(positive: np.ndarray, negative: np.ndarray) -> float:
    larger = (positive[:, None] > negative).mean() + (positive[:, None] == negative).mean() / 2
    return float(larger)


@pytest.mark.parametrize(
    ("kinds", "options", "text"),
    [
        ({"a": ["x y"] * 4}, {}, "texts has 1 kinds; wanted two or more"),
        ({"a": ["x y"] * 4, "b": ["x"]}, {}, r"texts\['b'\] has 1 texts; wanted"),
        ({"a": ["x y"] * 4, "b": ["x y"] * 4}, {"pooling": "sum"}, "pooling='sum'; wanted"),
        ({"a": ["x y"] * 4, "b": ["x"] * 4}, {"first": 4}, "text 4 has no token that counts"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_texts_that_are_refused(
    nano: Any, trained: Any, kinds: Any, options: Any, text: str
) -> None:
    kinds = {name: ["one two three four five"] * 4 if "first" in options and name == "a" else some
             for name, some in kinds.items()}  # fmt: skip
    with pytest.raises(ValueError, match=text):
        latents.separate(nano, trained["sae"], kinds, **options)


@pytest.mark.parametrize("path", ["total", "direct"])
def test_without_a_latent_and_without_the_error(nano: Any, corpus: Any, path: Any) -> None:
    """Slow reference: plain hooks, one text at a time; position 0 and BOS are spared."""
    one, few = some(nano, "mlp_in"), corpus.tokens[:2, :12].long()
    spared = int(one(read_by_hand(nano, one, few[:1, :1]))[1].dense().argmax())
    chosen = [spared, 5, 7]
    found = latents.ablate(nano, few, one, [spared, 5, "L1F7", "1.error"], path=path)
    assert found.component.values.tolist() == [*(f"L1F{k}" for k in chosen), "1.error"]
    assert found.kind.values.tolist() == ["latent"] * 3 + ["error"]
    assert float(found.kl_mean[1:].min()) > 0
    norm, last = nano.ln_final, f"blocks.{nano.cfg.n_layers - 1}.hook_resid_post"
    for n, row in enumerate(few):
        clean, cache = nano.run_with_cache(row[None])
        rebuilt, active = one(read_by_hand(nano, one, row[None]))
        written = cache[one.site.hook_name]
        parts = [active.dense()[..., [k]] * one.W_dec[k] for k in chosen]
        for label, whole in zip(found.component.values, [*parts, written - rebuilt], strict=True):
            part = whole * (row != 0)[None, :, None]
            hook = (one.site.hook_name, lambda x, hook, part=part: x - part)
            changed = (
                nano.unembed(norm(cache[last] - part))
                if path == "direct"
                else nano.run_with_hooks(row[None], fwd_hooks=[hook])
            )
            p, q = (x.detach()[0].double().log_softmax(-1) for x in (clean, changed))
            mine = found.sel(component=label).isel(prompt=n)
            np.testing.assert_allclose(mine.kl, (p.exp() * (p - q)).sum(-1), rtol=2e-3, atol=2e-6)
            wanted = (p - q)[:-1].gather(1, row[1:, None])[:, 0]
            np.testing.assert_allclose(mine.delta_loss[:-1], wanted, rtol=1e-4, atol=2e-5)


def test_all_active_latents_and_the_error_are_taken_away(nano: Any, trained: Any) -> None:
    one, text = trained["sae"], ["The cat sat on the mat."]
    found = latents.ablate(nano, text, one, path="direct")
    active = latents.activations(mi.run(nano, text), one).dense()[0, 1:]
    chosen = (active > 0).any(0).nonzero()[:, 0].tolist()
    assert found.component.values.tolist() == [*(f"L2F{n}" for n in chosen), "2.error"]
    assert np.isnan(found.kl_se).all()  # a single text


@pytest.mark.parametrize(
    ("given", "options", "text"),
    [
        ([], {}, r"latents=\[\]; wanted at least one"),
        ([99], {}, "latents=99"),
        (["L2F3"], {}, "latents='L2F3' of Dictionary: SAE of 1.mlp_out.*wanted 'L1F0', say"),
        (["1.mlp"], {}, "latents='1.mlp' of"),
        ([3, "L1F3"], {}, "L1F3"),
        ([3], {"path": "later"}, "path='later'; wanted 'total' or 'direct'"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_ablations_that_are_refused(nano: Any, given: Any, options: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        latents.ablate(nano, torch.tensor([[0, 5, 6]]), some(nano), given, **options)


def test_steering_with_a_latent_adds_to_it(nano: Any) -> None:
    """What `add` of the direction does is what an edit that adds to the latent does."""
    one, tokens = some(nano), torch.tensor([[0, 5, 6, 9]])
    found = latents.direction(nano, one, "L1F4")
    assert (found.site, found.component, found.unit) == ("mlp_out", "L1F4", "activation")
    steered = mi.run(nano, tokens, edits=mi.steering.add(found, 3.0))
    added = mi.run(nano, tokens, edits=mi.Edit.latents(one, {4: ("add", 3.0)}))
    torch.testing.assert_close(steered.final, added.final, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"latent='1.error' is another vector at each token"):
        latents.direction(nano, one, "1.error")


def test_planted_features_are_recovered() -> None:
    """Known by construction: two features in one latent, one in another, one in none."""
    eye = torch.eye(6)
    rows = torch.stack([eye[0] + eye[1], -eye[2], eye[3]])
    one = Dictionary(rows.T, torch.zeros(3), rows, torch.zeros(6), TopK(1), 0)
    found = latents.recovery(one, eye[[0, 1, 3, 2]] * 5, seed=1)
    mine = found.sel(source="latents")
    np.testing.assert_allclose(mine.cosine, [0.5**0.5, 0.5**0.5, 1, 0], atol=1e-6)
    assert mine.nearest.values[:3].tolist() == [0, 0, 2]
    # One to one there are too few, and the third latent points away from the last feature.
    assert int(mine.matched[2]) == 2
    assert sorted(mine.matched.values)[0] == -1
    assert bool(mine.cosine_matched.isnull()[mine.matched.values.argmin()])
    assert float(mine.mean_cosine) == pytest.approx(float(mine.cosine.mean()))
    assert mine.shared.values[:3].tolist() == [True, True, bool(mine.nearest[3] == 2)]
    again = latents.recovery(one, eye[[0, 1, 3, 2]], seed=1)
    np.testing.assert_allclose(again.cosine, found.cosine)
    for truth, text in ((eye[:, :3], "wanted features of the width"), (eye * 0, "of length 0")):
        with pytest.raises(ValueError, match=text):
            latents.recovery(one, truth)
