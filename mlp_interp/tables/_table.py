"""One table for all results: the largest entries, what they are, and how sure they are."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from mlp_interp.models.indices import count
from mlp_interp.prompts.display import visible
from mlp_interp.results import change_over_gap, is_of_gaps, mean_and_error_over
from mlp_interp.tables.quantities import caption_of, quantities
from mlp_interp.tables.ranking import UNITS, averaged, error_of, labels_of, values_of
from mlp_interp.tables.subject import DRAWS, as_entries, beside, chosen
from mlp_interp.tables.texts import flat, texts_of

__all__ = ["Table", "table"]

_TEXTS = ("component", "sender", "receiver", "token", "quantity", "unit", "mode_tokens", "A", "B")
_DIGITS = 4


@dataclass(frozen=True, eq=False, repr=False)
class Table:
    """The largest entries of a result, as text in a terminal and a table in a notebook.

    Attributes:
        frame: A row for each entry, as a pandas DataFrame; errors are in columns ``*_se``.
        caption: What is in it: quantity, unit, how many of how many, mean of what.
    """

    frame: pd.DataFrame
    caption: str

    def __repr__(self) -> str:
        body = self._shown().to_string(index=False) if len(self.frame) else "nothing"
        return f"{self.caption}\n{body}"

    def _repr_html_(self) -> str:
        shown = self._shown()
        head = "".join(_cell(str(name), name, "th") for name in shown.columns)
        rows = "".join(
            "<tr>"
            + "".join(
                _cell(text, name, "td") for text, name in zip(row, shown.columns, strict=True)
            )
            + "</tr>"
            for row in shown.itertuples(index=False)
        )
        return (
            '<table><caption style="text-align:left; white-space:nowrap">'
            f"{escape(self.caption)}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        )

    def _shown(self) -> pd.DataFrame:
        """Texts: each number beside its error."""
        frame = self.frame
        columns: dict[str, list[str]] = {}
        for name in frame.columns:
            if name.endswith("_se") and name.removesuffix("_se") in frame:
                continue
            columns[name] = [_text(value) for value in frame[name]]
            if (error := f"{name}_se") in frame:
                pairs = zip(columns[name], frame[error], strict=True)
                columns[name] = [f"{text} ± {_error_text(se)}" for text, se in pairs]
        return pd.DataFrame(columns)


def table(result: xr.DataArray | xr.Dataset, k: int = 10, *, value: str | None = None) -> Table:
    """The `k` largest entries of a result by absolute value, named, with errors and units.

    Works on what every analysis gives: an entry is a component, a head or a neuron, an edge, a cell
    of a patching grid. Entries are means over prompts, sequences or samples, and over positions
    where the result is one share or effect for each component; their errors are standard errors,
    over prompts where the result has prompts, else its own. ``normalized`` of several prompts is
    their mean change over their mean gap: a mean of ratios follows the prompt of the least gap.

    What a result of one thing holds (a neuron's page, a check of a model) is listed whole, each
    number with its unit.

    Args:
        result: A result.
        k: How many entries.
        value: Which variable of a Dataset is ranked; None for what it is about: ``kl_total``,
            ``normalized``, ``estimate``, the sites of `attribution_patch` together, and their kin,
            else the first that holds measured numbers of several entries.

    Returns:
        A `Table`: prints as text, shows as a table in a notebook, and has a pandas ``frame``.

    Raises:
        ValueError: It is no result, has no such variable or no numbers, or `k` is not positive.

    Example:
        >>> from mlp_interp import load_model, patch, prompts
        >>> model = load_model("nano")
        >>> result = patch(model, prompts.ioi(model, n=4, seed=0), sites="z")
        >>> heads = table(result, 2)
        >>> heads.caption.split(": ")[1]
        'the 2 largest of 24, mean change over mean gap of 4 prompts ± standard error'
        >>> heads.frame.columns.tolist()
        ['component', 'normalized', 'normalized_se', 'raw', 'raw_se']
    """
    k = count("k", k)
    result = as_entries(result)
    sites = _sites(result) if value is None else []
    arrays = [_means(array) for array in sites or [chosen(result, value)]]
    if not {*arrays[0].dims} - {*averaged(arrays[0])}:
        frame = quantities(result, value)
        return Table(frame, caption_of(result, len(frame)))
    main = "estimate" if sites else _name(arrays[0])
    frame = pd.concat(
        [
            _entries(result, array).rename(
                columns={_name(array): main, f"{_name(array)}_se": f"{main}_se"}
            )
            for array in arrays
        ]
    )
    size = np.abs(np.asarray(frame[main], dtype=float))
    known = np.flatnonzero(np.isfinite(size))
    rows = frame.iloc[known[np.argsort(-size[known], kind="stable")][:k]].reset_index(drop=True)
    caption = _caption(result, arrays[0], rows, main, len(known))
    return Table(_without_constant(rows), caption)


def _name(array: xr.DataArray) -> str:
    return str(array.name or "value")


def _sites(result: xr.DataArray | xr.Dataset) -> list[xr.DataArray]:
    """The variables that are named after sites: of estimates by site, which have no other name."""
    if isinstance(result, xr.DataArray) or result.attrs.get("analysis") != "attribution patching":
        return []
    return [held for held in result.values() if "layer" in held.dims]


def _means(array: xr.DataArray) -> xr.DataArray:
    """Without quartiles of a quantity, which are no entries beside its mean."""
    return array.sel(stat="mean") if "stat" in array.dims else array


def _entries(result: xr.DataArray | xr.Dataset, array: xr.DataArray) -> pd.DataFrame:
    """A row for each entry: what it is, what is ranked with its error, and what belongs beside."""
    main = _name(array)
    over = averaged(array)
    cells = {dim: array.sizes[dim] for dim in array.dims if dim not in over}
    columns = _measured(result, main, array, cells)
    for name in beside(result, main):
        held = result[name]
        if held.dtype.kind in "OUS":
            columns |= texts_of(name, held, cells)
        elif {*held.dims} <= {*array.dims}:
            columns |= _measured(result, name, held, cells)
    labels = _labels(array, cells)
    return pd.DataFrame(labels | columns)


def _measured(
    result: xr.DataArray | xr.Dataset, name: str, held: xr.DataArray, cells: Mapping[Hashable, int]
) -> dict[str, np.ndarray]:
    """Mean and error of a variable for each entry, in the order of `cells`."""
    if "prompt" not in cells and is_of_gaps(result, name):
        whole = [dim for dim in held.dims if dim == "pos" and dim not in cells]
        mean, error = change_over_gap(result.assign(raw=result["raw"].mean(whole)))
        return {name: flat(mean, cells), f"{name}_se": flat(error, cells)}
    held = held.mean([dim for dim in held.dims if dim == "pos" and dim not in cells])
    left = [dim for dim in held.dims if dim not in cells]
    draws = sorted(left, key=[*DRAWS, *left].index)
    held = held.mean(draws[1:])  # several samples of a prompt are no further prompts
    if draws:
        mean, error = mean_and_error_over(held, str(draws[0]))
        known = held.sizes[draws[0]] > 1
        return {name: flat(mean, cells)} | ({f"{name}_se": flat(error, cells)} if known else {})
    own = error_of(result, name)
    errors = {} if own is None else {f"{name}_se": flat(own, cells)}
    return {name: flat(held, cells), **errors}


def _labels(array: xr.DataArray, cells: Mapping[Hashable, int]) -> dict[str, np.ndarray]:
    """What each entry is: its component by label, and its place along all other dims."""
    sizes = [*cells.values()]
    places = dict(zip(cells, np.indices(sizes).reshape(len(cells), -1), strict=True))
    values = {dim: values_of(array, dim)[at] for dim, at in places.items()}
    columns: dict[str, np.ndarray] = {}
    named = labels_of(array, values) if "layer" in values else None
    if named is not None:
        columns["component"] = named
        values = {dim: v for dim, v in values.items() if dim not in ("site", "layer", *UNITS)}
    columns |= {str(dim): held for dim, held in values.items()}
    if "pos" in columns and (tokens := _tokens(array)) is not None:
        columns["token"] = np.array([visible(str(t)) for t in tokens[places["pos"]]])
    for name, held in _names(array, cells).items():
        each = held.values[places[held.dims[0]]]
        is_text = held.dtype.kind in "OUS"
        columns[name] = np.array([visible(str(x)) for x in each]) if is_text else each
    return columns


def _names(array: xr.DataArray, cells: Mapping[Hashable, int]) -> dict[str, xr.DataArray]:
    """What entries are called, or where they are, where their dimension itself does not say so."""
    return {
        str(name): held
        for name, held in array.coords.items()
        if len(held.dims) == 1
        and (dim := held.dims[0]) in cells
        and name != dim
        and (dim not in array.coords or str(name).endswith("_text"))
    }


def _tokens(array: xr.DataArray) -> np.ndarray | None:
    """What stands at each position, where it is one text."""
    if "token" in array.coords and array["token"].dims == ("pos",):
        return array["token"].values
    return None


def _without_constant(rows: pd.DataFrame) -> pd.DataFrame:
    """Without places that are the same in every result: a single position, or site."""
    names = [name for name in ("pos", "site") if name in rows and "token" not in rows]
    return rows.drop(columns=[name for name in names if len({*rows[name]}) == 1 < len(rows)])


def _caption(
    result: xr.DataArray | xr.Dataset, array: xr.DataArray, rows: pd.DataFrame, main: str, n: int
) -> str:
    unit = array.attrs.get("unit", result.attrs.get("unit"))
    what = main if unit in (None, "") else f"{main}, {unit}"
    draws = [dim for dim in array.dims if dim in DRAWS]
    over = [f"{array.sizes[dim]} {dim}s" for dim in draws if array.sizes[dim] > 1]
    if over:
        mean = "mean change over mean gap" if is_of_gaps(result, main) else "mean"
        over[0] = f"{mean} of {over[0]} ± standard error"
    elif f"{main}_se" in rows:
        over = ["± standard error"]
    return f"{what}: {', '.join([f'the {len(rows)} largest of {n}', *over])}"


def _text(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.{_DIGITS}g}" if value == value else "–"
    return str(value)


def _error_text(error: float) -> str:
    return f"{error:.3g}" if error == error else "–"


def _cell(text: str, name: Any, tag: str) -> str:
    left = name in _TEXTS or str(name).endswith("text")
    side = "left" if left else "right"
    style = f"text-align:{side}; white-space:pre; padding:2px 8px"
    return f'<{tag} style="{style}">{escape(text)}</{tag}>'
