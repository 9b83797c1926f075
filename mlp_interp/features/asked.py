"""What a folder of results answers: one question, written down beside them."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mlp_interp.checkpoint import whole_file

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
        options: Of the analysis.

    Raises:
        ValueError: The folder belongs to another question, or the analysis has no name.
    """
    called = f"{analysis.__module__}.{getattr(analysis, '__qualname__', '')}"
    if called.endswith(("<lambda>", ".")):
        raise ValueError(
            f"folder={str(folder)!r} with analysis={analysis!r}, which has no name; wanted a "
            "function that is defined by def, or folder=None"
        )
    said = {key: _digest(value) for key, value in sorted(options.items())}
    asked = {"model": name, "analysis": called, "options": said}
    path = folder / _FILE
    if path.is_file():
        before = json.loads(path.read_text())
        other = [key for key in asked if before.get(key) != asked[key]]
        if other:
            raise ValueError(
                f"folder={str(folder)!r} holds results for {other[0]}={before.get(other[0])!r}; "
                f"asked for {asked[other[0]]!r}, wanted another folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        part.write_text(json.dumps(asked, indent=2) + "\n")


def _digest(value: Any) -> Any:
    """Something short that changes with a value."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _digest(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_digest(one) for one in value]
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        told = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]
        return f"array {value.shape} {value.dtype} {told}"
    attrs = getattr(value, "attrs", {})
    if "sha256" in attrs:  # a corpus
        return f"corpus {attrs['sha256']}"
    return repr(value)
