"""The shipped weights meet their bars on held-out prompts."""

import dataclasses

import pytest
import torch

from mlp_interp.nano.bars import Measurement, induction, last_logits, measure, task_accuracy
from mlp_interp.nano.evaluate import main, table
from mlp_interp.nano.tasks import examples

JUDGED = (
    "ioi",
    "facts",
    "agreement",
    "sentiment",
    "refusal",
    "antonyms",
    "greater_than",
    "second copy, 24 tokens",
    "induction score, 24 tokens",
)


@pytest.fixture(scope="module")
def lines(model, tokenizer):
    return {line.name: line for line in measure(model, tokenizer, n=200, seed=0)}


@pytest.mark.parametrize("name", JUDGED)
def test_bar_is_met(lines, name):
    line = lines[name]
    assert line.bar is not None
    assert line.passed, f"{name}: {line.value:.3f}, bar {line.bar}"


def test_every_other_line_is_only_reported(lines):
    assert all(line.bar is None for name, line in lines.items() if name not in JUDGED)


def test_logits_do_not_depend_on_the_other_prompts(model, tokenizer):
    prompts = [pair.clean for task in ("ioi", "facts") for pair in examples(task, n=5, seed=1)]
    together = last_logits(model, tokenizer, prompts)
    for prompt, row in zip(prompts, together, strict=True):
        ids = torch.tensor([[0, *tokenizer.encode(prompt)]])
        with torch.no_grad():
            alone = model(ids).logits[0, -1]
        torch.testing.assert_close(row, alone, atol=1e-4, rtol=0)


def test_induction_against_a_loop(model):
    period, sequences = 6, 3
    _, second, scores = induction(model, period=period, sequences=sequences, seed=0)
    generator = torch.Generator().manual_seed(0)
    size = (sequences, period)
    piece = torch.randint(1, model.config.vocab_size, size, generator=generator)
    losses, attention = [], torch.zeros_like(scores)
    for row in piece:
        tokens = torch.cat([torch.zeros(1, dtype=row.dtype), row, row])[None]
        with torch.no_grad():
            out = model(tokens, output_attentions=True)
        for position in range(period + 1, 2 * period + 1):
            # The token after the first occurrence of the one that stands here.
            after = tokens[0].tolist().index(int(tokens[0, position])) + 1
            for layer, pattern in enumerate(out.attentions):
                attention[layer] += pattern[0, :, position, after]
            if position > period + 1:
                logs = out.logits[0, position - 1].log_softmax(-1)
                losses.append(-logs[tokens[0, position]].item())
    assert second == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    torch.testing.assert_close(scores, attention / (sequences * period), atol=1e-5, rtol=0)


def test_answers_of_several_tokens_are_refused(model, tokenizer):
    pair = dataclasses.replace(examples("ioi", n=1, seed=0)[0], answer=" Mississippi river")
    with pytest.raises(ValueError, match=r"' Mississippi river' is \d+ tokens, expected 1"):
        task_accuracy(model, tokenizer, [pair])


def test_a_missed_bar_is_said_and_fails():
    low = Measurement("ioi", 0.5, 0.98)
    assert not low.passed
    assert "FAIL" in table([low])
    assert Measurement("ratio", 0.2, 0.35, at_most=True).passed
    assert not Measurement("ratio", 0.4, 0.35, at_most=True).passed
    assert Measurement("counting", 0.0, None).passed


def test_command_line(capsys, monkeypatch):
    line = Measurement("ioi", 0.5, 0.98)
    monkeypatch.setattr("mlp_interp.nano.evaluate.measure", lambda *_, **__: [line])
    assert main([]) == 1
    assert "| ioi | 0.500 | >= 0.98 | FAIL |" in capsys.readouterr().out
    monkeypatch.setattr(
        "mlp_interp.nano.evaluate.measure",
        lambda *_, **__: [dataclasses.replace(line, value=0.99)],
    )
    assert main([]) == 0
