"""Contrast sets that a model writes and scores itself."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from mlp_interp.features._self_score import self_score
from mlp_interp.features.sides import Feature, Side, side_of
from mlp_interp.models.options import check_choice, check_counts, checked_number
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import Texts
from mlp_interp.results import strings, variable
from mlp_interp.runs import Runner
from mlp_interp.steering.generation import Continuing, GenerationOptions, text_of

__all__ = ["contrast_texts", "self_generate"]

_SIDES = ("positive", "negative")
_DRAWS = GenerationOptions(n=32, temperature=1.0, max_new_tokens=24)


@own_mode()
def self_generate(
    model: Model,
    feature: Feature,
    *,
    against: Feature = "",
    generation: GenerationOptions = _DRAWS,
    keep: float = 0.5,
    held_out: float = 0.25,
    separator: str = " ",
    batch_size: int = 32,
) -> xr.Dataset:
    """Texts with a feature and texts without, written by the model and scored by itself.

    The model continues the prefix (or runs under the edits), and what the feature is held against.
    `self_score` says which of these texts are decided, without the prefix in them; the most decided
    of each side are kept, and some of them are held out. Texts that come twice are there once: no
    text is on both sides, nor in both parts.

    What is kept is what the model itself takes for the feature. A neuron that tells the sides apart
    may tell the prefix's topic, its style or its length; look at some of the texts.

    Args:
        model: A model with a tokenizer.
        feature: A prefix, or edits, as in `self_score`.
        against: What it is held against: another prefix, ``""`` for none, or edits.
        generation: How many texts are written on each side, how long, and by which draws.
        keep: Share of each side that is kept, the most decided.
        held_out: Share of these that is held out, chosen by `generation`'s seed.
        separator: As in `self_score`.
        batch_size: Texts that are written or read at once.

    Returns:
        A Dataset along ``prompt``: `text`, `score` (nats per token) with `score_se`, `kept`, and
        `held_out` (of those that are kept), with the coordinate ``side``, positive or negative.
        `contrast_texts` gives the texts of a part. ``attrs`` say how many were written, empty or
        there twice.

    Raises:
        ValueError: Shares that leave nothing, a single sample, or as `self_score`; the model wrote
            too few different texts.

    Example:
        >>> from mlp_interp import load_model
        >>> from mlp_interp.steering import GenerationOptions
        >>> draws = GenerationOptions(n=8, temperature=1.0, max_new_tokens=12)
        >>> found = self_generate(load_model("nano"), "Topic: chess.", generation=draws)
        >>> len(contrast_texts(found, "positive")) > 1, len(contrast_texts(found, "negative")) > 1
        (True, True)
    """
    check_counts(batch_size=batch_size)
    _check(generation, keep, held_out)
    listed, names = (feature, against), ("feature", "against")
    sides = [side_of(model, one, what=w) for one, w in zip(listed, names, strict=True)]
    if sides[0] == sides[1]:
        raise ValueError(f"feature={feature!r} and against are the same; wanted two that differ")
    runner, how = Runner.of(model), Continuing(generation, batch_size)
    written = [_written(runner, how, side) for side in sides]
    once = _once(written)
    for name, texts in zip(_SIDES, once, strict=True):
        if round(keep * len(texts)) < 2:
            raise ValueError(
                f"generation={generation} gave {len(texts)} different texts on the {name} side, "
                f"of which keep={keep} leaves {round(keep * len(texts))}; wanted at least 2"
            )
    flat = [*once[0], *once[1]]
    scores = self_score(
        model, flat, feature, against=against, separator=separator, batch_size=batch_size
    )
    value = scores["score"].values[0]
    side = np.repeat([0, 1], [len(texts) for texts in once])
    kept, out = _kept(value, side, keep, held_out, generation.seed)
    return xr.Dataset(
        {
            "text": ("prompt", strings(flat)),
            "score": variable("prompt", value, unit="nats per token"),
            "score_se": variable("prompt", scores["score_se"].values[0], unit="nats per token"),
            "kept": ("prompt", kept, {"unit": "truth"}),
            "held_out": ("prompt", out, {"unit": "truth"}),
        },
        coords={"prompt": np.arange(len(flat)), "side": ("prompt", np.array(_SIDES)[side])},
        attrs={
            **scores.attrs,
            "analysis": "contrast sets of the model's own",
            "feature": sides[0].about,
            "data": f"{generation.n} texts of up to {generation.max_new_tokens} tokens a side",
            "left_out": sum(map(len, written)) - len(flat),
            "seed": generation.seed,
            "temperature": float(generation.temperature),
        },
    )


def contrast_texts(
    found: xr.Dataset, side: Literal["positive", "negative"], *, held_out: bool = False
) -> list[str]:
    """The texts of one side that `self_generate` kept: those to look at, or those held out.

    Raises:
        ValueError: Another side.
    """
    check_choice("side", side, _SIDES)
    chosen = (found["side"] == side) & found["kept"] & (found["held_out"] == held_out)
    return [str(text) for text in found["text"].values[chosen.values]]


def _check(generation: GenerationOptions, keep: Any, held_out: Any) -> None:
    checked_number("keep", keep, lambda x: 0 < x <= 1, "a share above 0, up to 1")
    checked_number("held_out", held_out, lambda x: 0 <= x < 1, "a share from 0, below 1")
    if generation.n < 4:
        raise ValueError(f"generation has n={generation.n}; wanted at least 4 texts a side")


def _written(runner: Runner, how: Continuing, side: Side) -> list[str]:
    """What the model writes on one side."""
    model = runner.weights.model
    texts = Texts((side.context,), None)
    how.check(runner.weights, texts, side.edits)
    end = how.options.end(model)
    tokens = how.all(runner, texts, side.edits).tokens[0]
    return [text_of(getattr(model, "tokenizer", None), row, end=end).strip() for row in tokens]


def _once(written: Sequence[Sequence[str]]) -> list[list[str]]:
    """Texts that are not empty, each once, and none that both sides have."""
    both = {*written[0]} & {*written[1]}
    return [[t for t in dict.fromkeys(texts) if t and t not in both] for texts in written]


def _kept(
    value: np.ndarray, side: np.ndarray, keep: float, held_out: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which texts are kept, and which of these are held out."""
    kept, out = np.zeros(len(value), bool), np.zeros(len(value), bool)
    rng = np.random.default_rng(seed)
    for which, sign in ((0, -1), (1, 1)):
        mine = np.flatnonzero(side == which)
        best = mine[np.argsort(sign * value[mine], kind="stable")][: round(keep * len(mine))]
        kept[best] = True
        out[rng.permutation(best)[: min(len(best) - 1, round(held_out * len(best)))]] = True
    return kept, out
