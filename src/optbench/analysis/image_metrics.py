"""Means of the metrics of images, and flags on runs whose images need a look."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from optbench.analysis.frames import Frames

# Limits of the flags; docs/metrics.md has the images they were set by.
_BURNT = 0.10  # clipped values above the base's
_NOISE = 2.0  # local contrast, times the larger of the base's and the training images'
_UNCHANGED = 0.02  # mean difference from the base after the last epoch
_COPY = 0.16  # 10 of 64 bits
_LEAK = 0.25  # probability above the base's
BACKGROUND_LOST = 0.25  # probability under the base's
_INDEX = ["sweep", "run", "epoch"]
_COLUMNS = (*_INDEX, "metric", "value", "base_value", "training_value", "num_pictures")

FlagKind = Literal[
    "blank",
    "burnt",
    "noise",
    "identical_seeds",
    "outfit_leak",
    "lost_background",
    "unchanged",
    "near_copy",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One reason to look at a run's images."""

    sweep: str
    run: str
    kind: FlagKind
    metric: str
    value: float  # the last one that is over the limit
    base_value: float | None
    epochs: tuple[int, ...]  # over the limit
    is_last: bool  # it holds after the run's last epoch, and not only before
    limit: float = 0.0  # that the value is over, or under
    training_image: str = ""  # that was copied
    num_images: int = 0  # near-copies
    first_copy: tuple[str, int] = ("", 0)  # prompt and seed


def metric_table(frames: Frames) -> pd.DataFrame:
    """Return one row per run, epoch and metric: means over prompts, sizes and seeds.

    `base_value` is the mean over the same images of the base, `training_value` what the training
    images themselves have, and `num_pictures` how many were measured. Empty where nothing was.
    """
    rows = frames.metrics
    if rows.empty:
        return pd.DataFrame(columns=list(_COLUMNS))
    numbers = ["value", "base_value", "training_value"]
    values = rows[[*_INDEX, "metric"]].assign(
        **{name: pd.to_numeric(rows[name], errors="coerce") for name in numbers}
    )
    groups = values.dropna(subset=["value"]).groupby([*_INDEX, "metric"], sort=True)
    table = groups[numbers].mean()
    table["num_pictures"] = groups.size()
    return table.reset_index()[list(_COLUMNS)]


def last_metrics(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a `metric_table` after the last measured epoch of each run."""
    return table[table["epoch"] == table.groupby(["sweep", "run"])["epoch"].transform("max")]


def metrics_of_settings(
    frames: Frames, runs_of: Mapping[str, Collection[str]]
) -> dict[str, dict[str, float]]:
    """Return each setting's mean of every metric after the last measured epoch, by its label.

    A mean over its runs, and within a run over prompts, sizes and seeds. A setting or metric that
    was not measured is not there.

    Args:
        frames: Of one sweep.
        runs_of: The names of each setting's runs, by the setting's label.
    """
    last = last_metrics(metric_table(frames))
    label_of = {run: label for label, runs in runs_of.items() for run in runs}
    means = (
        last.assign(setting=last["run"].map(label_of))
        .groupby(["setting", "metric"])["value"]
        .mean()
        .reset_index()
    )
    by_setting: dict[str, dict[str, float]] = {}
    for row in means.to_dict("records"):
        by_setting.setdefault(str(row["setting"]), {})[str(row["metric"])] = float(row["value"])
    return by_setting


def image_flags(frames: Frames) -> list[Flag]:
    """Return which runs' images are blank, burnt, noise, copies or the base's own, by run."""
    flags: list[Flag] = []
    for (sweep, run), table in metric_table(frames).groupby(["sweep", "run"], sort=True):
        flags += _flags(str(sweep), str(run), table)
        flags += _copies(str(sweep), str(run), frames.metrics)
    return flags


def _flags(sweep: str, run: str, table: pd.DataFrame) -> Iterator[Flag]:
    trained_rows = table[table["epoch"] > 0]
    # The limit, and whether more than it is wrong or less.
    checks: tuple[tuple[str, FlagKind, bool, Callable[[pd.DataFrame], pd.Series[float]]], ...] = (
        ("flat", "blank", True, lambda rows: rows["value"] * 0.0),
        ("clipped", "burnt", True, lambda rows: rows["base_value"] + _BURNT),
        (
            "local_contrast",
            "noise",
            True,
            lambda rows: _NOISE * rows[["base_value", "training_value"]].max(axis=1),
        ),
        ("identical_seeds", "identical_seeds", True, lambda rows: rows["value"] * 0.0),
        ("outfit_leak", "outfit_leak", True, lambda rows: rows["base_value"] + _LEAK),
        (
            "background_obedience",
            "lost_background",
            False,
            lambda rows: rows["base_value"] - BACKGROUND_LOST,
        ),
    )
    for metric, kind, is_upper, limit_of in checks:
        rows = trained_rows[trained_rows["metric"] == metric]
        if not len(rows):
            continue
        limits = limit_of(rows)
        over = rows[rows["value"] > limits if is_upper else rows["value"] < limits]
        if len(over):
            last = over.iloc[-1]
            yield Flag(
                sweep=sweep,
                run=run,
                kind=kind,
                metric=metric,
                value=float(last["value"]),
                base_value=None if pd.isna(last["base_value"]) else float(last["base_value"]),
                epochs=tuple(int(epoch) for epoch in over["epoch"]),
                is_last=bool(over["epoch"].max() == trained_rows["epoch"].max()),
                limit=float(limits.loc[over.index[-1]]),
            )
    changes = (
        trained_rows[trained_rows["metric"] == "change_from_base"].sort_values("epoch").tail(1)
    )
    if len(changes) and changes["value"].iloc[0] < _UNCHANGED:
        yield Flag(
            sweep=sweep,
            run=run,
            kind="unchanged",
            metric="change_from_base",
            value=float(changes["value"].iloc[0]),
            base_value=None,
            epochs=(int(changes["epoch"].iloc[0]),),
            is_last=True,
        )


def _copies(sweep: str, run: str, rows: pd.DataFrame) -> Iterator[Flag]:
    trained_rows = rows[(rows["sweep"] == sweep) & (rows["run"] == run) & (rows["epoch"] > 0)]
    distances = trained_rows[trained_rows["metric"] == "copy_distance"]
    near = distances[pd.to_numeric(distances["value"], errors="coerce") <= _COPY]
    if len(near):
        first = near.iloc[0]
        training_image = first.get("detail")
        yield Flag(
            sweep=sweep,
            run=run,
            kind="near_copy",
            metric="copy_distance",
            value=float(first["value"]),
            base_value=None,
            epochs=tuple(int(epoch) for epoch in near["epoch"]),
            is_last=bool(near["epoch"].max() == trained_rows["epoch"].max()),
            training_image=training_image if isinstance(training_image, str) else "",
            num_images=len(near),
            first_copy=(str(first["prompt"]), int(first["seed"])),
        )
