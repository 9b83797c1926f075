"""What paths from a token straight to the logits predict: how good are they as bigrams?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.models import Unembed, Weights, describe
from mlp_interp.models.indices import distinct
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.padding import check_first
from mlp_interp.models.protocol import Model
from mlp_interp.models.token_streams import TokenStreams, streams_of
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.results import mean_and_error, single, variable

__all__ = ["bigrams"]

_SOURCES = {"embed": "embed", "embed+0.mlp": "extended"}
_ROWS = 512


@own_mode()
@torch.no_grad()
def bigrams(
    model: Model,
    corpus: Any,
    *,
    attention_mask: Any = None,
    paths: Sequence[str] = ("embed", "embed+0.mlp"),
    first: int = 1,
) -> xr.Dataset:
    """How well the shortest paths predict the next token from the one that stands there.

    ``embed``: the embedding goes straight to the readout, ``W_E W_U``, which in a transformer
    without layers would be the bigrams. ``embed+0.mlp``: the stream after block 0 as far as it
    depends on the token alone. The final norm divides by the scale of that stream alone.

    Beside them stand what counts of the same text give, unigrams and bigrams: they know the text
    that they are asked about, so no predictor from one token has a smaller loss there than the
    bigrams have.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        corpus: As of `mlp_interp.corpus.sweep`.
        attention_mask: As there.
        paths: Which paths.
        first: Position of the first token that predicts.

    Returns:
        A Dataset along ``path``: ``loss`` in nats per token with ``loss_se`` over sequences, and
        ``agreement``, the share of tokens at which the path's likeliest token is the one that
        follows that token most often in the text; and ``unigram_loss``, ``bigram_loss`` with their
        errors. ``exact`` is 0: in the model other parts are in the stream, too.

    Raises:
        ValueError: Paths that are not known, tokens that are not the model's, or texts without a
            next token.

    References:
        Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021, on zero layers.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> model = load_model("nano")
        >>> found = bigrams(model, load_corpus("nano", model, sequences=32, length=32))
        >>> loss = found["loss"].sel(path=["embed", "embed+0.mlp"])
        >>> bool(loss[0] > found["unigram_loss"]), bool(loss[1] < found["unigram_loss"])
        (True, True)
    """
    listed = distinct("paths", paths)
    check_first(first)
    wrong = [path for path in listed if path not in _SOURCES]
    if wrong or not listed:
        raise ValueError(f"paths={listed!r}; wanted some of {', '.join(map(repr, _SOURCES))}")
    texts = padded_texts(model, corpus, attention_mask)
    weights = Weights.of(model)
    tokens = weights.checked(texts.tokens.long())
    follows, counts = _followers(tokens, texts.lengths, first)
    if not bool(counts.any(1).all()) or int(follows.max()) >= weights.d_vocab:
        raise ValueError(
            f"first={first}: a text of the corpus has no token after that position which the model "
            "can predict; wanted longer texts"
        )
    pairs = _Pairs(tokens[:, first:-1], follows, counts, weights.d_vocab)
    rows = [pairs.judged(*_path(weights, name, pairs.standing)) for name in listed]
    (loss, error), agreement = (
        zip(*(row[0] for row in rows), strict=True),
        [row[1] for row in rows],
    )
    variables: dict[str, Any] = {
        "loss": variable("path", np.array(loss), unit="nats per token", long_name="loss"),
        "loss_se": variable("path", np.array(error), unit="nats per token"),
        "agreement": variable(
            "path", np.array(agreement), unit="fraction", long_name="as the likeliest bigram"
        ),
    }
    for name, counted in (("unigram", pairs.unigrams), ("bigram", pairs.bigrams)):
        mean, spread = pairs.mean(counted)
        variables[f"{name}_loss"] = variable((), mean, unit="nats per token")
        variables[f"{name}_loss_se"] = variable((), spread, unit="nats per token")
    about = {
        "analysis": "bigrams",
        "unit": "nats per token",
        "exact": 0,
        "approximation": "nothing but the path is in the final stream, whose scale it sets",
        "first": first,
    }
    return xr.Dataset(variables, {"path": [*listed]}, {**texts.attrs, **describe(model), **about})


def _followers(
    tokens: Int[Tensor, "batch pos"], lengths: Tensor | None, first: int
) -> tuple[Int[Tensor, "batch later"], Tensor]:
    """The token after each position that predicts, and whether it is text."""
    follows = tokens[:, first + 1 :]
    if lengths is None:
        return follows, torch.ones_like(follows, dtype=torch.bool)
    at = torch.arange(first + 1, tokens.shape[1], device=tokens.device)
    return follows, at < lengths.to(tokens.device)[:, None]


def _path(
    weights: Weights, name: str, tokens: Int[Tensor, " some"]
) -> tuple[Unembed, Float[Tensor, "some d_model"]]:
    """The readout, and the stream that a path has at some tokens."""
    streams: TokenStreams = streams_of(weights.model, _SOURCES[name])
    return Unembed.of(weights.model), streams.stream(int(name != "embed"))[tokens]


class _Pairs:
    """The pairs of neighbouring tokens of some texts.

    Attributes:
        standing: The different tokens that predict.
    """

    def __init__(self, tokens: Tensor, follows: Tensor, counts: Tensor, d_vocab: int) -> None:
        self.follows, self.counts = follows, counts
        self.standing, self.at = tokens.unique(return_inverse=True)
        key = self.at * d_vocab + follows
        pair, self.pair_at, number = key.unique(return_inverse=True, return_counts=True)
        # Padding is in no count.
        number = torch.zeros_like(number).index_add_(
            0, self.pair_at[counts], torch.ones_like(self.pair_at[counts])
        )
        self.pair, self.number, self.d_vocab = pair, number, d_vocab

    @property
    def unigrams(self) -> Float[Tensor, "batch later"]:
        """Loss of the frequency of each token that follows."""
        count = torch.bincount(self.follows[self.counts], minlength=self.d_vocab).double()
        return -(count / count.sum()).log()[self.follows]

    @property
    def bigrams(self) -> Float[Tensor, "batch later"]:
        """Loss of its frequency after the token before it."""
        before = torch.bincount(self.at[self.counts], minlength=len(self.standing)).double()
        return -(self.number[self.pair_at] / before[self.at]).log()

    def mean(self, loss: Float[Tensor, "batch later"]) -> tuple[float, float]:
        """Mean over tokens of each text, then over texts, with its error."""
        each = (torch.where(self.counts, loss, 0)).sum(1) / self.counts.sum(1)
        mean, error = mean_and_error(each.double())
        return float(mean), float(error)

    def judged(
        self, unembed: Unembed, streams: Float[Tensor, "some d_model"]
    ) -> tuple[tuple[float, float], float]:
        """Loss with its error, and agreement with the likeliest bigrams, of streams of tokens."""
        logp = torch.empty(len(self.pair), dtype=torch.float64, device=streams.device)
        top = torch.empty(len(streams), dtype=torch.int64, device=streams.device)
        row, column = self.pair // self.d_vocab, self.pair % self.d_vocab
        for start in range(0, len(streams), _ROWS):
            some = slice(start, start + _ROWS)
            logits = single(unembed.logits(streams[some].to(unembed.weight.dtype)))
            top[some] = logits.argmax(-1)
            here = (row >= start) & (row < start + _ROWS)
            normal = logits.logsumexp(-1)
            at = row[here] - start
            logp[here] = (logits[at, column[here]] - normal[at]).double()
        # Of each token the pair with the largest count; the first of equals.
        order = self.number.argsort(stable=True, descending=True)
        order = order[row[order].argsort(stable=True)]
        first = torch.searchsorted(row[order], torch.arange(len(streams), device=row.device))
        same = (column[order[first]] == top)[self.at]
        return self.mean(-logp[self.pair_at]), float(same[self.counts].double().mean())
