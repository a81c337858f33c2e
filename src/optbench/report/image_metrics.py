"""The page's section of numbers measured on images: curves over epochs, flags, last values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from optbench.analysis.evidence import RunEvidence, SweepEvidence
from optbench.analysis.image_metrics import Flag, image_flags, last_metrics, metric_table
from optbench.metrics import METRICS
from optbench.report.charts.chart import Chart, Key
from optbench.report.charts.images import image_charts
from optbench.report.image_flags import flag_reason, flag_words


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagRow:
    """One reason to look at a run's images, in words."""

    run: RunEvidence
    what: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRow:
    """One run's numbers after its last epoch, in the order of the titles."""

    run: RunEvidence
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricReport:
    """Everything the page shows of numbers measured on images."""

    charts: tuple[Chart, ...]
    flags: tuple[Flag, ...]
    flag_rows: tuple[FlagRow, ...]
    names: tuple[str, ...]
    hints: tuple[str, ...]  # what each name means
    rows: tuple[MetricRow, ...]
    floors: tuple[float | None, ...]  # the base's
    ceilings: tuple[float | None, ...]  # the training images'


def metric_report(sweep: SweepEvidence, settings: Sequence[Key]) -> MetricReport | None:
    """Return what the page shows, or None where no image was measured.

    Args:
        sweep: The runs.
        settings: The legend of its charts.
    """
    table = metric_table(sweep.frames)
    tables = {str(run): part for run, part in table.groupby("run")} if len(table) else {}
    runs = [(run, tables[run.name]) for run in sweep.runs if run.name in tables]
    if not runs:
        return None
    names = [name for name in METRICS if (table["metric"] == name).any()]
    last_of_runs = last_metrics(table)
    last = [(run, last_of_runs[last_of_runs["run"] == run.name]) for run, _ in runs]
    last_of_all = pd.concat([part for _, part in last])
    all_flags = image_flags(sweep.frames)
    flags = [(run, flag) for run, _ in runs for flag in all_flags if flag.run == run.name]
    return MetricReport(
        charts=tuple(image_charts(sweep, table, settings)),
        flags=tuple(flag for _, flag in flags),
        flag_rows=tuple(
            FlagRow(run=run, what=flag_words(flag), why=flag_reason(flag)) for run, flag in flags
        ),
        names=tuple(names),
        hints=tuple(METRICS[name].meaning for name in names),
        rows=tuple(
            MetricRow(run=run, values=tuple(_mean(part, name, "value") for name in names))
            for run, part in last
        ),
        floors=tuple(_mean(last_of_all, name, "base_value") for name in names),
        ceilings=tuple(_mean(last_of_all, name, "training_value") for name in names),
    )


def _mean(part: pd.DataFrame, metric: str, column: str) -> float | None:
    values = part.loc[part["metric"] == metric, column].dropna()
    return float(values.mean()) if len(values) else None
