"""The numbers that the viewer filters and shows, and the curves linked to its images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optbench.analysis.evidence import RunEvidence, SweepEvidence
from optbench.metrics import METRICS
from optbench.report.charts.line import smooth_points, thinned

Shot = tuple[str, int, int, int]  # prompt, width, height, seed
Points = list[tuple[float, float]]

_MAX_POINTS = 160  # of a curve: the viewer draws it a few hundred pixels wide
_OF_RUNS = (
    ("final_loss", "final loss", ""),
    ("seconds_per_step", "time per step", "s"),
    ("seconds_total", "training time", "s"),
    ("peak_memory_bytes", "peak memory", "B"),
    ("lora_bytes", "LoRA file", "B"),
)
_SPLITS = {
    "held_out": "held-out images",
    "ood": "other outfits and places",
    "others": "other subjects",
    "training": "training images",
}


def make_numbers(
    sweep: SweepEvidence, runs: Sequence[RunEvidence], shots: Sequence[Shot]
) -> list[dict[str, Any]]:
    """Return every known number: of a run, of an epoch of a run, or of one image.

    `values` has an entry for each run: the number itself, `{epoch: number}`, or
    `{epoch: [a number or null for each shot]}`, as `scope` says.
    """
    numbers = [
        _number(name, title, unit, "run", [_rounded(run.row.get(name)) for run in runs])
        for name, title, unit in _OF_RUNS
    ]
    of_epochs = {"mean_loss": "mean loss of the epoch"} | {
        f"validation_loss/{split}": f"validation loss, {words}" for split, words in _SPLITS.items()
    }
    for name, title in of_epochs.items():
        by_epoch = [
            {
                row["epoch"]: value
                for row in run.epochs
                if (value := _rounded(row.get(name))) is not None
            }
            for run in runs
        ]
        numbers.append(_number(name, title, "", "epoch", by_epoch))
    numbers += _of_images(sweep, runs, shots)
    return [
        number for number in numbers if any(value not in (None, {}) for value in number["values"])
    ]


def make_curves(runs: Sequence[RunEvidence]) -> list[dict[str, Any]]:
    """Return what is drawn over the steps of each run: loss, rate, validation; thinned."""
    curves = [
        _curve(
            "training loss, smoothed", runs, lambda run: smooth_points(_points(run.steps, "loss"))
        ),
        _curve("rate in effect", runs, _rates, is_log=True),
    ]
    for split, words in _SPLITS.items():

        def validation(run: RunEvidence, name: str = f"validation_loss/{split}") -> Points:
            return _points(run.epochs, name)

        curves.append(_curve(f"validation loss, {words}", runs, validation))
    return [curve for curve in curves if any(points[0] for points in curve["points"])]


def _number(name: str, title: str, unit: str, scope: str, values: list[Any]) -> dict[str, Any]:
    return {"name": name, "title": title, "unit": unit, "scope": scope, "values": values}


def _of_images(
    sweep: SweepEvidence, runs: Sequence[RunEvidence], shots: Sequence[Shot]
) -> list[dict[str, Any]]:
    run_places = {run.name: place for place, run in enumerate(runs)}
    shot_places = {shot: place for place, shot in enumerate(shots)}
    by_metric: dict[str, list[dict[int, list[float | None]]]] = {}
    for row in sweep.frames.metrics.to_dict("records"):
        shot = row["prompt"], row["width"], row["height"], row["seed"]
        run, value = run_places.get(row["run"]), _rounded(row["value"])
        if run is None or shot not in shot_places or value is None:
            continue
        of_runs = by_metric.setdefault(str(row["metric"]), [{} for _ in runs])
        of_epoch = of_runs[run].setdefault(int(row["epoch"]), [None] * len(shots))
        of_epoch[shot_places[shot]] = value
    numbers = []
    for name, values in sorted(by_metric.items()):
        number = _number(name, name.replace("_", " "), "", "cell", values)
        if metric := METRICS.get(name):
            better = {True: "higher", False: "lower", None: ""}[metric.higher_is_better]
            number |= {"meaning": f"{metric.meaning} ({metric.unit})", "better": better}
        numbers.append(number)
    return numbers


def _curve(
    title: str,
    runs: Sequence[RunEvidence],
    points: Callable[[RunEvidence], Points],
    *,
    is_log: bool = False,
) -> dict[str, Any]:
    columns = []
    for run in runs:
        drawn_points = thinned(points(run), max_points=_MAX_POINTS)
        columns.append([[x for x, _ in drawn_points], [_rounded(y) for _, y in drawn_points]])
    return {"title": title, "log": is_log, "points": columns}


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> Points:
    return [
        (step, value)
        for row in rows
        if isinstance(step := row.get("step"), (int, float))
        and (value := _rounded(row.get(name))) is not None
    ]


def _rates(run: RunEvidence) -> Points:
    """Return the rate in effect of the run's first group: of the Unet, where that is trained."""
    names = sorted(
        {name for row in run.steps for name in row if name.startswith("effective_lr/")}
        - {"effective_lr/text_encoder"}
    ) or ["effective_lr/text_encoder"]
    return [(step, value) for step, value in _points(run.steps, names[-1]) if value > 0]


def _rounded(value: Any) -> float | None:
    """Return a finite number with the digits that anyone can see; None for anything else."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not abs(value) < 1e300:
        return None
    return value if isinstance(value, int) else float(f"{value:.5g}")
