"""The same question asked of several models, checkpoints, seeds or texts."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from mlp_interp.results import mean_and_error_over
from mlp_interp.tables.ranking import DRAWS, averaged, chosen, error_of, named

__all__ = ["compare"]

Result = xr.DataArray | xr.Dataset
_JOINED: Any = {"join": "outer", "coords": "minimal", "compat": "override"}
_SAME = ("variable", "unit", "dimensions", "analysis")


def compare(
    results: Mapping[str, Result] | Sequence[Result], *, value: str | None = None
) -> xr.Dataset:
    """Results of one analysis side by side, and how each differs from the first.

    Entries are matched by their labels; what one result lacks is NaN there. Means are over prompts,
    sequences or samples, as in `table`. Where two results are of the same draws of the same data
    (one prompt, two checkpoints), the error of their difference is that of the paired differences;
    else both errors are taken as independent, which overstates it where texts are the same.

    A difference says that two models differ here, not that one unit does in both the same: heads
    and neurons of separately trained models have no common numbering.

    Args:
        results: Results by name (``{"step 1000": ..., "step 143000": ...}``), or a list of them,
            which are called by their model and revision. The first is what others are compared to.
        value: Which variable is compared; None for what the result is about (as in `table`).

    Returns:
        A Dataset along ``model`` and what has entries: the variable under its own name with its
        standard error (``*_se``), ``difference`` and ``difference_se``. `table` and
        `plots.compare` show it.

    Raises:
        ValueError: Fewer than two results, two of one name, results without the variable, with
            other entries, of other analyses, or in other units.

    Example:
        >>> from mlp_interp import ablate_total, load_model, prompts
        >>> model = load_model("nano")
        >>> texts = {"ioi": prompts.ioi(model, n=4, seed=0), "facts": prompts.facts(model, n=4)}
        >>> found = compare(
        ...     {k: ablate_total(model, x.clean_tokens, ["2.mlp"]) for k, x in texts.items()}
        ... )
        >>> found.kl_mean.dims, found.model.values.tolist()
        (('model', 'component'), ['ioi', 'facts'])
    """
    by_name = _by_name(results)
    held = {name: _Measured.of(result, value) for name, result in by_name.items()}
    first, *others = held
    _check(held)
    main, unit = held[first].name, held[first].unit
    sides = [one.sides for one in held.values()]
    names = xr.Variable("model", np.array([*held]))
    both = xr.concat(sides, names, **_JOINED)
    base = both.isel(model=0, drop=True)
    both["difference"] = both["mean"] - base["mean"]
    error = (both["error"] ** 2 + base["error"] ** 2) ** 0.5
    zero = xr.zeros_like(error.isel(model=0, drop=True))
    columns = [zero, *(_error_of_pairs(held[first], held[name]) for name in others)]
    each = [error.isel(model=n, drop=True) if x is None else x for n, x in enumerate(columns)]
    both["difference_se"] = xr.concat(each, names, **_JOINED)
    both = both.rename(mean=main, error=f"{main}_se")
    for variable in both.values():
        variable.attrs["unit"] = unit
    return both.assign_attrs(_attrs(by_name, main))


@dataclass(frozen=True)
class _Measured:
    """One result: its entries, with the draws that they are means of."""

    draws: xr.DataArray
    over: Hashable | None
    sides: xr.Dataset
    attrs: Mapping[Hashable, Any]

    @classmethod
    def of(cls, result: Result, value: str | None) -> "_Measured":
        array = named(chosen(result, value))
        over = averaged(array)
        kept = next((dim for dim in over if dim in DRAWS), None)
        array = array.mean([d for d in over if d != kept], keep_attrs=True)
        if not {*array.dims} - {kept}:
            raise ValueError(f"value={array.name!r} is one number; wanted one with entries")
        if kept is not None:
            mean, error = mean_and_error_over(array, str(kept))
        else:
            own = error_of(result, str(array.name))
            mean, error = array, xr.full_like(array, np.nan) if own is None else own
        sides = xr.Dataset({"mean": mean.drop_attrs(), "error": error.drop_attrs()})
        return cls(array, kept, sides.drop_attrs(), result.attrs)

    @property
    def name(self) -> str:
        return str(self.draws.name or "value")

    @property
    def unit(self) -> str:
        return str(self.draws.attrs.get("unit", self.attrs.get("unit", "")))


def _error_of_pairs(first: _Measured, other: _Measured) -> xr.DataArray | None:
    """The error of the mean difference, draw by draw; None where draws are not the same."""
    about = [(x.attrs.get("data"), x.attrs.get("seed"), x.over) for x in (first, other)]
    same = about[0] == about[1] and first.over is not None
    if not same or first.draws.sizes[first.over] != other.draws.sizes[other.over]:
        return None
    paired = xr.align(first.draws, other.draws, join="outer")
    return mean_and_error_over(paired[1] - paired[0], str(first.over))[1]


def _by_name(results: Mapping[str, Result] | Sequence[Result]) -> dict[str, Result]:
    if isinstance(results, Mapping):
        found = {str(name): result for name, result in results.items()}
    else:
        names = [_called(result) for result in results]
        twice = [name for name, times in Counter(names).items() if times > 1]
        if twice:
            raise ValueError(
                f"results holds several of {twice[0]!r}; wanted names: {{'seed 1': ..., ...}}"
            )
        found = dict(zip(names, results, strict=True))
    if len(found) < 2:
        raise ValueError(f"results holds {len(found)}; wanted at least two to compare")
    return found


def _called(result: Result) -> str:
    model, revision = (str(result.attrs.get(name, "")) for name in ("model", "revision"))
    return f"{model}@{revision}" if revision not in ("", "main", "unknown") else model


def _check(held: Mapping[str, _Measured]) -> None:
    """Refuse results that do not answer the same question."""
    first, *others = held
    told = {
        name: (x.name, x.unit, {*map(str, x.sides.dims)}, x.attrs.get("analysis"))
        for name, x in held.items()
    }
    for name in others:
        for what, mine, theirs in zip(_SAME, told[first], told[name], strict=True):
            if mine != theirs:
                raise ValueError(
                    f"results[{name!r}] has the {what} {theirs!r} and results[{first!r}] "
                    f"{mine!r}; wanted results of the same analysis"
                )


def _attrs(by_name: Mapping[str, Result], main: str) -> dict[str, Any]:
    every = [result.attrs for result in by_name.values()]
    same = {
        key: value
        for key, value in every[0].items()
        if all(key in x and np.array_equal(x[key], value) for x in every)
    }
    if "model" not in same:
        same.pop("revision", None)  # alone it would name no model
    return {
        **{str(key): value for key, value in same.items()},
        "analysis": "comparison",
        "long_name": f"{main}, and its difference to {next(iter(by_name))}",
        "errors": "of differences: draw by draw where data are the same, else as if independent",
    }
