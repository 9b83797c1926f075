"""Where an input may lie: free positions after a prompt, tokens or vectors of tokens' lengths."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.models import Forward, HookForward
from mlp_interp.models.norm import Norm
from mlp_interp.neurons.inputs.vectors import placed
from mlp_interp.results import single

__all__ = ["Space"]

_TYPICAL = (0.05, 0.95)
"""Quantiles of the tokens' norms: rare and untrained tokens have odd ones."""


@dataclass(frozen=True)
class Space:
    """The inputs among which one is searched for.

    Attributes:
        forward: The forward pass.
        prompt: What stands before the free positions, ``[1, pos]``; it may be empty.
        vocabulary: Tokens to choose among.
        length: Free positions.
    """

    forward: Forward | HookForward
    prompt: Int[Tensor, "1 pos"]
    vocabulary: Int[Tensor, " candidate"]
    length: int

    @cached_property
    def rows(self) -> Float[Tensor, "candidate d_model"]:
        """Embeddings of the vocabulary, as the norms keep them."""
        embeddings = self.forward.embeddings()
        return single(self.norm.keep(embeddings[self.vocabulary.to(embeddings.device)]))

    @property
    def norm(self) -> Norm:
        """The model's: its LayerNorms, if it has those, see no mean over ``d_model``."""
        return self.forward.weights.norm

    @cached_property
    def norms(self) -> tuple[float, float, float]:
        """Mean of the tokens' norms, and the lowest and highest that a free vector may have."""
        sizes = self.rows.norm(dim=-1).sort().values
        low, high = (float(sizes[round(q * (len(sizes) - 1))]) for q in _TYPICAL)
        return float(sizes.mean()), low, high

    def start_tokens(self, restarts: int, seed: int) -> Int[Tensor, "restart pos"]:
        """Random tokens to begin with, as indices of the vocabulary."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(len(self.vocabulary), (restarts, self.length), generator=generator)

    def start_vectors(self, restarts: int, seed: int) -> Float[Tensor, "restart pos d_model"]:
        """Random vectors to begin with, spread as the tokens' embeddings are.

        Not tokens' embeddings themselves: what is near those at the start stays near them in many
        dimensions, and would be reported as near the optimum.
        """
        generator = torch.Generator().manual_seed(seed)
        shape = (restarts, self.length, len(self.rows))
        mixture = torch.randn(shape, generator=generator, dtype=torch.float32).to(self.rows)
        mixed = mixture @ (self.rows - self.rows.mean(0))
        return mixed * (self.norms[0] / mixed.norm(dim=-1, keepdim=True))

    def texts(self, indices: Int[Tensor, "row pos"]) -> Int[Tensor, "row all_pos"]:
        """Whole texts, of indices of the vocabulary at the free positions."""
        tokens = self.vocabulary[indices.cpu()].to(self.prompt.device)
        return torch.cat((self.prompt.expand(len(tokens), -1), tokens), 1)

    def stream(
        self, vectors: Float[Tensor, "row pos d_model"]
    ) -> Float[Tensor, "row all_pos d_model"]:
        """The stream before the first block, of vectors at the free positions."""
        vectors = placed(
            self.forward.weights,
            vectors.to(self.forward.weights.dtype),
            self.prompt.shape[1],
        )
        if not self.prompt.shape[1]:
            return vectors
        before = self.forward.embed(self.prompt).expand(len(vectors), -1, -1)
        return torch.cat((before, vectors), 1)

    def project(
        self, vectors: Float[Tensor, "row pos d_model"]
    ) -> Float[Tensor, "row pos d_model"]:
        """The nearest vectors with nothing that norms take out, and of lengths that tokens have."""
        vectors = self.norm.keep(vectors)
        sizes = vectors.norm(dim=-1, keepdim=True)
        _, low, high = self.norms
        return vectors * (sizes.clamp(low, high) / sizes.clamp_min(torch.finfo(sizes.dtype).tiny))

    def distance(self, vectors: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos"]:
        """Squared distance to the nearest token's embedding, over the squared mean norm."""
        with torch.no_grad():
            # |v - e|^2 less |v|^2, which is the same for all tokens
            apart = self.rows.square().sum(-1) - 2 * (self.norm.keep(vectors) @ self.rows.T)
            near = self.rows[apart.argmin(-1)]
        return (self.norm.keep(vectors) - near).square().sum(-1) / self.norms[0] ** 2
