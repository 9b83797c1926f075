"""The answer at a glance: a few computed sentences, a small table, and the numbers behind them."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from mlp_interp.report import neurons
from mlp_interp.report.content import Content
from mlp_interp.report.examples import ShownExample
from mlp_interp.report.format import number, with_error
from mlp_interp.tables import top

ROWS = 8


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


@dataclass(frozen=True)
class Summary:
    """The answer at a glance.

    Attributes:
        sentences: What to know first, in order; plain text.
        rows: The sub-updates with the largest total effect.
        left_out: How many sub-updates the table leaves out.
        numbers: Everything above as plain numbers, for the JSON file.
    """

    sentences: list[str]
    rows: list[Row]
    left_out: int
    numbers: dict[str, Any]


def summarise(content: Content) -> Summary:
    """Put the results of a report into a few sentences and one small table."""
    everything = content.importance
    chosen = np.isin(everything["kind"].values, ("attn", "mlp"))
    subs = everything.isel(component=chosen)
    rows = _rows(subs)
    model, layers = content.check.attrs["model"], int(content.check.attrs["n_layers"])
    best, direct = rows[0], max(rows, key=lambda row: row.direct)
    ratio = _value(subs, "perplexity_ratio_total", best.label)
    sentences = [
        f"Of the {len(rows)} sub-updates of {model} (attention and MLP of {layers} layers), the "
        f"most important in total is {best.label}: removing it changes the prediction by "
        f"{_nats(best.total, best.total_se)} per token"
        + (f" and multiplies perplexity by {number(ratio)}." if np.isfinite(ratio) else "."),
        "Directly, through the readout alone, "
        + (
            f"it is also the largest, with {_nats(direct.direct, direct.direct_se)}."
            if direct.label == best.label
            else f"it is {direct.label} with {_nats(direct.direct, direct.direct_se)}."
        ),
    ]
    share = _later_share(rows)
    sentences.append(_through_later_layers(rows, share))
    sentences += _compensated(rows)
    sentences += _without_all(content.ranges)
    sentences += neurons.sentences(content.neurons)
    sentences += [_example(example) for example in content.examples]
    numbers = {
        "sub_updates": {row.label: asdict(row) for row in rows},
        "most_important_total": best.label,
        "most_important_direct": direct.label,
        "share_through_later_layers": share,
        "removing_all_layers": {
            kind: {"perplexity": _corner(r), "clean_perplexity": r.attrs.get("clean_perplexity")}
            for kind, r in content.ranges.items()
        },
        "examples": {example.name: _strongest(example) for example in content.examples},
        "neurons": neurons.numbers(content.neurons),
    }
    return Summary(sentences, rows[:ROWS], max(0, len(rows) - ROWS), numbers)


def _rows(subs: xr.Dataset) -> list[Row]:
    names = (
        *("kl_direct", "kl_direct_se", "kl_total", "kl_total_se", "kl_later", "kl_later_se"),
        "delta_loss_total",
    )
    columns = [subs[name].values.astype(float).tolist() for name in names]
    labels = [str(label) for label in subs["component"].values]
    rows = [Row(*values) for values in zip(labels, *columns, strict=True)]
    # After the last layer nothing is left to react: there total - direct is rounding alone.
    rows = [
        replace(row, later=0.0, later_se=0.0) if abs(row.later) < 1e-5 * row.total else row
        for row in rows
    ]
    return sorted(rows, key=lambda row: -row.total)


def _later_share(rows: list[Row]) -> float:
    total = sum(row.total for row in rows)
    return sum(row.later for row in rows) / total if total > 0 else float("nan")


def _through_later_layers(rows: list[Row], share: float) -> str:
    if not np.isfinite(share):
        return "Removing sub-updates has no measurable effect."
    if share <= 0:
        return (
            f"Later layers make up for what is removed: summed over sub-updates, the total effect "
            f"is {-share:.0%} of itself smaller than the direct one."
        )
    most = max(rows, key=lambda row: row.later)
    whole = sum(row.later for row in rows)
    part = "most of it" if most.later > whole / 2 else "the largest part"
    return (
        f"{share:.0%} of the total effect, summed over sub-updates, goes through later layers; "
        f"{part} from {most.label} ({with_error(most.later, most.later_se)} of its "
        f"{number(most.total)} nats)."
    )


def _compensated(rows: list[Row]) -> list[str]:
    """The sub-update whose removal later layers make up for most, where that is beyond doubt.

    Beyond twice the standard error of the difference itself: it is taken within each sequence, so
    the errors of direct and total, which rise and fall together, do not tell. A single sequence has
    no error, and nothing is beyond doubt.
    """
    least = min(rows, key=lambda row: row.later)
    if not least.later < -max(2 * least.later_se, 1e-6):
        return []
    return [
        f"Later layers make up most for the removal of {least.label}: the prediction changes by "
        f"{number(least.direct)} nats (KL) directly and by {number(least.total)} in total, "
        f"{with_error(-least.later, least.later_se)} less."
    ]


def _without_all(ranges: dict[str, xr.Dataset]) -> list[str]:
    if not {"mlp", "attn"} <= set(ranges):
        return []
    clean = float(ranges["mlp"].attrs.get("clean_perplexity", float("nan")))
    return [
        f"Without any MLP, perplexity goes from {number(clean)} to "
        f"{number(_corner(ranges['mlp']))}; without any attention, to "
        f"{number(_corner(ranges['attn']))}."
    ]


def _corner(result: xr.Dataset) -> float:
    """Perplexity with every layer removed."""
    return float(result["perplexity"].isel(start=0, end=-1))


def _example(example: ShownExample) -> str:
    found = _strongest(example)
    what = "logit(answer) - logit(foil)" if example.foil else "logit(answer)"
    (component, c), (head, h), (neuron, n) = (found[level] for level in example.shares)
    return (
        f"On {found['prompts']} prompts of “{example.name}”, {what} is {found['logits']:+.2f} on "
        f"average; the largest direct shares are those of {component} ({c:+.2f}), head {head} "
        f"({h:+.2f}) and neuron {neuron} ({n:+.2f})."
    )


def _strongest(example: ShownExample) -> dict[str, Any]:
    """The logit attributed, and the strongest component, head and neuron of an example."""
    found: dict[str, Any] = {
        "prompts": int(example.shares["component"].sizes["prompt"]),
        "logits": float(example.shares["component"].sum("component").mean()),
    }
    for level, shares in example.shares.items():
        kinds = ("attn", "mlp") if level == "component" else (level,)
        first = top(shares.isel(component=np.isin(shares["kind"].values, kinds)), 1)
        found[level] = (str(first["component"].values[0]), float(first.values[0]))
    return found


def _value(subs: xr.Dataset, name: str, label: str) -> float:
    return float(subs[name].sel(component=label)) if name in subs else float("nan")


def _nats(value: float, error: float) -> str:
    return f"{with_error(value, error)} nats"
