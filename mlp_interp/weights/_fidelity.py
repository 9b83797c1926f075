"""How much of a vector do its largest token coordinates hold?"""

from collections.abc import Sequence
from typing import Any

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.models import Weights, describe, forward_of
from mlp_interp.models.indices import indices
from mlp_interp.models.options import checked_count, checked_counts, checked_seed
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.padding import Padded, which_count
from mlp_interp.models.protocol import Model
from mlp_interp.models.vectors import Vectors
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.results import mean_and_error, variable
from mlp_interp.weights.matrices import readout

__all__ = ["embedding_fidelity"]

_KEEP = 10, 100, 1000
_WAYS = ("transpose", "pseudoinverse")
_SEQUENCES = 8


@own_mode()
@torch.no_grad()
def embedding_fidelity(
    model: Model,
    corpus: Any = None,
    *,
    attention_mask: Any = None,
    keep: Sequence[int] | None = None,
    layers: int | Sequence[int] | None = None,
    sample: int = 256,
    seed: int = 0,
) -> xr.Dataset:
    """How well vectors are told by the few tokens that they raise or lower most.

    A vector ``x`` has coordinates ``x W'`` in the tokens. Kept are the `keep` largest in size, and
    the vector is made of them again: with ``W'`` transposed, as is usual, or with its
    pseudo-inverse, which of all coordinates makes ``x`` itself. A low cosine says that a list of so
    many tokens leaves out most of the vector.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        corpus: For streams: as of `mlp_interp.corpus.sweep`, of which the first 8 sequences are
            run; None for value vectors alone.
        attention_mask: As there.
        keep: How many coordinates; None for those of 10, 100 and 1000 that the vocabulary has.
        layers: Which layers; None for all.
        sample: How many vectors of each kind and layer, drawn.
        seed: Of the draw.

    Returns:
        A Dataset over ``layer, k, way``: ``value``, the mean cosine of value vectors to what is
        made of them, ``value_se`` over vectors; with a corpus ``stream`` and ``stream_se`` (over
        the drawn positions) of the streams that leave the layers, but at the first position, BOS
        and padding; and ``chance``: of random directions, which have no tokens of their own.
        ``exact`` is 0 where there are more vectors than were drawn.

    Raises:
        ValueError: Numbers out of range, layers that the model does not have, tokens that are not
            its own, or none that counts.

    References:
        Dar et al., "Analyzing Transformers in Embedding Space", 2023, appendix A.

    Example:
        >>> from mlp_interp import load_model
        >>> found = embedding_fidelity(load_model("nano"), keep=[10, 1000], layers=2)
        >>> cosine = found["value"].isel(layer=0).sel(k=1000)
        >>> bool(cosine.sel(way="pseudoinverse") > 0.95)
        True
    """
    weights = Weights.of(model)
    listed = indices("layers", layers, weights.n_layers)
    if keep is None:
        keep = [k for k in _KEEP if k <= weights.d_vocab] or [weights.d_vocab]
    points = checked_counts(keep, weights.d_vocab, "tokens", name="keep")
    checked_count(sample, 2**20, "vectors that are reasonable", name="sample")
    generator = torch.Generator().manual_seed(checked_seed(seed))
    texts = None if corpus is None else padded_texts(model, corpus, attention_mask)
    columns = readout(weights)[1].double()
    inverse = torch.linalg.pinv(columns.T @ columns) @ columns.T
    back = {"transpose": columns, "pseudoinverse": inverse.T}
    streams = {} if texts is None else _streams(weights, texts, listed)
    rows: dict[str, list[Tensor]] = {}
    drawn_of = 0
    for layer in listed:
        vectors = {"value": Vectors.of(weights, layer).value_folded}
        if layer in streams:
            vectors["stream"] = streams[layer]
        drawn_of = max(drawn_of, *map(len, vectors.values()))
        noise = torch.randn(sample, weights.d_model, generator=generator, dtype=torch.float32)
        vectors["chance"] = weights.norm.keep(noise.to(columns.device))
        for name, x in vectors.items():
            drawn = torch.randperm(len(x), generator=generator)[:sample].to(x.device)
            rows.setdefault(name, []).append(_cosines(x[drawn].double(), columns, back, points))
    variables: dict[str, Any] = {}
    for name, found in rows.items():
        mean, error = mean_and_error(torch.stack(found))
        dims, about = ("layer", "k", "way"), f"cosine of {name} vectors to what is made of tokens"
        variables[name] = variable(dims, mean, unit="cosine", long_name=about)
        variables[f"{name}_se"] = variable(dims, error, unit="cosine", long_name="standard error")
    attrs = {"analysis": "embedding_fidelity", "unit": "cosine", "seed": seed, "exact": 1}
    if drawn_of > sample:
        attrs |= {"exact": 0, "approximation": f"of each kind and layer {sample} vectors, drawn"}
    attrs |= {"data": "the weights alone"} if texts is None else _about(texts)
    coords = {"layer": [*listed], "k": [*points], "way": [*_WAYS]}
    return xr.Dataset(variables, coords, {**describe(model), **attrs})


def _about(texts: Padded) -> dict[str, Any]:
    """What results say of the texts."""
    data = texts.attrs["data"]
    some = len(texts.tokens) > _SEQUENCES
    return {**texts.attrs, "data": f"first {_SEQUENCES} sequences of {data}" if some else data}


def _streams(
    weights: Weights, texts: Padded, layers: Sequence[int]
) -> dict[int, Float[Tensor, "position d_model"]]:
    """What leaves some layers at all positions that count, of a few sequences."""
    tokens = weights.checked(texts.tokens[:_SEQUENCES])
    real = None if texts.real is None else texts.real[:_SEQUENCES]
    counts = which_count(weights.model, tokens, real, 1)
    found: dict[int, Tensor] = {}

    def observe(name: str, layer: int, x: Tensor) -> Tensor:
        if name == "resid_post" and layer in layers:
            found[layer] = weights.norm.keep(x[counts].float())
        return x

    forward = forward_of(weights.model)
    forward.run(forward.embed(tokens), observe=observe)
    return found


def _cosines(
    x: Float[Tensor, "vector d_model"],
    columns: Float[Tensor, "token d_model"],
    back: dict[str, Float[Tensor, "token d_model"]],
    points: Sequence[int],
) -> Float[Tensor, "k way vector"]:
    """Cosines of vectors to what is made of their largest coordinates."""
    coordinates = x @ columns.T
    found = []
    for k in points:
        at = coordinates.abs().topk(k, dim=1).indices
        kept = torch.zeros_like(coordinates).scatter_(1, at, coordinates.gather(1, at))
        found.append(
            torch.stack([torch.cosine_similarity(kept @ back[way], x, dim=-1) for way in _WAYS])
        )
    return torch.stack(found)
