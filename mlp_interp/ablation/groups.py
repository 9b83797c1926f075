"""Which components are taken away together."""

from collections.abc import Mapping, Sequence

from mlp_interp.models import Weights
from mlp_interp.residual import LEVELS, check_site
from mlp_interp.sites import Site, site_of

__all__ = ["Groups", "resolve", "single_neurons"]

Members = str | Site | Sequence[str | Site]
Groups = Members | Mapping[str, Members]
"""A level (``"component"``: every attention and MLP output; ``"head"``: every head; ``"neuron"``:
every neuron), a component or a list of them each ablated alone, or named sets of components."""

# Ablating the whole and a part of it would take the part away twice.
_WHOLE_OF = {"z": "attn_out", "b_O": "attn_out", "post": "mlp_out", "b_out": "mlp_out"}


def resolve(weights: Weights, groups: Groups) -> dict[str, tuple[Site, ...]]:
    """Named groups of checked, non-overlapping sites.

    Raises:
        ValueError: An unknown level or component, an empty or doubled group, or a group that holds
            both a whole output and a part of it.
    """
    if isinstance(groups, str) and groups in LEVELS:  # nothing to check, and maybe very many
        return {site.label: (site,) for site in _level(weights, groups)}
    if isinstance(groups, Mapping):
        named = {str(name): tuple(_parsed(members)) for name, members in groups.items()}
    else:
        sites = _parsed(groups)
        named = {site.label: (site,) for site in sites}
        if len(named) != len(sites):
            raise ValueError(f"groups={[s.label for s in sites]} names a component twice")
    if not named:
        raise ValueError("groups is empty; wanted at least one component")
    for name, sites in named.items():
        _check(weights, name, sites)
    return named


def single_neurons(groups: Mapping[str, Sequence[Site]]) -> bool:
    """Whether each group is one neuron."""
    return all(len(sites) == 1 and sites[0].kind == "neuron" for sites in groups.values())


def _parsed(members: Members) -> list[Site]:
    listed = [members] if isinstance(members, str | Site | int) else members
    return [site_of(member, argument="groups", words=LEVELS) for member in listed]


def _level(weights: Weights, level: str) -> list[Site]:
    layers = range(weights.n_layers)
    if level == "component":
        return [Site(name, layer) for layer in layers for name in weights.outputs]
    if level == "head":
        return weights.heads
    weights.check_names(["post"])
    return [Site("post", layer, neuron=n) for layer in layers for n in range(weights.d_mlp)]


def _check(weights: Weights, name: str, sites: tuple[Site, ...]) -> None:
    if not sites:
        raise ValueError(f"group {name!r} is empty; wanted at least one component")
    members = set(sites)
    if len(members) != len(sites):
        raise ValueError(f"group {name!r} names a component twice: {[s.label for s in sites]}")
    for site in sites:
        check_site(weights, site)
        whole = _WHOLE_OF.get(site.name) if len(sites) > 1 else None
        if whole and Site(whole, site.layer) in members:
            raise ValueError(
                f"group {name!r} holds {site.label!r} and the whole "
                f"{Site(whole, site.layer).label!r} that contains it; wanted one of them"
            )
