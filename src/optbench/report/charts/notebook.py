"""Charts in a notebook, in the colours of the report. They need matplotlib: optbench[notebooks].

Bokeh draws the report's page, but code hosts show no script's output in a stored notebook, so what
notebooks draw are images; `axes` is matplotlib's, to be changed at will.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from optbench.analysis import (
    PHASES,
    Frames,
    factors,
    known_records,
    rank_settings,
    setting_labels,
)
from optbench.errors import MissingPackageError, Problem
from optbench.report.charts.costs import AXIS_TITLES
from optbench.report.charts.styles import DASHES, styles_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = ("o", "s", "^", "D", "v", "*")  # one for each dash pattern, as on the page
_DPI, _WIDTH_INCHES, _HEIGHT_INCHES = 75, 8.4, 3.6
_MAX_MARKED = 12  # points of a line that are drawn as such
# No optimizer's colour: greys for training, browns for what comes beside it.
_PHASE_COLOURS = ("#d5dbe4", "#a9b4c4", "#7a8799", "#3f4a5a")
_PAUSE_COLOURS = ("#f0d9b8", "#d9a35c", "#8a5a1c")


@dataclass(frozen=True, slots=True)
class Drawing:
    """A chart that a notebook shows by itself; a sentence where there is nothing to draw."""

    figure: Figure | None
    axes: Axes | None
    sentence: str = ""

    def _repr_png_(self) -> bytes | None:
        if self.figure is None:
            return None
        data = io.BytesIO()
        self.figure.savefig(data, format="png", dpi=_DPI, bbox_inches="tight")
        return data.getvalue()

    def __repr__(self) -> str:
        """Return the sentence, or what is drawn."""
        if self.axes is None:
            return self.sentence
        return " over ".join(filter(None, (self.axes.get_ylabel(), self.axes.get_xlabel())))


def draw_curves(
    frames: Frames,
    bands: pd.DataFrame,
    *,
    x_title: str,
    y_title: str,
    is_log_y: bool = False,
    base: float | None = None,
) -> Drawing:
    """Return a line for each setting over its seeds' range, from `frames.over_seeds`.

    Args:
        frames: The sweep's.
        bands: What to draw.
        x_title: Of the x axis, with its unit.
        y_title: Of the y axis, with its unit.
        is_log_y: Whether the y axis is logarithmic.
        base: Where the base model is, to read the lines against.
    """
    if not len(bands):
        return Drawing(None, None, f"Nothing to draw: no {y_title} was recorded.")
    x = bands.columns[1]
    figure, axes = _axes(x_title, y_title)
    looks = _looks(frames)
    for setting, part in bands[~bands["is_stopped"].astype(bool)].groupby("setting", sort=False):
        colour, dash, marker = looks[str(setting)]
        points = marker if len(part) <= _MAX_MARKED else None
        num_seeds = int(part["num_seeds"].max())
        label = f"{setting} ({num_seeds} seed{'' if num_seeds == 1 else 's'})"
        axes.plot(
            part[x], part["mean"], color=colour, linestyle=dash, marker=points, label=label, lw=1.8
        )
        if num_seeds > 1:
            axes.fill_between(part[x], part["low"], part["high"], color=colour, alpha=0.18, lw=0)
    for setting, part in bands[bands["is_stopped"].astype(bool)].groupby("setting", sort=False):
        colour, dash, _ = looks[str(setting)]
        axes.plot(part[x], part["mean"], color=colour, linestyle=dash, lw=1)
        axes.plot(part[x].iloc[-1:], part["mean"].iloc[-1:], "x", color=colour, ms=9)
    if base is not None:
        axes.axhline(base, color="#e08a00", linestyle="--", lw=1)
        axes.annotate(
            "the base model", (0.01, base), xycoords=("axes fraction", "data"), va="bottom"
        )
    if is_log_y:
        axes.set_yscale("log")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    return Drawing(figure, axes)


def draw_settings(frames: Frames) -> Drawing:
    """Return each setting's result with its 95 % interval alone, the best on top: a forest plot."""
    standings = rank_settings(frames)
    if not standings.finished:
        return Drawing(None, None, "Nothing to draw: no run has finished.")
    looks = _looks(frames)
    figure, axes = _axes(AXIS_TITLES[standings.measure], "", rows=len(standings.finished))
    for place, setting in enumerate(standings.finished):
        colour, _, marker = looks[setting.label]
        interval = setting.interval
        if interval is not None and interval.low is not None and interval.high is not None:
            axes.plot([interval.low, interval.high], [place, place], color=colour, lw=2)
        mean = interval.mean if interval else setting.mean
        axes.plot([mean], [place], marker, color=colour, ms=8)
    axes.set_yticks(range(len(standings.finished)), [s.label for s in standings.finished])
    axes.invert_yaxis()
    return Drawing(figure, axes)


