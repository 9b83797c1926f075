"""What directions are made from: activations of prompts, read at one position of each."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mlp_interp.models import Weights, forward_of
from mlp_interp.models.caches import cached
from mlp_interp.models.indices import count, index
from mlp_interp.models.padding import padding_in
from mlp_interp.models.protocol import Cache, Model
from mlp_interp.models.tokens import tokens_in
from mlp_interp.prompts.texts import Prompts, Texts, texts_of
from mlp_interp.results import single
from mlp_interp.sites import GATED, HEADS, NEURONS, STREAM, Site, did_you_mean

__all__ = [
    "Positions",
    "Prompts",
    "Texts",
    "activations",
    "activations_in",
    "check_positions",
    "check_reading",
    "check_site",
    "texts_of",
]

Positions = Literal["last", "mean"] | int


@torch.no_grad()
def activations(
    model: Model,
    texts: Texts,
    site: str,
    layers: Sequence[int],
    *,
    positions: Positions = "last",
    batch_size: int = 64,
) -> Tensor:
    """Activations ``[prompt, layer, ...]`` in float64, of one position or the mean over them.

    Raises:
        ValueError: The model's blocks have no such activation.
    """
    forward = forward_of(model)
    forward.weights.check_names([site])
    found: list[Tensor | None] = [None] * len(texts)
    for part, tokens, first in texts.batches(batch_size):
        seen: dict[int, Tensor] = {}

        def observe(
            name: str, layer: int, x: Tensor, seen: dict[int, Tensor] = seen, first: int = first
        ) -> Tensor:
            if name == site and layer in layers:
                seen[layer] = _at(x, positions, first)
            return x

        embedded = forward.embed(tokens.to(forward.weights.device))
        forward.run(embedded, stop=max(layers) + 1, observe=observe)
        rows = torch.stack([seen[layer] for layer in layers], dim=1)
        for n, row in zip(part, rows, strict=True):
            found[n] = row
    return torch.stack([row for row in found if row is not None])


@torch.no_grad()
def activations_in(
    model: Any, cache: Cache, site: str, layers: Sequence[int], *, positions: Positions = "last"
) -> Tensor:
    """The same of prompts that have been run already, one row each; padding is left out.

    Raises:
        ValueError: The cache lacks the site, or has no such position; for means also, if it does
            not say what its tokens are, of which a BOS at the beginning is left out.
    """
    values = torch.stack([cached(cache, Site(site, layer)) for layer in layers], dim=2)
    weights, (batch, length) = Weights.of(model), values.shape[:2]
    padding = padding_in(weights, cache, (batch, length))
    real = torch.ones(batch, length, dtype=torch.bool) if padding is None else padding.real
    rows = [x[text] for x, text in zip(values, real.to(values.device), strict=True)]
    if isinstance(positions, int):
        for row in rows:
            index("positions", positions, len(row))
    first = [0] * batch
    if positions == "mean":
        bos = getattr(getattr(model, "tokenizer", None), "bos_token_id", None)
        texts = zip(tokens_in(weights, cache), real.to(weights.device), strict=True)
        first = [int(int(text.sum()) > 1 and ids[text][0] == bos) for ids, text in texts]
    each = zip(rows, first, strict=True)
    return torch.cat([_at(row[None], positions, begun) for row, begun in each])


def _at(x: Tensor, positions: Positions, first: int) -> Tensor:
    if isinstance(positions, int):
        x = x[:, positions]
    elif positions == "last":
        x = x[:, -1]
    else:
        x = single(x[:, first:]).mean(1)
    return x.cpu().double()


def check_site(site: str) -> None:
    """Refuse what is no site of a direction.

    Raises:
        ValueError: It is none.
    """
    if site not in (known := (*STREAM, *HEADS, *NEURONS, *GATED)):
        near = did_you_mean(site, known)
        raise ValueError(f"site={site!r}{near}; wanted one of {', '.join(known)}")


def check_positions(positions: Any) -> None:
    """Refuse what does not say where an activation is read.

    Raises:
        ValueError: It is another word, or no integer.
    """
    if type(positions) is not int and positions not in ("last", "mean"):
        raise ValueError(f"positions={positions!r}; wanted 'last', 'mean' or an integer")


def check_reading(texts: Texts, positions: Any, batch_size: int, what: str) -> None:
    """Refuse what cannot be read of these prompts.

    Raises:
        ValueError: A position that a prompt has not, or another option out of range.
    """
    count("batch_size", batch_size)
    if isinstance(positions, int) and not -texts.shortest <= positions < texts.shortest:
        raise ValueError(
            f"positions={positions}, but a prompt of {what} has {texts.shortest} tokens"
        )
