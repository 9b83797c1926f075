"""All about one neuron, as one result: what it reads, when it fires, what that does."""

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from mlp_interp.corpus import SweepOptions
from mlp_interp.corpus import sweep as run_sweep
from mlp_interp.corpus.reducers import (
    BandExamples,
    Fraction,
    Histogram,
    Moments,
    TopExamples,
    quantiles,
)
from mlp_interp.models import Weights, describe
from mlp_interp.models.options import check_counts, checked_count, checked_seed
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.neurons.page import sections
from mlp_interp.neurons.page.removal import NeuronUnit, removal
from mlp_interp.neurons.weights.statistics import neuron_weights, promoted_tokens
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.sites import NEURONS, Site, SiteLike

__all__ = [
    "OCTAVES",
    "band_edges",
    "checked_request",
    "first_counted",
    "neuron_page",
    "some_of",
]

# Of the positions where the neuron fires: the lower half, to nine tenths, to 99 in a hundred, the
# rest.
SHARES = [0.5, 0.9, 0.99]
# Activations between the two exponents of 2 are known to an eighth of themselves.
OCTAVES = (-12, 7)
# Above this, a neuron fires; of a nonlinearity that gives exact zeros, those do not.
LEAST = 1e-30


@own_mode()
def neuron_page(
    model: Model,
    neuron: SiteLike,
    corpus: Any,
    *,
    attention_mask: Any = None,
    k: int = 10,
    examples: int = 4,
    before: int = 12,
    after: int = 6,
    ablate: int = 32,
    seed: int = 0,
    sweep: SweepOptions = SweepOptions(),
) -> xr.Dataset:
    """Everything about one neuron: weights, activity, examples, tokens, effects, neighbours.

    The corpus is swept twice, up to the neuron's layer: once for numbers and the largest
    activations, once for examples of the strengths that were found. Some of its sequences are then
    run to the end, with and without the neuron. `mlp_interp.views.neuron` shows the result.

    A BOS that begins all sequences is left out everywhere, as what a model does there is seldom
    what it does elsewhere. The neuron *fires* where its pre-activation is above zero.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        neuron: A label (``"L3N669"``), a `Site`, or the pair ``(layer, neuron)``.
        corpus: As in `activity`.
        attention_mask: As in `activity`.
        k: How many tokens of each sign, neighbours, and largest activations.
        examples: How many of each band of activation.
        before: Tokens of context before each example.
        after: Tokens of context after it.
        ablate: Sequences, drawn from the corpus, on which the neuron is taken away.
        seed: Of both draws.
        sweep: How the corpus is run, both times.

    Returns:
        A Dataset; each variable says in its attributes what it is, and in which unit.

        - Weights, as in `neuron_weights`: ``receptor_norm``, ``value_norm``, ``bias``, ``cosine``,
          the same ``_folded``, and ``activation_volume``.
        - Activity: ``fraction`` of positions at which it fires, with ``fraction_se``; ``mean``,
          ``std``, ``least``, ``greatest`` (site: ``pre`` and ``post``, the activation before and
          after the nonlinearity); ``histogram`` (site, bin) between ``bin_low`` and ``bin_high``.
        - ``top_activation``, ``top_sequence``, ``top_pos`` (example), the largest activations (at
          most one of a sequence), with ``top_token``, ``top_text`` and ``top_around`` (example,
          context): the tokens around them and the activation at each. Along ``context`` 0 is the
          token itself.
        - ``band_...`` (band, draw): the same of positions drawn at random from bands of activation:
          where it does not fire, and where it fires, the lower half of activations, the next four
          tenths, the next nine hundredths, the top hundredth; ``band_low``, ``band_high`` and
          ``band_count`` (positions) of each.
        - ``promoted``, ``suppressed``, ``..._text``, ``..._logit`` (rank), as in
          `promoted_tokens`. ``direct_coefficient``: activation / sigma, mean over sequences of the
          mean over the positions at which it fires, where sigma is what the final LayerNorm divides
          the stream by.
          ``promoted_direct``, ``suppressed_direct``: the product of the two, which is what the
          neuron adds directly to these logits when it fires, over the mean of all logits.
        - ``effect``, ``effect_se`` (measure, path, where): what is lost when the activation is held
          at its mean. Measures are ``delta_loss``, ``kl`` and ``promoted``, as in `verify_neuron`
          (with the `k` tokens above). Paths are ``direct`` (taken out of the final stream,
          LayerNorm recomputed), ``later`` (through later layers: the rest) and ``total``. ``all``
          positions, or those where it is ``firing``. Each is a mean over
          sequences of the mean over these positions, so a sequence in which it fires once weighs as
          much as one in which it fires often; those in which it never fires are left out of
          ``firing``. Standard errors are over sequences.
        - ``similar``, ``similar_value_cosine``, ``similar_receptor_cosine`` (by, rank):
          `nearest_neurons` by value vector and by receptor.

        What cannot be known is NaN: effects where the neuron fires if it never does.

    Raises:
        ValueError: The model has no such neuron, the corpus is not the model's, or an option is out
            of range.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> model = load_model("nano")
        >>> page = neuron_page(
        ...     model, "L3N506", load_corpus("nano", model, sequences=4, length=32), k=3, ablate=2
        ... )
        >>> str(page.component.values), page["top_text"].dims, 0 < float(page["fraction"]) < 1
        ('L3N506', ('example', 'context'), True)
    """
    site = checked_request(model, neuron, k)
    layer = site.layer or 0
    texts = padded_texts(model, corpus, attention_mask)
    tokens = texts.tokens
    check_counts(examples=examples, ablate=ablate)
    checked_seed(seed)
    # Before the corpus is read: weights that are not finite are found here.
    about = neuron_weights(model, layers=[layer], tokens=False)
    words = promoted_tokens(model, site, k=k)
    similar = sections.similar(model, site, k)
    first = first_counted(model, tokens)
    options: dict[str, Any] = {"layers": (layer,), "units": (site.unit,), "first": first}
    shown: dict[str, Any] = {"before": before, "after": after}
    reducers = {
        "fraction": Fraction(**options),
        "top": TopExamples(k=k, site="post", **shown, **options),
        **{f"moments.{name}": Moments(site=name, **options) for name in NEURONS},
        **{f"bins.{name}": Histogram(site=name, octaves=OCTAVES, **options) for name in NEURONS},
    }
    found = {
        name: result.isel(layer=0, neuron=0, drop=True)
        for name, result in run_sweep(model, texts, reducers, options=sweep).items()
    }
    edges = band_edges(found["bins.post"])
    bands = BandExamples(
        neuron=site.label, edges=edges, k=examples, first=first, seed=seed, **shown
    )
    drawn = run_sweep(model, texts, {"bands": bands}, options=sweep)["bands"]
    ablated = some_of(len(tokens), ablate, seed)
    held_at = float(found["moments.post"]["mean"])
    removed = removal(
        model,
        NeuronUnit(Weights.of(model), site),
        tokens[ablated].long(),
        words["promoted"].values,
        held_at=held_at,
        real=None if texts.real is None else texts.real[ablated],
        first=first,
        size=sweep.batch_size,
    )
    page = {
        **about.isel(layer=0, neuron=site.unit, drop=True).data_vars,
        **sections.activity(found),
        **sections.examples(model, found["top"], "top", "example"),
        **sections.examples(model, drawn.rename(example="draw"), "band", "draw"),
        **sections.bands(drawn),
        **words.drop_vars(["component", "layer", "neuron"], errors="ignore").data_vars,
        **removed,
        **sections.direct(words, removed["direct_coefficient"]),
        **similar,
    }
    return xr.Dataset(
        page,
        coords={"component": site.label, "layer": layer, "neuron": site.unit},
        attrs={
            **texts.attrs,
            **describe(model),
            "analysis": "page of a neuron",
            "exact": 1,
            "long_name": f"what {site.label} reads, when it fires, and what that does",
            "unit": "see each variable",
            "positions": found["fraction"].attrs["entries"],
            "first": first,
            "ablated_sequences": len(ablated),
            "held_at": held_at,
            "seed": seed,
        },
    )


