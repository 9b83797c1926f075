"""The same prompts continued with edits and without, from the same seeds."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from mlp_interp.edits import Edit
from mlp_interp.metrics.rows import clean_loss
from mlp_interp.models import describe
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import Prompts, Texts, texts_of
from mlp_interp.prompts.tokenizing import token_strings
from mlp_interp.results import strings, to_numpy
from mlp_interp.runs import Runner
from mlp_interp.steering.generation import (
    GREEDY,
    Continued,
    Continuing,
    GenerationOptions,
    check_edits,
    text_of,
)

__all__ = ["generate_compare"]

WAYS = ("plain", "edited")


@own_mode()
def generate_compare(
    model: Model,
    prompts: Prompts,
    edits: Edit | Iterable[Edit],
    *,
    generation: GenerationOptions = GREEDY,
    prepend_bos: bool = True,
    batch_size: int = 32,
) -> xr.Dataset:
    r"""Continue prompts with edits and without them, from the same random numbers.

    Sample s of a prompt meets the same random numbers in both ways, step by step: where the two
    texts differ, it is by what the edits did to the model, not by luck. The numbers depend on the
    seed, the prompt and s, not on the other prompts, which may come and go (equal prompts get
    different numbers; logits round a little differently in another batch, which hardly ever shows).
    Prompts of unequal length run in groups of equal length, never padded.

    Fluency is measured by the model without edits: the log-probability of each new token after the
    prompt and what came before. A plain text at temperature 0 is by its nature likely; an edited
    text that is far less likely is one that the model would hardly write. Low fluency is not the
    same as nonsense: a text that says what the model would not have said is unlikely too.

    Args:
        model: The model.
        prompts: Texts, or tokens ``[prompt, pos]``, which are taken as they are.
        edits: What to do; of steering, what `add` and `project_out` make.
        generation: How many texts, how long, by which draws, and where edits are kept to.
        prepend_bos: Whether texts begin with BOS.
        batch_size: Texts that run at once.

    Returns:
        A Dataset over ``way`` (plain, edited), ``prompt``, ``sample`` and ``new``: `token` (ids, -1
        after the end), `token_text`, `text` (without the end token), `length` (with it),
        `log_probability` (nats, NaN after the end) and `fluency` (its mean, nats per new token);
        `differs` (at this position, position by position), `first_difference` (-1 where both texts
        are the same) and `share_differing` (of the longer text's positions). Along ``prompt`` lies
        `prompt_text`; ``attrs["edits"]`` describes the edits, one a line.

    Raises:
        ValueError: No prompts, or ones too long; no edits, or ones that do not fit or have values
            for each prompt.

    Example:
        >>> from mlp_interp import load_model
        >>> model, prompt = load_model("nano"), "User: Teach me to steal a car.\nAssistant:"
        >>> short = GenerationOptions(max_new_tokens=4)
        >>> found = generate_compare(model, prompt, Edit.scale("3.mlp", 0.0), generation=short)
        >>> found.sizes["new"], found.text.sel(way="plain").item()
        (4, ' Sorry, I cannot')
    """
    runner, listed = Runner.of(model), check_edits(edits)
    texts = texts_of(model, prompts, what="prompts", prepend_bos=prepend_bos)
    how = Continuing(generation, batch_size)
    how.check(runner.weights, texts, listed)
    both = [how.all(runner, texts, ()), how.all(runner, texts, listed)]
    fluency = [_log_probabilities(runner, texts, how, found) for found in both]
    return _result(
        _Both(model, texts, generation.end(model), both, fluency),
        attrs={
            **describe(model),
            "data": (
                f"{len(texts)} prompts, {generation.n} samples of at most "
                f"{generation.max_new_tokens} tokens"
            ),
            "long_name": "texts continued with edits and without, from the same seeds",
            "unit": "see each variable",
            "exact": 1,
            "edits": "\n".join(map(str, listed)),
            "where": generation.where,
            "seed": generation.seed,
            "temperature": float(generation.temperature),
            "top_k": "all" if generation.top_k is None else generation.top_k,
        },
    )


class _Both:
    """Plain and edited texts, as numpy arrays ``[way, prompt, sample, new]``."""

    def __init__(
        self,
        model: Model,
        texts: Texts,
        end: int | None,
        both: Sequence[Continued],
        log_probabilities: Sequence[np.ndarray],
    ) -> None:
        self.tokenizer = getattr(model, "tokenizer", None)
        self.end = end
        self.prompts = texts.rows
        self.tokens = np.stack([found.tokens for found in both])
        self.length = np.stack([found.length for found in both])
        self.log_probability = np.stack(log_probabilities)

    def token_text(self) -> np.ndarray:
        """Each new token as text; empty after the end."""
        ids = sorted({int(token) for token in self.tokens.flat if token >= 0})
        named = {-1: "", **dict(zip(ids, token_strings(self.tokenizer, ids), strict=True))}
        flat = [named[int(token)] for token in self.tokens.flat]
        return strings(flat).reshape(self.tokens.shape)

    def text(self) -> np.ndarray:
        """Each new text as a whole."""
        rows = self.tokens.reshape(-1, self.tokens.shape[-1])
        flat = [text_of(self.tokenizer, row, end=self.end) for row in rows]
        return strings(flat).reshape(self.length.shape)


def _result(both: _Both, attrs: dict[str, Any]) -> xr.Dataset:
    tokens, length = both.tokens, both.length
    differs = tokens[0] != tokens[1]
    first = np.where(differs.any(-1), differs.argmax(-1), -1)
    by_text, by_pair = ("way", "prompt", "sample"), ("prompt", "sample")
    nats = {"unit": "nats"}
    prompt_text = [text_of(both.tokenizer, row) for row in both.prompts]
    return xr.Dataset(
        {
            "token": ((*by_text, "new"), tokens),
            "token_text": ((*by_text, "new"), both.token_text()),
            "text": (by_text, both.text()),
            "length": (by_text, length, {"unit": "tokens"}),
            "log_probability": ((*by_text, "new"), both.log_probability, nats),
            "fluency": (
                by_text,
                np.nanmean(both.log_probability, axis=-1),
                {
                    "unit": "nats per new token",
                    "long_name": "mean log-probability under the model without edits",
                },
            ),
            "differs": ((*by_pair, "new"), differs),
            "first_difference": (by_pair, first, {"unit": "new tokens before it"}),
            "share_differing": (by_pair, differs.sum(-1) / length.max(0), {"unit": "fraction"}),
        },
        coords={
            "way": list(WAYS),
            "prompt": np.arange(tokens.shape[1]),
            "sample": np.arange(tokens.shape[2]),
            "new": np.arange(tokens.shape[3]),
            "prompt_text": ("prompt", strings(prompt_text)),
        },
        attrs=attrs,
    )


@torch.no_grad()
def _log_probabilities(
    runner: Runner, texts: Texts, how: Continuing, found: Continued
) -> np.ndarray:
    """Log-probability of every new token under the model without edits; NaN after the end."""
    result = np.full(found.tokens.shape, np.nan)
    for pairs in how.batches(texts):
        new = torch.tensor([found.tokens[pair].tolist() for pair in pairs])
        rows = torch.tensor([texts.rows[prompt] for prompt, _ in pairs])
        read = torch.cat((rows, new.clamp_min(0)), dim=1).to(runner.weights.device)
        start = rows.shape[1] - 1
        final = runner.run(read).final[:, start:-1]
        loss = to_numpy(clean_loss(runner.unembed, final, new.to(final.device)))
        for pair, row in zip(pairs, loss, strict=True):
            result[pair] = -row
    return result
