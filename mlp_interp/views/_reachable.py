"""Sets of tokens, what keeps them from leading by more, and where texts come near them."""

from dataclasses import dataclass
from html import escape

import numpy as np
import xarray as xr

from mlp_interp.prompts.display import visible
from mlp_interp.views._compare import Comparison
from mlp_interp.views.numbers import number, percent

__all__ = ["reachable"]

_WANTED = ("reachable", "lower", "upper", "weight", "weight_id", "token_text", "violator_id")
_SAID = {1: "can be on top", 0: "cannot be on top", -1: "not decided"}
_LOOK = """<style>
.mlp-compare .mlp-token { background: #0000000d; border-radius: 3px; padding: 0 2px;
  display: inline-block; margin-right: 4px; }
.mlp-compare .mlp-token small { display: inline; }
.mlp-compare td div + div { margin-top: 6px; }
</style>"""


@dataclass(frozen=True)
class _Sets(Comparison):
    def __repr__(self) -> str:
        return f"Sets({self.rows} sets of tokens)"


def reachable(
    found: xr.Dataset, nearest: xr.Dataset | None = None, *, caption: str = ""
) -> Comparison:
    """Each set of tokens with its lead, the rivals in its way, and the texts that come nearest.

    Rivals stand with their weight in the proof that no stream has a larger lead. Of the nearest
    streams it shows the end of the text, the cosine with the set's own stream, and by how much the
    set leads there: negative, where others are above it.

    Args:
        found: What `reach.reachable` returns.
        nearest: What `reach.nearest_streams` returns for it; None leaves texts out.
        caption: One sentence to put below.

    Returns:
        A table with a row for each set.

    Raises:
        ValueError: They are no such Datasets, or of several numbers of sets.

    Example:
        >>> from mlp_interp import load_model, reach
        >>> reachable(reach.reachable(load_model("nano"), [" Paris", " London"]))
        Sets(1 sets of tokens)
    """
    _check(found, nearest)
    size = found.sizes["set"]
    rows = "".join(_row(found, nearest, n) for n in range(size))
    head = "<th>tokens</th><th>in their way</th>"
    order = " in this order" if found.attrs.get("ordered") else ""
    said = [f"Whether these tokens{order} can be the likeliest ones of {found.attrs['model']}."]
    said.append("Percentages: each rival's weight in the proof of the largest lead.")
    if nearest is not None:
        head += "<th>nearest streams of texts</th>"
        by_chance = nearest["random"].values
        if by_chance.size:
            spread = float(by_chance.std(ddof=1)) if by_chance.size > 1 else float("nan")
            chance = number(by_chance.mean(), spread)
            said.append(f"Directions drawn at random come as near as a cosine of {chance}.")
    below = escape(" ".join([*said, caption]).strip())
    body = f"{_LOOK}<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return _Sets(f"{body}<figcaption>{below}</figcaption>", size)


def _check(found: xr.Dataset, nearest: xr.Dataset | None) -> None:
    if any(name not in getattr(found, "variables", ()) for name in _WANTED):
        raise ValueError(f"found={type(found).__name__}; wanted the Dataset of reach.reachable")
    if nearest is None:
        return
    if any(n not in getattr(nearest, "variables", ()) for n in ("cosine", "lead", "context")):
        raise ValueError(
            f"nearest={type(nearest).__name__}; wanted the Dataset of reach.nearest_streams"
        )
    if nearest.sizes["set"] != found.sizes["set"]:
        raise ValueError(
            f"nearest has {nearest.sizes['set']} sets and found has {found.sizes['set']}; wanted "
            "as many"
        )


def _row(found: xr.Dataset, nearest: xr.Dataset | None, n: int) -> str:
    one = found.isel(set=n)
    verdict = int(one["reachable"])
    bound = one["lower" if verdict == 1 else "upper"]
    lead = f"{_SAID[verdict]}; lead {'up to ' if verdict != 1 else ''}{number(bound)} logits"
    tokens = "".join(_token(text) for text in one["token_text"].values)
    cells = [f"<td>{tokens}<small>{escape(lead)}</small></td>", f"<td>{_rivals(one)}</td>"]
    if nearest is not None:
        near = nearest.isel(set=n)
        texts = "".join(_text(near.isel(near=m)) for m in range(near.sizes["near"]))
        cells.append(f"<td>{texts}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def _token(text: object, weight: str = "") -> str:
    small = f" <small>{weight}</small>" if weight else ""
    return f'<span class="mlp-token">{escape(visible(str(text)))}{small}</span>'


def _rivals(one: xr.Dataset) -> str:
    """The rivals with the largest weights; none where nothing was proven."""
    weights = dict(zip(one["weight_id"].values.tolist(), one["weight"].values, strict=True))
    ids, texts = one["violator_id"].values, one["violator_text"].values
    total = sum(w for token, w in weights.items() if token >= 0 and np.isfinite(w))
    own = sum(weights.get(token, 0.0) for token in one["token_id"].values.tolist())
    rest = total - own
    shown = [
        _token(text, percent(weights[token] / rest))
        for token, text in zip(ids.tolist(), texts, strict=True)
        if token >= 0
    ]
    return "".join(shown) or "–"


def _text(one: xr.Dataset) -> str:
    end = f"cosine {number(one['cosine'])}, lead {number(one['lead'], sign=True)} logits"
    return f"<div>…{escape(visible(str(one['context'].item())))}<small>{escape(end)}</small></div>"
