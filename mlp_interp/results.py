"""Results: labelled arrays that carry their units, and the few things done to all of them."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar, cast

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.checkpoint import Format, whole_file

__all__ = [
    "DATASETS",
    "Result",
    "change_over_gap",
    "check_result",
    "described",
    "is_of_gaps",
    "is_store",
    "load",
    "mean_and_error",
    "mean_and_error_over",
    "ratio_of_means",
    "save",
    "save_groups",
    "single",
    "strings",
    "to_numpy",
    "tokens_of",
    "variable",
]

Result = TypeVar("Result", xr.DataArray, xr.Dataset)

# Marks a file that holds one DataArray, so that `load` gives back the type that was saved.
_DATAARRAY = "mlp_interp_dataarray"
_UNNAMED = "result"


def single(x: Tensor) -> Tensor:
    """Half precisions as float32, in which sums, norms and cosines of them are exact enough."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A detached numpy copy on the CPU; half precisions become float32, which numpy can hold."""
    return single(tensor.detach().cpu()).numpy().copy()


def tokens_of(source: Any) -> tuple[Tensor, dict[str, Any]]:
    """Tokens and provenance of a corpus or of plain tokens ``[batch, pos]``.

    Args:
        source: Anything with ``.tokens`` and ``.attrs`` (a `Corpus`), or integers ``[batch, pos]``
            or ``[pos]``, of torch or numpy.

    Raises:
        ValueError: It is neither, or it holds no tokens.
    """
    tokens: Any = getattr(source, "tokens", source)
    attrs = dict(getattr(source, "attrs", {}))
    if isinstance(tokens, np.ndarray) and tokens.dtype.kind in "iu":
        tokens = torch.from_numpy(tokens.astype(np.int64))
    integers = isinstance(tokens, Tensor) and not (
        tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool
    )
    if not integers or tokens.ndim not in (1, 2):
        shape = tuple(tokens.shape) if hasattr(tokens, "shape") else type(tokens).__name__
        raise ValueError(
            f"tokens={shape}; wanted a Corpus, texts, or an integer tensor [batch, pos]"
        )
    tokens = torch.atleast_2d(tokens)
    if tokens.numel() == 0:
        raise ValueError(f"tokens={tuple(tokens.shape)} is empty; wanted at least one token")
    attrs.setdefault("data", f"{tokens.shape[0]} x {tokens.shape[1]} tokens")
    return tokens, attrs


def mean_and_error(
    values: Float[Tensor, "*rest sequence"],
) -> tuple[Float[Tensor, "*rest"], Float[Tensor, "*rest"]]:
    """Mean over the last axis and its standard error, ``std / sqrt(n)`` with n - 1 in the std.

    Sequences, not tokens, are the independent draws: average within each sequence first. The error
    of a single sequence is NaN, because one draw says nothing about its own spread. NaN entries
    (nothing measured) are left out.
    """
    count = (~values.isnan()).sum(-1)
    mean = values.nanmean(-1)
    squares = (values - mean.unsqueeze(-1)).square().nansum(-1)
    return mean, (squares / (count - 1) / count).sqrt()  # of a single one: 0 / 0


def mean_and_error_over(values: xr.DataArray, dim: str) -> tuple[xr.DataArray, xr.DataArray]:
    """As `mean_and_error`, over a named dimension.

    Example:
        >>> values = xr.DataArray([1.0, 3.0, np.nan], dims="prompt")
        >>> mean, error = mean_and_error_over(values, "prompt")
        >>> float(mean), float(error)
        (2.0, 1.0)
    """
    count = values.notnull().sum(dim)
    mean = values.mean(dim)
    squares = ((values - mean) ** 2).sum(dim)
    return mean, (squares / (count - 1) / count) ** 0.5


