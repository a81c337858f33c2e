"""Contact sheets from image files: labelled rows and columns.

A cell without its image prints why. Sheets that show what they would show again are left alone.
PNG or WebP, by the name of the file.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from optbench.records import Cell
from optbench.render.text import LINE_HEIGHT, lines_height, wrap, write
from optbench.schema import Prompt, SheetFormat
from optbench.storage.files import write_atomic
from optbench.storage.hashing import fingerprint
from optbench.storage.images import opened_rendered
from optbench.storage.rundir import RunDir, read_status

MAX_WIDTH_PX = 2000
MAX_SIDE_PX = 16_000  # what WebP and browsers can do; cells become smaller, down to the least
_LEAST_CELL_PX = 64
_MAX_HEAD_PX = 1200  # title, prompt and column titles at their longest
_KEY = "optbench-key"
_LAYOUT_VERSION = 3  # raise it when equal inputs begin to give other sheets
_RUN_CELL_PX = 320
_EPOCH_CELL_PX = 256
_MARGIN_PX = 28
_GAP_PX = 6
_LABEL_WIDTH_PX = 210
_MIN_TEXT_WIDTH_PX = 640
_TITLE_SIZE_PX, _TEXT_SIZE_PX, _LABEL_SIZE_PX, _NOTE_SIZE_PX = 26, 17, 20, 15
_MAX_TITLE_LINES, _MAX_TEXT_LINES, _MAX_LABEL_LINES = 4, 20, 8
_PNG_COMPRESS_LEVEL = 4
_WEBP_QUALITY = 90
_EXIF_DESCRIPTION = 0x010E
_PAPER, _INK, _FAINT, _MISSING, _RULE = "#ffffff", "#16181d", "#5b6270", "#eceef2", "#c9ced8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One place of a sheet: an image, or why there is none."""

    path: Path | None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One labelled row of tiles."""

    title: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetPlan:
    """Everything a sheet shows."""

    title: str
    text: str  # printed under the title, wrapped
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    size_px: tuple[int, int]  # width and height of the images themselves
    cell_height_px: int  # at most; smaller where the sheet would get too wide


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetRun:
    """One run after one epoch as a row of a sheet."""

    run: RunDir
    epoch: int  # 0: the base alone
    title: str
    prompt: Prompt  # as this run rendered it; sizes may differ between runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Where an image lies in its sheet, in pixels."""

    path: Path
    row: str
    column: str
    box: tuple[int, int, int, int]  # left, top, width, height


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A written sheet, its size, and where its images lie in it."""

    path: Path
    width_px: int
    height_px: int
    pictures: tuple[Placed, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    width: int
    height: int
    cell: tuple[int, int]
    title: tuple[str, ...]
    text: tuple[str, ...]
    row_titles: tuple[tuple[str, ...], ...]
    grid_top: int

    def box(self, row_index: int, column_index: int) -> tuple[int, int, int, int]:
        left = _MARGIN_PX + _LABEL_WIDTH_PX + column_index * (self.cell[0] + _GAP_PX)
        top = self.grid_top + row_index * (self.cell[1] + _GAP_PX)
        return left, top, *self.cell


def run_sheet(
    run: RunDir,
    prompt: Prompt,
    *,
    seeds: Sequence[int],
    num_epochs: int,
    sheet_format: SheetFormat = "png",
) -> Sheet:
    """Return a run's sheet of one prompt: rows are epochs (0 is the base), columns are seeds.

    Args:
        run: Where the images are; the sheet goes to its folder of sheets.
        prompt: What was rendered.
        seeds: The columns.
        num_epochs: Rows after the base's: the epochs asked for; those not there say why.
        sheet_format: What the file is.
    """
    rows = tuple(
        Row(
            title="base, no LoRA" if epoch == 0 else f"epoch {epoch}",
            tiles=_tiles(run, prompt, seeds=seeds, epoch=epoch),
        )
        for epoch in range(num_epochs + 1)
    )
    plan = SheetPlan(
        title=f"{run.name}: prompt {prompt.name}, every epoch",
        text=prompt.text,
        columns=tuple(f"seed {seed}" for seed in seeds),
        rows=rows,
        size_px=(prompt.width, prompt.height),
        cell_height_px=_RUN_CELL_PX,
    )
    return write_sheet(run.sheets_dir / f"{prompt.name}.{sheet_format}", plan)


def epoch_sheet(path: Path, runs: Sequence[SheetRun], *, seeds: Sequence[int], title: str) -> Sheet:
    """Return a sheet of one prompt that compares runs: rows are runs, columns are seeds.

    The first row's prompt gives the text and the cells' shape; put the base alone, epoch 0, first.
    """
    first = runs[0].prompt
    plan = SheetPlan(
        title=title,
        text=first.text,
        columns=tuple(f"seed {seed}" for seed in seeds),
        rows=tuple(
            Row(
                title=row.title,
                tiles=_tiles(row.run, row.prompt, seeds=seeds, epoch=row.epoch),
            )
            for row in runs
        ),
        size_px=(first.width, first.height),
        cell_height_px=_EPOCH_CELL_PX,
    )
    return write_sheet(path, plan)


def most_cells(size_px: tuple[int, int]) -> tuple[int, int]:
    """Return how many columns and rows a sheet of such images can have at all."""
    scale = _LEAST_CELL_PX / max(size_px)
    beside, room = 2 * _MARGIN_PX + _LABEL_WIDTH_PX, MAX_SIDE_PX - _MAX_HEAD_PX
    across = (MAX_SIDE_PX - beside) / (int(size_px[0] * scale) + _GAP_PX)
    return int(across), int(room / (int(size_px[1] * scale) + _GAP_PX))


def write_sheet(path: Path, plan: SheetPlan) -> Sheet:
    """Return a sheet on disk; drawn only if it would show anything else than the file there.

    A sheet of more than `most_cells` shows the first of them, and its title says so.
    """
    plan = _within_bounds(plan)
    layout = _lay_out(plan)
    key = _content_key(plan)
    if _stored_key(path) != key:
        write_atomic(path, _encoded(_draw(plan, layout), path.suffix, key))
    pictures = tuple(
        Placed(path=tile.path, row=row.title, column=column, box=layout.box(row_index, index))
        for row_index, row in enumerate(plan.rows)
        for index, (column, tile) in enumerate(zip(plan.columns, row.tiles, strict=True))
        if tile.path is not None
    )
    return Sheet(path=path, width_px=layout.width, height_px=layout.height, pictures=pictures)


def _within_bounds(plan: SheetPlan) -> SheetPlan:
    across, down = most_cells(plan.size_px)
    if len(plan.columns) <= across and len(plan.rows) <= down:
        return plan
    rows = tuple(Row(title=row.title, tiles=row.tiles[:across]) for row in plan.rows[:down])
    shown = f"the first {len(rows)} of {len(plan.rows)} rows"
    shown += f" and {min(across, len(plan.columns))} of {len(plan.columns)} columns"
    title = f"{plan.title} ({shown}: a larger sheet could not be opened)"
    return replace(plan, title=title, columns=plan.columns[:across], rows=rows)


def _encoded(image: Image.Image, suffix: str, key: str) -> bytes:
    """Return a file's bytes, with what the sheet shows as a key in it."""
    buffer = io.BytesIO()
    if suffix == ".webp":
        exif = Image.Exif()
        exif[_EXIF_DESCRIPTION] = key
        image.save(buffer, "WEBP", quality=_WEBP_QUALITY, exif=exif.tobytes())
    else:
        info = PngInfo()
        info.add_text(_KEY, key)
        image.save(buffer, "PNG", pnginfo=info, compress_level=_PNG_COMPRESS_LEVEL)
    return buffer.getvalue()


