"""What stands largest in a matrix between tokens, or between tokens and neurons."""

from typing import Any, Literal

import numpy as np
import torch
import xarray as xr

from mlp_interp.models import Weights, describe
from mlp_interp.models.indices import each
from mlp_interp.models.options import check_choice, checked_count
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.tokenizing import single_token, tokenizer_of
from mlp_interp.results import described, to_numpy, variable
from mlp_interp.sites import Site
from mlp_interp.weights.factors import Factors
from mlp_interp.weights.matrices import factors_of, label_of
from mlp_interp.weights.ranking import best_of_all, best_of_rows

__all__ = ["ranked", "table"]


@own_mode()
@torch.no_grad()
def table(
    model: Model,
    matrix: str | Site,
    *,
    source: Any = "extended",
    tokens: Any = None,
    k: int = 10,
    best: int = 100,
    side: Literal["high", "low"] = "high",
    distance: int | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """The largest entries of each row of a matrix that weights make, and of the whole.

    Matrices of tokens by tokens are never held: they are walked block by block as the product of
    two thin factors, which is exact. All are the same for raw and processed weights; logits are
    over their mean over the vocabulary, and for a final norm that divides by 1.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        matrix: Which:

            - ``"direct"``: rows are the tokens that stand, columns the next token's logits, if
              nothing but `source` were in the final stream;
            - ``"L1H3.OV"``: rows are tokens that the head attends to, columns the logits that it
              then raises, without what it writes whatever it attends to;
            - ``"L1H3.QK"``: rows are tokens of queries, columns of keys: attention scores, with
              biases and rotation;
            - ``"L2.in"``: rows are tokens, columns neurons: pre-activations (``"L2.gate"`` and
              ``"L2.linear"`` of gated MLPs); ``"L2.out"``: rows are neurons, columns the logits
              that an activation of 1 adds;
            - ``"L2N15.in"``, ``"L2N15.out"``: one neuron as the only row, columns are tokens.

            A `Site`, or its label, is the matrix that ends there: ``"L1H3"`` OV, ``"L1H3.pattern"``
            QK, ``"2.pre"`` in, ``"2.post"``, ``"2.mlp"`` and ``"L2N15"`` out.
        source: What stands for tokens in the streams that are read: ``"embed"``, ``"extended"`` or
            `TokenStreams` (see `mlp_interp.models.token_streams.streams_of`).
        tokens: Rows to look at: token ids, or words of one token each; None for all. Of matrices
            with rows of neurons these are neurons' numbers.
        k: Entries of each row.
        best: Entries of the whole (of the rows that are looked at).
        side: ``"high"``: the largest; ``"low"``: the smallest.
        distance: From query to key, for ``QK``; None for the mean rotation over 1 to 31.
        progress: Show a bar.

    Returns:
        A Dataset with, along ``row`` (``row_id``, ``row_text``) and ``rank``: ``value``, ``column``
        (id) and ``column_text``; along ``row``, over all columns: ``mean`` and ``sd``, beside which
        a value says something, and for tokens by tokens ``diagonal`` and ``diagonal_z``, in these
        standard deviations; along ``best``: ``best_value``, ``best_row``, ``best_column`` and their
        texts. ``attrs`` have the unit, and ``exact``: 0 with an ``approximation`` in words where
        the rows are not all that is read of a token.

    Raises:
        ValueError: A label that means no matrix of this model, rows that there are not, counts out
            of range, or what `source` or `distance` cannot be.

    References:
        Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021; Dar et al.,
        "Analyzing Transformers in Embedding Space", 2023.

    Example:
        >>> from mlp_interp import load_model
        >>> model = load_model("nano")
        >>> found = table(model, "L1H0.OV", k=3)  # an induction head copies
        >>> found["value"].dims, found.attrs["exact"]
        (('row', 'rank'), 1)
        >>> first = found["column"].isel(rank=0)
        >>> bool((first == found["row_id"]).mean() > 0.8)
        True
    """
    weights = Weights.of(model)
    check_choice("side", side, ("high", "low"))
    matrix = label_of(weights, matrix)
    factors = factors_of(weights, matrix, source, distance)
    if tokens is not None:
        factors = factors.of_rows(_places(model, factors, tokens))
    found = ranked(model, factors, k=k, best=best, side=side, progress=progress)
    return found.assign_attrs(analysis="table", matrix=matrix)


def ranked(
    model: Model, factors: Factors, *, k: int, best: int, side: str = "high", progress: bool = False
) -> xr.Dataset:
    """The table of a matrix whose factors are known; options as of `table`.

    Raises:
        ValueError: Counts out of range.
    """
    size = len(factors.left) * len(factors.right)
    checked_count(k, len(factors.right), f"columns ({factors.columns.kind}s)")
    checked_count(best, size, "entries", name="best")
    sign = 1.0 if side == "high" else -1.0
    left = factors.left * sign
    found = best_of_rows(left, factors.right, k, progress=progress)
    top = best_of_all(left, factors.right, found, best)
    mean, sd = (to_numpy(x) for x in factors.moments)
    columns, rows = (to_numpy(x.ids) for x in (factors.columns, factors.rows))
    unit, place = factors.attrs["unit"], ("row", "rank")
    column, best_row, best_column = (
        ids[to_numpy(at)] for ids, at in ((columns, found[1]), (rows, top[1]), (columns, top[2]))
    )
    variables = {
        "value": variable(place, found[0] * sign, unit=unit, long_name="entry"),
        "column": variable(place, column, unit=f"{factors.columns.kind} id"),
        "column_text": (place, factors.columns.labels(model, column), {"unit": "text"}),
        "mean": variable("row", mean, unit=unit, long_name="mean over all columns"),
        "sd": variable("row", sd, unit=unit, long_name="standard deviation over all columns"),
        "best_value": variable("best", top[0] * sign, unit=unit, long_name="entry"),
        "best_row": variable("best", best_row, unit=f"{factors.rows.kind} id"),
        "best_row_text": ("best", factors.rows.labels(model, best_row), {"unit": "text"}),
        "best_column": variable("best", best_column, unit=f"{factors.columns.kind} id"),
        "best_column_text": ("best", factors.columns.labels(model, best_column), {"unit": "text"}),
    }
    if (diagonal := factors.diagonal) is not None:
        own = to_numpy(diagonal)
        scaled = np.divide(own - mean, sd, out=np.full_like(mean, np.nan), where=sd > 0)
        variables["diagonal"] = variable("row", own, unit=unit, long_name="of a token with itself")
        variables["diagonal_z"] = variable(
            "row", scaled, unit="standard deviations", long_name="diagonal, in its row"
        )
    coords = {"row_id": ("row", rows), "row_text": ("row", factors.rows.labels(model, rows))}
    attrs = {"long_name": "largest entries of a matrix of weights", "side": side}
    attrs |= {"data": "the weights alone", **describe(model), **factors.attrs}
    return described(xr.Dataset(variables, coords=coords, attrs=attrs), _ABOUT)


_ABOUT = {
    "column": "columns of the row's largest entries",
    "column_text": "columns of the row's largest entries",
    "best_row": "rows of the largest entries of all",
    "best_row_text": "rows of the largest entries of all",
    "best_column": "columns of the largest entries of all",
    "best_column_text": "columns of the largest entries of all",
}


def _places(model: Model, factors: Factors, given: Any) -> list[int]:
    """Which rows somebody named.

    Raises:
        ValueError: One is no word of one token, or no row.
    """
    ids = factors.rows.ids.tolist()
    at = {number: place for place, number in enumerate(ids)}
    listed = each(given)
    if not listed:
        raise ValueError("tokens is empty; wanted at least one row")
    places = []
    for one in listed:
        number = one
        if isinstance(one, str) and factors.rows.kind == "token":
            number = single_token(tokenizer_of(model), one, what="tokens")
        if type(number) is not int or number not in at:
            kind = factors.rows.kind
            raise ValueError(
                f"tokens holds {one!r}; wanted {kind}s that are rows, {len(ids)} in all"
            )
        places.append(at[number])
    return places
