"""Draw a race as SVG: ladders of rates, curves that stop where the run stopped, intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from optbench.analysis.race import (
    ArmTuning,
    ArmVerdict,
    ExpectedBest,
    Point,
    RaceDesign,
    Tried,
)
from optbench.report.wording import number_text

_WIDTH = 620.0
_LADDER_HEIGHT = 250.0
_CURVE_HEIGHT = 250.0
_EXPECTED_HEIGHT = 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 68.0, 14.0, 26.0, 34.0
_ROW = 34.0  # height of one arm among the intervals
_LOWEST = 0.35  # of the best score: what is lower runs out of the picture
_OPEN = frozenset({"pending", "finished", "finalist"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    """One arm as it is drawn."""

    arm: str
    tuning: ArmTuning
    design: RaceDesign
    colour: str  # as in every chart of the page
    best: Point | None  # by the fresh seeds; by the tuning seed before there are any

    @property
    def ordered(self) -> list[Tried]:
        """What was tried, from the lowest rate to the highest, by the other axes."""
        return sorted(self.tuning.tried, key=lambda tried: (tried.point.values, tried.point.rate))


def tournament(entrant: Entrant) -> Markup:
    """Return an arm's ladder: rates side by side, rising to the rung where each was stopped."""
    tried, rungs = entrant.ordered, entrant.design.rungs
    step = (_WIDTH - _LEFT - _RIGHT) / max(1, len(tried))
    height = (_LADDER_HEIGHT - _TOP - _BOTTOM) / len(rungs)
    floor = _LADDER_HEIGHT - _BOTTOM
    parts = [_rule(floor - height * (i + 1), f"epoch {rung}") for i, rung in enumerate(rungs)]
    parts.append(_rule(floor, "rate x"))
    tops = {rung: max((t.scores.get(rung, -math.inf) for t in tried), default=0) for rung in rungs}
    for place, one in enumerate(tried):
        x = _LEFT + step * (place + 0.5)
        reached = [
            i for i, rung in enumerate(rungs) if math.isfinite(one.scores.get(rung, -math.inf))
        ]
        top = floor - height * (max(reached) + 1) if reached else floor - 0.45 * height
        is_best = one.point == entrant.best
        kind = one.fate if one.fate != "finalist" or is_best else "tied"
        parts.append(
            f'<g class="lane {kind}"><title>{escape(_title(entrant, one))}</title>'
            f'<rect class="hit" x="{x - step / 2:.1f}" y="{_TOP:.1f}" width="{step:.1f}" '
            f'height="{floor - _TOP:.1f}"/>'
            f'<line x1="{x:.1f}" y1="{floor:.1f}" x2="{x:.1f}" y2="{top:.1f}"'
            f"{_stroke(entrant, one)}/>"
        )
        for i in reached:
            score, lead = one.scores[rungs[i]], tops[rungs[i]]
            nearness = max(0.0, 1 - (lead - score) / (abs(lead) or 1.0) / 0.3)
            radius = 3 + 4 * nearness
            y = floor - height * (i + 1)
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"{_fill(entrant, one)}/>'
            )
        if one.fate in ("broken", "failed"):
            parts.append(_cross(x, top))
        if is_best:
            parts.append(_crown(x, top - 15))
        is_added = " added" if one.batch else ""
        parts.append(
            f'<text class="tick{is_added}" x="{x:.1f}" y="{floor + 17:.1f}" text-anchor="middle">'
            f"{one.point.rate:g}</text>"
            f'<text class="tick" x="{x:.1f}" y="{floor + 31:.1f}" text-anchor="middle">'
            f"{escape(' '.join(one.point.values))}</text></g>"
        )
    words = f"How far every rate of {entrant.arm} went"
    return _svg(_LADDER_HEIGHT, words, parts, "tournament")


