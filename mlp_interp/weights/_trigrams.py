"""What a head does alone: a token long ago, the token here, and what comes next."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.models import Weights, describe
from mlp_interp.models.indices import count
from mlp_interp.models.options import checked_count, checked_seed
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.models.token_streams import streams_of
from mlp_interp.prompts.tokenizing import ids_in_text
from mlp_interp.results import to_numpy, variable
from mlp_interp.weights.factors import Ends, Factors
from mlp_interp.weights.matrices import factors_of
from mlp_interp.weights.ranking import best_of_rows

__all__ = ["skip_trigrams"]

_ROWS = 64
_DRAWS = 64


@own_mode()
@torch.no_grad()
def skip_trigrams(
    model: Model,
    head: Any,
    *,
    k: int = 20,
    per_token: int = 5,
    keys: int = 32,
    source: Any = "extended",
    distance: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> xr.Dataset:
    """Which "source … destination → out" a head brings about by itself, from weights alone.

    The score of a query at the destination token with a key at the source token says how much of
    the source is read, the OV table which tokens are then raised. The attention here is what the
    source would get beside ``keys - 1`` others if each of them had the mean, over all tokens, of
    what that query makes of a key (``exp`` of its score). Times what the head writes for the
    source that is the ``effect`` on a token's logit, over the mean of all tokens and for a final
    norm that divides by 1.

    Source and out are tied, and so are source and destination, but not destination and out: a head
    that has "keep … in → mind" and "keep … at → bay" has "keep … in → bay" as well. On text other
    heads and MLPs take part in everything, and of the tokens only `source` is read. Ids that the
    tokenizer does not have (a padded vocabulary) are left out.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        head: Its label (``"L0H3"``).
        k: How many source tokens: those with the largest effect on any token.
        per_token: Destinations and outs to name for each, the strongest first.
        keys: How many keys share the attention.
        source: What stands for tokens, as in `table`.
        distance: From the destination back to the source; None for the mean rotation over 1 to 31.
        seed: Of the permutations.
        progress: Show a bar.

    Returns:
        A Dataset along ``source`` (``source_id``, ``source_text``), by their effect, and ``place``:
        ``destination`` and ``destination_text`` with ``score`` and ``attention``; ``out`` and
        ``out_text`` with ``ov``, the logits for an attention of 1; and along ``source`` ``effect``
        of the strongest destination and out. Beside it stands ``null``, and ``null_sd``: the effect
        in the same place of the list if what is written for a source were written for another,
        over 64 permutations. A head of which it is as large attends to tokens whatever it then has
        to say. ``exact`` is 0, and ``approximation`` says why.

    Raises:
        ValueError: A head that the model does not have, counts out of range, or what `source` or
            `distance` cannot be.

    References:
        Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021, on skip-trigrams.

    Example:
        >>> from mlp_interp import load_model
        >>> found = skip_trigrams(load_model("nano"), "L0H3", k=3, per_token=2)
        >>> found["destination_text"].dims, bool((found["effect"].diff("source") <= 0).all())
        (('source', 'place'), True)
    """
    weights = Weights.of(model)
    label = weights.place(head, kind="head", argument="head").label
    count("keys", keys, least=2)
    generator = torch.Generator().manual_seed(checked_seed(seed))
    streams = streams_of(model, source)
    scores = _in_text(model, factors_of(weights, f"{label}.QK", streams, distance))
    writes = _in_text(model, factors_of(weights, f"{label}.OV", streams, None))
    tokens = len(scores.left)
    checked_count(k, tokens, "tokens")
    checked_count(per_token, tokens, "tokens", name="per_token")
    margin, destination = best_of_rows(*_margins(scores), per_token, progress=progress)
    ov, out = best_of_rows(writes.left, writes.right, per_token, progress=progress)
    attention = (margin - math.log(keys - 1)).sigmoid()
    effect = attention[:, 0] * ov[:, 0]
    null = torch.stack(
        [_largest(attention[:, 0], ov[:, 0], k, generator) for _ in range(_DRAWS)]
    ).double()
    top = effect.topk(k).indices
    query = scores.left[destination[top]]
    place, unit = ("source", "place"), writes.attrs["unit"]
    raw = (query * scores.right[top, None]).sum(-1)
    variables = {
        **_named(model, scores.rows, "destination", destination[top]),
        "score": variable(place, raw, unit="attention score", long_name="of query and key"),
        "attention": variable(
            place, attention[top], unit="attention", long_name=f"among {keys} keys"
        ),
        **_named(model, writes.columns, "out", out[top]),
        "ov": variable(place, ov[top], unit=unit, long_name="if nothing else were attended to"),
        "effect": variable("source", effect[top], unit=unit, long_name="attention times OV"),
        "null": variable("source", null.mean(0), unit=unit, long_name="effect by chance"),
        "null_sd": variable("source", null.std(0), unit=unit, long_name="its deviation"),
    }
    ids = to_numpy(scores.rows.ids[top])
    coords = {
        "source_id": ("source", ids),
        "source_text": ("source", scores.rows.labels(model, ids)),
    }
    about = {"analysis": "skip_trigrams", "long_name": "skip-trigrams of a head", "matrix": label}
    about |= {"unit": unit, "keys": keys, "seed": seed, "data": "the weights alone"}
    about |= {"exact": 0, "approximation": _left_out(scores.attrs, distance)}
    return xr.Dataset(variables, coords, {**describe(model), **scores.attrs, **about})


def _left_out(attrs: Mapping[str, Any], distance: int | None) -> str:
    said = ["the other keys have mean scores", "the final norm divides by 1"]
    said += ["scores are of mean rotations"] if distance is None else []
    return "; ".join([*said, *([attrs["approximation"]] if "approximation" in attrs else [])])


def _in_text(model: Model, factors: Factors) -> Factors:
    """Between tokens that the tokenizer has."""
    size = ids_in_text(model)
    for _ in range(2):
        factors = factors.of_rows((factors.rows.ids < size).nonzero()[:, 0]).transposed
    return factors


def _margins(scores: Factors) -> tuple[Float[Tensor, "key inner"], Float[Tensor, "query inner"]]:
    """Factors of what each key has over the log of the mean ``exp`` of the query's scores."""
    usual = torch.cat(
        [(rows @ scores.right.T).logsumexp(1) for rows in scores.left.split(_ROWS)]
    ) - math.log(len(scores.right))
    shifted = scores.transposed.shifted(-usual)
    return shifted.left, shifted.right


def _largest(
    attention: Float[Tensor, " token"],
    ov: Float[Tensor, " token"],
    k: int,
    generator: torch.Generator,
) -> Float[Tensor, " k"]:
    """The largest effects if each token had what is written for another one."""
    order = torch.randperm(len(ov), generator=generator).to(ov.device)
    return (attention * ov[order]).topk(k).values


def _named(model: Model, ends: Ends, name: str, at: Tensor) -> dict[str, Any]:
    """Ids and texts of tokens at some places."""
    ids: np.ndarray = to_numpy(ends.ids[at])
    place = ("source", "place")
    return {
        name: variable(place, ids, unit="token id"),
        f"{name}_text": (place, ends.labels(model, ids), {"unit": "text"}),
    }
