"""An induction circuit as a drawing, each step with the numbers that speak for it."""

from html import escape

import xarray as xr

from mlp_interp.views._neuron import Page
from mlp_interp.views._page import FIT, STYLE
from mlp_interp.views.document import POLICY
from mlp_interp.views.numbers import number, percent

__all__ = ["circuit"]

_WANTED = ("previous", "compose_z", "match", "copying", "score", "score_share", "strength")
_LOOK = """
.mlp-circuit svg { width: 100%; max-width: 520px; height: auto; font: 15px system-ui, sans-serif; }
.mlp-circuit .stream { stroke: #c3cad2; stroke-width: 2; }
.mlp-circuit .path { stroke: #2166ac; stroke-width: 2.5; fill: none; marker-end: url(#tip); }
.mlp-circuit .token, .mlp-circuit .head { stroke: #777; fill: #f6f7f9; }
.mlp-circuit .head { stroke: #2166ac; fill: #e3eef8; }
.mlp-circuit .step { fill: #2166ac; } .mlp-circuit .number { fill: white; font-weight: 600; }
.mlp-circuit text { text-anchor: middle; dominant-baseline: central; }
.mlp-circuit ol { padding-left: 24px; max-width: 80ch; }
.mlp-circuit .wide { overflow-x: auto; }
.mlp-circuit table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.mlp-circuit th { text-align: right; vertical-align: bottom; border-bottom: 1px solid #999; }
.mlp-circuit th, .mlp-circuit td { padding: 3px 8px; font-weight: normal; }
.mlp-circuit td { text-align: right; border-bottom: 1px solid #ddd; }
.mlp-circuit [scope=row] { text-align: left; white-space: nowrap; border-bottom: 1px solid #ddd; }
"""
_COLUMNS = (
    ("previous", "attention to the token before"),
    ("compose_z", "composition (sd over chance)"),
    ("match", "match"),
    ("copying", "copying"),
    ("score", "attention on texts"),
    ("expected", "without a repetition"),
    ("score_share", "share through the first head"),
)
_TOKENS = ((55, "A"), (175, "B"), (275, "…"), (375, "A"))


def circuit(result: xr.Dataset, name: str | None = None) -> Page:
    """How an induction circuit works: the two heads, who reads what, and the evidence.

    The token A came before, and B after it. Where B stands, the first head attends to the token
    before and writes that it was A. Where A comes again, the second head looks for a key that says
    so, finds it at B, and copies B: what came after A the last time is said again. Below the
    drawing stand the numbers of each step, beside chance, and all circuits that were found.

    Args:
        result: What `mlp_interp.heads.induction` returns.
        name: Which circuit, as ``"L0H0 → L1H3"``; None for the first one, with the largest
            composition beyond chance.

    Returns:
        A page that works offline; it shows itself in Jupyter, and ``save`` keeps it.

    Raises:
        ValueError: It is no such Dataset, holds no circuit, or not this one.

    Example:
        >>> from mlp_interp import load_model
        >>> from mlp_interp.heads import induction
        >>> circuit(induction(load_model("nano"), n=2), "L0H0 → L1H3")
        Page('induction circuit L0H0 → L1H3 of nano')
    """
    missing = [x for x in _WANTED if x not in getattr(result, "variables", ())]
    if missing or "circuit" not in result.dims:
        raise ValueError(
            f"result lacks {', '.join(missing or ['circuit'])}; wanted what heads.induction returns"
        )
    listed = [str(x) for x in result["circuit"].values]
    if not listed:
        raise ValueError("result holds no circuit: heads.induction found none in this model")
    if name is not None and name not in listed:
        raise ValueError(f"name={name!r}; wanted one of {', '.join(map(repr, listed))}")
    one = result.isel(circuit=0 if name is None else listed.index(name))
    attrs = result.attrs
    title = f"induction circuit {one['circuit'].item()} of {attrs.get('model', 'a model')}"
    said = [str(attrs[key]) for key in ("processing", "data") if key in attrs]
    if attrs.get("approximation"):
        said.append(f"not exact: {attrs['approximation']}")
    body = (
        f'<figure class="mlp-circuit"><p><b>{escape(title)}</b> ({one["strength"].item()})</p>'
        f"{_drawing(one)}<ol>{''.join(f'<li>{step}</li>' for step in _steps(one))}</ol>"
        f'<div class="wide">{_table(result)}</div>'
        f"<figcaption>{escape('; '.join(said))}</figcaption></figure>"
    )
    document = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{STYLE}{_LOOK}</style></head><body>"
        f"{body}<script>{FIT}</script></body></html>"
    )
    return Page(title, document)


