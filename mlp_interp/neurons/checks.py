"""Which layers, which neuron, how many, and the weights: checked before anything is computed."""

from typing import Any

import numpy as np
import torch

from mlp_interp.models import Weights

__all__ = ["checked_count", "checked_layers", "checked_neuron", "checked_seed", "checked_weights"]


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
    if size < 1:
        raise ValueError(f"k={k!r}, but the number of {of} is 0; wanted a larger model")
    if type(k) is not int or not 1 <= k <= size:
        raise ValueError(f"k={k!r}; wanted an integer from 1 to {size}, the number of {of}")
    return k


def checked_seed(seed: Any) -> int:
    """A seed of torch's generators.

    Raises:
        ValueError: It is none.
    """
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed!r}; wanted an integer from 0, below 2**63")
    return seed


def checked_weights(model: Any) -> None:
    """All weights of a model, which must be finite: one NaN makes all that is computed NaN.

    Raises:
        ValueError: They are not.
    """
    for name, x in model.named_parameters():
        if not bool(torch.isfinite(x).all()):
            raise ValueError(
                f"{name} holds NaN or infinity; wanted finite weights: look at them with "
                "check_model(model)"
            )


def _index(name: str, index: Any, size: int) -> int:
    found = np.asarray(index).tolist()
    if type(found) is not int or not 0 <= found < size:
        raise ValueError(f"{name}={found!r}; wanted an integer from 0 to {size - 1}")
    return found
