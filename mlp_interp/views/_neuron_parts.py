"""What the page of a neuron shows, as plain texts and numbers for its template."""

import math
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from markupsafe import Markup

from mlp_interp.views._page import NEGATIVE, POSITIVE
from mlp_interp.views.bundle import script_safe
from mlp_interp.views.numbers import number, percent

BINS = 60
HEIGHT = 320
_LOSSES = {
    "delta_loss": "loss (nats per token)",
    "kl": "KL (nats)",
    "promoted": "log-probability of promoted tokens (nats)",
}
_WEIGHTS = {
    "receptor_norm_folded": "receptor norm",
    "value_norm_folded": "value vector norm",
    "bias_folded": "bias",
    "cosine_folded": "cosine of the two",
    "encoder_norm": "encoder norm",
    "decoder_norm": "decoder norm",
    "encoder_bias": "bias",
    "encoder_cosine": "cosine of the two",
}
_POSITIONS = {"all": "all", "firing": "where it fires"}
_BANDS = ["fires, lower half", "fires, next 40%", "fires, next 9%", "fires, top 1%"]


def sentences(page: xr.Dataset) -> list[str]:
    """What it does, at a glance."""
    positions = int(page.attrs["positions"])
    share = percent(page["fraction"], page["fraction_se"])
    fires = f"It fires at {share} of {positions:,} positions."
    total = page["effect"].sel(path="total"), page["effect_se"].sel(path="total")

    def lost(measure: str, where: str) -> str:
        return number(*(x.sel(measure=measure, where=where) for x in total))

    without = (
        f"Without it the loss rises by {lost('delta_loss', 'all')} nats per token, and where it "
        f"fires by {lost('delta_loss', 'firing')}; KL {lost('kl', 'all')}, where it fires "
        f"{lost('kl', 'firing')} nats."
    )
    return [fires, without if float(page["fraction"]) else "It fires nowhere in this text."]


def weights(page: xr.Dataset) -> list[tuple[str, str]]:
    """Norms, angles, bias."""
    said = [(about, number(page[name])) for name, about in _WEIGHTS.items() if name in page]
    if "activation_volume" in page:
        said.append(("would fire in", f"{percent(page['activation_volume'])} of all directions"))
    return [
        *said,
        ("mean activation", number(page["mean"][-1])),
        ("largest", number(page["greatest"][-1])),
    ]


def strongest(page: xr.Dataset, limit: float) -> list[dict[str, Any]]:
    """The largest activations."""
    return [
        _example(page, "top", {"example": i}, limit) for i in range(page.sizes.get("example", 0))
    ]


def bands(page: xr.Dataset, limit: float) -> list[dict[str, Any]]:
    """Examples of each band, the strongest band first."""
    found = []
    for band in reversed(range(page.sizes["band"])):
        count = int(page["band_count"][band])
        low, high = (float(page[name][band]) for name in ("band_low", "band_high"))
        if band == 0:
            name, between = "does not fire", ""
        else:
            # Bands that would begin alike are one.
            whole = page.sizes["band"] == len(_BANDS) + 1
            name = _BANDS[band - 1] if whole else "fires"
            upper = f" to {number(high)}" if math.isfinite(high) else " and more"
            between = f"activation {number(max(0.0, low) if low > 1e-20 else 0.0)}{upper}, "
        drawn = [
            _example(page, "band", {"band": band, "draw": i}, limit)
            for i in range(page.sizes["draw"])
            if int(page["band_sequence"][band, i]) >= 0
        ]
        said = f"{between}{count:,} positions"
        found.append({"name": name, "count": said, "examples": drawn})
    return found


def _example(page: xr.Dataset, prefix: str, at: dict[str, int], limit: float) -> dict[str, Any]:
    texts, around = (page[f"{prefix}_{name}"].isel(at).values for name in ("text", "around"))
    tokens = [
        {
            "text": str(text),
            "here": int(offset) == 0,
            "colour": _colour(float(value), limit),
            "title": f"{float(value):.3f}",
        }
        for text, value, offset in zip(texts, around, page["context"].values, strict=True)
        if text != ""
    ]
    activation = round(float(page[f"{prefix}_activation"].isel(at)), 2) + 0.0  # no minus zero
    return {"activation": f"{activation:.2f}".replace("-", "−"), "tokens": tokens}


