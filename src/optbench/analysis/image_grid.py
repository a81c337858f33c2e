"""Rendered images of a sweep in one table, to look at in a notebook."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from optbench.storage.images import opened_rendered

_QUALITY = 82
_GAP_PX, _TEXT_PX = 4, 14
_PAPER, _INK, _MISSING = "#ffffff", "#16181d", "#eceef2"

Axis = Literal["run", "setting", "epoch", "prompt", "seed"]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ImageGrid:
    """A table of images, which a notebook shows by itself; `image` can be saved."""

    image: Image.Image
    rows: tuple[str, ...]
    columns: tuple[str, ...]

    def __repr__(self) -> str:
        """Return how large the table is."""
        return f"{len(self.rows)} x {len(self.columns)} images"

    def _repr_jpeg_(self) -> bytes:
        data = io.BytesIO()
        self.image.save(data, "JPEG", quality=_QUALITY)
        return data.getvalue()


def image_grid(
    images: pd.DataFrame,
    root: Path,
    *,
    rows: Axis,
    columns: Axis,
    label: Callable[[Axis, str, object], str],
    order: Sequence[tuple[str, str]],
    height_px: int,
) -> ImageGrid:
    """Return the images in rows and columns; of several at one place the first.

    Args:
        images: Rows of the images frame, with the columns `rows` and `columns`.
        root: What their paths are relative to.
        rows: What a row is.
        columns: What a column is.
        label: The words for a value: of an axis, in a sweep.
        order: The (sweep, run) of all runs as they are to stand.
        height_px: Of one image.

    Raises:
        DatasetError: If an image cannot be read.
    """
    places = {run: place for place, run in enumerate(order)}
    keys = [(str(s), str(r)) for s, r in zip(images["sweep"], images["run"], strict=True)]
    listed = images.assign(_at=[places.get(key, len(places)) for key in keys])
    listed = listed.sort_values(["_at", "epoch", "prompt", "seed"], kind="stable")
    heads = {
        axis: list(
            dict.fromkeys(
                label(axis, str(sweep), value)
                for sweep, value in zip(listed["sweep"], listed[axis], strict=True)
            )
            if axis in ("run", "setting")
            else (label(axis, "", value) for value in sorted(listed[axis].unique()))
        )
        for axis in (rows, columns)
    }
    cells: dict[tuple[str, str], Path] = {}
    for row in listed.to_dict("records"):
        place = (
            label(rows, str(row["sweep"]), row[rows]),
            label(columns, str(row["sweep"]), row[columns]),
        )
        cells.setdefault(place, root / str(row["path"]))
    font = ImageFont.load_default(_TEXT_PX)
    left = max((int(font.getlength(text)) for text in heads[rows]), default=0) + 3 * _GAP_PX
    tiles = {place: _tile(path, height_px) for place, path in cells.items()}
    width = max((tile.width for tile in tiles.values()), default=height_px)
    top = _TEXT_PX + 3 * _GAP_PX
    sheet = Image.new(
        "RGB",
        (
            left + len(heads[columns]) * (width + _GAP_PX),
            top + len(heads[rows]) * (height_px + _GAP_PX),
        ),
        _PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    for number, text in enumerate(heads[columns]):
        draw.text((left + number * (width + _GAP_PX), _GAP_PX), text, _INK, font)
    for row_number, row_text in enumerate(heads[rows]):
        y = top + row_number * (height_px + _GAP_PX)
        draw.text((_GAP_PX, y + height_px // 2 - _TEXT_PX), row_text, _INK, font)
        for number, text in enumerate(heads[columns]):
            x = left + number * (width + _GAP_PX)
            tile = tiles.get((row_text, text))
            if tile is None:
                draw.rectangle((x, y, x + width - 1, y + height_px - 1), _MISSING)
            else:
                sheet.paste(tile, (x, y))
    return ImageGrid(image=sheet, rows=tuple(heads[rows]), columns=tuple(heads[columns]))


def _tile(path: Path, height_px: int) -> Image.Image:
    with opened_rendered(path) as image:
        width_px = max(1, round(image.width * height_px / image.height))
        return image.convert("RGB").resize((width_px, height_px), Image.Resampling.LANCZOS)
