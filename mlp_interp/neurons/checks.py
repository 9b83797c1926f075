"""Which layers, which neuron, how many: checked before anything is computed."""

from typing import Any

import numpy as np

from mlp_interp.models import Weights

__all__ = ["checked_count", "checked_layers", "checked_neuron"]


def checked_layers(weights: Weights, layers: Any) -> tuple[int, ...]:
    """Layers in the order given, each once; None for all.

    Raises:
        ValueError: There is none, or one that the model does not have.
    """
    if layers is None:
        return tuple(range(weights.n_layers))
    listed = np.atleast_1d(np.asarray(layers)).tolist()
    if not listed or any(type(i) is not int or not 0 <= i < weights.n_layers for i in listed):
        raise ValueError(f"layers={listed}; wanted some integers from 0 to {weights.n_layers - 1}")
    return tuple(dict.fromkeys(listed))


def checked_neuron(weights: Weights, layer: Any, neuron: Any) -> tuple[int, int]:
    """Layer and neuron as plain integers.

    Raises:
        ValueError: The model does not have it.
    """
    return _index("layer", layer, weights.n_layers), _index("neuron", neuron, weights.d_mlp)


def checked_count(k: Any, size: int, of: str) -> int:
    """How many of `size` things to give.

    Raises:
        ValueError: It is no integer from 1 to `size`; `of` says what there are so many of.
    """
    if type(k) is not int or not 1 <= k <= size:
        raise ValueError(f"k={k!r}; wanted an integer from 1 to {size}, the number of {of}")
    return k


def _index(name: str, index: Any, size: int) -> int:
    found = np.asarray(index).tolist()
    if type(found) is not int or not 0 <= found < size:
        raise ValueError(f"{name}={found!r}; wanted an integer from 0 to {size - 1}")
    return found
