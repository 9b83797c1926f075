"""Continuing a text with mean embeddings instead of sampled tokens."""

import math

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.models import Weights, describe, forward_of
from mlp_interp.models.finite import check_weights
from mlp_interp.models.options import checked_number
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.models.unembed import Unembed
from mlp_interp.neurons.inputs.vectors import (
    decoded,
    fed_back,
    nearest,
    prompt_tokens,
    vocabulary_of,
)
from mlp_interp.prompts.reading import ids_and_texts
from mlp_interp.results import single, to_numpy, variable
from mlp_interp.runs.generation import check_room

__all__ = ["expected_embedding_generate"]


@own_mode()
@torch.no_grad()
def expected_embedding_generate(
    model: Model,
    prompt: str | Tensor,
    *,
    max_new_tokens: int = 20,
    temperature: float | int = 1.0,
    prepend_bos: bool = True,
) -> xr.Dataset:
    """Continue a text with the mean embedding of the next token, weighted by its probability.

    Each step reads ``softmax(logits / temperature) @ W_E`` where generation would read the
    embedding of one token: the model goes on from all continuations at once. Nothing is drawn.
    Where the model is sure, the mean is a token's embedding and the text goes on as usual; where it
    is not, the mean is shorter than tokens are and lies between them, which the model has never
    seen in training. What comes after such a step says how the model treats a blend, not what it
    would have written.

    Args:
        model: A TransformerLens model.
        prompt: A text, or token ids ``[pos]`` or ``[1, pos]`` to which nothing is added.
        max_new_tokens: How many steps.
        temperature: What logits are divided by. 0 feeds the most likely token and is greedy
            generation exactly.
        prepend_bos: Begin a text with BOS, as documents of the training text begin.

    Returns:
        A Dataset with dimension ``step`` and, for each: ``token_id``, ``token_text`` and
        ``probability`` of the most likely token, ``entropy`` (nats) of the distribution, at this
        temperature; ``nearest_id``, ``nearest_text`` and ``cosine`` of the token whose embedding
        points most nearly where the mean points; ``relative_norm`` of the mean, over the mean norm
        of the tokens' embeddings. ``text``, without a dimension, joins the most likely tokens.
        Norms and cosines are of centred vectors, as no LayerNorm sees the mean over ``d_model``. On
        a model with hooks that somebody left on its embedding, those see the prompt only.

    Raises:
        ValueError: The prompt is empty, has other tokens than the model or no room for new ones, an
            option is out of range, or weights are not finite.

    References:
        Feeding mixtures back is Hao et al., "Training Large Language Models to Reason in a
        Continuous Latent Space", 2024, and Zhang et al., "Soft Thinking", 2025; here nothing is
        trained.

    Example:
        >>> from mlp_interp import load_model
        >>> found = expected_embedding_generate(
        ...     load_model("nano"), "The rocket flew to the", max_new_tokens=2
        ... )
        >>> found["token_text"].values.tolist()
        [' moon', ' with']
    """
    good = "a number from 0"
    temperature = checked_number("temperature", temperature, lambda x: 0 <= x < math.inf, good)
    tokens = prompt_tokens(model, prompt, prepend_bos=prepend_bos)
    if not tokens.numel():
        raise ValueError(f"prompt={prompt!r} is empty; wanted at least one token")
    check_room(tokens.shape[1], max_new_tokens, int(model.cfg.n_ctx))
    check_weights(model)
    forward = forward_of(model)
    W_E = forward.embeddings()

    def mean_embedding(logits: Float[Tensor, "batch d_vocab"]) -> Float[Tensor, "batch d_model"]:
        if temperature == 0:
            return W_E[logits.argmax(-1)]
        return probabilities(logits, temperature).to(W_E.dtype) @ W_E

    steps = fed_back(
        forward, Unembed.of(model), forward.embed(tokens), mean_embedding, steps=max_new_tokens
    )
    pairs = [(logits[0], fed[0]) for logits, fed in steps]
    logits, fed = (torch.stack(part) for part in zip(*pairs, strict=True))
    result = _dataset(model, W_E, logits, fed, temperature)
    return result.assign_attrs(
        {
            **describe(model),
            "analysis": "expected_embedding_generate",
            "exact": 1,
            "long_name": "a text continued with mean embeddings",
            "unit": "see each variable",
            "data": "the prompt",
            "prompt": decoded(model, tokens)[0],
            "temperature": float(temperature),
            "engine": forward.engine,
        }
    )


def probabilities(
    logits: Float[Tensor, "*rest d_vocab"], temperature: float | int
) -> Float[Tensor, "*rest d_vocab"]:
    """Softmax of logits over the temperature; all on the most likely token at 0."""
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits)
    logits = single(logits)
    # Less the largest first: divided by a small temperature, logits themselves could overflow.
    return ((logits - logits.max(-1, keepdim=True).values) / temperature).softmax(-1)


def _dataset(
    model: Model,
    W_E: Float[Tensor, "token d_model"],
    logits: Float[Tensor, "step d_vocab"],
    fed: Float[Tensor, "step d_model"],
    temperature: float | int,
) -> xr.Dataset:
    p = probabilities(logits.double(), temperature)
    likely, known = p.max(-1), vocabulary_of(model, None).to(W_E.device)
    norm = Weights.of(model).norm
    cosine, near = nearest(W_E[known], fed, norm=norm, top=1)
    size = norm.keep(W_E[known]).norm(dim=-1).mean()
    numbers = {
        "probability": (likely.values, "probability", "its probability"),
        "entropy": (torch.special.entr(p).sum(-1), "nats", "entropy of the distribution"),
        "cosine": (cosine[:, 0], "cosine", "its cosine with the mean embedding"),
        "relative_norm": (
            norm.keep(fed).norm(dim=-1) / size,
            "ratio",
            "norm of the mean over tokens' mean norm",
        ),
    }
    tokens = {
        "token": (likely.indices, "most likely token"),
        "nearest": (known[near[:, 0]], "token nearest the mean"),
    }
    result = xr.Dataset(coords={"step": range(len(fed))})
    for name, (ids, about) in tokens.items():
        result = result.assign(ids_and_texts(model, name, "step", to_numpy(ids), about))
    for name, (values, unit, about) in numbers.items():
        result[name] = variable("step", values, unit=unit, long_name=about)
    text = decoded(model, likely.indices[None])[0]
    return result.assign(text=variable((), text, unit="text", long_name="likely tokens"))
