"""Curves of training: loss over steps and over time, against the other runs, and the rates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from optbench import analysis
from optbench.analysis.evidence import RunEvidence, SweepEvidence
from optbench.report.charts.line import (
    MIN_SMOOTHING_STEPS,
    SMOOTHING,
    Axes,
    Chart,
    Line,
    line_chart,
    smooth_points,
    thinned,
)
from optbench.report.charts.styles import Styles

_PHASES = ("seconds_data", "seconds_forward", "seconds_backward", "seconds_optimizer")
_MAX_POINTS_OF_ALL = 16_000  # of one chart: more lines get fewer points each, or pages get slow

Points = Sequence[tuple[float, float]]


def training_charts(sweep: SweepEvidence, styles: Styles) -> Iterator[Chart]:
    """Yield the charts that have anything to show."""
    runs = sweep.runs

    def chart(
        title: str, note: str, axes: Axes, points_of: Callable[[RunEvidence], Points]
    ) -> Iterator[Chart]:
        lines = []
        for run in runs:
            points = thinned(points_of(run), max_points=max(2, _MAX_POINTS_OF_ALL // len(runs)))
            x, y = [x for x, _ in points], [y for _, y in points]
            lines.append(Line(label=run.label, style=styles[run.name], x=x, y=y))
        svg = line_chart(lines, axes)
        if svg is not None:
            yield Chart(title=title, note=note, svg=svg)

    smoothing = (
        f"Smoothed: an exponential moving average over 1/{SMOOTHING} of the steps, "
        f"at least {MIN_SMOOTHING_STEPS}."
    )
    yield from chart(
        "Training loss by step",
        smoothing,
        Axes(x_title="step", y_title="loss, smoothed"),
        lambda run: smooth_points(_column(run, "loss")),
    )
    if len(runs) > 1:
        yield from chart(
            "Training loss by training time",
            f"{smoothing} Seconds of training alone; saving and rendering are left out.",
            Axes(x_title="seconds", y_title="loss, smoothed"),
            _loss_by_time,
        )
    if len(runs) > 1 and analysis.has_equal_draws(sweep.rows):
        mean = _mean_losses(runs)
        yield from chart(
            "Loss against the other runs",
            "Loss minus the mean of all whole runs at the same step. All runs see the same "
            "images, noise and timesteps there, so this difference is far less noisy than the "
            "loss itself. Below 0 is lower than the others.",
            Axes(x_title="step", y_title="difference, smoothed"),
            lambda run: smooth_points(
                [(step, loss - mean[step]) for step, loss in _column(run, "loss") if step in mean]
            ),
        )
    names = dict.fromkeys(name for run in runs for row in run.steps for name in row)
    for kind, title, note in (
        (
            "effective_lr/",
            "Effective rate",
            "What really multiplies the update: for optimizers that estimate their own "
            "rate, d x lr. Recipes scale their updates differently, so equal rates are not "
            "equal progress.",
        ),
        ("lr/", "Rate as scheduled", "The rate handed to the optimizer at every step."),
    ):
        for name in (name for name in names if name.startswith(kind)):
            yield from chart(
                f"{title}: {name.removeprefix(kind).replace('_', ' ')}",
                note,
                Axes(x_title="step", y_title="rate, log scale", is_log_y=True),
                lambda run, name=name: _column(run, name),  # type: ignore[misc]
            )


def _loss_by_time(run: RunEvidence) -> Points:
    seconds, points = 0.0, []
    for row in run.steps:
        seconds += sum(_number(row, phase) or 0.0 for phase in _PHASES)
        loss = _number(row, "loss")
        if loss is not None and seconds > 0:
            points.append((seconds, loss))
    return smooth_points(points)


def _mean_losses(runs: Sequence[RunEvidence]) -> dict[float, float]:
    """Return the mean loss at each step of the runs that got furthest.

    Runs that ended early are left out, or the mean would jump where they end.
    """
    longest = max(len(run.steps) for run in runs)
    columns = [_column(run, "loss") for run in runs if len(run.steps) == longest]
    by_step: dict[float, list[float]] = {}
    for column in columns:
        for step, loss in column:
            by_step.setdefault(step, []).append(loss)
    return {
        step: sum(losses) / len(losses)
        for step, losses in by_step.items()
        if len(losses) == len(columns)
    }


def _column(run: RunEvidence, name: str) -> Points:
    pairs = [(_number(row, "step"), _number(row, name)) for row in run.steps]
    return [(step, value) for step, value in pairs if step is not None and value is not None]


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    return float(value) if isinstance(value, (int, float)) else None
