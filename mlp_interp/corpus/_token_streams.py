"""The mean stream at each token of the vocabulary, as a source for what reads weights as tokens."""

from collections.abc import Sequence
from typing import Any

import torch

from mlp_interp.corpus._sweep import sweep
from mlp_interp.corpus.options import SweepOptions
from mlp_interp.corpus.reducers.token_means import TokenMeans
from mlp_interp.models import Weights
from mlp_interp.models.indices import count, indices
from mlp_interp.models.protocol import Model
from mlp_interp.models.token_streams import TokenStreams, made_of

__all__ = ["token_streams"]


@torch.no_grad()
def token_streams(
    model: Model,
    corpus: Any,
    *,
    layers: int | Sequence[int] | None = None,
    least: int = 10,
    first: int = 1,
    options: SweepOptions = SweepOptions(),
) -> TokenStreams:
    """The mean over a corpus of the stream that enters each layer where a token stands.

    What stands for tokens where weights are read as tokens, in any architecture and at any depth.
    A mean is what a token is like on the average, also in what other tokens before it usually
    bring; no single stream need be like it.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        corpus: As of `sweep`.
        layers: Of which layers; None for all. Each takes ``d_vocab x d_model`` numbers twice.
        least: Tokens that stand in the corpus less often have no vector.
        first: Position from which on tokens count.
        options: As of `sweep`.

    Returns:
        `TokenStreams` of the tokens that were seen often enough, with ``counts``.

    Raises:
        ValueError: Layers that the model does not have; `least` below 1; no token is that
            frequent; or as `sweep`.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> model = load_model("nano")
        >>> corpus = load_corpus("nano", model, sequences=16, length=32)
        >>> streams = token_streams(model, corpus, layers=2, least=3)
        >>> streams.stream(2).shape[0] == len(streams.tokens), int(streams.counts.min())
        (True, 3)
    """
    listed = indices("layers", layers, Weights.of(model).n_layers)
    count("least", least)
    reducer = TokenMeans(layers=listed, first=first)
    found = sweep(model, corpus, {"streams": reducer}, options=options)["streams"]
    counts = torch.from_numpy(found["count"].values)
    tokens = (counts >= least).nonzero()[:, 0]
    if not len(tokens):
        raise ValueError(
            f"least={least}: no token stands in the corpus that often, the most frequent "
            f"{int(counts.max())} times; wanted more text or a smaller number"
        )
    device = Weights.of(model).device
    means = torch.from_numpy(found["mean"].values[:, tokens.numpy()]).to(device)
    return TokenStreams(
        name="corpus",
        tokens=tokens.to(device),
        streams=dict(zip(listed, means, strict=True)),
        exact=dict.fromkeys(listed, False),
        approximation=f"tokens are their mean streams over {found.attrs['data']}",
        made_of=made_of(model),
        counts=counts[tokens],
    )
