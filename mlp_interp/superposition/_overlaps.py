"""Two neurons that promote some of the same tokens: do both tell when these come, or one?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata
from torch import Tensor

from mlp_interp.corpus import SweepOptions
from mlp_interp.corpus import sweep as run_sweep
from mlp_interp.corpus.reducers import Batch, Reducer, Shape, State
from mlp_interp.models import Weights
from mlp_interp.models.finite import check_weights
from mlp_interp.models.indices import count, indices
from mlp_interp.models.options import checked_count, checked_seed
from mlp_interp.models.padding import which_count
from mlp_interp.models.protocol import Model
from mlp_interp.models.unembed import Unembed, mean_direction
from mlp_interp.models.vectors import unit
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.results import single, strings, to_numpy, variable
from mlp_interp.sites import Site

__all__ = ["overlaps", "read_angle"]


@torch.no_grad()
def overlaps(
    model: Model,
    corpus: Any,
    *,
    attention_mask: Any = None,
    layers: int | Sequence[int] | None = None,
    k: int = 20,
    shared: int = 3,
    top: int = 50,
    controls: int = 16,
    first: int = 1,
    seed: int = 0,
    sweep: SweepOptions = SweepOptions(),
) -> xr.Dataset:
    """Pairs of neurons that promote some of the same tokens, and whether both tell when these come.

    Of a pair, A is the neuron whose `k` promoted tokens are more alike; they are among the tenth of
    the layer's lists that are most alike, so that they are one thing. For the plane of the two
    activations, each by its standard deviation, the direction at angle ``theta`` from A toward B is
    the one that best tells by a logistic regression whether the next token is one that A promotes.
    With ``theta`` 0 A tells it alone. Between 0 and 90, B adds to it: the feature lies between the
    two. Beyond 90 degrees A is *less* active where its own tokens come: of many neurons that is so,
    for what they promote is not what follows (`neurons.memories`). A regression says what can be
    read off the two, not what later layers read.

    Nearly any neuron of a layer adds something: so B's weight, ``sin theta``, is held against that
    of neurons in B's place that are active as often.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        corpus: As of `sweep`. What chosen neurons do at all tokens is held in memory.
        attention_mask: As of `sweep`.
        layers: Which layers; None for all.
        k: How many promoted tokens are compared.
        shared: Least number of them that a pair has in common.
        top: How many pairs to take of each layer, those with most in common first.
        controls: Neurons in B's place, of the same layer, active about as often.
        first: Position from which on tokens count.
        seed: Of the choice of controls.
        sweep: How the corpus is run.

    Returns:
        A Dataset over ``pair`` with ``A, B`` (labels), ``layer``, ``shared`` (tokens),
        ``cosine_value`` and ``cosine_receptor``, ``correlation`` of the activations, ``rate`` of
        A's tokens; ``theta`` (degrees) with its standard error over texts; ``weight_B``,
        ``weight_control`` (mean of the controls), ``weight_z`` and ``weight_rank``, the share of
        controls, itself among them, that weigh as much; ``auroc_A`` and ``auroc`` of A alone and
        along ``theta``, both on every second text, which the angle then was not fitted on. NaN
        where A's tokens come at fewer than ten places, or A never changes; `weight_rank` also where
        no control has an angle.

    Raises:
        ValueError: Options out of range, no pair with so much in common, fewer than four texts, a
            model without neurons, or as `sweep`.

    References:
        Elhage et al., "Toy models of superposition", 2022. Gurnee et al., "Finding neurons in a
        haystack", 2023, arXiv:2305.01610.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> model = load_model("nano")
        >>> corpus = load_corpus("nano", model, sequences=8, length=32)
        >>> found = overlaps(model, corpus, layers=2, top=3, controls=4)
        >>> found["theta"].dims, bool((found["shared"] >= 3).all())
        (('pair',), True)
    """
    weights = Weights.of(model)
    weights.check_names(["post"], argument="neurons")
    listed = indices("layers", layers, weights.n_layers)
    checked_count(k, weights.d_vocab, "tokens")
    checked_count(shared, k, "promoted tokens", name="shared")
    count("top", top)
    checked_count(controls, weights.d_mlp - 2, "other neurons", name="controls")
    texts = padded_texts(model, corpus, attention_mask)
    if len(texts.tokens) < 4:
        raise ValueError(f"corpus has {len(texts.tokens)} texts; wanted at least 4")
    which_count(model, texts.tokens, texts.real, first)
    check_weights(model)
    checked_seed(seed)
    unembed, pairs = Unembed.of(model), []
    for layer in listed:
        pairs += _pairs(weights, unembed, layer, k, shared, top)
    if not pairs:
        raise ValueError(f"shared={shared}: no two neurons have so many of {k} tokens in common")
    reducer = Activities(layers=tuple(sorted({p.layer for p in pairs})), first=first)
    found = run_sweep(model, texts, {"activities": reducer}, options=sweep)["activities"]
    draws = np.random.default_rng(seed)
    measured = [_measured(weights, pair, found, controls, draws) for pair in pairs]
    attrs = {name: v for name, v in found.attrs.items() if name != "reducer"}
    attrs |= {"analysis": "overlaps", "k": k, "first": first, "seed": seed, "controls": controls}
    return _dataset(pairs, measured).assign_attrs(
        attrs,
        unit="see each variable",
        exact=0,
        long_name="whether what two neurons promote is read off one or off both",
    )


@dataclass(frozen=True)
class _Pair:
    layer: int
    a: int
    b: int
    tokens: Int[Tensor, " k"]
    shared: int


def _pairs(
    weights: Weights, unembed: Unembed, layer: int, k: int, shared: int, top: int
) -> list[_Pair]:
    """The pairs of a layer with most promoted tokens in common."""
    directions = single(unembed.weight - mean_direction(weights)[0][:, None])
    values = single(weights.parameter(layer, "W_out"))
    promoted = (values @ directions).topk(k).indices
    lists = torch.zeros(len(values), directions.shape[1], device=values.device)
    lists.scatter_(1, promoted, 1.0)
    common = (lists @ lists.T).triu(diagonal=1)
    rows = unit(directions.T[promoted])
    alike = rows.mean(1).square().sum(-1)
    # One of the two must have a list of one kind of tokens.
    clean = alike >= alike.quantile(0.9)
    common *= clean[:, None] | clean
    best, flat = common.flatten().topk(min(top, common.numel()))
    found = []
    for number, place in zip(best.tolist(), flat.tolist(), strict=True):
        if number < shared:
            break
        pair = divmod(place, len(values))
        a, b = sorted(pair, key=lambda n: -float(alike[n]))
        found.append(_Pair(layer, a, b, promoted[a].cpu(), int(number)))
    return found


@dataclass(frozen=True, kw_only=True)
class Activities(Reducer):
    """What the neurons of some layers do at all tokens that have a next one, which is kept too.

    Args:
        layers: Which layers.
        first: Position from which on tokens count.
    """

    layers: tuple[int, ...]
    first: int
    takes_padding: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Its name."""
        return "activities"

    def sites(self, shape: Shape) -> tuple[Site, ...]:
        """The neurons of the layers."""
        shape.check_next_token()
        return tuple(Site("post", layer) for layer in self.layers)

    def empty(self, shape: Shape) -> State:
        """No tokens."""
        found = {f"layer{layer}": torch.zeros(0, shape.d_mlp) for layer in self.layers}
        return found | {name: torch.zeros(0, dtype=torch.int64) for name in ("next", "text")}

    def see(self, state: State, site: Site, x: Tensor, batch: Batch) -> None:
        """Keep what counts."""
        name = f"layer{site.layer}"
        state[name] = torch.cat([state[name], single(x[self._counts(batch)]).cpu()])

    def finish(self, state: State, batch: Batch) -> None:
        """Keep the next tokens, and the texts' numbers."""
        counts = self._counts(batch)
        after = batch.tokens.roll(-1, 1)
        texts = torch.arange(len(counts), device=counts.device)[:, None] + batch.first
        new = {"next": after[counts], "text": texts.expand_as(counts)[counts]}
        self.merge(state, {name: value.cpu().long() for name, value in new.items()})

    def merge(self, state: State, later: State) -> None:
        """The tokens one after the other."""
        for name, value in later.items():
            state[name] = torch.cat([state[name], value])

    def result(self, state: State, shape: Shape) -> xr.Dataset:
        """What was kept."""
        return xr.Dataset(
            {k: (("token", "neuron")[: v.ndim], to_numpy(v)) for k, v in state.items()}
        )

    def _counts(self, batch: Batch) -> Bool[Tensor, "batch pos"]:
        """Tokens that count and have a next one."""
        counts = batch.counts(self.first).clone()
        counts[:, : self.first] = False
        real = torch.ones_like(counts) if batch.real is None else batch.real
        counts[:, :-1] &= real[:, 1:]
        counts[:, -1] = False
        return counts


