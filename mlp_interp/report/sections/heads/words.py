"""What heads do, in sentences, numbers and for the page's template."""

from typing import Any

import numpy as np
import xarray as xr

from mlp_interp import plots
from mlp_interp.report.figure import WIDE, Drawing, drawing
from mlp_interp.report.format import number, with_error
from mlp_interp.report.sections.heads.compute import TEXTS, HeadRoles

__all__ = ["numbers", "sentences", "shown"]

NAMED = 6
"""Circuits that a sentence names."""

_PATHS = {
    "embed": "the embedding alone",
    "embed+0.mlp": "the embedding with block 0's MLP and what its heads add to every token",
}


def shown(found: HeadRoles) -> dict[str, Any]:
    """What the template takes."""
    return {
        "heading": "What do the heads do?",
        "intro": "",
        "texts": TEXTS,
        "maps": _maps(found),
        "circuits": _circuits(found.induction),
        "pairs": _pairs(found.pairs),
        "paths": _paths(found.bigrams),
    }


def sentences(found: HeadRoles) -> list[str]:
    """Which circuits there are, and what heads are for beside them."""
    told = [_induction(found.induction)] if found.induction is not None else []
    if found.roles is not None:
        told.append(_of_weights(found.roles))
    return told


def numbers(found: HeadRoles) -> dict[str, Any]:
    """The tables of the section."""
    return {
        "circuits": _circuits(found.induction),
        "compositions": _pairs(found.pairs),
        "losses": {row["path"]: row["loss"] for row in _paths(found.bigrams)},
    }


def _maps(found: HeadRoles) -> Drawing | None:
    """By layer and head: two things that weights say, one that texts do."""
    if found.roles is None:
        return None
    roles = found.roles
    columns = [name for name in ("previous", "copying") if not roles[name].isnull().all()]
    if found.attention is not None:
        on_texts = found.attention["score"].sel(kind="induction", drop=True)
        roles, columns = roles.assign(induction=on_texts), [*columns, "induction"]
    return drawing(plots.roles(roles, columns=columns), width=WIDE) if columns else None


def _induction(found: xr.Dataset) -> str:
    strong = found.isel(circuit=(found["strength"] == "strong").values)
    names = [str(name) for name in strong["circuit"].values]
    if not names:
        weak = found.sizes["circuit"]
        also = f", though weights alone would say so of {weak}" if weak else ""
        return f"No pair of heads is an induction circuit that texts confirm{also}."
    first = strong.isel(circuit=0)
    listed = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" * (len(names) > NAMED))
    return (
        f"Induction circuits: {listed}. Where a token comes again, {first['reader'].item()} pays "
        f"{with_error(float(first['score']), float(first['score_se']))} of its attention to what "
        f"followed it before, and {number(float(first['expected']))} without a repetition."
    )


def _of_weights(roles: xr.Dataset) -> str:
    """How many heads copy or suppress, beyond what their spectra would do anywhere."""
    copying, null = roles["copying"], 3 * roles["copying_null"]
    more, less, size = int((copying > null).sum()), int((copying < -null).sum()), copying.size
    text = f"By their weights, {more} of {size} heads raise the tokens that they attend to, and "
    text += f"{less} lower them."
    previous = roles["previous"].values
    if np.isfinite(previous).any():
        most = roles["component"].values.ravel()[int(np.nanargmax(previous))]
        text += (
            f" {most} looks most at the previous token, whatever the tokens are "
            f"({number(float(np.nanmax(previous)))} of its attention)."
        )
    return text


def _circuits(found: xr.Dataset | None) -> list[dict[str, Any]]:
    if found is None:
        return []
    names = ("compose_z", "match", "copying", "score", "expected", "score_share", "knockout")
    return [
        {"circuit": str(label), "strength": str(one["strength"].item())}
        | {name: float(one[name]) for name in names}
        for label in found["circuit"].values[: 2 * NAMED]
        for one in [found.sel(circuit=label)]
    ]


def _pairs(found: xr.Dataset | None) -> list[dict[str, Any]]:
    if found is None:
        return []
    return [
        {"writer": str(w), "reader": str(r), "z": float(z), "score": float(score)}
        for w, r, z, score in zip(
            *(found[name].values for name in ("writer", "reader", "z", "score")), strict=True
        )
    ]


def _paths(found: xr.Dataset | None) -> list[dict[str, Any]]:
    """What predicts from a token, and its loss, the worst first."""
    if found is None:
        return []
    rows = [
        (_PATHS[str(path)], float(loss), float(error))
        for path, loss, error in zip(
            *(found[name].values for name in ("path", "loss", "loss_se")), strict=True
        )
    ]
    for name, what in (("unigram", "how often each token comes"), ("bigram", "what follows it")):
        loss, error = (float(found[f"{name}_loss{end}"]) for end in ("", "_se"))
        rows.append((f"counts in this text: {what}", loss, error))
    rows.sort(key=lambda row: -row[1])
    return [{"path": p, "loss": loss, "shown": with_error(loss, e)} for p, loss, e in rows]
