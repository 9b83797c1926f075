"""What `mlp-interp reach` prints."""

import xarray as xr

from mlp_interp.cli.columns import columns
from mlp_interp.prompts.display import visible
from mlp_interp.views.numbers import percent

__all__ = ["set_lines", "share_lines"]

_SAID = {1: "can be", 0: "cannot be", -1: "are not proven to be, nor not to be,"}


def set_lines(found: xr.Dataset) -> list[str]:
    """One set: whether it can be had, by how much, and what is in its way.

    Args:
        found: What `reach.reachable` gave of one set.
    """
    one = found.isel(set=0)
    words = ", ".join(repr(str(word)) for word in one["token_text"].values)
    order = ", in this order" if found.attrs["ordered"] else ""
    said = f"{words} {_SAID[int(one['reachable'])]} the likeliest tokens of {found.attrs['model']}"
    lines = [f"{said}{order}"]
    if int(one["reachable"]) == 1:
        lines.append(f"they can lead all others by {float(one['lower']):.3g} logits")
    elif int(one["reachable"]) == -1:
        lines.append(f"they lead by no more than {float(one['upper']):.3g} logits")
    rivals = [str(text) for text in one["violator_text"].values if str(text)]
    if rivals:
        lines.append(f"in their way: {', '.join(map(repr, rivals))}")
    return [visible(line) for line in lines]


def share_lines(found: xr.Dataset) -> list[str]:
    """Sizes: the share of random sets with its error, by the law, and the median margin.

    Args:
        found: What `reach.reachable_share` gave.
    """
    rows = [("tokens", "can be had", "undecided", "by the law", "lead", "dimensions")]
    for k in found["k"].values.tolist():
        one = found.sel(k=k)
        lead = float(one["margin_quantile"].sel(quantile=0.5))
        rows.append(
            (
                str(k),
                percent(one["share"], one["share_se"]),
                percent(one["undecided"]),
                percent(one["law"]),
                f"{lead:.2f}",
                f"{float(one['needed']):.0f}",
            )
        )
    attrs = found.attrs
    return [
        visible(f"random sets of tokens of {attrs['model']}, {attrs['n']} of each size"),
        *columns(rows),
        f"lead: median, logits; dimensions: needed by the law, of {attrs['dimension']} that there "
        "are",
    ]
