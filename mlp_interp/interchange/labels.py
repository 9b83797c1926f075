"""How cells of grids are named, so that results of different analyses can be joined."""

from collections.abc import Sequence
from typing import Any

from mlp_interp.results import strings
from mlp_interp.sites import Site

__all__ = ["components"]


def components(layers: Sequence[int], heads: Sequence[int]) -> dict[str, tuple[Any, ...]]:
    """A coordinate that names each cell of a layer x head grid as components are named."""
    labels = [[Site("z", layer, head=head).label for head in heads] for layer in layers]
    return {"component": (("layer", "head"), strings(labels))}
