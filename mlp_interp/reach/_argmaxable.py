"""`argmaxable`: which single tokens can be the likeliest?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.models import describe
from mlp_interp.models.indices import indices
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.models.scan import scan
from mlp_interp.prompts.reading import texts
from mlp_interp.reach._readout import Readout
from mlp_interp.reach._solve import solved
from mlp_interp.results import described, single, strings, to_numpy, variable

__all__ = ["argmaxable"]

_ROWS = 1024
_ROUNDS = 60


@own_mode()
@torch.no_grad()
def argmaxable(
    model: Model,
    *,
    tokens: Any = None,
    exclude: int | str | Sequence[int | str] = (),
    rounds: int = _ROUNDS,
) -> xr.Dataset:
    """Which tokens can be the likeliest one, for some stream.

    Most lead along their own direction, the longest stream that raises their logit: that is tried
    for all at once, and `reachable` decides about the rest. The bounds prove that a token can be
    first, or cannot, and are no closer than that takes.

    Args:
        model: As of `reachable`.
        tokens: Ids of the ones asked about; None for all.
        exclude: As of `reachable`.
        rounds: As of `reachable`.

    Returns:
        A Dataset along ``token_id``: ``reachable`` (1 yes, 0 no, -1 not decided), ``lower`` and
        ``upper`` (logits by which it can lead at least and at most; the latter infinite where it
        was not asked for), ``how`` (``"own direction"`` or ``"solver"``).

    Raises:
        ValueError: Tokens that the model does not have, or as `reachable`.

    References:
        Demeter, Kimmel and Downey, "Stolen Probability: A Structural Weakness of Neural Language
        Models", 2020; Grivas, Bogoychev and Lopez, "Low-Rank Softmax Can Have Unargmaxable Classes
        in Theory but Rarely in Practice", 2022.

    Example:
        >>> from mlp_interp import load_model
        >>> found = argmaxable(load_model("nano"), tokens=range(200))
        >>> int(found["reachable"].sum())
        200
    """
    readout = Readout.of(model, exclude)
    ids = np.array(indices("tokens", tokens, readout.unembed.d_vocab))
    lower = np.concatenate(
        [_own_lead(readout, ids[start : start + _ROWS]) for start in range(0, len(ids), _ROWS)]
    )
    upper = np.full(len(ids), np.inf)
    own = lower > readout.error
    rest = np.flatnonzero(~own)
    margins = solved(
        readout, ids[rest, None], ordered=False, tolerance=1.0, decide=True, rounds=rounds
    )
    for n, margin in zip(rest, margins, strict=True):
        lower[n], upper[n] = margin.lower, margin.upper
    said = np.where(own, 1, -1)
    said[rest] = [margin.verdict for margin in margins]
    variables = {
        "reachable": variable("token_id", said, unit="1 yes, 0 no, -1 unknown"),
        "lower": variable("token_id", lower, unit="logits", long_name="it can lead by as much"),
        "upper": variable("token_id", upper, unit="logits", long_name="and by no more"),
        "how": variable("token_id", np.where(own, "own direction", "solver"), unit="text"),
    }
    coords = {"token_id": ids, "token_text": ("token_id", strings(texts(model, ids)))}
    about = {"analysis": "argmaxable tokens", "unit": "logits", "exact": 1, "data": "none"}
    named = {"reachable": "whether it can be the likeliest", "how": "what tells"}
    return described(xr.Dataset(variables, coords, {**describe(model), **about}), named)


def _own_lead(readout: Readout, ids: np.ndarray) -> np.ndarray:
    """Lead of tokens over all others where the stream is as long as can be in their direction."""
    bias = single(readout.unembed.bias)
    rows = readout.rows(ids)
    n = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    streams = (readout.radius * torch.from_numpy(n)).to(bias)
    rivals = torch.from_numpy(readout.rivals).to(bias.device)
    best: Float[Tensor, " token"] = bias.new_full((len(ids),), -torch.inf)
    place = torch.from_numpy(ids).to(bias.device)
    offset = bias.new_zeros(len(ids), 1)
    for block, products in scan(readout.unembed.weight, streams[:, None], offset):
        for some, product in products:
            logits = product[:, 0] + bias[block]
            logits[:, ~rivals[block]] = -torch.inf
            here = place[some] - block.start
            inside = ((here >= 0) & (here < logits.shape[1])).nonzero()[:, 0]
            logits[inside, here[inside]] = -torch.inf
            best[some] = torch.maximum(best[some], logits.amax(1))
    return (n * rows).sum(1) + readout.bias[ids] - to_numpy(best)
