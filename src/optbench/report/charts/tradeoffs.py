"""Charts of settings: quality against what it costs, and against the rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from optbench.analysis.evidence import COLOURS, DASHES
from optbench.analysis.standings import RATES, Setting, Standings, label_of
from optbench.report.charts.line import Axes, Line, line_chart, swatch
from optbench.report.charts.scatter import Cost, Point, size_chart
from optbench.report.charts.training import Chart
from optbench.report.tables import interval_of
from optbench.report.wording import bytes_text, seconds_text

_COSTS = (
    ("seconds_total", "Quality against time", Cost(title="training time", text=seconds_text)),
    ("peak_memory_bytes", "Quality against memory", Cost(title="peak memory", text=bytes_text)),
    ("lora_bytes", "Quality against file size", Cost(title="file size", text=bytes_text)),
)
_AXIS = {
    "validation_held_out": "held-out loss minus the base's",
    "validation_training": "validation loss minus the base's",
    "final_loss": "training loss",
}
_MAX_LABELS = 10
_UNLIKE = 1.01  # files' names and times differ by less, and nobody chooses by it


def tradeoff_charts(standings: Standings, *, is_crowded: bool) -> Iterator[Chart]:
    """Yield a chart for every cost in which finished settings differ."""
    if not standings.is_comparable:
        return
    for name, title, cost in _COSTS:
        points = [point for one in standings.finished if (point := _point(one, name)) is not None]
        sizes = {point.size_bytes for point in points}
        if (
            not sizes
            or max(sizes) < _UNLIKE * min(sizes)
            or (is_crowded and name == "seconds_total")
        ):
            continue
        best = frontier(points)
        # Where they would cover one another, only those that matter have their names beside them.
        named = points if len(points) <= _MAX_LABELS else best
        shown = [point if point in named else _unnamed(point) for point in points]
        svg = size_chart(shown, y_title=_AXIS[standings.measure], cost=cost, frontier=best)
        if svg is not None:
            yield Chart(
                title=title,
                note="Lower and further left is better; the line joins the settings that no other "
                "beats in both. Bars are 95 % intervals of each alone over its seeds (differences "
                "seed by seed, as in the table, are surer); without a bar there is one "
                f"seed, and the height may be luck. {cost.title.capitalize()} on a log scale.",
                svg=svg,
            )


def frontier(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats in both cost and value, cheapest first (Pareto)."""
    found: list[Point] = []
    for point in sorted(points, key=lambda one: (one.size_bytes, one.value)):
        if not found or point.value < found[-1].value:
            found.append(point)
    return found


def rate_charts(standings: Standings) -> Iterator[Chart]:
    """Yield quality over every rate that is varied, a line for each of the other settings."""
    for index, name in enumerate(standings.factors):
        if name not in RATES or not standings.is_comparable:
            continue
        others = standings.factors[:index] + standings.factors[index + 1 :]
        ladders: dict[tuple[str, ...], list[tuple[float, float]]] = {}
        for one in standings.finished:
            rest = one.values[:index] + one.values[index + 1 :]
            mean = interval_of(one)
            try:
                rate = float(one.values[index])
            except ValueError:
                continue
            if mean is not None:
                ladders.setdefault(rest, []).append((rate, mean.mean))
        lines = []
        for number, (rest, ladder) in enumerate(ladders.items()):
            x, y = zip(*sorted(ladder), strict=True)
            lines.append(
                Line(
                    label=label_of(others, rest),
                    key=f"ladder-{number}",
                    colour=COLOURS[number % len(COLOURS)],
                    dash=DASHES[number // len(COLOURS) % len(DASHES)],
                    x=x,
                    y=y,
                )
            )
        axes = Axes(
            x_title=f"{name}, log scale",
            y_title=_AXIS[standings.measure],
            is_log_x=True,
            x_ticks=sorted({x for line in lines for x in line.x if x > 0}),
        )
        svg = line_chart(lines, axes)
        if svg is not None:
            told = "; ".join(_best_rate(line) for line in lines)
            yield Chart(
                title=f"Sensitivity to {name}",
                note="Means over seeds. What is best at the first or the last rate tried may be "
                f"better beyond it, and is not tuned yet. Lowest: {told}.",
                svg=svg + _legend(lines),
            )


def _legend(lines: Sequence[Line]) -> Markup:
    named = [
        Markup("<span>{} {}</span> ").format(swatch(line.colour, line.dash), line.label)
        for line in lines
    ]
    return Markup('<p class="legend">{}</p>').format(Markup("").join(named))


def _best_rate(line: Line) -> str:
    lowest = min(range(len(line.y)), key=lambda index: line.y[index])
    is_edge = len(line.y) > 1 and lowest in (0, len(line.y) - 1)
    return f"{line.label} at {line.x[lowest]:g}{' (the edge)' if is_edge else ''}"


def _point(one: Setting, name: str) -> Point | None:
    size, interval = one.cost(name), interval_of(one)
    if not size or interval is None:
        return None
    return Point(
        size_bytes=size,
        value=interval.mean,
        text=one.label,
        label=one.label,
        colour=one.runs[0].colour,
        low=interval.low,
        high=interval.high,
    )


def _unnamed(point: Point) -> Point:
    return dataclasses.replace(point, text="")
