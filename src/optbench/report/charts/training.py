"""Which curves the page shows, and what may be read from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from optbench.analysis.evidence import RunEvidence, SweepEvidence
from optbench.report.charts.line import Axes, Line, line_chart

# Runs that agree in all of these see the same pictures, noise and timesteps at the same step.
_DRAW_SETTINGS = ("base", "seed", "train.batch_size", "train.gradient_accumulation")
_PHASES = ("seconds_data", "seconds_forward", "seconds_backward", "seconds_optimizer")
_SMOOTHING = 15  # a curve is smoothed over this part of its steps ...
_MIN_SMOOTHING_STEPS = 8  # ... and over no fewer than these
_MAX_POINTS_OF_ALL = 16_000  # of one chart: more lines get fewer points each, or pages get slow

Points = tuple[list[float], list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One chart with its heading and what to know before reading it."""

    title: str
    note: str
    svg: Markup


def make_charts(sweep: SweepEvidence) -> list[Chart]:
    """Return the charts that have anything to show."""
    candidates = [*_loss_charts(sweep), *_rate_charts(sweep)]
    return [
        Chart(title=title, note=note, svg=svg) for title, note, svg in candidates if svg is not None
    ]


def smooth(values: Sequence[float], *, num_steps: int) -> list[float]:
    """Return an exponential moving average that starts unbiased; `num_steps` is its span."""
    keep = 1 - 2 / (num_steps + 1)
    total = weight = 0.0
    smoothed = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        smoothed.append(total / weight)
    return smoothed


def has_equal_draws(sweep: SweepEvidence) -> bool:
    """Return whether all runs saw the same data and noise at the same step."""
    names = [
        *_DRAW_SETTINGS,
        *(name for name in _setting_names(sweep) if name.partition(".")[0] in ("dataset", "loss")),
    ]
    return all(len({repr(run.row.get(name)) for run in sweep.runs}) <= 1 for name in names)


def _setting_names(sweep: SweepEvidence) -> set[str]:
    return {name for run in sweep.runs for name in run.row}


def _loss_charts(sweep: SweepEvidence) -> Iterator[tuple[str, str, Markup | None]]:
    smoothing = (
        f"Smoothed: an exponential moving average over 1/{_SMOOTHING} of the steps, "
        f"at least {_MIN_SMOOTHING_STEPS}."
    )
    yield (
        "Training loss by step",
        smoothing,
        _chart(sweep.runs, _loss_by_step, Axes(x_title="step", y_title="loss, smoothed")),
    )
    if len(sweep.runs) > 1:
        yield (
            "Training loss by training time",
            f"{smoothing} Seconds of training alone; saving and rendering are left out.",
            _chart(sweep.runs, _loss_by_time, Axes(x_title="seconds", y_title="loss, smoothed")),
        )
    if len(sweep.runs) > 1 and has_equal_draws(sweep):
        mean = _mean_losses(sweep.runs)

        def against_mean(run: RunEvidence) -> Points:
            steps, losses = _column(run, "loss")
            kept = [(step, loss) for step, loss in zip(steps, losses, strict=True) if step in mean]
            smoothed = _smoothed([loss - mean[step] for step, loss in kept])
            return [step for step, _ in kept], smoothed

        yield (
            "Loss against the other runs",
            "Loss minus the mean of all whole runs at the same step. All runs see the same "
            "pictures, noise and timesteps there, so this difference is far less noisy than the "
            "loss itself. Below 0 is lower than the others.",
            _chart(sweep.runs, against_mean, Axes(x_title="step", y_title="difference, smoothed")),
        )


def _rate_charts(sweep: SweepEvidence) -> Iterator[tuple[str, str, Markup | None]]:
    names = dict.fromkeys(name for run in sweep.runs for row in run.steps for name in row)
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
            part = name.removeprefix(kind).replace("_", " ")

            def rate(run: RunEvidence, name: str = name) -> Points:
                return _column(run, name)

            axes = Axes(x_title="step", y_title="rate, log scale", is_log_y=True)
            yield f"{title}: {part}", note, _chart(sweep.runs, rate, axes)


def _chart(
    runs: Sequence[RunEvidence], points: Callable[[RunEvidence], Points], axes: Axes
) -> Markup | None:
    lines = []
    for run in runs:
        x, y = _thinned(points(run), max_points=max(2, _MAX_POINTS_OF_ALL // len(runs)))
        line = Line(label=run.label, key=run.anchor, colour=run.colour, dash=run.dash, x=x, y=y)
        lines.append(line)
    return line_chart(lines, axes)


def _thinned(points: Points, *, max_points: int) -> Points:
    """Return an even choice of a line's points with both of its ends."""
    x, y = points
    if len(x) <= max_points:
        return points
    stride = (len(x) - 1) / (max_points - 1)
    places = [round(index * stride) for index in range(max_points)]
    return [x[place] for place in places], [y[place] for place in places]


def _loss_by_step(run: RunEvidence) -> Points:
    steps, losses = _column(run, "loss")
    return steps, _smoothed(losses)


def _loss_by_time(run: RunEvidence) -> Points:
    seconds, x, y = 0.0, [], []
    for row in run.steps:
        seconds += sum(_number(row, phase) or 0.0 for phase in _PHASES)
        loss = _number(row, "loss")
        if loss is not None and seconds > 0:
            x.append(seconds)
            y.append(loss)
    return x, _smoothed(y)


def _mean_losses(runs: Sequence[RunEvidence]) -> dict[float, float]:
    """Return the mean loss at each step of the runs that got furthest.

    Runs that ended early are left out, or the mean would jump where they end.
    """
    longest = max(len(run.steps) for run in runs)
    columns = [_column(run, "loss") for run in runs if len(run.steps) == longest]
    by_step: dict[float, list[float]] = {}
    for steps, losses in columns:
        for step, loss in zip(steps, losses, strict=True):
            by_step.setdefault(step, []).append(loss)
    return {
        step: sum(losses) / len(losses)
        for step, losses in by_step.items()
        if len(losses) == len(columns)
    }


def _column(run: RunEvidence, name: str) -> Points:
    pairs = [(_number(row, "step"), _number(row, name)) for row in run.steps]
    known = [(step, value) for step, value in pairs if step is not None and value is not None]
    return [step for step, _ in known], [value for _, value in known]


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    return float(value) if isinstance(value, (int, float)) else None


def _smoothed(values: Sequence[float]) -> list[float]:
    return smooth(values, num_steps=max(_MIN_SMOOTHING_STEPS, len(values) // _SMOOTHING))
