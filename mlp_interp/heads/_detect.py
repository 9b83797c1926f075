"""How much attention each head pays to the tokens that a kind of head is known by."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mlp_interp.heads._keys import KINDS, REPEATING, Keys
from mlp_interp.heads._repeated import Repeated
from mlp_interp.models import Forward, HookForward, Weights, describe, forward_of
from mlp_interp.models.indices import count, distinct
from mlp_interp.models.options import check_choice
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.results import mean_and_error, variable
from mlp_interp.sites import head_grid_coords

__all__ = ["detect"]


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


@dataclass(frozen=True)
class _Ran:
    """Texts that are run.

    Attributes:
        tokens: Theirs.
        asked: Texts as long; about the keys that these have, each one is asked.
        real: Where text is.
    """

    tokens: Int[Tensor, "batch pos"]
    asked: Int[Tensor, "batch pos"]
    real: Bool[Tensor, "batch pos"]


@dataclass(frozen=True)
class _OfTexts:
    """What is needed of `Keys`, text by text; by distance, their sum."""

    queries: Int[Tensor, "batch kind"]
    uniform: Float[Tensor, "batch kind"]
    by_distance: Float[Tensor, "distance kind"]


@own_mode()
@torch.no_grad()
def detect(
    model: Model,
    corpus: Any = None,
    *,
    attention_mask: Any = None,
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
        attention_mask: Beside tokens: 1 where text is, 0 where padding is; None tells it by the
            rule of `mlp_interp.models.padding`.
        kinds: One or several.
        n: Random texts.
        period: Different tokens in each.
        seed: Of random texts.
        batch_size: Texts at a time.
        progress: Show a progress bar.

    Returns:
        A Dataset over ``kind, layer, head``: ``score``, ``score_se`` (over texts), ``expected`` and
        ``expected_se`` (over texts without a repetition; NaN for what is not of such); over
        ``kind`` ``queries``, how many there were. NaN where there were none.

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
        if attention_mask is not None:
            raise ValueError("attention_mask beside corpus=None; wanted it beside tokens")
        tokens, real, data = drawn.tokens, None, f"{n} random texts, {period} tokens twice"
    else:
        texts = padded_texts(model, corpus, attention_mask)
        tokens, real, data = weights.checked(texts.tokens), texts.real, texts.attrs["data"]
    watch = _Watch(total={} if corpus is not None else None)
    expected = torch.full((weights.n_layers, weights.n_heads, len(kinds)), torch.nan)
    expected_se = expected.clone()
    repeating = any(kind in REPEATING for kind in kinds)
    controls = drawn.controls if repeating and drawn is not None else tokens[:0]
    there = torch.ones_like(tokens, dtype=torch.bool) if real is None else real.to(tokens.device)
    # Texts without a repetition are asked about the places of those with one.
    places = torch.arange(len(tokens) + len(controls), device=tokens.device) % len(tokens)
    both = (x[places] for x in (tokens, there))
    ran = _Ran(torch.cat([tokens, controls]), *both)
    of_texts = _run(model, watch, ran, kinds, batch_size, progress)
    every, queries = watch.scores(), of_texts.queries[: len(tokens)]
    if len(controls):
        expected[:], expected_se[:] = mean_and_error(every[..., len(tokens) :])
    elif repeating:
        expected[:] = _by_distance(watch, of_texts, there)
    for i, kind in enumerate(kinds):
        if kind not in REPEATING:
            expected[:, :, i] = of_texts.uniform[: len(tokens), i].nanmean()
            expected_se[:, :, i] = torch.nan
    score, error = mean_and_error(_without(every[..., : len(tokens)], queries))
    dims = ("layer", "head", "kind")
    variables = {
        "score": variable(dims, score, unit="attention", long_name="mean attention on such keys"),
        "score_se": variable(dims, error, unit="attention", long_name="error over texts"),
        "expected": variable(dims, expected, unit="attention", long_name="the same by chance"),
        "expected_se": variable(dims, expected_se, unit="attention", long_name="error over texts"),
        "queries": variable("kind", queries.sum(0), unit="queries"),
    }
    units, layers = range(weights.n_heads), range(weights.n_layers)
    coords = {
        "kind": list(kinds),
        "layer": [*layers],
        "head": [*units],
        **head_grid_coords(layers, units),
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


def _run(
    model: Model, watch: _Watch, ran: _Ran, kinds: Sequence[str], batch_size: int, progress: bool
) -> _OfTexts:
    """Run texts and watch; what their keys are like."""
    forward, found = forward_of(model), []
    # In batches of one size, or nearly: the last one may else be of a single text.
    parts = torch.arange(len(ran.tokens)).chunk(-(-len(ran.tokens) // batch_size))
    for some in tqdm(parts, desc="texts", disable=not progress):
        keys = Keys.of(ran.asked[some], kinds, ran.real[some])
        watch.weights, watch.real = keys.weights().flatten(1, 2), ran.real[some].float()
        found.append([x.cpu() for x in (keys.queries, keys.uniform(), keys.by_distance())])
        _patterns(forward, forward.embed(ran.tokens[some]), watch)
    queries, uniform, by_distance = zip(*found, strict=True)
    return _OfTexts(torch.cat(queries), torch.cat(uniform), torch.stack(by_distance).sum(0))


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


def _by_distance(
    watch: _Watch, of_texts: _OfTexts, real: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "layer head kind"]:
    """What heads pay on the average at the distances of such keys."""
    size, texts = real.shape[1], (of_texts.queries > 0).sum(0)
    distance = torch.arange(size)[:, None] - torch.arange(size)
    below = distance >= 0
    counts = torch.zeros(size, dtype=torch.float32)
    seen = real.sum(0).cpu().float()  # texts that have each query
    counts.index_add_(0, distance[below], seen[:, None].expand(size, size)[below])
    found = []
    for _, total in sorted((watch.total or {}).items()):
        sums = torch.zeros(len(total), size, dtype=torch.float32)
        sums.index_add_(1, distance[below], total.cpu()[:, below])
        found.append((sums / counts.clamp_min(1)) @ of_texts.by_distance / texts)
    return torch.stack(found)
