"""What somebody wants read: tokens, positions, layers and targets, checked before anything runs."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mlp_interp.models import Weights, forward_of
from mlp_interp.models.from_end import check_from_end
from mlp_interp.models.padding import Padded, Padding, padding_in, places
from mlp_interp.models.protocol import Model
from mlp_interp.prompts import Contrast
from mlp_interp.prompts.single import one_each
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.runs import Run

__all__ = ["Asked", "texts_and_run", "texts_of"]


def texts_and_run(model: Model, tokens: Any, attention_mask: Any = None) -> tuple[Padded, Run]:
    """The tokens that were given in any of the ways to give some, and a run of them.

    Raises:
        ValueError: They are not tokens of this model, or a run of another.
    """
    weights = Weights.of(model)
    if isinstance(tokens, Run):
        run = Run.of_cache(model, tokens)
        shape = (run.batch, run.length)
        padding = padding_in(weights, run, shape, attention_mask=attention_mask)
        attrs = {"data": f"a run of {shape[0]} x {shape[1]} tokens"}
        return Padded(run.tokens, padding, attrs), run
    padded = texts_of(model, tokens, attention_mask)
    return padded, Run.record(forward_of(model), weights.checked(padded.tokens))


def texts_of(model: Model, tokens: Any, attention_mask: Any = None) -> Padded:
    """Texts, tokens, a corpus, or the clean side of a contrast.

    Raises:
        ValueError: They are not tokens of this model.
    """
    if not isinstance(tokens, Contrast):
        return padded_texts(model, tokens, attention_mask)
    if attention_mask is not None:
        raise ValueError("attention_mask beside a Contrast, whose lengths are known; wanted None")
    return _clean(model, tokens)


def _clean(model: Model, contrast: Contrast) -> Padded:
    """The clean side of a contrast."""
    Weights.of(model).checked(contrast.clean_tokens)
    padding = None
    if contrast.lengths is not None:
        at = torch.arange(contrast.clean_tokens.shape[1])
        padding = Padding(at < contrast.lengths[:, None].cpu(), "lengths of the contrast's prompts")
        check_from_end(model, str(padding))
    return Padded(contrast.clean_tokens, padding, dict(contrast.attrs))


@dataclass(frozen=True, eq=False)
class Asked:
    """The positions of texts that are read, and the tokens asked about.

    Attributes:
        padded: The texts.
        positions: Which positions.
        mask: At which of them each text is meant; None for everywhere.
        targets: Tokens to ask about at every position of a text, by name.
    """

    padded: Padded
    positions: tuple[int, ...]
    mask: Bool[Tensor, "batch chosen"] | None
    targets: dict[str, Int[Tensor, " batch"]]

    @classmethod
    def of(
        cls, weights: Weights, padded: Padded, positions: Any, tokens: Any, targets: Any
    ) -> "Asked":
        """Check positions and targets.

        Raises:
            ValueError: A position that no text has, or targets that are not one token each.
        """
        n, length = padded.tokens.shape
        chosen, mask = places(positions, length, padded.real)
        named: dict[str, Any] = {}
        if targets is not None:
            named["target"] = one_each(weights, targets, n, "targets")
        elif isinstance(tokens, Contrast):
            named = {"target": tokens.answers, "foil": tokens.foils}
        return cls(padded, chosen, mask, named)

    def rows(self) -> tuple[Tensor, Tensor]:
        """Which text, and which of the chosen positions, for every place that is read."""
        shape = len(self.padded.tokens), len(self.positions)
        mask = torch.ones(shape, dtype=torch.bool) if self.mask is None else self.mask.cpu()
        text, place = mask.nonzero(as_tuple=True)
        return text, place
