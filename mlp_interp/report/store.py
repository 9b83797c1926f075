"""Finished analyses on disk, so that an interrupted run goes on where it stopped."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from mlp_interp.models import Weights, describe
from mlp_interp.results import load, save

Part = xr.Dataset | xr.DataArray


class Store:
    """A folder with one netCDF file per finished analysis.

    File names carry a fingerprint of model, data and options: a part is only ever read back by a
    run that would compute the same. Parts are written under another name first, so that a run that
    is killed leaves no half file behind.

    Args:
        folder: Where the files go; made when the first part is kept.
        fingerprint: What the parts depend on; see `fingerprint`.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.reused: list[str] = []

    @property
    def batches(self) -> Path:
        """Folder for the finished batches of an analysis that is not finished."""
        return self.folder / f"batches-{self.fingerprint}"

    def path(self, name: str) -> Path:
        """The file of one part."""
        return self.folder / f"{name.replace('/', '-')}-{self.fingerprint}.nc"

    def get(self, name: str, compute: Callable[[], Part]) -> Part:
        """The part from an earlier run if there is one, else computed now and kept."""
        path = self.path(name)
        if path.exists():
            self.reused.append(name)
            return load(path)
        part = compute()
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"unfinished-{os.getpid()}-{path.name}")
        save(part, unfinished)
        unfinished.replace(path)
        return part

    def remove(self) -> None:
        """Delete the parts of this run, and the folder if nothing else is in it."""
        for path in self.folder.glob(f"*-{self.fingerprint}.nc"):
            path.unlink()
        shutil.rmtree(self.batches, ignore_errors=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def fingerprint(model: Any, tokens: torch.Tensor, options: dict[str, Any]) -> str:
    """A short name for everything that the numbers depend on: weights, tokens and options.

    Of the weights, shapes, sums and a thousand evenly spaced entries of each go in; that tells two
    checkpoints apart without reading gigabytes.
    """
    weights = Weights.of(model)
    digest = hashlib.sha256(json.dumps([describe(model), options], sort_keys=True).encode())
    tensors = [weights.W_E, weights.W_U, weights.b_U]
    for layer in range(weights.n_layers):
        block = weights.block(layer)
        tensors += [block.W_Q, block.W_K, block.W_V, block.W_O, block.W_in, block.W_out]
        tensors += [block.b_O, block.b_in, block.b_out]
    for tensor in tensors:
        flat = tensor.detach().flatten()
        some = flat[:: max(1, len(flat) // 1000)].double().cpu()
        digest.update(f"{tuple(tensor.shape)} {flat.double().sum().item()!r}".encode())
        digest.update(some.numpy().tobytes())
    digest.update(f"{tuple(tokens.shape)}".encode())
    digest.update(tokens.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
