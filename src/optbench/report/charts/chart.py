"""A chart as data: what `charts.js` draws with Bokeh, and what notebooks draw with matplotlib."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from markupsafe import Markup

from optbench.analysis.curves import Band, Points, thinned
from optbench.report.charts.styles import Style
from optbench.storage.files import write_atomic

SCHEMA = 1  # of the files; raise it when charts.js could not read older ones
FOLDER = "charts"  # beside the page
_MAX_POINTS_OF_ALL = 16_000  # of one chart: more lines get fewer points each, or pages get slow
_MAX_POINTS = 400  # of one line: a chart is no wider in pixels that count
LIBRARY = ("bokeh.min.js", "bokeh-api.min.js")  # come with the package bokeh

XAxis = Literal["step", "epoch", "fixed"]  # steps and epochs can be drawn over one another and time


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A horizontal line to read a chart against: the base model, the training images."""

    value: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One run's curve, or one of something else that has a name and a style of its own."""

    name: str  # the run's name, or the label of anything else
    points: Points
    raw: Sequence[float] = ()  # what `points` smoothes, at the same x


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """An entry of a legend: a setting with its runs."""

    label: str
    colour: str
    dash: str
    marker: str
    runs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One chart with its heading and what to know before reading it."""

    name: str  # of its file: letters, digits and dashes
    title: str
    note: str
    kind: Literal["curves", "rows", "points", "map"]
    data: Mapping[str, Any]
    keys: tuple[Key, ...] = ()  # a legend of its own; without one, the sweep's settings are
    height_px: int = 300
    has_raw: bool = False
    is_wide: bool = False  # takes the page's whole width


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One setting in a chart of rows: its value with an interval, and columns beside it."""

    label: str
    colour: str
    marker: str
    value: float
    low: float | None = None
    high: float | None = None
    notes: tuple[str, ...] = ()  # in the order of the columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """The title of an axis, with its unit, and its scale."""

    title: str
    is_log: bool = False
    unit: Literal["", "bytes", "seconds"] = ""  # how numbers are written


