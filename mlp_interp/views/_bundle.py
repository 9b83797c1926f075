"""JavaScript that travels inside a page: packed small, unpacked by the browser, never fetched."""

import base64
import gzip
from functools import cache
from importlib import resources

# Unpacks `<script type="text/plain" id=…>` and runs it. DecompressionStream is in every browser
# since May 2023; packing makes a page three and a half times smaller.
UNPACK = """
async function runPacked(id) {
  const packed = document.getElementById(id).textContent;
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


def pack(source: str) -> str:
    """Text, gzipped and in base64: safe inside a script element, whatever the text holds."""
    return base64.b64encode(gzip.compress(source.encode(), mtime=0)).decode()


@cache
def circuitsvis() -> str:
    """The packed bundle that circuitsvis ships (read from its files: importing it loads torch)."""
    folder = resources.files("circuitsvis")
    source = folder.joinpath("dist", "cdn", "iife.js").read_text(encoding="utf-8")
    # The map is for debugging the bundle, and no page of ours comes with it.
    return pack(source.replace("//# sourceMappingURL=iife.js.map", ""))