def _colour(value: float, limit: float) -> str:
    if not math.isfinite(value):
        return "transparent"
    red, green, blue = (
        int((POSITIVE if value > 0 else NEGATIVE)[i : i + 2], 16) for i in (1, 3, 5)
    )
    return f"rgba({red}, {green}, {blue}, {0.7 * min(1.0, abs(value) / limit):.3f})"


def words(page: xr.Dataset, name: str) -> list[dict[str, Any]]:
    """Tokens that it promotes or suppresses."""
    logits, direct = page[f"{name}_logit"].values, page[f"{name}_direct"].values
    largest = max(float(abs(page[f"{kind}_logit"]).max()) for kind in ("promoted", "suppressed"))
    return [
        {
            "text": str(text),
            "logit": number(logit, sign=True),
            "share": f"{100 * abs(float(logit)) / (largest or 1.0):.1f}",
            "sign": "up" if logit > 0 else "down",
            "direct": number(added, sign=True),
        }
        for text, logit, added in zip(page[f"{name}_text"].values, logits, direct, strict=True)
    ]


def ablation(page: xr.Dataset) -> list[dict[str, Any]]:
    """One row for each measure and set of positions."""
    return [
        {
            "name": _LOSSES[measure],
            "where": _POSITIONS[where],
            "cells": [
                number(
                    *(
                        page[name].sel(measure=measure, where=where, path=path)
                        for name in ("effect", "effect_se")
                    )
                )
                for path in ("direct", "later", "total")
            ],
        }
        for measure in _LOSSES
        for where in _POSITIONS
    ]


def similar(page: xr.Dataset) -> list[dict[str, Any]]:
    """The nearest neurons by what they write and by what they read."""
    captions = {"value": "They write nearly the same", "receptor": "They read nearly the same"}
    return [
        {
            "caption": caption,
            "rows": [
                {
                    "label": str(page["similar"].sel(by=by)[i].item()),
                    **{
                        kind: number(page[f"similar_{kind}_cosine"].sel(by=by)[i], sign=True)
                        for kind in captions
                    },
                }
                for i in range(page.sizes["rank"])
            ],
        }
        for by, caption in captions.items()
    ]


def figure(page: xr.Dataset) -> dict[str, Any]:
    """Histogram of what decides if it fires, in bins of equal width, one of which begins at zero.

    Of a latent that is its activation; positions where it is not active are not drawn.
    """
    edges, shares = histogram(page)
    middle, width = (edges[1:] + edges[:-1]) / 2, float(edges[1] - edges[0])
    drawn = go.Figure()
    for name, chosen, colour in (
        ("does not fire", middle < 0, "#8a8f98"),
        ("fires", middle > 0, "#db7b00"),
    ):
        drawn.add_bar(
            x=middle[chosen],
            y=shares[chosen],
            width=width,
            name=name,
            marker_color=colour,
            hovertemplate="%{x:.3g}: %{y:.2%}<extra></extra>",
        )
    drawn.update_layout(
        height=HEIGHT,
        bargap=0,
        margin={"l": 70, "r": 20, "t": 20, "b": 50},
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"},
        xaxis_title="activation" if is_latent(page) else "pre-activation",
        yaxis={"title": "share of positions", "type": "log", "tickformat": "~%", "nticks": 6},
    )
    return {"json": Markup(script_safe(str(drawn.to_json()))), "height": HEIGHT}


def histogram(page: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Edges of equal distance, one of them zero, and the share of positions between them.

    The bins of the result are spread evenly over those of the page.
    """
    here = page.isel(site=0)
    counts, positions = here["histogram"].values.astype(float), float(here["histogram"].sum())
    if is_latent(page):
        counts = np.where(page["bin_low"].values > 0, counts, 0.0)
    least, greatest = float(here["least"]), float(here["greatest"])
    width = (greatest - least) / BINS or 1.0
    edges = width * np.arange(math.floor(least / width), math.floor(greatest / width) + 2)
    known = np.append(page["bin_low"].values, np.inf).clip(least, greatest)
    total = np.concatenate([[0.0], counts.cumsum()])
    below = np.interp(edges, known, total, left=0.0, right=total[-1])
    return edges, np.diff(below) / max(1.0, positions)


def is_latent(page: xr.Dataset) -> bool:
    """Whether it is the page of a latent of a dictionary."""
    return "latent" in page.coords
