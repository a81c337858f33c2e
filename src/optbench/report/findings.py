"""Collect the page's answer and evidence from a sweep's frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from optbench import analysis
from optbench.analysis import is_missing
from optbench.analysis.evidence import RunEvidence, SweepEvidence
from optbench.analysis.outcomes import outcomes, unlike
from optbench.analysis.standings import DONE, Standings, rank_settings
from optbench.analysis.targets import Targets, time_to_target
from optbench.report.answer import Answer, make_answer, people_prefer, why_unlike
from optbench.report.charts.chart import Chart, Key
from optbench.report.charts.costs import cost_charts, legend_of
from optbench.report.charts.styles import Styles
from optbench.report.image_flags import by_setting
from optbench.report.image_metrics import MetricReport, metric_report
from optbench.report.ratings_section import RatingsSection, ratings_section
from optbench.report.tables import SettingRow, setting_rows

_MAX_BAND_RUNS = 60
_TEXT_COLUMNS = (
    "mean_text",
    "gain_text",
    "forgetting_text",
    "seconds_text",
    "memory_text",
    "state_text",
    "file_text",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BandRow:
    """One run's last validation loss minus the base's, by noise level; None where not measured."""

    run: RunEvidence
    values: tuple[float | None, ...]  # in the order of `Findings.band_titles`


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenSetting:
    """A setting whose LoRAs are broken: it stays in every table, and is never recommended."""

    label: str
    reasons: tuple[str, ...]
    image: Path | None  # of its last epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """A sweep's conclusions as the page shows them, with the tables for spreadsheets."""

    answer: Answer | None
    preferred: str  # the label of the setting that people's votes put first; nothing without one
    broken: tuple[BrokenSetting, ...]
    unlike_losses: str  # why training losses do not compare; nothing where they do
    standings: Standings
    settings: tuple[SettingRow, ...]
    targets: Targets | None
    charts: tuple[Chart, ...]  # of settings: results, costs, rates
    legend: tuple[Key, ...]  # of all charts of runs: settings with their runs
    band_titles: tuple[str, ...]
    bands: tuple[BandRow, ...]
    ratings: RatingsSection | None
    metrics: MetricReport | None
    tables: Mapping[str, pd.DataFrame]

    @property
    def common_badges(self) -> tuple[str, ...]:
        """What is noted of every setting, where there are several: said once and not per row."""
        first, *others = [row.badges for row in self.settings] or [()]
        return tuple(b for b in first if others and all(b in badges for badges in others))


def make_findings(sweep: SweepEvidence, styles: Styles) -> Findings:
    """Return the conclusions of a sweep with their charts and tables."""
    frames = sweep.frames
    trainings = sweep.only(analysis.TRAINING)
    standings = rank_settings(frames)
    was_busy = any(run.was_busy for run in trainings.runs)
    bands = analysis.bands(frames.validation)
    legend = legend_of(sweep, standings, styles)
    metrics = metric_report(sweep, legend)
    flagged = by_setting(standings, metrics.flags if metrics else ())
    rows_of_settings = tuple(setting_rows(standings, flagged))
    settings = pd.DataFrame(
        [{**dataclasses.asdict(row), "badges": "; ".join(row.badges)} for row in rows_of_settings]
    )
    titles, rows = _bands(trainings, bands)
    of_run = {run: setting.label for setting in standings.settings for run in setting.runs}
    strengths = analysis.preferences(frames.votes, of_run) if len(frames.votes) else []
    judged = people_prefer(strengths)
    return Findings(
        answer=make_answer(sweep, standings, flagged, judged),
        preferred="" if judged is None else judged.label,
        broken=tuple(_broken(sweep, standings)),
        unlike_losses=why_unlike(
            unlike(outcomes(trainings.rows, frames.validation)["final_loss"])
            if trainings.runs
            else ()
        ),
        metrics=metrics,
        standings=standings,
        settings=rows_of_settings,
        targets=time_to_target(frames, standings),
        charts=tuple(cost_charts(trainings, standings, styles, was_busy=was_busy)),
        legend=legend,
        band_titles=titles,
        bands=rows,
        ratings=ratings_section(trainings, standings),
        tables={
            # A spreadsheet has the numbers, and not the same as text.
            "settings": settings.drop(columns=list(_TEXT_COLUMNS), errors="ignore"),
            "effects": analysis.effects(frames.pairs, frames.runs, frames.validation),
            "noise": analysis.noise_floor(frames.runs, frames.validation),
            "bands": bands,
            "scores": frames.scores,
            "votes": frames.votes,
        },
    )


def _broken(sweep: SweepEvidence, standings: Standings) -> Iterator[BrokenSetting]:
    images = sweep.frames.images
    for setting in standings.settings:
        if setting.broken:
            of_setting = images[images["run"].isin(setting.runs)]
            last = of_setting[of_setting["epoch"] == of_setting["epoch"].max()]
            path = next(iter(last["path"]), None)
            yield BrokenSetting(
                label=setting.label,
                reasons=setting.broken,
                image=None if path is None else sweep.frames.root / str(path),
            )


def _bands(
    trainings: SweepEvidence, bands: pd.DataFrame
) -> tuple[tuple[str, ...], tuple[BandRow, ...]]:
    """Return titles and rows of the finished runs' last epochs, where these are not too many."""
    runs = [run for run in trainings.runs if run.row["status"] == DONE][:_MAX_BAND_RUNS]
    table = analysis.last_bands(bands, trainings.rows)
    if table.empty:
        return (), ()
    table = table.droplevel("sweep").reindex([run.name for run in runs])
    table = table.dropna(axis="columns", how="all")
    titles = tuple(f"{place[0].replace('_', ' ')}: {place[1]}" for place in table.columns)
    rows = [
        BandRow(run=run, values=tuple(None if is_missing(v) else float(v) for v in values))
        for run, values in zip(runs, table.to_numpy(), strict=True)
    ]
    return titles, tuple(rows) if titles else ()
