"""The page of `mlp-interp patch`: the figures and the pairs, in one file that needs no network."""

from importlib import resources
from pathlib import Path

import xarray as xr
from markupsafe import Markup

from mlp_interp import plots
from mlp_interp.checkpoint import whole_file
from mlp_interp.prompts import Contrast
from mlp_interp.prompts.display import contrast_html
from mlp_interp.results import save_groups
from mlp_interp.views.bundle import script_safe
from mlp_interp.views.document import render_document

HEADINGS = {
    "stream": "Streams and outputs",
    "head": "Heads",
    "neuron": "Neurons",
}
WHAT = {
    "denoising": "Each cell puts one clean activation into the corrupted run: which one suffices "
    "to bring the answer back?",
    "noising": "Each cell puts one corrupted activation into the clean run: which one is needed "
    "for the answer?",
}


def write(
    results: dict[str, xr.Dataset], contrast: Contrast, lines: list[str], out: Path
) -> tuple[Path, Path]:
    """Write the page, and the results beside it as netCDF with one group a kind of site.

    Args:
        results: Results of patching by kind of site: stream, head, neuron.
        contrast: The pairs.
        lines: The strongest cells, as the terminal shows them.
        out: The page.

    Returns:
        The page and the data.
    """
    page, data = render(results, contrast, lines), out.with_suffix(".nc")
    save_groups(results, data)
    with whole_file(out) as part:
        part.write_text(page, encoding="utf-8")
    return out, data


def render(results: dict[str, xr.Dataset], contrast: Contrast, lines: list[str]) -> str:
    """The page as HTML: every text is escaped by the template, all data by `script_safe`."""
    source = resources.files("mlp_interp.cli").joinpath("patching.html")
    first = next(iter(results.values()))
    attrs = first.attrs
    return render_document(
        source.read_text(encoding="utf-8"),
        title=f"Patching {attrs['model']}: {attrs['task']}",
        provenance=", ".join(
            str(attrs[key]) for key in ("model", "revision", "processing", "data") if key in attrs
        ),
        what=WHAT[attrs["direction"]],
        lines=lines,
        left_out=int((first["clean"] == first["corrupted"]).sum()),
        prompts=first.sizes["prompt"],
        sections=[_section(family, result) for family, result in results.items()],
        pairs=Markup(contrast_html(contrast)),
        everything=max(float(result["check_everything"]) for result in results.values()),
        nothing=max(float(result["check_nothing"]) for result in results.values()),
        unit=attrs["unit"],
    )


def _section(family: str, result: xr.Dataset) -> dict[str, object]:
    figure = plots.patching(result)
    figure.update_layout(template=None, title_text="", margin_t=40)
    layout = figure.to_plotly_json()["layout"]
    height = int(layout["height"]) - 40
    figure.update_layout(height=height)
    return {
        "heading": HEADINGS[family],
        "json": Markup(script_safe(str(figure.to_json()))),
        "height": height,
    }
