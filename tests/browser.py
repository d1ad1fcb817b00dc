"""The browser of the tests: Chromium, driven by playwright."""

import random
import shutil
from contextlib import contextmanager

import pytest
from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
# Chromium's sandbox is not to be had in most containers, and their /dev/shm is small.
OPTIONS = "--no-sandbox --disable-gpu --disable-dev-shm-usage --disable-background-networking --no-first-run"
TIMEOUT = 900_000  # milliseconds: not how long it should take, but how long a busy machine might


@contextmanager
def chromium():
    """The browser without its window; skips the test where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium on this machine")
    before = random.getstate()  # playwright draws from it
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=OPTIONS.split(), timeout=TIMEOUT)
        yield browser
        browser.close()
    random.setstate(before)
