"""By what runs are asked: hook names, sites, labels, and pairs of a name and a layer."""

from typing import Any

from mlp_interp.edits.selection import axes
from mlp_interp.models import Weights
from mlp_interp.models.indices import is_single
from mlp_interp.sites import Site

__all__ = ["Key", "site_of_key"]

Key = str | Site | tuple[str, int]


def site_of_key(weights: Weights, key: Any) -> Site:
    """The site that a key names, of a model that has it.

    Raises:
        KeyError: It names none, or a layer, head or neuron that the model has not.
    """
    try:
        site = _named(weights, key)
        _check(weights, site, key)
    except ValueError as error:
        raise KeyError(str(error)) from error
    return site


def _check(weights: Weights, site: Site, key: Any) -> None:
    _ = site.hook_name  # refuses parameters, and what edits write
    layers = weights.n_layers
    if site.layer is not None and site.layer >= layers:
        raise ValueError(f"layer={site.layer} in {key!r}; wanted layers 0 to {layers - 1}")
    if site != site.whole:
        units = weights.shape_of(site, 1, 1)[axes(site)["units"]]
        if site.unit >= units:
            what = "neurons" if site.head is None else "heads"
            raise ValueError(f"{site.label!r}; wanted {what} 0 to {units - 1}")


def _named(weights: Weights, key: Any) -> Site:
    match key:
        case Site():
            return key
        case str():
            return Site.of_hook(key) if "hook_" in key else Site.parse(key)
        # The library's own keys may have a third part.
        case (str(name), layer, *_) if is_single(layer):
            below = int(layer) < 0
            if below and int(layer) < -weights.n_layers:
                n = weights.n_layers
                raise ValueError(f"layer={layer} in {key!r}; wanted layers {-n} to {n - 1}")
            return Site(name, int(layer) + weights.n_layers * below)
    raise ValueError(
        f"key={key!r}; wanted a hook name, a label such as '3.mlp' or 'L3H5', a Site, or a pair "
        "such as ('mlp_out', 3)"
    )
