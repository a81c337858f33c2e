"""Charts in a browser: drawn when they come near, asked by pointing, led to images by a click."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from optbench.report import build_report
from optbench.report.charts.styles import COLOURS
from optbench.storage import files, rundir
from optbench.storage.rundir import RunDir
from tests.builders.fabricated_sweep import Shape, cut_short, make_sweep
from tests.builders.viewer_page import Viewer, chromium, needs_chromium

pytestmark = needs_chromium
# The Bokeh model that a figure shows.
VIEW = "[...Bokeh.index.roots].find((one) => figure.contains(one.el))"
HOSTILE = "<img src=x onerror=alert(1)> $$x$$"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sweep = tmp_path_factory.mktemp("charts") / "sweep"
    runs = make_sweep(sweep, Shape(num_optimizers=2, dims=(4, 8), num_epochs=4, seeds=(1, 2)))
    for number, run in enumerate(runs):  # a second seed of each setting
        other = RunDir(run.path.with_name(f"{run.name[:-8]}0000001{number}"))
        config = run.config_path.read_text().replace("seed: 1234", "seed: 5")
        files.write_atomic(other.config_path, config.replace("name: lion", f"name: '{HOSTILE}'"))
        files.write_atomic(
            run.config_path, run.config_path.read_text().replace("name: lion", f"name: '{HOSTILE}'")
        )
        steps = files.read_rows(run.steps_path)
        files.append_rows(other.steps_path, [{**row, "loss": row["loss"] + 0.01} for row in steps])
        files.append_rows(other.epochs_path, files.read_rows(run.epochs_path))
        rundir.write_status(other.path, "done")
    cut_short(runs[0], epoch=2, status="stopped")
    return build_report(sweep)


@pytest.fixture
def opened(browser: Any, index: Path) -> Iterator[Viewer]:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    viewer = Viewer(page)
    page.goto(index.as_uri())
    yield viewer
    assert viewer.faults == []
    page.close()


def show(viewer: Viewer, name: str) -> Any:
    """Scroll to a chart and return its figure once it is drawn."""
    figure = viewer.page.locator(f'figure[data-chart="{name}"]')
    figure.evaluate("(figure) => figure.scrollIntoView({ behavior: 'instant', block: 'center' })")
    viewer.page.locator(f'figure[data-chart="{name}"][data-drawn]').wait_for()
    viewer.page.wait_for_timeout(100)
    return figure


def num_lines(figure: Any) -> int:
    return int(figure.get_attribute("data-lines"))


def colours(figure: Any) -> set[str]:
    """Return which of the optimizers' colours are to be seen in a chart."""
    image = Image.open(io.BytesIO(figure.locator(".chart-place").screenshot())).convert("RGB")
    counts = image.getcolors(image.width * image.height) or []
    seen = {colour for count, colour in counts if count > 20}
    return {name for name in COLOURS if tuple(bytes.fromhex(name[1:])) in seen}


def test_nothing_of_a_chart_is_loaded_before_it_comes_near(opened: Viewer, index: Path) -> None:
    opened.page.wait_for_timeout(300)
    assert not [request for request in opened.requests if "/charts/" in request]
    show(opened, "loss")
    loaded = {Path(request).name for request in opened.requests if "/charts/" in request}
    assert {"bokeh.min.js", "bokeh-api.min.js", "sweep.js", "loss.js"} <= loaded
    assert all(request.startswith(index.parent.parent.as_uri()) for request in opened.requests)


def test_a_line_is_a_setting_and_seeds_are_single_lines_when_asked(opened: Viewer) -> None:
    figure = show(opened, "loss")
    # Two settings of two whole seeds, one of a whole and a stopped one: that one is drawn alone.
    assert num_lines(figure) == 5
    assert colours(figure) == set(COLOURS[:2])
    opened.page.get_by_label("every seed").first.check()
    opened.page.locator('figure[data-chart="loss"][data-lines="8"]').wait_for()


def test_names_hide_their_line_in_every_chart(opened: Viewer) -> None:
    figure = show(opened, "loss")
    assert colours(figure) == set(COLOURS[:2])
    keys = opened.page.locator("#curves .chart-key", has_text="adamw network.dim=")
    for number in range(2):
        keys.nth(number).click()
        assert keys.nth(number).get_attribute("aria-pressed") == "false"
    opened.page.wait_for_timeout(300)
    assert colours(figure) == {COLOURS[1]}
    assert num_lines(figure) == 2
    assert num_lines(show(opened, "effective-lr-unet")) == 2, "hidden there, too"
    opened.page.locator("#curves .chart-all").click()
    assert keys.first.get_attribute("aria-pressed") == "true"
    keys.first.dblclick()
    pressed = opened.page.locator('#curves .chart-key[aria-pressed="true"]')
    assert pressed.all_inner_texts() == keys.first.all_inner_texts()


def test_pointing_says_values_and_no_name_is_ever_html(opened: Viewer) -> None:
    show(opened, "gain-held-out")
    opened.page.get_by_label("every seed").first.check()
    figure = show(opened, "gain-held-out")
    box = figure.locator(".chart-place").bounding_box()
    said = ""
    for part in range(20, 95, 5):  # down through all curves
        down = box["y"] + box["height"] * part / 100
        opened.page.mouse.move(box["x"] + box["width"] * 0.6, down)
        opened.page.wait_for_timeout(50)
        said += "".join(figure.locator(".chart-tip").all_inner_texts())
    assert "epoch 2" in said or "epoch 3" in said
    assert "loss below the base model's" in said
    assert "<img src=x onerror" in said


