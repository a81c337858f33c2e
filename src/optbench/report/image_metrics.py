"""What numbers of pictures say in the report: curves over epochs, and flags where to look."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from optbench.analysis import Frames
from optbench.analysis.evidence import RunEvidence, SweepEvidence
from optbench.metrics import METRICS
from optbench.report.charts.line import Axes, Line, line_chart, number_text
from optbench.report.charts.training import Chart

# Limits of the flags; docs/metrics.md has the pictures they were set by.
_BURNT = 0.10  # clipped values above the base's
_NOISE = 2.0  # local contrast, times the larger of the base's and the training pictures'
_UNMOVED = 0.02  # mean difference from the base after the last epoch
_COPY = 0.16  # 10 of 64 bits
_LEAK = 0.25  # probability above the base's
_CHARTED = (
    "resistance",
    "outfit_leak",
    "resemblance",
    "clip_image",
    "dino_image",
    "clip_text",
    "clipped",
    "change_from_previous",
)
_INDEX = ["sweep", "run", "epoch"]
_COLUMNS = (*_INDEX, "metric", "value", "base_value", "training_value", "num_pictures")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One reason to look at a run's pictures."""

    run: RunEvidence
    what: str
    why: str
    is_last: bool  # it holds after the run's last epoch, and not only before


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricLine:
    """One run's numbers after its last epoch, in the order of the titles."""

    run: RunEvidence
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricReport:
    """Everything the page shows of numbers of pictures."""

    charts: tuple[Chart, ...]
    flags: tuple[Flag, ...]
    names: tuple[str, ...]
    hints: tuple[str, ...]  # what each name means
    lines: tuple[MetricLine, ...]
    floors: tuple[float | None, ...]  # the base's
    ceilings: tuple[float | None, ...]  # the training pictures'


def metric_table(frames: Frames) -> pd.DataFrame:
    """Return one row per run, epoch and metric: means over prompts, sizes and seeds.

    `base_value` is the mean over the same pictures of the base, `training_value` what the training
    pictures themselves have, and `num_pictures` how many were measured. Empty where nothing was.
    """
    rows = frames.metrics
    if rows.empty:
        return pd.DataFrame(columns=list(_COLUMNS))
    numbers = ["value", "base_value", "training_value"]
    kept = rows[[*_INDEX, "metric"]].assign(
        **{name: pd.to_numeric(rows[name], errors="coerce") for name in numbers}
    )
    groups = kept.dropna(subset=["value"]).groupby([*_INDEX, "metric"], sort=True)
    table = groups[numbers].mean()
    table["num_pictures"] = groups.size()
    return table.reset_index()[list(_COLUMNS)]


def make_metrics(sweep: SweepEvidence) -> MetricReport | None:
    """Return what the page shows, or None where no picture was measured."""
    table = metric_table(sweep.frames)
    if table.empty:
        return None
    by_run = dict(iter(table.groupby(["sweep", "run"])))
    runs = [(run, by_run[key]) for run in sweep.runs if (key := _key(run)) in by_run]
    if not runs:
        return None
    present = [name for name in METRICS if (table["metric"] == name).any()]
    last = [(run, part[part["epoch"] == part["epoch"].max()]) for run, part in runs]
    whole = pd.concat([part for _, part in last])
    return MetricReport(
        charts=tuple(_charts(runs)),
        flags=tuple(flag for run, part in runs for flag in _flags(run, part, sweep.frames)),
        names=tuple(present),
        hints=tuple(METRICS[name].meaning for name in present),
        lines=tuple(
            MetricLine(run=run, values=tuple(_mean(part, name, "value") for name in present))
            for run, part in last
        ),
        floors=tuple(_mean(whole, name, "base_value") for name in present),
        ceilings=tuple(_mean(whole, name, "training_value") for name in present),
    )


def _key(run: RunEvidence) -> tuple[str, str]:
    return str(run.row["sweep"]), run.run.name


def _mean(part: pd.DataFrame, metric: str, column: str) -> float | None:
    values = part.loc[part["metric"] == metric, column].dropna()
    return float(values.mean()) if len(values) else None


def _charts(runs: Sequence[tuple[RunEvidence, pd.DataFrame]]) -> Iterator[Chart]:
    for name in _CHARTED:
        lines = []
        for run, part in runs:
            own = part[part["metric"] == name].sort_values("epoch")
            lines.append(
                Line(
                    label=run.label,
                    key=run.anchor,
                    colour=run.colour,
                    dash=run.dash,
                    x=[float(one) for one in own["epoch"]],
                    y=[float(one) for one in own["value"]],
                )
            )
        svg = line_chart(lines, Axes(x_title="epoch, 0 is the base", y_title=name))
        if svg is not None:
            note = f"{METRICS[name].meaning[0].upper()}{METRICS[name].meaning[1:]}."
            yield Chart(title=name.replace("_", " "), note=note, svg=svg)


def _flags(run: RunEvidence, table: pd.DataFrame, frames: Frames) -> Iterator[Flag]:
    """Yield what is odd about a run's pictures, each with its numbers."""
    trained = table[table["epoch"] > 0]
    checks: tuple[tuple[str, str, Callable[[pd.DataFrame], pd.Series[bool]]], ...] = (
        ("flat", "nothing was drawn", lambda one: one["value"] > 0),
        ("clipped", "burnt", lambda one: one["value"] > one["base_value"] + _BURNT),
        (
            "local_contrast",
            "noise",
            lambda one: one["value"] > _NOISE * one[["base_value", "training_value"]].max(axis=1),
        ),
        ("identical_seeds", "seeds give one picture", lambda one: one["value"] > 0),
        ("outfit_leak", "the outfit leaks", lambda one: one["value"] > one["base_value"] + _LEAK),
    )
    for metric, what, is_odd in checks:
        own = trained[trained["metric"] == metric]
        odd = own[is_odd(own)] if len(own) else own
        if len(odd):
            epochs = ", ".join(str(int(epoch)) for epoch in odd["epoch"])
            first = odd.iloc[-1]
            base = "" if pd.isna(first["base_value"]) else f", base {_text(first['base_value'])}"
            why = f"{metric} {_text(first['value'])}{base}; epoch {epochs}"
            is_last = bool(odd["epoch"].max() == trained["epoch"].max())
            yield Flag(run=run, what=what, why=why, is_last=is_last)
    moved = trained[trained["metric"] == "change_from_base"].sort_values("epoch").tail(1)
    if len(moved) and moved["value"].iloc[0] < _UNMOVED:
        why = f"change_from_base {_text(moved['value'].iloc[0])} after the last epoch"
        yield Flag(run=run, what="hardly differs from the base", why=why, is_last=True)
    yield from _copies(run, frames.metrics)


def _copies(run: RunEvidence, rows: pd.DataFrame) -> Iterator[Flag]:
    sweep, name = _key(run)
    is_own = (rows["sweep"] == sweep) & (rows["run"] == name) & (rows["epoch"] > 0)
    own = rows[is_own & (rows["metric"] == "copy_distance")]
    near = own[pd.to_numeric(own["value"], errors="coerce") <= _COPY]
    if len(near):
        one = near.iloc[0]
        of = one.get("detail")
        named = f" of {of}" if isinstance(of, str) else ""
        why = f"{len(near)} pictures; first prompt {one['prompt']}, seed {one['seed']}, epoch"
        is_last = bool(near["epoch"].max() == rows.loc[is_own, "epoch"].max())
        yield Flag(run=run, what=f"near-copy{named}", why=f"{why} {one['epoch']}", is_last=is_last)


def _text(value: float) -> str:
    return number_text(round(float(value), 3))
