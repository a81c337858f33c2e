"""Draw points over what they cost: quality against time, memory or file size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from optbench.report.charts.line import (
    HEIGHT_PX,
    NUM_TICKS,
    WIDTH_PX,
    axis_titles,
    round_numbers,
)
from optbench.report.wording import bytes_text, number_text

_LEFT_PX, _RIGHT_PX, _TOP_PX, _BOTTOM_PX = 68, 40, 18, 40
_MARGIN = 0.06
_LABEL_PX = 7  # the width of a letter, roughly
_LINE_PX = 13


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One LoRA file, or one setting."""

    size_bytes: float  # or another cost
    value: float
    text: str  # a few letters beside the point
    label: str  # all of it, shown when pointed at
    colour: str
    low: float | None = None  # where the value may be
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CostAxis:
    """The horizontal axis: its title, and a cost in words."""

    title: str
    text: Callable[[float], str]


_SIZE = CostAxis(title="file size, log scale", text=bytes_text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A horizontal line to read the points against."""

    value: float
    text: str


def size_chart(
    points: Sequence[Point],
    *,
    y_title: str,
    levels: Sequence[Level] = (),
    cost: CostAxis = _SIZE,
    frontier: Sequence[Point] = (),
) -> Markup | None:
    """Return the points over their costs on a log axis, or None where there are none.

    `frontier` is joined by a line: the points that no other beats in both.
    """
    drawable = [p for p in points if p.size_bytes > 0 and math.isfinite(p.value)]
    if not drawable:
        return None
    sizes = [math.log2(point.size_bytes) for point in drawable]
    values = [point.value for point in drawable] + [level.value for level in levels]
    values += [end for point in drawable for end in (point.low, point.high) if end is not None]
    low_x, high_x = _padded(min(sizes), max(sizes))
    low_y, high_y = _padded(min(values), max(values))
    bottom, right = HEIGHT_PX - _BOTTOM_PX, WIDTH_PX - _RIGHT_PX

    def place(size: float, value: float) -> tuple[float, float]:
        across = (size - low_x) / (high_x - low_x)
        up = (value - low_y) / (high_y - low_y)
        return _LEFT_PX + across * (right - _LEFT_PX), bottom - up * (bottom - _TOP_PX)

    parts = [axis_titles(cost.title, y_title, left=_LEFT_PX, right=_RIGHT_PX, top=_TOP_PX)]
    for power in _powers_of_two(low_x, high_x):
        left, _ = place(power, low_y)
        parts.append(
            Markup(
                '<line class="rule" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>'
                '<text x="{0}" y="{3}" text-anchor="middle">{4}</text>'
            ).format(f"{left:.1f}", _TOP_PX, bottom, bottom + 15, cost.text(2.0**power))
        )
    for tick in round_numbers(low_y, high_y):
        _, top = place(low_x, tick)
        parts.append(
            Markup(
                '<line class="rule" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>'
                '<text x="{3}" y="{4}" text-anchor="end">{5}</text>'
            ).format(
                _LEFT_PX, right, f"{top:.1f}", _LEFT_PX - 6, f"{top + 4:.1f}", number_text(tick)
            )
        )
    for level in levels:
        _, top = place(low_x, level.value)
        parts.append(
            Markup(
                '<line class="level" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>'
                '<text x="{1}" y="{3}" text-anchor="end">{4}</text>'
            ).format(_LEFT_PX, right, f"{top:.1f}", f"{top - 4:.1f}", level.text)
        )
    if len(frontier) > 1:
        ends = [place(math.log2(point.size_bytes), point.value) for point in frontier]
        shape = "L".join(f"{left:.1f} {top:.1f}" for left, top in ends)
        parts.append(Markup('<path class="frontier" d="M{}"/>').format(shape))
    labels: list[tuple[float, float, float]] = []
    for point, size in sorted(zip(drawable, sizes, strict=True), key=lambda pair: pair[1]):
        left, top = place(size, point.value)
        if point.low is not None and point.high is not None:
            ends_y = (f"{place(size, end)[1]:.1f}" for end in (point.high, point.low))
            parts.append(
                Markup(
                    '<line class="whisker" x1="{0}" x2="{0}" y1="{1}" y2="{2}">'
                    "<title>95 % interval</title></line>"
                ).format(f"{left:.1f}", *ends_y)
            )
        text_left, text_top = _free_place(point.text, left, top, labels)
        parts.append(
            Markup(
                '<circle cx="{}" cy="{}" r="4.5" fill="{}"><title>{}: {}, {}</title></circle>'
                '<text x="{}" y="{}" text-anchor="middle">{}</text>'
            ).format(
                f"{left:.1f}",
                f"{top:.1f}",
                point.colour,
                point.label,
                cost.text(point.size_bytes),
                number_text(point.value),
                f"{text_left:.1f}",
                f"{text_top:.1f}",
                point.text,
            )
        )
    label = f"{y_title} over {cost.title}, {len(drawable)} points"
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(WIDTH_PX, HEIGHT_PX, label, Markup("").join(parts))


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = (high - low) * _MARGIN or abs(high) * _MARGIN or 0.5
    return low - margin, high + margin


def _free_place(
    text: str, left: float, top: float, labels: list[tuple[float, float, float]]
) -> tuple[float, float]:
    """Return where a label goes: above its point and inside, or higher where another one is."""
    width = len(text) * _LABEL_PX
    left = min(max(left, width / 2 + 2), max(WIDTH_PX - width / 2 - 2, WIDTH_PX / 2))
    above = top - 8
    for _ in range(len(labels) + 1):
        if all(
            abs(above - other) >= _LINE_PX or abs(left - middle) >= (width + wide) / 2
            for middle, other, wide in labels
        ):
            break
        above -= _LINE_PX
    labels.append((left, above, width))
    return left, above


def _powers_of_two(low: float, high: float) -> list[float]:
    """Return powers of two inside a range, and finer ones where there are few."""
    for parts in (1, 2, 4, 16, 64):
        powers = range(math.ceil(low * parts), math.floor(high * parts) + 1)
        if len(powers) > 2:
            break
    chosen = powers[:: max(1, round(len(powers) / NUM_TICKS))]
    return [index / parts for index in chosen]
