"""`latent_site`: which latent of a dictionary a number or a label names."""

from collections.abc import Collection

from mlp_interp.dictionaries.dictionary import Dictionary
from mlp_interp.models.indices import index
from mlp_interp.sites import Site, site_of

__all__ = ["Latent", "latent_site"]

Latent = int | str | Site
"""How a latent is named: its number in the dictionary, its label (``"L2F17"``) or a `Site`."""


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
