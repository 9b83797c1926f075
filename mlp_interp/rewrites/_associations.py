"""An MLP as a linear memory: what its keys span, and how well a text pins them down."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.corpus import SweepOptions, sweep
from mlp_interp.corpus.reducers import Covariance
from mlp_interp.models import Weights
from mlp_interp.models.indices import count, indices
from mlp_interp.models.options import checked_seed
from mlp_interp.models.padding import Padded, Padding, which_count
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.results import described, mean_and_error, variable
from mlp_interp.rewrites.keys import MOMENT, Keys, checked_model, upstream
from mlp_interp.runs import Runner
from mlp_interp.sites import Site

__all__ = ["associations"]

_BATCH = 8


@torch.no_grad()
def associations(
    model: Model,
    corpus: object,
    *,
    layers: int | Sequence[int] | None = None,
    ridge: float | int = 1e-4,
    first: int = 1,
    sample: int = 64,
    seed: int = 0,
    options: SweepOptions = SweepOptions(),
) -> xr.Dataset:
    """The second moment of MLPs' keys over a text, which rewrites are kept away from.

    An MLP's second matrix ``W`` turns keys ``k``, its hidden activations, into values ``kW + b``.
    A rewrite of key ``k*`` changes other values the less, the less ``u = C⁻¹k*`` overlaps with
    other keys, where ``C = E[k kᵀ]``. This gives ``C``, uncentred, and says whether the text is
    enough for it: both halves of the text, every other sequence each, give a ``C`` of their own,
    and with a sample of keys it is looked at how far a ``u`` of one half agrees with that of the
    other, and how much more it changes in the other half than in its own.

    As a memory: had ``W`` been fitted to these keys and values by least squares, with the ridge,
    it would be off by `weight_error` of its squared size and its values by `value_error` of theirs.
    Directions of ``W`` that these keys do not use are not pinned down by them; that does not say
    that the model has no use for them.

    Args:
        model: The model.
        corpus: A `Corpus`, tokens or texts, as in `sweep`.
        layers: Which; None for all. Each takes 8 bytes a pair of neurons: 34 MB for 2,048.
        ridge: What is added to the diagonal before ``C`` is divided by, as a share of its mean.
        first: Position from which on tokens count.
        sample: How many keys of the text the halves are compared on, one of a sequence.
        seed: Of the sample.
        options: Batches, shards and checkpoints of the sweep.

    Returns:
        A Dataset along ``layer``: `second_moment` (neuron, other), `eigenvalue` (rank, largest
        first), `agreement` (cosine of both halves' ``u`` as keys read them, 1 at best) and
        `inflation` (root mean square of what a ``u`` writes in the other half, over that in its
        own: 1 where the text is enough), each with `…_se` over sampled keys, NaN for one sequence;
        `weight_error` and `value_error`. `upstream` names the weights that made the keys.

    Raises:
        ValueError: Hooks are on the model, it has no MLPs or normalises what they write; the ridge
            is 0 with fewer tokens than neurons; or as `sweep`.

    References:
        Kohonen, "Correlation matrix memories", 1972. Meng et al., "Locating and Editing Factual
        Associations in GPT", 2022, equation 2.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> model = load_model("nano")
        >>> keys = associations(model, load_corpus("nano", model, sequences=16), layers=[0])
        >>> dict(keys.second_moment.sizes)
        {'layer': 1, 'neuron': 768, 'other': 768}
        >>> bool(keys.agreement > 0.8)
        True
    """
    weights = checked_model(model, "associations")
    chosen = indices("layers", layers, weights.n_layers)
    sample, seed = count("sample", sample), checked_seed(seed)
    texts = padded_texts(model, corpus)
    reducer = Covariance(layers=chosen, first=first)
    halves = [
        sweep(model, _every_other(texts, n), reducer, options=options)[reducer.name]
        for n in range(min(2, len(texts.tokens)))
    ]
    found = _joined(halves).assign_coords(
        upstream=("layer", [upstream(weights, layer) for layer in chosen])
    )
    found.attrs |= {
        **texts.attrs,
        "tokens": found.attrs["entries"],
        "analysis": "associations",
        "ridge": float(ridge),
        "first": first,
        "seed": seed,
        "long_name": "second moment of an MLP's keys",
    }
    held = [Keys.of(found, weights, layer, ridge) for layer in chosen]
    seen = _sampled(model, texts, chosen, sample, first, seed)
    numbers = [_spectrum(keys, weights, layer) for keys, layer in zip(held, chosen, strict=True)]
    compared = [_compared(halves, layer, ridge, seen[n]) for n, layer in enumerate(chosen)]
    values = torch.stack([x.values for x in numbers])
    found["eigenvalue"] = variable(("layer", "rank"), values, unit="activation squared")
    for name in ("weight_error", "value_error"):
        each = np.array([getattr(x, name) for x in numbers])
        found[name] = variable("layer", each, unit="fraction")
    for name, unit in _UNITS.items():
        found[name] = variable("layer", np.array([x[name] for x in compared]), unit=unit)
    return described(found, _ABOUT)


_ABOUT = {
    MOMENT: "second moment of an MLP's keys",
    "eigenvalue": "eigenvalues of the second moment, the largest first",
    "weight_error": "share of the weights that these keys do not tell",
    "value_error": "share of what the MLP writes for them that a fit to these keys lacks",
    "agreement": "cosine of the directions that two halves of the text give",
    "inflation": "length of a change on text not used for it, over that on the text used",
}


_UNITS = {
    "agreement": "cosine",
    "agreement_se": "cosine",
    "inflation": "ratio",
    "inflation_se": "ratio",
}


def _joined(halves: Sequence[xr.Dataset]) -> xr.Dataset:
    """The second moment over both, and what both say of themselves."""
    entries = np.array([half.attrs["entries"] for half in halves])
    parts = zip(entries / entries.sum(), halves, strict=True)
    moment = xr.concat([share * half[MOMENT] for share, half in parts], "half").sum("half")
    attrs = {**halves[0].attrs, "entries": int(entries.sum())}
    return xr.Dataset({MOMENT: moment.assign_attrs(unit="activation squared")}, attrs=attrs)


@dataclass(frozen=True)
class _Spectrum:
    values: Float[Tensor, " rank"]
    weight_error: float
    value_error: float


def _spectrum(keys: Keys, weights: Weights, layer: int) -> _Spectrum:
    """Eigenvalues, and what a least-squares fit of ``W`` to the keys would lack."""
    values, vectors = torch.linalg.eigh(keys.moment)
    values = values.clamp_min(0)
    load = keys.ridge * float(values.mean())
    within = (vectors.T @ weights.parameter(layer, "W_out").double().cpu()).square().sum(1)
    lacking = (load / (values + load).clamp_min(1e-300)).square() * within
    return _Spectrum(
        values.flip(0),
        float(lacking.sum() / within.sum()),
        float((values * lacking).sum() / (values * within).sum()),
    )


def _compared(
    halves: Sequence[xr.Dataset], layer: int, ridge: float | int, keys: Float[Tensor, "key d_mlp"]
) -> dict[str, float]:
    """How far the two halves agree about some keys."""
    if len(halves) < 2:
        return dict.fromkeys(_UNITS, float("nan"))
    both = [Keys(torch.from_numpy(half[MOMENT].sel(layer=layer).values), ridge) for half in halves]
    u = [one.solve(keys) for one in both]
    mean = (both[0].moment + both[1].moment) / 2
    inner = [(a @ mean * b).sum(1) for a, b in ((u[0], u[1]), (u[0], u[0]), (u[1], u[1]))]
    agreement = inner[0] / (inner[1] * inner[2]).sqrt()
    ratios = []
    for mine, own, other in ((u[0], *both), (u[1], *reversed(both))):
        inside, outside = ((mine @ half.moment * mine).sum(1) for half in (own, other))
        ratios.append((outside / inside).sqrt())
    # Some keys are seen in one half alone, and have ratios of hundreds: a mean of logarithms.
    mean_log, error = mean_and_error(torch.stack(ratios).log().mean(0))
    inflation = float(mean_log.exp())
    found = dict(zip(_UNITS, [*map(float, mean_and_error(agreement))], strict=False))
    return {**found, "inflation": inflation, "inflation_se": inflation * float(error)}


def _every_other(texts: Padded, start: int) -> Padded:
    """Half of the texts."""
    padding = texts.padding
    if padding is not None:
        padding = Padding(padding.real[start::2], padding.why)
    return Padded(texts.tokens[start::2], padding, texts.attrs)


def _sampled(
    model: Model, texts: Padded, layers: Sequence[int], sample: int, first: int, seed: int
) -> Float[Tensor, "layer key d_mlp"]:
    """Keys of one token each of some sequences, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(texts.tokens), generator=generator)[:sample].sort().values
    tokens = texts.tokens[chosen]
    real = None if texts.real is None else texts.real[chosen]
    counts = which_count(model, tokens, real, first)
    at = torch.multinomial(counts.double().cpu(), 1, generator=generator)[:, 0]
    runner, keys = Runner.of(model), []
    for rows, places in zip(tokens.split(_BATCH), at.split(_BATCH), strict=True):
        run = runner.run(rows, sites=[Site("post", layer) for layer in layers])
        each = torch.arange(len(rows))
        keys.append(torch.stack([run["post", layer][each, places].cpu() for layer in layers]))
    return torch.cat(keys, dim=1).double()