def draw_phases(frames: Frames) -> Drawing:
    """Return the seconds of a whole run as stacked bars, a bar for each setting (median of runs).

    Data, forward, backward and optimizer are training; validating, rendering and saving come on
    top, and their share is written at the end of each bar.
    """
    rows = phase_seconds(frames)
    if not len(rows):
        return Drawing(None, None, "Nothing to draw: no time was recorded.")
    figure, axes = _axes("seconds of a run", "", rows=len(rows))
    left = pd.Series(0.0, index=rows.index)
    colours = (*_PHASE_COLOURS, *_PAUSE_COLOURS)
    parts = [name for name in rows.columns if name != "share beside training"]
    for name in parts:
        axes.barh(
            range(len(rows)), rows[name], left=left, color=colours[parts.index(name)], label=name
        )
        left = left + rows[name]
    for place, (total, share) in enumerate(zip(left, rows["share beside training"], strict=True)):
        axes.text(total, place, f" {share:.0%} beside training", va="center")
    axes.margins(x=0.25)
    axes.set_yticks(range(len(rows)), [str(label) for label in rows.index])
    axes.invert_yaxis()
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    return Drawing(figure, axes)


def phase_seconds(frames: Frames) -> pd.DataFrame:
    """Return by setting the median seconds of a run in each phase, and the share beside training.

    Phases that no run recorded are left out.
    """
    labels = setting_labels(frames.runs)
    rows = []
    for row in known_records(frames.runs):
        label = labels.get((str(row["sweep"]), str(row["run"])))
        total = row.get("seconds_total")
        medians = [row.get(phase) or 0.0 for phase in PHASES]
        if label is None or not total or not sum(medians):
            continue
        parts = {
            phase.removeprefix("seconds_"): total * median / sum(medians)
            for phase, median in zip(PHASES, medians, strict=True)
        }
        pauses = {
            word: row.get(f"seconds_{name}")
            for name, word in (
                ("validate", "validating"),
                ("render", "rendering"),
                ("save", "saving"),
            )
        }
        known = {word: seconds for word, seconds in pauses.items() if seconds is not None}
        beside = sum(known.values())
        rows.append(
            {"setting": label, **parts, **known, "share beside training": beside / (total + beside)}
        )
    return pd.DataFrame(rows).groupby("setting", sort=False).median() if rows else pd.DataFrame()


def draw_heat(table: pd.DataFrame, *, title: str, x_title: str, is_centred: bool = True) -> Drawing:
    """Return a table of numbers as a map with the numbers in it; with `is_centred` 0 is white."""
    if not len(table):
        return Drawing(None, None, f"Nothing to draw: no {title} was recorded.")
    figure, axes = _axes(x_title, "", rows=len(table))
    values = table.to_numpy(dtype=float)
    largest = max((abs(v) for v in values.ravel() if math.isfinite(v)), default=1.0) or 1.0
    image = axes.imshow(
        values,
        aspect="auto",
        cmap="PuOr" if is_centred else "viridis",
        vmin=-largest if is_centred else None,
        vmax=largest if is_centred else None,
    )
    for row, of_row in enumerate(values):
        for column, value in enumerate(of_row):
            if math.isfinite(value):
                ink = "white" if abs(value) > 0.7 * largest else "black"
                axes.text(column, row, f"{value:+.3g}", ha="center", va="center", color=ink)
    axes.set_yticks(range(len(table)), [str(label) for label in table.index])
    axes.set_xticks(range(len(table.columns)), [str(name) for name in table.columns])
    axes.grid(False)
    figure.colorbar(image, ax=axes, label=title)
    return Drawing(figure, axes)


def draw_boxes(values: Sequence[tuple[str, Sequence[float]]], *, x_title: str) -> Drawing:
    """Return a box for each list of numbers: median, quartiles, whiskers of 1.5 quartile ranges."""
    known = [(label, list(numbers)) for label, numbers in values if len(numbers)]
    if not known:
        return Drawing(None, None, f"Nothing to draw: no {x_title} was recorded.")
    figure, axes = _axes(x_title, "", rows=len(known))
    axes.boxplot(
        [numbers for _, numbers in known],
        orientation="horizontal",
        tick_labels=[label for label, _ in known],
        flierprops={"markersize": 3},
    )
    axes.invert_yaxis()
    return Drawing(figure, axes)


def _axes(x_title: str, y_title: str, *, rows: int | None = None) -> tuple[Figure, Axes]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingPackageError(
            Problem(
                "matplotlib",
                "not installed",
                "the package that draws charts in notebooks",
                "pip install 'optbench[notebooks]'",
            )
        ) from None
    height = _HEIGHT_INCHES if rows is None else 0.9 + 0.34 * rows
    figure = Figure(figsize=(_WIDTH_INCHES, height))
    axes = figure.subplots()
    axes.set(xlabel=x_title, ylabel=y_title)
    axes.grid(True, color="#dfe3ea")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _looks(frames: Frames) -> dict[str, tuple[str, Any, str]]:
    """Return each setting's colour, dash pattern and marker for matplotlib, as in the report."""
    rows = {str(row["run"]): row for row in known_records(frames.runs)}
    styles = styles_of(rows, factors(frames.runs))
    looks: dict[str, tuple[str, Any, str]] = {}
    for (_, run), label in setting_labels(frames.runs).items():
        colour, dash = styles[run]
        lengths = tuple(float(length) / 2 for length in dash.split())
        marker = _MARKERS[DASHES.index(dash)]
        looks.setdefault(label, (colour, (0, lengths) if lengths else "-", marker))
    return looks
