"""The numbers that the viewer filters and shows beside its images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optbench.analysis.evidence import RunEvidence, SweepEvidence
from optbench.metrics import METRICS

Shot = tuple[str, int, int, int]  # prompt, width, height, seed

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


def _rounded(value: Any) -> float | None:
    """Return a finite number with the digits that anyone can see; None for anything else."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not abs(value) < 1e300:
        return None
    return value if isinstance(value, int) else float(f"{value:.5g}")
