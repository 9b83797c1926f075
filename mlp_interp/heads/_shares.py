"""Which components make what a head or neuron reads vary from token to token."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from mlp_interp.heads._scores import streams_before
from mlp_interp.models import Weights, describe
from mlp_interp.models.heads import Heads
from mlp_interp.models.indices import count
from mlp_interp.models.options import check_choice
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.padding import which_count
from mlp_interp.models.protocol import Model
from mlp_interp.models.vectors import Vectors
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.results import ratio_of_means, single, strings, variable
from mlp_interp.sites import Site

__all__ = ["read_shares"]


@dataclass
class _Sums:
    """Of one reader, one row a text.

    Attributes:
        matrix: What it reads with.
        count: Tokens.
        parts: Sums of what it reads of each component.
        products: Sums of the products of that with all it reads.
        squares: Sums of the squares of all it reads.
    """

    matrix: Float[Tensor, "d_model k"]
    count: list[Tensor] = field(default_factory=list)
    parts: list[Tensor] = field(default_factory=list)
    products: list[Tensor] = field(default_factory=list)
    squares: list[Tensor] = field(default_factory=list)

    def add(
        self, read: Float[Tensor, "batch pos component d_model"], counts: Bool[Tensor, "batch pos"]
    ) -> None:
        """Add some texts."""
        mine = (read @ self.matrix).double() * counts[..., None, None]
        whole = mine.sum(2)
        self.count.append(counts.sum(1).double())
        self.parts.append(mine.sum(1))
        self.products.append(torch.einsum("bpck,bpk->bc", mine, whole))
        self.squares.append(whole.square().sum((1, 2)))

    def covariances(self) -> tuple[Float[Tensor, "text component"], Float[Tensor, " text"]]:
        """Each text's share in covariances with the whole, and in the variance of the whole."""
        n, parts = torch.cat(self.count), torch.cat(self.parts)
        products, squares = torch.cat(self.products), torch.cat(self.squares)
        whole = parts.sum(1)
        mean, all_mean = parts.sum(0) / n.sum(), whole.sum(0) / n.sum()
        top = products - whole @ mean.T - parts @ all_mean + n[:, None] * (mean @ all_mean)
        bottom = squares - 2 * whole @ all_mean + n * (all_mean @ all_mean)
        return top, bottom


@own_mode()
@torch.no_grad()
def read_shares(
    model: Model,
    corpus: Any,
    readers: str | Site | Sequence[str | Site],
    *,
    attention_mask: Any = None,
    level: Literal["component", "head"] = "component",
    first: int = 1,
    batch_size: int = 4,
    progress: bool = False,
) -> xr.Dataset:
    """From which components what a reader reads on text varies: shares that sum to one.

    A query, key, value or pre-activation is a sum over what wrote the stream (with the stream's
    scale held). Over tokens, each component's covariance with the sum, over the variance of the
    sum, is its share. A component that writes much, but the same everywhere, has none; a negative
    one takes away what others write.

    It says what is read on this text, where `compose` says what could be read. It is no effect: a
    share in a query may not change any attention.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        corpus: Texts, tokens ``[batch, pos]``, or a `Corpus`.
        readers: Labels, one or several: ``"L1H3.q"``, ``"L1H3.k"``, ``"L1H3.v"``, and in parallel
            blocks neurons, ``"L2N15.pre"``.
        attention_mask: As in `detect`.
        level: ``"component"``: embeddings, attention and MLP outputs; ``"head"``: with every head.
        first: Position from which on tokens count.
        batch_size: Texts at a time.
        progress: Show a progress bar.

    Returns:
        A Dataset over ``reader, component``: ``share`` and ``share_se`` (over texts), NaN for
        components that come after the reader; over ``reader``, ``deviation``: the root of the
        variance.

    Raises:
        ValueError: A reader that the model does not have, that reads within a sequential block or
            is named twice; no token that counts; norms of what attention writes.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> model = load_model("nano")
        >>> corpus = load_corpus("nano", model, sequences=8, length=32)
        >>> found = read_shares(model, corpus, ["L1H3.q", "L1H3.k"], level="head")
        >>> found.share.idxmax("component").values.tolist(), found.share.sum("component").round(3)
        (['0.mlp', 'L0H0'], <xarray.DataArray 'share' (reader: 2)>...
    """
    weights = Weights.of(model)
    check_choice("level", level, ("component", "head"))
    batch_size = count("batch_size", batch_size)
    listed = _listed(weights, readers)
    texts = padded_texts(model, corpus, attention_mask)
    tokens = weights.checked(texts.tokens)
    counts = which_count(model, tokens, texts.real, first)
    sums = {site: _Sums(_matrix(weights, site)) for site in listed}
    labels: list[str] = []
    layers = sorted({site.layer or 0 for site in listed})
    starts = range(0, len(tokens), batch_size)
    for start in tqdm(starts, desc="texts", disable=not progress):
        some = slice(start, start + batch_size)
        for layer in layers:
            residual = streams_before(model, tokens[some], layer, level)
            scale = single(weights.norm.scale(residual.total))[..., None]
            read = weights.norm.keep(single(residual.vectors())) / scale
            labels = max(labels, residual.labels, key=len)
            for site in listed:
                if site.layer == layer:
                    sums[site].add(read, counts[some])
    return _dataset(model, listed, labels, sums, {**texts.attrs, "level": level, "first": first})


