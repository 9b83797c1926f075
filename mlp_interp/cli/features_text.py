"""What `mlp-interp features` prints."""

import numpy as np
import xarray as xr

from mlp_interp.cli.columns import columns
from mlp_interp.features import about, best
from mlp_interp.prompts.display import visible
from mlp_interp.sites import Site
from mlp_interp.views.numbers import number, percent

__all__ = ["about_lines", "best_lines", "universal_lines"]

_HEAD = ("AUROC", "q", "p of the best")
_EXPLAINED = (
    "AUROC ± standard error over documents, below 0.5: less active; q: false discovery rate;",
    "p of the best: of shuffles in which any neuron is as far from 0.5",
)


def best_lines(found: xr.Dataset, k: int) -> list[str]:
    """Feature by feature, the neurons that tell it best.

    Args:
        found: What `features.index` gave.
        k: How many neurons of each.
    """
    lines = [visible(f"neurons of {found.attrs['model']}, {found.attrs['data']}")]
    for name in map(str, found["feature"].values):
        mine = best(found, name, k=min(k, found["layer"].size * found["neuron"].size))
        one = found[["positives", "largest_null"]].sel(feature=name)
        beyond = float(one["largest_null"].quantile(0.95))
        about_it = f"{int(one['positives'])} documents; by chance the best is 0.5 ± {beyond:.2f}"
        labels = [str(label) for label in mine["component"].values]
        lines += ["", visible(f"{name} ({about_it})"), *_table("neuron", labels, mine)]
    return [*lines, "", *_EXPLAINED]


def about_lines(found: xr.Dataset, neuron: str) -> list[str]:
    """The features that a neuron tells, the best first.

    Args:
        found: What `features.index` gave.
        neuron: Its label.
    """
    mine = about(found, neuron)
    labels = [str(name) for name in mine["feature"].values]
    lines = [visible(f"{neuron} of {found.attrs['model']}, {found.attrs['data']}")]
    return [*lines, *_table("feature", labels, mine), "", *_EXPLAINED]


def universal_lines(found: xr.Dataset, k: int) -> list[str]:
    """Layer by layer how alike neurons are, then those that are most alike.

    Args:
        found: What `features.universal` gave.
        k: How many neurons.
    """
    names = f"{found.attrs['model']} and {found.attrs['other_model']}"
    lines = [visible(f"neurons of {names}, {found.attrs['data']}")]
    rows: list[tuple[str, ...]] = [
        ("layer", "best", "turned", "excess", "above 0.5", "mutual", "same layer")
    ]
    for layer in found["layer"].values.tolist():
        one = found.sel(layer=layer)
        first, alive = one["correlation"][:, 0], one["correlation"][:, 0].notnull()
        same = (one["partner_layer"][:, 0] == layer).where(alive)
        rows.append(
            (
                str(layer),
                *(f"{float(x.median()):.2f}" for x in (first, one["rotated"], one["excess"])),
                percent((one["excess"] > 0.5).where(alive).mean()),
                percent(one["mutual"].where(alive).mean()),
                percent(same.mean()),
            )
        )
    lines += columns(rows)
    lines += ["", "most alike, beyond turned neurons: neuron, partner, correlation, excess"]
    excess = found["excess"].values
    order = np.argsort(-np.nan_to_num(excess, nan=-np.inf), axis=None)[:k]
    for row, column in zip(*np.unravel_index(order, excess.shape), strict=True):
        one = found.isel(layer=row, neuron=column)
        mine, theirs = (
            Site("post", int(layer), neuron=int(unit)).label
            for layer, unit in (
                (one["layer"], one["neuron"]),
                (one["partner_layer"][0], one["partner_neuron"][0]),
            )
        )
        value = f"{float(one['correlation'][0]):.2f}  {float(one['excess']):.2f}"
        lines.append(f"  {mine:<8} {theirs:<8} {value}")
    return [
        *lines,
        "",
        "medians; turned: the highest correlation with a random rotation of the other's neurons;",
        "mutual: best partner of each other; same layer: of the best partner",
    ]


def _table(head: str, labels: list[str], mine: xr.Dataset) -> list[str]:
    rows: list[tuple[str, ...]] = [(head, *_HEAD)]
    for n, label in enumerate(labels):
        q, family = (float(mine[name].values[n]) for name in ("q_value", "p_family"))
        area = number(mine["auroc"].values[n], mine["auroc_se"].values[n])
        rows.append((visible(label), area, f"{q:.2g}", f"{family:.2g}"))
    return columns(rows)
