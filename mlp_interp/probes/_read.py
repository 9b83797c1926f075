"""Activations of prompts, one layer at a time: no more than that need be in memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlp_interp.models import Forward, HookForward, Weights, forward_of
from mlp_interp.models.indices import count, indices
from mlp_interp.models.options import check_choice
from mlp_interp.models.protocol import Model
from mlp_interp.probes.labelled import Labelled
from mlp_interp.prompts.texts import Texts
from mlp_interp.results import single, to_numpy
from mlp_interp.sites import GATED, NEURONS, STREAM

__all__ = ["EMBEDDING", "Place", "layers_held"]

EMBEDDING = -1
"""The layer of what enters the first block."""

_SITES = (*STREAM, *NEURONS, *GATED)
_IN_MEMORY = 2**28  # bytes; more goes to a file until its turn comes


@dataclass(frozen=True)
class Place:
    """Where activations are read.

    Attributes:
        site: The name of the activation.
        layers: The layers, `EMBEDDING` first if it is asked for.
        batch_size: Prompts that run at once.
    """

    site: str
    layers: tuple[int, ...]
    batch_size: int

    @classmethod
    def of(
        cls, model: Model, site: str, layers: Any, batch_size: Any, *, embedding: bool = False
    ) -> "Place":
        """Check what was given.

        Raises:
            ValueError: The model has no such site or layers, or the batch size is below 1.
        """
        weights = Weights.of(model)
        check_choice("site", site, _SITES)
        weights.check_names([site])
        listed = indices("layers", layers, weights.n_layers)
        before = (EMBEDDING,) if embedding else ()
        return cls(site, (*before, *listed), count("batch_size", batch_size))

    @property
    def unit(self) -> str:
        """What its activations have along their last axis."""
        return "d_model" if self.site in STREAM else "neuron"


class _Keeper:
    """The observer that keeps what is at one position of each prompt, or the mean."""

    def __init__(self, place: Place, at: np.ndarray | None, first: int) -> None:
        self.place, self.first = place, first
        self.at = None if at is None else torch.from_numpy(at)
        self.seen: dict[int, Tensor] = {}

    def __call__(self, name: str, layer: int, x: Tensor) -> Tensor:
        if EMBEDDING in self.place.layers and (name, layer) == ("resid_pre", 0):
            self.seen[EMBEDDING] = self._chosen(x)
        if name == self.place.site and layer in self.place.layers:
            self.seen[layer] = self._chosen(x)
        return x

    def _chosen(self, x: Tensor) -> Tensor:
        if self.at is None:
            return single(x[:, self.first :]).mean(1)
        return x[torch.arange(len(x), device=x.device), self.at.to(x.device)]


@contextmanager
def layers_held(
    model: Model, data: Labelled, place: Place
) -> Iterator[Iterator[tuple[int, np.ndarray]]]:
    """Run the prompts once, and hand out ``(layer, activations [prompt, d])``, one at a time.

    They are in float64. What would take much memory waits in a temporary file.
    """
    weights, n = Weights.of(model), len(data)
    widths = [
        weights.d_model if layer == EMBEDDING or place.unit == "d_model" else weights.d_mlp
        for layer in place.layers
    ]
    kind = np.float64 if weights.dtype == torch.float64 else np.float32
    in_file = sum(widths) * n * np.dtype(kind).itemsize > _IN_MEMORY
    with TemporaryDirectory() as folder:
        held = {
            layer: _array(Path(folder) / f"{layer}.bin" if in_file else None, (n, width), kind)
            for layer, width in zip(place.layers, widths, strict=True)
        }
        _read(forward_of(model), data, place, held)
        yield ((layer, np.array(held[layer], dtype=np.float64)) for layer in place.layers)


def _array(file: Path | None, shape: tuple[int, int], kind: Any) -> np.ndarray:
    if file is None:
        return np.empty(shape, kind)
    return np.memmap(file, kind, "w+", shape=shape)


@torch.no_grad()
def _read(
    forward: Forward | HookForward, data: Labelled, place: Place, held: dict[int, np.ndarray]
) -> None:
    device = forward.weights.device
    bos = getattr(getattr(forward.weights.model, "tokenizer", None), "bos_token_id", None)
    stop = max(0, *place.layers) + 1
    for part, tokens, first in Texts(data.rows, bos).batches(place.batch_size):
        keeper = _Keeper(place, _at(data, part), first)
        forward.run(forward.embed(tokens.to(device)), stop=stop, observe=keeper)
        for layer, values in keeper.seen.items():
            held[layer][part] = to_numpy(values)


def _at(data: Labelled, part: Sequence[int]) -> np.ndarray | None:
    return None if data.position is None else data.position[part]
