"""Is a neuron a key for a pattern of text, and its value a guess of what follows?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from mlp_interp.corpus import SweepOptions
from mlp_interp.corpus import sweep as run_sweep
from mlp_interp.corpus.reducers import TopExamples
from mlp_interp.models import Weights
from mlp_interp.models.finite import check_weights
from mlp_interp.models.indices import count, indices
from mlp_interp.models.options import checked_count, checked_seed
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.models.vectors import Vectors
from mlp_interp.models.vocabulary import TokenDirections
from mlp_interp.neurons.stores.followers import Followers, judged
from mlp_interp.prompts.reading import texts
from mlp_interp.results import variable

__all__ = ["memories"]

_ABOUT = {  # unit and long name of each variable
    "agreement": ("fraction", "triggers whose next token is what the value promotes most"),
    "agreement_chance": ("fraction", "the same of the layer's other values, on average"),
    "agreement_p": ("probability", "values of the layer that agree as much or more"),
    "rank": ("tokens", "median rank of the triggers' next tokens in what the value promotes"),
    "rank_chance": ("tokens", "the same of a value that was drawn from the layer"),
    "lift": ("standard deviations", "raise of the triggers' next tokens, among all tokens"),
    "lift_chance": ("standard deviations", "the same of the layer's other values, on average"),
    "lift_p": ("probability", "values of the layer that raise those tokens as much or more"),
    "promoted": ("token id", "tokens that the neuron promotes where it is most active"),
}


@own_mode()
@torch.no_grad()
def memories(
    model: Model,
    corpus: Any,
    *,
    attention_mask: Any = None,
    layers: int | Sequence[int] | None = None,
    k: int = 10,
    tokens: int = 5,
    before: int = 6,
    controls: int = 1,
    first: int = 1,
    seed: int = 0,
    sweep: SweepOptions = SweepOptions(),
) -> xr.Dataset:
    """Whether neurons are keys for texts and their values guesses of what follows these.

    The *triggers* of a neuron are the places, at most one in a sequence, where its activation is
    largest in size. Its value vector, read through the readout, gives every token a number; where
    the activation is negative (as GELU's or a gated neuron's may be) the neuron promotes what its
    value lowers. Do triggers continue as the neuron then says?

    One pass over the corpus, and one product of the layers' values with the vocabulary. Nothing
    depends on how the weights were processed. A high agreement does not say that the neuron brings
    the prediction about: it is a correlation over a handful of extreme places.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        corpus: As in `activity`.
        attention_mask: As in `activity`.
        layers: Which layers; None for all.
        k: Triggers of each neuron.
        tokens: How many of the tokens that it promotes to name.
        before: How many tokens of text to keep before each trigger.
        controls: How often the values of a layer are exchanged for `rank_chance`; 0 leaves it out.
            The other chances are exact.
        first: Position from which on places count.
        seed: Of those exchanges.
        sweep: How the corpus is run.

    Returns:
        A Dataset over ``layer, neuron`` with

        - ``agreement``: share of the triggers whose next token is the one promoted most. Chance is
          what the other values of the layer get on the same triggers: ``agreement_chance`` is their
          mean, and ``agreement_p`` the share of all values of the layer, its own among them, with
          as high an agreement. Most neurons agree with none, and have p = 1;
        - ``lift``: by how many standard deviations over the vocabulary the value raises the next
          tokens, on average, with ``lift_chance`` and ``lift_p`` alike. Over neurons whose values
          have nothing to do with their triggers, ``lift_p`` is uniform;
        - ``rank``: median over the triggers of their next token's rank in what is promoted (0: most
          of all tokens), and ``rank_chance`` with values exchanged within the layer;
        - ``promoted`` (with ``rank``'s dim ``place``) and ``promoted_text``: at its first trigger;
        - ``activation``, ``sequence``, ``pos`` (with ``example``), ``token`` and ``around`` (with
          ``context``: 0 is the trigger, 1 what follows): the triggers, as `TopExamples` has them.
          ``trigger``, ``trigger_text``: its token. ``next`` and ``next_text``: the token that
          follows. It is -1 at the end of a sequence, and is not counted.

        A neuron without triggers (never active, or in too few sequences), or whose value is zero,
        has NaN, and promotes -1; one whose triggers all end a sequence has NaN.

    Raises:
        ValueError: Layers that the model does not have, counts out of range, a model without
            neurons, weights that are not finite, or as `sweep`.

    References:
        Geva et al., "Transformer Feed-Forward Layers Are Key-Value Memories", 2021.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> model = load_model("nano")
        >>> found = memories(model, load_corpus("nano", model, sequences=32, length=32), k=5)
        >>> mean = found[["agreement", "agreement_chance"]].mean()
        >>> found["agreement"].dims, bool(mean["agreement"] > 3 * mean["agreement_chance"])
        (('layer', 'neuron'), True)
    """
    weights = Weights.of(model)
    weights.check_names(["post"], argument="neurons")
    listed = indices("layers", layers, weights.n_layers)
    checked_count(tokens, weights.d_vocab, "tokens", name="tokens")
    count("controls", controls, least=0)
    generator = torch.Generator().manual_seed(checked_seed(seed))
    check_weights(model)
    unembed = TokenDirections.unembedding(weights)
    reducer = TopExamples(
        k=count("k", k),
        before=count("before", before, least=0),
        after=1,
        by="size",
        site="post",
        layers=listed,
        first=first,
    )
    found = run_sweep(
        model, corpus, {"triggers": reducer}, attention_mask=attention_mask, options=sweep
    )["triggers"]
    rows = []
    for layer in listed:
        orders = [torch.randperm(weights.d_mlp, generator=generator) for _ in range(controls)]
        orders = [order.to(weights.device) for order in orders]
        followers = _followers(weights, found.sel(layer=layer))
        values = Vectors.of(weights, layer).value_folded
        rows.append(judged(unembed, values, followers, tokens, orders))
    return _dataset(model, found, rows, {"controls": controls, "seed": seed, "first": first})


_TRIGGER = {
    "activation": "activation where the neuron is most active",
    "sequence": "sequence of each trigger",
    "pos": "position of each trigger",
    "token": "tokens around each trigger",
    "around": "activations around each trigger",
}


def _followers(weights: Weights, triggers: xr.Dataset) -> Followers:
    """The next token of each trigger of a layer that the model can predict."""
    token = torch.from_numpy(_next(triggers)).to(weights.device)
    activation = torch.from_numpy(triggers["activation"].values).to(weights.device)
    sign = activation.nan_to_num().sign().to(torch.float32)
    known = (token >= 0) & (token < weights.d_vocab) & (sign != 0)
    return Followers(torch.where(known, token, 0), known, sign)


def _next(triggers: xr.Dataset) -> Any:
    return triggers["token"].sel(context=1).values


def _dataset(
    model: Model, triggers: xr.Dataset, rows: list[dict[str, Tensor]], own: dict[str, Any]
) -> xr.Dataset:
    """Triggers and what values say of them, with names, units and where they come from."""
    places = ("layer", "neuron")
    result = triggers.assign_coords(neuron=np.arange(triggers.sizes["neuron"]))
    follows = np.where(triggers["activation"].isnull(), -1, _next(triggers))
    result["next"] = variable(
        (*places, "example"), follows, unit="token id", long_name="token after each trigger"
    )
    for name in (name for name in _ABOUT if name in rows[0]):
        unit, about = _ABOUT[name]
        value = torch.stack([row[name] for row in rows])
        dims = (*places, "place")[: value.ndim]
        result[name] = variable(dims, value, unit=unit, long_name=about)
    here = np.where(triggers["activation"].isnull(), -1, triggers["token"].sel(context=0).values)
    result["trigger"] = variable(
        (*places, "example"), here, unit="token id", long_name="token of each trigger"
    )
    for name in ("trigger", "next", "promoted"):
        text, about = texts(model, result[name].values), result[name].attrs["long_name"]
        result[f"{name}_text"] = (result[name].dims, text, {"unit": "text", "long_name": about})
    for name, about in _TRIGGER.items():
        result[name].attrs["long_name"] = about
    attrs = {k: v for k, v in triggers.attrs.items() if k != "reducer"}
    result.attrs = attrs | {
        "analysis": "memories",
        "long_name": "neurons as memories: triggers, and what values say of what follows",
        "unit": "see each variable",
        **own,
    }
    return result