def _steps(one: xr.Dataset) -> list[str]:
    """What each numbered step says, with its numbers."""
    first, second = (escape(str(one[x].item())) for x in ("writer", "reader"))
    x = {key: number(one[key]) for key in ("compose_z", "match", "match_null", "copying")}
    copied = f"{x['copying']} (chance 0 ± {number(one['copying_null'])})"
    lost = number(one["knockout"], one["knockout_se"])
    return [
        f"By position alone {first} pays {percent(one['previous'])} of its attention to the token "
        "before, and writes which it was.",
        f"The keys of {second} read what {first} writes: composition is {x['compose_z']} standard "
        "deviations over chance.",
        f"Its query looks for its own token there: match {x['match']} (chance 0 ± "
        f"{x['match_null']}). On texts it pays {percent(one['score'], one['score_se'])} of its "
        f"attention to that place ({percent(one['expected'])} without a repetition), and "
        f"{percent(one['score_share'])} of this preference come through {first}.",
        f"It copies the token that it attends to: {copied}. With {first}'s part of its keys cut, "
        f"the loss on repeated tokens rises by {lost} nats; heads that do the same stand in.",
    ]


def _table(result: xr.Dataset) -> str:
    """All circuits."""
    heads = "".join(f'<th scope="col">{escape(said)}</th>' for _, said in _COLUMNS)
    rows = []
    for i, label in enumerate(result["circuit"].values):
        one = result.isel(circuit=i)
        cells = "".join(f"<td>{number(one[key])}</td>" for key, _ in _COLUMNS)
        named = f'<th scope="row">{escape(str(label))}</th>'
        rows.append(f"<tr>{named}{cells}<td>{escape(str(one['strength'].item()))}</td></tr>")
    return (
        f'<table><thead><tr><th scope="col"></th>{heads}<th scope="col"></th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _drawing(one: xr.Dataset) -> str:
    """Streams as lines upwards, heads on them, paths between, with the numbers of the steps."""
    first, second = (escape(str(one[x].item())) for x in ("writer", "reader"))
    streams = "".join(
        f'<line class="stream" x1="{x}" x2="{x}" y1="290" y2="52"/>'
        f'<rect class="token" x="{x - 22}" y="290" width="44" height="30" rx="5"/>'
        f'<text x="{x}" y="305">{text}</text>'
        for x, text in _TOKENS
    )
    paths = (
        '<path class="path" d="M 55 262 C 80 225 110 215 134 215"/>'
        '<path class="path" d="M 175 200 C 175 120 250 120 334 120"/>'
        '<path class="path" d="M 375 290 L 375 140"/><path class="path" d="M 375 105 L 375 52"/>'
    )
    boxes = "".join(
        f'<rect class="head" x="{x - 38}" y="{y - 16}" width="76" height="32" rx="6"/>'
        f'<text x="{x}" y="{y}">{label}</text>'
        for x, y, label in ((175, 215, first), (375, 120, second))
    )
    steps = "".join(
        f'<circle class="step" cx="{x}" cy="{y}" r="11"/>'
        f'<text class="number" x="{x}" y="{y}">{n}</text>'
        for n, (x, y) in enumerate(((88, 228), (222, 133), (375, 215), (375, 80)), start=1)
    )
    answer = (
        '<rect class="token" x="353" y="20" width="44" height="30" rx="5"/>'
        '<text x="375" y="35">B</text>'
    )
    tip = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" '
        'markerHeight="6" orient="auto"><path d="M 0 0 L 8 4 L 0 8 z" fill="#2166ac"/></marker>'
        "</defs>"
    )
    about = f"{first} at B reads the A before it; {second} at the next A finds that key, copies B"
    return (
        f'<svg viewBox="0 0 430 330" role="img" aria-label="{about}">'
        f"{tip}{streams}{paths}{boxes}{steps}{answer}</svg>"
    )
