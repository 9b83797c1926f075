"""Folders of dictionary_learning: ``config.json`` and ``ae.pt``, of which only tensors are read."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlp_interp.dictionaries.activations import Activation, JumpRelu, Relu, TopK
from mlp_interp.dictionaries.dictionary import Dictionary
from mlp_interp.dictionaries.parts import Folder, Given, placed, read_json, with_unit_rows
from mlp_interp.dictionaries.places import place_of
from mlp_interp.results import single

__all__ = ["CONFIG", "WEIGHTS", "folder_of", "read"]

CONFIG, WEIGHTS = "config.json", "ae.pt"
_KNOWN = ("AutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "JumpReluAutoEncoder")


def folder_of(path: Path) -> Folder:
    """A folder with its tensors; nothing else in the pickle is looked at.

    Raises:
        ValueError: A file is missing, or holds other things than tensors.
    """
    config = read_json(path / CONFIG)
    try:
        held = torch.load(path / WEIGHTS, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"path={str(path)!r} lacks {WEIGHTS}") from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"path={str(path)!r}: {WEIGHTS} is damaged: {error}") from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"path={str(path)!r}: {WEIGHTS} holds other things than tensors, which are not read"
        ) from error
    tensors = {name: single(x) for name, x in held.items() if isinstance(x, Tensor)}
    return Folder(path, config, tensors)


def read(folder: Folder, given: Given) -> Dictionary:
    """The dictionary of a folder.

    A BatchTopK is read with its threshold, the rule for single tokens, not with its k.

    Raises:
        ValueError: A class that is not known; what `placed` refuses; a tensor is missing.
    """
    trainer = folder.section("trainer") or folder.config
    kind = trainer.get("dict_class", "AutoEncoder")
    if kind not in _KNOWN:
        raise ValueError(
            f"path={str(folder.path)!r} has dict_class={kind!r}; wanted one of {', '.join(_KNOWN)}"
        )
    jump = kind == "JumpReluAutoEncoder"
    names = ("encoder.weight", "encoder.bias", "decoder.weight")
    W_enc, b_enc, W_dec = map(folder.tensor, ("W_enc", "b_enc", "W_dec") if jump else names)
    if not jump:
        W_enc, W_dec = W_enc.T, W_dec.T
    b_dec = folder.tensor("bias" if kind == "AutoEncoder" else "b_dec")
    threshold = folder.tensors.get("threshold")
    if jump:
        W_enc, b_enc, W_dec, threshold = with_unit_rows(W_enc, b_enc, W_dec, threshold)
    subtract = not jump if given.subtract_b_dec is None else given.subtract_b_dec
    said = str(trainer.get("submodule_name") or "")
    if trainer.get("layer") is not None and place_of(said) is None:
        said = f"{said}_layer_{trainer['layer']}"
    return Dictionary(
        W_enc.contiguous(),
        b_enc,
        W_dec.contiguous(),
        b_dec,
        given.activation or _activation(folder, kind, trainer, threshold),
        **placed(folder.path, given, said or None, transcoder=False),
        b_in=b_dec if subtract else None,
        of_module=True,
        wants=given.wants or "raw",  # of Hugging Face's modules
        attrs={
            "format": "dictionary_learning",
            "path": str(folder.path),
            **({"model_name": trainer["lm_name"]} if trainer.get("lm_name") else {}),
        },
    )


def _activation(
    folder: Folder, kind: str, trainer: Mapping[str, Any], threshold: Tensor | None
) -> Activation:
    if kind == "AutoEncoder":
        return Relu()
    if kind == "AutoEncoderTopK":
        k = folder.tensors.get("k", trainer.get("k"))
        if k is None:
            raise ValueError(f"path={str(folder.path)!r} is a TopK without k; wanted activation=")
        return TopK(folder.whole("k", k))
    found = folder.tensor("threshold") if threshold is None else threshold
    if kind == "BatchTopKSAE" and not (found.numel() == 1 and float(found) >= 0):
        # It is below 0 before training has set it.
        raise ValueError(
            f"path={str(folder.path)!r} has threshold={found.tolist()}, which was never set, "
            "or is none for a whole batch; wanted activation="
        )
    return JumpRelu(found)
