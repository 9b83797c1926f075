"""How large activations are as vectors, and how well the model predicts."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from mlp_interp.corpus.reducers.base import (
    Batch,
    Reducer,
    Shape,
    SiteReducer,
    State,
    mean_and_error_of_sums,
)
from mlp_interp.results import to_numpy
from mlp_interp.sites import Site

__all__ = ["Loss", "Norms"]


@dataclass(frozen=True, kw_only=True)
class Norms(SiteReducer):
    """L2 norms of the vectors at a site: of heads where it has them, else of the whole.

    Args:
        site: As in `SiteReducer`.
        layers: As in `SiteReducer`.
        first: As in `SiteReducer`.

    Its result has ``norm`` with the standard error over sequences ``norm_se``, ``by_position``
    (mean over sequences) and ``greatest``.

    Example:
        >>> import torch
        >>> from mlp_interp import load_model
        >>> from mlp_interp.corpus import sweep
        >>> tokens = torch.arange(40).reshape(4, 10)
        >>> found = sweep(load_model("nano"), tokens, Norms(site="mlp_out"))["norms.mlp_out"]
        >>> found["norm"].dims
        ('layer',)
    """

    takes_padding: ClassVar[bool] = True

    def empty(self, shape: Shape) -> State:
        """Sums over sequences of their mean norm, and of its square."""
        size = (len(self.chosen(shape)), *self._heads(shape).values())
        zeros = {name: torch.zeros(size, dtype=torch.float64) for name in ("sum", "squares")}
        places = torch.zeros(*size, self.positions(shape), dtype=torch.float64)
        return {
            "sequences": torch.zeros((), dtype=torch.int64),
            "reached": torch.zeros(self.positions(shape), dtype=torch.int64),
            **zeros,
            "by_position": places,
            "greatest": torch.zeros(size, dtype=torch.float64),
        }

    def see(self, state: State, site: Site, x: Tensor, batch: Batch) -> None:
        """Add up the norms."""
        row = self.row(site)
        # [batch, pos, *heads]
        norms = torch.linalg.vector_norm(batch.filled(x, 0.0, self.first).float(), dim=-1)
        norms = norms.cpu().double()
        entries = batch.counted(self.first)
        each = norms.sum(1) / entries.clamp_min(1).view(-1, *[1] * (norms.ndim - 2))
        state["sum"][row] += each.sum(0)
        state["squares"][row] += each.square().sum(0)
        state["by_position"][row] += norms.sum(0).movedim(0, -1)
        state["greatest"][row] = state["greatest"][row].maximum(norms.flatten(0, 1).amax(0))

    def finish(self, state: State, batch: Batch) -> None:
        """Count the sequences."""
        state["sequences"] += len(batch.tokens)
        state["reached"] += batch.reached(self.first)

    def merge(self, state: State, later: State) -> None:
        """Sums, and the greater of the two greatest."""
        greatest = state["greatest"].maximum(later["greatest"])
        super().merge(state, later)
        state["greatest"] = greatest

    def result(self, state: State, shape: Shape) -> xr.Dataset:
        """Means and errors."""
        heads, unit = self._heads(shape), {"unit": "L2 norm"}
        mean, error = mean_and_error_of_sums(state["sum"], state["squares"], state["sequences"])
        dims = ("layer", *heads)
        by_position = state["by_position"] / state["reached"]
        variables: dict[str, Any] = {
            "norm": (dims, mean, unit),
            "norm_se": (dims, error, unit),
            "by_position": ((*dims, "pos"), to_numpy(by_position), unit),
            "greatest": (dims, to_numpy(state["greatest"]), unit),
        }
        coords = {**self.coords(shape), "pos": np.arange(self.first, shape.length)}
        attrs = {"long_name": f"norm of activations at {self.site}", "unit": "L2 norm"}
        return xr.Dataset(variables, coords=coords, attrs=attrs)

    def _heads(self, shape: Shape) -> dict[str, int]:
        return {name: n for name, n in shape.units(self.site).items() if name == "head"}


@dataclass(frozen=True, kw_only=True)
class Loss(Reducer):
    """Loss of the model's predictions; the only reducer here that needs the unembedding.

    It is read off the stream that leaves the last block: hooks held after that have no effect.

    Its result has ``loss`` (nats per token), its standard error over sequences ``loss_se``,
    ``by_position``, and ``perplexity``.

    Example:
        >>> import torch
        >>> from mlp_interp import load_model
        >>> from mlp_interp.corpus import sweep
        >>> found = sweep(load_model("nano"), torch.arange(40).reshape(4, 10), Loss())["loss"]
        >>> bool(found["perplexity"] == np.exp(found["loss"]))
        True
    """

    wants_final = True
    takes_padding = True

    @property
    def name(self) -> str:
        """Its name."""
        return "loss"

    def sites(self, shape: Shape) -> tuple[Site, ...]:
        """None but the final stream."""
        shape.check_next_token()
        return ()

    def empty(self, shape: Shape) -> State:
        """Sums over sequences."""
        return {
            "sequences": torch.zeros((), dtype=torch.int64),
            "sum": torch.zeros((), dtype=torch.float64),
            "squares": torch.zeros((), dtype=torch.float64),
            "reached": torch.zeros(shape.length - 1, dtype=torch.int64),
            "by_position": torch.zeros(shape.length - 1, dtype=torch.float64),
        }

    def finish(self, state: State, batch: Batch) -> None:
        """Add the batch's loss."""
        loss = batch.loss.cpu().double()
        predicted = batch.counts(0)[:, 1:].cpu()
        loss = loss * predicted
        each = loss.sum(1) / predicted.sum(1)
        state["sequences"] += len(loss)
        state["reached"] += predicted.sum(0)
        state["sum"] += each.sum()
        state["squares"] += each.square().sum()
        state["by_position"] += loss.sum(0)

    def result(self, state: State, shape: Shape) -> xr.Dataset:
        """Mean loss with its error."""
        mean, error = mean_and_error_of_sums(state["sum"], state["squares"], state["sequences"])
        nats = {"unit": "nats per token"}
        by_position = to_numpy(state["by_position"] / state["reached"])
        variables: dict[str, Any] = {
            "loss": ((), mean, nats),
            "loss_se": ((), error, nats),
            "perplexity": ((), np.exp(mean), {"unit": "perplexity"}),
            "by_position": ("pos", by_position, nats),
        }
        attrs = {"long_name": "loss of the next token", "unit": "nats per token"}
        return xr.Dataset(variables, coords={"pos": np.arange(shape.length - 1)}, attrs=attrs)
