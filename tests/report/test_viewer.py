"""The viewer in a real browser: keys, address, comparing, filters, scores, hostile words."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from optbench.records import Cell
from optbench.report import build_report
from tests.builders.fabricated_sweep import SEEDS, Shape, cut_short, make_sweep
from tests.builders.viewer_page import Viewer, chromium, download, needs_chromium, wait_until

pytestmark = needs_chromium

HOSTILE = '<img src=x onerror="alert(1)">\'&<script>alert(2)</script>'
RTL = "\u202eevil \u05e9\u05dc\u05d5\u05dd"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A half-finished sweep of 2 optimizers and 2 dims: one diverged, one was killed."""
    sweep = tmp_path_factory.mktemp("runs") / "optimizer,network.dim"
    runs = make_sweep(sweep, Shape())
    cut_short(runs[2], epoch=1, status="diverged", reason="loss is nan in step 12")
    cut_short(runs[3], epoch=2, status="interrupted")
    damaged = Cell(prompt="b", width=64, height=96, seed=SEEDS[1], epoch=3)
    runs[0].image_path(damaged).write_bytes(b"no picture")
    return build_report(sweep)


@pytest.fixture
def viewer(browser: Any, index: Path) -> Iterator[Viewer]:
    context = browser.new_context(viewport={"width": 1500, "height": 1300})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    viewer = Viewer(context.new_page()).open(index)
    yield viewer
    assert viewer.faults == []
    context.close()


def view(viewer: Viewer, name: str) -> None:
    """Choose a ready-made view."""
    viewer.page.locator(".vw-menu summary", has_text="View").click()
    viewer.page.get_by_role("button", name=name).click()
    viewer.press("Escape")


def select(viewer: Viewer, place: int) -> None:
    """Select a cell as the keyboard does: a click opens its image too."""
    viewer.page.locator(".vg-cell").nth(place).click()
    viewer.press("Escape")


def test_text_that_became_a_script_does_not_run_nor_send(browser: Any, index: Path) -> None:
    """The second line behind the escaping: the page's Content-Security-Policy."""
    hostile = (
        "<script>window.ran = 'inline'</script><img src=x onerror=\"window.ran = 'handler'\">"
        "<img src='http://192.0.2.1/leak.png'>"
    )
    page = index.with_name("hostile.html")
    text = index.read_text().replace("<main>", f"<main>{hostile}")
    page.write_text(text)
    context = browser.new_context()
    viewer = Viewer(context.new_page())
    refused: list[tuple[str, str]] = []
    viewer.page.on("requestfailed", lambda request: refused.append((request.url, request.failure)))
    viewer.open(page)
    assert viewer.page.evaluate("window.ran") is None
    assert ("http://192.0.2.1/leak.png", "csp") in refused
    # Without the policy both of them run: the test can fail.
    start = text.index('<meta http-equiv="Content-Security-Policy"')
    page.write_text(text[:start] + text[text.index("\n", start) :])
    bare = Viewer(context.new_page()).open(page)
    assert bare.page.evaluate("window.ran") is not None
    context.close()
    page.unlink()


def test_it_opens_from_disk_and_asks_for_nothing_else(viewer: Viewer, index: Path) -> None:
    viewer.page.wait_for_load_state("load")
    sweep = index.parent.parent.as_uri()
    assert len(viewer.requests) > 5
    assert [url for url in viewer.requests if not url.startswith(f"{sweep}/")] == []
    assert not [url for url in viewer.requests if "/images/" in url], "full pictures on demand only"


def test_every_cell_has_its_picture_or_its_reason(viewer: Viewer) -> None:
    cells = viewer.cells()
    assert len(cells) == 5 * 4
    assert cells[0] == "base, no LoRA, prompt a, seed 112233"
    assert cells[4] == "adamw network.dim=4, epoch 3, prompt a, seed 112233"
    assert cells[7].split("\n")[1:] == ["damaged", "the image cannot be read"]
    assert cells[12].split("\n")[1:] == ["diverged", "loss is nan in step 12"]
    assert cells[16].split("\n")[1] == "interrupted"


