"""A short name for all that numbers depend on, so that kept ones are only read back where valid."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mlp_interp.models._checksum import checksum
from mlp_interp.models.loading import describe
from mlp_interp.models.protocol import Model
from mlp_interp.models.remember import has_hooks
from mlp_interp.models.weights import Weights

__all__ = ["fingerprint", "id_blocks"]


@torch.no_grad()
def fingerprint(
    model: Model, tokens: Int[Tensor, "sequence pos"], options: Mapping[str, Any] | None = None
) -> str:
    """Sixteen hexadecimal digits that change with the model, its weights, the tokens and options.

    Of each weight, the shape and all entries at their places go in, so that a model is told from
    the same one edited, be it by two neurons that change places.

    Args:
        model: The model that is measured.
        tokens: The tokens that it is measured on.
        options: Whatever else the numbers depend on; anything that JSON can hold.

    Raises:
        ValueError: Somebody has left hooks on the model: numbers depend on what they do.

    Example:
        >>> from mlp_interp import load_model
        >>> tokens = torch.arange(6).reshape(2, 3)
        >>> names = {fingerprint(load_model("nano"), tokens, {"seed": s}) for s in (0, 1, 1)}
        >>> len(names)
        2
    """
    if has_hooks(model):
        raise ValueError(
            f"model={model.cfg.model_name!r} has hooks on it (of `steer`, or of its own `hooks`): "
            "what they do has no name, so nothing can be kept; wanted checkpoint=None, or no hooks"
        )
    Weights.of(model)  # refuses what is no model
    facts = [describe(model), repr(vars(model.cfg)), dict(options or {})]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in _tensors(model):
        digest.update(f"{name} {tuple(tensor.shape)} {checksum(tensor)}".encode())
    digest.update(f"{tuple(tokens.shape)}".encode())
    for block in id_blocks(tokens):
        digest.update(block.tobytes())
    return digest.hexdigest()[:16]


def id_blocks(tokens: Int[Tensor, "sequence pos"], *, size: int = 1 << 18) -> Iterator[np.ndarray]:
    """Token ids as little-endian 64-bit integers, a few rows at a time.

    What is hashed of tokens is the same whatever their type and wherever they are, and no more than
    a few MB of them are in memory at once, however many there are in a file.
    """
    for rows in tokens.detach().split(max(1, size // max(1, tokens.shape[1]))):
        yield rows.cpu().contiguous().numpy().astype("<i8")


def _tensors(model: Model) -> Iterator[tuple[str, Tensor]]:
    """Every weight of a model by its name, and the two matrices that may be made of others."""
    yield from (("W_E", model.W_E), ("W_U", model.W_U))
    yield from model.named_parameters()
