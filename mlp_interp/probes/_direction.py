"""A probe's line as a direction to steer along."""

import numpy as np
import xarray as xr

from mlp_interp.models.indices import index

__all__ = ["probe_direction"]


def probe_direction(result: xr.Dataset, layer: int, output: int | str = 0) -> xr.DataArray:
    """What to add to the activations so that a probe says one more: a direction of `steering`.

    Coefficient 1 raises the prediction by 1, in the labels' units (a year, say) or in how much
    speaks for a class, on the shortest way there is. Whether the model then acts as if it were so
    is another question: `compare_directions`.

    Args:
        result: Of `probe`.
        layer: At which layer; -1 is the embedding, which is where the first block's input is.
        output: Which output, by number or name.

    Returns:
        ``[layer, d_model]`` (or ``neuron``), one layer, with its length as `norm`.

    Raises:
        ValueError: The result has no such layer or output, or the line is zero there.

    Example:
        >>> from mlp_interp import load_model, probes, steer, steering
        >>> model = load_model("nano")
        >>> rows = [{"year": f"{n:02d}", "n": n} for n in range(2, 99, 4)]
        >>> text = "The war lasted from the year 17{year}"
        >>> data = probes.Labelled.of(model, rows, text=text, y="n", entity="year")
        >>> later = probe_direction(probes.probe(model, data, layers=2, controls=0), 2)
        >>> with steer(model, steering.add(later, 20.0)):
        ...     shifted = probes.probe(model, data, layers=2, controls=0)
        >>> later.sizes
        Frozen({'layer': 1, 'd_model': 192})
    """
    if (
        not isinstance(result, xr.Dataset)
        or "coef" not in result
        or result.attrs.get("analysis") != "probe"
    ):
        raise ValueError("result has no lines; wanted one of probe")
    known = [int(at) for at in result["layer"].values]
    if layer not in known:
        raise ValueError(f"layer={layer}; wanted one of {known}, where the probe is")
    names = [str(name) for name in result["output"].values]
    if isinstance(output, str) and output not in names:
        raise ValueError(f"output={output!r}; wanted one of {', '.join(names)}")
    number = names.index(output) if isinstance(output, str) else index("output", output, len(names))
    line = result["coef"].sel(layer=layer).isel(output=number)
    square = float((line.values**2).sum())
    if not square > 0:
        raise ValueError(f"the probe's line at layer {layer} is zero or unknown; wanted another")
    (unit,) = line.dims
    site, at = result.attrs["site"], layer
    if layer == -1:
        site, at = "resid_pre", 0
    about = f"raises the {result.attrs['kind']} probe's {names[number]!r} by 1"
    kept = ("model", "revision", "processing", "dtype", "device", "backend", "data", "n_layers")
    kept += ("exact", "approximation")
    return xr.DataArray(
        line.values[None] / square,
        dims=("layer", unit),
        coords={"layer": [at], "norm": ("layer", [1 / np.sqrt(square)])},
        attrs={
            "site": site,
            "unit": "activation",
            "method": "probe",
            "long_name": about,
            **{name: result.attrs[name] for name in kept if name in result.attrs},
        },
        name="direction",
    )
