"""The first screen in a real browser: the answer in images, on a desk and on a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
import yaml
from PIL import Image

from optbench.cli.report import main
from optbench.report import build_report
from optbench.report.goal import FOLDER
from optbench.storage import files
from optbench.storage.rundir import RunDir
from tests.builders.fabricated_sweep import Shape, cut_short, make_sweep
from tests.builders.viewer_page import chromium, needs_chromium

pytestmark = needs_chromium
NUM_SETTINGS = 8
DESK, PHONE = (1440, 900), (390, 844)
# What nobody may find in a copy that is shown to others.
SECRET = "taken at home"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def give_training_images(runs: list[RunDir], folder: Path, *, goal: bool | None = None) -> None:
    """Let runs have been trained on photos with EXIF; `goal`: report.goal, None for an old run."""
    folder.mkdir()
    for number in range(6):
        image = Image.new("RGB", (900, 600), (40 * number, 90, 160))
        exif = Image.Exif()
        exif[0x010E] = SECRET
        exif[0x0112] = 6  # turned by a quarter: shown 600 wide and 900 high
        image.save(folder / f"my name {number}.jpg", exif=exif)
    for run in runs:
        config = yaml.safe_load(run.config_path.read_text(encoding="utf-8"))
        config["dataset"] = {"dir": str(folder)}
        if goal is not None:
            config["report"] = {"goal": goal}
        files.write_atomic(run.config_path, yaml.safe_dump(config))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of eight settings: one diverged after its first epoch, one still runs."""
    sweep = tmp_path_factory.mktemp("runs") / "optimizer,network.dim"
    runs = make_sweep(sweep, Shape(num_optimizers=4))
    give_training_images(runs, sweep.parent / "data")
    command = {"num_cpus": 2, "command": ["-m", "optimizer=adamw,lion", "note=it's $(here)"]}
    for run in runs:
        files.write_json(run.provenance_path, command)
    cut_short(runs[0], epoch=1, status="diverged", reason="loss is nan in step 12\nmore")
    cut_short(runs[3], epoch=2, status="running")
    return build_report(sweep)


@pytest.fixture
def page(browser: Any, index: Path) -> Iterator[Any]:
    yield from opened(browser, index, DESK)


@pytest.fixture
def phone(browser: Any, index: Path) -> Iterator[Any]:
    yield from opened(browser, index, PHONE)


def opened(browser: Any, index: Path, size: tuple[int, int]) -> Iterator[Any]:
    width, height = size
    context = browser.new_context(viewport={"width": width, "height": height})
    page, faults = context.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda m: faults.append(m.text) if m.type in ("error", "warning") else None)
    page.goto(index.as_uri())
    yield page
    assert faults == []
    context.close()


def rows(page: Any) -> list[str]:
    return [" ".join(text.split()) for text in page.locator(".fs-row:visible").all_inner_texts()]


def top_of(page: Any, selector: str) -> float:
    box = page.locator(selector).first.bounding_box()
    assert box is not None
    return float(box["y"])


def test_the_first_screen_holds_verdict_goal_and_images(page: Any) -> None:
    assert page.locator("h1").inner_text().startswith("No winner yet: ")
    assert page.locator("#answer .chip").first.inner_text() == "hint only"
    assert top_of(page, ".fs-goal img") < 300
    inside = page.locator("#answer .fs-row img").evaluate_all(
        "(images) => images.filter((image) => image.naturalWidth > 0"
        " && image.getBoundingClientRect().bottom <= innerHeight).length"
    )
    assert inside >= 4 * 5  # goal and four settings


def test_a_phone_shows_the_goal_and_the_best_setting_at_once(phone: Any) -> None:
    assert top_of(phone, ".fs-goal img") < 500
    assert top_of(phone, ".fs-row:not(.fs-goal) img") < 700
    wide = phone.evaluate(
        "[...document.querySelectorAll('body *')].filter((part) =>"
        " part.getBoundingClientRect().right > innerWidth + 1"
        " && !part.closest('nav, .wide, #viewer'))"
        ".map((part) => part.outerHTML.slice(0, 90))"
    )
    assert wide == []