def _listed(weights: Weights, readers: Any) -> list[Site]:
    found = weights.places(readers, argument="readers", per_head=True)
    for site in found:
        head = site.name in ("q", "k", "v") and site.head is not None
        neuron = site.name == "pre" and site.neuron is not None
        if not (head or neuron):
            raise ValueError(
                f"readers={site.label!r}; wanted queries, keys or values of a head, as "
                "'L1H3.q', or a neuron, as 'L2N15.pre'"
            )
        if neuron and not weights.parallel:
            raise ValueError(
                f"readers={site.label!r}: the MLPs of model={weights.model.cfg.model_name!r} read "
                "what attention wrote in the same block; wanted a head's, as 'L1H3.q'"
            )
    return found


def _matrix(weights: Weights, site: Site) -> Float[Tensor, "d_model k"]:
    """With what a reader reads the normalised stream."""
    layer = site.layer or 0
    if site.name == "pre":
        return Vectors.of(weights, layer).receptor.folded[site.unit, :, None]
    heads = Heads.of(weights, layer, scores=False)
    return {"q": heads.Q, "k": heads.K, "v": heads.V}[site.name][site.unit]


def _dataset(
    model: Model, listed: list[Site], labels: list[str], sums: dict[Site, _Sums], data: Any
) -> xr.Dataset:
    shape = len(listed), len(labels)
    share, error = np.full(shape, np.nan), np.full(shape, np.nan)
    deviation = np.empty(len(listed))
    for row, site in enumerate(listed):
        top, bottom = (x.cpu().numpy() for x in sums[site].covariances())
        whole = xr.DataArray(bottom, dims="text")
        found = ratio_of_means(xr.DataArray(top, dims=("text", "component")), whole, "text")
        known = top.shape[1]
        share[row, :known], error[row, :known] = (x.values for x in found)
        deviation[row] = (bottom.sum() / sum(float(n.sum()) for n in sums[site].count)) ** 0.5
    dims = ("reader", "component")
    variables = {
        "share": variable(dims, share, unit="share", long_name="share of the reader's variance"),
        "share_se": variable(dims, error, unit="share", long_name="error over texts"),
        "deviation": variable("reader", deviation, unit="activation"),
    }
    coords = {
        "reader": strings([site.label for site in listed]),
        "component": strings(labels),
    }
    attrs = {
        **data,
        **describe(model),
        "analysis": "shares of what is read",
        "long_name": "which components vary what heads and neurons read",
        "unit": "share",
        "exact": 1,
    }
    return xr.Dataset(variables, coords, attrs)
