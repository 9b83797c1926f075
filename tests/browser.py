"""A headless Chromium for the tests that look at pages; they are skipped where there is none."""

import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
PROGRAM = next((path for name in NAMES if (path := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(
    PROGRAM is None, reason=f"no headless browser here (looked for {', '.join(NAMES)})"
)
# Every name resolves to nothing, so that a page that asks the network for something breaks.
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--virtual-time-budget=15000",
    "--enable-logging=stderr",
    "--host-resolver-rules=MAP * ~NOTFOUND",
]


def open_page(html: str, folder: Path) -> tuple[str, list[str]]:
    """The document after its scripts have run, and what it wrote to the browser's console."""
    page = folder / "page.html"
    page.write_text(html, encoding="utf-8")
    try:
        done = _run(page, folder / "profile")
    except subprocess.TimeoutExpired:  # on a busy machine a headless browser may hang at its start
        done = _run(page, folder / "second-profile")
    lines = done.stderr.splitlines()
    # A machine without a graphics card says so, and the browser's own pages without a network;
    # that is no fault of the page.
    others = ("WebGL", "source: chrome://")
    said = [line for line in lines if "CONSOLE" in line]
    return done.stdout, [line for line in said if not any(other in line for other in others)]


def _run(page: Path, profile: Path) -> subprocess.CompletedProcess[str]:
    command = [str(PROGRAM), *OPTIONS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
