"""What the final norm leaves of a stream, and what the readout makes of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from mlp_interp.models import Unembed, Weights
from mlp_interp.models.indices import each
from mlp_interp.models.protocol import Model
from mlp_interp.models.scan import scan
from mlp_interp.prompts.single import token_id
from mlp_interp.results import single, to_numpy

__all__ = ["Readout"]


@dataclass(frozen=True)
class Readout:
    """``n W' + b'`` for all ``n`` that a final norm can give: a ball of radius ``sqrt(d_model)``.

    Vectors here are in units of that radius, so that ``|n| <= 1`` and rows of ``W'`` are longer by
    it: their products are logits.

    Attributes:
        unembed: The folded readout.
        rivals: Which tokens can get in a set's way: all but those excluded.
        bias: ``b'`` in float64.
        longest: The longest row: no logit less its bias is larger.
    """

    unembed: Unembed
    rivals: np.ndarray
    bias: Float[np.ndarray, " d_vocab"]
    longest: float

    @classmethod
    def of(cls, model: Model, exclude: int | str | Sequence[int | str] = ()) -> "Readout":
        """The readout of a model.

        Raises:
            ValueError: The model has no final norm, or is refused by `Unembed.of`; or tokens to
                exclude that it does not have.
        """
        unembed = Unembed.of(model)
        if unembed.norm.kind == "none":
            raise ValueError(
                f"model={model.cfg.model_name!r} has no final norm, so that nothing bounds its "
                "logits; wanted one with LayerNorm or RMSNorm"
            )
        rivals = np.ones(unembed.d_vocab, dtype=bool)
        weights = Weights.of(model)
        excluded = [token_id(weights, one, name="exclude") for one in each(exclude)]
        if len(set(excluded)) < len(excluded):
            raise ValueError(f"exclude={excluded}; wanted each token once")
        rivals[excluded] = False
        bias = to_numpy(unembed.bias).astype(np.float64)
        radius = unembed.weight.shape[0] ** 0.5
        return cls(unembed, rivals, bias, radius * float(single(unembed.squares).max().sqrt()))

    @property
    def radius(self) -> float:
        """Length of the longest normalised stream."""
        return self.unembed.weight.shape[0] ** 0.5

    @property
    def dimension(self) -> int:
        """Of the ball: a LayerNorm leaves no mean."""
        return self.unembed.weight.shape[0] - (self.unembed.norm.kind == "layer")

    @property
    def error(self) -> float:
        """By how much a product of `scores` can be wrong, at the very worst."""
        precision = torch.finfo(single(self.unembed.bias).dtype).eps
        return 2 * precision * (self.longest * len(self.unembed.weight) + np.abs(self.bias).max())

    def rows(self, tokens: Int[np.ndarray, " token"]) -> Float[np.ndarray, "token d_model"]:
        """Rows of ``W'`` in float64."""
        columns = self.unembed.directions(torch.from_numpy(tokens)).double()
        return self.radius * to_numpy(self.unembed.norm.keep(columns))

    def middle(self) -> Float[np.ndarray, " d_model"]:
        """The mean row."""
        mean = single(self.unembed.weight).mean(1).double()
        return self.radius * to_numpy(self.unembed.norm.keep(mean))

    def scores(self, n: Float[np.ndarray, "set d_model"]) -> np.ndarray:
        """Logits of all tokens, in the precision of the weights but not below float32."""
        weight, bias = self.unembed.weight, single(self.unembed.bias)
        vectors = (self.radius * torch.from_numpy(n)).to(bias)
        logits = bias.new_empty(len(n), self.unembed.d_vocab)
        for tokens, products in scan(weight, vectors[:, None], vectors.new_zeros(len(n), 1)):
            for some, product in products:
                torch.add(product[:, 0], bias[tokens], out=logits[some, tokens])
        return logits.cpu().numpy()
