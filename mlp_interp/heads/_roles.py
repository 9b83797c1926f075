"""What each head does, as far as its weights say: one row a head."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from mlp_interp.heads._circuits import Circuits
from mlp_interp.heads._positions import kernels
from mlp_interp.heads._spectra import singular_values
from mlp_interp.heads._vocabulary import SAMPLE, Vocabulary
from mlp_interp.heads._which import checked_distances
from mlp_interp.models import Weights, describe
from mlp_interp.models.heads import Heads
from mlp_interp.models.indices import indices
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.models.token_streams import TokenSource
from mlp_interp.results import to_numpy, variable
from mlp_interp.sites import head_grid_coords

__all__ = ["roles"]

_ABOUT = {  # unit and long name
    "copying": ("share", "sum of the OV eigenvalues over the sum of their sizes"),
    "suppression": ("share", "negative OV eigenvalues in the sum of sizes"),
    "copying_z": ("sd", "tokens' own logits over those of other tokens"),
    "copying_top1": ("fraction", "tokens that raise their own logit most"),
    "duplicate": ("share", "sum of the QK eigenvalues over the sum of their sizes"),
    "self": ("attention", "to the token itself, by position alone"),
    "previous": ("attention", "to the previous token, by position alone"),
    "spread_query": ("score", "deviation of scores that queries' tokens make"),
    "spread_key": ("score", "deviation of scores that keys' tokens make"),
    "spread_both": ("score", "deviation of scores that pairs of tokens make, less those"),
    "norm_ov": ("L2 norm", "Frobenius norm of V O"),
    "norm_qk": ("L2 norm", "Frobenius norm of Q K, less rotations"),
    "rank_ov": ("directions", "participation ratio of the singular values of V O"),
    "rank_qk": ("directions", "participation ratio of the singular values of Q K"),
    "stable_rank_ov": ("directions", "squared norm over the largest squared singular value"),
    "stable_rank_qk": ("directions", "squared norm over the largest squared singular value"),
}


@own_mode()
@torch.no_grad()
def roles(
    model: Model,
    *,
    layers: Any = None,
    source: TokenSource = "extended",
    distances: int = 64,
    scan: bool = False,
    sample: int | None = SAMPLE,
    seed: int = 0,
    progress: bool = False,
) -> xr.Dataset:
    """What every head looks for and writes, from weights alone: one row a head.

    A number here says what a head would do with tokens as `source` has them, not what it does on
    text: `detect` measures that. Numbers without scale (``copying``, ``duplicate``) say nothing of
    how much a head writes or attends; ``copying`` of 1 may be a head that hardly writes.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        layers: Which layers; None for all.
        source: What stands for the tokens: ``"embed"``, ``"extended"`` or `TokenStreams`.
        distances: How far attention by position reaches.
        scan: Also find the share of tokens that raise their own logit most, for which each
            token's change of all ``d_vocab`` logits is computed.
        sample: How many tokens stand for a larger vocabulary, drawn by `seed`; None for all.
        seed: Of that draw and of chance levels.
        progress: Show a progress bar.

    Returns:
        A Dataset over ``layer, head``:

        - ``copying``: the sum of the eigenvalues of the OV table (for each token attended to, what
          each logit gets) over the sum of their sizes: 1 for a head that raises what it attends to,
          -1 for one that lowers it. ``suppression``: the negative part. ``copying_z``: by how many
          standard deviations of its row (over the tokens of the sample) a token's own logit stands
          out, on the average over 1,024 tokens. ``copying_top1`` with `scan`: the share of tokens,
          of the sample, whose own logit rises more than any other of the vocabulary;
        - ``duplicate``: the same sum for the QK table: whether tokens look for themselves
          (rotations averaged over distances 1 to 31);
        - ``self``, ``previous``: attention by position alone, see `positions`, and
          ``spread_query``, ``spread_key``, ``spread_both``: root mean square over the distances.
          NaN where a model adds learned positions;
        - ``norm_ov``, ``norm_qk``, ``rank_ov``, ``rank_qk``, ``stable_rank_ov``,
          ``stable_rank_qk``;

        and over ``layer``: ``copying_null`` and ``duplicate_null``, standard deviations of the two
        where a matrix with the same singular values points anywhere (the mean is 0), from 24 random
        draws; ``exact``, whether the layer reads nothing of a token but what `source` has, and all
        tokens were taken.
        ``attrs["uniform"]`` is ``previous`` of a head without preference.

    Raises:
        ValueError: As `positions`; norms of what attention writes.

    References:
        Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021, on eigenvalues of
        the OV circuit.

    Example:
        >>> from mlp_interp import load_model
        >>> found = roles(load_model("nano"), layers=1)
        >>> bool((found.copying > 0.98).all()), bool((found.previous < 0.1).all())
        (True, True)
    """
    weights = Weights.of(model)
    listed = indices("layers", layers, weights.n_layers)
    distances = checked_distances(weights, distances)
    vocabulary = Vocabulary.of(model, source, sample=sample, seed=seed)
    rows: list[dict[str, Any]] = []
    for layer in tqdm(listed, desc="heads", disable=not progress):
        circuits = Circuits(Heads.of(weights, layer), vocabulary, seed)
        found = dict(_of_layer(circuits, distances, scan))
        rows.append({name: to_numpy(torch.as_tensor(x)) for name, x in found.items()})
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    variables = {
        name: variable(("layer", "head"), stacked[name], unit=unit, long_name=about)
        for name, (unit, about) in _ABOUT.items()
        if name in stacked
    }
    for name in ("copying", "duplicate"):
        variables[f"{name}_null"] = variable(
            "layer",
            stacked[f"{name}_null"],
            unit="share",
            long_name=f"deviation of {name} by chance",
        )
    exact = [int(vocabulary.whole and vocabulary.streams.exact[layer]) for layer in listed]
    variables["exact"] = variable("layer", exact, unit="1", long_name="whether nothing is left out")
    units = range(weights.n_heads)
    coords = {
        "layer": list(listed),
        "head": list(units),
        **head_grid_coords(listed, units),
    }
    attrs = {
        **describe(model),
        **vocabulary.attrs(listed),
        "analysis": "roles of heads",
        "long_name": "what heads do, from weights",
        "unit": "see each variable",
        "uniform": 1 / distances,
        "distances": distances,
        "seed": seed,
    }
    return xr.Dataset(variables, coords, attrs)


def _of_layer(circuits: Circuits, distances: int, scan: bool) -> Iterator[tuple[str, Any]]:
    copying, suppression, chance = circuits.copying()
    yield from {"copying": copying, "suppression": suppression, "copying_null": chance}.items()
    yield "copying_z", circuits.copying_z()
    if scan:
        yield "copying_top1", circuits.copying_top()
    duplicate, chance = circuits.duplicates()
    yield from {"duplicate": duplicate, "duplicate_null": chance}.items()
    yield from _by_position(circuits, distances).items()
    heads = circuits.heads
    Q, K, V, O = (x.double() for x in (heads.Q, heads.K, heads.V, heads.O))  # noqa: E741
    yield from _size("ov", singular_values(V.mT @ V, O @ O.mT)).items()
    yield from _size("qk", singular_values(Q.mT @ Q, K.mT @ K)).items()


def _by_position(circuits: Circuits, distances: int) -> dict[str, Tensor]:
    """Kernel and spreads, NaN where scores are no functions of distances."""
    names = ("self", "previous", "spread_query", "spread_key", "spread_both")
    heads = circuits.heads
    if heads.weights.has_pos_embed:
        return {name: torch.full((len(heads.Q),), torch.nan) for name in names}
    found = kernels(heads, circuits.vocabulary.moments(heads.layer), distances)
    kernel = found.mean.softmax(-1)
    spreads = (x.mean(-1).clamp_min(0).sqrt() for x in (found.query, found.key, found.both))
    return dict(zip(names, (kernel[:, 0], kernel[:, 1], *spreads), strict=True))


def _size(name: str, values: Tensor) -> dict[str, Tensor]:
    """Norm and ranks of singular values."""
    squares = values.square()
    total = squares.sum(-1)
    return {
        f"norm_{name}": total.sqrt(),
        f"rank_{name}": total.square() / squares.square().sum(-1),
        f"stable_rank_{name}": total / squares.amax(-1),
    }
