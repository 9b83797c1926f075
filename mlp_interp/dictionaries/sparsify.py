"""Folders of sparsify: ``cfg.json`` and ``sae.safetensors``, named after the module they are of."""

from typing import Any

import torch
from torch import Tensor

from mlp_interp.dictionaries.activations import Activation, GroupMax, TopK
from mlp_interp.dictionaries.dictionary import Dictionary
from mlp_interp.dictionaries.parts import Folder, Given, placed

__all__ = ["CONFIG", "WEIGHTS", "read", "written"]

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
_OURS = "mlp_interp"  # our own part of the configuration, which sparsify does not look at


def read(folder: Folder, given: Given) -> Dictionary:
    """The dictionary of a folder.

    Its name says of which module: ``layers.3.mlp`` is the *output* of an MLP, ``layers.3`` the
    stream after the block. A transcoder reads what that MLP reads.

    The decoder's bias is taken from the input of SAEs and not of transcoders. Transcoders of before
    2025 were trained as if it were, and nothing in the file says so: where the share of variance
    left over is much too large, try ``subtract_b_dec=True``.

    Raises:
        ValueError: What `placed` refuses, or a tensor is missing.
    """
    config, ours = folder.config, folder.section(_OURS)
    transcoder = bool(config.get("transcode", False))
    b_dec, skip = folder.tensor("b_dec"), folder.tensors.get("W_skip")
    subtract = not transcoder if given.subtract_b_dec is None else given.subtract_b_dec
    place = placed(
        folder.path,
        given,
        ours.get("place", folder.path.name),
        transcoder=transcoder,
        reads=ours.get("reads"),
    )
    return Dictionary(
        folder.tensor("encoder.weight").T.contiguous(),
        folder.tensor("encoder.bias"),
        folder.tensor("W_dec"),
        b_dec,
        given.activation or _activation(folder),
        **place,
        b_in=b_dec if subtract else None,
        W_skip=None if skip is None else skip.T,  # there from output to input
        of_module="place" not in ours,
        wants=given.wants or (ours.get("wants") if ours else "raw"),  # Hugging Face's modules
        attrs={
            "format": "sparsify",
            "path": str(folder.path),
            **({"model_name": ours["model_name"]} if "model_name" in ours else {}),
        },
    )


def _activation(folder: Folder) -> Activation:
    k = folder.config.get("k")
    if k is None:
        raise ValueError(f"path={str(folder.path)!r} has no k; wanted activation=")
    groups = folder.config.get("activation") == "groupmax"
    k = folder.whole("k", k)
    return GroupMax(k) if groups else TopK(k)


def written(dictionary: Dictionary) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of a folder that sparsify reads.

    Raises:
        ValueError: It has nothing for this activation or normalisation.
    """
    activation, sae = dictionary.activation, dictionary.is_sae
    if (
        not isinstance(activation, TopK | GroupMax)
        or dictionary.normalize
        or dictionary.spans + dictionary.ahead > 1
    ):
        raise ValueError(
            f"package='sparsify' has nothing for {dictionary!r}; wanted a TopK dictionary of one "
            "layer without normalisation, or package='sae_lens'"
        )
    b_in = torch.zeros_like(dictionary.W_enc[:, 0]) if dictionary.b_in is None else dictionary.b_in
    taken = dictionary.b_dec if sae else torch.zeros_like(b_in)  # what sparsify takes out
    tensors = {
        "encoder.weight": dictionary.W_enc.T,
        "encoder.bias": dictionary.b_enc + (taken - b_in) @ dictionary.W_enc,
        "W_dec": dictionary.W_dec,
        "b_dec": dictionary.b_dec,
    }
    if dictionary.W_skip is not None:
        tensors["W_skip"] = dictionary.W_skip.T
    said = {"wants": dictionary.wants, "model_name": dictionary.of_model}
    ours = {"place": f"{dictionary.layer}.{dictionary.writes}", "reads": dictionary.reads}
    config = {
        "activation": "groupmax" if isinstance(activation, GroupMax) else "topk",
        "expansion_factor": 32,
        "normalize_decoder": True,
        "num_latents": dictionary.n_latents,
        "k": activation.k,
        "multi_topk": False,
        "skip_connection": dictionary.W_skip is not None,
        "transcode": not sae,
        "d_in": dictionary.W_enc.shape[0],
        _OURS: ours | {name: value for name, value in said.items() if value is not None},
    }
    return config, {name: torch.clone(x.detach()).contiguous() for name, x in tensors.items()}
