"""The explorer as a page by itself: all answers that it can be asked for are in it."""

from dataclasses import replace
from html import escape
from importlib import resources
from typing import Any

from mlp_interp.explorer.reading import Asked, Reading
from mlp_interp.views.bundle import to_json
from mlp_interp.views.document import POLICY, without_controls

__all__ = ["document", "source", "style"]

# Stands in for Python: it looks up what it is asked for.
_KNOWN = """
const held = JSON.parse(document.getElementById("held").textContent);
const model = {
  on(_, hear) { this.hear = hear; },
  send({ id, ask, position, answer, unit }) {
    const at = position ?? held.start[0];
    const key = `${at}|${answer ?? held.likeliest[at]}`;
    const found = unit ? held.units[`${key}|${unit}`] ?? null : null;
    const said = { first: { text: held.text, map: held.maps[held.start.join("|")] },
      map: { map: held.maps[key], unit: found }, unit: { unit: found } }[ask];
    setTimeout(() => this.hear({ ...said, id }));
  },
};
render({ model, el: document.getElementById("explorer") });
"""


def source() -> str:
    """The script that draws the explorer: a function ``render({model, el})``."""
    return _file("explorer.js")


def style() -> str:
    """How it looks."""
    return _file("explorer.css")


def _file(name: str) -> str:
    return resources.files("mlp_interp.explorer").joinpath(name).read_text(encoding="utf-8")


def document(reading: Reading, prompt: str, asked: Asked, positions: list[int], fit: str) -> str:
    """A complete document that asks no server for anything.

    Args:
        reading: The prompt that was run.
        prompt: As it is shown.
        asked: What is shown first.
        positions: Whose predictions can be looked at, with all that adds to them.
        fit: A script that fits the frame the page is in.
    """
    data = to_json(_held(reading, prompt, asked, positions))
    return without_controls(
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(prompt[:80])}</title><style>body {{ margin: 0; }}{style()}</style></head>"
        '<body><div id="explorer"></div>'
        f'<script type="application/json" id="held">{data}</script>'
        f"<script>{source()}{_KNOWN}{fit}</script></body></html>"
    )


def _held(reading: Reading, prompt: str, asked: Asked, positions: list[int]) -> dict[str, Any]:
    maps, units = {}, {}
    every = dict.fromkeys([asked, *(_likeliest(reading, at, asked.foil) for at in positions)])
    for one in every:
        key = f"{one.position}|{one.answer}"
        maps[key] = reading.map(one)
        for found in _units(reading, one):
            units[f"{key}|{found['unit']}"] = found
    return {
        "text": {
            **reading.text(prompt),
            "live": False,
            "positions": positions,
            "held": [f"{one.position}|{one.answer}" for one in every],
        },
        "start": [asked.position, asked.answer],
        "likeliest": {one.position: one.answer for one in reversed(every)},
        "maps": maps,
        "units": units,
    }


def _likeliest(reading: Reading, position: int, foil: int | None) -> Asked:
    asked = reading.asked(position)
    return asked if foil == asked.answer else replace(asked, foil=foil)


def _units(reading: Reading, asked: Asked) -> list[dict[str, Any]]:
    """All units of the map, and the neurons that are named by one of them."""
    labels = [
        f"L{layer}{column}" if column.startswith("H") else f"{layer}.{column}"
        for layer in range(reading.weights.n_layers)
        for column in reading.columns
    ]
    found = reading.units(asked, labels)
    neurons = [x["unit"] for one in found for x in one.get("neurons", ())]
    return found + (reading.units(asked, neurons) if neurons else [])
