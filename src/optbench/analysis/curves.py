"""Curves of runs: smoothed, thinned, over epochs or time; a setting's as their mean and range."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from optbench.analysis.comparisons import GROUPS

PHASES = ("seconds_data", "seconds_forward", "seconds_backward", "seconds_optimizer")
SMOOTHING = 15  # a curve is smoothed over this part of its steps ...
MIN_SMOOTHING_STEPS = 8  # ... and over no fewer than these

T = TypeVar("T")
Points = Sequence[tuple[float, float]]  # x and y, x rising


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """The runs of one setting at the x they share: mean, lowest and highest y."""

    x: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    runs: tuple[str, ...]  # that it is made of


def thinned(points: Sequence[T], *, max_points: int) -> list[T]:
    """Return an even choice of a line's points with both of its ends."""
    if len(points) <= max_points:
        return list(points)
    stride = (len(points) - 1) / (max_points - 1)
    return [points[round(index * stride)] for index in range(max_points)]


def smooth_points(points: Points) -> list[tuple[float, float]]:
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


def band(curves: Mapping[str, Points]) -> Band | None:
    """Return the mean and range of a setting's runs, or None where no two runs can be joined.

    Of runs that ended earlier than others nothing is in it: the mean would jump where they end.

    Args:
        curves: The curve of every run, by its name.
    """
    ends = {run: points[-1][0] for run, points in curves.items() if points}
    whole = {run: dict(curves[run]) for run, end in ends.items() if end == max(ends.values())}
    if len(whole) < 2:
        return None
    shared = sorted(set.intersection(*map(set, whole.values())))
    columns = [[points[x] for points in whole.values()] for x in shared]
    return Band(
        x=tuple(shared),
        mean=tuple(math.fsum(values) / len(values) for values in columns),
        low=tuple(map(min, columns)),
        high=tuple(map(max, columns)),
        runs=tuple(whole),
    )


def epoch_ends(
    steps: Sequence[Mapping[str, Any]], epochs: Sequence[Mapping[str, Any]]
) -> list[tuple[float, float, float]]:
    """Return step, epoch and seconds of training at the end of each epoch, from (0, 0, 0) on.

    An epoch that a run ended within counts as one that ends there, at its part of a whole one.
    Where no step was recorded, the epochs' own records say it; seconds are NaN where unknown.
    """
    ends = [(0.0, 0.0, 0.0)]
    seconds = 0.0
    last_of_epochs: dict[float, tuple[float, float]] = {}
    for row in steps:
        step, epoch = number(row.get("step")), number(row.get("epoch"))
        seconds += sum(number(row.get(phase)) or 0.0 for phase in PHASES)
        if step is not None and epoch is not None:
            last_of_epochs[epoch] = step, seconds
    if not last_of_epochs:
        for row in epochs:
            step, epoch = number(row.get("step")), number(row.get("epoch"))
            seconds += number(row.get("seconds_train")) or 0.0
            if step is not None and epoch is not None:
                last_of_epochs[epoch] = step, seconds
    finished = {number(row.get("epoch")) for row in epochs}
    for epoch, (step, at) in sorted(last_of_epochs.items()):
        if step <= ends[-1][0]:
            continue
        length = ends[-1][0] - ends[-2][0] if len(ends) > 1 else step - ends[-1][0]
        part = 1.0 if epoch in finished else min(1.0, (step - ends[-1][0]) / length)
        ends.append((step, epoch - 1 + part, at if at > 0 else math.nan))
    return ends


def interpolated(value: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return y at x = `value` between points that are joined; beyond the ends as at the ends."""
    place = bisect.bisect_left(xs, value)
    if place == 0 or place == len(xs):
        return ys[min(place, len(ys) - 1)]
    part = (value - xs[place - 1]) / (xs[place] - xs[place - 1])
    return ys[place - 1] + part * (ys[place] - ys[place - 1])


def number(value: Any) -> float | None:
    """Return a value that is a finite number as one, None for anything else."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def colour_and_dash(factors: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """Return the factor that colours stand for, the optimizer first, and those dashes stand for."""
    names = [name for name in factors if name != "seed"]
    if not names:
        return None, ()
    groups = [name for name in GROUPS if name in names]
    first = (groups or names)[0]
    return first, tuple(name for name in names if name != first)
