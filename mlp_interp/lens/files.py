"""Lenses in files: ours, and folders of the tuned-lens package."""

import hashlib
import json
import pickle
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mlp_interp.checkpoint import whole_file
from mlp_interp.lens.lens import Lens, about
from mlp_interp.models import Weights
from mlp_interp.models.processing import centred
from mlp_interp.models.protocol import Model
from mlp_interp.results import single

__all__ = ["load", "save"]

_TENSORS = ("weight", "bias", "known")
_DAMAGED = (RuntimeError, EOFError, OSError, ValueError, TypeError, KeyError, struct.error)
"""What reading a file that is cut off, or no such file, may end in."""
_PLAIN = ("kind", "blocks", "part", "context", "ahead", "centred", "attrs")


def save(lens: Lens, path: str | Path) -> Path:
    """Write a lens to one file of tensors, with what is known of it in the header.

    Args:
        lens: The lens.
        path: A name that ends in ``.safetensors``.

    Raises:
        ValueError: It is no lens, the name ends otherwise, or its folder is not there.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from mlp_interp import load_model
        >>> from mlp_interp.lens import decoder
        >>> model = load_model("nano")
        >>> with TemporaryDirectory() as folder:
        ...     load(save(decoder(model, 2), Path(folder, "two.safetensors")), model)
        Lens('decoder', blocks=2, part='block', model='nano')
    """
    if not isinstance(lens, Lens):
        raise ValueError(f"lens={type(lens).__name__}; wanted a Lens")
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path={str(path)!r} ends in {path.suffix!r}; wanted '.safetensors'")
    if not path.parent.is_dir():
        raise ValueError(f"path={str(path)!r}: there is no folder {str(path.parent)!r}; wanted one")
    tensors = {name: getattr(lens, name) for name in _TENSORS}
    held = {name: x.detach().cpu().contiguous() for name, x in tensors.items() if x is not None}
    said = json.dumps({name: getattr(lens, name) for name in _PLAIN}, default=str)
    with whole_file(path) as part:
        save_file(held, part, metadata={"mlp_interp_lens": said})
    return path


def load(path: str | Path, model: Model) -> Lens:
    """Read a lens: what `save` wrote, or a folder of the tuned-lens package.

    That package's translators act on streams as they are, with their mean over ``d_model``, which
    centred weights have lost: they are taken only for a model that still has it
    (``load_model(..., processing="raw")``). Nothing is unpickled but tensors.

    Args:
        path: A ``.safetensors`` file; or a folder with ``config.json`` and ``params.pt``.
        model: The model that it is to read.

    Raises:
        ValueError: There is nothing of the kind, it holds other things than a lens, is of another
            model, or the model's streams are centred.
    """
    path = Path(path)
    lens = _from_folder(path, model) if path.is_dir() else _from_file(path)
    lens.check(model)
    return lens


def _from_file(path: Path) -> Lens:
    if not path.is_file():
        raise ValueError(f"path={str(path)!r} does not exist; wanted a file that save() wrote")
    try:
        with safe_open(path, "pt") as file:
            said = (file.metadata() or {}).get("mlp_interp_lens")
            names: list[str] = list(file.keys())
            tensors: dict[str, Any] = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"path={str(path)!r} is no safetensors file: {error}") from error
    if said is None:
        raise ValueError(f"path={str(path)!r} holds no lens; wanted a file that save() wrote")
    try:
        return Lens(**json.loads(said), **tensors)
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"path={str(path)!r} holds no lens as save() writes it: {error}"
        ) from error


def _from_folder(path: Path, model: Model) -> Lens:
    """A folder of the tuned-lens package."""
    try:
        config = json.loads((path / "config.json").read_text())
        params = torch.load(path / "params.pt", map_location="cpu", weights_only=True)
        config["d_model"]
    except FileNotFoundError as error:
        raise ValueError(
            f"path={str(path)!r} lacks {Path(error.filename).name}; wanted that and the other of "
            "config.json and params.pt"
        ) from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"path={str(path)!r}: params.pt holds other things than tensors, which are not read"
        ) from error
    except _DAMAGED as error:
        raise ValueError(
            f"path={str(path)!r} is damaged: {type(error).__name__}, {error}; wanted config.json "
            "and params.pt as the tuned-lens package writes them"
        ) from error
    weights = Weights.of(model)
    sizes = {"d_model": weights.d_model, "num_hidden_layers": weights.n_layers}
    for name, size in sizes.items():
        if config.get(name) != size:
            raise ValueError(
                f"path={str(path)!r} is a lens with {name}={config.get(name)}; wanted {size}, as "
                f"model={model.cfg.model_name!r} has"
            )
    if not centred(weights):  # else it is refused anyway, and the readout is another
        _check_hash(path, config, weights)
    weight = torch.stack(
        [_of(params, n, "weight", path, weights.d_model) for n in range(weights.n_layers)]
    )
    bias = torch.zeros(weights.n_layers, weights.d_model)
    if config.get("bias", True):
        bias = torch.stack(
            [_of(params, n, "bias", path, weights.d_model) for n in range(weights.n_layers)]
        )
    # Vectors multiply from the left here, and what a translator gives is added to its input.
    eye = torch.eye(weights.d_model)
    whole = torch.cat([weight.transpose(1, 2) + eye, eye[None]])
    made = Lens(**about(model, "tuned"))
    said = {k: str(v) for k, v in config.items() if isinstance(v, str | int | float)}
    return replace(made, weight=whole, bias=torch.cat([bias, bias[:1] * 0]), centred=False).named(
        source="tuned-lens", config=json.dumps(said)
    )


def _check_hash(path: Path, config: dict[str, Any], weights: Weights) -> None:
    """Refuse translators of a model with another unembedding.

    The package tells models by how numpy prints a corner of it, to one digit.

    Raises:
        ValueError: The folder says of which it is, and it is not this one's.
    """
    said = config.get("unembed_hash")
    with np.printoptions(edgeitems=3, threshold=1000, linewidth=75, suppress=False, sign="-"):
        shown = np.array_str(single(weights.W_U).T.cpu().numpy(), precision=1)
    ours = hashlib.sha256(shown.encode()).hexdigest()
    if said is not None and said != ours:
        raise ValueError(
            f"path={str(path)!r} has unembed_hash={said!r} (base model "
            f"{config.get('base_model_name_or_path')!r}, revision "
            f"{config.get('base_model_revision')!r}), and the unembedding of "
            f"model={weights.model.cfg.model_name!r} has {ours!r}; wanted the model it was made for"
        )


def _of(params: Any, layer: int, name: str, path: Path, d_model: int) -> Tensor:
    """One translator's parameter."""
    value = params.get(f"{layer}.{name}") if isinstance(params, dict) else None
    shape = (d_model, d_model) if name == "weight" else (d_model,)
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else value
        raise ValueError(
            f"path={str(path)!r}: params.pt has {layer}.{name}={got}; wanted a tensor {shape}"
        )
    return value.float()