def test_the_keyboard_reaches_everything(viewer: Viewer) -> None:
    viewer.page.locator(".vg-cell").first.focus()
    viewer.press("ArrowDown", "ArrowRight")
    assert viewer.selected() == "adamw network.dim=4, epoch 3, prompt a, seed 101011111212"
    viewer.press("Control+Home", "ArrowDown", "End", "Home", ",")
    assert viewer.selected() == "adamw network.dim=4, epoch 2, prompt a, seed 112233"
    assert viewer.page.evaluate("document.activeElement.getAttribute('role')") == "gridcell"
    assert viewer.page.locator('.vg-cell[tabindex="0"]').count() == 1, "one stop of the Tab key"
    viewer.press("?")
    assert viewer.page.locator("dialog[open]").inner_text().startswith("Keys")
    viewer.press("Escape", "/")
    assert viewer.page.evaluate("document.activeElement.type") == "search"


def test_the_address_keeps_what_is_shown_and_back_goes_back(viewer: Viewer, index: Path) -> None:
    viewer.page.get_by_label("Rows").select_option("set.optimizer")
    viewer.page.get_by_label("Columns").select_option("set.network.dim")
    assert viewer.rows() == ["base, no LoRA", "adamw", "lion"]
    viewer.page.get_by_label("epoch", exact=True).first.focus()
    viewer.press("ArrowLeft", "ArrowLeft")
    assert viewer.cells()[2] == "adamw network.dim=4, epoch 1, prompt a, seed 112233"
    address = viewer.page.url

    viewer.page.reload()
    assert viewer.rows() == ["base, no LoRA", "adamw", "lion"]
    assert viewer.cells()[2] == "adamw network.dim=4, epoch 1, prompt a, seed 112233"

    view(viewer, "runs x epochs")
    assert viewer.rows()[1] == "adamw network.dim=4"
    viewer.page.go_back()
    assert viewer.page.url == address
    assert viewer.rows() == ["base, no LoRA", "adamw", "lion"]


def test_dragging_the_slider_is_one_step_of_the_history(viewer: Viewer) -> None:
    before = viewer.page.evaluate("history.length")
    box = viewer.page.locator(".vw-slider input").bounding_box()
    middle = box["y"] + box["height"] / 2
    viewer.page.mouse.move(box["x"] + box["width"] - 8, middle)
    viewer.page.mouse.down()
    for part in (0.9, 0.7, 0.5, 0.4, 0.3, 0.05, 0.0):
        viewer.page.mouse.move(box["x"] + 4 + part * (box["width"] - 8), middle)
    viewer.page.mouse.up()
    assert "at.epoch=0" in viewer.hash()
    assert viewer.page.evaluate("history.length") == before + 1
    viewer.page.go_back()
    assert "at.epoch" not in viewer.hash()
    assert viewer.cells()[4] == "adamw network.dim=4, epoch 3, prompt a, seed 112233"


def test_an_address_may_say_anything(browser: Any, index: Path) -> None:
    page = browser.new_page()
    viewer = Viewer(page).open(
        index,
        "#v=1&rows=<b>&cols=seed&slider=seed&marks=[1]&pin={}&sel=%22x&at.epoch=99&size=1e9"
        "&mode=no&num=no&hide.run=no&open=null",
    )
    assert viewer.rows()[0] == "base, no LoRA"
    assert viewer.faults == []
    page.close()


def mark_two(viewer: Viewer) -> None:
    select(viewer, 4)
    viewer.press("x", "ArrowDown", "x", "v")
    viewer.page.locator("dialog.vc[open] img").last.wait_for()
    wait_until(
        viewer.page,
        "[...document.querySelectorAll('dialog.vc img')].every((image) => image.complete)",
    )


def test_two_pictures_move_together(viewer: Viewer) -> None:
    mark_two(viewer)
    names = viewer.page.locator(".vc-name").all_inner_texts()
    assert [name.partition(",")[0] for name in names] == [
        "adamw network.dim=4",
        "adamw network.dim=8",
    ]
    assert viewer.requests[-1].endswith(".png")
    viewer.press("+", "+", "ArrowRight")
    moved = viewer.page.evaluate(
        "[...document.querySelectorAll('.vc-layer')].map((one) => getComputedStyle(one).transform)"
    )
    assert len(set(moved)) == 1
    scale, *_, x, _ = [float(part) for part in moved[0].removeprefix("matrix(")[:-1].split(",")]
    assert scale == pytest.approx(1.25**2)
    assert x < 0
    viewer.press(",")
    assert "epoch 2" in viewer.page.locator(".vc-name").first.inner_text()
    viewer.press("Escape")
    assert viewer.page.locator("dialog[open]").count() == 0


