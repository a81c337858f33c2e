"""A report as one file: it works alone, offline, and holds nothing that is not for others."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from optbench.cli import share as share_command
from optbench.report import build_report, share
from optbench.report.charts.chart import LIBRARY, library_file
from optbench.report.grid_sheet import draw_grid
from optbench.report.share import _Places, share_report
from optbench.storage.rundir import read_config
from tests.builders.fabricated_sweep import Shape, make_sweep
from tests.builders.viewer_page import Viewer, chromium, needs_chromium

SECRET = "/home/somebody/secret models/sd15.safetensors"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shared report that stands where nothing else is."""
    root = tmp_path_factory.mktemp("private-place")
    sweep = root / "runs" / "demo"
    for run in make_sweep(sweep, Shape()):
        config = read_config(run)
        config["base"] = {**config.get("base", {}), "path": SECRET}
        run.config_path.write_text(yaml.safe_dump(config))
        run.lora_dir.mkdir(exist_ok=True)
        (run.lora_dir / f"{run.name}.safetensors").write_bytes(b"weights")
    target = tmp_path_factory.mktemp("friend") / "demo.html"
    share_report(sweep, target)
    shutil.rmtree(root)
    return target


def test_no_place_on_this_machine_no_weights_and_no_address_is_in_it(shared: Path) -> None:
    text = re.sub(r"data:image/webp;base64,[A-Za-z0-9+/=]+", "", shared.read_text())
    for name in LIBRARY:  # has addresses in its words, and loads none of them
        library = library_file(name).read_text(encoding="utf-8")
        ended = re.sub(r"</(?=script|style)", r"<\\/", library, flags=re.IGNORECASE)
        assert ended in text
        text = text.replace(ended, "")
    assert "private-place" not in text
    assert "somebody" not in text
    assert "secret models" not in text
    assert "sd15.safetensors" in text  # what it was stays
    assert str(Path.home()) not in text
    assert not re.search(r'(?:src|href)="[^"#]*\.(?:safetensors|csv|parquet|js|json)"', text)


@needs_chromium
def test_it_works_alone_under_its_own_policy(browser: Any, shared: Path) -> None:
    context = browser.new_context(viewport={"width": 1400, "height": 900}, offline=True)
    viewer = Viewer(context.new_page())
    viewer.page.on("requestfailed", lambda request: viewer.faults.append(request.url[:80]))
    viewer.open(shared)
    page = viewer.page
    page.wait_for_timeout(300)
    widths = page.evaluate(
        "[...document.querySelectorAll('#viewer .vg-cell img, .fs-shots img')]"
        ".filter((image) => image.complete && image.loading !== 'lazy' || image.naturalWidth)"
        ".map((image) => image.naturalWidth)"
    )
    assert len(widths) >= 8
    assert min(widths) > 1
    before = page.locator(".vg-cell img").first.evaluate("(image) => image.currentSrc.length")
    assert before > 100
    chart = page.locator('figure[data-chart="loss"]')
    chart.evaluate("(chart) => chart.scrollIntoView({ behavior: 'instant' })")
    page.locator('figure[data-chart="loss"][data-drawn]').wait_for()
    page.locator(".vg-cell").first.click()
    page.locator("dialog[open]").wait_for()
    assert {url.partition(":")[0] for url in viewer.requests} <= {"file", "data", "blob"}
    assert [url for url in viewer.requests if url.startswith("file:")] == [shared.as_uri()] * len(
        [url for url in viewer.requests if url.startswith("file:")]
    )
    assert viewer.faults == []
    context.close()


@needs_chromium
def test_a_script_that_got_in_does_not_run(browser: Any, shared: Path) -> None:
    hostile = shared.with_name("hostile.html")
    hostile.write_text(
        shared.read_text().replace("<main>", "<main><script>window.ran = true</script>", 1)
    )
    page = browser.new_page()
    page.goto(hostile.as_uri())
    assert page.evaluate("window.ran") is None


