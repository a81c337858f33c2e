"""Runs by setting, and their values as mean and range over seeds: for notebooks and charts."""

from __future__ import annotations

import pandas as pd

from optbench.analysis.comparisons import TRAINING, known_records, shown
from optbench.analysis.curves import band, smooth_points
from optbench.analysis.outcomes import varied
from optbench.analysis.standings import label_of

COLUMNS = ("setting", "x", "mean", "low", "high", "num_seeds", "is_stopped")


def setting_labels(runs: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Return by (sweep, run) the label of each training's setting: all that is varied but the seed.

    Runs of several sweeps have the sweep's name in front.
    """
    trainings = runs[runs["kind"] == TRAINING]
    labels = {}
    for sweep, part in trainings.groupby("sweep", sort=False):
        names = varied(part)
        first = f"{sweep}: " if trainings["sweep"].nunique() > 1 else ""
        for row in known_records(part):
            label = label_of(names, [shown(row.get(name)) for name in names])
            labels[str(row["sweep"]), str(row["run"])] = first + label
    return labels


def over_seeds(
    values: pd.DataFrame, runs: pd.DataFrame, column: str, *, x: str, is_smoothed: bool
) -> pd.DataFrame:
    """Return the mean, lowest and highest value of each setting's seeds at every x they share.

    A run that ended earlier than the others of its setting is in none of these means, which would
    jump where it ends: it has rows of its own, with `is_stopped`.

    Args:
        values: Rows with sweep, run, `x` and `column`; several rows of one place are averaged.
        runs: The runs frame.
        column: What is averaged.
        x: The column that it is a curve over.
        is_smoothed: Whether each run's values are smoothed first, as in the report.
    """
    if not len(values) or not {column, x} <= set(values.columns):
        return pd.DataFrame(columns=list(COLUMNS))
    labels = setting_labels(runs)
    numbers = values[["sweep", "run"]].assign(
        x=pd.to_numeric(values[x], errors="coerce"),
        y=pd.to_numeric(values[column], errors="coerce"),
    )
    means = numbers.dropna().groupby(["sweep", "run", "x"], as_index=False)["y"].mean()
    settings: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for (sweep, run), label in labels.items():
        part = means[(means["sweep"] == sweep) & (means["run"] == run)]
        if len(part):
            points = [(float(at), float(y)) for at, y in zip(part["x"], part["y"], strict=True)]
            name = f"{sweep}/{run}"
            settings.setdefault(label, {})[name] = smooth_points(points) if is_smoothed else points
    rows: list[tuple[str, float, float, float, float, int, bool]] = []
    for label, curves in settings.items():
        shared = band(curves)
        end = max(points[-1][0] for points in curves.values())
        if shared is not None:
            places = zip(shared.x, shared.mean, shared.low, shared.high, strict=True)
            rows += [(label, *place, len(shared.runs), False) for place in places]
        for name, points in curves.items():
            if shared is None or name not in shared.runs:
                rows += [(label, at, y, y, y, 1, points[-1][0] < end) for at, y in points]
    return pd.DataFrame(rows, columns=list(COLUMNS)).rename(columns={"x": x})
