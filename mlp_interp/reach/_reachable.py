"""`reachable`: can these tokens be the likeliest ones, and by how much can they lead?"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from mlp_interp.models import describe
from mlp_interp.models.indices import count
from mlp_interp.models.options import check_choice, checked_number
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.reading import ids_and_texts
from mlp_interp.reach._margin import Margin, lead
from mlp_interp.reach._readout import Readout
from mlp_interp.reach._sets import sets_of
from mlp_interp.reach._solve import solved
from mlp_interp.results import described, variable

__all__ = ["checked_tolerance", "reachable"]

_VIOLATORS = 8
_SPHERE = 1 - 1e-6  # shorter streams are inside the ball


@own_mode()
@torch.no_grad()
def reachable(
    model: Model,
    tokens: Any,
    *,
    ordered: bool = False,
    norm: Literal["ball", "sphere"] = "ball",
    tolerance: float = 1e-3,
    decide: bool = False,
    exclude: int | str | Sequence[int | str] = (),
    rounds: int = 60,
) -> xr.Dataset:
    """Whether a set of tokens can be the top of the model's ranking, and by how much it can lead.

    After the final norm every stream is a vector ``n`` of a ball: ``|n| < sqrt(d_model)``, for a
    LayerNorm without a mean. A set's *margin* is the largest gap, over all these vectors, between
    the least of its logits and the largest of all others: the set is the top of the ranking for
    some stream if and only if that is positive. It says what the readout allows, not what the
    layers before it ever write; nor that a text leads there.

    Two certificates come with the answer, and `with_certificate` checks them: a stream that has the
    margin ``lower``; and weights on the set's tokens and on rivals by which no stream has more than
    ``upper``. An ``upper`` of zero or less proves that the set cannot be had at all.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`, with LayerNorm or RMSNorm.
        tokens: Sets ``[set, k]`` of token ids or of texts of one token each; also a single set.
        ordered: Whether the tokens must also come in the order given.
        norm: ``"ball"``, or ``"sphere"``, where all long streams end: with biases a set may be
            reachable for short streams only. Where the best stream is short, the one of full length
            in its direction is tried; if that fails the answer is -1, not known.
        tolerance: How far apart ``lower`` and ``upper`` may stay, logits.
        decide: Stop at the first proof that the set can be had, or cannot: several times faster;
            the bounds are then far apart.
        exclude: Tokens, by id or text, one or several, that do not count as rivals, such as those
            that pad the vocabulary.
        rounds: How often all tokens are asked at most; sets that need more stay undecided.

    Returns:
        A Dataset along ``set``: ``lower`` and ``upper`` (logits; before a cap on logits, where the
        model has one), ``reachable`` (1 yes, 0 no, -1 not decided), ``radius`` (length of the
        stream, as a share of ``sqrt(d_model)``), ``stream`` (the normalised stream with margin
        ``lower``, before scale and shift), ``weight`` of ``weight_id`` (what proves ``upper``: the
        set's weights, of an order those of each token's lead over the next, and those of rivals),
        ``violator_id`` and ``violator_text`` (the rivals with the largest weight), ``rounds``.

    Raises:
        ValueError: A set that names a token twice or one that the model does not have, a text that
            is not one token, sets of several sizes or as large as the vocabulary; `tolerance`,
            `rounds` or `norm` out of range; or a model without a final norm, or whose readout is
            not finite.

    References:
        Grivas, Bogoychev and Lopez, "Low-Rank Softmax Can Have Unargmaxable Classes in Theory but
        Rarely in Practice", 2022, on single tokens; Grivas, Vergari and Lopez, "Taming the Sigmoid
        Bottleneck", 2024, on sets; Chang and McCallum, "Softmax Bottleneck Makes Language Models
        Unable to Represent Multi-mode Word Distributions", 2022.

    Example:
        >>> from mlp_interp import load_model
        >>> found = reachable(load_model("nano"), [" Paris", " London", " dog"])
        >>> int(found["reachable"][0]), bool(found["upper"][0] - found["lower"][0] < 1e-3)
        (1, True)
    """
    check_choice("norm", norm, ("ball", "sphere"))
    tolerance = checked_tolerance(tolerance)
    count("rounds", rounds)
    readout = Readout.of(model, exclude)
    excluded = np.flatnonzero(~readout.rivals).tolist()
    sets = sets_of(model, tokens, readout.unembed.d_vocab)
    _check_rivals(readout, sets)
    margins = solved(
        readout, sets, ordered=ordered, tolerance=tolerance, decide=decide, rounds=rounds
    )
    if norm == "sphere":
        _lengthen(margins)
    about = {
        "analysis": "reachable sets",
        "unit": "logits",
        "exact": 1,
        "ordered": int(ordered),
        "norm": norm,
        "tolerance": tolerance,
        "decide": int(decide),
        **({"exclude": excluded} if excluded else {}),
    }
    return _dataset(model, margins).assign_attrs({**describe(model), "data": "none", **about})


def checked_tolerance(given: Any) -> float:
    """A tolerance at which something ends.

    Raises:
        ValueError: It is no number, not positive, or infinite.
    """
    good = "a positive number of logits"
    return float(checked_number("tolerance", given, lambda x: 0 < x < np.inf, good))


def _check_rivals(readout: Readout, sets: np.ndarray) -> None:
    for n, one in enumerate(sets):
        if readout.rivals.sum() <= readout.rivals[one].sum():
            raise ValueError(f"exclude leaves tokens[{n}]={one.tolist()} no rival; wanted some")


def _lengthen(margins: list[Margin]) -> None:
    """Put streams on the sphere where the set leads there, too."""
    for margin in margins:
        length = float(np.linalg.norm(margin.stream))
        if length >= _SPHERE or margin.lower <= 0 or length == 0:
            continue
        longer = margin.stream / length
        margin.lower = lead(margin, longer, np.flatnonzero(margin.rivals))
        margin.stream = longer


def _dataset(model: Model, margins: list[Margin]) -> xr.Dataset:
    proofs = [margin.weights for margin in margins]
    support = max(1, *(len(weights) for _, weights in proofs))
    ids = np.full((len(margins), support), -1)
    weight = np.full((len(margins), support), np.nan)
    violators = np.full((len(margins), _VIOLATORS), -1)
    for n, (margin, (token, values)) in enumerate(zip(margins, proofs, strict=True)):
        ids[n, : len(token)], weight[n, : len(token)] = token, values
        rival = ~np.isin(token, margin.tokens)
        order = token[rival][(-values[rival]).argsort()][:_VIOLATORS]
        violators[n, : len(order)] = order
    streams = np.stack([margin.stream for margin in margins])
    tokens = np.stack([margin.tokens for margin in margins])
    variables: dict[str, Any] = {
        "lower": _logits([m.lower for m in margins], "margin of the stream"),
        "upper": _logits([m.upper for m in margins], "no stream has a larger margin"),
        "reachable": variable(
            "set", [m.verdict for m in margins], unit="1 yes, 0 no, -1 unknown", long_name="verdict"
        ),
        "radius": variable(
            "set", np.linalg.norm(streams, axis=1), unit="fraction of sqrt(d_model)"
        ),
        "stream": variable(
            ("set", "d_model"), streams * margins[0].readout.radius, unit="normalised stream"
        ),
        "weight": variable(("set", "support"), weight, unit="1", long_name="of the certificate"),
        "weight_id": variable(("set", "support"), ids, unit="token"),
        "rounds": variable("set", [m.rounds for m in margins], unit="count"),
        **ids_and_texts(model, "token", ("set", "rank"), tokens, "the set"),
        **ids_and_texts(model, "violator", ("set", "violator"), violators, "in the way"),
    }
    about = {
        "radius": "length of the stream",
        "stream": "normalised stream of the largest margin found",
        "weight_id": "tokens of the certificate",
        "rounds": "how often all tokens were asked",
    }
    return described(xr.Dataset(variables), about)


def _logits(values: list[float], long_name: str) -> xr.Variable:
    found: Float[np.ndarray, " set"] = np.array(values)
    return variable("set", found, unit="logits", long_name=long_name)
