"""Putting a rewrite together, and saying what cannot work, before and after."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.models import describe
from mlp_interp.prompts.tokenizing import decode, tokenizer_of
from mlp_interp.results import strings, variable
from mlp_interp.rewrites.facts import Fact, Placed
from mlp_interp.rewrites.keys import Keys
from mlp_interp.rewrites.result import Rewrite, reads_of
from mlp_interp.rewrites.values import Found
from mlp_interp.runs import Runner

__all__ = ["Part", "check_fact", "rewrite_of", "warn_unless_said"]


@dataclass(frozen=True)
class Part:
    """What is added to one layer.

    Attributes:
        held: The second moment that it was made with.
        u: What reads the keys.
        delta: What is written there.
        keys: The subject's key in every context.
    """

    held: Keys
    u: Float[Tensor, "fact d_mlp"]
    delta: Float[Tensor, "fact d_model"]
    keys: Float[Tensor, "fact context d_mlp"]


def check_fact(runner: Runner, fact: Placed, layer: int, *, what: str = "") -> None:
    """Refuse what cannot be written, or is there.

    Raises:
        ValueError: Nothing reads the subject after the layer, or the model says the target already.
    """
    if layer == runner.weights.n_layers - 1 and fact.last < len(fact.prompt) - 1:
        raise ValueError(
            f"layer={layer} is the last, after which nothing reads what is written at "
            f"{what}subject={fact.fact.subject!r}; wanted one from 0 to {layer - 1}"
        )
    if _says(runner, fact, ()):
        raise ValueError(
            f"{what}target={fact.fact.target!r} is what the model says after "
            f"{fact.fact.prompt!r} already; wanted another one"
        )


def rewrite_of(
    runner: Runner,
    facts: Sequence[Placed],
    parts: Mapping[int, Part],
    found: Sequence[Found],
    *,
    sizes: Sequence[float],
    attrs: Mapping[str, Any],
) -> Rewrite:
    """The rewrite with all that is known of it.

    Args:
        runner: The model's.
        facts: What was written.
        parts: What is added, by layer.
        found: How each fact's δ was found.
        sizes: How long what the MLP wrote there was, for each fact.
        attrs: The options.
    """
    model, listed = runner.weights.model, list(parts.values())
    u, delta = (torch.stack([getattr(part, name) for part in listed]) for name in ("u", "delta"))
    keys = torch.stack([part.keys.double().cpu() for part in listed])
    fires = torch.einsum("lfcn,lfn->lfc", keys, u)
    by_fact = ("layer", "fact")
    data = xr.Dataset(
        {
            "u": variable((*by_fact, "neuron"), u, unit="1 / activation"),
            "delta": variable((*by_fact, "d_model"), delta, unit="activation"),
            "key": variable((*by_fact, "neuron"), keys.mean(2), unit="activation"),
            "fires": variable((*by_fact, "context"), fires, unit="none"),
            "length": variable(
                "fact",
                np.array([float(f.delta.norm()) for f in found]) / np.array(sizes),
                unit="lengths of what the MLP wrote",
            ),
            "footprint": variable(
                "layer",
                np.array([part.held.footprint(part.u, part.delta) for part in listed]),
                unit="activation",
                long_name="root mean square of what is added to the MLP's output elsewhere; NaN "
                "where that is rounding",
            ),
            "loss": variable(("way", "fact"), np.array([f.loss for f in found]).T, unit="nats"),
            "reads": variable(
                ("layer", "neuron"), reads_of(runner.weights, [*parts]), unit="1 / activation"
            ),
            "steps": variable("fact", np.array([f.steps for f in found]), unit="steps"),
            "old": ("fact", strings([_next(runner, fact) for fact in facts])),
        },
        coords={
            "layer": list(parts),
            "way": ["before", "after"],
            **{
                name: ("fact", strings([getattr(fact.fact, name) for fact in facts]))
                for name in Fact._fields
            },
        },
        attrs={**describe(model), **attrs, "unit": "activation"},
    )
    return Rewrite(data)


def warn_unless_said(runner: Runner, made: Rewrite, facts: Sequence[Placed]) -> None:
    """Say so where the model does not say the target even so.

    Warns:
        UserWarning: With the loss of the target before and after.
    """
    edits = made.as_edits(runner.weights.model)
    silent = [n for n, fact in enumerate(facts) if not _says(runner, fact, edits)]
    for n in silent:
        before, after = made.data["loss"].values[:, n]
        warnings.warn(
            f"{facts[n].fact.target!r} is not what the model says after "
            f"{facts[n].fact.prompt!r} even so: from {before:.2f} nats of loss the search came to "
            f"{after:.2f}. Where that is hardly less, later layers read little of what layers "
            f"{list(made.layers)} write at {facts[n].fact.subject!r}: causal_trace shows which do",
            stacklevel=5,
        )


def _says(runner: Runner, fact: Placed, edits: Any) -> bool:
    """Whether the likeliest tokens after the prompt are the target's."""
    tokens = torch.tensor([[*fact.prompt, *fact.target[:-1]]])
    run = runner.run(tokens, edits=edits)
    logits = runner.unembed.logits(run.final[0, len(fact.prompt) - 1 :])
    return logits.argmax(-1).tolist() == list(fact.target)


def _next(runner: Runner, fact: Placed) -> str:
    """The likeliest token after the prompt, as text."""
    final = runner.run(torch.tensor([fact.prompt])).final[:, -1]
    token = int(runner.unembed.logits(final).argmax())
    return decode(tokenizer_of(runner.weights.model), [token])
