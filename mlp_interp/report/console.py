"""A logit attribution as lines of text or JSON, for the terminal."""

import json
from dataclasses import dataclass
from typing import Any

import torch
import xarray as xr

from mlp_interp.attribution import attribute_logits
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.pairs import encode_prompt
from mlp_interp.prompts.tokenizing import decode, is_single_token, single_token, tokenizer_of
from mlp_interp.residual import Level, cache_for
from mlp_interp.tables import top

_FACTS = ("prompt", "answer", "foil", "rank", "probability")


@dataclass(frozen=True)
class Attributed:
    """The shares of one logit after one prompt, and what is known of it.

    Attributes:
        shares: Along ``component``.
        prompt: As the model reads it.
        answer: The word.
        foil: The word it is compared with, if there is one.
        rank: Of the answer among all tokens, from 1.
        probability: Of the answer.
    """

    shares: xr.DataArray
    prompt: str
    answer: str
    foil: str | None
    rank: int
    probability: float

    def lines(self, top_k: int) -> list[str]:
        """What the command prints: the largest shares and their sum."""
        words = f"logit({self.answer!r})" + (f" - logit({self.foil!r})" if self.foil else "")
        return [
            f"{self.prompt!r} → {self.answer!r}",
            f"rank {self.rank}, probability {self.probability:.3f}",
            "",
            words,
            *_table(self.shares, top_k),
        ]

    def json(self, top_k: int) -> str:
        """The same as JSON, with all digits."""
        facts = {name: getattr(self, name) for name in _FACTS}
        rows = [{"component": name, "share": value} for name, value in _rows(self.shares, top_k)]
        about = {name: str(value) for name, value in self.shares.attrs.items()}
        return json.dumps({**facts, "shares": rows, "about": about}, ensure_ascii=False, indent=1)


@torch.no_grad()
def attributed(
    model: Model,
    prompt: str,
    answer: str,
    foil: str | None = None,
    *,
    level: Level = "component",
    prepend_bos: bool = True,
) -> Attributed:
    """Which components add most to the logit of `answer` after `prompt`.

    A word without a leading space gets one where that is a token: "Paris" means " Paris".

    Raises:
        ValueError: The prompt is empty, or a word is not one token.
    """
    if not prompt.strip():
        raise ValueError("prompt must hold some text, got none")
    tokenizer = tokenizer_of(model)
    ids = encode_prompt(tokenizer, prompt, prepend_bos=prepend_bos)
    words = {
        name: _word(tokenizer, word, name)
        for name, word in (("answer", answer), ("foil", foil))
        if word is not None
    }
    tokens = torch.tensor([ids])
    known = {name: single_token(tokenizer, word, what=name) for name, word in words.items()}
    cache = cache_for(model, tokens, level=level)
    shares = attribute_logits(model, cache, known["answer"], known.get("foil"), level=level)
    rank, probability = _standing(model, tokens, known["answer"])
    shown = decode(tokenizer, ids)
    one = shares.isel(prompt=0, pos=0)
    return Attributed(one, shown, words["answer"], words.get("foil"), rank, probability)


def _word(tokenizer: Any, word: str, name: str) -> str:
    if not word:
        raise ValueError(f"{name} is empty; wanted a word")
    spaced = " " + word
    return spaced if not word.startswith(" ") and is_single_token(tokenizer, spaced) else word


def _standing(model: Model, tokens: torch.Tensor, answer: int) -> tuple[int, float]:
    """Rank and probability of the answer."""
    logits = model(tokens.to(model.W_U.device))[0, -1].float()
    return int((logits > logits[answer]).sum()) + 1, float(logits.softmax(-1)[answer])


def _rows(shares: xr.DataArray, count: int) -> list[tuple[str, float]]:
    """The largest shares, of neurons where there are neurons; the rest by kind; the sum."""
    kinds = shares["kind"].values
    finest = "neuron" if "neuron" in kinds else None
    ranked = shares if finest is None else shares.isel(component=kinds == finest)
    strongest = top(ranked, count)
    rows = [
        (str(x), float(v))
        for x, v in zip(strongest["component"].values, strongest.values, strict=True)
    ]
    if left := ranked.sizes["component"] - len(rows):
        what = "others" if finest is None else "other neurons"
        rows.append((f"{left} {what}", float(ranked.sum()) - sum(value for _, value in rows)))
    others = dict.fromkeys(kinds[kinds != finest].tolist()) if finest else {}
    for kind in others:
        group = shares.isel(component=kinds == kind)
        number = group.sizes["component"]
        name = str(group["component"].values[0]) if number == 1 else f"{number} of {kind}"
        rows.append((name, float(group.sum())))
    return [*rows, ("sum", float(shares.sum()))]


def _table(shares: xr.DataArray, count: int) -> list[str]:
    rows = _rows(shares, count)
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {value:+8.3f}" for name, value in rows]