def curves(
    name: str,
    title: str,
    note: str,
    *,
    x: XAxis,
    y: Axis,
    lines: Sequence[Line],
    bands: Mapping[str, Band] | None = None,
    levels: Sequence[Level] = (),
    x_axis: Axis | None = None,
    keys: Sequence[Key] = (),
) -> Chart | None:
    """Return a chart of lines, or None where no line has two points to join.

    Args:
        name: Of the chart's file.
        title: In words.
        note: What to know before reading it.
        x: What the points' x is; steps and epochs can be changed into one another by the reader.
        y: The y axis.
        lines: One for each run.
        bands: By the label of a setting: its mean and range over seeds.
        levels: Lines to read it against.
        x_axis: The x axis where x is `fixed`.
        keys: The legend, where it is not that of the sweep's settings.
    """
    drawable = [line for line in lines if len(line.points) > 1]
    if not drawable:
        return None
    max_points = min(_MAX_POINTS, max(2, _MAX_POINTS_OF_ALL // len(drawable)))
    listed = []
    for line in drawable:
        chosen = thinned(range(len(line.points)), max_points=max_points)
        xys = [[line.points[place][axis] for place in chosen] for axis in (0, 1)]
        raw = [[line.raw[place] for place in chosen]] if line.raw else []
        listed.append([line.name, *([_rounded(v) for v in column] for column in (*xys, *raw))])
    max_points = min(_MAX_POINTS, max(2, _MAX_POINTS_OF_ALL // max(1, len(bands or ()))))
    banded = []
    for label, band in (bands or {}).items():
        rows = thinned(
            list(zip(band.x, band.mean, band.low, band.high, strict=True)), max_points=max_points
        )
        columns = [[_rounded(value) for value in column] for column in zip(*rows, strict=True)]
        banded.append([label, list(band.runs), *columns])
    data: dict[str, Any] = {
        "x": x,
        "y": _axis(y),
        "lines": listed,
        "bands": banded,
        "levels": [{"value": _rounded(level.value), "text": level.text} for level in levels],
    }
    if x_axis is not None:
        data["xAxis"] = _axis(x_axis)
    return Chart(
        name=name,
        title=title,
        note=note,
        kind="curves",
        data=data,
        keys=tuple(keys),
        has_raw=any(line.raw for line in drawable),
    )


def rows(
    name: str,
    title: str,
    note: str,
    *,
    axis: Axis,
    listed: Sequence[Row],
    columns: Sequence[str] = (),
    levels: Sequence[Level] = (),
    is_bars: bool = False,
) -> Chart | None:
    """Return a chart with a row for each setting (the first on top), or None for no row."""
    known = [row for row in listed if math.isfinite(row.value)]
    if not known:
        return None
    return Chart(
        name=name,
        title=title,
        note=note,
        kind="rows",
        height_px=110 + 28 * len(known),
        is_wide=bool(columns),
        data={
            "axis": _axis(axis),
            "columns": list(columns),
            "bars": is_bars,
            "levels": [{"value": _rounded(level.value), "text": level.text} for level in levels],
            "rows": [
                {
                    "label": row.label,
                    "colour": row.colour,
                    "marker": row.marker,
                    "value": _rounded(row.value),
                    "low": None if row.low is None else _rounded(row.low),
                    "high": None if row.high is None else _rounded(row.high),
                    "notes": list(row.notes),
                }
                for row in known
            ],
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One point of a scatter, for instance a LoRA file."""

    label: str
    colour: str
    marker: str
    x: float
    y: float


def points(
    name: str,
    title: str,
    note: str,
    *,
    x: Axis,
    y: Axis,
    listed: Sequence[Point],
    levels: Sequence[Level] = (),
) -> Chart | None:
    """Return a scatter, or None for fewer than two points."""
    known = [p for p in listed if math.isfinite(p.y) and (p.x > 0 or not x.is_log)]
    if len(known) < 2:
        return None
    return Chart(
        name=name,
        title=title,
        note=note,
        kind="points",
        keys=tuple(
            Key(label=p.label, colour=p.colour, dash="", marker=p.marker, runs=()) for p in known
        ),
        data={
            "xAxis": _axis(x),
            "y": _axis(y),
            "levels": [{"value": _rounded(level.value), "text": level.text} for level in levels],
            "points": [
                {
                    "label": p.label,
                    "colour": p.colour,
                    "marker": p.marker,
                    "x": _rounded(p.x),
                    "y": _rounded(p.y),
                }
                for p in known
            ],
        },
    )


def write_charts(
    charts: Iterable[Chart], settings: Sequence[Key], runs: Mapping[str, Any], report_dir: Path
) -> None:
    """Write every chart's file, the sweep's legend and the library that draws them.

    A page that is opened by double click can load classic scripts and nothing else, so each file
    is one, and hands its data over by a call.

    Args:
        charts: What can be drawn.
        settings: The legend that charts of runs share.
        runs: By name, what the page knows of a run: label, ends of its epochs, whether it stopped.
        report_dir: The page's folder.
    """
    folder = report_dir / FOLDER
    written = {
        "sweep": {
            "schema": SCHEMA,
            "settings": [
                {
                    "label": key.label,
                    "colour": key.colour,
                    "dash": key.dash,
                    "marker": key.marker,
                    "runs": list(key.runs),
                }
                for key in settings
            ],
            "runs": dict(runs),
        }
    }
    for chart in charts:
        written[chart.name] = {
            "kind": chart.kind,
            "title": chart.title,
            "height": chart.height_px,
            **chart.data,
            "keys": [
                {"label": k.label, "colour": k.colour, "dash": k.dash, "marker": k.marker}
                for k in chart.keys
            ],
        }
    for name, data in written.items():
        # ASCII only, so that it reads the same whatever a browser takes for the file's encoding.
        text = json.dumps(data, separators=(",", ":"), allow_nan=False)
        # Whoever puts it into a page must not end its script by a name of somebody's run.
        text = text.replace("<", "\\u003c")
        write_atomic(folder / f"{name}.js", f'optbenchCharts.add("{name}",{text});\n')
    for path in folder.glob("*.js"):
        if path.stem not in written and path.name not in LIBRARY:
            path.unlink()  # a chart that an earlier report had
    for name in LIBRARY:
        source = library_file(name)
        target = folder / name
        if not target.is_file() or target.stat().st_size != source.stat().st_size:
            write_atomic(target, source.read_bytes())


def library_file(name: str) -> Path:
    """Return where the package bokeh keeps one of its scripts."""
    return Path(str(files("bokeh"))) / "server" / "static" / "js" / name


def _axis(axis: Axis) -> dict[str, Any]:
    return {"title": axis.title, "log": axis.is_log, "unit": axis.unit}


def _rounded(value: float) -> float | None:
    """Return a number with the digits that anyone can see, None where it is none."""
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) and abs(value) < 1e15 else float(f"{value:.5g}")


def swatch(style: Style) -> Markup:
    """Return a short piece of a run's line with its marker, for legends and tables."""
    return Markup(
        '<svg class="swatch" width="34" height="12" viewBox="0 0 34 12" aria-hidden="true">'
        '<line x1="1" y1="6" x2="33" y2="6" stroke="{}" stroke-width="2.5" stroke-dasharray="{}"/>'
        "</svg>"
    ).format(style.colour, style.dash)
