"""How many neurons are behind an MLP's update, and how much of it is always the same."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import xarray as xr

from mlp_interp.corpus import SweepOptions
from mlp_interp.corpus import sweep as run_sweep
from mlp_interp.models import Weights
from mlp_interp.models.finite import check_weights
from mlp_interp.models.indices import indices
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.neurons.sweeps.shares import UpdateShares
from mlp_interp.results import variable

__all__ = ["update_shares"]

_ABOUT = {  # unit and long name of what the output bias adds
    "b_out_norm": ("L2 norm", "norm of b_out, which is no neuron's"),
    "b_out_cosine": ("cosine", "virtual bias and b_out"),
    "explained_with_b_out": (
        "fraction",
        "share of the mean square that is constant, of updates with b_out",
    ),
}


@own_mode()
def update_shares(
    model: Model,
    corpus: Any,
    *,
    attention_mask: Any = None,
    layers: int | Sequence[int] | None = None,
    order: Literal["activation", "norm"] = "activation",
    points: Sequence[int] | None = None,
    level: float = 0.9,
    first: int = 1,
    sample: int = 1,
    sweep: SweepOptions = SweepOptions(),
) -> xr.Dataset:
    """How few neurons make up an MLP's update, of which sign, and how much of it is constant.

    At each token the update is the sum over neurons of their sub-updates, ``activation * value
    vector``; the output bias ``b_out``, which no neuron writes, is left out but where it is named.
    One pass over the corpus. All vectors are of the weights as they are held: processed weights
    have no mean over ``d_model``, raw ones do, and their numbers differ by that.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        corpus: As in `activity`.
        attention_mask: As in `activity`.
        layers: Which layers; None for all.
        order: What the largest sub-updates are: those with the largest ``|activation|``, or, with
            ``"norm"``, with the largest ``|activation| * |value vector|``.
        points: How many of them to add up; None for 1, 2, 4 and so on, up to all. Each costs a
            product as large as the MLP's own.
        level: The cosine that ``needed`` asks for.
        first: Position from which on tokens count: 1 leaves out the one at position 0.
        sample: Only every so many-th position, from `first` on.
        sweep: How the corpus is run.

    Returns:
        A Dataset over ``layer`` with, as means over tokens with standard errors over sequences
        (``..._se``):

        - ``cosine`` (with ``k``, the points): of the sum of the k largest sub-updates to the
          update; with all neurons it is 1;
        - ``needed``: how many reach the cosine `level`. The point that first does is found, then
          the number by bisection between it and the point before; ``needed_median`` is the median
          over tokens (of an even number of them the lower);
        - ``negative_share``: the sum of the sub-updates with negative activation (of GELU's
          negative part), projected onto the update, over the update's length. It is negative where
          they work against the update; with ``positive_share`` it makes 1;
        - ``negative_norm_share``: their share in the sum of the norms of all sub-updates;

        and over all tokens

        - ``virtual_bias`` (with ``d_model``): the mean update, what the neurons write on average,
          and ``virtual_bias_norm``;
        - ``explained``: ``|mean update|^2 / mean |update|^2``, the share of the mean square that
          the virtual bias is; ``varying`` is the rest. With N tokens, N independent updates of mean
          zero would have 1/N explained. ``update_rms`` is the root of the mean square;
        - ``virtual_bias_cosine``: of an update to the virtual bias, on average;
        - ``b_out_norm``, ``b_out_cosine`` to the virtual bias, and ``explained_with_b_out``, where
          both constants and both updates have ``b_out`` in them.

        Tokens without any update (all activations zero) have no direction; means leave them out,
        and ``attrs["without_direction"]`` says how many there are.

    Raises:
        ValueError: Layers that the model does not have, points that do not ascend or exceed the
            number of neurons, other options out of range, weights that are not finite, or as
            `sweep`.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> model = load_model("nano")
        >>> corpus = load_corpus("nano", model, sequences=4, length=32)
        >>> found = update_shares(model, corpus, points=[1, 64, 768])
        >>> found["cosine"].dims, bool((abs(found["cosine"].sel(k=768) - 1) < 1e-5).all())
        (('layer', 'k'), True)
    """
    weights = Weights.of(model)
    weights.check_names(["post"], argument="neurons")
    listed = indices("layers", layers, weights.n_layers)
    check_weights(model)
    reducer = UpdateShares(
        points=doubling(weights.d_mlp) if points is None else tuple(points),
        order=order,
        level=level,
        sample=sample,
        layers=listed,
        first=first,
    )
    found = run_sweep(
        model, corpus, {"shares": reducer}, attention_mask=attention_mask, options=sweep
    )["shares"]
    return finished(weights, found)


def doubling(most: int) -> tuple[int, ...]:
    """1, 2, 4 and so on, up to `most` and with it."""
    return (*(2**i for i in range(most.bit_length()) if 2**i < most), most)


def finished(weights: Weights, found: xr.Dataset) -> xr.Dataset:
    """What `UpdateShares` found, with what the output bias adds to it."""
    layers = found["layer"].values.tolist()
    bias = torch.stack([weights.parameter(layer, "b_out").cpu().double() for layer in layers])
    update = torch.from_numpy(found["virtual_bias"].values)
    square = torch.from_numpy(found["update_rms"].values).square()
    # The mean of |u + b|^2.
    square = square + 2 * (update * bias).sum(-1) + bias.square().sum(-1)
    values = {
        "b_out_norm": bias.norm(dim=-1),
        "b_out_cosine": torch.cosine_similarity(update, bias, dim=-1),
        "explained_with_b_out": (update + bias).square().sum(-1) / square,
    }
    attrs = {name: value for name, value in found.attrs.items() if name != "reducer"}
    result = found.drop_attrs(deep=False).assign_attrs(attrs | {"analysis": "update_shares"})
    for name, (unit, about) in _ABOUT.items():
        result[name] = variable("layer", values[name], unit=unit, long_name=about)
    return result
