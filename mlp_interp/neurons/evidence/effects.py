"""What changes of the stream do to a prediction, and to the tokens that a neuron promotes."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.edits import Edit
from mlp_interp.metrics.rows import distributions
from mlp_interp.models.unembed import Unembed
from mlp_interp.runs import Run, Runner
from mlp_interp.runs.effects import stream_changes
from mlp_interp.sites import Site

__all__ = ["ABOUT", "Losses", "held_changes", "losses"]

ABOUT = {
    "delta_loss": ("nats per token", "rise of the loss on the next token"),
    "kl": ("nats", "KL(clean || ablated) of the next token's distribution"),
    "promoted": ("nats", "fall of the mean log-probability of the tokens the neuron promotes"),
}
"""The measures with their units; of all of them, more is a larger loss."""


class Losses(NamedTuple):
    """What a change takes from the prediction, one number a row; NaN where there is no next token.

    The fields are explained in `ABOUT`.
    """

    delta_loss: Float[Tensor, "*rows"]
    kl: Float[Tensor, "*rows"]
    promoted: Float[Tensor, "*rows"]


def losses(
    unembed: Unembed,
    normalized: Float[Tensor, "row d_model"],
    targets: Int[Tensor, " row"],
    changes: Float[Tensor, "more row d_model"],
    tokens: Int[Tensor, " token"],
) -> Losses:
    """What changes of the normalised stream do.

    Args:
        unembed: The readout.
        normalized: The clean stream, normalised.
        targets: The token that follows, -1 where unknown.
        changes: Changed less clean normalised stream.
        tokens: The promoted tokens.

    Raises:
        ValueError: The model caps its logits.
    """
    if unembed.cap is not None:
        raise ValueError(
            f"the model's logits are capped at {unembed.cap:g}; wanted a model without a cap, "
            "where promoted tokens are read off one direction"
        )
    columns: list[Losses] = []
    for rows, clean in distributions(unembed, normalized, targets):
        change = changes[:, rows]
        effects = clean.effects(change)
        # log q_v - log p_v = t_v - KL, where t is the centred change of the logits.
        centred = change @ unembed.weight[:, tokens].mean(1) - (change * clean.expected).sum(-1)
        columns.append(Losses(effects.delta_loss, effects.kl, effects.kl - centred))
    return Losses(*(torch.cat(part, dim=1) for part in zip(*columns, strict=True)))


def held_changes(
    runner: Runner,
    clean: Run,
    layer: int,
    values: Sequence[tuple[int, float]],
    *,
    first: int,
) -> Iterator[Float[Tensor, "more batch pos d_model"]]:
    """Changes of the normalised final stream when each neuron alone is held at a value.

    Args:
        runner: Of the model.
        clean: The run without.
        layer: The neurons' layer.
        values: Neurons, each with the activation that it is set to.
        first: Position from which on it is, and which is the first one of the result.

    Returns:
        As many neurons at a time as keep the changes small.
    """
    positions = range(first, clean.tokens.shape[1])
    edits = (
        [Edit.set(Site("post", layer, neuron=neuron), value, positions=positions)]
        for neuron, value in values
    )
    return stream_changes(runner, clean, edits, first=first)
