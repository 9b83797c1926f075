"""Which components of the stream, seen by query and key, make an attention score."""

from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.models import Weights, describe
from mlp_interp.models.heads import Heads
from mlp_interp.models.indices import indices
from mlp_interp.models.options import check_choice
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.models.rotary import rotary_at
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.residual import Residual, decompose, needed
from mlp_interp.results import single, strings, variable
from mlp_interp.sites import Site, SiteLike

__all__ = ["ScoreParts", "split_scores", "streams_before"]

_MOST = 2**27
"""Numbers of a result: half a gigabyte."""


class ScoreParts:
    """Queries and keys of one head as sums over the components that wrote the stream.

    The last component, ``bias``, is what the head adds itself.
    """

    def __init__(self, heads: Heads, head: int, residual: Residual) -> None:
        """Read the stream before the block; its scale is held as it is."""
        norm = heads.weights.norm
        read = norm.keep(single(residual.vectors())) / single(norm.scale(residual.total))[..., None]
        positions = torch.arange(read.shape[1], device=read.device)
        rotary = rotary_at(heads.weights.model, positions, read)
        sides = (heads.Q, heads.b_q), (heads.K, heads.b_k)
        self.labels = [*residual.labels, "bias"]
        self.q, self.k = (rotary(_with_bias(read @ W[head], b[head])) for W, b in sides)
        self.scale = heads.scale

    def parts(
        self, queries: Int[Tensor, " query"], keys: Int[Tensor, " key"]
    ) -> Float[Tensor, "batch query key query_component key_component"]:
        """Shares of the scores of some queries and keys."""
        q, k = self.q[:, queries], self.k[:, keys]
        return self.scale * torch.einsum("bicd,bjed->bijce", q, k)


def _with_bias(
    x: Float[Tensor, "batch pos component d_head"], bias: Float[Tensor, " d_head"]
) -> Float[Tensor, "batch pos component_and_bias d_head"]:
    return torch.cat([x, bias.expand(*x.shape[:2], 1, -1)], dim=2)


def streams_before(
    model: Model, tokens: Int[Tensor, "batch pos"], layer: int, level: Literal["component", "head"]
) -> Residual:
    """The components of the stream that enters a layer, at every token."""
    names = needed(model, level=level, layer=layer)
    _, cache = model.run_with_cache(tokens, names_filter=names, return_type=None)
    mask = torch.ones_like(tokens)  # also where a text ends in what else is padding
    return decompose(model, cache, level=level, layer=layer, attention_mask=mask)


@own_mode()
@torch.no_grad()
def split_scores(
    model: Model,
    tokens: Any,
    head: SiteLike,
    *,
    level: Literal["component", "head"] = "component",
    queries: Any = -1,
    keys: Any = None,
) -> xr.Dataset:
    """Which component, read by the query, meets which component, read by the key: exactly.

    A query is a sum over what wrote the stream at its position (divided by the stream's scale), and
    so is a key. A score is therefore a sum over pairs, ``parts``: a positive one raises attention
    to that key. Softmax only feels differences between keys: what is the same for all keys, as the
    parts of a key's bias, moves nothing. So compare a key with others, as in
    ``parts.sel(key=5) - parts.mean("key")``.

    The scale of the stream is held as it was. Parts do not say what would happen without a
    component: later components depend on earlier ones.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        tokens: Tokens ``[batch, pos]`` or texts of one length.
        head: A label (``"L1H3"``), a `Site`, or the pair ``(layer, head)``.
        level: ``"component"``: embeddings, attention and MLP outputs; ``"head"``: with every head.
        queries: Positions that attend; negative ones from the end; None for all.
        keys: Positions that are attended to; None for all.

    Returns:
        A Dataset: ``parts`` over ``prompt, query, key, query_component, key_component``, NaN where
        the key comes after the query, and their sum ``score``. Both are of scores as they are
        given to the softmax.

    Raises:
        ValueError: No such head or position, tokens that the model cannot take, texts of several
            lengths, scores that are more than products of queries and keys, or a result of more
            than 2^27 numbers.

    Example:
        >>> from mlp_interp import load_model
        >>> tokens = [[0, 900, 901, 902, 900]]
        >>> found = split_scores(load_model("nano"), tokens, "L1H0", level="head")
        >>> margin = found.parts.sel(key=2) - found.parts.sel(key=[1, 3]).mean("key")
        >>> best = margin.isel(prompt=0, query=0).stack(pair=["query_component", "key_component"])
        >>> [str(name) for name in best.idxmax("pair").item()]
        ['0.mlp', 'L0H0']
    """
    weights = Weights.of(model)
    check_choice("level", level, ("component", "head"))
    site = weights.place(head, kind="head", argument="head")
    texts = padded_texts(model, tokens)
    if texts.padding is not None:
        raise ValueError(
            f"tokens={texts.attrs['data']}; wanted texts of one length (lists of ids where what "
            "they end in is text)"
        )
    ran = weights.checked(texts.tokens)
    at, where = (
        indices(name, given, ran.shape[1]) for name, given in (("queries", queries), ("keys", keys))
    )
    heads = Heads.of(weights, site.layer or 0)
    layers = site.layer or 0
    most = 2 + layers * (2 + (weights.n_heads if level == "head" else 0)) + 1
    size = len(ran) * len(at) * len(where) * most**2
    if size > _MOST:
        raise ValueError(
            f"{len(ran)} texts, {len(at)} queries and {len(where)} keys at level={level!r} have "
            f"{size:.1e} parts, {4 * size / 2**30:.1f} GiB; wanted at most {_MOST:.1e}: name "
            "queries and keys"
        )
    found = ScoreParts(heads, site.unit, streams_before(model, ran, layers, level))
    i, j = (torch.tensor(x, device=ran.device) for x in (at, where))
    parts = found.parts(i, j)
    parts = parts.masked_fill((j > i[:, None])[..., None, None], torch.nan)
    dims = ("prompt", "query", "key")
    variables = {
        "parts": variable(
            (*dims, "query_component", "key_component"),
            parts,
            unit="score",
            long_name="share of each pair of components in the attention score",
        ),
        "score": variable(dims, parts.sum((-2, -1)), unit="score", long_name="attention score"),
    }
    coords = {
        "query": list(at),
        "key": list(where),
        "query_component": strings(found.labels),
        "key_component": strings(found.labels),
        "query_token": (("prompt", "query"), ran[:, i].cpu().numpy()),
        "key_token": (("prompt", "key"), ran[:, j].cpu().numpy()),
        "prompt": np.arange(len(ran)),
    }
    attrs = {
        **describe(model),
        "analysis": "parts of attention scores",
        "long_name": f"attention scores of {Site('z', layers, head=site.unit).label}",
        "unit": "score",
        "component": site.label,
        "level": level,
        "data": f"{len(ran)} texts of {ran.shape[1]} tokens",
        "exact": 1,
    }
    return xr.Dataset(variables, coords, attrs)