def ratio_of_means(
    top: xr.DataArray, bottom: xr.DataArray, dim: str
) -> tuple[xr.DataArray, xr.DataArray]:
    """Mean of one quantity over mean of another along a dimension, and its standard error.

    A mean of ratios follows whichever bottom is nearest to zero; this does not. Where `top` is NaN,
    `bottom` does not count. The error is to first order, NaN with a single draw.

    Example:
        >>> top = xr.DataArray([1.0, 2.0, 0.3], dims="prompt")
        >>> bottom = xr.DataArray([2.0, 4.0, 0.001], dims="prompt")
        >>> round(float(ratio_of_means(top, bottom, "prompt")[0]), 2)
        0.55
    """
    counted = bottom.where(top.notnull())
    scale = counted.mean(dim)
    scale = scale.where(scale != 0)
    ratio = top.mean(dim) / scale
    _, error = mean_and_error_over((top - ratio * counted) / scale, dim)
    return ratio, error


def change_over_gap(result: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """``normalized`` over prompts: mean change from the corrupted run over the mean gap, its error.

    Args:
        result: With ``raw``, ``clean`` and ``corrupted`` over prompts, as all exchanges between two
            runs have them.

    Raises:
        ValueError: There is no gap on average.
    """
    gap = result["clean"] - result["corrupted"]
    if not float(gap.mean()):
        raise ValueError(
            "'normalized' holds no finite value over all prompts: clean and corrupted metrics are "
            "equal on average; wanted 'raw', or one prompt"
        )
    return ratio_of_means(result["raw"] - result["corrupted"], gap, "prompt")


def is_of_gaps(result: xr.DataArray | xr.Dataset, name: str) -> TypeGuard[xr.Dataset]:
    """Whether a quantity is a ratio for each of several prompts: their mean is one of ratios."""
    parts = {"raw", "clean", "corrupted"}
    known = isinstance(result, xr.Dataset) and parts <= {*result.variables}
    return known and name == "normalized" and result[name].sizes.get("prompt", 1) > 1


def variable(
    dims: str | Sequence[str], values: Any, *, unit: str, long_name: str | None = None
) -> xr.Variable:
    """One variable of a result: a tensor or array with its dims, its unit and what it is.

    Example:
        >>> variable("layer", torch.ones(2), unit="nats").attrs
        {'unit': 'nats'}
    """
    values = to_numpy(values) if isinstance(values, Tensor) else np.asarray(values)
    names = {} if long_name is None else {"long_name": long_name}
    return xr.Variable(dims, values, {"unit": unit, **names})


def described(result: xr.Dataset, about: Mapping[str, str]) -> xr.Dataset:
    """The same with a ``long_name`` for each variable that has none.

    Args:
        result: Variables ``x_se`` are standard errors of ``x`` or ``x_mean``.
        about: What variables are; of others nothing is said.

    Example:
        >>> raw = xr.Dataset({"kl_mean": 0.1, "kl_se": 0.2})
        >>> described(raw, {"kl_mean": "mean divergence"}).kl_se.long_name
        'standard error of: mean divergence'
    """
    for name, values in result.data_vars.items():
        stem = str(name).removesuffix("_se")
        of = about.get(stem, about.get(f"{stem}_mean"))
        said = about.get(str(name), of and f"standard error of: {of}")
        if said:
            values.attrs.setdefault("long_name", said)
    return result


def strings(values: Any) -> np.ndarray:
    """Texts as an array that netCDF can hold, as wide as the longest one; lists may be nested.

    Through objects: numpy takes an empty list for numbers.
    """
    return np.array(values, dtype=object).astype(str)


def check_result(name: str, given: Any, *, hint: str = "") -> None:
    """Refuse what is no result.

    Args:
        name: Of the argument, for the error.
        given: What was given.
        hint: What the caller may have meant.

    Raises:
        ValueError: It is no DataArray or Dataset.
    """
    if not isinstance(given, xr.DataArray | xr.Dataset):
        shown = repr(given) if isinstance(given, str | int | float) else type(given).__name__
        raise ValueError(f"{name}={shown}; wanted a result: an xarray DataArray or Dataset{hint}")


def save(result: xr.DataArray | xr.Dataset, path: str | Path) -> Path:
    """Write a result to netCDF (``.nc``) or zarr (``.zarr``), by the suffix of `path`.

    All of it or nothing: an error, or being killed, leaves what was there.

    Raises:
        ValueError: It is no result; the suffix is neither, the folder is not there, or the zarr
            store would replace a folder that is none.
    """
    check_result("result", result, hint=_elsewhere(result))
    path = _checked(path)
    if not path.parent.is_dir():
        raise ValueError(f"path={str(path)!r}: there is no folder {str(path.parent)!r}; wanted one")
    if path.is_dir() and any(path.iterdir()) and not is_store(path):
        raise ValueError(f"path={str(path)!r} is a folder of other things; wanted a new name")
    with whole_file(path) as part:
        _write(result, part)
    return path


def is_store(path: Path) -> bool:
    """Whether a folder is a zarr store."""
    return any((path / mark).is_file() for mark in (".zgroup", ".zmetadata", "zarr.json"))


def save_groups(results: Mapping[str, xr.DataArray | xr.Dataset], path: Path) -> Path:
    """Write several results to one netCDF file, each to the group of its name; all or nothing."""
    tree = {
        name: result.to_dataset(name="value") if isinstance(result, xr.DataArray) else result
        for name, result in results.items()
    }
    with whole_file(path) as part:
        part.write_bytes(_netcdf(xr.DataTree.from_dict(tree)))
    return path


def _write(result: xr.DataArray | xr.Dataset, path: Path) -> None:
    if isinstance(result, xr.DataArray):
        name = "" if result.name is None else str(result.name)
        result = result.to_dataset(name=name or _UNNAMED).assign_attrs({_DATAARRAY: name})
    if path.suffix == ".zarr":
        # Format 2: format 3 has no settled way to store strings yet.
        result.to_zarr(path, mode="w", zarr_format=2)
    else:
        path.write_bytes(_netcdf(result))


def _netcdf(result: xr.Dataset | xr.DataTree) -> memoryview:
    """What goes to a file.

    In memory first: HDF5 that finds a disk full may end the process when it closes the file.
    """
    return cast("memoryview", result.to_netcdf(engine="h5netcdf"))


def load(path: str | Path) -> xr.DataArray | xr.Dataset:
    """Read back what `save` wrote: a DataArray if one was saved, else a Dataset.

    Raises:
        ValueError: There is no such file, its suffix is neither ``.nc`` nor ``.zarr``, it is no
            such file inside, or it holds several results, as a report's.
    """
    path = _checked(path)
    if not path.exists():
        raise ValueError(f"path={str(path)!r} does not exist; wanted a file written by save()")
    engine = "zarr" if path.suffix == ".zarr" else "h5netcdf"
    try:
        result = _read(path, engine)
    except OSError as error:
        raise ValueError(
            f"path={str(path)!r} cannot be read ({error}); wanted a file written by save()"
        ) from error
    if isinstance(result, xr.Dataset) and not result.variables:
        with xr.open_datatree(path, engine=engine) as tree:
            held = ", ".join(tree.children)
        if held:
            raise ValueError(
                f"path={str(path)!r} holds several results, {held}; wanted a file of one: "
                "xarray.open_datatree reads this"
            )
    return result


def _read(file: Any, engine: str = "h5netcdf") -> xr.DataArray | xr.Dataset:
    """What was saved to a path, or to the file of which these are the bytes."""
    with xr.open_dataset(
        io.BytesIO(file) if isinstance(file, bytes) else file, engine=engine
    ) as opened:
        dataset = opened.load()
    name = dataset.attrs.get(_DATAARRAY)
    if name is None:
        return dataset
    return dataset[name] if name else dataset[_UNNAMED].rename(None)


def _elsewhere(given: Any) -> str:
    """Who keeps what is none, for an error."""
    kind = type(given).__name__
    if isinstance(given, str | Path):
        return " first, then the path"
    places = {"Lens": "lens.save", "Dictionary": "dictionaries.save", "Corpus": "Corpus.save"}
    return f"; a {kind} is kept by {places[kind]}" if kind in places else ""


def _checked(path: str | Path) -> Path:
    if not isinstance(path, str | Path):
        raise ValueError(f"path={type(path).__name__}; wanted a name that ends in '.nc' or '.zarr'")
    path = Path(path)
    if path.suffix not in (".nc", ".zarr"):
        raise ValueError(f"path={str(path)!r} ends in {path.suffix!r}; wanted '.nc' or '.zarr'")
    return path


DATASETS: Format[xr.DataArray | xr.Dataset] = Format(".nc", _write, _read)
"""How a `Checkpoint` keeps results."""
