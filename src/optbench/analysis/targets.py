"""Time to target: how long each run trained until it reached what the median run ends with."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optbench.analysis.comparisons import known_records, labels
from optbench.analysis.frames import Frames
from optbench.analysis.outcomes import OBJECTIVE
from optbench.analysis.standings import DONE, Standings

_ROUNDING = 1e-9  # means of the same losses in another order
_SPLIT = {
    OBJECTIVE: "held_out",
    "validation_held_out": "held_out",
    "validation_training": "training",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeToTarget:
    """When one run reached the target."""

    run: str
    seconds: float  # infinite: never
    epochs: float
    resolution_seconds: float | None  # between the two measurements around it


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """The target, and when each finished run reached it; soonest first."""

    target: float
    runs: tuple[TimeToTarget, ...]


def time_to_target(frames: Frames, standings: Standings) -> Targets | None:
    """Return when each run reached the median run's final loss; None where none can be compared.

    As AlgoPerf counts it (2306.07179): never is infinite, and seconds are of training alone. In
    between two epochs the loss is taken to be a straight line.
    """
    split = _SPLIT.get(standings.measure)
    values = [outcome.value for s in standings.finished for outcome in s.outcomes]
    if split is None or len(values) < 2 or not standings.is_comparable:
        return None
    target = statistics.median_low(values)
    compared_runs = {run for setting in standings.settings for run in setting.runs}
    epochs: dict[str, list[Mapping[str, Any]]] = {}
    for row in known_records(frames.epochs):
        epochs.setdefault(row["run"], []).append(row)
    names = {run: label for (_, run), label in labels(frames.runs).items()}
    times = [
        _time_of_run(run, epochs.get(run, ()), split, target)
        for run, status in zip(frames.runs["run"], frames.runs["status"], strict=True)
        if status == DONE and run in compared_runs
    ]
    ordered = sorted(times, key=lambda time: (time.seconds, names[time.run]))
    return Targets(target=target, runs=tuple(ordered))


def _time_of_run(
    run: str, epochs: Sequence[Mapping[str, Any]], split: str, target: float
) -> TimeToTarget:
    before = (0.0, 0.0, 0.0)  # epoch, seconds, loss against the base: the base itself
    for row in epochs:
        epoch, seconds = row.get("epoch"), row.get("seconds_train_cumulative")
        loss, base = (row.get(f"validation_loss{part}/{split}") for part in ("", "_base"))
        numbers = (epoch, seconds, loss, base)
        if not all(isinstance(value, (int, float)) for value in numbers):
            continue
        now = (float(epoch or 0), float(seconds or 0), float(loss or 0) - float(base or 0))
        if now[2] <= target + _ROUNDING:
            fall = before[2] - now[2]
            share = (before[2] - target) / fall if fall > 0 else 0.0
            share = min(1.0, max(0.0, share))
            return TimeToTarget(
                run=run,
                seconds=before[1] + share * (now[1] - before[1]),
                epochs=before[0] + share * (now[0] - before[0]),
                resolution_seconds=now[1] - before[1],
            )
        before = now
    return TimeToTarget(run=run, seconds=math.inf, epochs=math.inf, resolution_seconds=None)
