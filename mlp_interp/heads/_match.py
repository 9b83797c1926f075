"""Whether a head looks for the token that an earlier head copies to the keys it reads."""

from dataclasses import dataclass
from typing import Any

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.heads._spectra import elsewhere, signs
from mlp_interp.heads._turns import rotations
from mlp_interp.heads._vocabulary import SAMPLE, Vocabulary
from mlp_interp.heads._which import (
    by_layer,
    check_some_later,
    checked_distance,
    head_coords,
    listed_heads,
)
from mlp_interp.models import Weights, describe
from mlp_interp.models.heads import Heads
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.models.token_streams import TokenSource
from mlp_interp.results import variable

__all__ = ["Matching", "match"]

_DRAWS = 64
_TOKENS = 1024


@dataclass(frozen=True)
class Matching:
    """Score tables of one layer's readers with keys that another layer's heads wrote.

    Where ``X`` are the tokens that queries read and ``Y`` those that the writers read, the table of
    a reader and a writer is ``X Q R K^T O^T V^T Y^T``: the score that a query's token gives to a
    key to which the writer brought another token. It is never made.

    Attributes:
        writers: The earlier layer's heads.
        readers: The later layer's.
        vocabulary: The tokens.
        distance: Between query and key; None for the average rotation of distances 1 to 31.
    """

    writers: Heads
    readers: Heads
    vocabulary: Vocabulary
    distance: int | None = None

    def sides(self) -> tuple[Tensor, Tensor]:
        """What the core of reader r and writer w is the product of: ``K^T O^T`` and ``V^T C Q R``.

        The first is ``[reader, writer, d_head, d_head]``, and so is the second.
        """
        between = rotations(self.readers, self.distance).mean(0)
        Q, K = self.readers.Q.double(), self.readers.K.double()
        V, O = self.writers.V.double(), self.writers.O.double()  # noqa: E741
        cross = self.vocabulary.cross(self.writers.layer, self.readers.layer)
        keys = torch.einsum("rmk,wvm->rwkv", K, O)
        queries = torch.einsum("wmv,rmk->rwvk", V, cross @ Q @ between)
        return keys, queries

    def positivity(self) -> Float[Tensor, "reader writer"]:
        """Sum of each table's eigenvalues over the sum of their sizes."""
        keys, queries = self.sides()
        return signs(keys @ queries)[0]

    def chance(self, seed: int) -> float:
        """Deviation of `positivity` where writers write somewhere else, equally stretched."""
        generator = torch.Generator().manual_seed(seed + self.readers.layer)
        _, queries = self.sides()
        draws = torch.arange(_DRAWS)
        w, r = draws % queries.shape[1], draws // queries.shape[1] % len(queries)
        norm = self.writers.weights.norm
        written = elsewhere(norm, self.writers.O.double().mT, _DRAWS, generator)
        core = self.readers.K.double()[r].mT @ written @ queries[r, w]
        return float(signs(core)[0].square().mean().sqrt())

    def own_z(self, reader: int, writer: int, seed: int) -> float:
        """How far the same token's score stands out of its row, in deviations; mean over tokens."""
        vocabulary = self.vocabulary
        some = vocabulary.drawn(_TOKENS, seed)
        between = rotations(self.readers, self.distance).mean(0)
        moments = vocabulary.moments(self.writers.layer)
        thin = (self.readers.Q[reader].double() @ between) @ (
            self.readers.K[reader].double().mT @ self.writers.O[writer].double().mT
        )
        queries = vocabulary.rows(self.readers.layer, some).double()
        queries = (queries - vocabulary.moments(self.readers.layer).mean) @ thin
        V = self.writers.V[writer].double()
        keys = (vocabulary.rows(self.writers.layer, some).double() - moments.mean) @ V
        spread = V.mT @ moments.covariance @ V
        deviation = torch.einsum("td,de,te->t", queries, spread, queries).clamp_min(0).sqrt()
        return float(((queries * keys).sum(-1) / deviation.clamp_min(1e-300)).mean())


@own_mode()
@torch.no_grad()
def match(
    model: Model,
    *,
    writers: Any = None,
    readers: Any = None,
    source: TokenSource = "extended",
    distance: int | None = None,
    sample: int | None = SAMPLE,
    seed: int = 0,
) -> xr.Dataset:
    """Whether a head looks for the token that an earlier head brought to its keys.

    An induction head's query, of a token, meets keys that hold the token before them, where an
    earlier head put it. Its score table, of the query's token against the token that the writer
    attended to, then has positive eigenvalues, as the OV table of a copying head has. ``match`` is
    their sum over the sum of their sizes.

    It has no scale: a reader that hardly reads the writer can have a match of 1. `compose` tells
    how much it reads of it, `induction` puts the two together. Neither does it say where the writer
    attends; for induction that is the previous token (`positions`).

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        writers: Labels of heads, one or several; None for all.
        readers: The same.
        source: What stands for the tokens: ``"embed"``, ``"extended"`` or `TokenStreams`.
        distance: Between query and key; None for the average rotation of distances 1 to 31.
        sample: How many tokens stand for a larger vocabulary, drawn by `seed`; None for all.
        seed: Of that draw and of the chance level.

    Returns:
        A Dataset over ``writer, reader`` (both heads): ``match``, and ``null``, its standard
        deviation (the mean is 0) for writers of the same singular values that point anywhere. NaN
        where the reader is no later than the writer.

    Raises:
        ValueError: As `positions`, but for learned positions, which are left out; no reader in a
            later layer than some writer.

    Example:
        >>> from mlp_interp import load_model
        >>> found = match(load_model("nano"), writers=["L0H0", "L0H1"], readers="L1H3")
        >>> found["match"].round(1).values.tolist()
        [[1.0], [-0.1]]
    """
    weights = Weights.of(model)
    writing = listed_heads(weights, writers, argument="writers")
    reading = listed_heads(weights, readers, argument="readers")
    check_some_later(writing, reading)
    checked_distance(weights, distance)
    vocabulary = Vocabulary.of(model, source, sample=sample, seed=seed)
    value, null = (
        torch.full((len(writing), len(reading)), torch.nan, dtype=torch.float64) for _ in range(2)
    )
    layers = {*by_layer(writing), *by_layer(reading)}
    held = {layer: Heads.of(weights, layer) for layer in sorted(layers)}
    for first, rows in by_layer(writing).items():
        for second, columns in by_layer(reading).items():
            if first >= second:
                continue
            matching = Matching(held[first], held[second], vocabulary, distance)
            found = matching.positivity().cpu()
            units = [reading[c].unit for c in columns], [writing[r].unit for r in rows]
            at = torch.tensor(rows)[:, None], torch.tensor(columns)
            value[at] = found[units[0]][:, units[1]].T
            null[at] = matching.chance(seed)
    dims = ("writer", "reader")
    about = "sum of the eigenvalues of the score table over the sum of their sizes"
    variables = {
        "match": variable(dims, value, unit="share", long_name=about),
        "null": variable(dims, null, unit="share", long_name="its deviation by chance"),
    }
    coords = {**head_coords(writing, "writer"), **head_coords(reading, "reader")}
    attrs = {
        **describe(model),
        **vocabulary.attrs(layers),
        "analysis": "match of heads",
        "long_name": "whether heads look for what earlier ones bring, from weights",
        "unit": "see each variable",
        "seed": seed,
    }
    return xr.Dataset(variables, coords, attrs)
