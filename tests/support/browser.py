"""The browser of the tests that look at a page."""

from __future__ import annotations

import os
import shutil

import pytest


def chromium() -> str:
    """The path of a Chromium; without one the test is skipped, but never in CI."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found:
        return found
    if os.environ.get("CI"):
        pytest.fail("There is no Chromium: apt-get install chromium.")
    pytest.skip("There is no Chromium here; with it (apt-get install chromium) these tests run.")
