"""Text with every token coloured by a signed value."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from mlp_interp.views._choice import Choice, token_values
from mlp_interp.views._page import MAX_TOKENS, as_numbers, as_texts


def tokens(
    token_strs: Sequence[str],
    values: Any,
    *,
    limit: float | None = None,
    unit: str | None = None,
    caption: str = "",
) -> Choice:
    """Tokens coloured by one signed value each: red negative, blue positive, with a legend.

    Args:
        token_strs: The tokens as text, one string each.
        values: One number per token (list, numpy, torch or DataArray).
        limit: The value of full colour, either sign; by default the largest value shown. Give the
            same limit to views that are to be compared.
        unit: Of the values, for the legend; None for the one that a DataArray has.
        caption: One sentence to put below.

    Returns:
        A view; hovering over a token shows its value.

    Raises:
        ValueError: If lengths differ, a value is not finite, there are more than 2,000 tokens, or
            `limit` is not positive.

    Example:
        >>> tokens(["The", " cat"], [0.5, -1.0])
        Choice(2 tokens)
    """
    texts = as_texts(token_strs, limit=MAX_TOKENS)
    numbers = as_numbers("values", values, 1)
    if len(numbers) != len(texts):
        raise ValueError(f"values must match tokens: {len(numbers)} values, {len(texts)} tokens")
    if limit is not None and not limit > 0:
        raise ValueError(f"limit must be positive, got {limit}")
    if unit is None:
        unit = str(getattr(values, "attrs", {}).get("unit", ""))
    return Choice(texts, {"": numbers.tolist()}, "", caption, unit, limit)


def activations(result: xr.Dataset, *, limit: float | None = None, caption: str = "") -> Choice:
    """What neurons do in texts: every token coloured by the activation there.

    Args:
        result: What `neurons.activations` returns.
        limit: The activation of full colour, of one neuron; by default the largest shown.
        caption: One sentence to put below; by default what was measured on which model.

    Returns:
        The texts, one below the other; of several neurons, a list above the text chooses.

    Raises:
        ValueError: The result is another one, or `tokens` refuses what it holds.

    Example:
        >>> from mlp_interp import load_model, neurons
        >>> activations(neurons.activations(load_model("nano"), "L0N433", "Il aime le pain."))
        Choice(8 tokens)
    """
    held = getattr(result, "get", {}.get)("activation")
    if held is None or {*held.dims} != {"component", "prompt", "pos"} or "token" not in held.coords:
        raise ValueError(
            f"result={type(result).__name__}; wanted the Dataset of neurons.activations"
        )
    strs: list[str] = []
    columns: list[np.ndarray] = []
    for _, prompt in held.transpose("prompt", "component", "pos").groupby("prompt", squeeze=False):
        real = prompt.isel(prompt=0, pos=prompt.notnull().any(["prompt", "component"]).values)
        end = ["\n"] if strs else []
        strs += [*end, *map(str, real["token"].values)]
        columns += [np.zeros((real.sizes["component"], len(end))), real.values]
    rows = np.concatenate(columns, axis=1)
    named = [str(name) for name in held["component"].values]
    caption = caption or f"{held.attrs.get('long_name', '')}, {result.attrs.get('model', '')}"
    if len(named) == 1:
        return tokens(strs, rows[0], limit=limit, caption=caption)
    if limit is not None:
        raise ValueError(f"limit={limit} of several neurons; wanted None: each has its own")
    return token_values(strs, dict(zip(named, rows, strict=True)), caption=caption)