def pixel(viewer: Viewer, part: float) -> tuple[int, int, int]:
    """Return a pixel of the compared pictures, at a part of the frame's width."""
    import io

    from PIL import Image

    image = Image.open(io.BytesIO(viewer.page.locator(".vc-frame").screenshot())).convert("RGB")
    # The pictures are 2 to 3 and stand in the middle.
    width = image.height * 2 / 3
    place = int(image.width / 2 + (part - 0.5) * width), int(image.height * 0.03)
    red, green, blue = image.getpixel(place)  # type: ignore[misc]
    return red, green, blue


def test_wipe_and_difference_show_both_pictures(viewer: Viewer) -> None:
    mark_two(viewer)
    viewer.press("w")
    left, right = pixel(viewer, 0.1), pixel(viewer, 0.9)
    assert sum(abs(a - b) for a, b in zip(left, right, strict=True)) > 30
    viewer.press(*["ArrowRight"] * 25)
    both = [pixel(viewer, part) for part in (0.1, 0.9)]
    assert sum(abs(a - b) for a, b in zip(*both, strict=True)) < 25, "the first one everywhere"

    viewer.press("d")
    brightness = viewer.page.get_by_label("brightness").last
    brightness.fill("1")
    expected = tuple(abs(a - b) for a, b in zip(left, right, strict=True))
    assert pixel(viewer, 0.1) == pytest.approx(expected, abs=14)
    assert "mode=difference" in viewer.hash()


def test_flicker_starts_by_itself_only_where_motion_is_welcome(viewer: Viewer) -> None:
    mark_two(viewer)
    viewer.press("f")
    assert viewer.page.get_by_role("button", name="stop", exact=True).count() == 1
    viewer.page.wait_for_selector(".vc-stage.second")
    viewer.page.emulate_media(reduced_motion="reduce")
    viewer.press("s", "f")
    viewer.page.wait_for_timeout(1300)
    assert viewer.page.locator(".vc-stage.second").count() == 0
    viewer.press("Enter")
    assert viewer.page.locator(".vc-stage.second").count() == 1


def test_filters_leave_what_was_asked_for(viewer: Viewer) -> None:
    viewer.page.locator(".vw-filter summary").click()
    viewer.page.get_by_placeholder("words of a run").fill("LION 4")
    assert viewer.rows() == ["base, no LoRA", "lion network.dim=4"]
    viewer.page.get_by_role("button", name="show all").click()
    viewer.page.get_by_role("button", name="interrupted").click()
    assert len(viewer.rows()) == 4
    viewer.page.get_by_label("Number").select_option("mean_loss")
    viewer.page.get_by_placeholder("at most").fill("0.1")
    viewer.press("Tab")
    assert {cell.split("\n")[1] for cell in viewer.cells()[4:8]} == {"filtered out"}
    viewer.page.get_by_role("button", name="show all").click()
    viewer.page.get_by_label("Number").select_option("seconds_per_step")
    viewer.page.get_by_placeholder("at most").fill("1.005")
    viewer.press("Tab")
    assert viewer.rows() == ["base, no LoRA", "adamw network.dim=4"]


def test_filters_reach_what_an_axis_is_made_of_and_the_slider(viewer: Viewer) -> None:
    view(viewer, "all images")
    assert len(viewer.cells()) == 5 * 4
    filters = viewer.page.locator(".vw-filter summary")
    filters.click()
    chip = viewer.page.locator(".vw-chip")
    chip.filter(has_text="b").filter(has_not_text="run").get_by_text("b", exact=True).click()
    heads = viewer.page.locator(".vg-colhead").all_inner_texts()
    assert heads == ["a, seed 112233", "a, seed 101011111212"]
    chip.get_by_text("seed 112233", exact=True).click()
    assert viewer.page.locator(".vg-colhead").all_inner_texts() == ["a, seed 101011111212"]
    assert all("101011111212" in cell for cell in viewer.cells() if "prompt a" in cell)
    # An axis without a place shows what is left, too.
    view(viewer, "runs x epochs")
    assert viewer.cells()[1].endswith("prompt a, seed 101011111212")
    view(viewer, "all images")
    filters.click()
    chip.get_by_text("epoch 3", exact=True).click()
    assert viewer.cells()[1] == "adamw network.dim=4, epoch 2, prompt a, seed 101011111212"
    chip.get_by_text("epoch 1", exact=True).click()
    slider = viewer.page.locator(".vw-slider input")
    assert slider.get_attribute("max") == "1", "the base and epoch 2"
    viewer.page.locator(".vg-cell").first.focus()
    viewer.press(",", ".", ".")
    assert slider.get_attribute("aria-valuetext") == "epoch 2"
    viewer.press("l")
    for _ in range(4):
        viewer.page.wait_for_timeout(500)
        assert slider.get_attribute("aria-valuetext") in ("epoch 2", "base, no LoRA")
    viewer.press("l")


