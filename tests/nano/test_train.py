"""The training loop: rows, rate, checkpoints; not the run itself."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from mlp_interp.nano import train as training
from mlp_interp.nano import weights_path
from mlp_interp.nano.architecture import config_dict, new_model
from mlp_interp.nano.bars import Measurement
from mlp_interp.nano.card import TrainingRun, model_card
from mlp_interp.nano.checkpoint import load, save
from mlp_interp.nano.rows import END, document_rows, repeat_row


@pytest.mark.parametrize("seed", range(20))
def test_scored_repeats_can_be_copied(seed):
    tokens, scored = repeat_row(np.random.default_rng(seed), 128, 10_000_000)
    assert tokens.shape == scored.shape == (128,)
    assert scored.any()
    new = [at for at in np.flatnonzero(scored) if _pair(tokens, at) not in _pairs(tokens[:at])]
    # One step for each of two windows at most: the end of a copy that began inside.
    assert len(new) <= 2


def _pair(tokens, at):
    return int(tokens[at - 1]), int(tokens[at])


def _pairs(tokens):
    return set(pairwise(tokens.tolist()))


def test_first_copies_are_not_scored():
    tokens, scored = repeat_row(np.random.default_rng(0), 128, 10_000_000)
    assert all(tokens[at] in tokens[:at] for at in np.flatnonzero(scored))


def test_repeats_grow_longer():
    def longest(progress):
        rng, far = np.random.default_rng(0), 0
        for _ in range(100):
            tokens, scored = repeat_row(rng, 128, 10_000_000, progress=progress)
            for at in np.flatnonzero(scored):
                far = max(far, at - int(np.flatnonzero(tokens[:at] == tokens[at])[-1]))
        return far

    assert longest(0.0) <= 12 < longest(0.5) <= 36 < longest(1.0)


def test_document_rows(tokenizer):
    rows = document_rows(tokenizer, 0, np.random.default_rng(0))
    next(rows)
    drawn = [rows.send(128) for _ in range(80)]
    assert all(len(row) == 128 for row in drawn)
    assert 0.75 < sum(row[0] == END for row in drawn) / len(drawn) < 1
    assert len(rows.send(256)) == 256


def test_batches_are_deterministic(tokenizer):
    first, second = (list(training.batches(tokenizer, 0, 8)) for _ in range(2))
    for (a, b), (c, d) in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)
    assert {batch.shape[1] for batch, _ in first} == {128, 256}
    assert len({batch.size for batch, _ in first}) == 1


def test_rate_factor():
    rates = [training.rate_factor(step, 1000) for step in range(1000)]
    peak = max(rates)
    assert rates.index(peak) < 300
    assert rates[0] <= peak / 50
    assert 0 < rates[-1] <= peak / 50


def test_a_short_run_leaves_a_model_that_loads(tmp_path, monkeypatch, tokenizer):
    monkeypatch.setattr(training, "train_tokenizer", lambda seed: tokenizer)
    monkeypatch.setattr(training, "measure", lambda *_: [Measurement("ioi", 0.0, 0.98)])
    run = training.train(out=tmp_path, tokens=2 * 2048, seed=1)
    assert run.tokens == 2 * 2048
    assert math.isfinite(run.document_loss)
    model, loaded = load(tmp_path)
    assert model.dtype == torch.float32
    assert loaded.encode("<|endoftext|>") == [0]
    card = (tmp_path / "README.md").read_text()
    assert "--tokens 4096 --seed 1" in card
    assert "| ioi |" in card


def test_another_start_keeps_the_tokenizer_and_its_revisions(tmp_path, monkeypatch, tokenizer):
    seeds = []
    monkeypatch.setattr(training, "train_tokenizer", lambda seed: seeds.append(seed) or tokenizer)
    monkeypatch.setattr(training, "measure", lambda *_: [Measurement("ioi", 0.0, 0.98)])
    run = training.train(out=tmp_path, tokens=2 * 2048, start=5, keep=4)
    assert (run.seed, run.start, seeds) == (0, 5, [0])
    assert sorted(at.name for at in (tmp_path / "revisions").iterdir()) == ["step1", "step2"]
    assert "--seed 0 --start 5`" in (tmp_path / "README.md").read_text()
    (first, _), (last, _), (end, _) = map(
        load, (tmp_path / "revisions/step1", tmp_path / "revisions/step2", tmp_path)
    )
    for name, weight in end.state_dict().items():
        assert torch.equal(weight, last.state_dict()[name])
    assert not torch.equal(first.lm_head.weight, end.lm_head.weight)
    start = new_model(5).lm_head.weight
    assert (first.lm_head.weight - start).abs().mean() < start.abs().mean() / 10


def test_revisions():
    assert training.revisions(3417, 8) == [27, 53, 107, 214, 427, 854, 1708, 3417]
    assert training.revisions(2, 4) == [1, 2]
    assert training.revisions(100, 0) == []
    with pytest.raises(ValueError, match="keep is -1"):
        training.train(out=weights_path(), tokens=2048, keep=-1)


def test_too_short_a_run():
    with pytest.raises(ValueError, match="tokens is 100, expected at least 2048"):
        training.train(out=weights_path(), tokens=100)


def test_no_weights(tmp_path):
    with pytest.raises(ValueError, match=r"expected one with model\.safetensors"):
        load(tmp_path)


def test_saving_rounds_to_half_precision_only(tmp_path, tokenizer):
    model = new_model(3)
    save(tmp_path, model, tokenizer, "card")
    loaded, _ = load(tmp_path)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], weight.half().float())


def test_start_of_training():
    model = new_model(0)
    model.set_attn_implementation("eager")
    tokens = torch.randint(1, 2048, (2, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        patterns = model(tokens, output_attentions=True).attentions[0]
    at = torch.arange(1, 60)
    back = patterns[:, :, at, at - 1].mean(dim=(0, 2))
    assert back[0] > 0.6
    assert back[1:].max() < 0.2
    # The unembedding is the embedding, turned: equal angles between tokens, other directions.
    embed = model.get_input_embeddings().weight
    unembed = model.get_output_embeddings().weight
    torch.testing.assert_close(embed @ embed.T, unembed @ unembed.T, atol=1e-4, rtol=0)
    assert not torch.allclose(embed, unembed)


def test_architecture_is_pythias():
    model = new_model(0)
    config = model.config
    assert config.use_parallel_residual
    assert not config.tie_word_embeddings
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    assert 2e6 < sum(weight.numel() for weight in model.parameters()) < 4e6
    # A quarter of each head's 32 dimensions turns.
    assert model.gpt_neox.rotary_emb.inv_freq.numel() == 4
    assert config_dict()["attention_bias"]
    assert model.gpt_neox.layers[0].attention.query_key_value.bias is not None


def test_shipped_files_load_the_usual_way(model):
    auto = AutoModelForCausalLM.from_pretrained(weights_path())
    tokens = torch.randint(1, 2048, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(auto(tokens).logits, model(tokens).logits, atol=1e-3, rtol=0)


@pytest.mark.parametrize("start", [0, 1])
def test_shipped_size_and_card(start):
    files = list(weights_path(start).iterdir())
    assert sum(file.stat().st_size for file in files) <= 6_000_000
    card = (weights_path(start) / "README.md").read_text()
    assert "FAIL" not in card
    assert "| induction score, 24 tokens |" in card
    assert ("--start 1`" in card) == bool(start)


def test_two_runs_of_one_tokenizer():
    one, other = (weights_path(start) for start in (0, 1))
    assert (one / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()
    assert (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="start is 2, expected 0 or 1"):
        weights_path(2)


def test_card_of_an_unfinished_run():
    run = TrainingRun(
        seed=0,
        device="cpu",
        threads=2,
        parameters=2_570_000,
        vocabulary=2048,
        context=512,
        step_tokens=2048,
        peak_rate=1e-3,
        warm_up=10,
        weight_decay=0.1,
        start=0,
    )
    card = model_card(run.at(1000, 60.0, 1.0, 2.0))
    assert "checkpoint of an unfinished run" in card
    assert "| wall time | 1 min |" in card
    assert "| ioi |" in model_card(run, "| ioi |")
