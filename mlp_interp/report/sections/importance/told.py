"""The importance of sub-updates as rows of a table and as sentences."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from mlp_interp.report.format import number, with_error


@dataclass(frozen=True)
class Row:
    """One sub-update in the table; effects are KL in nats with standard errors."""

    label: str
    direct: float
    direct_se: float
    total: float
    total_se: float
    later: float
    later_se: float
    loss: float


def rows(importance: xr.Dataset) -> list[Row]:
    """One for each attention and MLP output, those with the largest total effect first."""
    subs = importance.isel(component=np.isin(importance["kind"].values, ("attn", "mlp")))
    names = (
        *("kl_direct", "kl_direct_se", "kl_total", "kl_total_se", "kl_later", "kl_later_se"),
        "delta_loss_total",
    )
    columns = [subs[name].values.astype(float).tolist() for name in names]
    labels = [str(label) for label in subs["component"].values]
    found = [Row(*values) for values in zip(labels, *columns, strict=True)]
    # After the last layer nothing is left to react: there total - direct is rounding alone.
    found = [
        replace(row, later=0.0, later_se=0.0) if abs(row.later) < 1e-5 * row.total else row
        for row in found
    ]
    return sorted(found, key=lambda row: -row.total)


def sentences(importance: xr.Dataset) -> list[str]:
    """The answer: the most important in total, directly, and what later layers do.

    Three, and a fourth where later layers make up for a removal.
    """
    found, model = rows(importance), importance.attrs["model"]
    best, direct = found[0], max(found, key=lambda row: row.direct)
    ratio = float(importance["perplexity_ratio_total"].sel(component=best.label))
    layers = len(set(importance["layer"].values.tolist()))
    return [
        f"Of the {len(found)} sub-updates of {model} (attention and MLP of {layers} layers), the "
        f"most important in total is {best.label}: removing it changes the prediction by "
        f"{_nats(best.total, best.total_se)} per token"
        + (f" and multiplies perplexity by {number(ratio)}." if np.isfinite(ratio) else "."),
        "Directly, through the readout alone, "
        + (
            f"it is also the largest, with {_nats(direct.direct, direct.direct_se)}."
            if direct.label == best.label
            else f"it is {direct.label} with {_nats(direct.direct, direct.direct_se)}."
        ),
        _through_later_layers(found),
        *_compensated(found),
    ]


def numbers(importance: xr.Dataset) -> dict[str, Any]:
    """The same as plain numbers."""
    found = rows(importance)
    return {
        "sub_updates": {row.label: asdict(row) for row in found},
        "most_important_total": found[0].label,
        "most_important_direct": max(found, key=lambda row: row.direct).label,
        "share_through_later_layers": _later_share(found),
    }


def _later_share(found: list[Row]) -> float:
    total = sum(row.total for row in found)
    return sum(row.later for row in found) / total if total > 0 else float("nan")


def _through_later_layers(found: list[Row]) -> str:
    share = _later_share(found)
    if not np.isfinite(share):
        return "Removing sub-updates has no measurable effect."
    if share <= 0:
        return (
            f"Later layers make up for what is removed: summed over sub-updates, the total effect "
            f"is {-share:.0%} of itself smaller than the direct one."
        )
    most = max(found, key=lambda row: row.later)
    whole = sum(row.later for row in found)
    part = "most of it" if most.later > whole / 2 else "the largest part"
    return (
        f"{share:.0%} of the total effect, summed over sub-updates, goes through later layers; "
        f"{part} from {most.label} ({with_error(most.later, most.later_se)} of its "
        f"{number(most.total)} nats)."
    )


def _compensated(found: list[Row]) -> list[str]:
    """The sub-update whose removal later layers make up for most, where that is beyond doubt.

    Beyond twice the standard error of the difference itself: it is taken within each sequence, so
    the errors of direct and total, which rise and fall together, do not tell. A single sequence has
    no error, and nothing is beyond doubt.
    """
    least = min(found, key=lambda row: row.later)
    if not least.later < -max(2 * least.later_se, 1e-6):
        return []
    return [
        f"Later layers make up most for the removal of {least.label}: the prediction changes by "
        f"{number(least.direct)} nats (KL) directly and by {number(least.total)} in total, "
        f"{with_error(-least.later, least.later_se)} less."
    ]


def _nats(value: float, error: float) -> str:
    return f"{with_error(value, error)} nats"
