"""The page's tables as cells: what is shown, what it sorts by, how long its bar is."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from optbench import analysis
from optbench.analysis import stats
from optbench.analysis.evidence import RunEvidence, SweepEvidence
from optbench.analysis.standings import DONE, RATES, Setting, Standings
from optbench.report.charts.line import number_text
from optbench.report.wording import bytes_text, difference_text, seconds_text, times

_MAX_EPOCH_COLUMNS = 12
_NONE = "-"
_VERDICTS = {"lower": "lower", "higher": "higher", "tied": "tied", "unknown": "n = 1"}
_OF_WHOLE_RUNS = ("seconds_total", "final_loss")  # of shorter runs they compare with nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One cell of a table."""

    text: str
    sort: float | str | None  # None: unknown, sorted last in both directions
    is_number: bool = True
    bar_percent: float = 0.0  # of the column's largest value


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One run's row."""

    run: RunEvidence
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Titles and one row per run."""

    titles: tuple[str, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSummary:
    """What one change of one setting did, over all pairs of runs equal in everything else."""

    setting: str
    from_value: str
    to_value: str
    num_pairs: int
    num_lower_loss: int
    num_losses: int
    loss_text: str
    time_text: str
    effects: tuple[EffectLine, ...]  # by every measure there is, the strongest evidence first
    pairs: tuple[PairLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectLine:
    """What one change did by one measure, with its interval."""

    measure: str
    mean: float
    text: str  # the mean difference and its interval
    over: str  # how many pairs and blocks
    lower: str
    deviations: str
    verdict: str
    depends_on: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLine:
    """One pair of runs."""

    from_run: RunEvidence
    to_run: RunEvidence
    loss_text: str
    validation_text: str  # with its interval over pictures
    step_text: str
    total_text: str


def ranking(sweep: SweepEvidence) -> Table:
    """Return every run with its settings, costs and loss; fastest step first."""
    columns: list[tuple[str, str, Callable[[float | None], str]]] = [
        ("seconds_per_step", "time per step", seconds_text),
        ("seconds_optimizer", "of it the optimizer", seconds_text),
        ("seconds_total", "training time", seconds_text),
        ("final_loss", "final loss", _number_or_none),
        ("d_escape_step", "d found at step", _number_or_none),
        ("peak_memory_bytes", "peak memory", bytes_text),
        ("optimizer_state_bytes", "optimizer state", bytes_text),
        ("lora_bytes", "LoRA file", bytes_text),
    ]
    shown = [column for column in columns if _values(sweep.runs, column[0])]
    largest = {name: max(_values(sweep.runs, name)) for name, _, _ in shown}
    # Where one setting is varied, the run's label says its value already.
    factors = tuple(sweep.factors) if len(sweep.factors) > 1 else ()
    lines = []
    for run in sweep.runs:
        entries = [_setting_entry(run.row.get(name)) for name in factors]
        for name, _, text in shown:
            value = _float(run.row.get(name))
            has_bar = value is not None and largest[name] > 0 and name != "final_loss"
            share = 100 * (value or 0.0) / largest[name] if has_bar else 0.0
            if value is not None and name in _OF_WHOLE_RUNS and run.row["status"] != "done":
                entries.append(Entry(text=f"{text(value)} *", sort=None))
            else:
                entries.append(Entry(text=text(value), sort=value, bar_percent=max(0.0, share)))
        lines.append(Line(run=run, entries=tuple(entries)))
    titles = (*factors, *(title for _, title, _ in shown))
    return Table(titles=titles, lines=tuple(lines))


def epoch_times(sweep: SweepEvidence) -> Table | None:
    """Return the training time to the end of each epoch; of many epochs an even choice."""
    by_run = [
        {
            int(row["epoch"]): seconds
            for row in run.epochs
            if (seconds := _float(row.get("seconds_train_cumulative"))) is not None
            and row.get("epoch") is not None
        }
        for run in sweep.runs
    ]
    epochs = _chosen(sorted({epoch for times in by_run for epoch in times}))
    if not epochs:
        return None
    lines = []
    for run, ends in zip(sweep.runs, by_run, strict=True):
        entries = [Entry(text=seconds_text(ends.get(e)), sort=ends.get(e)) for e in epochs]
        lines.append(Line(run=run, entries=tuple(entries)))
    return Table(titles=tuple(f"epoch {epoch}" for epoch in epochs), lines=tuple(lines))


def pair_summaries(sweep: SweepEvidence, effects: pd.DataFrame) -> list[PairSummary]:
    """Return every change of one setting with the pairs of runs that show it, and what it did."""
    measured = _effect_lines(effects)
    runs = {run.run.name: run for run in sweep.runs}
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for record in _pair_records(sweep):
        key = record["setting"], record["from_value"], record["to_value"]
        groups.setdefault(key, []).append(record)
    order = {
        (name, value): (number, index)
        for number, (name, values) in enumerate(sweep.factors.items())
        for index, value in enumerate(values)
    }
    last = (len(order), 0)
    listed = sorted(groups, key=lambda key: [order.get((key[0], value), last) for value in key[1:]])
    return [_summary(groups[key], runs, measured.get(key, ())) for key in listed]


def _pair_records(sweep: SweepEvidence) -> list[dict[str, Any]]:
    """Return the pairs; without loss and total time where one run took more steps than the other.

    Losses are paired at equal steps only, because the loss falls along a run.
    """
    num_steps = {run.run.name: run.row.get("num_steps") for run in sweep.runs}
    records = []
    for pair in sweep.frames.pairs.to_dict("records"):
        record = {str(name): value for name, value in pair.items()}
        if not {record["from_run"], record["to_run"]} <= num_steps.keys():
            continue  # of runs that are not shown here
        if num_steps[record["from_run"]] != num_steps[record["to_run"]]:
            record["loss_difference"] = record["seconds_total_difference"] = None
        records.append(record)
    return records


def _effect_lines(effects: pd.DataFrame) -> dict[tuple[str, str, str], tuple[EffectLine, ...]]:
    found: dict[tuple[str, str, str], list[EffectLine]] = {}
    for row in effects.to_dict("records"):
        if row["measure"] not in analysis.MEASURES:
            continue
        low, high, deviations = (_float(row[n]) for n in ("low", "high", "in_seed_deviations"))
        interval = "" if low is None or high is None else f" ({low:+.3g} to {high:+.3g})"
        line = EffectLine(
            measure=analysis.MEASURES[row["measure"]],
            mean=float(row["mean"]),
            text=f"{row['mean']:+.3g}{interval}",
            over=f"{times(int(row['num_pairs']), 'pair')}, {row['num_blocks']} {row['blocks']}",
            lower=f"{row['num_lower']} of {row['num_pairs']}",
            deviations=_NONE if deviations is None else f"{deviations:+.1f}",
            verdict=_VERDICTS[row["verdict"]],
            depends_on=row["depends_on"],
        )
        key = str(row["setting"]), str(row["from_value"]), str(row["to_value"])
        found.setdefault(key, []).append(line)
    return {key: tuple(lines) for key, lines in found.items()}


def _summary(
    records: Sequence[Mapping[str, Any]],
    runs: Mapping[str, RunEvidence],
    effects: tuple[EffectLine, ...],
) -> PairSummary:
    key = records[0]
    losses = _known(record["loss_difference"] for record in records)
    ratios = [
        to_seconds / from_seconds
        for record in records
        if (to_seconds := _float(record["to_seconds_per_step"])) is not None
        and (from_seconds := _float(record["from_seconds_per_step"]))
    ]
    return PairSummary(
        setting=key["setting"],
        from_value=key["from_value"],
        to_value=key["to_value"],
        num_pairs=len(records),
        num_lower_loss=sum(value < 0 for value in losses),
        num_losses=len(losses),
        loss_text=difference_text(statistics.median(losses)) if losses else _NONE,
        time_text=f"x {statistics.median(ratios):.2f}" if ratios else _NONE,
        effects=effects,
        pairs=tuple(
            PairLine(
                from_run=runs[record["from_run"]],
                to_run=runs[record["to_run"]],
                loss_text=difference_text(_float(record["loss_difference"])),
                validation_text=_validation_text(record),
                step_text=_time_difference(record["seconds_per_step_difference"]),
                total_text=_time_difference(record["seconds_total_difference"]),
            )
            for record in records
        ),
    )


def _validation_text(record: Mapping[str, Any]) -> str:
    """Return the difference on held-out pictures, else on training ones, with its interval."""
    for split in analysis.SPLITS:
        names = (f"validation_{split}_{end}" for end in ("difference", "low", "high"))
        mean, low, high = (_float(record.get(name)) for name in names)
        if mean is not None:
            interval = "" if low is None or high is None else f" ({low:+.3g} to {high:+.3g})"
            return f"{mean:+.3g}{interval}"
    return _NONE


def _time_difference(value: Any) -> str:
    seconds = _float(value)
    if seconds is None:
        return _NONE
    return f"{'-' if seconds < 0 else '+'}{seconds_text(abs(seconds))}"


def _chosen(epochs: Sequence[int]) -> list[int]:
    if len(epochs) <= _MAX_EPOCH_COLUMNS:
        return list(epochs)
    last = len(epochs) - 1
    places = {round(last * part / (_MAX_EPOCH_COLUMNS - 1)) for part in range(_MAX_EPOCH_COLUMNS)}
    return [epochs[place] for place in sorted(places)]


def _setting_entry(value: Any) -> Entry:
    text = analysis.shown(value)
    if analysis.is_missing(value):
        return Entry(text=text, sort=None, is_number=False)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return Entry(text=text, sort=value if is_number else text, is_number=is_number)


def _values(runs: Sequence[RunEvidence], name: str) -> list[float]:
    return _known(run.row.get(name) for run in runs)


def _known(values: Any) -> list[float]:
    return [number for value in values if (number := _float(value)) is not None]


def _float(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and value == value else None


def _number_or_none(value: float | None) -> str:
    return _NONE if value is None else number_text(value)


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
