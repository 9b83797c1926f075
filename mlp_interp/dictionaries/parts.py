"""What a file of a dictionary holds, in whatever format, and the dictionary that it makes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mlp_interp.dictionaries.activations import Activation
from mlp_interp.dictionaries.dictionary import AFTER_NORM, Dictionary
from mlp_interp.dictionaries.places import place_of
from mlp_interp.models.options import check_choice
from mlp_interp.results import single

__all__ = ["Folder", "Given", "placed"]


_AXES = {
    **dict.fromkeys(("W_enc", "W_dec", "W_skip", "encoder.weight", "decoder.weight"), 2),
    **dict.fromkeys(("b_enc", "b_dec", "encoder.bias", "bias", "scaling_factor"), 1),
}


@dataclass(frozen=True)
class Given:
    """What the caller knows better than the file.

    Attributes:
        place: Where it belongs, by any of the names of `place_of`: what an SAE reads and writes, or
            what a transcoder writes.
        activation: Which latents are active.
        wants: The processing of the model's weights.
        subtract_b_dec: Whether the decoder's bias is taken from the input.
    """

    place: str | None = None
    activation: Activation | None = None
    wants: Any = None
    subtract_b_dec: bool | None = None

    def __post_init__(self) -> None:
        check_choice("subtract_b_dec", self.subtract_b_dec, (None, False, True))


@dataclass(frozen=True)
class Folder:
    """A folder, its configuration and its tensors.

    Attributes:
        path: The folder.
        config: What its JSON says.
        tensors: What it holds, half precisions as float32.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(repr=False)

    def __post_init__(self) -> None:
        for name, x in self.tensors.items():
            if name in _AXES:
                check_axes(self.path, name, x, _AXES[name])

    @classmethod
    def of(cls, path: Path, config: str, tensors: str) -> "Folder":
        """Read a JSON file and a safetensors file.

        Raises:
            ValueError: One is missing or is nothing of the kind.
        """
        return cls(path, read_json(path / config), read_tensors(path / tensors))

    def tensor(self, name: str) -> Tensor:
        """One of the tensors.

        Raises:
            ValueError: It is not there.
        """
        if name not in self.tensors:
            raise ValueError(
                f"path={str(self.path)!r} has tensors {', '.join(sorted(self.tensors))}; wanted "
                f"{name!r} too"
            )
        return self.tensors[name]

    def section(self, name: str, *, of: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A part of the configuration that is one itself; empty where there is none.

        Raises:
            ValueError: It is something else.
        """
        found = (self.config if of is None else of).get(name)
        if found is not None and not isinstance(found, dict):
            raise ValueError(f"path={str(self.path)!r} has {name}={found!r}; wanted an object")
        return found or {}

    def whole(self, name: str, found: Any) -> int:
        """A count that it says.

        Raises:
            ValueError: It is none.
        """
        number = found.item() if isinstance(found, Tensor) and found.numel() == 1 else found
        if isinstance(number, bool) or not isinstance(number, int | float) or number % 1:
            raise ValueError(f"path={str(self.path)!r} has {name}={found!r}; wanted a whole number")
        return int(number)


def check_axes(path: Path, name: str, x: Tensor, axes: int) -> None:
    """Refuse a tensor of a file that has another number of axes, or of integers.

    Raises:
        ValueError: It is one.
    """
    if x.ndim != axes or not x.is_floating_point():
        raise ValueError(
            f"path={str(path)!r} has {name} of shape {tuple(x.shape)} and {x.dtype}; wanted floats "
            f"along {axes} ax{'i' if axes == 1 else 'e'}s"
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: The file is not there, or holds something else.
    """
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"path={str(path.parent)!r} lacks {path.name}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"path={str(path)!r} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"path={str(path)!r} holds {type(found).__name__}; wanted an object")
    return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, half precisions as float32.

    Raises:
        ValueError: The file is not there, or holds something else.
    """
    if not path.is_file():
        raise ValueError(f"path={str(path.parent)!r} lacks {path.name}")
    try:
        return {name: single(x) for name, x in load_file(path).items()}
    except SafetensorError as error:
        raise ValueError(f"path={str(path)!r} is no safetensors file: {error}") from error


def placed(
    path: Path, given: Given, said: Any, *, transcoder: bool, reads: str | None = None
) -> dict[str, Any]:
    """The layer that a dictionary belongs to, what it reads and what it writes.

    Args:
        path: Of the file, for errors.
        given: What the caller says, which counts.
        said: What the file says of the place that is written.
        transcoder: Whether it writes elsewhere than it reads.
        reads: Name of the place that is read, of a transcoder; None for what the MLP reads.

    Raises:
        ValueError: Nobody says, or it is none that can be read.
    """
    text = given.place or said
    found = None if text is None else place_of(text)
    if found is None or (transcoder and found[0] in AFTER_NORM):
        what = "no place" if text is None else f"place {text!r}"
        raise ValueError(
            f"path={str(path)!r} says {what}; wanted place= what the dictionary writes, for "
            "example '3.mlp', '3.attn' or '3.resid_post'"
        )
    name, layer = found
    return {"layer": layer, "writes": name, "reads": (reads or "mlp_in") if transcoder else name}


def with_unit_rows(
    W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, threshold: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The same dictionary with activations in units of what they write: decoder rows of length 1.

    Formats that multiply activations by the length of their row, and divide by it again.

    Raises:
        ValueError: They are of other numbers of latents.
    """
    sizes = W_dec.norm(dim=-1)
    held = {"W_enc": W_enc[:1].flatten(), "b_enc": b_enc, "threshold": threshold}
    for name, x in held.items():
        if x is not None and tuple(x.shape) not in (sizes.shape, () if x is threshold else None):
            raise ValueError(
                f"{name} is of {tuple(x.shape)} latents; wanted {tuple(sizes.shape)}, as W_dec has"
            )
    scaled = None if threshold is None else threshold * sizes
    divisors = sizes.masked_fill(sizes == 0, 1)  # a row of zeros stays one, its latent inactive
    return W_enc * sizes, b_enc * sizes, W_dec / divisors[:, None], scaled


def centred_output(dictionary: Dictionary) -> Dictionary:
    """The same for a model whose writing weights are centred: exact, as the mean is lost there."""
    held = {name: getattr(dictionary, name) for name in ("W_dec", "b_dec", "W_skip")}
    moved: Any = {k: x - x.mean(-1, keepdim=True) for k, x in held.items() if x is not None}
    attrs = {**dictionary.attrs, "output": "centred, as the model's writing weights are"}
    return replace(dictionary, attrs=attrs, **moved)
