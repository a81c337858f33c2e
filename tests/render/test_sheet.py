"""Contact sheets: every cell answers, equal sheets are left alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from optbench.records import Cell
from optbench.render import sheet as render_sheet
from optbench.render.sheet import Row, SheetPlan, SheetRun, Tile
from optbench.schema import Prompt
from optbench.storage.rundir import RunDir, write_status

PROMPT = Prompt(name="a", text="mirelle, 1girl", negative="", width=64, height=96)
SEEDS = (112233, 101011111212)
RED, BLUE = (200, 10, 10), (10, 10, 200)


def picture(path: Path, colour: tuple[int, int, int] = RED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 96), colour).save(path)
    return path


def plan(*tiles: Tile, title: str = "title", text: str = "prompt", label: str = "row") -> SheetPlan:
    return SheetPlan(
        title=title,
        text=text,
        columns=tuple(f"seed {index}" for index in range(len(tiles))),
        rows=(Row(title=label, tiles=tiles),),
        size_px=(64, 96),
        cell_height_px=96,
    )


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "lion-dim4-00000000")
    for epoch in (0, 1):
        for seed in SEEDS:
            cell = Cell(prompt="a", width=64, height=96, seed=seed, epoch=epoch)
            picture(run.image_path(cell), BLUE if epoch else RED)
    return run


def centre(image: Image.Image, box: tuple[int, int, int, int]) -> object:
    left, top, width, height = box
    return image.getpixel((left + width // 2, top + height // 2))


def ink(image: Image.Image, box: tuple[int, int, int, int]) -> int:
    left, top, width, height = box
    inner = image.crop((left + 4, top + 4, left + width - 4, top + height - 4))
    return len(inner.getcolors(1 << 16) or ())


def test_pictures_lie_where_the_sheet_says(run: RunDir) -> None:
    sheet = render_sheet.run_sheet(run, PROMPT, seeds=SEEDS, num_epochs=1)

    with Image.open(sheet.path) as image:
        assert image.size == (sheet.width_px, sheet.height_px)
        colours = [(placed.row, centre(image, placed.box)) for placed in sheet.pictures]
    assert sheet.path == run.sheets_dir / "a.png"
    assert colours == [("base, no LoRA", RED)] * 2 + [("epoch 1", BLUE)] * 2
    assert [placed.column for placed in sheet.pictures[:2]] == [
        "seed 112233",
        "seed 101011111212",
    ]


def test_a_missing_picture_prints_the_runs_reason(run: RunDir) -> None:
    drawn = {}
    for status, reason in (("done", ""), ("diverged", "loss is not finite at step 7")):
        write_status(run.path, status, reason)  # type: ignore[arg-type]
        sheet = render_sheet.run_sheet(run, PROMPT, seeds=SEEDS, num_epochs=2)
        drawn[status] = sheet.path.read_bytes()
        assert len(sheet.pictures) == 4
        with Image.open(sheet.path) as image:
            first, last = sheet.pictures[0].box, sheet.pictures[-1].box
            missing = (first[0], 2 * last[1] - first[1], first[2], first[3])
            assert ink(image, missing) > 2, "text on the tile"
    assert drawn["done"] != drawn["diverged"]


def test_an_unreadable_picture_is_a_tile_with_words(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(picture(tmp_path / "whole.png").read_bytes()[:60])

    sheet = render_sheet.write_sheet(tmp_path / "sheet.png", plan(Tile(path=broken)))

    with Image.open(sheet.path) as image:
        assert ink(image, sheet.pictures[0].box) > 2


def test_an_unchanged_sheet_is_left_alone(run: RunDir) -> None:
    first = render_sheet.run_sheet(run, PROMPT, seeds=SEEDS, num_epochs=1)
    os.utime(first.path, ns=(1, 1))

    again = render_sheet.run_sheet(run, PROMPT, seeds=SEEDS, num_epochs=1)

    assert again == first
    assert first.path.stat().st_mtime_ns == 1


def test_a_sheet_is_drawn_again_when_anything_it_shows_changes(run: RunDir) -> None:
    sheet = render_sheet.run_sheet(run, PROMPT, seeds=SEEDS, num_epochs=1)
    seen = {sheet.path.read_bytes()}

    os.utime(sheet.pictures[0].path, ns=(5, 5))
    render_sheet.run_sheet(run, PROMPT, seeds=SEEDS, num_epochs=1)
    seen.add(sheet.path.read_bytes())
    picture(sheet.pictures[0].path, (0, 99, 0))
    render_sheet.run_sheet(run, PROMPT, seeds=SEEDS, num_epochs=1)
    seen.add(sheet.path.read_bytes())
    sheet.path.write_bytes(b"no picture")
    render_sheet.run_sheet(run, PROMPT, seeds=SEEDS[:1], num_epochs=1)
    seen.add(sheet.path.read_bytes())

    assert len(seen) == 4
    assert not list(sheet.path.parent.glob("*.tmp"))


def test_an_epochs_sheet_has_a_row_per_run(run: RunDir, tmp_path: Path) -> None:
    empty = RunDir(tmp_path / "empty")
    rows = [
        SheetRun(run=run, epoch=0, title="base", prompt=PROMPT),
        SheetRun(run=run, epoch=1, title="lion, network.dim 4", prompt=PROMPT),
        SheetRun(run=empty, epoch=1, title="empty", prompt=PROMPT),
    ]

    sheet = render_sheet.epoch_sheet(
        tmp_path / "report" / "a.png", rows, seeds=SEEDS, title="epoch 1"
    )

    assert [placed.row for placed in sheet.pictures] == ["base"] * 2 + ["lion, network.dim 4"] * 2
    assert sheet.height_px > sheet.pictures[-1].box[1] + 2 * sheet.pictures[-1].box[3]


def test_long_texts_are_wrapped_inside_the_sheet(tmp_path: Path) -> None:
    tile = Tile(path=picture(tmp_path / "a.png"))
    short = render_sheet.compose_sheet(plan(tile))
    long = render_sheet.compose_sheet(plan(tile, text="masterpiece, " * 80, label="x" * 300))

    assert long.width == short.width
    assert long.height > short.height
    assert (long.crop((long.width - 8, 0, long.width, long.height)).getcolors() or [()])[0] == (
        8 * long.height,
        (255, 255, 255),
    )


@pytest.mark.parametrize(("num_columns", "limit"), [(4, 2000), (30, 2000), (60, 4000)])
def test_sheets_are_no_wider_than_cells_that_can_be_seen_need(num_columns: int, limit: int) -> None:
    tiles = [Tile(path=None, note="skipped")] * num_columns
    width = render_sheet.compose_sheet(plan(*tiles)).width
    assert width <= limit <= render_sheet.MAX_SIDE_PX
    assert width >= 42 * num_columns  # two thirds of 64 pixels


def test_a_sheet_may_be_webp_and_is_left_alone_too(tmp_path: Path) -> None:
    tile = Tile(path=picture(tmp_path / "p.png"))
    sheet = render_sheet.write_sheet(tmp_path / "sheet.webp", plan(tile))
    with Image.open(sheet.path) as image:
        assert image.format == "WEBP"
        assert image.size == (sheet.width_px, sheet.height_px)
        assert abs(centre(image.convert("RGB"), sheet.pictures[0].box)[0] - RED[0]) < 12  # type: ignore[index]
    os.utime(sheet.path, ns=(1, 1))
    render_sheet.write_sheet(sheet.path, plan(tile))
    assert sheet.path.stat().st_mtime_ns == 1
    render_sheet.write_sheet(sheet.path, plan(tile, title="another"))
    assert sheet.path.stat().st_mtime_ns != 1


def test_a_run_draws_its_sheets_in_the_format_asked(run: RunDir) -> None:
    sheet = render_sheet.run_sheet(run, PROMPT, seeds=SEEDS, num_epochs=1, sheet_format="webp")
    assert sheet.path == run.sheets_dir / "a.webp"


def test_large_sheets_get_smaller_cells_and_too_large_ones_say_so(tmp_path: Path) -> None:
    tile = Tile(path=None, note="not there yet")
    most = render_sheet.most_cells((512, 768))

    def sized(num_columns: int, num_rows: int) -> SheetPlan:
        return SheetPlan(
            title="many",
            text="prompt",
            columns=tuple(map(str, range(num_columns))),
            rows=(Row(title="row", tiles=(tile,) * num_columns),) * num_rows,
            size_px=(512, 768),
            cell_height_px=320,
        )

    for num_columns, num_rows in ((2, most[1]), (most[0], 2), (2, 3 * most[1])):
        image = render_sheet.compose_sheet(
            render_sheet._within_bounds(sized(num_columns, num_rows))
        )
        assert max(image.size) <= render_sheet.MAX_SIDE_PX
    assert render_sheet._within_bounds(sized(2, most[1])) == sized(2, most[1])
    cut = render_sheet._within_bounds(sized(2, 3 * most[1]))
    assert len(cut.rows) == most[1]
    assert f"the first {most[1]} of {3 * most[1]} rows" in cut.title
