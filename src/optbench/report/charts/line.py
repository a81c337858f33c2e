"""Curves as SVG, drawn here so that the page needs no library and no network.

Lines differ in colour and dash pattern, so none is told by colour alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH_PX, HEIGHT_PX = 640, 320
_LEFT_PX, _RIGHT_PX, _TOP_PX, _BOTTOM_PX = 68, 12, 12, 40
_MAX_POINTS = 400
_NUM_TICKS = 5
_OUTLIERS = 0.02  # of all points at either end; a curve leaves the chart ...
_ROOM = 0.4  # ... beyond so much of the range of the others


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One run's curve."""

    label: str
    key: str  # the run's anchor: joins the line to its places in legend and tables
    colour: str
    dash: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """What the two axes are."""

    x_title: str
    y_title: str
    is_log_y: bool = False
    is_log_x: bool = False
    x_ticks: Sequence[float] = ()  # where round numbers would not do


def swatch(colour: str, dash: str) -> Markup:
    """Return a short piece of a run's line, for legends and tables."""
    return Markup(
        '<svg class="swatch" width="34" height="10" aria-hidden="true"><line x1="1" y1="5" x2="33"'
        ' y2="5" stroke="{}" stroke-width="2.5" stroke-dasharray="{}"/></svg>'
    ).format(colour, dash)


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

    parts = [_frame(axes)]
    for tick in [_scaled_x(x, axes) for x in axes.x_ticks] or _ticks(low_x, high_x):
        left, _ = place(10**tick if axes.is_log_x else tick, _unscaled(low_y, axes))
        parts.append(_vertical_tick(left, number_text(10**tick if axes.is_log_x else tick)))
    for tick in _ticks(low_y, high_y, is_log=axes.is_log_y):
        _, top = place(drawable[0].x[0], _unscaled(tick, axes))
        is_decade = axes.is_log_y and tick == round(tick)
        text = f"1e{tick:.0f}" if is_decade else number_text(_unscaled(tick, axes))
        parts.append(_horizontal_tick(top, text))
    curves = Markup("").join(_path(line, [place(*at) for at in _points(line)]) for line in drawable)
    parts.append(Markup('<g clip-path="url(#plot)">{}</g>').format(curves))
    label = f"{axes.y_title} over {axes.x_title}, {len(drawable)} runs"
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(WIDTH_PX, HEIGHT_PX, label, Markup("").join(parts))


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
        for x, y in _points(line)
        if math.isfinite(x) and math.isfinite(y)
        if (y > 0 or not axes.is_log_y) and (x > 0 or not axes.is_log_x)
    ]
    if len(points) > _MAX_POINTS:
        stride = (len(points) - 1) / (_MAX_POINTS - 1)
        points = [points[round(index * stride)] for index in range(_MAX_POINTS)]
    return dataclasses.replace(line, x=[x for x, _ in points], y=[y for _, y in points])


def _points(line: Line) -> list[tuple[float, float]]:
    return list(zip(line.x, line.y, strict=True))


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
        stride = max(1, round((high - low) / _NUM_TICKS))
        return [float(tick) for tick in range(math.ceil(low), math.floor(high) + 1, stride)]
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / _NUM_TICKS))
    size = min((power * m for m in (1, 2, 5, 10)), key=lambda s: abs(span / s - _NUM_TICKS))
    first, last = math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9)
    return [index * size for index in range(first, last + 1)]


def number_text(value: float) -> str:
    """Return a number with up to four digits, as an axis or a table shows it."""
    if value == 0 or abs(value) < 1e-12:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _frame(axes: Axes) -> Markup:
    middle_x = (_LEFT_PX + WIDTH_PX - _RIGHT_PX) / 2
    middle_y = (HEIGHT_PX - _BOTTOM_PX + _TOP_PX) / 2
    return Markup(
        '<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>'
        '<text class="axis" transform="translate(13 {}) rotate(-90)" text-anchor="middle">{}</text>'
    ).format(middle_x, HEIGHT_PX - 6, axes.x_title, middle_y, axes.y_title)


def _vertical_tick(left: float, text: str) -> Markup:
    bottom = HEIGHT_PX - _BOTTOM_PX
    return Markup(
        f'<line class="rule" x1="{left:.1f}" x2="{left:.1f}" y1="{_TOP_PX}" y2="{bottom}"/>'
        f'<text x="{left:.1f}" y="{bottom + 15}" text-anchor="middle">{escape(text)}</text>'
    )


def _horizontal_tick(top: float, text: str) -> Markup:
    return Markup(
        f'<line class="rule" x1="{_LEFT_PX}" x2="{WIDTH_PX - _RIGHT_PX}" y1="{top:.1f}"'
        f' y2="{top:.1f}"/>'
        f'<text x="{_LEFT_PX - 6}" y="{top + 4:.1f}" text-anchor="end">{escape(text)}</text>'
    )


def _path(line: Line, places: Sequence[tuple[float, float]]) -> Markup:
    # A curve that leaves the chart must not leave the number range of a browser.
    far = 10 * HEIGHT_PX
    shape = "L".join(f"{x:.1f} {min(far, max(-far, y)):.1f}" for x, y in places)
    return Markup(
        '<path class="line" data-run="{}" d="M{}" stroke="{}" stroke-dasharray="{}">'
        "<title>{}</title></path>"
    ).format(line.key, shape, line.colour, line.dash, line.label)
