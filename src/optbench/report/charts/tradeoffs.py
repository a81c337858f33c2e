"""Charts of settings: quality against what it costs, and against the learning rate."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from optbench.analysis.standings import RATES, Standings, frontier, label_of
from optbench.report.charts.line import Axes, Chart, Line, legend, line_chart
from optbench.report.charts.scatter import CostAxis, Point, size_chart
from optbench.report.charts.styles import Styles, numbered_style
from optbench.report.wording import bytes_text, seconds_text

_COSTS = (
    ("seconds_total", "Quality against time", CostAxis(title="training time", text=seconds_text)),
    ("peak_memory_bytes", "Quality against memory", CostAxis(title="peak memory", text=bytes_text)),
    ("lora_bytes", "Quality against file size", CostAxis(title="file size", text=bytes_text)),
)
_AXIS = {
    "validation_objective": "held-out loss minus the base's, plus a quarter of the forgetting",
    "validation_held_out": "held-out loss minus the base's",
    "validation_training": "validation loss minus the base's",
    "final_loss": "training loss",
}
_MAX_LABELS = 10
_UNLIKE = 1.01  # files' names and times differ by less, and nobody chooses by it


def tradeoff_charts(standings: Standings, styles: Styles, *, was_busy: bool) -> Iterator[Chart]:
    """Yield a chart for every cost in which finished settings differ.

    Args:
        standings: How the settings compare.
        styles: The runs', for the colours of settings.
        was_busy: Whether other work ran beside; training times are not drawn then.
    """
    if not standings.is_comparable:
        return
    for name, title, cost in _COSTS:
        settings = [s for s in standings.finished if s.medians.get(name)]
        sizes = [setting.medians[name] for setting in settings]
        if not sizes or max(sizes) < _UNLIKE * min(sizes) or (was_busy and name == "seconds_total"):
            continue
        best = frontier(standings, name)
        # Where they would cover one another, only those that matter have their names beside them.
        labelled = settings if len(settings) <= _MAX_LABELS else best
        points = {}
        for setting in settings:
            interval = setting.interval
            points[setting.label] = Point(
                size_bytes=setting.medians[name],
                value=interval.mean if interval else setting.mean,
                text=setting.label if setting in labelled else "",
                label=setting.label,
                colour=styles[setting.runs[0]].colour,
                low=interval.low if interval else None,
                high=interval.high if interval else None,
            )
        svg = size_chart(
            list(points.values()),
            y_title=_AXIS[standings.measure],
            cost=cost,
            frontier=[points[setting.label] for setting in best],
        )
        if svg is not None:
            yield Chart(
                title=title,
                note="Lower and further left is better; the line joins the settings that no other "
                "beats in both. Bars are 95 % intervals of each alone over its seeds (differences "
                "seed by seed, as in the table, are surer); without a bar there is one "
                f"seed, and the height may be luck. {cost.title.capitalize()} on a log scale.",
                svg=svg,
            )


def rate_charts(standings: Standings) -> Iterator[Chart]:
    """Yield quality over every rate that is varied, a line for each of the other settings."""
    for index, name in enumerate(standings.factors):
        if name not in RATES or not standings.is_comparable:
            continue
        others = standings.factors[:index] + standings.factors[index + 1 :]
        ladders: dict[tuple[str, ...], list[tuple[float, float]]] = {}
        for setting in standings.finished:
            rest = setting.values[:index] + setting.values[index + 1 :]
            try:
                rate = float(setting.values[index])
            except ValueError:
                continue
            if setting.interval is not None:
                ladders.setdefault(rest, []).append((rate, setting.interval.mean))
        lines = []
        lowest = []
        for number, (rest, ladder) in enumerate(ladders.items()):
            x, y = zip(*sorted(ladder), strict=True)
            label = label_of(others, rest)
            lines.append(
                Line(label=label, style=numbered_style(number, f"ladder-{number}"), x=x, y=y)
            )
            best = y.index(min(y))
            is_edge = len(y) > 1 and best in (0, len(y) - 1)
            lowest.append(f"{label} at {x[best]:g}{' (the edge)' if is_edge else ''}")
        axes = Axes(
            x_title=f"{name}, log scale",
            y_title=_AXIS[standings.measure],
            is_log_x=True,
            x_ticks=sorted({x for line in lines for x in line.x if x > 0}),
        )
        svg = line_chart(lines, axes)
        if svg is not None:
            yield Chart(
                title=f"Sensitivity to {name}",
                note="Means over seeds. What is best at the first or the last rate tried may be "
                f"better beyond it, and is not tuned yet. Lowest: {'; '.join(lowest)}.",
                svg=svg + Markup('<p class="legend">{}</p>').format(legend(lines)),
            )