def curves(entrant: Entrant) -> Markup:
    """Return the scores of an arm's rates over epochs; a curve ends where its run was stopped."""
    length = entrant.design.length
    known = [s for t in entrant.tuning.tried for s in t.scores.values() if math.isfinite(s)]
    top = max(known, default=0.01)
    low = max(min([0.0, *known]), _LOWEST * top) if top > 0 else min(known, default=0.0)
    span = (top - low) or 1e-6
    low, high = low - 0.04 * span, top + 0.08 * span

    def x(epoch: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT - 50) * epoch / length

    def y(score: float) -> float:
        share = (min(max(score, low), high) - low) / (high - low)
        return _CURVE_HEIGHT - _BOTTOM - (_CURVE_HEIGHT - _TOP - _BOTTOM) * share

    parts = [
        f'<line class="rule" x1="{_LEFT:.1f}" x2="{_WIDTH - _RIGHT:.1f}" y1="{y(v):.1f}" '
        f'y2="{y(v):.1f}"/><text x="{_LEFT - 6:.1f}" y="{y(v) + 4:.1f}" text-anchor="end">'
        f"{number_text(v)}</text>"
        for v in _ticks(low, high)
    ]
    for rung in entrant.design.rungs:
        parts.append(
            f'<text class="axis" x="{x(rung):.1f}" y="{_CURVE_HEIGHT - 12:.1f}" '
            f'text-anchor="middle">{rung}</text>'
        )
    parts.append(
        f'<text x="{_LEFT:.1f}" y="{_CURVE_HEIGHT - 12:.1f}" text-anchor="middle">epoch</text>'
    )
    order = sorted(entrant.tuning.tried, key=lambda t: (t.fate == "finalist", t.point))
    for one in order:
        points = [(float(e), s) for e, s in sorted(one.scores.items()) if math.isfinite(s)]
        if not points or all(score < low for _, score in points):
            continue  # the ladder has it
        epoch, score = points[-1]
        # Epoch 0 is the base model, whose score is 0 by definition: often below the picture.
        first, reached = points[0]
        points.insert(0, (first * min(1.0, max(0.0, low / reached)) if reached > 0 else 0.0, low))
        path = " ".join(f"{x(e):.1f},{y(s):.1f}" for e, s in points)
        is_best = one.point == entrant.best
        kind = one.fate if one.fate != "finalist" or is_best else "tied"
        parts.append(
            f'<g class="lane {kind}"><title>{escape(_title(entrant, one))}</title>'
            f'<polyline points="{path}" fill="none"{_stroke(entrant, one)}/>'
        )
        if one.fate in ("broken", "failed"):
            parts.append(_cross(x(epoch), y(score)))
        else:
            parts.append(
                f'<circle cx="{x(epoch):.1f}" cy="{y(score):.1f}" r="{4.5 if is_best else 3.2}"'
                f"{_fill(entrant, one)}/>"
            )
        if is_best:
            parts.append(
                f'<text class="name" x="{x(epoch) + 8:.1f}" y="{y(score) + 4:.1f}">'
                f"{escape(_tick(one))}</text>"
            )
        parts.append("</g>")
    words = f"Gain less a quarter of the forgetting of every rate of {entrant.arm}, by epoch"
    return _svg(_CURVE_HEIGHT, words, parts, "tournament")


def forest(arms: Sequence[ArmVerdict], colours: Mapping[str, str], design: RaceDesign) -> Markup:
    """Return how far every arm is from the one that leads, with its interval."""
    known = [arm for arm in arms if arm.standing in ("lead", "tied", "worse")]
    ends = [
        value
        for arm in known
        if (i := arm.against_lead) is not None
        for value in (i.mean, i.low, i.high)
        if value is not None
    ]
    low, high = min([0.0, *ends]), max([0.0, *ends]) or 1e-6
    span = high - low or 1e-6
    low, high = low - 0.05 * span, high + 0.05 * span
    left, height = 250.0, _ROW * len(known) + 44

    def x(value: float) -> float:
        return left + (_WIDTH + 130 - left - 16) * (value - low) / (high - low)

    bottom = height - 36
    parts = [
        f'<line class="rule" x1="{x(v):.1f}" x2="{x(v):.1f}" y1="6" y2="{bottom:.1f}"/>'
        f'<text x="{x(v):.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{number_text(v)}</text>'
        for v in _ticks(low, high)
    ]
    parts.append(f'<line class="level" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="6" y2="{bottom:.1f}"/>')
    for place, arm in enumerate(known):
        y = 6 + _ROW * (place + 0.5)
        colour = colours[arm.arm]
        name = f"{arm.arm} {design.label(arm.point)}" if arm.point else arm.arm
        parts.append(
            f'<text class="name" x="{left - 14:.1f}" y="{y + 4:.1f}" text-anchor="end">'
            f"{escape(name)}</text>"
        )
        interval = arm.against_lead
        mean = interval.mean if interval is not None else 0.0
        if interval is not None and interval.low is not None and interval.high is not None:
            parts.append(
                f'<line class="span" stroke="{colour}" x1="{x(interval.low):.1f}" '
                f'x2="{x(interval.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
        parts.append(f'<circle cx="{x(mean):.1f}" cy="{y:.1f}" r="6" fill="{colour}"/>')
        if interval is None:
            parts.append(_crown(x(0), y - 16))
    parts.append(
        f'<text x="{x((low + high) / 2):.1f}" y="{height - 4:.1f}" text-anchor="middle">'
        "loss above the lead's (less is better)</text>"
    )
    return _svg(height, "Distance of every optimizer to the lead", parts, "forest", _WIDTH + 130)


def draw_expected(lines: Mapping[str, tuple[str, Sequence[ExpectedBest]]]) -> Markup:
    """Return the expected best score over epochs of tuning, a line and a band for each arm."""
    known = {arm: line for arm, line in lines.items() if line[1]}
    if not known:
        return Markup("")
    most = max(line[-1].epochs for _, line in known.values())
    top = max(line[-1].high for _, line in known.values())
    # Few tries may all be bad ones: what is far below the lines is cut off.
    low = min(line[0].mean for _, line in known.values())
    span = (top - low) or 1e-6
    low, high = low - 0.1 * span, top + 0.06 * span
    right = 128.0

    def x(epochs: float) -> float:
        return _LEFT + (_WIDTH + 130 - _LEFT - right) * epochs / (most or 1)

    def y(score: float) -> float:
        share = (min(max(score, low), high) - low) / (high - low)
        return _EXPECTED_HEIGHT - _BOTTOM - (_EXPECTED_HEIGHT - _TOP - _BOTTOM) * share

    parts = [
        f'<line class="rule" x1="{_LEFT:.1f}" x2="{x(most):.1f}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        f'<text x="{_LEFT - 6:.1f}" y="{y(v) + 4:.1f}" text-anchor="end">{number_text(v)}</text>'
        for v in _ticks(low, high)
    ]
    for epochs in _ticks(0, most):
        parts.append(
            f'<text class="axis" x="{x(epochs):.1f}" y="{_EXPECTED_HEIGHT - 12:.1f}" '
            f'text-anchor="middle">{number_text(epochs)}</text>'
        )
    parts.append(f'<text x="{x(most) + 26:.1f}" y="{_EXPECTED_HEIGHT - 12:.1f}">epochs</text>')
    for colour, line in known.values():
        upper = [f"{x(p.epochs):.1f},{y(p.high):.1f}" for p in line]
        lower = [f"{x(p.epochs):.1f},{y(p.low):.1f}" for p in reversed(line)]
        parts.append(f'<polygon class="band" fill="{colour}" points="{" ".join(upper + lower)}"/>')
    labels = _apart([y(line[-1].mean) for _, line in known.values()], 15)
    for (arm, (colour, line)), label in zip(known.items(), labels, strict=True):
        points = " ".join(f"{x(p.epochs):.1f},{y(p.mean):.1f}" for p in line)
        dots = "".join(
            f'<circle cx="{x(p.epochs):.1f}" cy="{y(p.mean):.1f}" r="2.8" fill="{colour}">'
            f"<title>{escape(arm)}: {p.num_tries} rates, {number_text(p.epochs)} epochs, "
            f"{p.mean:.5f} ({p.low:.5f} to {p.high:.5f})</title></circle>"
            for p in line
        )
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>{dots}'
            f'<text class="name" x="{x(most) + 10:.1f}" y="{label + 4:.1f}" '
            f'style="fill:{colour}">{escape(arm)}</text>'
        )
    return _svg(
        _EXPECTED_HEIGHT, "Expected best score by epochs of tuning", parts, "expected", _WIDTH + 130
    )


