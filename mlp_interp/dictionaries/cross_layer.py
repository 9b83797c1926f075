"""Folders of circuit-tracer's cross-layer transcoders: two safetensors files for each layer."""

from pathlib import Path

import torch
from torch import Tensor

from mlp_interp.dictionaries.activations import JumpRelu, Relu
from mlp_interp.dictionaries.dictionary import Dictionary
from mlp_interp.dictionaries.parts import Given, check_axes, read_tensors

__all__ = ["FIRST", "read"]

FIRST = "W_enc_0.safetensors"


def read(path: Path, given: Given) -> dict[int, Dictionary]:
    """The dictionary of each layer, which writes to that layer's MLP output and all later ones.

    What the MLP of layer l writes is the sum of what those of layers up to l write there.

    Raises:
        ValueError: Files are missing, or fit each other in no way.
    """
    layers = len([*path.glob("W_enc_*.safetensors")])
    found = {}
    for layer in range(layers):
        held = read_tensors(path / f"W_enc_{layer}.safetensors")
        held |= read_tensors(path / f"W_dec_{layer}.safetensors")
        W_enc, b_enc, W_dec, b_dec = (
            _named(path, held, f"{name}_{layer}") for name in ("W_enc", "b_enc", "W_dec", "b_dec")
        )
        for name, axes in (("W_enc", 2), ("b_enc", 1), ("b_dec", 1)):
            check_axes(path, f"{name}_{layer}", held[f"{name}_{layer}"], axes)
        if f"W_skip_{layer}" in held:
            raise ValueError(f"path={str(path)!r} has W_skip_{layer}; wanted a CLT without it")
        if W_dec.ndim != 3 or W_dec.shape[1] != layers - layer:
            raise ValueError(
                f"path={str(path)!r}: W_dec_{layer} is {tuple(W_dec.shape)}; wanted [latent, "
                f"{layers - layer}, d_model], one for each layer from {layer} on"
            )
        threshold = held.get(f"threshold_{layer}")
        later = torch.zeros(W_dec[0, 1:].numel())  # whose biases are those of their own layers
        found[layer] = Dictionary(
            W_enc.T.contiguous(),  # there latent by latent
            b_enc,
            W_dec.flatten(1),
            torch.cat([b_dec, later]),
            given.activation or (Relu() if threshold is None else JumpRelu(threshold.flatten())),
            layer=layer,
            reads="mlp_in",
            spans=layers - layer,
            wants=given.wants,
            attrs={"format": "circuit_tracer", "path": str(path)},
        )
    return found


def _named(path: Path, held: dict[str, Tensor], name: str) -> Tensor:
    if name not in held:
        raise ValueError(f"path={str(path)!r} has {', '.join(sorted(held))}; wanted {name!r} too")
    return held[name]
