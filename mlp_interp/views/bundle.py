"""What a page needs to draw views by itself: the packed JavaScript, and data it cannot trip over.

JavaScript travels inside the page, packed small and unpacked by the browser; nothing is fetched.
"""

import base64
import gzip
import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

# Unpacks `<script type="text/plain" id=…>` and runs it. DecompressionStream is in every browser
# since May 2023; packing makes a page three and a half times smaller.
UNPACK = """
async function runPacked(id) {
  return runText(document.getElementById(id).textContent || await borrowed("mlp-interp-" + id));
}
// The script may be in the page around a frame (`views.share`), where the frame may be drawn first.
async function borrowed(id) {
  for (let tries = 0; tries < 40; tries++) {
    const held = parent.document.getElementById(id);
    if (held) return held.textContent;
    await new Promise((done) => setTimeout(done, 250));
  }
  document.body.append("To draw this, run the cell with mi.views.share() again, above.");
  throw new Error("no script to draw with");
}
async function runText(packed) {
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}
"""

# Mounts every view below `root`. The bundle wants an id, so each place to draw in gets one here.
MOUNT = """
let viewCount = 0;
function mountViews(root) {
  for (const data of root.querySelectorAll("script.mlp-view-data:not([data-done])")) {
    data.dataset.done = "yes";
    const place = data.previousElementSibling;
    place.id = "mlp-view-" + viewCount++;
    const component = CircuitsVis[data.parentElement.dataset.view];
    CircuitsVis.render(place.id, component, JSON.parse(data.textContent));
  }
}
"""

# Colours the tokens of every `Choice` below `root` by the values that are chosen.
CHOOSE = """
function wireChoices(root) {
  for (const place of root.querySelectorAll(".choice")) {
    const held = JSON.parse(place.querySelector("script").textContent), { values, unit } = held;
    const select = place.querySelector("select"), legend = place.querySelector(".legend");
    const tokens = place.querySelectorAll(".token");
    const paint = () => {
      const row = values[select ? select.selectedIndex : 0];
      const limit = held.limit ?? (Math.max(...row.map(Math.abs)) || 1);
      const signed = row.some((value) => value < 0);
      if (legend) {
        const [least, ramp, most] = legend.children;
        ramp.classList.toggle("positive", !signed);
        least.textContent = signed ? "−" + limit.toPrecision(3) : "0";
        most.textContent = (signed ? "+" : "") + limit.toPrecision(3);
      }
      tokens.forEach((token, at) => {
        const hue = row[at] < 0 ? "178, 24, 43" : "33, 102, 172";
        const share = Math.min(1, Math.abs(row[at]) / limit);
        token.style.background = `rgba(${hue}, ${0.7 * share})`;
        token.title = `${row[at]} ${unit}`;
      });
    };
    if (select) select.onchange = paint;
    paint();
  }
}
"""


def pack(source: str) -> str:
    """Text, gzipped and in base64: safe inside a script element, whatever the text holds."""
    return base64.b64encode(gzip.compress(source.encode(), mtime=0)).decode()


@cache
def circuitsvis() -> str:
    """The packed bundle that circuitsvis ships; found without importing it, which loads torch."""
    spec = find_spec("circuitsvis")
    folder = Path((spec.submodule_search_locations or [""])[0] if spec else "")
    source = (folder / "dist" / "cdn" / "iife.js").read_text(encoding="utf-8")
    # The map is for debugging the bundle, and no page of ours comes with it.
    return pack(source.replace("//# sourceMappingURL=iife.js.map", ""))


@cache
def plotly() -> str:
    """The packed script of plotly."""
    return pack(get_plotlyjs())


def to_json(value: Any) -> str:
    """JSON that cannot end, or change the meaning of, the script element around it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return script_safe(text)


def script_safe(json_text: str) -> str:
    """The same JSON with every letter escaped that HTML, or old JavaScript, could stumble over."""
    # "</script>", "<!--" and entities need the first three; the last two once ended a line.
    for letter in "<>&\u2028\u2029":
        json_text = json_text.replace(letter, f"\\u{ord(letter):04x}")
    return json_text
