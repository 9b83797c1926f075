"""Every unit beside every feature: which tells documents with it from documents without."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr
from jaxtyping import Bool

from mlp_interp.corpus import SweepOptions
from mlp_interp.dictionaries import Dictionary
from mlp_interp.features._self_score import self_score
from mlp_interp.features.documents import SUMMARIES
from mlp_interp.features.ranks import Ranked, false_discovery
from mlp_interp.features.units import by_document, dictionaries_of, unit_of
from mlp_interp.models import Weights, describe
from mlp_interp.models.indices import count
from mlp_interp.models.options import check_choice, checked_number, checked_seed
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.padding import Padded
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.results import strings, variable
from mlp_interp.sites import GATED, NEURONS

__all__ = ["index"]

_LEAST = 4  # documents a side: with fewer the normal distribution gives too small a p


@own_mode()
def index(
    model: Model,
    corpus: Any,
    features: Mapping[str, Any],
    *,
    share: float = 0.25,
    summary: Literal["mean", "max"] = "mean",
    site: str = "post",
    dictionaries: Dictionary | Sequence[Dictionary] | None = None,
    first: int = 1,
    permutations: int = 100,
    seed: int = 0,
    sweep: SweepOptions = SweepOptions(),
) -> xr.Dataset:
    """How well every neuron tells documents that have a feature from those that have not.

    Or every head, by the length of what it writes to the stream, or every latent of dictionaries.
    One pass over the corpus gives every neuron one number a document, its mean or its greatest
    activation there. Their ranks give the AUROC for every feature: exact, and the same for any
    monotonous function of the activation. Documents are the independent draws, not tokens.

    That a neuron tells a feature from the others in this corpus does not say that it is *about*
    the feature (`mlp_interp.neurons.verify_neuron` asks that of other texts, and by ablation), nor
    that the model uses it. The best of thousands of neurons is far from 0.5 by chance alone:
    `p_family` says how far, and `q_value` how many of a list are false. Both take documents for
    independent: texts from one template are not.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        corpus: Documents: texts, lists of token ids, tokens ``[sequence, pos]``, or a `Corpus`,
            whose rows are taken for documents.
        features: By name, whether each document has the feature (truth values), or a prefix: then
            those documents have it that `self_score` puts highest behind that prefix.
        share: How many of the documents these are.
        summary: What of a document's activations: ``"mean"`` or ``"max"``.
        site: ``"post"``, ``"pre"``, or ``"pre_linear"`` of gated MLPs; ``"z"`` for heads.
        dictionaries: For latents in place of neurons: one, or one of each of several layers, all of
            one size.
        first: Position from which on tokens count: 1 leaves out the first, and BOS.
        permutations: How often documents are shuffled for `p_family` and `largest_null`.
        seed: Of the shuffles.
        sweep: How the corpus is run.

    Returns:
        A Dataset along ``feature``, ``layer`` and ``neuron`` (``head``, ``latent``): `auroc` (below
        0.5: less active where the feature is) with `auroc_se` (DeLong's, over documents);
        `p_value`, two-sided, over all shuffles of the documents: exact for neurons with two values,
        else by the normal distribution, and never less than the chance of the arrangement that is
        seen; `q_value`, Benjamini and Hochberg's over all neurons of the result, for each feature
        by itself; `p_family`, the share of shuffles in which *any* neuron is as far from 0.5. Along
        ``feature``: `positives`, and `largest_null` (also ``draw``), the largest distance from 0.5
        of any neuron in each shuffle. `best` and `about` look things up in it.

    Raises:
        ValueError: A site with dictionaries, which have their own; those of one layer, of several
            sizes or another model; not one label a document, fewer than four documents with a
            feature or without, documents without a token that counts, or as `sweep` and
            `self_score`.

    References:
        Gurnee et al., "Finding Neurons in a Haystack: Case Studies with Sparse Probing", 2023;
        Benjamini & Hochberg, "Controlling the false discovery rate", 1995.

    Example:
        >>> from mlp_interp import load_model
        >>> french = ["Il aime le pain.", "Elle voit le chat.", "Il mange.", "Où est la maison?"]
        >>> english = ["He likes the bread.", "She sees the cat.", "He eats.", "Where is it?"]
        >>> labels = {"French": [True] * 4 + [False] * 4}
        >>> found = index(load_model("nano"), french + english, labels)
        >>> found.auroc.dims, float(found.auroc.max())
        (('feature', 'layer', 'neuron'), 1.0)
    """
    weights = Weights.of(model)
    check_choice("site", site, (*NEURONS, *GATED, "z"))
    check_choice("summary", summary, SUMMARIES)
    weights.check_names([site])
    chosen = dictionaries_of(weights, dictionaries)
    if chosen and site != "post":
        raise ValueError(f"site={site!r} with dictionaries, which are of places of their own")
    count("permutations", permutations, least=0)
    rng = np.random.default_rng(checked_seed(seed))
    checked_number("share", share, lambda x: 0 < x < 1, "one between 0 and 1")
    documents = padded_texts(model, corpus)
    truth = _truth(model, documents, features, share)
    options: dict[str, Any] = {"site": site, "first": first, "summary": summary}
    found = by_document(model, documents, chosen, sweep=sweep, **options)
    values, unit = found.values, unit_of(found)
    if np.isnan(values).any():
        wrong = int(np.isnan(values).any((1, 2)).argmax())
        raise ValueError(
            f"corpus[{wrong}] has no token that counts from first={first} on; wanted longer texts"
        )
    shuffles = np.array([rng.permutation(len(values)) for _ in range(permutations)], dtype=int)
    auroc, error, p, largest = _layers(values, truth, shuffles)
    dims, chance = ("feature", "layer", unit), {"unit": "probability"}
    family = [_family(np.abs(a - 0.5), most) for a, most in zip(auroc, largest, strict=True)]
    return xr.Dataset(
        {
            "auroc": variable(dims, auroc, unit="probability", long_name="more in the feature's"),
            "auroc_se": variable(dims, error, unit="probability", long_name="over documents"),
            "p_value": (dims, p, chance),
            "q_value": (dims, np.stack([false_discovery(one) for one in p]), chance),
            "p_family": (dims, np.stack(family), chance),
            "positives": variable("feature", truth.sum(1), unit="documents"),
            "largest_null": variable(("feature", "draw"), largest, unit="probability"),
        },
        coords={
            "feature": strings([*features]),
            "layer": found["layer"].values,
            unit: found[unit].values,
        },
        attrs={
            **found.attrs,
            **describe(model),
            "analysis": "feature index",
            "long_name": f"how well the {summary} of {unit}s tells documents with a feature apart",
            "unit": "probability",
            "exact": 0,
            "approximation": "p values by the normal distribution but for units of two values, and "
            f"p_family from {permutations} shuffles; AUROC and its error are exact",
            "documents": len(values),
            "permutations": permutations,
            "seed": seed,
            "summary": summary,
            "site": "latents" if chosen else site,
        },
    )


def _truth(
    model: Model, documents: Padded, features: Mapping[str, Any], share: float
) -> Bool[np.ndarray, "feature document"]:
    """Which documents have which feature."""
    size = len(documents.tokens)
    if not isinstance(features, Mapping) or not features:
        raise ValueError(f"features={features!r}; wanted labels or prefixes by name, at least one")
    rows = []
    for name, given in features.items():
        if isinstance(given, str):
            given = _highest(self_score(model, documents.rows(), given), share)
        labels = np.asarray(given)
        if labels.shape != (size,) or labels.dtype != bool:
            raise ValueError(
                f"features[{name!r}]={labels.dtype}{list(labels.shape)}; wanted a prefix, or one "
                f"truth value for each of {size} documents"
            )
        if not _LEAST <= labels.sum() <= size - _LEAST:
            raise ValueError(
                f"features[{name!r}] is of {labels.sum()} of {size} documents; wanted at least "
                f"{_LEAST} with it and {_LEAST} without"
            )
        rows.append(labels)
    return np.stack(rows)


def _highest(scores: xr.Dataset, share: float) -> Bool[np.ndarray, " document"]:
    """Which documents score highest."""
    value = scores["score"].values[0]
    order = np.argsort(-value, kind="stable")[: round(share * len(value))]
    return np.isin(np.arange(len(value)), order)


def _layers(
    values: np.ndarray, truth: np.ndarray, shuffles: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """AUROC, its error and p ``[feature, layer, neuron]``, and the largest of shuffles."""
    found, largest = [], np.zeros((len(truth), len(shuffles)))
    for layer in range(values.shape[1]):
        ranked = Ranked.of(values[:, layer].astype(float))
        found.append((ranked.auroc(truth), ranked.auroc_se(truth), ranked.p_values(truth)))
        largest = np.maximum(largest, ranked.largest(truth, shuffles))
    auroc, error, p = (np.stack(one, 1) for one in zip(*found, strict=True))
    return auroc, error, p, largest


def _family(away: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Share of shuffles, the real order counted as one, in which some neuron is as far away."""
    rounding = 1e-12
    below = np.searchsorted(np.sort(largest), away - rounding)
    return (1 + len(largest) - below) / (1 + len(largest))
