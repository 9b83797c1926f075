"""Which neurons are active together."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from mlp_interp.corpus.reducers.base import Batch, Reducer, Shape, State
from mlp_interp.models.indices import finite_number
from mlp_interp.results import to_numpy
from mlp_interp.sites import Site, SiteLike, neuron_of

__all__ = ["CoActivation"]


@dataclass(frozen=True, kw_only=True)
class CoActivation(Reducer):
    """How often chosen neurons, of any layers, are active at the same token.

    Args:
        neurons: Labels (``"L3N669"``), `Site` or pairs ``(layer, neuron)``; they become labels.
            Activity is read before the nonlinearity.
        above: The threshold.
        first: Position from which on tokens count.

    Its result has, along ``neuron`` and ``other``: ``both`` (tokens), ``correlation`` (phi
    coefficient of the two; NaN for a neuron that is always or never active) and ``given`` (share of
    the tokens at which ``other`` is active at which ``neuron`` is).

    Raises:
        ValueError: No neurons, one twice, or one that the model has not.

    Example:
        >>> import torch
        >>> from mlp_interp import load_model
        >>> from mlp_interp.corpus import sweep
        >>> pair = CoActivation(neurons=("L0N1", "L3N5"))
        >>> found = sweep(load_model("nano"), torch.arange(40).reshape(4, 10), pair)
        >>> found["coactivation"]["both"].dims
        ('neuron', 'other')
    """

    neurons: Sequence[SiteLike]
    above: float = 0.0
    first: int = 0
    takes_padding: ClassVar[bool] = True
    _layers: dict[int, list[tuple[int, int]]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        named = [neuron_of(given, argument="neurons") for given in self.neurons]
        object.__setattr__(self, "neurons", tuple(site.label for site in named))
        if not self.neurons:
            raise ValueError(f"neurons={self.neurons}; wanted one or more")
        finite_number("above", self.above)
        if self.first < 0:
            raise ValueError(f"first={self.first}; wanted a position from 0")
        layers: dict[int, list[tuple[int, int]]] = {}
        for column, site in enumerate(named):
            layers.setdefault(site.layer or 0, []).append((column, site.unit))
        for layer, pairs in layers.items():
            if len({neuron for _, neuron in pairs}) < len(pairs):
                raise ValueError(f"neurons={self.neurons} has one of layer {layer} twice")
        object.__setattr__(self, "_layers", layers)

    @property
    def name(self) -> str:
        """Its name."""
        return "coactivation"

    def sites(self, shape: Shape) -> tuple[Site, ...]:
        """The layers of the neurons."""
        last = max(neuron for pairs in self._layers.values() for _, neuron in pairs)
        if max(self._layers) >= shape.n_layers or last >= shape.d_mlp:
            raise ValueError(
                f"neurons={self.neurons}; wanted layers 0 to {shape.n_layers - 1} and neurons 0 "
                f"to {shape.d_mlp - 1}"
            )
        if self.first >= shape.shortest:
            raise ValueError(f"first={self.first}: sequences have {shape.shortest} tokens")
        return tuple(Site("pre", layer) for layer in sorted(self._layers))

    def empty(self, shape: Shape) -> State:
        """Counts of zero."""
        size = len(self.neurons)
        return {
            "both": torch.zeros(size, size, dtype=torch.int64),
            "tokens": torch.zeros((), dtype=torch.int64),
        }

    def see(self, state: State, site: Site, x: Tensor, batch: Batch) -> None:
        """Note which are active, until all layers have been seen."""
        columns, neurons = zip(*self._layers[site.layer or 0], strict=True)
        x = torch.cat([*batch.rows(x[..., list(neurons)], self.first)])
        if self not in batch.notes:
            batch.notes[self] = x.new_zeros(len(x), len(self.neurons), dtype=torch.float32)
        batch.notes[self][:, list(columns)] = (x > self.above).float()

    def finish(self, state: State, batch: Batch) -> None:
        """Count pairs."""
        active = batch.notes[self]
        # Sums of ones below 2^24 are exact in single precision.
        for part in active.split(2**23):
            state["both"] += (part.T @ part).to(torch.int64).cpu()
        state["tokens"] += len(active)

    def result(self, state: State, shape: Shape) -> xr.Dataset:
        """Counts, correlations and conditional shares."""
        both, tokens = to_numpy(state["both"]).astype(float), max(1, int(state["tokens"]))
        single = np.diag(both)
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = np.sqrt(single * (tokens - single))
            correlation = (tokens * both - np.outer(single, single)) / np.outer(spread, spread)
            given = both / single[None, :]
        dims, labels = ("neuron", "other"), list(self.neurons)
        variables: dict[str, Any] = {
            "both": (dims, to_numpy(state["both"]), {"unit": "tokens"}),
            "correlation": (dims, correlation, {"unit": "none"}),
            "given": (dims, given, {"unit": "fraction"}),
        }
        attrs = {
            "long_name": f"neurons above {self.above:g} at the same token",
            "unit": "tokens",
            "above": self.above,
            "entries": int(state["tokens"]),
        }
        return xr.Dataset(variables, coords={"neuron": labels, "other": labels}, attrs=attrs)
