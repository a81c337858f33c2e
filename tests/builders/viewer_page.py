"""A report in a real Chromium, from file://, that notes every request, error and message."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here: apt-get install --no-install-recommends chromium"
)


@contextmanager
def chromium() -> Iterator[Any]:
    """Give a browser of the system's own; close it at the end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Root, as on a build machine, may not use the sandbox; the pages are our own files.
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def wait_until(page: Any, condition: str) -> None:
    """Wait for a condition in a page whose policy forbids polling inside it."""
    for _ in range(300):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"not within 15 s: {condition}")


class Viewer:
    """One open report."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.requests: list[str] = []
        self.faults: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("dialog", lambda dialog: self.faults.append(f"a dialog: {dialog.message}"))
        page.on("console", self.note)

    def note(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(message.text)

    def open(self, index: Path, hash: str = "") -> Viewer:
        self.page.goto(index.as_uri() + hash)
        self.page.locator(".vg-cell").first.wait_for()
        # Small copies are loaded once they come near, and what stands above may be long.
        self.page.locator("#viewer").evaluate(
            "(viewer) => viewer.scrollIntoView({ behavior: 'instant' })"
        )
        return self

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def cells(self) -> list[str]:
        """Return what every cell in the document says: a picture's words, or why there is none."""
        found: list[str] = self.page.evaluate(
            "[...document.querySelectorAll('.vg-cell')].map((cell) => {"
            " const image = cell.querySelector('img');"
            " return image ? image.alt : cell.innerText; })"
        )
        return found

    def selected(self) -> str:
        cell = self.page.locator('.vg-cell[aria-selected="true"]')
        image = cell.locator("img")
        return str(image.get_attribute("alt") if image.count() else cell.inner_text())

    def hash(self) -> str:
        """Return the address's end once it has come to rest."""
        self.page.wait_for_timeout(200)
        return str(self.page.evaluate("decodeURIComponent(location.hash)"))

    def rows(self) -> list[str]:
        return [text.split("\n")[0] for text in self.page.locator(".vg-rowhead").all_inner_texts()]


def download(viewer: Viewer, button: str, folder: Path) -> str:
    with viewer.page.expect_download() as waiting:
        viewer.page.get_by_role("button", name=button).click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path.read_text(encoding="utf-8")
