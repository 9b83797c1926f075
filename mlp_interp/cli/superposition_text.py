"""What `mlp-interp superposition` prints."""

import math

import numpy as np
import xarray as xr

from mlp_interp.cli.columns import columns
from mlp_interp.prompts.display import visible
from mlp_interp.views.numbers import number

__all__ = ["lines_of"]

_HEAD = ("layer", "dimensions", "unbiased", "for 90%", "units", "enough", "tolerates", "exponent")


def lines_of(spectrum: xr.Dataset, noise: xr.Dataset) -> list[str]:
    """Layer by layer: dimensions of all the text, and the noise that is tolerated.

    Args:
        spectrum: What `superposition.spectrum` gave.
        noise: What `superposition.noise_tolerance` gave of the same site.
    """
    rows: list[tuple[str, ...]] = [_HEAD]
    end = spectrum.isel(n=-1)
    for layer in spectrum["layer"].values.tolist():
        one, there = end.sel(layer=layer), noise.isel(site=0).sel(layer=layer)
        enough = float(one["enough"].sel(measure="participation"))
        rows.append(
            (
                str(layer),
                number(one["participation"], one["participation_se"]),
                number(one["participation_unbiased"]),
                str(int(one["k90"])),
                str(one.sizes["rank"]),
                "–" if math.isnan(enough) else f"{enough:,.0f}",
                _tolerated(there, noise.attrs["level"]),
                f"{float(there['exponent']):.2f}",
            )
        )
    attrs, tokens = spectrum.attrs, int(end["tokens"])
    return [
        visible(f"{attrs['site']} of {attrs['model']}, {attrs['data']} ({tokens:,} that count)"),
        *columns(rows),
        "dimensions: participation ratio (± standard error over sequences); for 90%: of the",
        "variance; enough: tokens from which on it stays within 5%; tolerates: size of",
        f"{noise.attrs['kind']} noise, of the spread, at which KL reaches {noise.attrs['level']:g} "
        "nats; exponent: KL over size",
    ]


def _tolerated(there: xr.Dataset, level: float) -> str:
    """The size at which the level is reached, or on which side of all sizes it is."""
    value, sizes = float(there["tolerated"]), there["size"].values
    if not np.isnan(value):
        return f"{value:.2f}"
    beyond = float(there["kl"][-1]) < level
    return f"> {sizes[-1]:g}" if beyond else f"< {sizes[0]:g}"
