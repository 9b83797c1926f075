"""Second moments of the streams over a corpus, and the lenses that follow from them."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.corpus.reducers import Batch, Reducer, Shape, State
from mlp_interp.results import to_numpy
from mlp_interp.sites import Site

__all__ = ["StreamMoments", "solved"]


@dataclass(frozen=True, kw_only=True)
class StreamMoments(Reducer):
    """Means of the streams, and how each goes with itself and with the final one.

    Streams are as the final norm keeps them. Products are summed in double precision.

    Args:
        ahead: By how many positions the final stream stands later.
        first: Position from which on tokens count.
        products: Whether products are wanted, beside the means.
    """

    ahead: int = 0
    first: int = 1
    products: bool = True
    wants_final: bool = True
    takes_padding: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """What it sums up."""
        return "stream moments"

    def sites(self, shape: Shape) -> tuple[Site, ...]:
        """The stream at every block's input."""
        return tuple(Site("resid_pre", layer) for layer in range(shape.n_layers))

    def empty(self, shape: Shape) -> State:
        """Sums of nothing."""
        sizes = shape.n_layers + 1, shape.d_model
        double = torch.float64
        state = {
            "count": torch.zeros((), dtype=torch.int64),
            "sum": torch.zeros(sizes, dtype=double),
            "target": torch.zeros(shape.d_model, dtype=double),
        }
        if self.products:
            square = (*sizes, shape.d_model)
            state |= {n: torch.zeros(square, dtype=double) for n in ("square", "cross")}
        return state

    def see(self, state: State, site: Site, x: Tensor, batch: Batch) -> None:
        """Keep a stream until the final one is there."""
        batch.notes["stream", site.layer] = x

    def finish(self, state: State, batch: Batch) -> None:
        """Add a batch."""
        keep = batch.weights.final_norm.keep
        length = batch.tokens.shape[1] - self.ahead
        counts = batch.counts(self.first)[:, :length].clone()
        if batch.real is not None:
            counts &= batch.real[:, self.ahead :]
        final = batch.final
        if final is None or length < 1:
            return
        y = keep(final[:, self.ahead :][counts].double())
        state["count"] += len(y)
        state["target"] += y.sum(0).cpu()
        for layer in range(len(state["sum"])):
            stream = batch.notes.get(("stream", layer), final)
            x = keep(stream[:, :length][counts].double())
            state["sum"][layer] += x.sum(0).cpu()
            if self.products:
                state["square"][layer] += (x.T @ x).cpu()
                state["cross"][layer] += (x.T @ y).cpu()

    def result(self, state: State, shape: Shape) -> xr.Dataset:
        """The moments about zero, each a mean over tokens."""
        count = state["count"].clamp_min(1)
        dims = {
            "sum": ("layer", "d_model"),
            "target": ("d_model",),
            "square": ("layer", "d_model", "other"),
            "cross": ("layer", "d_model", "other"),
        }
        found = {n: (dims[n], to_numpy(x / count)) for n, x in state.items() if n != "count"}
        return xr.Dataset(found, attrs={"tokens": int(state["count"])})


def solved(
    square: Float[Tensor, "d_model d_model"],
    cross: Float[Tensor, "d_model d_model"],
    x: Float[Tensor, " d_model"],
    y: Float[Tensor, " d_model"],
    ridge: float,
) -> tuple[Float[Tensor, "d_model d_model"], Float[Tensor, " d_model"]]:
    """The affine map with the least mean square error, its matrix and what it adds.

    Args:
        square: Mean of products of the input with itself.
        cross: Mean of products of input and output.
        x: Mean input.
        y: Mean output.
        ridge: What is added to the variances, as a share of their mean.

    Example:
        >>> x = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> y = 2 * x + 1
        >>> weight, bias = solved(x.T @ x / 50, x.T @ y / 50, x.mean(0), y.mean(0), 0.0)
        >>> bool(
        ...     torch.allclose(weight, 2 * torch.eye(3, dtype=x.dtype)) and (bias - 1).norm() < 1e-9
        ... )
        True
    """
    covariance, shared = square - torch.outer(x, x), cross - torch.outer(x, y)
    added = ridge * covariance.diagonal().mean()
    weight = torch.linalg.solve(covariance + added * torch.eye(len(x)).to(covariance), shared)
    return weight, y - x @ weight
