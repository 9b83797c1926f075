"""Which tokens vectors raise and lower, beside what random ones of their length would."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.models import Weights
from mlp_interp.models.options import checked_count, checked_seed
from mlp_interp.models.vocabulary import Best, TokenDirections
from mlp_interp.results import single

__all__ = ["ABOUT", "Promotion"]

_VECTORS = 256  # at a time: with a piece of the vocabulary they stay in a core's cache

ABOUT = {
    "promoted_id": ("token", "tokens that it raises most"),
    "promoted_text": ("text", "tokens that it raises most"),
    "promoted_logit": ("logits", "what it adds to their logits, over the mean of all logits"),
    "promoted_random": ("logits", "the same of a random direction of its length, on average"),
    "promoted_p": ("fraction", "random directions that raise some token by as much"),
    "suppressed_id": ("token", "tokens that it lowers most"),
    "suppressed_text": ("text", "tokens that it lowers most"),
    "suppressed_logit": ("logits", "what it adds to their logits, over the mean of all logits"),
    "suppressed_random": ("logits", "the same of a random direction of its length, on average"),
    "suppressed_p": ("fraction", "random directions that lower some token by as much"),
}
"""Units and what each variable is."""


@dataclass(frozen=True)
class Promotion:
    """Reads vectors as tokens.

    Attributes:
        tokens: The readout's directions.
        k: How many tokens of each sign.
        random: The largest logits of random directions of length 1, and of their opposites.
    """

    tokens: TokenDirections
    k: int
    random: Float[Tensor, "2 draw rank"]

    @classmethod
    def of(cls, weights: Weights, k: int, controls: int, seed: int) -> "Promotion":
        """Draw random directions and read them.

        Args:
            weights: The model's.
            k: How many tokens of each sign.
            controls: How many directions.
            seed: Of the draws.

        Raises:
            ValueError: Counts or a seed that cannot be, or a readout that is not finite.
        """
        checked_count(k, weights.d_vocab, "tokens")
        checked_count(controls, 2**16, "random directions", name="controls")
        generator = torch.Generator().manual_seed(checked_seed(seed))
        drawn = torch.randn(controls, weights.d_model, generator=generator, dtype=torch.float32)
        drawn = torch.nn.functional.normalize(weights.final_norm.keep(drawn), dim=-1)
        tokens = TokenDirections.unembedding(weights)
        high, low = _extremes(tokens, drawn.to(tokens.mean), k)
        return cls(tokens, k, torch.stack([high[0], -low[0]]))

    def read(self, vectors: Float[Tensor, "vector d_model"]) -> dict[str, Tensor]:
        """Tokens, logits, and those of random directions, of vectors as the final norm keeps them.

        Directions alone are multiplied, so that tiny vectors keep their digits. A direction and its
        opposite tell the mean twice as well, but are not two draws: probabilities are of the one.
        """
        vectors = single(vectors)
        largest = vectors.abs().amax(-1, keepdim=True)  # the square of a length may be no number
        shrunk = torch.where(largest > 0, vectors / largest, 0)
        length = shrunk.norm(dim=-1, keepdim=True)
        unit = torch.where(length > 0, shrunk / length, 0)
        length = length * largest
        found: dict[str, Tensor] = {}
        sides = zip(
            ("promoted", "suppressed"), (1, -1), _extremes(self.tokens, unit, self.k), strict=True
        )
        usual = self.random.mean((0, 1))
        for own, (name, sign, (logits, ids)) in zip(self.random, sides, strict=True):
            as_large = (own[:, 0] >= sign * logits[:, :1]).sum(-1)
            found |= {
                f"{name}_id": ids,
                f"{name}_logit": logits * length,
                f"{name}_random": sign * usual * length,
                f"{name}_p": (1 + as_large) / (1 + len(own)),
            }
        return found


def _extremes(
    tokens: TokenDirections, vectors: Float[Tensor, "vector d_model"], k: int
) -> list[tuple[Tensor, Tensor]]:
    """The largest logits and whose they are, and the same of the smallest; best first."""
    found = []
    for some in vectors.split(_VECTORS):
        best = Best(k, torch.positive), Best(k, torch.neg)
        for piece, products in tokens.read(some):
            for one in best:
                one.add(piece, products)
        found.append([x for one in best for x in one.numbers_and_tokens()])
    high, highest, low, lowest = (torch.cat(x) for x in zip(*found, strict=True))
    return [(high, highest), (low, lowest)]
