"""What a folder of results answers: one question, written down beside them."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path, PurePath
from types import FunctionType
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from mlp_interp.checkpoint import whole_file
from mlp_interp.corpus import Corpus

__all__ = ["check_asked"]

_FILE = "question.json"


def check_asked(
    folder: Path, name: str, analysis: Callable[..., Any], options: Mapping[str, Any]
) -> None:
    """Write down what is asked, or refuse a folder that answers something else.

    Args:
        folder: Made if it is not there.
        name: Of the model.
        analysis: Known by its name alone: a function that was changed since is not noticed.
        options: Of the analysis: each is known by all its numbers, labels and fields.

    Raises:
        ValueError: The folder belongs to another question, the analysis has no name, or of an
            option's value nobody can say whether it is the same.
    """
    called = f"{analysis.__module__}.{getattr(analysis, '__qualname__', '')}"
    if called.endswith(("<lambda>", ".")):
        raise ValueError(
            f"folder={str(folder)!r} with analysis={analysis!r}, which has no name; wanted a "
            "function that is defined by def, or folder=None"
        )
    said = {key: _digest(value, key) for key, value in sorted(options.items())}
    asked = {"model": name, "analysis": called, "options": said}
    path = folder / _FILE
    if path.is_file():
        before = json.loads(path.read_text())
        other = [key for key in asked if not _same(before.get(key), asked[key])]
        if other:
            raise ValueError(
                f"folder={str(folder)!r} holds results for {other[0]}={before.get(other[0])!r}; "
                f"asked for {asked[other[0]]!r}, wanted another folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        part.write_text(json.dumps(asked, indent=2) + "\n")


def _same(one: Any, other: Any) -> bool:
    """As they are written: there NaN is like NaN."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _digest(value: Any, where: str) -> Any:
    """Something short that changes with a value.

    Raises:
        ValueError: Of such a value nobody can say whether it is the same.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping | list | tuple | range | set | frozenset):
        return _of_several(value, where)
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return _of_numbers(value, where)
    if isinstance(value, Corpus):
        return f"corpus {value.attrs['sha256']}"
    if isinstance(value, xr.Dataset | xr.DataArray | xr.Variable):
        return _of_labelled(value, where)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {one.name: getattr(value, one.name) for one in fields(value)}
        return {"type": _name(type(value)), **_digest(parts, where)}
    if isinstance(value, PurePath | slice | torch.dtype | torch.device):
        return repr(value)
    if isinstance(value, FunctionType | type) and "<" not in _name(value):
        return _name(value)
    raise ValueError(
        f"{where} is a {type(value).__name__}, which cannot be told from others in a folder's "
        "question; wanted numbers, texts, arrays, xarrays, dataclasses, or folder=None"
    )


def _of_several(value: Any, where: str) -> Any:
    """Each by itself; of a mapping with its key, of a set in an order of our own."""
    if isinstance(value, Mapping):
        pairs = ((key, one, f"{where}[{key!r}]") for key, one in value.items())
        return {_key(key, at): _digest(one, at) for key, one, at in pairs}
    if isinstance(value, set | frozenset):
        return sorted((_digest(one, where) for one in value), key=json.dumps)
    return [_digest(one, f"{where}[{n}]") for n, one in enumerate(value)]


def _name(value: Any) -> str:
    """Module and name of a function or class."""
    return f"{value.__module__}.{value.__qualname__}"


def _key(key: Any, where: str) -> str:
    return key if isinstance(key, str) else f"{type(key).__name__} {_digest(key, where)}"


def _of_numbers(value: Any, where: str) -> Any:
    """Shape, type and a hash of all bytes."""
    if isinstance(value, Tensor):
        flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        told = flat.view(torch.uint8).numpy().tobytes()  # NumPy has no bfloat16
    elif value.dtype.hasobject:
        return _digest(value.tolist(), where)
    else:
        told = np.ascontiguousarray(value).tobytes()
    return f"array {tuple(value.shape)} {value.dtype} {hashlib.sha256(told).hexdigest()[:16]}"


def _of_labelled(value: Any, where: str) -> Any:
    """Values, coords and attrs, all of them in full."""
    said: dict[str, Any] = {"attrs": value.attrs, "coords": {}}
    if not isinstance(value, xr.Variable):
        said["coords"] = {name: one.variable for name, one in value.coords.items()}
    if isinstance(value, xr.Dataset):
        said["variables"] = {name: one.variable for name, one in value.data_vars.items()}
    else:
        said |= {"dims": value.dims, "values": value.values, "name": getattr(value, "name", None)}
    return _digest(said, where)