def test_the_best_come_first_and_what_failed_last_with_its_reason(page: Any) -> None:
    page.get_by_role("button", name=f"Show all {NUM_SETTINGS} settings").click()
    goal, *settings = rows(page)
    assert goal.startswith("goal")
    assert "leads" in settings[0]
    (failed,) = [row for row in settings if "diverged: loss is nan in step 12" in row]
    assert "failed" in failed
    assert "more" not in failed
    assert [row for row in settings if "running" in row]
    assert settings.index(failed) >= NUM_SETTINGS - 2
    words = [chip.inner_text() for chip in page.locator("#answer .fs-verdict .chip").all()]
    assert words == ["hint only", "1 of 8 runs to come", "1 run failed"]


def test_the_slider_shows_every_epoch_and_what_ended_earlier_keeps_its_last(page: Any) -> None:
    page.get_by_role("button", name="Show all").click()
    slider = page.locator("#fs-epoch")
    slider.focus()
    for _ in range(2):
        page.keyboard.press("ArrowLeft")
    assert page.locator("#answer output").inner_text() == "1 of 3"
    shots = page.locator("#answer [data-picture]")
    assert {shot.get_attribute("data-epoch") for shot in shots.all()} == {"1"}
    assert all("epoch-0001" in str(shot.get_attribute("href")) for shot in shots.all())
    page.keyboard.press("End")
    epochs = {shot.get_attribute("data-epoch") for shot in shots.all()}
    assert epochs == {"1", "2", "3"}
    older = page.locator("#answer a.older")
    assert {shot.get_attribute("data-epoch") for shot in older.all()} == {"1", "2"}
    sources = shots.locator("img").evaluate_all(
        "(images) => Promise.all(images.map((image) => image.decode().then(() => true)))"
    )
    assert all(sources)


def test_the_next_command_is_copied_as_it_runs(page: Any) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = page.locator(".fs-next .copy")
    button.click()
    page.get_by_text("Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == button.get_attribute("data-copy")
    assert """'note=it'"'"'s $(here)'""" in copied


def test_every_link_of_the_page_arrives(page: Any) -> None:
    links = page.locator("nav a, #answer a[href^='#']")
    for place in range(links.count()):
        page.evaluate("scrollTo(0, 0)")
        target = links.nth(place).get_attribute("href")
        links.nth(place).click()
        page.wait_for_timeout(150)
        top = top_of(page, str(target))
        is_end = page.evaluate("scrollY + innerHeight >= document.documentElement.scrollHeight - 2")
        assert is_end or 0 <= top <= 120, (target, top)


def test_the_navigation_follows_the_page(page: Any) -> None:
    anchors = [a.get_attribute("href")[1:] for a in page.locator("nav a").all()]
    assert anchors == [s.get_attribute("id") for s in page.locator("main > section").all()][1:]


def test_text_and_targets_are_large_enough_on_a_phone(phone: Any) -> None:
    small = phone.evaluate(
        "[...document.querySelectorAll('#answer *, nav *, .table-tools *')].filter((part) =>"
        " part.offsetParent && [...part.childNodes].some((node) => node.nodeType === 3"
        " && node.data.trim()) && parseFloat(getComputedStyle(part).fontSize) < 12)"
        ".map((part) => part.outerHTML.slice(0, 80))"
    )
    assert small == []
    low = phone.evaluate(
        "[...document.querySelectorAll('#answer button, #answer input, #answer .fs-verdict a,"
        " nav a')].filter((part) => part.offsetParent && part.getBoundingClientRect().height < 32)"
        ".map((part) => part.outerHTML.slice(0, 80))"
    )
    assert low == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE])
def test_axe_finds_nothing_serious(
    browser: Any, index: Path, scheme: str, size: tuple[int, int]
) -> None:
    source = Path(axe_playwright_python.__file__).with_name("axe.min.js")
    width, height = size
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.goto(index.as_uri())
    page.get_by_role("button", name="Show all").click()
    page.evaluate(f"{source.read_text(encoding='utf-8')};0")
    result = page.evaluate("axe.run(document)")
    assert "color-contrast" in [rule["id"] for rule in result["passes"]]
    serious = [
        (rule["id"], [node["html"][:120] for node in rule["nodes"][:3]])
        for rule in result["violations"]
        if rule["impact"] in ("serious", "critical")
    ]
    assert serious == []
    context.close()


