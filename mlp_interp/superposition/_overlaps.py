"""Two neurons that promote some of the same tokens: do both tell when these come, or one?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from mlp_interp.corpus import SweepOptions
from mlp_interp.corpus import sweep as run_sweep
from mlp_interp.corpus.reducers import Fraction
from mlp_interp.models import Weights
from mlp_interp.models.finite import check_weights
from mlp_interp.models.indices import count, indices
from mlp_interp.models.options import checked_count, checked_seed
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.padding import which_count
from mlp_interp.models.protocol import Model
from mlp_interp.models.unembed import Unembed
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.results import strings, variable
from mlp_interp.sites import Site
from mlp_interp.superposition._activities import Activities
from mlp_interp.superposition._angles import auroc, read_angle, read_angles
from mlp_interp.superposition._pairs import Pair, controls_of, pairs_of, pool_of

__all__ = ["overlaps"]


@own_mode()
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
        corpus: As of `sweep`. It is run twice: how often neurons are active, then what the pairs
            and those they are compared with do. Of each layer that takes 4 bytes for every token
            and neuron, of which there are at most ``2 top + 8 controls``, however wide it is.
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
        pairs += pairs_of(weights, unembed, layer, k, shared, top)
    if not pairs:
        raise ValueError(f"shared={shared}: no two neurons have so many of {k} tokens in common")
    among = tuple(dict.fromkeys(pair.layer for pair in pairs))
    rate = Fraction(site="post", layers=among, first=first)
    often = run_sweep(model, texts, {"rate": rate}, options=sweep)["rate"]["fraction"]
    rates = {layer: often.sel(layer=layer).values for layer in among}
    kept = _kept(pairs, rates, controls, np.random.default_rng(seed))
    chosen = tuple((layer, tuple(map(int, neurons))) for layer, neurons in kept.items())
    reducer = Activities(chosen=chosen, first=first)
    found = run_sweep(model, texts, {"activities": reducer}, options=sweep)["activities"]
    measured = []
    for layer, neurons in kept.items():
        columns = found[f"layer{layer}"].values.T.astype(float)
        x = dict(zip(neurons.tolist(), columns, strict=True))
        for pair in (one for one in pairs if one.layer == layer):
            others = controls_of(pair, rates[layer], neurons, controls)
            follows = np.isin(found["next"].values, pair.tokens)
            measured.append(_measured(pair, x, others.tolist(), follows, found["text"].values))
    attrs = {name: v for name, v in found.attrs.items() if name != "reducer"}
    attrs |= {"analysis": "overlaps", "k": k, "first": first, "seed": seed, "controls": controls}
    return _dataset(pairs, measured).assign_attrs(
        attrs,
        unit="see each variable",
        exact=0,
        approximation="angles fitted to a sample of texts",
        long_name="whether what two neurons promote is read off one or off both",
    )


def _kept(
    pairs: Sequence[Pair],
    rates: Mapping[int, np.ndarray],
    controls: int,
    draws: np.random.Generator,
) -> dict[int, np.ndarray]:
    """By layer, the neurons that are looked at: of pairs, and those that controls come from."""
    found = {}
    for layer, rate in rates.items():
        mine = [n for pair in pairs if pair.layer == layer for n in (pair.a, pair.b)]
        found[layer] = np.union1d(mine, pool_of(rate, controls, draws)).astype(int)
    return found


def _measured(
    pair: Pair, x: Mapping[int, np.ndarray], others: Sequence[int], follows: Any, text: Any
) -> dict[str, float]:
    """All that is measured of one pair.

    Args:
        pair: The pair.
        x: What neurons do at each token, by neuron.
        others: Those in B's place.
        follows: Where a token that A promotes comes next.
        text: Which text each token is of.
    """
    a, b = x[pair.a], x[pair.b]
    theta, error = read_angle(a, b, follows, text)
    angles = read_angles(a, np.stack([x[n] for n in others]), follows)
    weights = np.sin(np.radians(angles[np.isfinite(angles)]))
    weight = np.sin(np.radians(theta))
    spread = (weights.std(ddof=1) or np.nan) if len(weights) > 1 else np.nan
    fitted = text % 2 == 0
    half = read_angles(a[fitted], b[None, fitted], follows[fitted])[0]
    along = np.full(len(a), np.nan)
    if np.isfinite(half) and a.std() > 0:
        along = np.cos(np.radians(half)) * a / a.std()
        along += np.sin(np.radians(half)) * b / max(b.std(), 1e-12)
    ranked = np.isfinite(theta) and len(weights) > 0
    return {
        "correlation": np.corrcoef(a, b)[0, 1] if min(a.std(), b.std()) > 0 else np.nan,
        "rate": follows.mean(),
        "theta": theta,
        "theta_se": error,
        "weight_B": weight,
        "weight_control": weights.mean() if len(weights) else np.nan,
        "weight_z": (weight - weights.mean()) / spread if len(weights) else np.nan,
        "weight_rank": (1 + (weights >= weight).sum()) / (1 + len(weights)) if ranked else np.nan,
        "auroc_A": auroc(a[~fitted], follows[~fitted]) if a.std() > 0 else np.nan,
        "auroc": auroc(along[~fitted], follows[~fitted]),
        "cosine_value": pair.cosine_value,
        "cosine_receptor": pair.cosine_receptor,
    }


_UNITS = {
    "rate": "fraction",
    "theta": "degrees",
    "theta_se": "degrees",
    "weight_rank": "fraction",
}


def _dataset(pairs: Sequence[Pair], measured: Sequence[Mapping[str, float]]) -> xr.Dataset:
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
