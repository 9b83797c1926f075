"""Texts of random tokens that come twice, and the same without the repetition."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from mlp_interp.models import Weights
from mlp_interp.models.indices import count
from mlp_interp.models.options import checked_seed
from mlp_interp.models.padding import first_token
from mlp_interp.prompts.tokenizing import ordinary_ids

__all__ = ["Repeated"]

_CONTROLS = 8
"""One text without repetition for so many with it, and so many at least: few differ widely."""


@dataclass(frozen=True)
class Repeated:
    """Random tokens, all different, that come twice in the same order.

    Attributes:
        tokens: A BOS where the model has one, then the tokens, then the tokens again.
        controls: As long, and no token twice.
        start: Position of the first token after BOS.
        period: Distance of a token and its repetition.
    """

    tokens: Int[Tensor, "batch pos"]
    controls: Int[Tensor, "control pos"]
    start: int
    period: int

    @classmethod
    def of(cls, weights: Weights, n: int, period: int, seed: int) -> "Repeated":
        """Draw `n` texts.

        Raises:
            ValueError: A number below 1, or a period that does not fit twice into the context or
                whose double is more than the vocabulary has.
        """
        count("n", n)
        bos, known = first_token(weights.model), torch.tensor(ordinary_ids(weights.model))
        context = int(weights.model.cfg.n_ctx)
        most = min((context - (bos is not None)) // 2, len(known) // 2)
        count("period", period, least=2, most=most, hint=": it must fit twice into the context")
        generator = torch.Generator().manual_seed(checked_seed(seed))
        orders = [
            torch.randperm(len(known), generator=generator)[: 2 * period]
            for _ in range(n + max(_CONTROLS, n // _CONTROLS))
        ]
        drawn = known[torch.stack(orders)]
        once = drawn[:n, :period]
        begin = [] if bos is None else [bos]
        texts = [
            torch.cat([torch.tensor(begin, dtype=torch.int64).expand(len(x), -1), x], dim=1)
            for x in (torch.cat([once, once], dim=1), drawn[n:])
        ]
        device = weights.device
        return cls(texts[0].to(device), texts[1].to(device), len(begin), period)