def test_tables_group_seeds_filter_rows_and_hide_columns(browser: Any, tmp_path: Path) -> None:
    runs = make_sweep(tmp_path / "s", Shape(num_optimizers=3, dims=(8, 16, 32)))
    for run in runs:
        # The same setting with a second seed.
        again = tmp_path / "s" / f"{run.name}-seed2"
        shutil.copytree(run.path, again)
        config = yaml.safe_load((again / "config.yaml").read_text(encoding="utf-8"))
        files.write_atomic(again / "config.yaml", yaml.safe_dump(config | {"seed": 2}))
    for page in opened(browser, build_report(tmp_path / "s"), DESK):
        page.locator("nav a[href='#ranking']").click()  # far below nothing is laid out
        table = page.locator("#ranking table").first
        table.locator("tbody tr.group b").first.wait_for()
        body = table.locator("tbody tr:visible")
        assert body.count() == 9
        assert "mean of 2" in body.first.inner_text()
        body.first.locator("button").click()
        assert body.count() == 11
        tools = page.locator("#ranking .table-tools").first
        tools.get_by_label("one row per setting").uncheck()
        assert body.count() == 18
        tools.get_by_label("filter rows").fill("lion network.dim=16")
        assert body.count() == 2
        tools.get_by_text("Columns").click()
        head = table.locator("thead th:visible")
        before = head.count()
        tools.get_by_label("training time").uncheck()
        assert head.count() == before - 1


def test_copies_of_training_images_carry_nothing_but_pixels(index: Path) -> None:
    copies = sorted((index.parent / FOLDER).glob("*"))
    assert len(copies) == 4
    for copy in copies:
        content = copy.read_bytes()
        assert SECRET.encode() not in content
        assert "my name" not in copy.name
        with Image.open(copy) as image:
            assert not image.getexif()
            assert image.width < image.height  # as its camera held it
    assert "my name" not in index.read_text(encoding="utf-8")


def test_training_images_of_private_data_are_left_out(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path / "s", Shape())
    give_training_images(runs, tmp_path / "data", goal=True)
    index = build_report(tmp_path / "s")
    assert 'class="fs-row fs-goal"' in index.read_text(encoding="utf-8")
    config = yaml.safe_load(runs[0].config_path.read_text(encoding="utf-8"))
    config["report"] = {"goal": False}
    files.write_atomic(runs[0].config_path, yaml.safe_dump(config))
    build_report(tmp_path / "s")
    assert 'class="fs-row fs-goal"' not in index.read_text(encoding="utf-8")
    assert not list((index.parent / FOLDER).glob("*"))


def test_training_images_can_be_taken_out_of_a_report_later(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path / "s", Shape())
    give_training_images(runs, tmp_path / "data")
    index = build_report(tmp_path / "s")
    assert list((index.parent / FOLDER).glob("*"))
    assert main([str(tmp_path / "s"), "--no-goal"]) == 0
    build_report(tmp_path / "s")
    assert 'class="fs-row fs-goal"' not in index.read_text(encoding="utf-8")
    assert not list((index.parent / FOLDER).glob("*"))


@pytest.mark.parametrize("shape", [{"num_optimizers": 1, "dims": (8,)}, {"seeds": ()}])
def test_one_run_and_runs_without_images_have_a_first_screen(
    browser: Any, tmp_path: Path, shape: dict[str, Any]
) -> None:
    make_sweep(tmp_path / "s", Shape(**shape))
    for page in opened(browser, build_report(tmp_path / "s"), DESK):
        num_rows = 1 if "dims" in shape else 4
        assert page.locator(".fs-row").count() == num_rows
        assert (page.locator(".fs-row img").count() > 0) == ("dims" in shape)
        heading = page.locator("h1").inner_text()
        assert heading.startswith("One setting has finished" if num_rows == 1 else "No winner yet")
