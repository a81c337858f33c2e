"""A LoRA's singular values, and the energy that every layer keeps when it is resized."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from optbench.report.charts.chart import Axis, Chart, Key, Line, curves
from optbench.report.charts.styles import numbered_style

_ROW_PX, _AXES_PX, _MIN_PX = 5, 90, 220
_BLOCK = re.compile(r"lora_(te\d?|unet)_(?:text_model_)?(.*)")
_UNET_BLOCK = re.compile(r"((?:down|up|input|output)_blocks_\d+|mid(?:dle)?_block|conv\w+|time\w+)")


def spectrum_chart(
    name: str, title: str, note: str, layers: Sequence[Mapping[str, Any]]
) -> Chart | None:
    """Return the median over layers of S_i / S_1, by kind of layer; None where none is known."""
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
    lines, keys = [], []
    for number, (kind, spectra) in enumerate(sorted(groups.items())):
        length = max(map(len, spectra))
        medians = [
            statistics.median([s[index] if index < len(s) else 0.0 for s in spectra])
            for index in range(length)
        ]
        label = f"{kind} ({len(spectra)} {'layer' if len(spectra) == 1 else 'layers'})"
        style = numbered_style(number, f"spectrum-{number}")
        lines.append(
            Line(
                name=label,
                points=[
                    (index + 1.0, value) for index, value in enumerate(medians) if value > 1e-6
                ],
            )
        )
        keys.append(
            Key(label=label, colour=style.colour, dash=style.dash, marker=style.marker, runs=())
        )
    return curves(
        name,
        title,
        note,
        x="fixed",
        x_axis=Axis(title="singular value, by size"),
        y=Axis(title="share of the largest", is_log=True),
        lines=lines,
        keys=keys,
    )


def energy_map(
    name: str,
    title: str,
    note: str,
    columns: Sequence[tuple[str, Sequence[Mapping[str, Any]]]],
) -> Chart | None:
    """Return a map of the energy every layer kept: a row per layer, a column per file.

    Args:
        name: Of the chart's file.
        title: In words.
        note: What to know before reading it.
        columns: A file's title and its layers' records; the first file's layers give the rows.
    """
    names = [str(row.get("layer")) for row in columns[0][1]] if columns else []
    if not names:
        return None
    blocks: list[tuple[int, str]] = []  # where each block of the base begins
    for index, layer in enumerate(names):
        if not blocks or _block(layer) != blocks[-1][1]:
            blocks.append((index, _block(layer)))
    alphas: list[list[float | None]] = []
    texts: list[list[str]] = []
    for _, layers in columns:
        by_name = {str(row.get("layer")): row for row in layers}
        cells = [by_name.get(layer) for layer in names]
        energies = [None if row is None else _energy(row) for row in cells]
        # The square root: the first per cent that is lost must be seen.
        alphas.append([None if e is None else round((1 - e) ** 0.5, 3) for e in energies])
        texts.append(
            [
                ""
                if row is None or energy is None
                else f"{energy:.1%} of energy, dim {row.get('new_dim')} of {row.get('old_dim')}"
                for row, energy in zip(cells, energies, strict=True)
            ]
        )
    # Titles of blocks need room.
    shown = [block for place, block in enumerate(blocks) if place == 0 or _is_apart(blocks, place)]
    return Chart(
        name=name,
        title=title,
        note=note,
        kind="map",
        height_px=max(_MIN_PX, _AXES_PX + _ROW_PX * len(names)),
        is_wide=True,
        data={
            "xAxis": {"title": "file", "log": False, "unit": ""},
            "y": {"title": "layer", "log": False, "unit": ""},
            "rows": names,
            "columns": [title for title, _ in columns],
            "values": alphas,
            "texts": texts,
            "blocks": [list(block) for block in shown],
        },
    )


def _is_apart(blocks: Sequence[tuple[int, str]], place: int) -> bool:
    return blocks[place][0] - blocks[place - 1][0] >= 3


def _energy(row: Mapping[str, Any]) -> float:
    norm = row.get("retained_fro")
    return min(1.0, max(0.0, float(norm) ** 2)) if isinstance(norm, (int, float)) else 0.0


def _block(name: str) -> str:
    """Return which part of the base a layer is in, in words."""
    match = _BLOCK.fullmatch(name)
    if match is None:
        return "other layers"
    if match[1] != "unet":
        return f"text encoder{match[1].removeprefix('te').rjust(2) if match[1] != 'te' else ''}"
    inside = _UNET_BLOCK.match(match[2])
    return f"unet {inside[1].replace('_', ' ')}" if inside else "unet"
