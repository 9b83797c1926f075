"""A logit attribution as lines of text, for the terminal."""

from typing import Any

import torch
import xarray as xr

from mlp_interp.attribution import attribute_logits
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.pairs import encode_prompt
from mlp_interp.prompts.tokenizing import (
    is_single_token,
    single_token,
    token_strings,
    tokenizer_of,
)
from mlp_interp.residual import Level, cache_for
from mlp_interp.tables import top


@torch.no_grad()
def attribution_table(
    model: Model,
    prompt: str,
    answer: str,
    foil: str | None = None,
    *,
    level: Level = "component",
    top_k: int = 15,
    prepend_bos: bool = True,
) -> list[str]:
    """Lines that tell which components add most to the logit of `answer` after `prompt`.

    A word without a leading space gets one where that is a token: "Paris" means " Paris".

    Raises:
        ValueError: The prompt is empty, or a word is not one token.
    """
    if not prompt.strip():
        raise ValueError("prompt must hold some text, got none")
    tokenizer = tokenizer_of(model)
    ids = encode_prompt(tokenizer, prompt, prepend_bos=prepend_bos)
    words = {
        name: _word(tokenizer, word)
        for name, word in (("answer", answer), ("foil", foil))
        if word is not None
    }
    tokens = torch.tensor([ids])
    known = {name: single_token(tokenizer, word, what=name) for name, word in words.items()}
    cache = cache_for(model, tokens, level=level)
    shares = attribute_logits(model, cache, known["answer"], known.get("foil"), level=level)
    lines = [f"{''.join(token_strings(tokenizer, ids))!r} → {words['answer']!r}"]
    lines += _standing(model, tokens, known["answer"])
    what = f"logit({words['answer']!r})" + (f" - logit({words['foil']!r})" if foil else "")
    return [*lines, "", *_table(shares.isel(prompt=0, pos=0), what, top_k)]


def _word(tokenizer: Any, word: str) -> str:
    spaced = " " + word
    return spaced if not word.startswith(" ") and is_single_token(tokenizer, spaced) else word


def _standing(model: Model, tokens: torch.Tensor, answer: int) -> list[str]:
    """Rank and probability of the answer."""
    logits = model(tokens.to(model.W_U.device))[0, -1].float()
    rank = int((logits > logits[answer]).sum()) + 1
    return [f"rank {rank}, probability {float(logits.softmax(-1)[answer]):.3f}"]


def _table(shares: xr.DataArray, what: str, count: int) -> list[str]:
    strongest = top(shares, count)
    rows = [
        (str(x), float(v))
        for x, v in zip(strongest["component"].values, strongest.values, strict=True)
    ]
    total = float(shares.sum())
    left = shares.sizes["component"] - len(rows)
    if left:
        rows.append((f"{left} others", total - sum(value for _, value in rows)))
    rows.append(("sum", total))
    width = max(len(name) for name, _ in rows)
    return [what, *(f"  {name:<{width}}  {value:+8.3f}" for name, value in rows)]
