"""The activations of chosen neurons at every token of chosen texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.models import Weights, describe
from mlp_interp.models.finite import check_weights
from mlp_interp.models.options import check_choice, check_counts
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import Texts, texts_of
from mlp_interp.prompts.tokenizing import token_strings
from mlp_interp.results import strings, variable
from mlp_interp.runs import Runner
from mlp_interp.sites import GATED, NEURONS, Site, SiteLike, component_coords

__all__ = ["activations"]


@own_mode()
@torch.no_grad()
def activations(
    model: Model,
    neurons: SiteLike | Sequence[SiteLike],
    texts: Any,
    *,
    site: str = "post",
    batch_size: int = 8,
) -> xr.Dataset:
    """What neurons do at every token of texts of your own.

    Texts need not be of one length, and each has the numbers that it has alone. `views.activations`
    shows them in place. A few texts show what a neuron *can* be about; `verify_neuron` asks whether
    it is, and `neuron_page` what it does the rest of the time.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        neurons: A label (``"L3N669"``), a `Site`, a pair ``(layer, neuron)``, or several.
        texts: A text or several, which begin with BOS; lists of token ids; tokens ``[prompt, pos]``
            or a `Corpus`.
        site: What to read: ``"post"``, what multiplies the value vector, or ``"pre"`` or another
            site of neurons.
        batch_size: Texts of equal length that are run at once.

    Returns:
        A Dataset with ``activation`` (component, prompt, pos), NaN after the end of a text;
        coordinate ``token`` (prompt, pos) has the tokens as text.

    Raises:
        ValueError: The model has no such neuron or site, or a text is empty or cannot be read.

    Example:
        >>> from mlp_interp import load_model
        >>> found = activations(load_model("nano"), "L0N433", ["Il aime le pain.", "The cat sat."])
        >>> found.activation.max("pos").values.round(1)
        array([[2.3, 0.2]], dtype=float32)
    """
    weights = Weights.of(model)
    check_choice("site", site, (*NEURONS, *GATED))
    weights.check_names([site])
    check_counts(batch_size=batch_size)
    places = weights.places(neurons, kind="neuron", argument="neurons")
    check_weights(model)
    read = texts_of(model, texts, what="texts")
    found = np.full((len(places), len(read), max(map(len, read.rows))), np.nan, np.float32)
    runner = Runner.of(model)
    for part, tokens, _ in read.batches(batch_size):
        found[:, part, : tokens.shape[1]] = _at(runner, tokens, site, places).cpu().float().numpy()
    several = len(places) > 1
    about = f"{site} of {len(places)} neurons" if several else f"{site} of {places[0].label}"
    return xr.Dataset(
        {
            "activation": variable(
                ("component", "prompt", "pos"), found, unit="activation", long_name=about
            )
        },
        {
            **component_coords(places),
            "prompt": np.arange(len(read)),
            "pos": np.arange(found.shape[-1]),
            "token": (("prompt", "pos"), _token_text(model, read, found.shape[-1])),
        },
        {
            **describe(model),
            "analysis": "activations in texts",
            "exact": 1,
            "unit": "activation",
            "long_name": about,
            "site": site,
            "data": read.about,
            "engine": runner.forward.engine,
        },
    )


def _at(
    runner: Runner, tokens: Tensor, site: str, places: list[Site]
) -> Float[Tensor, "neuron batch pos"]:
    seen: dict[int, Tensor] = {}
    wanted = {place.layer for place in places}

    def observe(name: str, layer: int, x: Tensor) -> Tensor:
        if name == site and layer in wanted:
            seen[layer] = x
        return x

    forward = runner.forward
    stop = max(int(place.layer or 0) for place in places) + 1
    forward.run(forward.embed(tokens.to(forward.weights.device)), stop=stop, observe=observe)
    return torch.stack([seen[int(place.layer or 0)][..., place.unit] for place in places])


def _token_text(model: Model, read: Texts, length: int) -> np.ndarray:
    tokenizer = getattr(model, "tokenizer", None)
    rows = [token_strings(tokenizer, list(row)) for row in read.rows]
    return strings([[*row, *[""] * (length - len(row))] for row in rows])