def test_a_click_opens_that_runs_images_of_that_epoch(opened: Viewer) -> None:
    figure = show(opened, "gain-held-out")
    where = figure.evaluate(
        """(figure) => {
        const view = VIEW;
        const model = view.model, box = view.el.getBoundingClientRect();
        const line = model.renderers.map((one) => one.data_source.data)
          .find((data) => data.x && data.x.length === 5);
        const inner = view.frame.bbox;
        const to = (value, range) => (value - range.start) / (range.end - range.start);
        return [box.left + inner.x0 + inner.width * to(line.x[3], model.x_range),
          box.top + inner.y1 - inner.height * to(line.y[3], model.y_range)];
      }""".replace("VIEW", VIEW)
    )
    opened.page.mouse.click(*where)
    opened.page.wait_for_timeout(400)
    assert ", epoch 3," in opened.selected()
    top = opened.page.locator("#viewer").evaluate("(viewer) => viewer.getBoundingClientRect().top")
    assert -50 < top < 300, "the images are in sight"


def test_results_are_rows_by_name_with_costs_beside_them(opened: Viewer) -> None:
    figure = show(opened, "results")
    factors, texts = figure.evaluate(
        """(figure) => {
        const { model } = VIEW, texts = model.center.filter((part) => part.type === "Label");
        return [model.y_range.factors, texts.map((part) => part.text)];
      }""".replace("VIEW", VIEW)
    )
    assert "adamw network.dim=8" in factors
    assert texts == ["seeds", "training time"]
    assert colours(figure) == set(COLOURS[:2])


def test_steps_time_and_log_scales_can_be_chosen(opened: Viewer) -> None:
    figure = show(opened, "loss")

    def axes() -> list[Any]:
        opened.page.wait_for_timeout(500)
        return figure.evaluate(  # type: ignore[no-any-return]
            """(figure) => {
            const view = VIEW;
            const { below, left, x_range } = view.model;
            return [below[0].axis_label, x_range.end, left[0].type];
          }""".replace("VIEW", VIEW)
        )

    title, end, kind = axes()
    assert (title, kind) == ("epoch", "LinearAxis")
    assert 4 <= end < 5
    opened.page.locator('#curves select[data-charts="x"]').select_option("step")
    title, end, _ = axes()
    assert title == "step"
    assert 40 <= end < 45
    opened.page.locator('#curves select[data-charts="x"]').select_option("seconds")
    opened.page.get_by_label("log scale").first.check()
    title, _, kind = axes()
    assert title == "training time, seconds"
    assert kind == "LogAxis"


def test_dark_pages_have_light_words_and_charts_follow_the_change(opened: Viewer) -> None:
    figure = show(opened, "loss")

    def colour() -> str:
        opened.page.wait_for_timeout(500)
        return str(
            figure.evaluate(
                """(figure) => VIEW.model.below[0].axis_label_text_color""".replace("VIEW", VIEW)
            )
        )

    light = colour()
    opened.page.emulate_media(color_scheme="dark")
    assert colour() != light


def test_on_a_phone_charts_fit_and_are_legible(browser: Any, index: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    viewer = Viewer(page)
    page.goto(index.as_uri())
    for name in ("results", "loss"):
        figure = show(viewer, name)
        sizes = figure.evaluate(
            """(figure) => [...VIEW.model.below, ...VIEW.model.left]
          .flatMap((axis) => [axis.major_label_text_font_size, axis.axis_label_text_font_size])
          .map(parseFloat)""".replace("VIEW", VIEW)
        )
        assert sizes
        assert min(sizes) >= 12
        box = figure.locator(".chart-place").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    keys = page.locator("#curves .chart-key").first.bounding_box()
    assert keys["height"] >= 32
    assert viewer.faults == []
    page.close()


def test_without_its_data_a_chart_says_what_is_missing(
    browser: Any, index: Path, tmp_path: Path
) -> None:
    page = browser.new_page()
    moved = tmp_path / "index.html"
    moved.write_bytes(index.read_bytes())
    viewer = Viewer(page)
    page.goto(moved.as_uri())
    place = page.locator('figure[data-chart="loss"] .chart-place')
    place.evaluate("(place) => place.scrollIntoView({ behavior: 'instant' })")
    page.wait_for_timeout(500)
    assert "was not found beside this page" in place.inner_text()
    assert all("net::ERR_FILE_NOT_FOUND" in fault for fault in viewer.faults)
    page.close()


def test_the_viewer_shows_the_selected_runs_curves_and_a_click_goes_to_the_epoch(
    opened: Viewer,
) -> None:
    opened.page.locator("#viewer").scroll_into_view_if_needed()
    opened.page.locator(".vg-cell").nth(4).click()
    opened.press("Escape")  # the image that the click has opened, too
    area = opened.page.locator(".vp-area").first
    area.scroll_into_view_if_needed()
    area.locator("div").first.wait_for()
    opened.page.wait_for_timeout(500)
    area.evaluate("(area) => area.scrollIntoView({ behavior: 'instant', block: 'center' })")
    box = area.bounding_box()
    assert box["height"] > 100
    for up in range(20, 70, 5):
        opened.page.mouse.click(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * up / 100)
    opened.page.wait_for_timeout(300)
    assert ", epoch 1," in opened.selected()
