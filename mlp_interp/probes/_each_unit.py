"""Every unit of every layer against a label of tokens or of texts, in one pass over a corpus."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from mlp_interp.corpus import SweepOptions
from mlp_interp.corpus import sweep as run_sweep
from mlp_interp.models import describe
from mlp_interp.models.indices import count
from mlp_interp.models.options import checked_seed
from mlp_interp.models.padding import Padded, which_count
from mlp_interp.models.protocol import Model
from mlp_interp.probes._read import Place
from mlp_interp.probes.class_moments import HALVES, ClassMoments, Labels
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.results import variable

__all__ = ["each_unit"]


def each_unit(
    model: Model,
    corpus: Any,
    labels: Any,
    *,
    site: str = "post",
    layers: int | Sequence[int] | None = None,
    first: int = 1,
    controls: int = 3,
    seed: int = 0,
    sweep: SweepOptions = SweepOptions(),
) -> xr.Dataset:
    """How far apart every single unit holds tokens with a label and tokens without.

    A sparse probe with one unit, of all units of all layers, on as much text as there is: one pass
    sums up counts, means and squares by label, and nothing is fitted. The best unit of a layer is
    chosen on every other sequence and measured on the rest. Any label has a best unit, so the
    controls do the same with labels exchanged among sequences: those of one sequence stay together,
    for its tokens are no independent draws.

    A difference of means in deviations says how well a threshold would do if activations were
    normal. They are not: `sparse_probe` ranks, on prompts; `features.index` on documents.

    Args:
        model: The model.
        corpus: A `Corpus`, tokens or texts, as in `sweep`.
        labels: Truth values, one a sequence or one a token ``[sequence, pos]``, as in `corpus`.
        site: ``post`` or ``pre`` for neurons, or a place in the stream for its dimensions.
        layers: At which layers; None for all.
        first: Position from which on tokens count.
        controls: How often labels are exchanged.
        seed: Of that.
        sweep: Batches, shards and checkpoints.

    Returns:
        A Dataset over ``layer`` and ``neuron`` (or ``d_model``): `difference` (mean with the label
        less without), `d` (that in standard deviations within labels) and `f` (the F statistic:
        what `d` is worth with so many tokens, if these were independent), of all text. Over
        ``half`` (of the sequences: even, odd) and ``layer``: `best`, the unit with the largest
        ``|d|`` in one half, and `held_out`, its `d` in the *other*, positive where it points the
        same way; `control` (also ``draw``) is the same with labels exchanged. `tokens` (with): how
        many.

    Raises:
        ValueError: Labels are no truth values or of another shape, there are fewer than two tokens
            with or without in a half, or as `sweep`.

    References:
        Gurnee et al. 2023, "Finding Neurons in a Haystack: Case Studies with Sparse Probing",
        arXiv:2305.01610.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> model = load_model("nano")
        >>> corpus = load_corpus("nano", model, sequences=16, length=32)
        >>> found = each_unit(model, corpus, corpus.tokens > 300)
        >>> found.d.dims, found.held_out.dims, bool((found.held_out > found.control.max()).any())
        (('layer', 'neuron'), ('half', 'layer'), True)
    """
    seed, controls = checked_seed(seed), count("controls", controls, least=0)
    place = Place.of(model, site, layers, 1)
    texts = padded_texts(model, corpus)
    counted = which_count(model, texts.tokens, texts.real, first)
    truth = _truth(labels, texts, counted)
    rng = np.random.default_rng(seed)
    orders = [np.arange(len(truth)), *(_exchanged(len(truth), rng) for _ in range(controls))]
    reducer = ClassMoments(
        labels=Labels(truth, torch.from_numpy(np.stack(orders))),
        site=site,
        layers=place.layers,
        first=first,
    )
    found = run_sweep(model, texts, reducer, options=sweep)[reducer.name]
    parts = [found[name].values for name in ("count", "sum", "square")]
    difference, d, f = _apart(*(part[:, :1].sum(2) for part in parts))
    _, by_half, _ = _apart(*parts)  # [layer, labelling, half, unit]
    best = np.abs(by_half).argmax(-1)
    held_out = _elsewhere(by_half, best)
    dims, over = ("layer", place.unit), ("half", "layer")
    deviations = {"unit": "deviations"}
    return xr.Dataset(
        {
            "difference": variable(dims, difference[:, 0], unit="activation"),
            "d": (dims, d[:, 0], {**deviations, "long_name": "difference of means"}),
            "f": variable(dims, f[:, 0], unit="F", long_name="F statistic, tokens as draws"),
            "best": variable(over, best[:, 0].T, unit="index"),
            "held_out": (over, held_out[:, 0].T, deviations),
            "control": (("draw", *over), held_out[:, 1:].transpose(1, 2, 0), deviations),
            "tokens": variable("with", parts[0][0, 0].sum(0), unit="tokens"),
        },
        coords={"layer": list(place.layers), "half": ["even", "odd"], "with": [False, True]},
        attrs={
            **found.attrs,
            **describe(model),
            "analysis": "each unit",
            "site": site,
            "unit": "deviations",
            "seed": seed,
            "first": first,
            "exact": 1,
        },
    )


def _truth(
    given: Any, texts: Padded, counted: Bool[Tensor, "sequence pos"]
) -> Bool[Tensor, "sequence pos"]:
    """The label of every token."""
    sizes = tuple(texts.tokens.shape)
    wanted = (
        f"wanted truth values, one for each of {sizes[0]} sequences or one for each token "
        f"{list(sizes)}"
    )
    try:
        truth = torch.as_tensor(np.asarray(given))
    except (TypeError, ValueError) as error:  # rows of several lengths, or no numbers
        raise ValueError(f"labels={type(given).__name__}; {wanted}") from error
    if truth.dtype != torch.bool or tuple(truth.shape) not in (sizes[:1], sizes):
        raise ValueError(f"labels={truth.dtype}{list(truth.shape)}; {wanted}")
    whole = texts.along(truth) if truth.ndim == 2 else truth[:, None].expand(sizes)
    counted = counted.cpu()
    for half in range(HALVES):
        inside, labels = counted[half::HALVES], whole[half::HALVES]
        held = [int((inside & (labels == which)).sum()) for which in (True, False)]
        if min(held) < 2:
            raise ValueError(
                f"labels: of every other sequence, {held[0]} tokens that count have it and "
                f"{held[1]} have not; wanted at least two of each"
            )
    return whole.contiguous()


def _exchanged(size: int, rng: np.random.Generator) -> np.ndarray:
    """An order of sequences that stay in their halves."""
    order = np.arange(size)
    for half in range(HALVES):
        order[half::HALVES] = rng.permutation(order[half::HALVES])
    return order


def _apart(
    n: Float[np.ndarray, "*of two"],
    total: Float[np.ndarray, "*of two unit"],
    square: Float[np.ndarray, "*of two unit"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Difference of two means, the same in deviations within, and F; 0 where nothing varies."""
    n = n[..., None]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / n
        within = (square - n * mean**2).clip(0).sum(-2)
        both, product = n.sum(-2), n.prod(-2)
        difference = mean[..., 1, :] - mean[..., 0, :]
        # What is left of a unit that never varies is rounding.
        varies = within > 1e-12 * square.sum(-2)
        d = np.where(varies, difference / np.sqrt(within / (both - 2)), 0.0)
    return difference, d, d**2 * product / both


def _elsewhere(
    d: Float[np.ndarray, "layer labelling half unit"], best: np.ndarray
) -> Float[np.ndarray, "layer labelling half"]:
    """What the best unit of one half does in the other, along its own sign."""
    own = np.take_along_axis(d, best[..., None], -1)[..., 0]
    other = np.take_along_axis(d[:, :, ::-1], best[..., None], -1)[..., 0]
    return np.sign(own) * other