def test_no_button_loses_its_words_under_the_pointer(viewer: Viewer) -> None:
    for scheme in ("light", "dark"):
        viewer.page.emulate_media(color_scheme=scheme)
        select(viewer, 4)
        num = hover_all(viewer, scheme)
        for menu in ("View", "Measures", "Filter"):
            viewer.page.locator(".vw-menu summary", has_text=menu).click()
            num += hover_all(viewer, scheme)
            viewer.page.locator(".vw-menu summary", has_text=menu).click()
        select(viewer, 4)
        viewer.press("x", "ArrowDown", "x", "v", "w")
        num += hover_all(viewer, scheme)
        viewer.press("Escape")
        viewer.press("x", "ArrowUp", "x")
        assert num > 40


def hover_all(viewer: Viewer, scheme: str) -> int:
    """See that every button in sight can be read under the pointer; return how many there are."""
    place = "dialog[open]" if viewer.page.locator("dialog[open]").count() else "#viewer"
    buttons = viewer.page.locator(f"{place} button:enabled:visible")
    for place_of in range(buttons.count()):
        button = buttons.nth(place_of)
        button.hover(force=True)
        colours = button.evaluate(
            "(button) => { const style = getComputedStyle(button);"
            " return [style.color, style.backgroundColor]; }"
        )
        assert contrast_of(*colours) >= 4.5, (scheme, button.inner_text(), colours)
    return int(buttons.count())


