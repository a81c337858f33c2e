"""The report while a sweep trains: when it is built again, what that may cost, what a page does."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from optbench.cli import live
from optbench.cli.live import SHARE, Budget, Rebuilder, live_report, sweep_state
from optbench.report import build_report
from optbench.report.built import building
from optbench.storage import rundir
from tests.builders.fabricated_sweep import Shape, make_sweep
from tests.builders.viewer_page import Viewer, chromium, needs_chromium


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "demo"
    make_sweep(folder, Shape(num_optimizers=1, dims=(4,)))
    return folder


# What it costs


@pytest.mark.parametrize("cost", [0.5, 2.0, 40.0])
@pytest.mark.parametrize("epoch_seconds", [1.0, 15.0, 120.0])
def test_all_builds_together_stay_below_their_share_of_the_time(
    cost: float, epoch_seconds: float
) -> None:
    budget, num_epochs = Budget(begun=0.0), 200
    now = 0.0
    for _ in range(num_epochs):
        now += epoch_seconds
        if budget.allows(now):
            budget.charge(cost)
        if budget.num_builds > 1:
            assert budget.spent <= SHARE * now
    # And it is no excuse: what fits into the share is built.
    if cost <= SHARE * now:
        assert budget.num_builds >= min(num_epochs, SHARE * now / cost) - 2


def test_every_epoch_is_built_where_an_epoch_takes_long_enough() -> None:
    budget = Budget(begun=0.0)
    for epoch in range(1, 20):
        assert budget.allows(epoch * 120.0)
        budget.charge(2.0)


# What is news


def test_a_status_an_epoch_and_an_image_are_news_and_a_heartbeat_is_not(sweep: Path) -> None:
    (run_dir,) = (path for path in sweep.iterdir() if path.is_dir())
    run = rundir.RunDir(run_dir)
    state = sweep_state(sweep)
    assert sweep_state(sweep) == state
    os.utime(run.status_path)
    assert sweep_state(sweep) == state
    rundir.write_status(run_dir, "done")
    after_status = sweep_state(sweep)
    assert after_status != state
    with run.epochs_path.open("a") as file:
        file.write("{}\n")
    after_epoch = sweep_state(sweep)
    assert after_epoch != after_status
    (run.images_dir(1) / "new.png").write_bytes(b"")
    assert sweep_state(sweep) != after_epoch


# Building


def test_a_build_is_counted_and_a_fault_is_said_once(
    sweep: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rebuilder = Rebuilder(sweep)
    rebuilder.build()
    assert "live" in (sweep / "report" / "built.js").read_text()
    assert rebuilder.budget.num_builds == 1
    assert rebuilder.budget.last_cost > 0
    assert capfd.readouterr().err == ""
    shutil.rmtree(sweep)
    for _ in range(2):
        rebuilder.build()
    said = capfd.readouterr().err
    assert said.count("The report is not up to date (the runs go on)") == 1
    assert rebuilder.budget.num_builds == 3


def test_nothing_is_built_while_another_process_builds(sweep: Path) -> None:
    report_dir = sweep / "report"
    with building(report_dir, waits=True) as is_ours:
        assert is_ours
        build_report(sweep, is_live=True)
        assert not (report_dir / "index.html").exists()
    build_report(sweep, is_live=True)
    assert (report_dir / "index.html").exists()


def test_the_context_ends_a_build_under_way_and_leaves_no_thread(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_FIRST_SECONDS", 0.0)
    with live_report(sweep, ()):
        deadline = time.monotonic() + 60
        while not (sweep / "report" / "building.lock").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    with building(sweep / "report", waits=False) as is_ours:
        assert is_ours


def test_an_error_of_a_run_passes_and_the_page_waits_before_the_first_build(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = sweep / "report" / "index.html"

    def train() -> None:
        with live_report(sweep, ()):
            assert "The sweep has started" in page.read_text()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert page.as_uri() in capsys.readouterr().err


# The page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def open_page(browser: Any, index: Path) -> Viewer:
    viewer = Viewer(browser.new_context(viewport={"width": 1200, "height": 700}).new_page())
    # A page of the test asks more often than one of a person.
    viewer.page.add_init_script(
        "const every = window.setInterval; window.setInterval = (act) => every(act, 100);"
    )
    return viewer.open(index)


def is_new(viewer: Viewer, old: str) -> bool:
    for _ in range(100):
        viewer.page.wait_for_timeout(50)
        try:
            mark = viewer.page.locator('meta[name="optbench-build"]').get_attribute("content")
        except Exception:  # noqa: BLE001 - it is loading
            continue
        if mark != old:
            return True
    return False


def build_of(viewer: Viewer) -> str:
    return str(viewer.page.locator('meta[name="optbench-build"]').get_attribute("content"))


@needs_chromium
def test_an_open_page_shows_the_next_build_and_stays_where_it_is(browser: Any, sweep: Path) -> None:
    index = build_report(sweep, is_live=True)
    viewer = open_page(browser, index)
    page, before = viewer.page, build_of(viewer)
    page.locator(".live").wait_for()
    page.evaluate("document.getElementById('pictures').scrollIntoView()")
    page.evaluate("window.scrollBy(0, 37)")
    top = page.evaluate("document.getElementById('pictures').getBoundingClientRect().top")
    page.wait_for_timeout(300)
    build_report(sweep, is_live=True)
    assert is_new(viewer, before)
    page.locator(".vg-cell").first.wait_for()
    page.wait_for_timeout(300)
    after = page.evaluate("document.getElementById('pictures').getBoundingClientRect().top")
    assert abs(after - top) < 2
    assert viewer.faults == []


@needs_chromium
def test_nobody_is_interrupted_in_a_dialog_and_the_last_build_ends_it(
    browser: Any, sweep: Path
) -> None:
    index = build_report(sweep, is_live=True)
    viewer = open_page(browser, index)
    page, before = viewer.page, build_of(viewer)
    page.locator(".vg-cell").first.click()
    page.keyboard.press("?")
    page.locator("dialog[open]").wait_for()
    build_report(sweep)
    page.locator(".live", has_text="New results").wait_for()
    page.wait_for_timeout(500)
    assert build_of(viewer) == before
    page.keyboard.press("Escape")
    assert is_new(viewer, before)
    page.locator(".vg-cell").first.wait_for()
    page.wait_for_timeout(300)
    assert page.locator(".live").count() == 0
    num_asked = sum("built.js" in url for url in viewer.requests)
    page.wait_for_timeout(500)
    assert sum("built.js" in url for url in viewer.requests) == num_asked
    assert viewer.faults == []
