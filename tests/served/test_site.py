"""The built documentation in a real headless Chromium, at the width of a desk and of a telephone, in both themes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright
from support.browser import chromium
from support.places import ROOT

CUT_OFF = """() => {
  const found = [];
  const scrolls = (part) => {
    for (let at = part; at && !at.classList.contains("md-content"); at = at.parentElement)
      if (/auto|scroll/.test(getComputedStyle(at).overflowX)) return true;
    return false;
  };
  if (document.documentElement.scrollWidth > innerWidth) found.push("the page scrolls sideways");
  for (const table of document.querySelectorAll(".md-content table, .md-content pre"))
    if (table.getBoundingClientRect().right > innerWidth && !scrolls(table)) found.push(table.innerText.slice(0, 40));
  for (const image of document.querySelectorAll(".md-content img"))
    if (!image.complete || !image.naturalWidth) found.push(image.src);
  return found;
}"""
"""What of a page cannot be read: wider than the window without a bar to scroll by, or an image that is not there."""
IS_DARK = "() => getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] < 128"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield running
        running.close()


WIDE = ("comparison", "operations", "performance", "commands", "errors", "proxy", "readme")
"""The pages with the widest tables and lines of code, which are all that is looked at on a desk."""


@pytest.mark.parametrize("on", ["a desk", "a telephone"])
def test_every_page_can_be_read_whole(site: Path, address: str, browser: Browser, on: str) -> None:
    if on == "a desk":
        page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    else:
        page = browser.new_page(viewport={"width": 400, "height": 900}, color_scheme="dark")
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    names = [each.parent.relative_to(site).as_posix() for each in site.rglob("index.html")]
    assert {"security", "deploy", "changelog", "contributing", "errors", "runbooks"} <= set(names)
    cut = {}
    for name in WIDE if on == "a desk" else names:
        page.goto(f"{address}/{name}/")
        page.wait_for_function("() => !document.querySelector('.md-content table:not(.md-typeset__table table)')")
        if found := page.evaluate(CUT_OFF):
            cut[name] = found
    dark = page.evaluate(IS_DARK)
    page.close()
    assert cut == {}
    assert said == []
    assert dark == (on == "a telephone")