def _svg(
    height: float, words: str, parts: Sequence[str], kind: str, width: float = _WIDTH
) -> Markup:
    # Names are escaped where they are put in; the rest is numbers and our words.
    return Markup(
        f'<svg class="race {kind}" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="{escape(words)}">{"".join(parts)}</svg>'
    )


def _rule(y: float, words: str) -> str:
    return (
        f'<line class="rule" x1="{_LEFT - 4:.1f}" x2="{_WIDTH - _RIGHT:.1f}" y1="{y:.1f}" '
        f'y2="{y:.1f}"/><text x="{_LEFT - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{words}</text>'
    )


def _stroke(entrant: Entrant, tried: Tried) -> str:
    return f' stroke="{entrant.colour}"' if tried.fate in _OPEN else ""


def _fill(entrant: Entrant, tried: Tried) -> str:
    return f' fill="{entrant.colour}"' if tried.fate in _OPEN else ""


def _cross(x: float, y: float) -> str:
    return f'<path class="cross" d="M{x - 5:.1f},{y - 5:.1f}l10,10m0,-10l-10,10"/>'


def _crown(x: float, y: float) -> str:
    return (
        f'<path class="crown" d="M{x - 8:.1f},{y + 5:.1f}l-1,-9l4.5,4l4.5,-7l4.5,7l4.5,-4l-1,9z"/>'
    )


def _tick(tried: Tried) -> str:
    return " ".join((f"x{tried.point.rate:g}", *tried.point.values))


def _title(entrant: Entrant, tried: Tried) -> str:
    scores = ", ".join(
        f"{score:.5f} at epoch {epoch}"
        for epoch, score in sorted(tried.scores.items())
        if math.isfinite(score)
    )
    reason = f"; {tried.reason}" if tried.reason else ""
    return f"{entrant.arm} {entrant.design.label(tried.point)}: {scores or 'no result'}{reason}"


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers between two."""
    rough = (high - low) / most
    if not rough > 0:
        return [low]
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [step * number for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """Return places for labels that are at least so far apart, each near its own."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = list(places)
    for before, after in zip(order, order[1:], strict=False):
        moved[after] = max(moved[after], moved[before] + gap)
    return moved
