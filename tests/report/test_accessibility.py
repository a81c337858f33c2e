"""Everybody can use viewer, large image, comparing and voting: axe-core, sizes, words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest

from optbench.report import build_report
from optbench.report.vote_page import vote_page
from tests.builders.fabricated_sweep import Shape, make_sweep
from tests.builders.viewer_page import Viewer, chromium, needs_chromium

pytestmark = needs_chromium

_AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text()
_DESK, _PHONE = (1440, 900), (390, 844)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sweep = tmp_path_factory.mktemp("runs") / "demo"
    make_sweep(sweep, Shape(num_epochs=2, train_seeds=(1, 2)))
    path = build_report(sweep)
    (path.parent / "vote.html").write_text(vote_page(sweep))
    return path


def open_large(viewer: Viewer) -> None:
    viewer.page.locator(".vg-cell").nth(5).click()
    viewer.page.locator(".vc-info h3").wait_for()


def compare(viewer: Viewer) -> None:
    viewer.page.locator(".vg-cell").nth(5).focus()
    viewer.press("ArrowDown", "x", "ArrowRight", "x", "v")
    viewer.page.locator(".vl-differences").wait_for()


def vote(viewer: Viewer) -> None:
    viewer.page.get_by_role("button", name="Vote for two minutes").click()
    for _ in range(2):
        viewer.page.locator(".vb-pair[data-ready]").wait_for()
        viewer.press("ArrowLeft")
    viewer.page.locator(".vb-pair[data-ready]").wait_for()


def finish(viewer: Viewer) -> None:
    vote(viewer)
    viewer.press("Escape")


def menu(name: str) -> Callable[[Viewer], None]:
    return lambda viewer: viewer.page.locator(".vw-menu summary", has_text=name).click()


STATES = {
    "table": lambda _: None,
    "large": open_large,
    "compared": compare,
    "vote": vote,
    "end of a vote": finish,
    "view": menu("View"),
    "measures": menu("Measures"),
    "filter": menu("Filter"),
}


@pytest.fixture(
    params=[
        (_DESK, "light"),
        (_DESK, "dark"),
        (_PHONE, "light"),
        pytest.param((_PHONE, "dark"), marks=pytest.mark.slow),
    ]
)
def viewer(request: pytest.FixtureRequest, browser: Any, index: Path) -> Iterator[Viewer]:
    (width, height), scheme = request.param
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    yield Viewer(context.new_page()).open(index)
    context.close()


@pytest.mark.parametrize("state", STATES)
def test_everybody_can_use_it(viewer: Viewer, state: str) -> None:
    STATES[state](viewer)
    assert serious(viewer.page) == []
    place = "dialog[open]" if viewer.page.locator("dialog[open]").count() else "#viewer"
    sizes = viewer.page.evaluate(
        """(place) => [...document.querySelectorAll(
          `${place} :is(button, select, summary, input:not([type=checkbox], [type=file]))`
        )].filter((one) => one.type !== "radio").map((one) => [one, one.getBoundingClientRect()])
          .filter(([one, box]) => box.width > 0 && one.checkVisibility())
          .map(([one, box]) => [
            Math.round(box.width), Math.round(box.height), one.outerHTML.slice(0, 80)])
          .filter(([width, height]) => width < 32 || height < 32)""",
        place,
    )
    assert sizes == []
    letters = viewer.page.evaluate(
        """(place) => [...document.querySelectorAll(`${place} *`)]
          .filter((one) => one.checkVisibility() && [...one.childNodes].some(
            (node) => node.nodeType === 3 && node.textContent.trim()))
          .map((one) => [parseFloat(getComputedStyle(one).fontSize), one.outerHTML.slice(0, 80)])
          .filter(([size]) => size < 12)""",
        place,
    )
    assert letters == []
    outside = viewer.page.evaluate(
        """(place) => [...document.querySelectorAll(`${place} *`)]
          .filter((one) => one.checkVisibility() && !one.closest(".vg, .wide"))
          .filter((one) => one.getBoundingClientRect().right > innerWidth + 1)
          .map((one) => one.outerHTML.slice(0, 80))""",
        place,
    )
    assert outside == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_for_others_votes_too(browser: Any, index: Path, scheme: str) -> None:
    context = browser.new_context(
        viewport={"width": _PHONE[0], "height": _PHONE[1]}, color_scheme=scheme
    )
    viewer = Viewer(context.new_page())
    viewer.page.goto((index.parent / "vote.html").as_uri())
    assert serious(viewer.page) == []
    vote(viewer)
    assert serious(viewer.page) == []
    context.close()


def serious(page: Any) -> list[str]:
    """Return what axe-core calls serious or worse, with the element that it is about."""
    page.evaluate(f"{_AXE};0")
    result = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [
        f"{violation['id']}: {node['html'][:160]} {node['failureSummary'][:200]}"
        for violation in result["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]
