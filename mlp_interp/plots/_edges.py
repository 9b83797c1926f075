"""The strongest edges of a model as a graph, drawn from the embedding up to the logits."""

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from mlp_interp.models import indices
from mlp_interp.plots import _style as style
from mlp_interp.sites import Site

MAKER = "circuits.edge_attribution"
INPUTS = {"q": -9, "k": 0, "v": 9}  # pixels beside a head's middle where its inputs are entered
RADIUS = 13  # of a node, in pixels, with some overlap
WIDTH = 1100  # of a figure, in pixels, as far as this module can know
STEPS = 9  # points of an edge that answer to the mouse


def edges(scores: xr.DataArray | xr.Dataset, *, top: int = 30) -> go.Figure:
    """The `top` strongest edges between components, either sign.

    Layers go up, heads stand side by side with the MLP to their right; embedding below, logits
    above. Blue edges point toward clean, red ones away from it, and width is in proportion to size.
    Edges into a head end at its left, middle or right: queries, keys, values. Dots are components
    without a strong edge.

    Args:
        scores: Scores by ``sender`` and ``receiver``, averaged over prompts if they have them; or
            what `circuits.edge_attribution` returns. Labels are those of components (``embed``,
            ``L0H3``, ``2.mlp``), and of inputs (``L3H1.q``, ``3.mlp``, ``logits``). NaN marks pairs
            without an edge.
        top: How many edges to draw.

    Returns:
        The graph; edges tell their score when pointed at.

    Raises:
        ValueError: The scores lack those dimensions or have no finite value that is not 0, a label
            names no component, or `top` is less than 1.

    Example:
        >>> import xarray as xr
        >>> scores = xr.DataArray(
        ...     [[1.0, 0.2], [float("nan"), -2.0]],
        ...     coords={"sender": ["embed", "0.mlp"], "receiver": ["L0H1.v", "logits"]},
        ...     dims=("sender", "receiver"),
        ... )
        >>> edges(scores, top=2).layout.title.text
        'The 2 strongest of 3 edges'
    """
    indices.count("top", top)
    values = _values(scores)
    size = np.nan_to_num(np.abs(values.values.astype(float)), nan=0.0, posinf=0.0, neginf=0.0)
    order = np.argsort(-size.ravel(), kind="stable")[:top]
    chosen = [np.unravel_index(i, size.shape) for i in order if size.ravel()[i] > 0]
    if not chosen:
        raise ValueError("scores hold no finite value that is not 0; there is no edge to draw")
    senders = [_Node.parse(str(label)) for label in values["sender"].values]
    receivers = [_Node.parse(str(label)) for label in values["receiver"].values]
    place = _Places.of([*senders, *receivers])
    unit = style.unit_of(values, scores if isinstance(scores, xr.Dataset) else None)
    largest = float(size.max())
    figure, joined = go.Figure(), {}
    for i, j in reversed(chosen):  # the strongest last, on top of the others
        value = float(values.values[i, j])
        _draw(figure, place, senders[i], receivers[j], value, largest, unit)
        joined[senders[i].label] = senders[i]
        joined[receivers[j].label] = receivers[j]
    _nodes(figure, place, [*senders, *receivers], joined)
    ticks = [place.bottom, *place.layers, place.top]
    figure.update_xaxes(visible=False, range=place.width)
    figure.update_yaxes(
        tickmode="array", tickvals=ticks, zeroline=False, title="layer",
        ticktext=["embed", *map(str, place.layers), "logits"],
        range=[place.bottom - 0.4, place.top + 0.4],
    )  # fmt: skip
    count = int(np.isfinite(values.values).sum())
    title = f"The {len(chosen)} strongest of {count:,} edges"
    prompts = scores.sizes.get("prompt", 1)
    title += f", mean of {prompts} prompts" if prompts > 1 else ""
    figure = style.finish(figure, title, scores, showlegend=False, hovermode="closest")
    return figure.update_layout(height=110 + place.height, margin_b=30)


@dataclass(frozen=True)
class _Node:
    """A component or an input of one: a head's inputs belong to the head."""

    label: str
    kind: str
    layer: int
    head: int
    entry: str = ""

    @classmethod
    def parse(cls, label: str) -> "_Node":
        """Read the label of a sender or a receiver."""
        if label == "logits":
            return cls(label, "logits", -1, -1)
        site = Site.parse(label)
        if site.head is not None:
            owner = Site("z", site.layer, head=site.head).label
            entry = "" if site.name == "z" else site.name
            return cls(owner, "head", int(site.layer or 0), site.head, entry)
        if site.layer is None:
            return cls(label, "embed", -1, -1)
        return cls(label, "attn" if site.kind == "attn" else "mlp", site.layer, -1)


