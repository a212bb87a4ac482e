"""The Chromium that is on this machine."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

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


def shows(page: Page, address: str, login: str, text: str = "") -> bool:
    """Open a page of Prefect, and say whether it shows the text.

    Where it asks for the password, as it does again on a slow server, use the login link.
    """
    page.goto(address)
    page.wait_for_load_state("networkidle")
    if "/login" not in page.url and (not text or appears(page, text)):
        return True
    page.goto(login)
    page.wait_for_url("**/v2/dashboard**")
    return False


def appears(page: Page, text: str) -> bool:
    """Whether the text is there before long, on a page that may go to its login instead."""
    try:
        expect(page.get_by_text(text, exact=True).first).to_be_visible(timeout=SLOWEST_MS // 4)
    except AssertionError:
        return False
    return True