def compose_sheet(plan: SheetPlan) -> Image.Image:
    """Return the sheet as an image; every tile is filled, with its own image or with its note."""
    return _draw(plan, _lay_out(plan))


def _tiles(run: RunDir, prompt: Prompt, *, seeds: Sequence[int], epoch: int) -> tuple[Tile, ...]:
    note = _reason(run, epoch)
    tiles = []
    for seed in seeds:
        cell = Cell(
            prompt=prompt.name, width=prompt.width, height=prompt.height, seed=seed, epoch=epoch
        )
        path = run.image_path(cell)
        tiles.append(Tile(path=path) if path.is_file() else Tile(path=None, note=note))
    return tuple(tiles)


def _reason(run: RunDir, epoch: int) -> str:
    """Return why an image of this run's epoch may be missing."""
    if epoch == 0:
        return "base not rendered"
    record = read_status(run.path)
    if record.status == "done":
        is_gone = run.lora_dir.is_dir() and not run.lora_path(epoch).is_file()
        return "not rendered: LoRA file gone" if is_gone else "not rendered"
    if record.status in ("running", "pending"):
        return "not there yet"
    first_line = record.reason.strip().partition("\n")[0]
    return f"{record.status.replace('_', ' ')}: {first_line}".removesuffix(": ")