@dataclass(frozen=True)
class _Places:
    """Where nodes stand: heads by their number, what is no head to the right of them."""

    layers: list[int]
    heads: int

    @classmethod
    def of(cls, nodes: list[_Node]) -> "_Places":
        """Room for all of these."""
        layers = [node.layer for node in nodes if node.layer >= 0]
        heads = max((node.head for node in nodes), default=-1) + 1
        return cls(list(range(max(layers, default=-1) + 1)), heads)

    @property
    def bottom(self) -> int:
        """Where the embedding stands."""
        return -1

    @property
    def top(self) -> int:
        """Where the logits stand."""
        return len(self.layers)

    @property
    def width(self) -> list[float]:
        """Ends of the axis across."""
        return [-0.8, self.heads + 0.8]

    @property
    def height(self) -> int:
        """Pixels of the drawing."""
        return min(max(90 * (len(self.layers) + 2), 320), 1000)

    def beside(self, pixels: int) -> float:
        """So many pixels across, in units of the axis."""
        return pixels * (self.width[1] - self.width[0]) / WIDTH

    def above(self, pixels: int) -> float:
        """So many pixels up, in units of the axis."""
        return pixels * (len(self.layers) + 1.8) / self.height

    def at(self, node: _Node) -> tuple[float, float]:
        """The middle of a node."""
        if node.kind in ("embed", "logits"):
            return self.heads / 2, float(self.bottom if node.kind == "embed" else self.top)
        return float(node.head if node.kind == "head" else self.heads), float(node.layer)


def _values(scores: xr.DataArray | xr.Dataset) -> xr.DataArray:
    if isinstance(scores, xr.Dataset):
        style.need(scores, "estimate", maker=MAKER)
        values = scores["estimate"]
    else:
        values = scores
    style.need_dims(values, "sender", "receiver", maker=MAKER)
    others = [dim for dim in values.dims if dim not in ("sender", "receiver")]
    kept = values.attrs
    values = values.mean(others) if others else values
    return values.transpose("sender", "receiver").assign_attrs(kept)


def _curve(start: tuple[float, float], end: tuple[float, float], *, straight: bool) -> np.ndarray:
    """Points from start to end. Edges that skip layers bend, so as not to hide behind nodes."""
    t = np.linspace(0, 1, 25)[:, None]
    a, b = np.array(start), np.array(end)
    rise = b[1] - a[1]
    bend = 0.0 if straight else 0.18 * min(abs(rise), 4) * (1 if a[0] >= b[0] else -1)
    first = a + np.array([bend, rise / 3])
    second = b + np.array([bend, -rise / 3])
    return (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * first + 3 * (1 - t) * t**2 * second + t**3 * b


def _draw(
    figure: go.Figure,
    place: _Places,
    sender: _Node,
    receiver: _Node,
    value: float,
    largest: float,
    unit: str,
) -> None:
    start, end = place.at(sender), place.at(receiver)
    away = place.above(RADIUS)
    entry = (end[0] + place.beside(INPUTS.get(receiver.entry, 0)), end[1] - away)
    points = _curve((start[0], start[1] + away), entry, straight=end[1] - start[1] <= 1)
    share = abs(value) / largest
    colour = style.POSITIVE if value >= 0 else style.NEGATIVE
    figure.add_scatter(
        x=points[:, 0], y=points[:, 1], mode="lines", hoverinfo="skip",
        line={"color": colour, "width": 1.2 + 6 * share}, opacity=0.45 + 0.45 * share,
    )  # fmt: skip
    into = f"{receiver.label}{'.' if receiver.entry else ''}{receiver.entry}"
    some = points[np.linspace(2, len(points) - 3, STEPS).round().astype(int)]
    figure.add_scatter(
        x=some[:, 0], y=some[:, 1], mode="markers", marker={"size": 12, "color": colour},
        opacity=0, text=[f"<b>{sender.label} → {into}</b>"] * STEPS, customdata=[value] * STEPS,
        hovertemplate="%{text}<br>%{customdata:+.4g} " + unit + "<extra></extra>",
    )  # fmt: skip


def _nodes(figure: go.Figure, place: _Places, nodes: list[_Node], joined: dict[str, _Node]) -> None:
    others = {node.label: node for node in nodes if node.label not in joined}
    if others:
        spots = [place.at(node) for node in others.values()]
        figure.add_scatter(
            x=[x for x, _ in spots], y=[y for _, y in spots], mode="markers", text=list(others),
            marker={"size": 5, "color": style.GREY, "opacity": 0.4},
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    spots = [place.at(node) for node in joined.values()]
    figure.add_scatter(
        x=[x for x, _ in spots], y=[y for _, y in spots], mode="markers+text", text=list(joined),
        textfont={"size": [10 if len(name) <= 4 else 8 for name in joined], "color": "#222222"},
        hoverinfo="skip",
        marker={
            "size": 30, "symbol": "circle", "line": {"width": 1.5, "color": [
                style.KIND_COLOURS.get(node.kind, style.GREY) for node in joined.values()
            ]}, "color": "white",
        },
    )  # fmt: skip
