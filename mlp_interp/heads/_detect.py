"""How much attention each head pays to the tokens that a kind of head is known by."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mlp_interp.heads._repeated import Repeated
from mlp_interp.models import Forward, HookForward, Weights, describe, forward_of
from mlp_interp.models.indices import count, distinct
from mlp_interp.models.options import check_choice
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.results import mean_and_error, strings, variable
from mlp_interp.sites import Site

__all__ = ["KINDS", "attended", "detect"]

KINDS = ("previous", "duplicate", "induction", "first", "self")

_REPEATING = ("duplicate", "induction")
"""Kinds that a text without repeated tokens has no keys for."""


def attended(
    tokens: Int[Tensor, "batch pos"], kind: str, real: Bool[Tensor, "batch pos"] | None = None
) -> Bool[Tensor, "batch pos source"]:
    """Which keys a kind of head attends to from each query, later than the first position.

    Example:
        >>> attended(torch.tensor([[5, 6, 5]]), "induction")[0].nonzero().tolist()
        [[2, 1]]
    """
    size = tokens.shape[1]
    i, j = torch.arange(size)[:, None], torch.arange(size)
    i, j = i.to(tokens.device), j.to(tokens.device)
    if kind == "previous":
        keys = (i - j == 1)[None]
    elif kind == "self":
        keys = (i == j)[None]
    elif kind == "first":
        keys = ((j == 0) & (i > 0))[None]
    elif kind == "duplicate":
        keys = (tokens[:, :, None] == tokens[:, None, :]) & (j < i)
    else:
        before = tokens.roll(1, 1)
        keys = (tokens[:, :, None] == before[:, None, :]) & (j > 0) & (j < i)
    keys = keys & (i > 0)
    return keys.expand(len(tokens), size, size) if real is None else keys & real[:, :, None]


@dataclass
class _Watch:
    """Sums up attention patterns as they are computed.

    Attributes:
        weights: For each text, query, key and kind: one over the text's queries of that kind, at
            the keys of that kind.
        found: By layer: ``[batch, head, kind]`` of each batch.
        total: By layer: attention at each query and key, summed over texts; None to leave it.
    """

    weights: Float[Tensor, "batch pair kind"] | None = None
    found: dict[int, list[Tensor]] = field(default_factory=dict)
    total: dict[int, Tensor] | None = None
    real: Float[Tensor, "batch pos"] | None = None

    def __call__(self, name: str, layer: int, x: Tensor) -> Tensor:
        """An observer of a forward pass."""
        if name == "pattern" and self.weights is not None:
            pattern = x.float()
            self.found.setdefault(layer, []).append(pattern.flatten(2) @ self.weights)
            if self.total is not None and self.real is not None:
                summed = torch.einsum("bhij,bi->hij", pattern, self.real)
                self.total[layer] = self.total.get(layer, 0) + summed
        return x

    def scores(self) -> Float[Tensor, "layer head kind batch"]:
        """Of every text."""
        layers = [torch.cat(self.found[layer]) for layer in sorted(self.found)]
        return torch.stack(layers).permute(0, 2, 3, 1)


@torch.no_grad()
def detect(
    model: Model,
    corpus: Any = None,
    *,
    kinds: str | Sequence[str] = KINDS,
    n: int = 64,
    period: int = 24,
    seed: int = 0,
    batch_size: int = 8,
    progress: bool = False,
) -> xr.Dataset:
    """How much of its attention each head pays to the keys of each kind of head, on data.

    For each query the keys of a kind are: ``previous``: the token before it; ``duplicate``: the
    same token, earlier; ``induction``: the token after the same token, earlier; ``first``: the
    first token; ``self``: itself. The score is the attention on these, summed over them, on the
    average over the queries that have such keys; the first position is no query.

    A high score says where a head looks on these texts, not why: it may look at a position. So
    ``expected`` says what to compare it with. On random tokens it is, for ``duplicate`` and
    ``induction``, the attention that the same queries pay to the same positions in texts without a
    repetition; on a corpus the head's mean attention at those distances. For the others it is that
    of a head without preference. Random tokens are texts that no model was trained on; heads may do
    other things on these than on real ones.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        corpus: Texts, tokens ``[batch, pos]`` or a `Corpus`; None for `n` texts of random tokens,
            all different, that come twice.
        kinds: One or several.
        n: Random texts.
        period: Different tokens in each.
        seed: Of random texts.
        batch_size: Texts at a time.
        progress: Show a progress bar.

    Returns:
        A Dataset over ``kind, layer, head``: ``score``, ``score_se`` (over texts) and ``expected``;
        over ``kind`` ``queries``, how many there were. NaN where there were none.

    Raises:
        ValueError: An unknown kind or one named twice; a number below 1; a period that does not fit
            twice into the context; tokens that the model cannot take.

    References:
        Olsson et al., "In-context Learning and Induction Heads", 2022.

    Example:
        >>> from mlp_interp import load_model
        >>> found = detect(load_model("nano"), n=8)
        >>> bool((found.score.sel(kind="induction", layer=1) > 0.9).all())
        True
    """
    kinds = distinct("kinds", kinds)
    for kind in kinds:
        check_choice("kinds", kind, KINDS)
    if not kinds:
        raise ValueError(f"kinds=(); wanted at least one of {', '.join(KINDS)}")
    batch_size = count("batch_size", batch_size)
    weights = Weights.of(model)
    drawn = Repeated.of(weights, n, period, seed) if corpus is None else None
    if drawn is not None:
        tokens, real, data = drawn.tokens, None, f"{n} random texts, {period} tokens twice"
    else:
        texts = padded_texts(model, corpus)
        tokens, real, data = weights.checked(texts.tokens), texts.real, texts.attrs["data"]
    watch = _Watch(total={} if corpus is not None else None)
    masks = partial(_masks, kinds=kinds)
    expected = torch.full((weights.n_layers, weights.n_heads, len(kinds)), torch.nan)
    repeating = [i for i, kind in enumerate(kinds) if kind in _REPEATING]
    controls = [drawn.controls] if repeating and drawn is not None else []
    mask = masks(tokens, real)
    # Texts without a repetition are asked about the places of those with one.
    mask = torch.cat([mask, *(mask[:1].expand(len(x), *mask.shape[1:]) for x in controls)])
    queries = _run(model, watch, mask, torch.cat([tokens, *controls]), real, batch_size, progress)
    every, queries, mask = watch.scores(), queries[: len(tokens)], mask[: len(tokens)]
    if controls:
        expected[:] = every[..., len(tokens) :].mean(-1)
    elif repeating:
        expected[:] = _by_distance(watch, mask, tokens, real)
    for i, kind in enumerate(kinds):
        if kind not in _REPEATING:
            expected[:, :, i] = _uniform(mask[..., i])
    score, error = mean_and_error(_without(every[..., : len(tokens)], queries))
    dims = ("layer", "head", "kind")
    variables = {
        "score": variable(dims, score, unit="attention", long_name="mean attention on such keys"),
        "score_se": variable(dims, error, unit="attention", long_name="error over texts"),
        "expected": variable(dims, expected, unit="attention", long_name="without a preference"),
        "queries": variable("kind", queries.sum(0), unit="queries"),
    }
    units, layers = range(weights.n_heads), range(weights.n_layers)
    labels = [[Site("z", layer, head=head).label for head in units] for layer in layers]
    coords = {
        "kind": list(kinds),
        "layer": [*layers],
        "head": [*units],
        "component": (("layer", "head"), strings(labels)),
    }
    attrs = {
        **describe(model),
        "analysis": "kinds of heads",
        "long_name": "attention on the keys of each kind of head",
        "unit": "attention",
        "data": data,
        "exact": 1,
    } | ({} if drawn is None else {"n": n, "period": period, "seed": seed})
    return xr.Dataset(variables, coords, attrs).transpose("kind", "layer", "head")


def _masks(
    tokens: Int[Tensor, "batch pos"], real: Tensor | None, kinds: Sequence[str]
) -> Bool[Tensor, "batch pos source kind"]:
    return torch.stack([attended(tokens, kind, real) for kind in kinds], dim=-1)


def _run(
    model: Model,
    watch: _Watch,
    mask: Bool[Tensor, "batch pos source kind"],
    tokens: Int[Tensor, "batch pos"],
    real: Bool[Tensor, "batch pos"] | None,
    batch_size: int,
    progress: bool,
) -> Int[Tensor, "batch kind"]:
    """Run texts and watch; how many queries of each kind each of them has."""
    forward, queries = forward_of(model), []
    there = torch.ones_like(tokens, dtype=torch.bool) if real is None else real.to(tokens.device)
    # In batches of one size, or nearly: the last one may else be of a single text.
    parts = torch.arange(len(tokens)).chunk(-(-len(tokens) // batch_size))
    for some in tqdm(parts, desc="texts", disable=not progress):
        number = mask[some].any(2).sum(1)
        watch.weights = (mask[some] / number.clamp_min(1)[:, None, None]).flatten(1, 2)
        watch.real = there[some].float()
        queries.append(number.cpu())
        _patterns(forward, forward.embed(tokens[some]), watch)
    return torch.cat(queries)


def _patterns(forward: Forward | HookForward, stream: Tensor, watch: _Watch) -> None:
    """Show the attention patterns of all layers, and compute no more where that can be left."""
    last = forward.weights.n_layers - 1
    if not isinstance(forward, Forward):
        forward.run(stream, observe=watch, patterns=range(last + 1))
        return
    stream = forward.run(stream, observe=watch, patterns=range(last), stop=last)
    normalized = forward.normalize(stream)
    positions = torch.arange(stream.shape[1], device=stream.device)
    rotary = forward.rotary(positions, like=stream)
    q = forward.queries(last, normalized)
    k, _ = forward.keys_and_values(last, normalized)
    q, k = (forward.turned(last, name, x, rotary) for name, x in (("q", q), ("k", k)))
    watch("pattern", last, forward.scores(q, k).softmax(-1))


def _without(scores: Tensor, queries: Int[Tensor, "batch kind"]) -> Tensor:
    """Scores of texts, NaN where they have no such query."""
    return scores.masked_fill((queries == 0).T.to(scores.device), torch.nan)


def _uniform(mask: Bool[Tensor, "batch pos source"]) -> float:
    """What an attention without preference pays to such keys, over texts that have them."""
    size = mask.shape[1]
    each = mask.sum(2) / torch.arange(1, size + 1, device=mask.device)
    number = mask.any(2).sum(1)
    return float((each.sum(1) / number)[number > 0].mean())


def _by_distance(
    watch: _Watch, mask: Bool[Tensor, "batch pos source kind"], tokens: Tensor, real: Tensor | None
) -> Float[Tensor, "layer head kind"]:
    """What heads pay on the average at the distances of such keys."""
    size = tokens.shape[1]
    there = torch.ones(tokens.shape) if real is None else real.float()
    seen = there.to(tokens.device).sum(0)  # texts that have each query
    distance = (torch.arange(size)[:, None] - torch.arange(size)).to(tokens.device)
    counts = torch.zeros(size, device=tokens.device)
    below = distance >= 0
    counts.index_add_(0, distance[below], seen[:, None].expand(size, size)[below])
    number = mask.any(2).sum(1)
    share = (mask / number.clamp_min(1)[:, None, None])[number.sum(1) >= 0].sum(0)
    texts = (number > 0).sum(0)
    by_distance = torch.zeros(size, mask.shape[-1], device=tokens.device)
    by_distance.index_add_(0, distance[below], share[below])
    found = []
    for layer in sorted(watch.total or {}):
        total = (watch.total or {})[layer]
        sums = torch.zeros(len(total), size, device=tokens.device)
        sums.index_add_(1, distance[below], total[:, below])
        found.append((sums / counts.clamp_min(1)) @ by_distance / texts)
    return torch.stack(found).cpu()
