"""Means over the tokens of each sequence, then over sequences, which are the draws."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool
from torch import Tensor

from mlp_interp.corpus.reducers import State
from mlp_interp.corpus.reducers.base import add, mean_and_error_of_sums
from mlp_interp.results import variable

__all__ = ["add_means", "means", "sums"]


def sums(
    names: Iterable[str], layers: int, size: tuple[int, ...] = (), sequences: str = "sequences"
) -> State:
    """What `add_means` adds to, of some layers.

    Args:
        names: Of what is averaged.
        layers: How many.
        size: Further axes of each.
        sequences: What the number of sequences is called.
    """
    zeros = {sequences: torch.zeros(layers, dtype=torch.int64)}
    for name in names:
        for key in (name, f"{name}_squares"):
            zeros[key] = torch.zeros(layers, *size, dtype=torch.float64)
    return zeros


def add_means(
    mine: State,
    found: Mapping[str, Tensor],
    counts: Bool[Tensor, " token"],
    texts: int,
    sequences: str = "sequences",
) -> None:
    """Average over the tokens of each sequence that count; add sequences that have any.

    Args:
        mine: One layer's rows of `sums`.
        found: Of each token ``[token, ...]``, sequence after sequence.
        counts: Which tokens count.
        texts: How many sequences there are.
        sequences: As in `sums`.
    """
    weight = counts.view(texts, -1).double()
    counted = weight.sum(1)
    some = counted > 0
    add(mine[sequences], some.sum())
    for name, value in found.items():
        value = value.double().view(*weight.shape, *value.shape[1:])
        mean = torch.einsum("sp...,sp->s...", value, weight)[some]
        mean = mean / counted[some].view(-1, *[1] * (mean.ndim - 1))
        add(mine[name], mean.sum(0))
        add(mine[f"{name}_squares"], mean.square().sum(0))


def means(
    state: State,
    about: Mapping[str, tuple[str, str]],
    dims: Mapping[str, tuple[str, ...]] | None = None,
    sequences: str = "sequences",
) -> dict[str, xr.Variable]:
    """Means with their standard errors, layer by layer: each has its own number of sequences.

    Args:
        state: What was summed up.
        about: Unit and long name of each.
        dims: Those of each after ``layer``, where it has any.
        sequences: As in `sums`.
    """
    variables: dict[str, xr.Variable] = {}
    for name, (unit, long_name) in about.items():
        rows = zip(state[name], state[f"{name}_squares"], state[sequences], strict=True)
        mean, error = zip(*(mean_and_error_of_sums(*row) for row in rows), strict=True)
        axes = ("layer", *(dims or {}).get(name, ()))
        for key, values, said in (
            (name, mean, f"{long_name}; mean over tokens"),
            (f"{name}_se", error, f"standard error of {name}, over sequences"),
        ):
            variables[key] = variable(axes, np.stack(values), unit=unit, long_name=said)
    return variables
