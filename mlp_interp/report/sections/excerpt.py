"""Where in the text does each sub-update matter?"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from markupsafe import Markup

from mlp_interp import views
from mlp_interp.ablation import ablate_total
from mlp_interp.models import Weights
from mlp_interp.report.progress import passes
from mlp_interp.report.section import Block, Section, Work

__all__ = ["EXCERPT", "Excerpt"]

TOKENS = 160


@dataclass(frozen=True)
class Excerpt:
    """A piece of the corpus with the effect of sub-updates on the prediction of each token.

    Attributes:
        tokens: The tokens as text.
        effects: Rise of the loss at each token when a sub-update is removed in the forward pass,
            [component, pos]; the first token is never predicted and has 0.
    """

    tokens: list[str]
    effects: xr.DataArray


def _compute(work: Work) -> Excerpt:
    """The first sequence, aligned with the token that is predicted, not with what predicts it."""
    tokens = work.corpus.tokens[:1, :TOKENS]
    found = ablate_total(work.model, tokens)["delta_loss"].isel(prompt=0)
    found = found.transpose("component", "pos")
    length = tokens.shape[1]
    aligned = np.zeros(found.shape)
    aligned[:, 1:] = found.values[:, : length - 1]
    effects = found.copy(data=aligned).assign_attrs(
        unit="nats", long_name="rise of the token's loss"
    )
    return Excerpt(work.corpus.token_text(0)[:length], effects)


def _cost(work: Work) -> float:
    tokens = min(TOKENS, work.corpus.tokens.shape[1])
    groups = 2 * Weights.of(work.model).n_layers
    return passes(work.model, groups, 1) * tokens / work.corpus.tokens.numel()


def _show(found: Excerpt) -> dict[str, Any]:
    effects = found.effects
    strongest = str(effects["component"].values[int(np.argmax(effects.values.mean(1)))])
    view = views.token_values(
        found.tokens,
        dict(zip(map(str, effects["component"].values), effects.values, strict=True)),
        chosen=strongest,
        unit="nats",
    )
    caption = (
        "Choose a sub-update. A token is blue where removing it from the forward pass, so that "
        "later layers react, makes the model expect the token less, and red where more: the rise "
        "of the token's loss, up to the legend's largest."
    )
    return {
        "heading": "Where in the text do they matter?",
        "blocks": [Block(caption, html=Markup(view.fragment()))],
    }


EXCERPT = Section(
    name="excerpt",
    title="In the text",
    compute=_compute,
    show=_show,
    parts=lambda found: {"": found.effects},
    cost=_cost,
)
