"""The model as its own judge: how much likelier a text is behind a prefix, or under an edit."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from mlp_interp.features.sides import (
    Feature,
    Side,
    bare_texts,
    check_lengths,
    random_sides,
    side_of,
    sides_of,
)
from mlp_interp.metrics.rows import clean_loss
from mlp_interp.models import describe
from mlp_interp.models.options import check_counts
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import Texts
from mlp_interp.prompts.tokenizing import decode, token_strings
from mlp_interp.results import strings, to_numpy, variable
from mlp_interp.runs import Runner

__all__ = ["OTHERS", "self_score"]

OTHERS = "others"


@own_mode()
def self_score(
    model: Model,
    texts: Any,
    features: Feature | Mapping[str, Feature],
    *,
    against: Feature | Literal["others"] = "",
    separator: str = " ",
    controls: int = 0,
    seed: int = 0,
    batch_size: int = 16,
) -> xr.Dataset:
    """How much likelier a text is behind a prefix than without it, or under an edit.

    ``log p(text | feature) - log p(text | against)``, token by token: which of these texts is more
    sarcastic, asked of a base model without a question, an answer or a judge. All sides read the
    same tokens of the text. It says what *this model* takes the prefix for: a prefix that was never
    trained, or that the model takes for a style and not for a topic, measures something else or
    nothing, so hold it against labels once (`agreement`), and against `controls`: any prefix moves
    texts of one kind together, so that even random tokens tell kinds of texts apart by a little.

    A text that has itself the words of the prefix becomes likelier by being a repetition. And a
    score is of the text *and* the prefix: compare texts under one feature, or features on one text.

    Args:
        model: A model with a tokenizer.
        texts: Texts, which stand behind the prefix and `separator`; or token ids, a `Corpus`, or
            tokens ``[prompt, pos]``, taken as they are but for a BOS at their beginning.
        features: A prefix (``"Topic: chess."``); edits that are held in its place, as those of
            `mlp_interp.steering.add`; or several of these by name.
        against: What a feature is held against: another prefix, ``""`` for none, or edits. With
            ``"others"``, all other features as one mixture: the score is then the log odds of the
            feature, were all of them equally likely beforehand.
        separator: What stands between a prefix and a text; before the text in all sides.
        controls: How many prefixes of random tokens, as long as each feature's, to score as well.
        seed: Of these tokens.
        batch_size: Texts of equal length that are run at once.

    Returns:
        A Dataset along ``feature`` and ``prompt``: `score`, nats per token; `score_se`, the
        standard error over the text's tokens, as if these were independent (they are not quite: it
        is too small); `total`, nats; `log_probability`, nats per token under the feature alone.
        Along ``pos``, too: `token_score`, nats, NaN after the end; its sum is `total`. With
        controls, `control_score` (feature, control, prompt), against what the feature is held
        against. Coordinates: ``token`` (prompt, pos), ``length`` and ``prompt_text``.

    Raises:
        ValueError: No texts or features, empty ones or ones that are too long; a prefix that ends
            in white space; edits that do not fit; ``"others"`` with a single feature; controls of
        edits (`mlp_interp.steering.random_direction` makes those).

    References:
        Brown et al., "Language Models are Few-Shot Learners", 2020, section 2.4: completions scored
        by ``p(completion | context) / p(completion | another context)``.

    Example:
        >>> from mlp_interp import load_model
        >>> texts = ["The rook took the pawn.", "The goalie stopped the puck."]
        >>> found = self_score(load_model("nano"), texts, "Topic: chess.")
        >>> found.score.dims, bool(found.score[0, 0] > found.score[0, 1])
        (('feature', 'prompt'), True)
    """
    check_counts(batch_size=batch_size)
    sides = sides_of(model, features)
    other = None if against == OTHERS else side_of(model, against, what="against")
    if other is None and len(sides) < 2:
        raise ValueError(f"against='others' with the one feature {[*sides]}; wanted two or more")
    random = random_sides(model, sides, controls, seed)
    read = bare_texts(model, texts, separator=separator)
    runner = Runner.of(model)
    check_lengths(runner.weights, read, sides if other is None else {**sides, "": other})
    mine = np.stack([log_probabilities(runner, read, side, batch_size) for side in sides.values()])
    if other is None:
        theirs = _of_others(mine)
    else:
        theirs = log_probabilities(runner, read, other, batch_size)[None]
    found = _result(model, read, sides, mine, mine - theirs)
    if controls:
        drawn = [[log_probabilities(runner, read, s, batch_size) for s in row] for row in random]
        of_text = np.nanmean(np.array(drawn) - theirs[:, None], -1)
        found["control_score"] = variable(
            ("feature", "control", "prompt"), of_text, unit="nats per token", long_name="random"
        )
    return found.assign_attrs(
        against="all other features, equally likely" if other is None else other.about,
        separator=separator,
        seed=seed,
        data=getattr(texts, "attrs", {}).get("data", read.about),
        engine=runner.forward.engine,
    )


@torch.no_grad()
def log_probabilities(
    runner: Runner, texts: Texts, side: Side, batch_size: int
) -> Float[np.ndarray, "text pos"]:
    """Log-probability of every token of texts, nats; NaN after the end."""
    found = np.full((len(texts), max(map(len, texts.rows))), np.nan)
    for part, tokens, _ in texts.batches(batch_size):
        context = torch.tensor(side.context).expand(len(part), -1)
        run = runner.run(
            torch.cat([context, tokens], 1).to(runner.weights.device), edits=side.edits
        )
        final = run.final[:, len(side.context) - 1 : -1]
        loss = clean_loss(runner.unembed, final, tokens.to(final.device))
        found[part, : tokens.shape[1]] = -to_numpy(loss.double())
    return found


def _of_others(found: Float[np.ndarray, "feature text pos"]) -> np.ndarray:
    """Log-probabilities of tokens under the mixture of all other features.

    What the mixture says of a token depends on how well each feature did until there.
    """
    until = np.nancumsum(found, -1)
    others = [np.delete(until, n, axis=0) for n in range(len(found))]
    mixed = np.stack([np.logaddexp.reduce(rest, 0) - np.log(len(rest)) for rest in others])
    return np.where(np.isnan(found), np.nan, np.diff(mixed, axis=-1, prepend=0.0))


def _result(
    model: Model,
    texts: Texts,
    sides: Mapping[str, Side],
    mine: np.ndarray,
    scores: np.ndarray,
) -> xr.Dataset:
    """Scores by token and by text."""
    lengths = np.array([len(row) for row in texts.rows])
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nanmean(scores, -1)
        spread = np.nansum((scores - mean[..., None]) ** 2, -1)
        error = np.sqrt(spread / (lengths - 1) / lengths)  # of a single token: 0 / 0
    by_text, by_token = ("feature", "prompt"), ("feature", "prompt", "pos")
    tokenizer: Any = getattr(model, "tokenizer", None)
    longest = scores.shape[-1]
    token = [token_strings(tokenizer, [*row]) + [""] * (longest - len(row)) for row in texts.rows]
    return xr.Dataset(
        {
            "score": variable(by_text, mean, unit="nats per token", long_name="feature's score"),
            "score_se": variable(
                by_text, error, unit="nats per token", long_name="standard error over tokens"
            ),
            "total": variable(by_text, np.nansum(scores, -1), unit="nats", long_name="in all"),
            "log_probability": variable(
                by_text, np.nanmean(mine, -1), unit="nats per token", long_name="under the feature"
            ),
            "token_score": variable(by_token, scores, unit="nats", long_name="score of a token"),
        },
        coords={
            "feature": strings([*sides]),
            "about": ("feature", strings([side.about for side in sides.values()])),
            "prompt": np.arange(len(texts)),
            "pos": np.arange(longest),
            "token": (("prompt", "pos"), strings(token)),
            "length": ("prompt", lengths),
            "prompt_text": ("prompt", strings([decode(tokenizer, [*row]) for row in texts.rows])),
        },
        attrs={
            **describe(model),
            "analysis": "self-scoring",
            "long_name": "how much likelier texts are under a feature",
            "unit": "nats per token",
            "exact": 1,
            "errors": "standard error over the tokens of a text, taken for independent",
        },
    )
