"""Say what a report says in a headline and a short table, for the end of a command.

`report/summary.json` lies beside the page, so that a terminal shows the page's words without
reading every run again.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from optbench.errors import DamagedFileError
from optbench.report.findings import Findings
from optbench.report.wording import NONE, seconds_text
from optbench.storage.files import read_json, write_json

SUMMARY_NAME = "summary.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingLine:
    """One setting in four words."""

    label: str
    gain: str  # on held-out images against the base model; or the loss that decides
    interval: str  # how far behind the best, with its interval; or why that is not known
    time: str  # of training one run


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A report in a few lines."""

    headline: str
    gain_title: str
    lines: tuple[SettingLine, ...]  # from best to worst where they are ranked


def summarize(findings: Findings) -> Summary:
    """Return what a sweep's findings come to, in the page's own words."""
    has_gain = any(row.gain is not None for row in findings.settings)
    lines = []
    for setting, row in zip(findings.standings.settings, findings.settings, strict=True):
        is_compared = row.difference_text != NONE
        seconds = setting.medians.get("seconds_total", math.nan)
        lines.append(
            SettingLine(
                label=row.label,
                gain=row.gain_text if has_gain else row.mean_text,
                interval=row.difference_text if is_compared else row.verdict,
                time=seconds_text(seconds),
            )
        )
    return Summary(
        headline=findings.answer.headline if findings.answer else "",
        gain_title="gain" if has_gain else "loss",
        lines=tuple(lines),
    )


def write_summary(report_dir: Path, findings: Findings) -> None:
    """Write a report's summary beside its page."""
    write_json(report_dir / SUMMARY_NAME, dataclasses.asdict(summarize(findings)))


def read_summary(report_dir: Path) -> Summary | None:
    """Return a report's summary; None where there is none that can be read."""
    try:
        content = read_json(report_dir / SUMMARY_NAME)
        return Summary(
            headline=str(content["headline"]),
            gain_title=str(content["gain_title"]),
            lines=tuple(
                SettingLine(**{key: str(value) for key, value in line.items()})
                for line in content["lines"]
            ),
        )
    except (DamagedFileError, AttributeError, KeyError, TypeError):
        return None
