"""What heads do, as lines of text."""

import xarray as xr

from mlp_interp.heads import compose, detect
from mlp_interp.models import Weights
from mlp_interp.models.protocol import Model
from mlp_interp.sites import Site

__all__ = ["circuit_lines", "one_head", "role_lines"]

_ROLES = ("previous", "self", "copying", "copying_z", "duplicate", "rank_ov", "rank_qk")
_CIRCUITS = ("previous", "compose_z", "match", "copying", "score", "expected", "score_share")


def role_lines(found: xr.Dataset) -> list[str]:
    """One line a head."""
    lines = [_row("head", _ROLES)]
    for layer in found["layer"].values:
        for head in found["head"].values:
            one = found.sel(layer=layer, head=head)
            lines.append(_numbers(str(one["component"].values), one, _ROLES))
    return [*lines, "", *_about(found)]


def one_head(model: Model, found: xr.Dataset, site: Site, top: int) -> list[str]:
    """What is known of one head."""
    one = found.sel(layer=site.layer, head=site.unit)
    lines = [_row("head", _ROLES), _numbers(site.label, one, _ROLES), ""]
    readers = [f"{site.label}.{kind}" for kind in "qkv"]
    end = Weights.of(model).n_layers - 1
    for title, writers, listed, at_end in (
        ("reads, beyond chance (sd):", None, readers, 0),
        ("is read by, beyond chance (sd):", site.label, None, end),
    ):
        if site.layer == at_end:
            lines.append(f"{title} nothing")
            continue
        pairs = (
            compose(model, writers=writers, readers=listed)
            .z.stack(pair=("writer", "reader"))
            .dropna("pair")
        )
        pairs = pairs.sortby(-pairs).isel(pair=slice(top))
        lines.append(title)
        for (writer, reader), value in zip(pairs["pair"].values, pairs.values, strict=True):
            lines.append(f"  {writer} → {reader}  {value:.1f}")
    data = detect(model).sel(layer=site.layer, head=site.unit)
    lines += ["", f"attention on {data.attrs['data']}, and without a preference:"]
    for kind in data["kind"].values:
        at = data.sel(kind=kind)
        lines.append(f"  {kind:10} {float(at.score):.3f}  {float(at.expected):.3f}")
    return [*lines, "", *_about(found)]


def circuit_lines(found: xr.Dataset) -> list[str]:
    """One line a circuit."""
    if not found.sizes["circuit"]:
        return ["No induction circuits: no pair of heads has all that weights say of one."]
    lines = [_row("circuit", (*_CIRCUITS, "strength"), first=14)]
    for label in found["circuit"].values:
        one = found.sel(circuit=label)
        numbers = _numbers(str(label), one, _CIRCUITS, first=14)
        lines.append(f"{numbers}  {one.strength.values!s:>11}")
    return [*lines, "", *_about(found)]


def _row(first_word: str, words: tuple[str, ...], *, first: int = 7) -> str:
    return f"{first_word:{first}}" + "".join(f"  {word:>11}" for word in words)


def _numbers(label: str, one: xr.Dataset, names: tuple[str, ...], *, first: int = 7) -> str:
    values = (float(one[name]) for name in names)
    return f"{label:{first}}" + "".join(f"  {value:11.2f}" for value in values)


def _about(found: xr.Dataset) -> list[str]:
    about = [f"model {found.attrs['model']}, {found.attrs['processing']}; {found.attrs['data']}"]
    if "approximation" in found.attrs:
        about.append(f"not exact: {found.attrs['approximation']}")
    return about
