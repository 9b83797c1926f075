"""By how much the lists that a model makes over a corpus lead: gaps between its ranks."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.corpus.reducers import Batch, Reducer, Shape, State
from mlp_interp.models import Unembed
from mlp_interp.results import single, to_numpy

__all__ = ["OwnGaps"]

_ROOM = 2**22  # logits in memory
_EDGES = 10.0 ** torch.arange(-6, 4 + 1e-9, 1 / 100, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class OwnGaps(Reducer):
    """Counts of the gap between a model's `k`-th and next logit, sorted by size.

    Args:
        sizes: The `k`.
        exclude: Ids of tokens that are in no list.
        first: Position from which on tokens count.
    """

    sizes: tuple[int, ...]
    exclude: tuple[int, ...] = ()
    first: int = 1
    wants_final: bool = True
    takes_padding: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Gaps."""
        return "own gaps"

    def empty(self, shape: Shape) -> State:
        """Counts of zero."""
        return {"count": torch.zeros(len(self.sizes), len(_EDGES) + 1, dtype=torch.int64)}

    def finish(self, state: State, batch: Batch) -> None:
        """Sort the gaps of a batch."""
        unembed: Unembed = batch.readout()
        if batch.final is None:
            raise ValueError("the final stream is not there; wanted wants_final")
        for rows in batch.rows(batch.final, self.first):
            for some in rows.split(max(1, _ROOM // unembed.d_vocab)):
                found = torch.bucketize(self._gaps(unembed, some).double().cpu(), _EDGES)
                for n, places in enumerate(found.T):
                    state["count"][n] += places.bincount(minlength=len(_EDGES) + 1)

    def result(self, state: State, shape: Shape) -> xr.Dataset:
        """The counts, with the edges of the bins: what `reducers.quantiles` reads."""
        edges = torch.cat([-torch.ones(1) * torch.inf, _EDGES, torch.ones(1) * torch.inf])
        low, high = to_numpy(edges[:-1]), to_numpy(edges[1:])
        counts = ("k", "bin"), to_numpy(state["count"]), {"unit": "count"}
        coords = {"k": list(self.sizes), "low": ("bin", low), "high": ("bin", high)}
        return xr.Dataset({"count": counts}, coords, {"unit": "logits"})

    def _gaps(
        self, unembed: Unembed, stream: Float[Tensor, "token d_model"]
    ) -> Float[Tensor, "token k"]:
        """Of logits before a cap, as margins are."""
        logits = single(unembed.normalize(stream) @ unembed.weight + unembed.bias)
        logits[:, list(self.exclude)] = -torch.inf
        top = logits.topk(max(self.sizes) + 1).values
        sizes = torch.tensor(self.sizes, device=top.device)
        return top[:, sizes - 1] - top[:, sizes]
