"""What dictionaries make of the components they are of: active latents, a bias, and the error."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from jaxtyping import Bool
from torch import Tensor

from mlp_interp.dictionaries import Dictionary, Latents, Reading
from mlp_interp.dictionaries.reading import check_given
from mlp_interp.models import Weights
from mlp_interp.residual.parts import Dense, Part, Scaled
from mlp_interp.residual.stream import Residual
from mlp_interp.sites import Site

__all__ = ["parts_of", "reads_of", "split", "summed"]


def reads_of(weights: Weights, dictionaries: Sequence[Dictionary]) -> list[Site]:
    """What dictionaries read, beside what is at the places that they write.

    Raises:
        ValueError: One is none, or is of another model.
    """
    for n, one in enumerate(dictionaries):
        check_given(weights, one, name=f"dictionaries[{n}]")
    return [Site(*place) for place in sorted(Reading(weights, dictionaries).wanted)]


def split(
    weights: Weights,
    residual: Residual,
    dictionaries: Sequence[Dictionary],
    at: Callable[[Site], Tensor],
) -> Residual:
    """A residual with some components split into what dictionaries make of them.

    Args:
        weights: The model's.
        residual: The stream as a sum of components.
        dictionaries: At most one of a layer, as `reads_of` has checked them.
        at: Gives what was kept at a site, at the positions of the residual.

    Raises:
        ValueError: Two of a layer, or one of no component of the residual.
    """
    if not dictionaries:
        return residual
    parts: dict[Site, Sequence[Part]] = {part.sites[0].whole: [part] for part in residual.parts}
    layers = [one.layer for one in dictionaries]
    for n, one in enumerate(dictionaries):
        if layers.count(one.layer) > 1:
            raise ValueError(
                f"dictionaries has {layers.count(one.layer)} of layer {one.layer}; wanted one, "
                "for latents are named by their layer"
            )
        if one.site not in parts or one.ahead:
            places = ", ".join(site.label for site in one.sites)
            raise ValueError(
                f"dictionaries[{n}] is of {places}; wanted one component of a residual at "
                f"level={residual.level!r}"
            )
    shared = {site for one in dictionaries if one.spans > 1 for site in one.sites}
    across = [one for one in dictionaries if one.site in shared]
    for one in across:
        if one.is_sae:
            raise ValueError(
                f"dictionaries has an SAE of {one.site.label}, to which a cross-layer transcoder "
                "writes; wanted what stands there once"
            )
    for one in dictionaries:
        if one.site not in shared:
            parts[one.site] = parts_of(weights, one, at, residual.real)
    parts |= _parts_across(weights, across, [*parts], at, residual.real)
    return replace(residual, parts=tuple(part for some in parts.values() for part in some))


def _parts_across(
    weights: Weights,
    across: Sequence[Dictionary],
    places: Sequence[Site],
    at: Callable[[Site], Tensor],
    real: Bool[Tensor, "batch pos"] | None,
) -> dict[Site, list[Part]]:
    """What those of a cross-layer transcoder make of the places that they write, by place.

    A latent is one component, with all that it writes to these places; the error of a place is what
    none of those that write there explains.
    """
    left = {site: at(site) for site in places if any(site in one.sites for one in across)}
    found: dict[Site, list[Part]] = {site: [] for site in left}
    for one in across:
        here = [site for site in one.sites if site in left]
        latents = one.encode(_read(weights, one, at))
        for site in here:
            written = one.towards(site.layer or 0).decode(latents)
            left[site] = left[site] - written.to(left[site])
        found[one.site] += _explained(summed(one, here), latents, at(one.site), real)
    for site, error in left.items():
        found[site].append(Dense((Site("error", site.layer),), error[:, :, None]))
    return found


def summed(one: Dictionary, sites: Sequence[Site]) -> Dictionary:
    """The dictionary that writes the sum of what one writes to some of its places."""
    parts = [one.towards(site.layer or 0) for site in sites]
    W_dec, b_dec = (sum(getattr(part, name) for part in parts) for name in ("W_dec", "b_dec"))
    return replace(parts[0], W_dec=W_dec, b_dec=b_dec)


def parts_of(
    weights: Weights,
    one: Dictionary,
    at: Callable[[Site], Tensor],
    real: Bool[Tensor, "batch pos"] | None = None,
) -> list[Dense | Scaled]:
    """What a dictionary makes of what is at its place: active latents, bias, skip, and the error.

    Args:
        weights: The model's.
        one: The dictionary, of one layer.
        at: Gives what was kept at a site.
        real: Where text is, not padding; None for everywhere.
    """
    written = at(one.site)
    rebuilt, latents = one(_read(weights, one, at))
    error = (written - rebuilt.to(written))[:, :, None]
    return [*_explained(one, latents, written, real), Dense((Site("error", one.layer),), error)]


def _read(weights: Weights, one: Dictionary, at: Callable[[Site], Tensor]) -> Tensor:
    reading = Reading(weights, [one])
    for name, place in reading.wanted:
        reading.note(name, place, at(Site(name, place)))
    return reading.read(one, at(one.site))


def _explained(
    one: Dictionary, latents: Latents, like: Tensor, real: Bool[Tensor, "batch pos"] | None
) -> list[Dense | Scaled]:
    """Active latents, the bias, and what passes by them."""
    layer = one.layer
    bias = latents.rescaled(one.b_dec.expand(*latents.values.shape[:-1], -1))
    biases = Dense((Site("b_dec", layer),), bias.to(like)[:, :, None])
    found: list[Dense | Scaled] = [*_active(one, latents, like, real), biases]
    if latents.skipped is not None:
        passing = latents.skipped if latents.scale is None else latents.skipped * latents.scale
        found.append(Dense((Site("skip", layer),), passing.to(like)[:, :, None]))
    return found


def _active(
    one: Dictionary, latents: Latents, like: Tensor, real: Bool[Tensor, "batch pos"] | None
) -> list[Scaled]:
    """The latents that are active at some token that is asked about."""
    values = latents.values
    if real is not None:
        values = values * real[..., None].to(values)
    chosen, places = latents.indices.unique(return_inverse=True)
    empty = values.new_zeros(*values.shape[:-1], len(chosen))
    coefficients = empty.scatter_add(-1, places, values)
    on = (coefficients > 0).flatten(0, 1).any(0)
    if not bool(on.any()):
        return []
    chosen = chosen[on]
    sites = tuple(Site("latents", one.layer, neuron=int(n)) for n in chosen)
    weighted = latents.written(coefficients[..., on])
    return [Scaled(sites, weighted.to(like), one.W_dec[chosen].to(like))]
