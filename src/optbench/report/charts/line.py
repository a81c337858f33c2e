"""Draw curves as SVG, so that the page needs no library and no network.

Lines differ in colour and dash pattern, so none is told by colour alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from markupsafe import Markup, escape

from optbench.report.charts.styles import Style
from optbench.report.wording import number_text

WIDTH_PX, HEIGHT_PX = 640, 320
_LEFT_PX, _RIGHT_PX, _TOP_PX, _BOTTOM_PX = 68, 12, 12, 40
_MAX_POINTS = 400
NUM_TICKS = 5
SMOOTHING = 15  # a curve is smoothed over this part of its steps ...
MIN_SMOOTHING_STEPS = 8  # ... and over no fewer than these
_OUTLIERS = 0.02  # of all points at either end; a curve leaves the chart ...
_ROOM = 0.4  # ... beyond so much of the range of the others

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One chart with its heading and what to know before reading it."""

    title: str
    note: str
    svg: Markup
    legend: Markup = Markup("")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One run's curve."""

    label: str
    style: Style
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """The titles and scales of the two axes."""

    x_title: str
    y_title: str
    is_log_y: bool = False
    is_log_x: bool = False
    x_ticks: Sequence[float] = ()  # where round numbers would not do


def swatch(style: Style) -> Markup:
    """Return a short piece of a line, for legends and tables."""
    return Markup(
        '<svg class="swatch" width="34" height="10" aria-hidden="true"><line x1="1" y1="5" x2="33"'
        ' y2="5" stroke="{}" stroke-width="2.5" stroke-dasharray="{}"/></svg>'
    ).format(style.colour, style.dash)


def legend(lines: Sequence[Line]) -> Markup:
    """Return every line's swatch and label."""
    return Markup(" ").join(
        Markup("<span>{} {}</span>").format(swatch(line.style), line.label) for line in lines
    )


def line_chart(lines: Sequence[Line], axes: Axes) -> Markup | None:
    """Return curves as one SVG, or None when no line has two points to join."""
    drawable = [thinned for line in lines if len((thinned := _drawable(line, axes)).x) > 1]
    if not drawable:
        return None
    across_all = [_scaled_x(x, axes) for line in drawable for x in line.x]
    low_x, high_x = min(across_all), max(across_all)
    low_y, high_y = _y_range(drawable, axes)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (_scaled_x(x, axes) - low_x) / ((high_x - low_x) or 1.0)
        up = (_scaled(y, axes) - low_y) / ((high_y - low_y) or 1.0)
        left = _LEFT_PX + across * (WIDTH_PX - _LEFT_PX - _RIGHT_PX)
        return left, HEIGHT_PX - _BOTTOM_PX - up * (HEIGHT_PX - _TOP_PX - _BOTTOM_PX)

    bottom = HEIGHT_PX - _BOTTOM_PX
    parts = [axis_titles(axes.x_title, axes.y_title, left=_LEFT_PX, right=_RIGHT_PX, top=_TOP_PX)]
    for tick in [_scaled_x(x, axes) for x in axes.x_ticks] or _ticks(low_x, high_x):
        x = 10**tick if axes.is_log_x else tick
        left, _ = place(x, _unscaled(low_y, axes))
        parts.append(
            Markup(
                f'<line class="rule" x1="{left:.1f}" x2="{left:.1f}" y1="{_TOP_PX}" y2="{bottom}"/>'
                f'<text x="{left:.1f}" y="{bottom + 15}" text-anchor="middle">'
                f"{escape(number_text(x))}</text>"
            )
        )
    for tick in _ticks(low_y, high_y, is_log=axes.is_log_y):
        _, top = place(drawable[0].x[0], _unscaled(tick, axes))
        is_decade = axes.is_log_y and tick == round(tick)
        text = f"1e{tick:.0f}" if is_decade else number_text(_unscaled(tick, axes))
        parts.append(
            Markup(
                f'<line class="rule" x1="{_LEFT_PX}" x2="{WIDTH_PX - _RIGHT_PX}" y1="{top:.1f}"'
                f' y2="{top:.1f}"/>'
                f'<text x="{_LEFT_PX - 6}" y="{top + 4:.1f}" text-anchor="end">'
                f"{escape(text)}</text>"
            )
        )
    # A curve that leaves the chart must not leave the number range of a browser.
    far = 10 * HEIGHT_PX
    curves = []
    for line in drawable:
        places = [place(*at) for at in zip(line.x, line.y, strict=True)]
        shape = "L".join(f"{x:.1f} {min(far, max(-far, y)):.1f}" for x, y in places)
        curves.append(
            Markup(
                '<path class="line" data-run="{}" d="M{}" stroke="{}" stroke-dasharray="{}">'
                "<title>{}</title></path>"
            ).format(line.style.anchor, shape, line.style.colour, line.style.dash, line.label)
        )
    parts.append(Markup('<g clip-path="url(#plot)">{}</g>').format(Markup("").join(curves)))
    label = f"{axes.y_title} over {axes.x_title}, {len(drawable)} runs"
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(WIDTH_PX, HEIGHT_PX, label, Markup("").join(parts))