def _measured(
    weights: Weights, pair: _Pair, found: xr.Dataset, controls: int, draws: np.random.Generator
) -> dict[str, float]:
    """All that is measured of one pair."""
    x, text = found[f"layer{pair.layer}"].values.astype(float), found["text"].values
    follows = np.isin(found["next"].values, pair.tokens.numpy())
    a, b = x[:, pair.a], x[:, pair.b]
    theta, error = read_angle(a, b, follows, text)
    often = np.abs((x > 0).mean(0) - (b > 0).mean())
    often[[pair.a, pair.b]] = np.inf
    near = np.argsort(often)[: min(4 * controls, x.shape[1] - 2)]
    others = [read_angle(a, x[:, n], follows, text)[0] for n in draws.permutation(near)[:controls]]
    others = np.sin(np.radians(np.array(others)[np.isfinite(others)]))
    weight = np.sin(np.radians(theta))
    spread = (others.std(ddof=1) or np.nan) if len(others) > 1 else np.nan
    fitted = text % 2 == 0
    half, _ = read_angle(a[fitted], b[fitted], follows[fitted], text[fitted])
    along = np.full(len(a), np.nan)
    if np.isfinite(half) and a.std() > 0:
        along = np.cos(np.radians(half)) * a / a.std()
        along += np.sin(np.radians(half)) * b / max(b.std(), 1e-12)
    ranked = np.isfinite(theta) and len(others) > 0
    return {
        "correlation": np.corrcoef(a, b)[0, 1] if min(a.std(), b.std()) > 0 else np.nan,
        "rate": follows.mean(),
        "theta": theta,
        "theta_se": error,
        "weight_B": weight,
        "weight_control": others.mean() if len(others) else np.nan,
        "weight_z": (weight - others.mean()) / spread if len(others) else np.nan,
        "weight_rank": (1 + (others >= weight).sum()) / (1 + len(others)) if ranked else np.nan,
        "auroc_A": _auroc(a[~fitted], follows[~fitted]) if a.std() > 0 else np.nan,
        "auroc": _auroc(along[~fitted], follows[~fitted]),
        **_cosines(weights, pair),
    }


