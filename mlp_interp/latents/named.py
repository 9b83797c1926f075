"""Which dictionaries are asked about, and which of their latents."""

from collections.abc import Collection, Sequence
from typing import Any

from mlp_interp.dictionaries import Dictionary
from mlp_interp.dictionaries.naming import Latent, latent_site
from mlp_interp.dictionaries.reading import one_or_more
from mlp_interp.latents.spliced import check_one_layer
from mlp_interp.models import Weights
from mlp_interp.models.indices import distinct, is_single
from mlp_interp.sites import Site, site_of

__all__ = ["in_order", "named", "of_layers"]

_ORDER = ("latents", "b_dec", "skip", "error")


def of_layers(weights: Weights, given: Dictionary | Sequence[Dictionary]) -> list[Dictionary]:
    """One dictionary or several, of one layer each, as a list.

    Raises:
        ValueError: There are none, two are of a layer, or one is of several or of another model.
    """
    dictionaries = one_or_more(given)
    for n, one in enumerate(dictionaries):
        check_one_layer(weights, one, name=f"dictionaries[{n}]")
    layers = [one.layer for one in dictionaries]
    for layer in layers:
        if layers.count(layer) > 1:
            raise ValueError(
                f"dictionaries has {layers.count(layer)} of layer {layer}; wanted one, for latents "
                "are named by their layer"
            )
    return dictionaries


def named(
    dictionaries: Sequence[Dictionary],
    latents: Latent | Sequence[Latent],
    *,
    others: Collection[str] = ("error",),
) -> list[Site]:
    """The components that labels name; of one dictionary, numbers name its latents.

    Args:
        dictionaries: At most one of a layer.
        latents: Labels, sites or numbers, one or several.
        others: What else than latents may be named.

    Raises:
        ValueError: None, an unknown one, or one twice.
    """
    one_alone = isinstance(latents, str | Site) or is_single(latents)
    listed: Any = [latents] if one_alone else latents
    if not len(listed):
        raise ValueError(f"latents={listed!r}; wanted at least one")
    by_layer = {one.layer: one for one in dictionaries}
    found = []
    for latent in listed:
        one = dictionaries[0]
        if len(dictionaries) > 1:
            if not isinstance(latent, str | Site):
                raise ValueError(
                    f"latents={latent!r} of {len(dictionaries)} dictionaries; wanted labels, "
                    f"'L{one.layer}F0', say"
                )
            one = by_layer.get(site_of(latent, argument="latents").layer or 0, one)
        found.append(latent_site(one, latent, argument="latents", others=others))
    distinct("latents", [site.label for site in found])
    return found


def in_order(sites: Collection[Site]) -> list[Site]:
    """Layer by layer, latents first and the error last."""
    return sorted(sites, key=lambda s: (s.layer or 0, _ORDER.index(s.name), s.neuron or 0))
