"""Finished analyses on disk, so that an interrupted run goes on where it stopped."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import xarray as xr

from mlp_interp.checkpoint import Checkpoint
from mlp_interp.results import DATASETS

Part = xr.Dataset | xr.DataArray


class Store:
    """A folder with one netCDF file per finished analysis.

    File names carry a fingerprint of model, data and options: a part is only ever read back by a
    run that would compute the same.

    Args:
        folder: Where the files go; made when the first part is kept.
        fingerprint: What the parts depend on; see `mlp_interp.models.fingerprint`.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.reused: list[str] = []
        self._kept = Checkpoint(folder, DATASETS)

    @property
    def batches(self) -> Path:
        """Folder for the finished batches of an analysis that is not finished."""
        return self.folder / f"batches-{self.fingerprint}"

    def get(self, name: str, compute: Callable[[], Part]) -> Part:
        """The part from an earlier run if there is one, else computed now and kept."""
        file = f"{name.replace('/', '-')}-{self.fingerprint}"
        if (part := self._kept.read(file)) is None:
            part = compute()
            self._kept.keep(file, part)
        else:
            self.reused.append(name)
        return part

    def remove(self) -> None:
        """Delete the parts of this run, and the folder if nothing else is in it."""
        for path in self.folder.glob(f"*-{self.fingerprint}.nc"):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.batches, ignore_errors=True)
        with suppress(OSError):  # something else is in it, or another process has deleted it
            self.folder.rmdir()