def contrast_of(one: str, other: str) -> float:
    """Return the contrast of two colours as a browser gives them, as WCAG 2 works it out."""
    lights = []
    for colour in (one, other):
        parts = [float(part) / 255 for part in re.findall(r"[\d.]+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_a_reference_says_how_others_differ(viewer: Viewer) -> None:
    select(viewer, 4)
    viewer.press("p", "ArrowDown")
    assert "minus reference" in viewer.page.locator('[data-part="details"]').inner_text()
    viewer.press("c")
    assert viewer.page.locator(".vc-name").count() == 2
    differences = viewer.page.locator(".vl-differences tr").all_inner_texts()
    settings = {text.split("\t")[0]: text.split("\t")[1:] for text in differences}
    assert settings["network.dim"] == ["4", "8"]
    assert "optimizer" not in settings, "only what differs"
    assert "epoch" not in settings


def test_a_click_opens_an_image_with_all_that_is_known_of_it(viewer: Viewer) -> None:
    viewer.page.locator(".vg-cell").nth(4).click()
    info = viewer.page.locator(".vc-info")
    text = info.inner_text()
    for words in ("adamw network.dim=4", "epoch 3, prompt a, seed 112233", "mirelle, 1girl", "bad"):
        assert words in text
    assert "held-out images" in text
    viewer.page.get_by_label("Your score").fill("70")
    viewer.press("Tab")
    assert viewer.page.evaluate("optbench.app.scores.given().map((one) => one.score)") == [70]
    for name, words in (
        ("copy prompt", "mirelle, 1girl, solo, blue dress"),
        ("copy for A1111", "Negative prompt: bad\nSeed: 112233, Size: 64x96"),
        ("copy settings", "network.dim=4"),
    ):
        viewer.page.get_by_role("button", name=name).click()
        viewer.page.get_by_role("button", name="copied").wait_for()
        assert words in viewer.page.evaluate("navigator.clipboard.readText()")
        viewer.page.wait_for_timeout(1600)


def test_the_next_image_comes_by_key_click_and_swipe(viewer: Viewer) -> None:
    viewer.page.locator(".vg-cell").nth(5).click()
    place = viewer.page.locator(".vl-place")
    assert "prompt a, seed 101011111212" in place.inner_text()
    viewer.press("ArrowRight")
    assert "prompt b, seed 112233" in place.inner_text()
    viewer.page.get_by_role("button", name="next image").click()
    # What is damaged is passed over, and a row's end leads to the next row.
    assert "prompt a, seed 112233" in place.inner_text()
    assert "network.dim=8" in viewer.page.locator(".vc-info h3").inner_text()
    viewer.page.get_by_role("button", name="previous image").click()
    assert "prompt b, seed 112233" in place.inner_text()
    box = viewer.page.locator(".vc-frame").bounding_box()
    middle = box["y"] + box["height"] / 2
    for start, end, words in ((0.7, 0.4, "prompt a, seed 112233"), (0.4, 0.7, "prompt b")):
        viewer.page.mouse.move(box["x"] + box["width"] * start, middle)
        viewer.page.mouse.down()
        viewer.page.mouse.move(box["x"] + box["width"] * end, middle, steps=4)
        viewer.page.mouse.up()
        assert words in place.inner_text()
    viewer.press(",")
    assert "epoch 2" in place.inner_text()
    viewer.press("Escape")
    assert ", epoch 2, prompt b, seed 112233" in viewer.selected(), "the table went along"


def test_one_to_one_shows_a_pixel_as_a_pixel(viewer: Viewer) -> None:
    viewer.page.locator(".vg-cell").nth(4).click()
    wait_until(viewer.page, "document.querySelector('.vc-layer').naturalWidth > 0")
    scale = "(() => { const image = document.querySelector('.vc-layer');"
    scale += " const box = image.getBoundingClientRect();"
    scale += " return Math.min(box.width / 64, box.height / 96); })()"
    assert viewer.page.evaluate(scale) > 3, "a small image fills the window"
    viewer.press("1")
    assert viewer.page.evaluate(scale) == pytest.approx(1, abs=0.01)
    viewer.page.get_by_role("button", name="1:1").click()
    assert viewer.page.evaluate(scale) > 3


def test_rows_follow_a_measure_and_cells_show_it(viewer: Viewer) -> None:
    viewer.page.locator(".vw-menu summary", has_text="Measures").click()
    viewer.page.get_by_label("Sort by").select_option("seconds_per_step")
    assert viewer.rows()[:2] == ["base, no LoRA", "adamw network.dim=4"]
    viewer.page.get_by_label("highest first").check()
    assert viewer.rows()[0] == "base, no LoRA"
    assert viewer.rows()[-1] == "adamw network.dim=4"
    viewer.page.get_by_label("On the cells").select_option("mean_loss")
    viewer.page.get_by_label("as a colour too").check()
    values = viewer.page.locator(".vg-badge.value").all_inner_texts()
    assert "0.1167" in values
    assert viewer.page.locator(".vg-heat").count() == len(values)
    address = viewer.hash()
    assert "sort=seconds_per_step" in address
    viewer.press("Escape")
    viewer.page.reload()
    viewer.page.locator(".vg-cell").first.wait_for()
    assert viewer.page.locator(".vg-badge.value").all_inner_texts() == values
    # Against a reference its own cells say 0.
    select(viewer, 16)
    viewer.press("p")
    viewer.page.locator(".vw-menu summary", has_text="Measures").click()
    viewer.page.get_by_label("minus the reference").check()
    pinned = viewer.page.locator(".vg-cell.pinned .vg-badge.value")
    assert pinned.inner_text() == "0"


def test_columns_fit_the_window_and_cells_are_equally_high(browser: Any, tmp_path: Path) -> None:
    sweep = tmp_path / "mixed"
    make_sweep(sweep, Shape(num_epochs=1, sizes={"b": (96, 64)}))
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    viewer = Viewer(page).open(build_report(sweep))
    sizes = page.evaluate(
        "[...document.querySelectorAll('.vg-cell')]"
        ".map((cell) => [cell.clientWidth, cell.clientHeight])"
    )
    assert len({height for _, height in sizes}) == 1
    shapes = {round(width / height, 1) for width, height in sizes}
    assert shapes == {0.7, 1.5}, "as wide as their images"
    grid = page.locator(".vg")
    assert grid.evaluate("(grid) => grid.scrollWidth <= grid.clientWidth")
    assert viewer.faults == []
    page.close()


def test_seeds_stand_under_their_setting(browser: Any, tmp_path: Path) -> None:
    sweep = tmp_path / "seeds"
    make_sweep(sweep, Shape(num_epochs=1, dims=(4,), train_seeds=(1, 2)))
    page = browser.new_page(viewport={"width": 1440, "height": 1300})
    viewer = Viewer(page).open(build_report(sweep))
    view(viewer, "seeds under their setting")
    assert page.locator(".vg-block").all_inner_texts() == ["adamw", "lion"]
    assert len([row for row in viewer.rows() if "seed=1" in row]) == 2
    view(viewer, "all images")
    page.get_by_label("Rows").select_option("setting")
    assert viewer.rows() == ["base, no LoRA", "adamw", "lion"]
    assert viewer.faults == []
    page.close()


def test_a_link_arrives_at_the_viewer_and_other_links_keep_its_state(
    browser: Any, index: Path
) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    viewer = Viewer(page)
    page.goto(f"{index.as_uri()}#v=1&rows=set.optimizer&cols=epoch")
    page.locator(".vg-cell").first.wait_for()
    top = "document.getElementById('viewer').getBoundingClientRect().top"
    page.wait_for_timeout(300)
    assert -5 < page.evaluate(top) < 120
    page.locator("nav a[href='#runs']").first.click()
    page.reload()
    page.locator(".vg-cell").first.wait_for()
    assert viewer.rows() == ["base, no LoRA", "adamw", "lion"]
    page.close()


def test_scores_survive_a_reload_and_leave_as_files(
    viewer: Viewer, index: Path, tmp_path: Path
) -> None:
    note = f'=SUM(1), "{HOSTILE}"'
    select(viewer, 4)
    viewer.press("r")
    viewer.page.keyboard.type("83")
    viewer.press("Tab", "Tab")
    viewer.page.get_by_label("note", exact=True).fill(note)
    viewer.page.get_by_label("its whole run").check()
    viewer.page.get_by_label("score", exact=True).fill("140")
    viewer.press("Tab")
    viewer.page.get_by_label("your name").fill("Ana <b>")
    viewer.page.reload()
    assert viewer.page.locator(".vg-badge.score").inner_text() == "83"

    content = json.loads(download(viewer, "save as JSON", tmp_path))
    run = "adamw-dim4-00000004"
    cell = {"run": run, "epoch": 3, "prompt": "a", "seed": 112233, "width": 64, "height": 96}
    nothing = dict.fromkeys(("epoch", "prompt", "seed", "width", "height"))
    assert len(content.pop("report")) == 32
    assert [type(score.pop("at")) for score in content["scores"]] == [int, int]
    assert content == {
        "format": "optbench scores 1",
        "sweep": "optimizer,network.dim",
        "rater": "Ana <b>",
        "scores": [
            {**cell, "score": 83, "note": note},
            {"run": run, **nothing, "score": 100, "note": ""},
        ],
        "votes": [],
        "undone": [],
    }
    rows = list(csv.DictReader(download(viewer, "as CSV", tmp_path).splitlines()))
    assert rows[0]["note"] == f"'{note}"
    assert (rows[1]["epoch"], rows[1]["score"]) == ("", "100")


def test_a_file_of_scores_is_taken_in_and_a_wrong_one_is_not(
    viewer: Viewer, tmp_path: Path
) -> None:
    cell = {"epoch": 3, "prompt": "a", "seed": 112233, "width": 64, "height": 96}
    known = {"run": "lion-dim4-00010004", **cell}
    content = {
        "format": "optbench scores 1",
        "rater": "Ben",
        "scores": [{**known, "score": 12, "note": HOSTILE}, {"run": "other", "score": 1}, None],
        "votes": [{"left": known, "right": known, "winner": "tie", "repeat": False}, {}],
    }
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(content))
    bad.write_text("[1]")
    message = viewer.page.locator('[data-part="scores"] [role="status"]')
    for _ in range(2):
        viewer.page.set_input_files(".vs-file", [good, bad])
        viewer.page.get_by_text("bad.json was not imported").wait_for()
    assert "1 scores and notes, 1 votes" in message.inner_text()
    assert "good.json: 0 new scores and 0 new votes, 3 of other runs" in message.inner_text()


def test_hostile_words_are_text_everywhere(browser: Any, tmp_path: Path) -> None:
    sweep = tmp_path / HOSTILE.replace("/", "_")
    long = f"{RTL} \0 {HOSTILE} " + "word " * 2000
    names = {"texts": {HOSTILE.replace("/", "_")[:60]: long}}
    shape = Shape(prompts=tuple(names["texts"]), num_epochs=1, dims=(4,), **names)  # type: ignore[arg-type]
    runs = make_sweep(sweep, shape)
    cut_short(runs[1], epoch=0, status="failed", reason=f"{HOSTILE}\0{RTL}")
    index = build_report(sweep)

    page = browser.new_page(viewport={"width": 1500, "height": 1300})
    viewer = Viewer(page).open(index)
    select(viewer, 2)
    assert HOSTILE in page.locator(".vp-prompt").first.inner_text()
    assert "\u2400" in page.locator(".vp-prompt").first.inner_text(), "NUL is shown"
    assert HOSTILE in page.locator(".vg-absent").first.inner_text()
    assert page.locator("#viewer script, #viewer img[src='x'], #viewer [onerror]").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 1500
    viewer.press("Enter", "Escape", "b")
    page.locator(".vb canvas, .vb h2").first.wait_for()
    assert viewer.faults == []
    page.close()


def test_a_moved_folder_and_one_without_its_data_still_open(
    browser: Any, index: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "else where #2 100%"
    shutil.copytree(index.parent.parent, moved)
    page = browser.new_page()
    viewer = Viewer(page).open(moved / "report" / "index.html")
    page.locator(".vg-cell img").first.wait_for()
    loaded = "[...document.querySelectorAll('.vg-cell img')].every((i) => i.naturalWidth > 0)"
    wait_until(page, loaded)
    assert viewer.faults == []

    (moved / "report" / "data.js").unlink()
    page.goto((moved / "report" / "index.html").as_uri())
    assert "data.js was not found" in page.inner_text("#pictures")
    page.close()


def test_of_a_long_table_only_what_is_seen_is_in_the_document(browser: Any, tmp_path: Path) -> None:
    sweep = tmp_path / "many"
    make_sweep(sweep, Shape(num_optimizers=30, num_epochs=12, dims=(4, 8), are_linked=True))
    page = browser.new_page(viewport={"width": 1500, "height": 900})
    viewer = Viewer(page).open(build_report(sweep), "#v=1&rows=run&cols=epoch&slider=prompt")
    assert page.locator(".vg").get_attribute("aria-rowcount") == "62"
    assert page.locator(".vg-cell img").count() < 150
    page.locator(".vg-cell").first.focus()
    viewer.press("Control+End")
    assert viewer.selected().startswith("sgd2 network.dim=8, epoch 12")
    page.locator(".vg").evaluate("(grid) => { grid.scrollTop = 0; }")
    page.wait_for_timeout(200)
    assert "base, no LoRA, prompt a, seed 112233" in viewer.cells()
    assert page.evaluate("document.activeElement.getAttribute('role')") == "gridcell"
    assert viewer.faults == []
    page.close()


def test_names_contrast_and_print(viewer: Viewer) -> None:
    page = viewer.page
    unnamed = page.evaluate(
        """[...document.querySelectorAll('#viewer :is(button, select, input, textarea)')]
        .filter((one) => !one.getAttribute('aria-label') && !one.textContent.trim())
        .filter((one) => !(one.labels || []).length)
        .map((one) => one.outerHTML)"""
    )
    assert unnamed == []
    grid = page.locator('[role="grid"]')
    assert grid.get_attribute("aria-label") == "images"
    assert page.locator('.vg-cell[tabindex="0"][aria-selected="true"]').count() == 1
    assert page.locator(".vg-cell img:not([alt])").count() == 0
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert contrast(page, "--faint", "--paper") >= 4.5
        assert contrast(page, "--faint", "--panel") >= 4.5
        assert contrast(page, "--edge", "--paper") >= 3
    pdf = page.pdf()
    assert pdf.startswith(b"%PDF")


def contrast(page: Any, one: str, other: str) -> float:
    """Return the contrast of two of the page's colours, as WCAG 2 works it out."""
    lights = []
    for name in (one, other):
        value = page.evaluate(
            "(name) => getComputedStyle(document.documentElement).getPropertyValue(name)", name
        ).strip("# ")
        value = value if len(value) == 6 else "".join(2 * digit for digit in value)
        parts = [int(value[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    high, low = max(lights), min(lights)
    return float((high + 0.05) / (low + 0.05))
