"""How close streams are to the embeddings of tokens."""

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.lens.asked import Asked
from mlp_interp.models import Weights, forward_of
from mlp_interp.models.norm import Norm
from mlp_interp.models.scan import blocks, together
from mlp_interp.results import single, to_numpy
from mlp_interp.runs import Run

__all__ = ["Embedding"]


@dataclass(frozen=True)
class Embedding:
    """What each token begins its stream with, as the blocks' norms see it.

    Attributes:
        rows: The embeddings.
        norm: What is kept of them, and of streams.
    """

    rows: Float[Tensor, "token d_model"]
    norm: Norm

    @classmethod
    def of(cls, weights: Weights) -> "Embedding":
        """A model's.

        Raises:
            ValueError: The model begins its stream with other vectors than rows of ``W_E``.
        """
        return cls(forward_of(weights.model).embeddings(), weights.final_norm)

    def _directions(self, tokens: slice | Tensor) -> Float[Tensor, "some d_model"]:
        """Unit vectors of some tokens; zero where nothing is left of one."""
        rows = self.norm.keep(single(self.rows[tokens]))
        return torch.nn.functional.normalize(rows, dim=-1, eps=1e-12)

    @torch.no_grad()
    def closeness(
        self, streams: Float[Tensor, "row d_model"], own: Int[Tensor, " row"]
    ) -> tuple[Float[Tensor, " row"], Int[Tensor, " row"]]:
        """Cosine with the embedding of one token each, and how many tokens have a larger one."""
        x = torch.nn.functional.normalize(self.norm.keep(single(streams)), dim=-1, eps=1e-12)
        cosine = (x * self._directions(own)).sum(-1)
        closer = torch.zeros_like(own)
        for block in blocks(len(self.rows)):
            larger = x @ self._directions(block).T > cosine[:, None]
            here = (own >= block.start) & (own < block.stop)
            larger[here, own[here] - block.start] = False  # whatever rounding makes of it
            closer += larger.sum(-1)
        return cosine, closer

    def added(self, found: xr.Dataset, run: Run, asked: Asked) -> xr.Dataset:
        """A result with ``cosine_input`` and ``rank_embedding``."""
        dims = ("prompt", "layer", "pos")
        shape = tuple(found.sizes[dim] for dim in dims)
        cosines = np.full(shape, np.nan, dtype=np.float32)
        ranks = cosines.copy()
        texts, places = asked.rows()
        positions = torch.tensor(asked.positions)[places]
        for column, layer in enumerate(found["layer"].values.tolist()):
            for some in torch.arange(len(texts)).split(together(1)):
                rows = texts[some].to(run.final.device), positions[some].to(run.final.device)
                cosine, closer = self.closeness(run.streams[layer][rows], run.tokens[rows])
                where = texts[some].numpy(), column, places[some].numpy()
                cosines[where], ranks[where] = to_numpy(cosine), to_numpy(closer)
        return found.assign(cosine_input=(dims, cosines), rank_embedding=(dims, ranks))
