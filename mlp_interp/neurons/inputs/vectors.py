"""Vectors as a model's input: where they enter, which tokens they are near, what it makes of them.

A LayerNorm stands before everything that reads the stream, so the mean of a vector over ``d_model``
is seen by nothing, and processed weights have none. Norms, cosines and distances are therefore
those of centred vectors: then they do not depend on how the weights were processed.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.models import Forward, HookForward, Weights
from mlp_interp.models.forward import KVCache
from mlp_interp.models.norm import Norm
from mlp_interp.models.protocol import Model
from mlp_interp.models.unembed import Unembed
from mlp_interp.models.vectors import unit
from mlp_interp.prompts.pairs import encode_prompt
from mlp_interp.prompts.reading import readable
from mlp_interp.prompts.tokenizing import decode, ids_in_text, tokenizer_of
from mlp_interp.results import single

__all__ = [
    "decoded",
    "fed_back",
    "nearest",
    "placed",
    "prompt_tokens",
    "read_aloud",
    "vocabulary_of",
]


def placed(
    weights: Weights, vectors: Float[Tensor, "batch pos d_model"], first: int
) -> Float[Tensor, "batch pos d_model"]:
    """The stream before the first block, of vectors that stand in for tokens from `first` on."""
    if weights.has_pos_embed:
        vectors = vectors + weights.W_pos[first : first + vectors.shape[1]]
    return vectors


def prompt_tokens(
    model: Model, prompt: str | Tensor | None, *, prepend_bos: bool
) -> Int[Tensor, "1 pos"]:
    """A prompt as one row of tokens, which may be empty.

    Args:
        model: A TransformerLens model.
        prompt: A text; token ids ``[pos]`` or ``[1, pos]``, to which nothing is added; None for
            no text.
        prepend_bos: Whether a text, or the lack of one, begins with BOS.

    Raises:
        ValueError: The model has no tokenizer or no BOS token, ids are of another shape or outside
            the vocabulary, or there are more than the context holds.
    """
    weights = Weights.of(model)
    if isinstance(prompt, Tensor):
        if prompt.ndim not in (1, 2) or (prompt.ndim == 2 and len(prompt) != 1):
            raise ValueError(f"prompt={tuple(prompt.shape)}; wanted token ids [pos] or [1, pos]")
        return weights.checked(prompt.reshape(1, -1))
    ids: list[int] = []
    if prompt or prepend_bos:
        ids = encode_prompt(tokenizer_of(model), prompt or "", prepend_bos=prepend_bos)
    tokens = torch.tensor([ids], dtype=torch.long, device=weights.device)
    return weights.checked(tokens) if ids else tokens


def vocabulary_of(
    model: Model, vocabulary: Sequence[int] | Tensor | None
) -> Int[Tensor, " candidate"]:
    """The tokens to choose among: those given, or all that the tokenizer knows.

    Embedding matrices are often padded with rows that no text reaches.

    Raises:
        ValueError: None are given, one twice, or one has no embedding.
    """
    weights = Weights.of(model)
    size = weights.W_E.shape[0]
    if vocabulary is None:
        return torch.arange(ids_in_text(model))
    ids = torch.as_tensor(vocabulary).cpu()
    if ids.ndim != 1 or not len(ids) or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(
            f"vocabulary={tuple(ids.shape)} of {ids.dtype}; wanted a list of at least one token id"
        )
    if not (0 <= int(ids.min()) and int(ids.max()) < size):
        wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise ValueError(f"vocabulary holds {wrong}; wanted ids from 0 to {size - 1}")
    if len(ids.unique()) != len(ids):
        raise ValueError("vocabulary holds a token twice; wanted each once")
    return ids.long()


def nearest(
    rows: Float[Tensor, "candidate d_model"],
    vectors: Float[Tensor, "*rest d_model"],
    *,
    norm: Norm,
    top: int,
) -> tuple[Float[Tensor, "*rest rank"], Int[Tensor, "*rest rank"]]:
    """Cosine with and index of the rows of highest cosine, of vectors as the norms keep them."""
    rows, vectors = (unit(norm.keep(single(x))) for x in (rows, vectors))
    found = (vectors @ rows.T).topk(top)
    return found.values, found.indices


def decoded(model: Model, tokens: Int[Tensor, "row pos"]) -> list[str]:
    """Each row as text; ``#17`` for token 17 where there is no tokenizer."""
    tokenizer = getattr(model, "tokenizer", None)
    return [readable(decode(tokenizer, row)) for row in tokens.tolist()]


def fed_back(
    forward: Forward | HookForward,
    unembed: Unembed,
    stream: Float[Tensor, "batch pos d_model"],
    vectors: Callable[[Tensor], Tensor],
    *,
    steps: int,
) -> Iterator[tuple[Float[Tensor, "batch d_vocab"], Float[Tensor, "batch d_model"]]]:
    """Run a stream on and on, each step on a vector made from the logits of the one before.

    Args:
        forward: The forward pass. Only the new position is run at each step where it keeps keys
            and values; otherwise everything is.
        unembed: The readout.
        stream: The stream before the first block.
        vectors: From logits ``[batch, d_vocab]`` to what stands in for the next token's embedding,
            ``[batch, d_model]``.
        steps: How often.

    Yields:
        The logits at the last position, and the vector made from them.
    """
    kv_cache = KVCache() if isinstance(forward, Forward) else None
    length, new = stream.shape[1], stream
    for step in range(steps):
        with torch.no_grad():
            if isinstance(forward, Forward):
                final = forward.run(new, kv_cache=kv_cache)
            else:
                stream = stream if step == 0 else torch.cat((stream, new), 1)
                final = forward.run(stream)
            logits = unembed.logits(final[:, -1])
            fed = vectors(logits)
            new = placed(forward.weights, fed[:, None], length + step)
        yield logits, fed


def read_aloud(
    forward: Forward | HookForward,
    unembed: Unembed,
    stream: Float[Tensor, "batch pos d_model"],
    *,
    steps: int,
) -> Int[Tensor, "batch step"]:
    """Most likely tokens that continue a stream, one after the other."""
    found = [torch.empty(len(stream), 0, dtype=torch.long, device=stream.device)]
    embeddings = forward.embeddings()

    def most_likely(logits: Tensor) -> Tensor:
        found.append(logits.argmax(-1, keepdim=True))
        return embeddings[found[-1][:, 0]]

    for _ in fed_back(forward, unembed, stream, most_likely, steps=steps):
        pass
    return torch.cat(found, 1)
