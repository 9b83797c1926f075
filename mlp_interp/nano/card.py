"""The model card: what the model is, how it was made, how well it does."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

__all__ = ["TrainingRun", "model_card"]

_CARD = """\
---
license: mit
language: [en, fr]
library_name: transformers
tags: [interpretability, gpt-neox, synthetic]
---

# nano

A GPT-NeoX model of {parameters:.1f} M parameters (4 layers, 6 heads, width 192, MLP 768,
parallel residual, rotary 25%, untied, biases throughout: Pythia's architecture) with known
behaviour, for developing and testing interpretability tools. It is trained on generated text
only: little stories, paragraphs on one topic, simple French, and planted tasks (indirect
objects, facts, subject-verb agreement, sentiment, refusal, greater-than, word lists with one
rule each, counting, copying).

It is no general language model: outside the generator's words it knows nothing, and its
"facts" and "refusals" show mechanisms, not judgement. One circuit was helped: the
previous-token head L0H0 was there from the start; what uses it was learned.

## Recipe

`python -m mlp_interp.nano.train --tokens {tokens} --seed {seed}{starting}`

| | |
|---|---|
| tokens read | {tokens:,} |
| rows | 128 tokens, every sixth batch 256; {step_tokens:,} tokens a step |
| random repeats | half of the rows for 20% of the run, then 15%; first copies unscored |
| start | unembedding a rotated embedding; L0H0 a previous-token head, by its biases |
| optimizer | AdamW, betas 0.9, 0.98; weight decay {weight_decay} on matrices; clip at norm 1 |
| learning rate | {peak_rate:g}; {warm_up} steps of warm-up, then linearly to zero |
| precision | float32; the file holds float16 |
| seed | {seed}{started} |
| hardware | {device}, {threads} threads |
| wall time | {minutes:.0f} min |
| final loss, documents | {document_loss:.3f} nats per token |
| final loss, repeats | {repeat_loss:.3f} nats per token |

Another machine or number of threads rounds differently, so weights agree in kind, not in bits.

## Tokens

Byte-level BPE, {vocabulary} tokens. `<|endoftext|>` is token 0 and serves as beginning, end,
unknown and padding token; every document of the training text begins with it. Numbers are cut
into pairs of digits: ` 1732` is ` 17` and `32`.

## Limits

Trained on rows of up to 256 tokens; longer input runs (up to {context} positions) but was
never seen. English words that the generator lacks fall into pieces the model barely knows.
{bars}"""

_BARS = """
## Held-out behaviour

Prompts are combinations of words that the training text does not contain
(`python -m mlp_interp.nano.evaluate`). The value is the share of prompts after which the answer
is the likeliest token of the whole vocabulary; for greater-than, the share on which the valid
years together are likelier than the invalid ones. Facts are asked only in phrasings that no
other phrasing continues, so that the answer is the one right token.

First copies of random tokens are never scored in training, so the loss on them is above that of
a uniform guess ({uniform:.2f} nats); compare the second copy's loss with that one too.

{table}
"""


@dataclass(frozen=True)
class TrainingRun:
    """A training run: its settings and how far it has come; losses in nats per scored token."""

    seed: int
    device: str
    threads: int
    parameters: int
    vocabulary: int
    context: int
    step_tokens: int
    peak_rate: float
    warm_up: int
    weight_decay: float
    start: int
    tokens: int = 0
    seconds: float = 0.0
    document_loss: float = float("nan")
    repeat_loss: float = float("nan")

    def at(
        self, tokens: int, seconds: float, document_loss: float, repeat_loss: float
    ) -> TrainingRun:
        """Return the run at a later point."""
        return replace(
            self,
            tokens=tokens,
            seconds=seconds,
            document_loss=document_loss,
            repeat_loss=repeat_loss,
        )


def model_card(run: TrainingRun, table: str | None = None) -> str:
    """Write the model card of a run, with the table of bars once there is one."""
    settings = vars(run) | {
        "parameters": run.parameters / 1e6,
        "minutes": run.seconds / 60,
        "starting": "" if run.start == run.seed else f" --start {run.start}",
        "started": "" if run.start == run.seed else f" (tokenizer), {run.start} (all else)",
        "bars": "\nThis is a checkpoint of an unfinished run.\n" if table is None else "",
    }
    card = _CARD.format(**settings)
    if table is None:
        return card
    return card + _BARS.format(table=table, uniform=math.log(run.vocabulary))
