"""How results of lenses are labelled."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from mlp_interp.lens.asked import Asked
from mlp_interp.lens.lens import Lens
from mlp_interp.metrics.rows import next_tokens
from mlp_interp.models import Weights, describe
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.reading import texts
from mlp_interp.results import strings
from mlp_interp.sites import Site

__all__ = ["ABOUT", "finished", "layer_coords", "of_lens"]

ABOUT = {
    "kl_output": ("nats", "KL(final prediction‖the layer's)"),
    "kl_input": ("nats", "KL(what the lens reads of the embedding‖the layer's)"),
    "entropy": ("nats", "entropy of the layer's prediction"),
    "agrees": ("fraction", "the likeliest token is the final one"),
    "top_id": ("token", "likeliest tokens"),
    "top_logp": ("nats", "log-probability of the likeliest tokens"),
    "top_text": ("text", "likeliest tokens"),
    "depth": ("layer", "first layer from which on the likeliest token stays the final one"),
    "first": ("layer", "first layer at which the target is the likeliest"),
    "logit_difference": ("logits", "logit(target) - logit(foil), at the layer's own scale"),
    "kl_pairs": ("nats", "KL(layer‖other)"),
    "agreement_pairs": ("fraction", "both have the same likeliest token"),
    "cosine_input": ("cosine", "the stream and the embedding of the token that stands there"),
    "rank_embedding": ("tokens", "how many tokens' embeddings are closer to the stream"),
}
"""Units and what each variable is."""

_TOKENS = {
    "next": "the token that comes next",
    "output": "the final likeliest token",
    "input": "the token that stands there",
    "target": "the target",
    "foil": "the foil",
}
for _name, _what in _TOKENS.items():
    ABOUT[f"logp_{_name}"] = ("nats", f"log-probability of {_what}")
    ABOUT[f"rank_{_name}"] = ("tokens", f"how many tokens are likelier than {_what}")


def layer_coords(layers: Sequence[int]) -> dict[str, Any]:
    """Coordinates of the layers of streams, the number of blocks for the final one."""
    return {"layer": list(layers)}


def token_coords(model: Model, asked: Asked, k: int) -> dict[str, Any]:
    """Coordinates of the positions: what stands there and what comes next, "" for nothing."""
    ids, real = asked.padded.tokens.cpu(), asked.padded.real
    following = next_tokens(ids, real)[:, list(asked.positions)]
    ids = ids if real is None else ids.masked_fill(~real.cpu(), -1)
    dims = ("prompt", "pos")
    return {
        "prompt": np.arange(len(ids)),
        "pos": list(asked.positions),
        "rank": np.arange(k),
        "token": (dims, read_tokens(model, ids[:, list(asked.positions)].numpy())),
        "next_token": (dims, read_tokens(model, following.numpy())),
    }


def read_tokens(model: Model, ids: np.ndarray) -> np.ndarray:
    """How tokens read; "" for those below 0."""
    read = texts(model, np.maximum(ids, 0))
    read[ids < 0] = ""
    return strings(read)


def stream_site(layer: int, n_layers: int) -> Site:
    """Where the stream that enters a layer is; the number of blocks for the final one."""
    return Site("resid_pre", layer) if layer < n_layers else Site("resid_post", n_layers - 1)


def with_sites(found: xr.Dataset, n_layers: int) -> xr.Dataset:
    """The same with the name of each stream."""
    sites = [stream_site(layer, n_layers) for layer in found["layer"].values.tolist()]
    return found.assign_coords(site=("layer", strings([site.label for site in sites])))


def of_lens(lens: Lens) -> dict[str, Any]:
    """What a result says of the lens."""
    names = ("blocks", "part", "context", "ahead")
    return {"lens": lens.kind, **{name: getattr(lens, name) for name in names}}


def finished(
    model: Model,
    results: Mapping[str, xr.Dataset],
    lenses: Mapping[str, Lens],
    attrs: Mapping[str, Any],
    *,
    single: bool,
) -> xr.Dataset:
    """Results of some lenses as one, or that of a single one, with units and provenance."""
    if single:
        (found,) = results.values()
        (lens,) = lenses.values()
        said = of_lens(lens)
    else:
        fill = {
            name: -1 if values.dtype.kind in "iu" else np.nan
            for name, values in next(iter(results.values())).data_vars.items()
        }
        dim = xr.Variable("lens", strings(list(results)))
        found = xr.concat(
            list(results.values()), dim, join="outer", fill_value=fill, combine_attrs="drop"
        )
        said = {"lens": "; ".join(f"{name}: {lens!r}" for name, lens in lenses.items())}
    if "top_id" in found:
        found["top_text"] = (found["top_id"].dims, read_tokens(model, found["top_id"].values))
    for name, values in found.data_vars.items():
        stem = str(name).removesuffix("_se").removesuffix("_quantile")
        unit, long_name = ABOUT[stem.removesuffix("_by_position")]
        values.attrs = {"unit": unit, "long_name": long_name}
    found = with_sites(found, Weights.of(model).n_layers)
    return found.assign_attrs(
        {
            "analysis": "lens",
            "long_name": "what the model would say if it stopped at each layer",
            "unit": "nats",
            "exact": 1,
            "seed": "none",
            **attrs,
            **describe(model),
            **said,
        }
    )
