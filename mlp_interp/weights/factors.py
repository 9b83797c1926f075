"""Matrices between tokens and neurons as two thin factors, which are never multiplied out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.models import Weights
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.reading import texts
from mlp_interp.sites import Site

__all__ = ["Ends", "Factors"]


@dataclass(frozen=True)
class Ends:
    """What the rows, or columns, of a matrix are.

    Attributes:
        kind: ``"token"``, ``"neuron"`` or ``"latent"``, of a dictionary.
        ids: Token ids, or numbers of neurons or latents.
        layer: Of these.
    """

    kind: Literal["token", "neuron", "latent"]
    ids: Int[Tensor, " end"]
    layer: int | None = None

    def labels(self, model: Model, ids: np.ndarray) -> np.ndarray:
        """How those with these ids read: tokens as text, others as ``L3N669``."""
        if self.kind == "token":
            return texts(model, ids)
        name = "post" if self.kind == "neuron" else "latents"
        flat = [Site(name, self.layer, neuron=int(i)).label for i in ids.ravel()]
        return np.array(flat, dtype=object).reshape(ids.shape)


@dataclass(frozen=True)
class Factors:
    """A matrix ``left @ right.T``, with what it says.

    Attributes:
        left: One row for each row.
        right: One row for each column.
        rows: What its rows are.
        columns: What its columns are.
        attrs: Unit, ``exact``, ``approximation`` where it is not, and what else results say.
    """

    left: Float[Tensor, "row inner"]
    right: Float[Tensor, "column inner"]
    rows: Ends
    columns: Ends
    attrs: dict[str, Any]

    def shifted(self, by_column: Float[Tensor, " column"]) -> "Factors":
        """With a number for each column added to its entries."""
        ones = torch.ones_like(self.left[:, :1])
        return replace(
            self,
            left=torch.cat([self.left, ones], dim=1),
            right=torch.cat([self.right, by_column[:, None]], dim=1),
        )

    @property
    def transposed(self) -> "Factors":
        """The same the other way round."""
        return replace(self, left=self.right, right=self.left, rows=self.columns, columns=self.rows)

    def of_rows(self, places: Sequence[int] | Tensor) -> "Factors":
        """Some of the rows."""
        at = torch.as_tensor(places, device=self.left.device, dtype=torch.int64)
        rows = replace(self.rows, ids=self.rows.ids[at])
        return replace(self, left=self.left[at], rows=rows)

    @property
    def centred(self) -> "Factors":
        """Less the means of rows and columns: what depends on both."""
        return replace(
            self, left=self.left - self.left.mean(0), right=self.right - self.right.mean(0)
        )

    @property
    def moments(self) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
        """Mean and standard deviation over the columns of each row, in closed form."""
        right = self.right.double()
        mean = right.mean(0)
        spread = (right - mean).T @ (right - mean) / len(right)
        left = self.left.double()
        return left @ mean, ((left @ spread) * left).sum(1).clamp_min(0).sqrt()

    @property
    def diagonal(self) -> Float[Tensor, " row"] | None:
        """The entries in which row and column are the same token; None where some have none."""
        if self.rows.kind != "token" or self.columns.kind != "token":
            return None
        order = self.columns.ids.argsort()
        at = torch.searchsorted(self.columns.ids[order], self.rows.ids)
        column = order[at.clamp_max(len(order) - 1)]
        if not torch.equal(self.columns.ids[column], self.rows.ids):
            return None
        return (self.left * self.right[column]).sum(1)


def every(size: int, weights: Weights) -> Int[Tensor, " end"]:
    """All ids of so many."""
    return torch.arange(size, device=weights.device)