def thinned(points: Sequence[T], *, max_points: int) -> list[T]:
    """Return an even choice of a line's points with both of its ends."""
    if len(points) <= max_points:
        return list(points)
    stride = (len(points) - 1) / (max_points - 1)
    return [points[round(index * stride)] for index in range(max_points)]


def smooth_points(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return a loss curve's exponential moving average over 1/15 of its points, at least 8."""
    num_steps = max(MIN_SMOOTHING_STEPS, len(points) // SMOOTHING)
    values = smooth([value for _, value in points], num_steps=num_steps)
    return [(x, value) for (x, _), value in zip(points, values, strict=True)]


def smooth(values: Sequence[float], *, num_steps: int) -> list[float]:
    """Return an exponential moving average that starts unbiased; `num_steps` is its span."""
    keep = 1 - 2 / (num_steps + 1)
    total = weight = 0.0
    smoothed = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        smoothed.append(total / weight)
    return smoothed


def clip_definition() -> Markup:
    """Return the outline that every chart is clipped to; the page holds it once."""
    return Markup(
        '<svg width="0" height="0" class="hidden" aria-hidden="true"><clipPath id="plot"><rect'
        f' x="{_LEFT_PX}" y="{_TOP_PX}" width="{WIDTH_PX - _LEFT_PX - _RIGHT_PX}"'
        f' height="{HEIGHT_PX - _TOP_PX - _BOTTOM_PX}"/></clipPath></svg>'
    )


def _drawable(line: Line, axes: Axes) -> Line:
    """Return the line without what cannot be drawn, and with no more points than pixels ask for."""
    points = [
        (float(x), float(y))
        for x, y in zip(line.x, line.y, strict=True)
        if math.isfinite(x) and math.isfinite(y)
        if (y > 0 or not axes.is_log_y) and (x > 0 or not axes.is_log_x)
    ]
    points = thinned(points, max_points=_MAX_POINTS)
    return dataclasses.replace(line, x=[x for x, _ in points], y=[y for _, y in points])


def _y_range(lines: Sequence[Line], axes: Axes) -> tuple[float, float]:
    """Return the ends of the y axis; one run that explodes must not flatten all others."""
    values = sorted(_scaled(y, axes) for line in lines for y in line.y)
    low, high = values[0], values[-1]
    num_outliers = int(len(values) * _OUTLIERS)
    usual_low, usual_high = values[num_outliers], values[-1 - num_outliers]
    room = (usual_high - usual_low) * _ROOM
    if room > 0:
        low, high = max(low, usual_low - room), min(high, usual_high + room)
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 0.5
    return low - margin, high + margin


def _scaled_x(value: float, axes: Axes) -> float:
    return math.log10(value) if axes.is_log_x else value


def _scaled(value: float, axes: Axes) -> float:
    return math.log10(value) if axes.is_log_y else value


def _unscaled(value: float, axes: Axes) -> float:
    return 10**value if axes.is_log_y else value


def _ticks(low: float, high: float, *, is_log: bool = False) -> list[float]:
    """Return round numbers inside a range; on a log axis whole decades where there are enough."""
    if is_log and math.floor(high) - math.ceil(low) >= 1:
        stride = max(1, round((high - low) / NUM_TICKS))
        return [float(tick) for tick in range(math.ceil(low), math.floor(high) + 1, stride)]
    return round_numbers(low, high)


def round_numbers(low: float, high: float) -> list[float]:
    """Return about five round numbers inside a range: 1, 2 or 5 times a power of 10 apart."""
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / NUM_TICKS))
    size = min((power * m for m in (1, 2, 5, 10)), key=lambda s: abs(span / s - NUM_TICKS))
    first, last = math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9)
    return [index * size for index in range(first, last + 1)]


def axis_titles(x_title: str, y_title: str, *, left: int, right: int, top: int) -> Markup:
    """Return the titles of both axes around a plot with these margins in pixels."""
    middle_x = (left + WIDTH_PX - right) / 2
    middle_y = (HEIGHT_PX - _BOTTOM_PX + top) / 2
    return Markup(
        '<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>'
        '<text class="axis" transform="translate(13 {}) rotate(-90)" text-anchor="middle">{}</text>'
    ).format(middle_x, HEIGHT_PX - 6, x_title, middle_y, y_title)
