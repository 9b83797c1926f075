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
    command = [PROGRAM, *OPTIONS, f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [*command, page.as_uri()], capture_output=True, text=True, timeout=60, check=True
    )
    lines = done.stderr.splitlines()
    # A machine without a graphics card says so; that is no fault of the page.
    return done.stdout, [line for line in lines if "CONSOLE" in line and "WebGL" not in line]
