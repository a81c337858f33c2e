"""Points over what they cost as SVG: what a LoRA keeps for its bytes, or reaches in its time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from optbench.report.charts.line import HEIGHT_PX, WIDTH_PX, number_text
from optbench.report.wording import bytes_text

_LEFT_PX, _RIGHT_PX, _TOP_PX, _BOTTOM_PX = 68, 40, 18, 40
_MARGIN = 0.06
_NUM_TICKS = 5
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
class Cost:
    """What the horizontal axis is: its title, and a cost in words."""

    title: str
    text: Callable[[float], str]


_SIZE = Cost(title="file size, log scale", text=bytes_text)


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
    cost: Cost = _SIZE,
    frontier: Sequence[Point] = (),
) -> Markup | None:
    """Return the points over their costs on a log axis, or None where there are none.

    `frontier` is joined by a line: the points that no other beats in both.
    """
    known = [one for one in points if one.size_bytes > 0 and math.isfinite(one.value)]
    if not known:
        return None
    sizes = [math.log2(one.size_bytes) for one in known]
    values = [one.value for one in known] + [one.value for one in levels]
    values += [end for one in known for end in (one.low, one.high) if end is not None]
    low_x, high_x = _padded(min(sizes), max(sizes))
    low_y, high_y = _padded(min(values), max(values))

    def place(size: float, value: float) -> tuple[float, float]:
        across = (size - low_x) / (high_x - low_x)
        up = (value - low_y) / (high_y - low_y)
        left = _LEFT_PX + across * (WIDTH_PX - _LEFT_PX - _RIGHT_PX)
        return left, HEIGHT_PX - _BOTTOM_PX - up * (HEIGHT_PX - _TOP_PX - _BOTTOM_PX)

    parts = [_axes(y_title, cost.title)]
    for power in _powers(low_x, high_x):
        left, _ = place(power, low_y)
        parts.append(_tick_below(left, cost.text(2.0**power)))
    for tick in _round_numbers(low_y, high_y):
        _, top = place(low_x, tick)
        parts.append(_tick_beside(top, number_text(tick)))
    for level in levels:
        _, top = place(low_x, level.value)
        parts.append(_level(top, level.text))
    if len(frontier) > 1:
        ends = [place(math.log2(one.size_bytes), one.value) for one in frontier]
        parts.append(_frontier(ends))
    taken: list[tuple[float, float, float]] = []
    for one, size in sorted(zip(known, sizes, strict=True), key=lambda pair: pair[1]):
        left, top = place(size, one.value)
        if one.low is not None and one.high is not None:
            parts.append(_whisker(left, place(size, one.low)[1], place(size, one.high)[1]))
        text_place = _free_place(one.text, left, top, taken)
        parts.append(_marker(one, (left, top), text_place, cost.text(one.size_bytes)))
    label = f"{y_title} over {cost.title}, {len(known)} points"
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(WIDTH_PX, HEIGHT_PX, label, Markup("").join(parts))


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = (high - low) * _MARGIN or abs(high) * _MARGIN or 0.5
    return low - margin, high + margin


def _round_numbers(low: float, high: float) -> list[float]:
    power = 10.0 ** math.floor(math.log10((high - low) / _NUM_TICKS))
    size = min((power * m for m in (1, 2, 5, 10)), key=lambda s: abs((high - low) / s - _NUM_TICKS))
    return [index * size for index in range(math.ceil(low / size), math.floor(high / size) + 1)]


def _free_place(
    text: str, left: float, top: float, taken: list[tuple[float, float, float]]
) -> tuple[float, float]:
    """Return where a label goes: above its point and inside, or higher where another one is."""
    width = len(text) * _LABEL_PX
    left = min(max(left, width / 2 + 2), max(WIDTH_PX - width / 2 - 2, WIDTH_PX / 2))
    above = top - 8
    for _ in range(len(taken) + 1):
        if all(
            abs(above - other) >= _LINE_PX or abs(left - middle) >= (width + wide) / 2
            for middle, other, wide in taken
        ):
            break
        above -= _LINE_PX
    taken.append((left, above, width))
    return left, above


def _axes(y_title: str, x_title: str) -> Markup:
    middle_x = (_LEFT_PX + WIDTH_PX - _RIGHT_PX) / 2
    middle_y = (HEIGHT_PX - _BOTTOM_PX + _TOP_PX) / 2
    return Markup(
        '<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>'
        '<text class="axis" transform="translate(13 {}) rotate(-90)" text-anchor="middle">{}</text>'
    ).format(middle_x, HEIGHT_PX - 6, x_title, middle_y, y_title)


def _tick_below(left: float, text: str) -> Markup:
    bottom = HEIGHT_PX - _BOTTOM_PX
    return Markup(
        '<line class="rule" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>'
        '<text x="{0}" y="{3}" text-anchor="middle">{4}</text>'
    ).format(f"{left:.1f}", _TOP_PX, bottom, bottom + 15, text)


def _tick_beside(top: float, text: str) -> Markup:
    return Markup(
        '<line class="rule" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>'
        '<text x="{3}" y="{4}" text-anchor="end">{5}</text>'
    ).format(_LEFT_PX, WIDTH_PX - _RIGHT_PX, f"{top:.1f}", _LEFT_PX - 6, f"{top + 4:.1f}", text)


def _level(top: float, text: str) -> Markup:
    return Markup(
        '<line class="level" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>'
        '<text x="{1}" y="{3}" text-anchor="end">{4}</text>'
    ).format(_LEFT_PX, WIDTH_PX - _RIGHT_PX, f"{top:.1f}", f"{top - 4:.1f}", text)


def _marker(
    one: Point, at: tuple[float, float], text_place: tuple[float, float], cost: str
) -> Markup:
    return Markup(
        '<circle cx="{}" cy="{}" r="4.5" fill="{}"><title>{}: {}, {}</title></circle>'
        '<text x="{}" y="{}" text-anchor="middle">{}</text>'
    ).format(
        f"{at[0]:.1f}",
        f"{at[1]:.1f}",
        one.colour,
        one.label,
        cost,
        number_text(one.value),
        f"{text_place[0]:.1f}",
        f"{text_place[1]:.1f}",
        one.text,
    )


def _whisker(left: float, low: float, high: float) -> Markup:
    return Markup(
        '<line class="whisker" x1="{0}" x2="{0}" y1="{1}" y2="{2}">'
        "<title>95 % interval</title></line>"
    ).format(f"{left:.1f}", f"{high:.1f}", f"{low:.1f}")


def _frontier(ends: Sequence[tuple[float, float]]) -> Markup:
    shape = "L".join(f"{left:.1f} {top:.1f}" for left, top in ends)
    return Markup('<path class="frontier" d="M{}"/>').format(shape)


def _powers(low: float, high: float) -> list[float]:
    """Return powers of two inside a range, and finer ones where there are few."""
    for parts in (1, 2, 4, 16, 64):
        found = range(math.ceil(low * parts), math.floor(high * parts) + 1)
        if len(found) > 2:
            break
    chosen = found[:: max(1, round(len(found) / _NUM_TICKS))]
    return [index / parts for index in chosen]
