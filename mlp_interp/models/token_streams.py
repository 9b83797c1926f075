"""What stands for each token of the vocabulary in the stream that a layer reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import xxhash
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.models._checksum import checksum
from mlp_interp.models.engine import forward_of
from mlp_interp.models.forward import Forward
from mlp_interp.models.heads import Heads
from mlp_interp.models.protocol import Model
from mlp_interp.models.weights import Weights
from mlp_interp.results import single

__all__ = ["TokenSource", "TokenStreams", "made_of", "streams_of"]

_ROWS = 2048
"""Tokens at a time that go through an MLP."""


@dataclass(frozen=True)
class TokenStreams:
    """A vector for each of some tokens in the stream that enters each layer.

    Attributes:
        name: ``"embed"``, ``"extended"`` or ``"corpus"``.
        tokens: Which tokens have one.
        streams: By layer, one row a token; layers may share them. The number of layers stands for
            the readout.
        exact: By layer, whether the rows are all that layer reads of a token apart from what heads
            bring from elsewhere.
        approximation: In words, what they leave out where they are not exact.
        made_of: Tells the model that they belong to.
        counts: How often each token was seen, where they come from a corpus.
    """

    name: str
    tokens: Int[Tensor, " token"]
    streams: Mapping[int, Float[Tensor, "token d_model"]]
    exact: Mapping[int, bool]
    approximation: str
    made_of: str
    counts: Int[Tensor, " token"] | None = None

    def stream(self, layer: int) -> Float[Tensor, "token d_model"]:
        """The stream that enters a layer where each token stands.

        Raises:
            ValueError: It is not known of this layer.
        """
        if layer not in self.streams:
            raise ValueError(
                f"source={self.name!r} has streams of layers {sorted(self.streams)}; wanted "
                f"layer {layer} too"
            )
        return self.streams[layer]

    def attrs(self, layers: Any) -> dict[str, Any]:
        """What results of some layers say of it: ``source``, ``exact``, ``approximation``."""
        exact = all(self.exact[layer] for layer in layers)
        about = {} if exact else {"approximation": self.approximation}
        return {"source": self.name, "exact": int(exact), **about}


TokenSource = Literal["embed", "extended"] | TokenStreams
"""What stands for the tokens: their embeddings, the token-only stream, or means over a corpus."""


@torch.no_grad()
def streams_of(
    model: Model, source: Any = "extended", *, tokens: Int[Tensor, " token"] | None = None
) -> TokenStreams:
    """The streams that somebody asked for.

    ``"embed"``: the token embedding, which is all that block 0 reads (with learned positions, less
    these). ``"extended"``: the same for block 0, and for later ones the part of the stream after
    block 0 that depends on the token alone: embedding, MLP 0 and what the heads write whatever they
    attend to. In a parallel block, where MLP 0 reads the embedding, this is exact: what is missing
    is what heads bring from other tokens (and in later layers what MLPs make of that). So it is
    without MLPs. In a sequential block MLP 0 also reads what heads bring, which is left out.

    Args:
        model: The model.
        source: One of these two words, or `TokenStreams` of this model.
        tokens: Of which tokens, for the two words; None for the whole vocabulary.

    Raises:
        ValueError: It is none of these, of another model, or the model's MLPs cannot be run on
            tokens.

    References:
        Elhelo and Geva, "Inferring Functionality of Attention Heads from their Parameters", 2025,
        use ``"extended"`` of sequential models.

    Example:
        >>> from mlp_interp import load_model
        >>> streams = streams_of(load_model("nano"), "extended")
        >>> streams.stream(1).shape, streams.exact[1], streams.exact[2]
        (torch.Size([2048, 192]), True, False)
    """
    weights = Weights.of(model)
    if isinstance(source, TokenStreams):
        if source.made_of != made_of(model):
            raise ValueError(
                f"source={source.name!r} holds streams of another model than "
                f"model={model.cfg.model_name!r}; wanted token streams of this one"
            )
        return source
    if source not in ("embed", "extended"):
        raise ValueError(f"source={source!r}; wanted 'embed', 'extended' or TokenStreams")
    embedded = forward_of(model).embeddings()
    if tokens is None:
        tokens, embedded = torch.arange(len(embedded), device=embedded.device), single(embedded)
    else:
        embedded = single(embedded[tokens])
    first = not weights.has_pos_embed
    layers = range(weights.n_layers + 1)  # after the last one the readout reads
    streams, exact = dict.fromkeys(layers, embedded), dict.fromkeys(layers, False)
    about = "tokens are their embeddings alone, which later layers do not read alone"
    if source == "extended":
        after = _extended(weights, embedded)
        streams = {layer: after if layer else embedded for layer in layers}
        whole = weights.parallel or not weights.has_mlps
        exact[1] = whole and first
        about = "tokens are what the stream has of them alone after block 0"
        about += "" if whole else ", without what MLP 0 makes of attention"
    about += "" if first else "; learned positions are left out"
    exact[0] = first
    return TokenStreams(str(source), tokens, streams, exact, about, made_of(model))


@torch.no_grad()
def made_of(model: Model) -> str:
    """What tells a model's streams from those of one with other weights or other processing."""
    digest = xxhash.xxh3_128(repr(vars(model.cfg)).encode())
    for name, x in [("W_E", model.W_E), *model.named_parameters()]:
        digest.update(f"{name} {tuple(x.shape)} {checksum(x)}".encode())
    return digest.hexdigest()


def _extended(weights: Weights, embedded: Tensor) -> Tensor:
    """The stream after block 0, less what heads bring that depends on what they attend to."""
    forward = forward_of(weights.model)
    if weights.has_mlps and not isinstance(forward, Forward):
        raise ValueError(
            f"source='extended': the MLPs of model={weights.model.cfg.model_name!r} are only known "
            "within its own forward pass; wanted source='embed', or token streams of a corpus"
        )
    # Of what heads write only what norms let through: no layer reads the rest.
    constant = Heads.of(weights, 0, scores=False).constant.sum(0)
    constant = constant + single(weights.parameter(0, "b_O"))
    if not weights.has_mlps or not isinstance(forward, Forward):
        return embedded + constant
    read = embedded if weights.parallel else embedded + constant
    out = torch.empty_like(embedded)
    for rows in range(0, len(out), _ROWS):
        some = slice(rows, rows + _ROWS)
        written = forward.mlp(0, read[some].to(weights.dtype))
        out[some] = embedded[some] + constant + single(written)
    return out
