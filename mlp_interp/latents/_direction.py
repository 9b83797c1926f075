"""`direction`: what a latent writes, to steer with."""

import xarray as xr

from mlp_interp.dictionaries import Dictionary
from mlp_interp.dictionaries.naming import Latent, latent_site
from mlp_interp.latents.spliced import check_one_layer
from mlp_interp.models import Weights
from mlp_interp.models.protocol import Model
from mlp_interp.results import to_numpy
from mlp_interp.steering.directions.result import as_direction

__all__ = ["direction"]


def direction(model: Model, dictionary: Dictionary, latent: Latent) -> xr.DataArray:
    """What a latent writes to the stream, as a direction for `mlp_interp.steering`.

    Coefficient 1 is one unit of activation, on top of what the latent is active anyway; to hold it
    at a value instead, use `mlp_interp.Edit.latents`. That the latent is active on some kind of
    text does not say that writing what it writes makes the model produce such text: compare with
    `mlp_interp.steering.random_direction`.

    Args:
        model: The model.
        dictionary: An SAE or transcoder for it, of one layer. Where it normalises what it reads, a
            unit of activation is one before what it writes is scaled back.
        latent: Its number, or its label as ``"L2F17"``.

    Returns:
        ``[layer, d_model]`` at the place that the dictionary writes to.

    Raises:
        ValueError: No such latent; a dictionary of several layers or of another model.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> from mlp_interp.latents import train
        >>> model = load_model("nano")
        >>> corpus = load_corpus("nano", model, sequences=8, length=64)
        >>> sae = train(model, corpus, "2.mlp", n_latents=64, k=8, steps=3, batch_size=64)
        >>> found = direction(model, sae, "L2F17")
        >>> found.sizes, found.norm.values.round(3).tolist()
        (Frozen({'layer': 1, 'd_model': 192}), [1.0])
    """
    check_one_layer(Weights.of(model), dictionary)
    site = latent_site(dictionary, latent)
    if site.name != "latents":
        raise ValueError(f"latent={latent!r} is another vector at each token; wanted a latent")
    return as_direction(
        model,
        to_numpy(dictionary.W_dec[site.unit].double())[None],
        site=dictionary.writes,
        layers=[dictionary.layer],
        attrs={
            "method": "latent",
            "long_name": f"what {site.label} writes",
            "component": site.label,
            "dictionary": repr(dictionary),
            "data": "weights",
        },
    )
