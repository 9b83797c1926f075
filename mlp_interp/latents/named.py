"""Which dictionaries are asked about, and which of their latents."""

from collections.abc import Collection, Sequence
from typing import Any

from mlp_interp.dictionaries import Dictionary
from mlp_interp.latents.spliced import check_one_layer
from mlp_interp.models import Weights
from mlp_interp.models.indices import distinct, index, is_single
from mlp_interp.sites import Site, site_of

__all__ = ["Latent", "check_layers", "check_list", "in_order", "latent_site", "named"]

Latent = int | str | Site
"""How a latent is named: its number in the dictionary, its label (``"L2F17"``) or a `Site`."""

_ORDER = ("latents", "b_dec", "skip", "error")


def check_list(weights: Weights, dictionaries: Sequence[Dictionary]) -> None:
    """Refuse what is no list of dictionaries of one layer each, of a model.

    Raises:
        ValueError: It is none.
    """
    if isinstance(dictionaries, Dictionary) or not len(dictionaries):
        raise ValueError(f"dictionaries={dictionaries!r}; wanted a list of one or more")
    for n, one in enumerate(dictionaries):
        check_one_layer(weights, one, name=f"dictionaries[{n}]")


def check_layers(weights: Weights, dictionaries: Sequence[Dictionary]) -> None:
    """Refuse what is no list of dictionaries of one layer each, at most one of a layer.

    Raises:
        ValueError: It is one of these, or one is of another model.
    """
    check_list(weights, dictionaries)
    layers = [one.layer for one in dictionaries]
    for layer in layers:
        if layers.count(layer) > 1:
            raise ValueError(
                f"dictionaries has {layers.count(layer)} of layer {layer}; wanted one, for latents "
                "are named by their layer"
            )


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


def latent_site(
    dictionary: Dictionary,
    latent: Latent,
    *,
    argument: str = "latent",
    others: Collection[str] = ("error",),
) -> Site:
    """The latent of a dictionary that a number or label names, or its error.

    Args:
        dictionary: The dictionary.
        latent: The number, label or site.
        argument: What the caller calls it.
        others: What else than latents may be named; a skip only where there is one.

    Raises:
        ValueError: It has no such latent, or no skip.
    """
    layer = dictionary.layer
    if isinstance(latent, str | Site):
        site = site_of(latent, argument=argument)
        nameless = site.name == "latents" and site.neuron is None
        if nameless or site.layer != layer or site.name not in ("latents", *others):
            raise ValueError(
                f"{argument}={site.label!r} of {dictionary!r}; wanted 'L{layer}F0', say, or "
                f"'{layer}.error'"
            )
        if site.name == "skip" and dictionary.W_skip is None:
            raise ValueError(f"{argument}={site.label!r} of {dictionary!r}, which has no W_skip")
        if site.name != "latents":
            return site
        latent = site.unit
    return Site("latents", layer, neuron=index(argument, latent, dictionary.n_latents))