def _content_key(plan: SheetPlan) -> str:
    """Return what changes with anything a sheet shows; the images count by time and size."""
    rows: list[Any] = []
    for row in plan.rows:
        tiles: list[Any] = []
        for tile in row.tiles:
            stat = None if tile.path is None else tile.path.stat()
            tiles.append(tile.note if stat is None else [stat.st_size, stat.st_mtime_ns])
        rows.append([row.title, tiles])
    content = {
        "version": _LAYOUT_VERSION,
        "texts": [plan.title, plan.text, list(plan.columns)],
        "sizes": [*plan.size_px, plan.cell_height_px],
        "rows": rows,
    }
    return fingerprint(content)


def _stored_key(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        with opened_rendered(path) as image:
            if path.suffix == ".webp":
                return str(image.getexif().get(_EXIF_DESCRIPTION))
            return str(image.info.get(_KEY))
    except (OSError, SyntaxError, ValueError):
        return None  # not a sheet any more: drawn again


def _lay_out(plan: SheetPlan) -> _Layout:
    num_columns = max(1, len(plan.columns))
    beside = 2 * _MARGIN_PX + _LABEL_WIDTH_PX + (num_columns - 1) * _GAP_PX
    width_px, height_px = plan.size_px
    num_rows = max(1, len(plan.rows))
    scale = min(
        plan.cell_height_px / height_px,
        (MAX_WIDTH_PX - beside) / num_columns / width_px,
        ((MAX_SIDE_PX - _MAX_HEAD_PX) / num_rows - _GAP_PX) / height_px,
    )
    scale = max(scale, min(_LEAST_CELL_PX, plan.cell_height_px) / max(plan.size_px))
    cell = max(1, int(width_px * scale)), max(1, int(height_px * scale))
    cells_width = num_columns * cell[0] + (num_columns - 1) * _GAP_PX
    inner = max(_LABEL_WIDTH_PX + cells_width, _MIN_TEXT_WIDTH_PX)
    title = wrap(plan.title, _TITLE_SIZE_PX, inner, max_lines=_MAX_TITLE_LINES)
    text = wrap(plan.text, _TEXT_SIZE_PX, inner, max_lines=_MAX_TEXT_LINES)
    num_header_lines = max(len(lines) for lines in _column_titles(plan, cell[0]))
    grid_top = (
        _MARGIN_PX
        + lines_height(len(title), _TITLE_SIZE_PX)
        + lines_height(len(text), _TEXT_SIZE_PX)
        + 3 * _GAP_PX
        + lines_height(num_header_lines, _NOTE_SIZE_PX)
        + 2 * _GAP_PX
    )
    label_width = _LABEL_WIDTH_PX - 2 * _GAP_PX
    row_titles = tuple(
        wrap(row.title, _LABEL_SIZE_PX, label_width, max_lines=_MAX_LABEL_LINES)
        for row in plan.rows
    )
    return _Layout(
        width=inner + 2 * _MARGIN_PX,
        height=grid_top + len(plan.rows) * (cell[1] + _GAP_PX) - _GAP_PX + _MARGIN_PX,
        cell=cell,
        title=title,
        text=text,
        row_titles=row_titles,
        grid_top=grid_top,
    )


def _column_titles(plan: SheetPlan, width: int) -> list[tuple[str, ...]]:
    """Return every column's title as lines; a line break in it stays one."""
    return [
        tuple(line for part in title.split("\n") for line in wrap(part, _NOTE_SIZE_PX, width))[
            :_MAX_LABEL_LINES
        ]
        for title in plan.columns
    ] or [()]


def _draw(plan: SheetPlan, layout: _Layout) -> Image.Image:
    sheet = Image.new("RGB", (layout.width, layout.height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    top = _MARGIN_PX
    write(pen, layout.title, (_MARGIN_PX, top), size=_TITLE_SIZE_PX, fill=_INK)
    top += lines_height(len(layout.title), _TITLE_SIZE_PX)
    write(pen, layout.text, (_MARGIN_PX, top), size=_TEXT_SIZE_PX, fill=_FAINT)
    for index, lines in enumerate(_column_titles(plan, layout.cell[0])):
        if not lines:
            continue
        left, grid_top, width, _ = layout.box(0, index)
        top = grid_top - _GAP_PX - lines_height(len(lines), _NOTE_SIZE_PX)
        place = left + width // 2, top
        write(pen, lines, place, size=_NOTE_SIZE_PX, fill=_INK, is_centred=True)
    for row_index, (row, lines) in enumerate(zip(plan.rows, layout.row_titles, strict=True)):
        _, top, _, height = layout.box(row_index, 0)
        middle = top + (height - lines_height(len(lines), _LABEL_SIZE_PX)) // 2
        write(pen, lines, (_MARGIN_PX, max(top, middle)), size=_LABEL_SIZE_PX, fill=_INK)
        for index, tile in enumerate(row.tiles):
            _draw_tile(sheet, pen, tile, layout.box(row_index, index))
    return sheet


def _draw_tile(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, tile: Tile, box: tuple[int, int, int, int]
) -> None:
    left, top, width, height = box
    picture, note = _picture(tile, (width, height))
    if picture is not None:
        # Centred: an image of another shape than the sheet's keeps its own.
        place = left + (width - picture.width) // 2, top + (height - picture.height) // 2
        sheet.paste(picture, place)
        return
    pen.rectangle((left, top, left + width - 1, top + height - 1), fill=_MISSING, outline=_RULE)
    inner = width - 4 * _GAP_PX
    max_lines = max(1, int((height - 2 * _GAP_PX) / (_NOTE_SIZE_PX * LINE_HEIGHT)))
    lines = wrap(note, _NOTE_SIZE_PX, inner, max_lines=max_lines)
    middle = top + (height - lines_height(len(lines), _NOTE_SIZE_PX)) // 2
    place = left + width // 2, middle
    write(pen, lines, place, size=_NOTE_SIZE_PX, fill=_FAINT, is_centred=True)


def _picture(tile: Tile, size: tuple[int, int]) -> tuple[Image.Image | None, str]:
    """Return the tile's image fitted into a size, or None and why."""
    if tile.path is None:
        return None, tile.note or "no picture"
    try:
        with opened_rendered(tile.path) as image:
            image.load()
            scale = min(size[0] / image.width, size[1] / image.height)
            fitted = max(1, round(image.width * scale)), max(1, round(image.height * scale))
            resample = Image.Resampling.LANCZOS
            return image.convert("RGB").resize(fitted, resample, reducing_gap=2.0), ""
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None, f"{tile.path.name} cannot be read"
