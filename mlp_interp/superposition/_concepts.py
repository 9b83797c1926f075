"""Geometry of concepts in the readout: directions of sets of tokens, made white."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from mlp_interp.models import Unembed, Weights, describe
from mlp_interp.models.finite import check_weights
from mlp_interp.models.indices import count
from mlp_interp.models.options import checked_seed
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.models.unembed import mean_direction
from mlp_interp.prompts.tokenizing import single_token, tokenizer_of
from mlp_interp.results import strings, variable

__all__ = ["concepts", "whitened"]

_NONE: Mapping[str, str] = MappingProxyType({})


@own_mode()
@torch.no_grad()
def concepts(
    model: Model,
    sets: Mapping[str, Sequence[str | int]],
    *,
    parents: Mapping[str, str] = _NONE,
    controls: int = 50,
    seed: int = 0,
) -> xr.Dataset:
    """Whether sets of tokens have directions of their own in the readout, and at which angles.

    Readout directions are made white over the vocabulary, ``C^{-1/2} w``: the inner product of such
    vectors is the causal one of Park et al., under which concepts that vary independently should be
    orthogonal. A set's vector is the mean of its tokens'. Random sets of as many tokens are beside
    every number: in many dimensions nearly all angles are right ones, so that orthogonality alone
    says little.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        sets: Tokens, or ids, of each concept, by name; three or more each.
        parents: Of a concept, the more general one whose tokens include its own: then the step from
            parent to child is compared with the parent.
        controls: How many random sets.
        seed: Of the random sets.

    Returns:
        A Dataset over ``concept`` (with ``tokens``, how many): ``auroc``, the share of pairs of one
        of its tokens and one of all others in which the first lies further along the concept, which
        is then taken from its other tokens; ``norm`` of its vector; ``cosine`` (``concept other``);
        and over ``child`` (with ``parent``): ``step_cosine`` of ``child - parent`` with ``parent``,
        0 in Park et al. With each, ``..._control`` (mean) and ``..._control_sd`` of random sets:
        from the whole vocabulary, or for steps from the parent's tokens.

    Raises:
        ValueError: No mapping, fewer than three tokens in a set, one twice or none of the model's,
            a parent that is no set or does not include its child, or counts out of range.

    References:
        Park, Choe & Veitch, "The linear representation hypothesis and the geometry of large
        language models", arXiv:2311.03658. Park et al., "The geometry of categorical and
        hierarchical concepts in large language models", arXiv:2406.01506. Golechha & Dao,
        "Intricacies of feature geometry in large language models", 2024, on what random sets give.

    Example:
        >>> from mlp_interp import load_model
        >>> found = concepts(load_model("nano"), {"animals": [" cat", " dog", " bird", " horse"]})
        >>> found["auroc"].item() > found["auroc_control"].item()
        True
    """
    count("controls", controls, least=2)
    draws = np.random.default_rng(checked_seed(seed))
    weights = Weights.of(model)
    if not isinstance(sets, Mapping):
        raise ValueError(
            f"sets={sets!r}; wanted tokens by name: {{'animals': [' cat', ' dog', …]}}"
        )
    ids = {name: _ids(model, name, given, weights.d_vocab) for name, given in sets.items()}
    if not ids:
        raise ValueError("sets is empty; wanted at least one concept")
    for child, parent in parents.items():
        if child not in ids or parent not in ids or not {*ids[child]} < {*ids[parent]}:
            raise ValueError(
                f"parents={{{child!r}: {parent!r}}}; wanted two of {', '.join(ids)}, of which the "
                "second has all tokens of the first, and more"
            )
    check_weights(model)
    white = whitened(Unembed.of(model).weight - mean_direction(weights)[0][:, None])
    result = _of_sets(white, ids, controls, draws)
    if parents:
        result = result.merge(_steps(white, ids, parents, controls, draws))
    return result.assign_attrs(
        **describe(model),
        analysis="concepts",
        long_name="directions of sets of tokens under the causal inner product",
        unit="see each variable",
        exact=1,
        controls=controls,
        seed=seed,
    )


def whitened(directions: Float[Tensor, "d_model token"]) -> Float[Tensor, "token d_model"]:
    """Centred directions as rows, with the identity as their second moment where they vary."""
    x = directions.T.double().cpu()
    values, basis = torch.linalg.eigh(x.T @ x / len(x))
    kept = values > 1e-9 * values[-1]
    return x @ basis[:, kept] / values[kept].sqrt() @ basis[:, kept].T


def _ids(model: Model, name: str, given: Sequence[str | int], size: int) -> tuple[int, ...]:
    what = f"sets[{name!r}]"
    ids = [
        single_token(tokenizer_of(model), one, what=what) if isinstance(one, str) else one
        for one in given
    ]
    if len(ids) < 3 or len({*ids}) < len(ids) or not all(0 <= n < size for n in ids):
        raise ValueError(
            f"{what}={list(given)}; wanted three or more tokens, ids from 0 to "
            f"{size - 1}, each once"
        )
    return tuple(ids)


def _of_sets(
    white: Tensor, ids: Mapping[str, tuple[int, ...]], controls: int, draws: np.random.Generator
) -> xr.Dataset:
    """How far each set stands out, and at which angles they are, beside random sets."""
    sizes = {*map(len, ids.values())}
    random = {n: _random(np.arange(len(white)), n, controls, draws) for n in sizes}
    measures = {"auroc": (_auroc, "fraction"), "norm": (_norm, "none")}
    vectors = torch.stack([_mean(white, tokens) for tokens in ids.values()])
    found = {}
    for name, (measure, kind) in measures.items():
        own = np.array([measure(white, tokens) for tokens in ids.values()])
        chance = {n: [measure(white, tokens) for tokens in random[n]] for n in sizes}
        found[name] = variable("concept", own, unit=kind)
        found |= _control(name, "concept", [chance[len(t)] for t in ids.values()], kind)
    cosines = torch.nn.functional.normalize(vectors, dim=1)
    dims = ("concept", "other")
    found["cosine"] = variable(dims, cosines @ cosines.T, unit="none")
    others = [
        torch.nn.functional.normalize(torch.stack([_mean(white, x) for x in random[len(t)]]), dim=1)
        for t in ids.values()
    ]
    chance = np.stack([(own @ x.T).numpy() for own, x in zip(cosines, others, strict=True)])
    found |= _control("cosine", "concept", chance, "none")
    found["tokens"] = variable("concept", np.array([len(t) for t in ids.values()]), unit="tokens")
    names = strings(list(ids))
    return xr.Dataset(found, {"concept": names, "other": names})


def _steps(
    white: Tensor,
    ids: Mapping[str, tuple[int, ...]],
    parents: Mapping[str, str],
    controls: int,
    draws: np.random.Generator,
) -> xr.Dataset:
    """Angles of steps down a hierarchy, beside random children of the same parents."""
    own, chance = [], []
    for child, parent in parents.items():
        whole = ids[parent]
        own.append(_step(white, whole, ids[child]))
        random = _random(np.array(whole), len(ids[child]), controls, draws)
        chance.append([_step(white, whole, tokens) for tokens in random])
    found = {"step_cosine": variable("child", np.array(own), unit="none")}
    found |= _control("step_cosine", "child", chance, "none")
    coords = {"child": strings(list(parents)), "parent": ("child", strings([*parents.values()]))}
    return xr.Dataset(found, coords)


def _control(name: str, dim: str, chance: Any, kind: str) -> dict[str, xr.Variable]:
    values = np.asarray(chance)
    return {
        f"{name}_control": variable(dim, values.mean(-1), unit=kind),
        f"{name}_control_sd": variable(dim, values.std(-1, ddof=1), unit=kind),
    }


def _random(
    tokens: np.ndarray, size: int, controls: int, draws: np.random.Generator
) -> list[tuple[int, ...]]:
    return [tuple(draws.choice(tokens, size, replace=False).tolist()) for _ in range(controls)]


def _mean(white: Tensor, tokens: Sequence[int]) -> Tensor:
    return white[list(tokens)].mean(0)


def _norm(white: Tensor, tokens: Sequence[int]) -> float:
    return float(_mean(white, tokens).norm())


def _step(white: Tensor, parent: Sequence[int], child: Sequence[int]) -> float:
    """Cosine of the step from parent to child with the parent."""
    above = _mean(white, parent)
    step = _mean(white, child) - above
    return float(torch.nn.functional.cosine_similarity(step, above, dim=0))


def _auroc(white: Tensor, tokens: Sequence[int]) -> float:
    """How well each token's place along the mean of the set's others tells it from all tokens."""
    some = white[list(tokens)]
    directions = (some.sum(0) - some) / (len(some) - 1)
    places = (white @ directions.T).numpy()
    shares = []
    for n, token in enumerate(tokens):
        others = np.delete(places[:, n], [t for t in tokens if t != token])
        at = token - sum(t < token for t in tokens)
        shares.append((rankdata(others)[at] - 1) / (len(others) - 1))
    return float(np.mean(shares))
