"""What `mlp-interp probe` prints."""

import xarray as xr

from mlp_interp.cli.columns import columns
from mlp_interp.prompts.display import visible
from mlp_interp.results import mean_and_error_over
from mlp_interp.views.numbers import number

__all__ = ["lines_of", "sparse_lines"]


def lines_of(found: xr.Dataset) -> list[str]:
    """A line a layer: the score, its controls and what is left of it above them.

    Args:
        found: What `probes.probe` gave.
    """
    unit = found["mean"].attrs["unit"]
    rows = [("layer", f"held out [{unit}]", "labels exchanged", "less those")]
    control, _ = mean_and_error_over(found["control"], "draw")
    for layer in found["layer"].values.tolist():
        one = found.sel(layer=layer)
        rows.append(
            (
                "embed" if layer < 0 else str(layer),
                number(one["mean"], one["score_se"]),
                number(control.sel(layer=layer)),
                number(one["selectivity"], one["selectivity_se"]),
            )
        )
    token = float(found["baseline"].mean())
    alone = [] if token != token else [f"the token alone: {number(token)}"]
    return [_about(found), *map(visible, columns(rows)), *alone, "± standard error over folds"]


def sparse_lines(found: xr.Dataset) -> list[str]:
    """A line for each layer and number of units: how well they tell, and as many random ones.

    Args:
        found: What `probes.sparse_probe` gave.
    """
    rows = [("layer", "k", "held-out AUROC", "random", "best units")]
    for layer in found["layer"].values.tolist():
        for k in found["k"].values.tolist():
            one = found.sel(layer=layer, k=k)
            units = [str(unit) for unit in one["unit"].values[: min(k, 6)]]
            rows.append(
                (
                    str(layer),
                    str(k),
                    number(one["mean"], one["auroc_se"]),
                    number(one["control"].mean()) if one.sizes["draw"] else number(float("nan")),
                    ", ".join(units) + (", …" if k > len(units) else ""),
                )
            )
    random = "random: as many random directions, searched alike; ± standard error over folds"
    return [_about(found), *map(visible, columns(rows)), random]


def _about(found: xr.Dataset) -> str:
    attrs = found.attrs
    kind = attrs.get("kind", "sparse probe")
    return visible(
        f"{kind} at {attrs['site']} of {attrs['model']}: {attrs['data']}, split by {attrs['split']}"
    )
