"""What each layer would say: the grid, by depth over a corpus, and single tokens by layer."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from mlp_interp.plots import _style as style
from mlp_interp.plots._ranges import _decades
from mlp_interp.plots._tokens import MANY, visible

READ, OVER = "lens.read", "lens.over"
_LINES = ("kl_output", "kl_input", "agrees", "entropy")
_COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.PURPLE, style.SKY, style.AMBER, style.GREY)
_LONGEST = 9  # characters of a token in a cell


def lens(
    result: xr.Dataset,
    variable: str = "logp_output",
    *,
    prompt: int = 0,
    text: bool | None = None,
) -> go.Figure:
    """The original grid: layers up, positions across, the likeliest token written in each cell.

    Below each column stands the token that is read there, above it the one that comes next, with a
    star where the final layer has it right. Ranks are coloured on a log scale.

    Args:
        result: What `lens.read` returns, of one lens.
        variable: What colours the cells: ``"logp_output"`` (the final likeliest token),
            ``"rank_output"``, ``"kl_output"``, ``"kl_input"``, ``"entropy"``, ``"logp_next"``, …
        prompt: Which of the texts.
        text: Whether to write the likeliest token in each cell, and make the figure as wide as that
            takes; None for where there are at most 30 positions.

    Returns:
        A heat map. The hover text has the likeliest tokens with their probabilities, the distances
        and the rank of the final likeliest token.

    Raises:
        ValueError: The result is not one of `lens.read` of one lens, lacks the variable or has no
            such prompt.

    Example:
        >>> from mlp_interp import lens as lenses, load_model
        >>> found = lenses.read(load_model("nano"), "The capital of France is")
        >>> lens(found, "rank_output").layout.xaxis.title.text
        'token that is read'
    """
    one = _one(result, variable, prompt)
    values = one[variable].transpose("layer", "pos").values.astype(float)
    there = one["token"].values != ""
    one, values = one.isel(pos=there), values[:, there]
    ranks = variable.startswith("rank")
    shade = np.log10(values + 1) if ranks else values
    about = one[variable].attrs
    bar: dict = {"title": {"text": f"{variable} [{about.get('unit', '')}]", "side": "right"}}
    bar |= {"thickness": 14, "lenmode": "pixels", "len": 190} | (
        _rank_ticks(shade) if ranks else {}
    )
    places = np.arange(one.sizes["pos"])
    dense = len(places) > MANY
    text = not dense if text is None else text
    upright = dense and not text
    label: dict = {"tickangle": -90, "tickfont_size": 8} if upright else {"tickangle": -60}
    layers = [str(layer) for layer in one["layer"].values]
    # Dark is what the figure is about: the final prediction is there, or nothing is known yet.
    scale = "Blues" if variable.startswith(("logp", "agrees", "cosine")) else "Blues_r"
    heat = go.Heatmap(
        z=shade, x=places, y=layers, customdata=_hover(one), colorscale=scale, colorbar=bar,
        xgap=1, ygap=1, hoverongaps=False, text=_cells(one) if text else None,
        texttemplate="%{text}" if text else None, textfont_size=10,
        hovertemplate="%{customdata}<extra></extra>",
    )  # fmt: skip
    figure = go.Figure(heat)
    below = [visible(str(token)) for token in one["token"].values]
    figure.update_xaxes(
        title="token that is read", tickmode="array", tickvals=places, ticktext=below,
        showgrid=False, zeroline=False, **label,
    )  # fmt: skip
    figure.update_yaxes(
        title="layer whose input is read", type="category", showgrid=False, automargin=True
    )
    right = one["top_text"].isel(layer=-1, rank=0).values == one["next_token"].values
    for place, (token, star) in enumerate(zip(one["next_token"].values, right, strict=True)):
        figure.add_annotation(
            x=place, y=1, xref="x", yref="paper", yanchor="bottom", showarrow=False,
            textangle=label["tickangle"], font_size=8 if upright else 10,
            text=visible(str(token)) + (" *" if star and token else ""),
        )  # fmt: skip
    title = f"What each layer would say, by {about.get('long_name', variable)}"
    note = f"{one.attrs.get('lens', '')} lens; above: the token that comes next, * if predicted"
    height = 250 + 26 * len(layers)
    width = None if upright else max(620, 150 + (60 if text else 30) * len(places))
    return style.finish(
        figure, title, one, note=note, height=height, width=width, margin_t=170, margin_b=110
    )


def lens_depth(result: xr.Dataset) -> go.Figure:
    """Distance to the end and to the input, agreement and entropy by layer, one line a lens.

    Args:
        result: What `lens.over` returns.

    Returns:
        Four panels of lines with bands of one standard error over sequences.

    Raises:
        ValueError: The result is another.

    Example:
        >>> from mlp_interp import lens as lenses, load_model
        >>> import torch
        >>> found = lenses.over(load_model("nano"), torch.arange(40).reshape(4, 10))
        >>> len(lens_depth(found).data)
        8
    """
    style.need(result, *_LINES, *(f"{name}_se" for name in _LINES), maker=OVER)
    style.need_dims(result["kl_output"], "layer", maker=OVER)
    several = "lens" in result.dims
    each = result if several else result.expand_dims(lens=[str(result.attrs.get("lens", ""))])
    titles = [str(result[name].attrs.get("long_name", name)).split(", ")[0] for name in _LINES]
    figure = make_subplots(
        2, 2, subplot_titles=[style.plain(title) for title in titles], vertical_spacing=0.16
    )
    for number, name in enumerate(_LINES):
        for place, label in enumerate(each["lens"].values):
            line = each[[name, f"{name}_se"]].sel(lens=label).dropna("layer", subset=[name])
            colour = _COLOURS[place % len(_COLOURS)]
            x, y, error = line["layer"].values, line[name].values, line[f"{name}_se"].values
            error = np.nan_to_num(error)
            band = go.Scatter(
                x=[*x, *x[::-1]], y=[*(y + error), *(y - error)[::-1]], fill="toself",
                fillcolor=colour, opacity=0.2, line_width=0, hoverinfo="skip", showlegend=False,
                legendgroup=str(label),
            )  # fmt: skip
            points = go.Scatter(
                x=x, y=y, customdata=error, mode="lines+markers", name=style.plain(str(label)),
                line_color=colour, legendgroup=str(label), showlegend=several and number == 0,
                hovertemplate="layer %{x}: %{y:.3f} ± %{customdata:.3f}<extra></extra>",
            )  # fmt: skip
            figure.add_trace(band, number // 2 + 1, number % 2 + 1)
            figure.add_trace(points, number // 2 + 1, number % 2 + 1)
    figure.update_xaxes(dtick=max(1, result.sizes["layer"] // 8))
    figure.update_xaxes(title="layer whose input is read", row=2)
    for number, name in enumerate(_LINES):
        unit = str(result[name].attrs.get("unit", ""))
        figure.update_yaxes(title=unit, rangemode="tozero", row=number // 2 + 1, col=number % 2 + 1)
    figure.update_annotations(font_size=12)
    note = "bands: one standard error over sequences"
    figure = style.finish(
        figure, "What layers say, over a corpus", result, note=note, height=620, width=820
    )
    return figure.update_layout(legend={"x": 0, "xanchor": "left", "y": -0.12, "yanchor": "top"})


def trajectory(
    result: xr.Dataset, pos: int = -1, *, prompt: int = 0, tokens: Sequence[str] | None = None
) -> go.Figure:
    """Probability of single tokens by layer, at one position.

    Args:
        result: What `lens.read` returns, of one lens.
        pos: Which position; negative ones count from the last that was read.
        prompt: Which of the texts.
        tokens: Which of the tokens that are among the likeliest in some layer, as they read; None
            for the final layer's likeliest ones and the target. In layers in which one is not among
            the likeliest, its probability is not known and the line has a gap.

    Raises:
        ValueError: As `lens`; no such position or token.

    Example:
        >>> from mlp_interp import lens as lenses, load_model
        >>> found = lenses.read(load_model("nano"), "The capital of France is", targets=" Paris")
        >>> [line.name for line in trajectory(found).data][0]
        'target'
    """
    one = _one(result, "top_logp", prompt)
    places = [n for n, token in enumerate(one["token"].values) if token != ""]
    if not -len(places) <= pos < len(places):
        raise ValueError(f"pos={pos}; wanted one from {-len(places)} to {len(places) - 1}")
    one = one.isel(pos=places[pos])
    top, logp = one["top_text"].values.astype(str), one["top_logp"].values
    named = list(tokens) if tokens is not None else list(dict.fromkeys(top[-1][:3]))
    lines = {}
    for name in ("target", "foil"):
        if f"logp_{name}" in one:
            lines[name] = np.exp(one[f"logp_{name}"].values)
    for token in named:
        if not (top == token).any():
            raise ValueError(
                f"tokens has {token!r}, which is among the {top.shape[1]} likeliest in no layer; "
                f"wanted one of {', '.join(map(repr, dict.fromkeys(top[::-1].ravel())))}"
            )
        found = np.where(top == token, logp, -np.inf).max(1)
        lines[visible(token)] = np.where(np.isfinite(found), np.exp(found), np.nan)
    figure = go.Figure()
    for number, (name, values) in enumerate(lines.items()):
        figure.add_scatter(
            x=one["layer"].values, y=values, name=name, mode="lines+markers",
            line_color=_COLOURS[number % len(_COLOURS)],
            hovertemplate="layer %{x}: %{y:.4f}<extra>" + name + "</extra>",
        )  # fmt: skip
    figure.update_xaxes(title="layer whose input is read", dtick=max(1, one.sizes["layer"] // 12))
    figure.update_yaxes(title="probability", range=[-0.02, 1.02])
    title = f"What layers say after {visible(str(one['token'].values))!r}"
    return style.finish(figure, title, one, height=380, width=640)


def _one(result: xr.Dataset, variable: str, prompt: int) -> xr.Dataset:
    """One text of a result of one lens."""
    style.need(result, variable, "top_text", "top_logp", "token", maker=READ)
    style.need_dims(result, "prompt", "layer", "pos", "rank", maker=READ)
    if "lens" in result.dims:
        names = ", ".join(repr(str(name)) for name in result["lens"].values)
        raise ValueError(f"result has the lenses {names}; wanted one, as result.sel(lens=...)")
    if not -result.sizes["prompt"] <= prompt < result.sizes["prompt"]:
        raise ValueError(f"prompt={prompt}; wanted one of {result.sizes['prompt']}, from 0")
    return result.isel(prompt=prompt)


def _cells(one: xr.Dataset) -> list[list[str]]:
    """The likeliest token of every cell, cut to what fits."""
    texts = one["top_text"].isel(rank=0).transpose("layer", "pos").values
    short = [[t if len(t) <= _LONGEST else t[: _LONGEST - 1] + "…" for t in row] for row in texts]
    return [[visible(str(token)) for token in row] for row in short]


def _hover(one: xr.Dataset) -> list[list[str]]:
    """What is shown where somebody points at a cell."""
    numbers = [name for name in ("kl_output", "kl_input", "entropy", "rank_output") if name in one]
    values = {name: one[name].transpose("layer", "pos").values for name in numbers}
    texts = one["top_text"].transpose("layer", "pos", "rank").values
    logp = one["top_logp"].transpose("layer", "pos", "rank").values
    tokens = one["token"].values

    def cell(row: int, column: int) -> str:
        likeliest = [
            f"{np.exp(p):.3f} {visible(str(token))}"
            for token, p in zip(texts[row, column], logp[row, column], strict=True)
        ]
        said = [f"{name} {values[name][row, column]:.4g}" for name in numbers]
        head = f"<b>layer {one['layer'].values[row]} after {visible(str(tokens[column]))}</b>"
        return "<br>".join([head, *likeliest, *said])

    rows, columns = one.sizes["layer"], one.sizes["pos"]
    return [[cell(row, column) for column in range(columns)] for row in range(rows)]


def _rank_ticks(shade: np.ndarray) -> dict:
    """Ticks of a colour bar that is drawn in powers of ten of the rank plus one."""
    if not np.isfinite(shade).any():
        return {}
    ticks = _decades(0.0, max(float(np.nanmax(shade)), 0.3))
    at = 10.0 ** np.asarray(ticks["tickvals"])
    return {"tickvals": ticks["tickvals"], "ticktext": [f"{x - 1:,.0f}" for x in at]}
