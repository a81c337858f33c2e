"""Draw a LoRA's singular values and the energy that every layer keeps when it is resized."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from optbench.report.charts.line import Axes, Line, legend, line_chart
from optbench.report.charts.styles import COLOURS, DASHES, Style

_ROW_PX, _COLUMN_PX, _LABEL_PX, _TITLE_PX = 5, 84, 190, 44
_MAX_CELLS_WITH_WORDS = 6000
_BLOCK = re.compile(r"lora_(te\d?|unet)_(?:text_model_)?(.*)")
_UNET_BLOCK = re.compile(r"((?:down|up|input|output)_blocks_\d+|mid(?:dle)?_block|conv\w+|time\w+)")


def spectrum_chart(layers: Sequence[Mapping[str, Any]]) -> tuple[Markup | None, Markup]:
    """Return the median over layers of S_i / S_1, by kind of layer, and the lines' legend."""
    groups: dict[str, list[list[float]]] = {}
    for row in layers:
        singular_values = row.get("singular_values")
        values = [
            float(value)
            for value in (singular_values if isinstance(singular_values, (list, tuple)) else ())
            if isinstance(value, (int, float))
        ]
        if values and values[0] > 0:
            part = "unet" if str(row.get("layer")).startswith("lora_unet") else "text encoder"
            kind = f"{part}, {'convolutions' if row.get('is_conv') is True else 'linear'}"
            groups.setdefault(kind, []).append([value / values[0] for value in values])
    lines = []
    for number, (name, spectra) in enumerate(sorted(groups.items())):
        length = max(map(len, spectra))
        medians = [
            statistics.median([s[index] if index < len(s) else 0.0 for s in spectra])
            for index in range(length)
        ]
        points = [(index + 1.0, value) for index, value in enumerate(medians) if value > 1e-6]
        lines.append(
            Line(
                label=f"{name} ({len(spectra)} {'layer' if len(spectra) == 1 else 'layers'})",
                style=Style(
                    f"spectrum-{number}",
                    COLOURS[number % len(COLOURS)],
                    DASHES[number % len(DASHES)],
                ),
                x=[x for x, _ in points],
                y=[y for _, y in points],
            )
        )
    axes = Axes(x_title="singular value", y_title="share of the largest", is_log_y=True)
    return line_chart(lines, axes), legend(lines)


def energy_map(columns: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> Markup | None:
    """Return a map of the energy every layer kept: a row per layer, a column per file.

    Args:
        columns: A file's title and its layers' records; the first file's layers give the rows.
    """
    names = [str(row.get("layer")) for row in columns[0][1]] if columns else []
    if not names:
        return None
    height = _TITLE_PX + len(names) * _ROW_PX + 4
    width = _LABEL_PX + len(columns) * _COLUMN_PX
    parts = [
        Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
            _LABEL_PX + (number + 0.5) * _COLUMN_PX, _TITLE_PX - 10, title
        )
        for number, (title, _) in enumerate(columns)
    ]
    # A line and a title where each block of the base begins.
    last, last_y = "", -100.0
    for index, name in enumerate(names):
        block = _block(name)
        if block == last:
            continue
        last, top = block, _TITLE_PX + index * _ROW_PX
        parts.append(
            Markup('<line class="rule" x1="0" x2="{}" y1="{}" y2="{}"/>').format(width, top, top)
        )
        if top - last_y >= 2 * _ROW_PX:
            parts.append(Markup('<text x="0" y="{}">{}</text>').format(top + 11, block))
            last_y = top
    has_words = len(names) * len(columns) <= _MAX_CELLS_WITH_WORDS
    for number, (_, layers) in enumerate(columns):
        by_name = {str(row.get("layer")): row for row in layers}
        for index, name in enumerate(names):
            row = by_name.get(name)
            if row is not None:
                parts.append(_cell(row, number, index, has_words=has_words))
    return Markup(
        '<svg class="chart map" viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img"'
        ' aria-label="retained energy of every layer">{2}</svg>'
    ).format(width, height, Markup("").join(parts))


def _cell(row: Mapping[str, Any], column: int, index: int, *, has_words: bool) -> Markup:
    norm = row.get("retained_fro")
    energy = min(1.0, max(0.0, float(norm) ** 2)) if isinstance(norm, (int, float)) else 0.0
    words = Markup("")
    if has_words:
        words = Markup("<title>{}: {} of energy, dim {} of {}</title>").format(
            row.get("layer"), f"{energy:.1%}", row.get("new_dim"), row.get("old_dim")
        )
    return Markup(
        '<rect x="{}" y="{}" width="{}" height="{}" fill="#d9541e" fill-opacity="{}">{}</rect>'
    ).format(
        _LABEL_PX + column * _COLUMN_PX,
        _TITLE_PX + index * _ROW_PX,
        _COLUMN_PX - 2,
        _ROW_PX,
        # The square root: the first per cent that is lost must be seen.
        f"{(1 - energy) ** 0.5:.3f}",
        words,
    )


def _block(name: str) -> str:
    """Return which part of the base a layer is in, in words."""
    match = _BLOCK.fullmatch(name)
    if match is None:
        return "other layers"
    if match[1] != "unet":
        return f"text encoder{match[1].removeprefix('te').rjust(2) if match[1] != 'te' else ''}"
    inside = _UNET_BLOCK.match(match[2])
    return f"unet {inside[1].replace('_', ' ')}" if inside else "unet"
