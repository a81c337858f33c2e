"""Everything that the answer and the evidence of the page show, from a sweep's folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from optbench import analysis
from optbench.analysis import BANDS, SPLITS
from optbench.analysis.evidence import RunEvidence, SweepEvidence
from optbench.analysis.standings import DONE, Standings, stand
from optbench.analysis.targets import Targets, time_to_target
from optbench.report.answer import Answer, make_answer
from optbench.report.charts.tradeoffs import rate_charts, tradeoff_charts
from optbench.report.charts.training import Chart
from optbench.report.image_flags import oddities
from optbench.report.image_metrics import MetricReport, make_metrics
from optbench.report.ratings_section import People, hear_people
from optbench.report.tables import SettingRow, setting_rows

_MAX_BAND_RUNS = 60
_WORDS = ["mean_text", "seconds_text", "memory_text", "file_text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BandRow:
    """One run's last validation loss minus the base's, by noise level; None where not measured."""

    run: RunEvidence
    values: tuple[float | None, ...]  # in the order of `Findings.band_titles`


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a sweep's results say, and the tables that say it to a spreadsheet."""

    answer: Answer | None
    standings: Standings
    settings: tuple[SettingRow, ...]
    targets: Targets | None
    charts: tuple[Chart, ...]
    band_titles: tuple[str, ...]
    bands: tuple[BandRow, ...]
    people: People | None
    metrics: MetricReport | None
    tables: Mapping[str, pd.DataFrame]


def find(sweep: SweepEvidence) -> Findings:
    """Return what the answer and the evidence of a sweep show."""
    frames = sweep.frames
    trainings = sweep.only(analysis.TRAINING)
    standings = stand(trainings)
    is_crowded = any(run.was_crowded for run in trainings.runs)
    bands = analysis.bands(frames.validation)
    metrics = make_metrics(sweep)
    odd = oddities(standings, metrics.flags if metrics else ())
    rows_of_settings = tuple(setting_rows(trainings, standings, odd))
    titles, rows = _bands(trainings, bands)
    return Findings(
        answer=make_answer(sweep, standings, odd),
        metrics=metrics,
        standings=standings,
        settings=rows_of_settings,
        targets=time_to_target(trainings, standings),
        charts=(*tradeoff_charts(standings, is_crowded=is_crowded), *rate_charts(standings)),
        band_titles=titles,
        bands=rows,
        people=hear_people(trainings, standings),
        tables={
            "settings": pd.DataFrame([_setting_record(one) for one in rows_of_settings]),
            "effects": analysis.effects(frames.pairs, frames.runs, frames.validation),
            "noise": analysis.noise_floor(frames.runs, frames.validation),
            "bands": bands,
            "scores": frames.scores,
            "votes": frames.votes,
        },
    )


def _setting_record(row: SettingRow) -> dict[str, Any]:
    found = {name: value for name, value in dataclasses.asdict(row).items() if name not in _WORDS}
    return {**found, "badges": "; ".join(row.badges)}


def _bands(
    trainings: SweepEvidence, bands: pd.DataFrame
) -> tuple[tuple[str, ...], tuple[BandRow, ...]]:
    """Return titles and rows of the finished runs' last epochs, where these are not too many."""
    runs = [run for run in trainings.runs if run.row["status"] == DONE][:_MAX_BAND_RUNS]
    values: dict[tuple[str, Any, str, str], float] = {}
    columns = ("run", "epoch", "split", "band", "difference")
    for run, epoch, split, band, difference in zip(*(bands[name] for name in columns), strict=True):
        values[str(run), epoch, str(split), str(band)] = float(difference)
    wanted = [
        (split, band)
        for split in SPLITS
        for band in BANDS
        if any((one.run.name, one.row.get("num_epochs"), split, band) in values for one in runs)
    ]
    titles = tuple(f"{split.replace('_', ' ')}: {band}" for split, band in wanted)
    rows = [
        BandRow(
            run=run,
            values=tuple(
                values.get((run.run.name, run.row.get("num_epochs"), *place)) for place in wanted
            ),
        )
        for run in runs
    ]
    return titles, tuple(rows) if wanted else ()
