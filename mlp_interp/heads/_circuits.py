"""The two circuits of each head of a layer as cores of the size of the head."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.heads._spectra import elsewhere, signs
from mlp_interp.heads._turns import rotations
from mlp_interp.heads._vocabulary import Vocabulary
from mlp_interp.models.heads import Heads

__all__ = ["Circuits"]

_DRAWS = 24
"""Random matrices for each layer's chance level."""
_TOKENS = 1024
"""Tokens whose own entries are compared with the others of their rows."""


@dataclass(frozen=True)
class Circuits:
    """OV and QK circuits of one layer's heads.

    The OV table of a head has, for each token attended to, the change of each token's logit:
    ``X V O W'``, with rows ``X`` what stands for tokens and ``W'`` the readout, both less their
    means over tokens; the QK table has the scores ``X Q R K^T X^T``. Neither is ever made: what is
    asked of them are eigenvalues, means and variances, which cores and covariances give.

    Attributes:
        heads: The layer's.
        vocabulary: The tokens.
        seed: Of chance levels and of the tokens that are looked at.
    """

    heads: Heads
    vocabulary: Vocabulary
    seed: int

    def copying(self) -> tuple[Tensor, Tensor, float]:
        """Sum of the OV eigenvalues and share of negative ones (`signs`); chance's deviation."""
        moved = self.heads.O @ self.vocabulary.moments(self.heads.layer).readout.to(self.heads.O)
        return *signs((moved @ self.heads.V).double()), self._chance(moved, self.heads.V)

    def duplicates(self) -> tuple[Tensor, float]:
        """Sum of the QK eigenvalues of tokens with themselves; chance's standard deviation."""
        covariance = self.vocabulary.moments(self.heads.layer).covariance.to(self.heads.Q)
        between = rotations(self.heads, None).mean(0).to(covariance)
        met = between @ self.heads.K.mT @ covariance
        return signs((met @ self.heads.Q).double())[0], self._chance(met, self.heads.Q)

    def copying_z(self) -> Float[Tensor, " head"]:
        """How far tokens' own logits stand out of their rows of the OV table, in deviations.

        The mean over some tokens; each row's mean and variance are over all tokens of the
        `vocabulary`, which may be a sample.
        """
        vocabulary, layer = self.vocabulary, self.heads.layer
        some = vocabulary.drawn(_TOKENS, self.seed)
        rows = vocabulary.rows(layer, some) @ self.heads.V  # [head, token, d_head]
        O = self.heads.O  # noqa: E741
        written = vocabulary.directions_of(some, self.seed) @ O.mT
        mean = vocabulary.directions_mean().to(O) @ O.mT
        spread = O @ vocabulary.directions_covariance().to(O) @ O.mT
        own = (rows * (written - mean[:, None])).sum(-1)
        deviation = (rows @ spread * rows).sum(-1).clamp_min(0).sqrt()
        return (own / deviation.clamp_min(torch.finfo(deviation.dtype).tiny)).mean(-1)

    def copying_top(self) -> Float[Tensor, " head"]:
        """Share of the vocabulary's tokens whose own logit is the largest of all logits.

        A sample is one of rows: each of them is compared with the logits of all tokens.
        """
        vocabulary, layer = self.vocabulary, self.heads.layer
        tokens, found = vocabulary.streams.tokens, []
        readout = vocabulary.unembed.weight.to(self.heads.O)
        for O, V in zip(self.heads.O, self.heads.V, strict=True):  # noqa: E741
            columns, right = O @ readout, 0
            for some in torch.arange(len(tokens), device=columns.device).split(_TOKENS):
                rows = vocabulary.rows(layer, some) @ V
                right += int(((rows @ columns).argmax(-1) == tokens[some]).sum())
            found.append(right / len(tokens))
        return torch.tensor(found, dtype=torch.float64)

    def _chance(self, left: Float[Tensor, "head k d_model"], right: Tensor) -> float:
        """Deviation of `signs` where the right side points somewhere else, equally stretched."""
        generator = torch.Generator().manual_seed(self.seed + self.heads.layer)
        drawn = elsewhere(self.heads.weights.norm, right, _DRAWS, generator)
        which = torch.arange(_DRAWS) % len(left)
        return float(signs((left[which] @ drawn).double())[0].square().mean().sqrt())