def test_training_images_are_in_it_only_when_asked_for(tmp_path: Path) -> None:
    sweep, data = tmp_path / "demo", tmp_path / "data"
    data.mkdir()
    for number in range(4):
        Image.new("RGB", (64, 96), (200, 40 * number, 7)).save(data / f"private{number}.png")
    for run in make_sweep(sweep, Shape(num_optimizers=1)):
        config = read_config(run)
        config["dataset"] = {**config.get("dataset", {}), "dir": str(data)}
        run.config_path.write_text(yaml.safe_dump(config))
    plain = share_report(sweep, tmp_path / "plain.html")
    full = share_report(sweep, tmp_path / "full.html", with_training_images=True)
    assert full.num_images == plain.num_images + 4
    assert "goal" in full.path.read_text()
    goal = re.search(r'class="fs-row fs-goal"( hidden)?', plain.path.read_text())
    assert goal is not None
    assert goal[1] == " hidden"
    assert "private0" not in plain.path.read_text()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("base.path=/models/my/sd15.safetensors lr=1e-4", "base.path=…/sd15.safetensors lr=1e-4"),
        ("/opt/x/.venv/bin/optbench plan", "optbench plan"),
        ("~/data/set/10_a", "…/10_a"),
        ("in '/a b/c d/e.png', not", "in '…/e.png', not"),
        ("3/4 of 1/2, and/or, s/it", "3/4 of 1/2, and/or, s/it"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("runs/demo and ./run/images/a.png", "runs/demo and ./run/images/a.png"),
        ("no path", "no path"),
    ],
)
def test_places_are_hidden_and_nothing_else(text: str, shown: str) -> None:
    assert _Places(["/a b/c d/e.png", "/a b"]).hidden(text) == shown


def test_images_become_smaller_until_the_file_has_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = tmp_path / "demo"
    make_sweep(sweep, Shape(size=(256, 384)))
    whole = share_report(sweep, tmp_path / "whole.html")
    monkeypatch.setattr(share, "_MAX_BYTES", 60_000)
    small = share_report(sweep, tmp_path / "small.html")
    assert small.side_px < whole.side_px
    assert small.num_images == whole.num_images
    monkeypatch.setattr(share, "_MAX_BYTES", 1)
    least = share_report(sweep, tmp_path / "least.html")
    assert least.num_images < whole.num_images
    assert "images of the epochs before the last" in least.left_out


def test_the_command_writes_a_page_and_a_png_and_says_what_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "demo"
    make_sweep(sweep, Shape(num_optimizers=1))
    assert share_command.main([str(sweep)]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        str(sweep / "share" / "demo.png"), str(sweep / "share" / "demo.html"),
    ]  # fmt: skip
    assert "--training-images" in captured.err
    with Image.open(sweep / "share" / "demo.png") as sheet:
        assert sheet.width > 300
    assert share_command.main([str(tmp_path / "nothing")]) == 2
    make_sweep(tmp_path / "other", Shape(num_optimizers=1))
    assert share_command.main([str(tmp_path)]) == 2
    assert "one sweep" in capsys.readouterr().err


@needs_chromium
def test_the_table_as_it_is_shown_is_saved_as_a_png(
    browser: Any, shared: Path, tmp_path: Path
) -> None:
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    viewer = Viewer(context.new_page()).open(shared)
    with viewer.page.expect_download() as download:
        viewer.page.evaluate("optbench.savePng(optbench.app)")
    download.value.save_as(tmp_path / "table.png")
    with Image.open(tmp_path / "table.png") as table:
        colours = {colour for _, colour in table.convert("RGB").getcolors(2**24) or ()}
    assert len(colours) > 100  # images, and no empty cells
    assert viewer.faults == []
    context.close()


@needs_chromium
def test_a_page_opened_by_double_click_says_what_to_type_for_the_png(
    browser: Any, tmp_path: Path
) -> None:
    sweep = tmp_path / "my runs" / "demo"
    make_sweep(sweep, Shape(num_optimizers=1))
    viewer = Viewer(browser.new_page()).open(build_report(sweep))
    viewer.page.evaluate("optbench.savePng(optbench.app)")
    command = viewer.page.locator("dialog[open] code").inner_text()
    words = shlex.split(command)
    assert words[:4] == ["optbench", "report", str(sweep), "--sheet"]
    assert draw_grid(sweep, words[4]).is_file()
    assert viewer.faults == []