def checked_request(model: Model, neuron: SiteLike, k: Any) -> Site:
    """The neuron that is asked about, before a corpus is read.

    Raises:
        ValueError: The model does not have it, or not `k` tokens and other neurons.
    """
    weights = Weights.of(model)
    weights.check_names(["post"], argument="neurons")
    checked_count(k, min(weights.d_vocab, weights.d_mlp - 1), "tokens, or of other neurons")
    return weights.place(neuron, kind="neuron", argument="neuron")


def first_counted(model: Model, tokens: Tensor) -> int:
    """1 where all sequences begin with BOS, else 0."""
    tokenizer = getattr(model, "tokenizer", None)
    bos = getattr(tokenizer, "bos_token_id", None)
    begins = bos is not None and tokens.shape[1] > 1 and bool((tokens[:, 0] == bos).all())
    return int(begins)


def some_of(size: int, count: int, seed: int) -> Tensor:
    """Numbers of some sequences, drawn at random, ascending."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return order[:count].sort().values


def band_edges(histogram: xr.Dataset) -> tuple[float, ...]:
    """Edges of the bands: where it does not fire, then by quantiles of where it does."""
    firing = histogram.isel(bin=(histogram["low"] > 0).values)
    inner = quantiles(firing, SHARES).values
    inner = np.unique(inner[inner > LEAST]) if int(firing["count"].sum()) else []
    return (-np.inf, LEAST, *map(float, inner), np.inf)
