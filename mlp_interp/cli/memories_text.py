"""What `mlp-interp memories` prints."""

import xarray as xr

from mlp_interp.cli.columns import columns
from mlp_interp.models.protocol import Model
from mlp_interp.neurons.stores.best import best
from mlp_interp.prompts.display import visible
from mlp_interp.prompts.reading import texts
from mlp_interp.results import mean_and_error_over
from mlp_interp.views.numbers import percent

__all__ = ["best_lines", "layer_lines"]

_HEAD = ("layer", "right", "by chance", "rank", "by chance", "changes", "by promotion")


def layer_lines(memories: xr.Dataset, events: xr.Dataset) -> list[str]:
    """Layer by layer: agreement, ranks, and changes of the prediction.

    Args:
        memories: What `neurons.memories` gave.
        events: What `neurons.update_events` gave.
    """
    changed = events.sel(event="changed")
    mean, error = mean_and_error_over(memories["agreement"], "neuron")
    chance = memories["agreement_chance"].mean("neuron")
    ranks = memories[["rank", "rank_chance"]].median("neuron")
    rows: list[tuple[str, ...]] = [_HEAD]
    for i, layer in enumerate(memories["layer"].values.tolist()):
        rank, by_chance = (int(ranks[name][i]) for name in ("rank", "rank_chance"))
        share, decided = (
            percent(changed[name][i], changed[f"{name}_se"][i]) for name in ("share", "promotion")
        )
        right = percent(mean[i], error[i])
        rows.append(
            (str(layer), right, percent(chance[i]), str(rank), str(by_chance), share, decided)
        )
    attrs = memories.attrs
    return [
        visible(f"neurons of {attrs['model']} as memories, {attrs['data']}"),
        *columns(rows),
        "right: triggers whose next token the neuron promotes most; rank: of the next token among",
        "promoted ones; changes: tokens at which the MLP changes the prediction (± standard error)",
    ]


def best_lines(model: Model, memories: xr.Dataset, k: int) -> list[str]:
    """The neurons that are right most often, and of these the ones that raise the token most."""
    found = best(memories, k)
    lines = ["neurons that are right most often; a trigger in [brackets], and what follows"]
    for row in range(found.sizes["component"]):
        one = found.isel(component=row)
        label = str(one["component"].item())
        right = f"{percent(one['agreement'])} right (chance {percent(one['agreement_chance'])})"
        said = repr(str(one["promoted_text"].values[0]))
        lines.append(visible(f"{label:<8} {right}  {said}  {_trigger(model, one)}"))
    return lines


def _trigger(model: Model, one: xr.Dataset) -> str:
    """The first place of a neuron, as text."""
    words = texts(model, one["token"].isel(example=0).values)
    marked = [
        f"[{word}]" if offset == 0 else str(word)
        for word, offset in zip(words, one["context"].values, strict=True)
    ]
    return "".join(marked)
