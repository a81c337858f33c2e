"""The settings by what they reached, with what to know about each: n = 1, untuned, diverged."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from optbench import stats
from optbench.report.evidence import SweepEvidence
from optbench.report.standing import DONE, RATES, Setting, Standings
from optbench.report.wording import bytes_text, seconds_text

_NONE = "-"
_ENOUGH_PAIRS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingRow:
    """One setting's row."""

    label: str
    verdict: str  # lowest, tied, higher; or why there is none
    mean: float | None
    mean_text: str
    difference_text: str  # to the lowest, with its interval
    in_deviations: str
    seeds: int
    seconds: float | None
    seconds_text: str
    memory_bytes: float | None
    memory_text: str
    file_bytes: float | None
    file_text: str
    badges: tuple[str, ...]


def setting_rows(
    trainings: SweepEvidence, standings: Standings, odd: Collection[str] = ()
) -> list[SettingRow]:
    """Return a row per setting: from best to worst where ranked, else in the sweep's order.

    Args:
        trainings: The sweep's trainings.
        standings: How their settings stand.
        odd: Labels of the settings whose last pictures are flagged.
    """
    marks: dict[str, list[str]] = {one.label: [] for one in standings.settings}
    for label, edge in edge_labels(standings).items():
        marks[label].append(edge)
    for label in odd:
        marks[label].append("odd pictures")
    return [_row(trainings, standings, one, marks[one.label]) for one in standings.settings]


def edge_labels(standings: Standings) -> dict[str, str]:
    """Return the settings that are best at the last rate tried, with the words that say it.

    For each combination of the other settings the lowest rate or the highest one is best.
    """
    found: dict[str, str] = {}
    for index, name in enumerate(standings.factors):
        if name not in RATES:
            continue
        ladders: dict[tuple[str, ...], list[Setting]] = {}
        for one in standings.finished:
            rest = one.values[:index] + one.values[index + 1 :]
            ladders.setdefault(rest, []).append(one)
        for ladder in ladders.values():
            steps = sorted(ladder, key=lambda one: _rate(one.values[index]))
            best = min(steps, key=_mean)
            if len(steps) > 1 and best in (steps[0], steps[-1]):
                end = "lowest" if best is steps[0] else "highest"
                found[best.label] = f"at the edge of the ladder ({end} {name})"
    return found


def _row(
    trainings: SweepEvidence, standings: Standings, one: Setting, marks: Sequence[str]
) -> SettingRow:
    mean = _mean(one) if one.outcomes else None
    against = one.standing.against_best if one.standing else None
    difference = _NONE
    if standings.is_comparable and against is not None:
        difference = f"{against.mean:+.3g}"
        if against.low is not None and against.high is not None:
            difference += f" ({against.low:+.3g} to {against.high:+.3g})"
    deviations = _NONE
    if against is not None and standings.deviation and standings.is_comparable:
        deviations = f"{against.mean / standings.deviation:+.1f}"
    seconds, memory = one.cost("seconds_per_step"), one.cost("peak_memory_bytes")
    size = one.cost("lora_bytes")
    return SettingRow(
        label=one.label,
        verdict=_verdict(standings, one),
        mean=mean,
        mean_text=_NONE if mean is None else f"{mean:.4g}",
        difference_text=difference,
        in_deviations=deviations,
        seeds=one.seeds,
        seconds=seconds,
        seconds_text=seconds_text(seconds),
        memory_bytes=memory,
        memory_text=bytes_text(memory),
        file_bytes=size,
        file_text=bytes_text(size),
        badges=tuple(_badges(trainings, standings, one, marks)),
    )


def _verdict(standings: Standings, one: Setting) -> str:
    if not one.outcomes:
        return "no result"
    if not standings.is_comparable:
        return "not compared"
    if one.num_broken:
        return "unsafe"
    if not standings.is_ranked:
        return "cannot tell"
    if one.standing and one.standing.is_best:
        return "lowest" if len(standings.best) == 1 else "tied, lowest"
    if one.standing and one.standing.is_worse:
        return "worse"
    return "tied" if one in standings.best else "worse as a group"


def _badges(
    trainings: SweepEvidence, standings: Standings, one: Setting, marks: Sequence[str]
) -> Iterator[str]:
    if one.seeds == 1:
        yield "n = 1"
    elif 1 < one.seeds < _ENOUGH_PAIRS and standings.is_ranked:
        yield f"n = {one.seeds}, few"
    if not any(name in standings.factors for name in RATES):
        yield "rate untuned"
    yield from marks
    if one.num_broken:
        statuses = {run.status for run in one.runs if run.row["status"] != DONE}
        yield f"{', '.join(sorted(statuses))}: {one.num_broken} of {len(one.runs)}"
    unfinished = sum(run.row["status"] != DONE for run in one.runs) - one.num_broken
    if unfinished:
        yield f"{unfinished} of {len(one.runs)} not finished"
    if any(run.was_crowded for run in one.runs):
        # Our machines' GPUs are not asked who else uses them; the load says it of the whole.
        gpus = any(run.provenance.get("gpus") for run in one.runs)
        yield "other work ran beside" + (", the GPU may have been shared" if gpus else "")
    is_by_loss = standings.measure == "final_loss"
    if is_by_loss and any(name.partition(".")[0] == "loss" for name in trainings.factors):
        yield "losses not comparable"


def interval_of(one: Setting) -> stats.Interval | None:
    """Return the mean of a setting over its seeds with its interval; None without results."""
    return (
        stats.mean_interval([outcome.value for outcome in one.outcomes]) if one.outcomes else None
    )


def _mean(one: Setting) -> float:
    return sum(outcome.value for outcome in one.outcomes) / len(one.outcomes)


def _rate(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return 0.0