def _cosines(weights: Weights, pair: _Pair) -> dict[str, float]:
    value = unit(single(weights.parameter(pair.layer, "W_out")))
    receptor = unit(single(weights.parameter(pair.layer, "W_in")).T)
    return {
        "cosine_value": float(value[pair.a] @ value[pair.b]),
        "cosine_receptor": float(receptor[pair.a] @ receptor[pair.b]),
    }


def read_angle(
    a: Float[np.ndarray, " token"],
    b: Float[np.ndarray, " token"],
    follows: Bool[np.ndarray, " token"],
    text: Int[np.ndarray, " token"],
) -> tuple[float, float]:
    """The direction in the plane of two activations that tells best, and its error over texts.

    Args:
        a: The first, the direction at angle 0.
        b: The second, at 90 degrees. One that never changes has no part in it.
        follows: What is to be told.
        text: Which text each token is of: texts, not tokens, are independent.

    Returns:
        Degrees. NaN where it happens at fewer than ten places, or at all but ten.
    """
    if min(follows.sum(), (~follows).sum()) < 10 or a.std() == 0:
        return float("nan"), float("nan")
    if b.std() <= 1e-12:
        return 0.0, 0.0
    x = np.stack([np.ones(len(a)), (a - a.mean()) / a.std(), (b - b.mean()) / b.std()], 1)
    beta = np.array([np.log(follows.mean() / (1 - follows.mean())), 0.0, 0.0])
    # A pull to 0 worth one observation: where classes come apart, there is no largest likelihood.
    pull = np.diag([0.0, 1.0, 1.0])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ beta, -30, 30)))
        curvature = (x * (p * (1 - p))[:, None]).T @ x + pull
        step = np.linalg.solve(curvature, x.T @ (follows - p) - pull @ beta)
        beta = beta + step * min(1.0, 2 / np.abs(step).max().clip(1e-12))
        if np.abs(step).max() < 1e-9:
            break
    score = x * (follows - p)[:, None]
    _, of = np.unique(text, return_inverse=True)
    sums = np.stack([np.bincount(of, score[:, n]) for n in range(3)], 1)
    inverse = np.linalg.inv(curvature)
    covariance = inverse @ (sums.T @ sums) @ inverse * (len(sums) / max(1, len(sums) - 1))
    size = beta[1] ** 2 + beta[2] ** 2
    slope = np.array([0.0, -beta[2], beta[1]]) / max(size, 1e-300)
    error = np.degrees(np.sqrt(slope @ covariance @ slope))
    return float(np.degrees(np.arctan2(beta[2], beta[1]))), float(error)


def _auroc(score: np.ndarray, follows: np.ndarray) -> float:
    """Share of pairs, one of each kind, in which the one that is followed has the higher score."""
    positive, negative = follows.sum(), (~follows).sum()
    if not positive or not negative or not np.isfinite(score).all():
        return float("nan")
    ranks = rankdata(score)[follows].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * negative))


_UNITS = {
    "rate": "fraction",
    "theta": "degrees",
    "theta_se": "degrees",
    "weight_rank": "fraction",
}


def _dataset(pairs: Sequence[_Pair], measured: Sequence[Mapping[str, float]]) -> xr.Dataset:
    found = {
        name: variable("pair", np.array([m[name] for m in measured]), unit=_UNITS.get(name, "none"))
        for name in measured[0]
    }
    found["shared"] = variable("pair", np.array([p.shared for p in pairs]), unit="tokens")
    labels = {
        "A": ("pair", strings([Site("post", p.layer, neuron=p.a).label for p in pairs])),
        "B": ("pair", strings([Site("post", p.layer, neuron=p.b).label for p in pairs])),
        "layer": ("pair", [p.layer for p in pairs]),
    }
    return xr.Dataset(found, coords=labels)
