"""The Chromium that is on this machine."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

SLOWEST_MS = 60_000  # for a page on a machine that is busy; its own 5 s are of an idle one
FOUND = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def browser(*options: str) -> Iterator[Browser]:
    """Starts it without a window; skips the test where there is none."""
    if FOUND is None:
        pytest.skip("no Chromium here; apt-get install chromium, as .ci/run does")
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=FOUND, args=["--no-sandbox", *options])
        expect.set_options(timeout=SLOWEST_MS)
        yield chromium
        chromium.close()
