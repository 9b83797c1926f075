"""How many dimensions activations use, and from how many tokens on one may say so."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy.integrate import cumulative_trapezoid

from mlp_interp.corpus import SweepOptions
from mlp_interp.corpus import sweep as run_sweep
from mlp_interp.corpus.reducers import Mean
from mlp_interp.models import Weights
from mlp_interp.models.finite import check_weights
from mlp_interp.models.indices import count, indices, integers
from mlp_interp.models.options import check_choice, checked_seed
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.padding import Padded, Padding, which_count
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.superposition._moments import Known, Sums, SumsReducer, participation_of_pairs

__all__ = ["spectrum"]

_SITES = ("post", "pre", "mlp_out", "attn_out", "resid_pre", "resid_post")
_MEASURES = ("participation", "participation_unbiased", "entropy_rank", "k90", "k99")
_WITHIN = 0.05
_LEAST = 8
"""Sequences of the first prefix, where there are as many: with four, errors would be as large."""


@own_mode()
@torch.no_grad()
def spectrum(
    model: Model,
    corpus: Any,
    *,
    site: str = "post",
    attention_mask: Any = None,
    layers: int | Sequence[int] | None = None,
    each: int | None = None,
    points: Sequence[int] | None = None,
    first: int = 1,
    seed: int = 0,
    sweep: SweepOptions = SweepOptions(),
) -> xr.Dataset:
    """The eigenvalues of a site's covariance, and numbers of dimensions, against amounts of text.

    Of a matrix of N activations the rank says nothing (it is the smaller of N and the number of
    units). The participation ratio ``(tr S)^2 / tr S^2`` is the number of equal eigenvalues that
    would spread the variance as much. From few tokens it comes out too small; ``participation_
    unbiased`` has numerator and denominator from products of *different* sequences, which have no
    bias (their ratio has one of second order), and a larger error. Entropy rank and the numbers of
    eigenvalues for a share of the variance go on growing with N: they are of so many tokens. A
    number of dimensions is not a number of features, which may be more, or fewer.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        corpus: As of `sweep`.
        site: ``"post"``, ``"pre"``, ``"mlp_out"``, ``"attn_out"``, ``"resid_pre"``,
            ``"resid_post"``.
        attention_mask: As of `sweep`.
        layers: Which layers; None for all. Each takes two squares of the number of units in double
            precision.
        each: So many tokens of every sequence, drawn at random; None for all. With 1, tokens are
            independent draws; those of one sequence are alike, and count for less than so many.
        points: Numbers of sequences at which to say it; None for doublings up to all. They are
            nested prefixes of one random order.
        first: Position from which on tokens count.
        seed: Of the order of the sequences, and of the tokens that are drawn.
        sweep: How the corpus is run.

    Returns:
        A Dataset over ``layer`` and ``n`` (sequences; coordinate ``tokens``): ``eigenvalue`` (also
        ``rank``, the largest first, activation squared) and ``cumulative``, its share of the
        variance so far; ``participation`` and ``participation_unbiased`` with their standard error
        over sequences, ``participation_se`` (to first order, around the moments of the prefix
        before; NaN at the first point; too small for a handful of sequences); ``entropy_rank``, the
        exponential of the entropy of the eigenvalues' shares; ``k90`` and ``k99``; ``above_edge``,
        eigenvalues above the edge that pure noise of so many *independent* tokens would have whose
        median eigenvalue is the observed one (Marchenko-Pastur). ``enough`` (``layer measure``):
        the least number of tokens from which on each stays within 5% of its value at the end;
        NaN if only the end itself does.

    Raises:
        ValueError: An unknown site, layers that the model does not have, fewer than four sequences,
            points out of range or order, or as `sweep`.

    References:
        Gao et al., "A theory of multineuronal dimensionality, dynamics and measurement", 2017.
        Roy & Vetterli, "The effective rank", 2007. Marchenko & Pastur, 1967.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> model = load_model("nano")
        >>> corpus = load_corpus("nano", model, sequences=32, length=32)
        >>> found = spectrum(model, corpus, layers=2)
        >>> found["tokens"].values.tolist()
        [242, 486, 970]
        >>> 30 < float(found["participation"][0, -1]) < 90
        True
    """
    check_choice("site", site, _SITES)
    weights = Weights.of(model)
    weights.check_names([site], argument="site")
    listed = indices("layers", layers, weights.n_layers)
    if each is not None:
        count("each", each, hint=", or None for all")
    texts = padded_texts(model, corpus, attention_mask)
    ends = _points(points, len(texts.tokens))
    which_count(model, texts.tokens, texts.real, first)
    check_weights(model)
    order = np.random.default_rng(checked_seed(seed)).permutation(len(texts.tokens)).tolist()
    texts = _ordered(texts, order)
    options = {"site": site, "layers": listed, "first": first}
    start = _part(texts, 0, ends[0])
    means = run_sweep(model, start, {"mean": Mean(**options)}, options=sweep)["mean"]["mean"]
    point = {layer: torch.from_numpy(means.sel(layer=layer).values).float() for layer in listed}
    found, tokens, total, known = [], [], {}, None
    for begin, end in zip((0, *ends), ends, strict=False):
        reducer = SumsReducer(
            point=point, known=known, each=each, order=tuple(order[begin:end]), seed=seed, **options
        )
        part = run_sweep(model, _part(texts, begin, end), {"sums": reducer}, options=sweep)["sums"]
        total = _added(total, part)
        known = {layer: _known(total[layer], point[layer]) for layer in listed}
        tokens.append(int(total[listed[0]]["m"]))
        found.append(xr.concat([_measured(total[layer]) for layer in listed], "layer"))
    result = xr.concat(found, "n").transpose("layer", "n", "rank")
    result = result.assign_coords(layer=list(listed), n=list(ends), tokens=("n", tokens))
    result["enough"] = _enough(result)
    attrs = {k: v for k, v in part.attrs.items() if k not in ("reducer", "analysis", "data")}
    attrs |= {**texts.attrs, "analysis": "spectrum", "site": site, "first": first, "seed": seed}
    attrs |= {"each": -1 if each is None else each, "exact": 1, "unit": "see each variable"}
    return _said(result).assign_attrs(attrs, long_name=f"dimensions that activations at {site} use")


def _points(given: Sequence[int] | None, sequences: int) -> tuple[int, ...]:
    """Numbers of sequences at which to say something.

    Raises:
        ValueError: There are too few sequences, or the numbers are not ascending or out of range.
    """
    if sequences < 4:
        raise ValueError(f"corpus has {sequences} sequences; wanted at least 4")
    if given is None:
        halvings = [sequences]
        while halvings[-1] // 2 >= _LEAST:
            halvings.append(halvings[-1] // 2)
        return tuple(halvings[::-1])
    ends = integers("points", given) or ()
    ascending = all(a < b for a, b in pairwise(ends))
    if not ends or not ascending or ends[0] < 1 or ends[-1] > sequences:
        raise ValueError(
            f"points={list(ends)}; wanted ascending numbers of sequences from 1 to {sequences}"
        )
    return ends


def _ordered(texts: Padded, order: list[int]) -> Padded:
    """The texts in another order."""
    padding = texts.padding
    if padding is not None:
        padding = Padding(padding.real[order], padding.why)
    return Padded(texts.tokens[order], padding, texts.attrs)


def _part(texts: Padded, begin: int, end: int) -> Padded:
    return _ordered(texts, list(range(begin, end)))


def _added(total: dict[int, Sums], part: xr.Dataset) -> dict[int, Sums]:
    """Sums of each layer with those of more sequences."""
    found = {}
    for layer in part["layer"].values.tolist():
        new = {str(name): value.values for name, value in part.sel(layer=layer).data_vars.items()}
        old = total.get(layer)
        influence = new.pop("influence")
        if old is None:
            found[layer] = {**new, "influence": influence}
        else:
            found[layer] = {name: old[name] + value for name, value in new.items()}
            found[layer]["influence"] = np.concatenate([old["influence"], influence])
    return found


def _known(sums: Sums, point: torch.Tensor) -> Known:
    mean, covariance = _moments(sums)
    return Known(point + torch.from_numpy(mean).to(point), torch.from_numpy(covariance))


def _moments(sums: Sums) -> tuple[np.ndarray, np.ndarray]:
    mean = sums["b"] / sums["m"]
    return mean, sums["A"] / sums["m"] - np.outer(mean, mean)


def _measured(sums: Sums) -> xr.Dataset:
    """All numbers of one layer and one amount of text."""
    values = np.linalg.eigvalsh(_moments(sums)[1])[::-1].clip(0)
    share = values / values.sum()
    cumulative, some = share.cumsum(), share[share > 0]
    participation = 1 / np.square(share).sum()
    influence, error = sums["influence"], np.nan
    if len(influence) > 1:
        # Of so many sequences as there are, not only of those whose influence is known.
        tokens_each = sums["m"] ** 2 / sums["m2"]
        error = participation * influence.std(ddof=1) / np.sqrt(tokens_each)
    return xr.Dataset(
        {
            "eigenvalue": ("rank", values),
            "cumulative": ("rank", cumulative),
            "participation": participation,
            "participation_unbiased": participation_of_pairs(sums),
            "participation_se": error,
            "entropy_rank": np.exp(-(some * np.log(some)).sum()),
            "k90": float((cumulative < 0.9).sum() + 1),
            "k99": float((cumulative < 0.99).sum() + 1),
            "above_edge": float(_above_edge(values, float(sums["m"]))),
        },
        coords={"rank": np.arange(len(values))},
    )


def _above_edge(values: np.ndarray, tokens: float) -> int:
    """Eigenvalues beyond those of noise with their median, in so many draws."""
    some = values[: int(min(len(values), tokens - 1))]
    if len(some) < 2:
        return 0
    ratio = len(values) / tokens
    low, high = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2
    # By an angle, in which the density has no corners; its median over the eigenvalues above 0.
    angle = np.linspace(0, np.pi, 2001)
    x = (low + high) / 2 - (high - low) / 2 * np.cos(angle)
    density = np.sin(angle) ** 2 / np.maximum(x, 1e-12)
    below = cumulative_trapezoid(density, angle, initial=0)
    median = np.interp(below[-1] / 2, below, x)
    return int((values > np.median(some) / median * high).sum())


def _enough(result: xr.Dataset) -> xr.DataArray:
    """From how many tokens on each number stays near where it ends."""
    values = np.stack([result[name].values for name in _MEASURES], 1)  # layer measure n
    away = ~(np.abs(values - values[..., -1:]) <= _WITHIN * np.abs(values[..., -1:]))
    begins = away.shape[-1] - away[..., ::-1].argmax(-1)  # after the last one that is away
    begins[~away.any(-1)] = 0
    tokens = np.append(result["tokens"].values.astype(float), np.nan)
    tokens[-2] = np.nan  # the end is near itself
    return xr.DataArray(tokens[begins], {"measure": list(_MEASURES)}, ["layer", "measure"])


def _said(result: xr.Dataset) -> xr.Dataset:
    units = {"eigenvalue": "activation squared", "cumulative": "fraction", "enough": "tokens"}
    for name in result.data_vars:
        result[str(name)].attrs = {"unit": units.get(str(name), "dimensions")}
    return result
