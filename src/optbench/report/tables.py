"""The page's tables as cells: what is shown, what it sorts by, how long its bar is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from optbench import analysis
from optbench.analysis.changes import Change, changes
from optbench.analysis.curves import thinned
from optbench.analysis.evidence import RunEvidence, SweepEvidence
from optbench.analysis.rates import Tuning
from optbench.analysis.standings import DONE, Setting, Standings, Verdict
from optbench.report.rates import tuning_badge
from optbench.report.wording import (
    NONE,
    bytes_text,
    difference_text,
    number_text,
    reasons_once,
    seconds_text,
    times,
)

_MAX_EPOCH_COLUMNS = 12
_OF_WHOLE_RUNS = ("seconds_total", "final_loss")  # of shorter runs they compare with nothing
_EFFECTS = {"lower": "lower", "higher": "higher", "tied": "tied", "unknown": "n = 1"}
_MEASURES: Mapping[str, str] = {
    "validation_objective": "held-out loss and forgetting",
    "validation_held_out": "held-out loss",
    "validation_training": "validation loss",
    "final_loss": "training loss",
}
_VERDICTS: Mapping[Verdict, str] = {
    "no_result": "no result",
    "not_compared": "not compared",
    "unsafe": "unsafe",
    "broken": "broken",
    "unranked": "cannot tell",
    "lowest": "lowest",
    "tied_lowest": "tied, lowest",
    "worse": "worse",
    "tied": "tied",
}

# Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingRow:
    """One setting's row."""

    label: str
    verdict: str
    mean: float | None
    mean_text: str
    difference_text: str  # to the lowest, with its interval
    in_deviations: str
    gain: float | None  # of the loss on held-out images, against the base model
    gain_text: str
    forgetting: float | None  # added to the loss on other subjects
    forgetting_text: str
    seeds: int
    seconds: float | None
    seconds_text: str
    memory_bytes: float | None  # at its peak; None without a GPU: the process's says nothing
    memory_text: str
    state_bytes: float | None  # of the optimizer
    state_text: str
    file_bytes: float | None
    file_text: str
    badges: tuple[str, ...]


def setting_rows(standings: Standings, flagged: Collection[str] = ()) -> list[SettingRow]:
    """Return a row per setting: from best to worst where ranked, else in the sweep's order.

    Args:
        standings: How the settings compare.
        flagged: Labels of the settings whose last images are flagged.
    """
    tunings = standings.tunings
    rows = []
    for setting in standings.settings:
        against = setting.standing.against_best if setting.standing else None
        mean = setting.mean if setting.outcomes else None
        seconds, memory, state, size = (
            setting.medians.get(name)
            for name in (
                "seconds_per_step",
                "peak_memory_bytes",
                "optimizer_state_bytes",
                "lora_bytes",
            )
        )
        memory = memory if setting.has_gpu else None
        held_out, forgetting = (
            setting.medians.get(name) for name in ("validation_held_out", "validation_others")
        )
        gain = None if held_out is None else -held_out
        rows.append(
            SettingRow(
                label=setting.label,
                verdict=_VERDICTS[standings.verdict(setting)],
                mean=mean,
                mean_text=NONE if mean is None else f"{mean:.4g}",
                difference_text=_with_interval(against.mean, against.low, against.high)
                if against
                else NONE,
                in_deviations=f"{against.mean / standings.deviation:+.1f}"
                if against and standings.deviation
                else NONE,
                gain=gain,
                gain_text=NONE if gain is None else f"{gain:.3g}",
                forgetting=forgetting,
                forgetting_text=NONE if forgetting is None else f"{forgetting:+.3g}",
                seeds=setting.num_seeds,
                seconds=seconds,
                seconds_text=seconds_text(seconds),
                memory_bytes=memory,
                memory_text=bytes_text(memory),
                state_bytes=state,
                state_text=bytes_text(state),
                file_bytes=size,
                file_text=bytes_text(size),
                badges=tuple(
                    _badges(
                        standings,
                        setting,
                        tunings.get(setting.label),
                        is_flagged=setting.label in flagged,
                    )
                ),
            )
        )
    return rows


def _badges(
    standings: Standings, setting: Setting, tuning: Tuning | None, *, is_flagged: bool
) -> Iterator[str]:
    if setting.num_seeds == 1:
        yield "n = 1"
    if tuning is not None and (badge := tuning_badge(tuning, setting.rate_source)):
        yield badge
    if setting.broken:
        yield f"broken: {reasons_once(setting.broken)}"
    if is_flagged:
        yield "images flagged"
    if setting.num_broken:
        statuses = sorted(s.replace("_", " ") for s in setting.statuses if s != DONE)
        yield f"{', '.join(statuses)}: {setting.num_broken} of {len(setting.runs)}"
    if setting.num_unfinished:
        yield f"{setting.num_unfinished} of {len(setting.runs)} not finished"
    if setting.was_busy:
        # A machine's GPUs are not asked who else uses them; its load says it of the whole.
        yield "machine was busy" + (", the GPU may have been shared" if setting.has_gpu else "")


# Runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One cell of a table."""

    text: str
    sort: float | str | None  # None: unknown, sorted last in both directions
    is_number: bool = True
    bar_percent: float = 0.0  # of the column's largest value


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One run's row."""

    run: RunEvidence
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingGroup:
    """The runs of one setting, and their means."""

    label: str
    rows: tuple[RunRow, ...]
    means: tuple[Entry, ...]  # empty for a single run
    status: str  # of all its runs: 2 done, 1 diverged

    @property
    def is_alone(self) -> bool:
        """Whether it has one run, which says it all."""
        return len(self.rows) == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Titles and one row per run."""

    titles: tuple[str, ...]
    rows: tuple[RunRow, ...]
    groups: tuple[SettingGroup, ...] = ()  # the same rows by setting; empty: they are not grouped


def ranking(sweep: SweepEvidence, settings: Sequence[Setting] = ()) -> Table:
    """Return every run with its settings, costs and loss; fastest step first.

    Args:
        sweep: Its runs.
        settings: By which seeds are grouped; none: they are not.
    """
    columns: list[_Column] = [
        ("seconds_per_step", "time per step", seconds_text),
        ("seconds_optimizer", "optimizer update", seconds_text),
        ("seconds_total", "training time", seconds_text),
        ("final_loss", "final loss", lambda value: NONE if value is None else number_text(value)),
        ("d_escape_step", "d found at step", lambda v: NONE if v is None else number_text(v)),
        ("peak_memory_bytes", "peak memory", bytes_text),
        ("optimizer_state_bytes", "optimizer state", bytes_text),
        ("lora_bytes", "LoRA file", bytes_text),
    ]
    if not any(run.row.get("device_kind") == "cuda" for run in sweep.runs):
        # A process that made all runs one after another has one memory: it says nothing of each.
        columns = [column for column in columns if column[0] != "peak_memory_bytes"]
    # Where one setting is varied, the run's label says its value already.
    factors = tuple(sweep.factors) if len(sweep.factors) > 1 else ()
    values = [
        {
            name: _float(run.row.get(name))
            for name, _, _ in columns
            if run.row["status"] == DONE or name not in _OF_WHOLE_RUNS
        }
        for run in sweep.runs
    ]
    so_far = [
        {name: _float(run.row.get(name)) for name in _OF_WHOLE_RUNS}
        if run.row["status"] != DONE
        else {}
        for run in sweep.runs
    ]
    columns = [
        column
        for column in columns
        if any(of.get(column[0]) is not None for of in (*values, *so_far))
    ]
    largest = _largest(columns, values)
    rows = []
    for run, known, early in zip(sweep.runs, values, so_far, strict=True):
        cells = []
        for column in columns:
            name, _, text_of = column
            if (number := early.get(name)) is not None:
                cells.append(Entry(text=f"{text_of(number)} *", sort=None))
            else:
                cells.append(_cost_entry(column, known.get(name), largest))
        of_factors = [_value_entry(run.row.get(name)) for name in factors]
        rows.append(RunRow(run=run, entries=(*of_factors, *cells)))

    def means(places: Sequence[int]) -> tuple[Entry, ...]:
        first = sweep.runs[places[0]].row
        of_factors = [
            _value_entry(first.get(name)) if name != "seed" else Entry(text="", sort=None)
            for name in factors
        ]
        of_columns = [
            _cost_entry(column, _mean(values[place].get(column[0]) for place in places), largest)
            for column in columns
        ]
        return (*of_factors, *of_columns)

    return Table(
        titles=(*factors, *(title for _, title, _ in columns)),
        rows=tuple(rows),
        groups=_grouped(rows, settings, means),
    )


_Column = tuple[str, str, Callable[[float | None], str]]


def _largest(
    columns: Sequence[_Column], values: Sequence[Mapping[str, float | None]]
) -> dict[str, float]:
    """Return by column the value whose bar is whole; columns without bars are not there."""
    return {
        name: max((value for of in values if (value := of.get(name)) is not None), default=0.0)
        for name, _, _ in columns
        if name not in ("final_loss", "d_escape_step")
    }


def _cost_entry(column: _Column, value: float | None, largest: Mapping[str, float]) -> Entry:
    name, _, text_of = column
    top = largest.get(name, 0.0)
    share = max(0.0, 100 * value / top) if value is not None and top > 0 else 0.0
    return Entry(text=text_of(value), sort=value, bar_percent=share)


def _value_entry(value: Any) -> Entry:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    text = analysis.shown(value)
    sort = None if analysis.is_missing(value) else value if is_number else text
    return Entry(text=text, sort=sort, is_number=is_number)


def _grouped(
    rows: Sequence[RunRow],
    settings: Sequence[Setting],
    means: Callable[[Sequence[int]], tuple[Entry, ...]],
) -> tuple[SettingGroup, ...]:
    """Return rows by setting, in the order of each one's first; nothing where none has two.

    Args:
        rows: Of runs.
        settings: What groups them.
        means: Returns the mean entries of rows, given by their places.
    """
    label_of = {run: setting.label for setting in settings for run in setting.runs}
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(label_of.get(row.run.name, row.run.label), []).append(place)
    if not settings or all(len(of_setting) == 1 for of_setting in places.values()):
        return ()
    return tuple(
        SettingGroup(
            label=label,
            rows=tuple(rows[place] for place in of_setting),
            means=means(of_setting) if len(of_setting) > 1 else (),
            status=", ".join(
                f"{count} {status}"
                for status, count in Counter(rows[p].run.status for p in of_setting).most_common()
            ),
        )
        for label, of_setting in places.items()
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def epoch_times(sweep: SweepEvidence, settings: Sequence[Setting] = ()) -> Table | None:
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
    epochs = thinned(
        sorted({epoch for ends in by_run for epoch in ends}), max_points=_MAX_EPOCH_COLUMNS
    )
    if not epochs:
        return None
    rows = [
        RunRow(
            run=run,
            entries=tuple(
                Entry(text=seconds_text(ends.get(epoch)), sort=ends.get(epoch)) for epoch in epochs
            ),
        )
        for run, ends in zip(sweep.runs, by_run, strict=True)
    ]

    def means(places: Sequence[int]) -> tuple[Entry, ...]:
        of_epochs = [_mean(by_run[place].get(epoch) for place in places) for epoch in epochs]
        return tuple(Entry(text=seconds_text(mean), sort=mean) for mean in of_epochs)

    return Table(
        titles=tuple(f"epoch {epoch}" for epoch in epochs),
        rows=tuple(rows),
        groups=_grouped(rows, settings, means),
    )


# Pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeRow:
    """One change of one setting, over all pairs of runs equal in everything else."""

    change: Change
    loss_text: str
    time_text: str
    effects: tuple[EffectRow, ...]  # by every measure there is, the strongest evidence first
    pairs: tuple[PairRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectRow:
    """The effect of one change on one measure, with its interval."""

    measure: str
    mean: float
    text: str  # the mean difference and its interval
    over: str  # how many pairs and blocks
    lower: str
    deviations: str
    verdict: str
    depends_on: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRow:
    """One pair of runs."""

    from_run: RunEvidence
    to_run: RunEvidence
    loss_text: str
    validation_text: str  # with its interval over images
    step_text: str
    total_text: str


def change_rows(sweep: SweepEvidence, effects: pd.DataFrame) -> list[ChangeRow]:
    """Return every change of one setting with its effects and the pairs of runs that show it."""
    runs = {run.name: run for run in sweep.runs}
    effects_of = _effect_rows(effects)
    return [
        ChangeRow(
            change=change,
            loss_text=difference_text(change.loss_difference),
            time_text=NONE if change.time_ratio is None else f"x {change.time_ratio:.2f}",
            effects=effects_of.get((change.setting, change.from_value, change.to_value), ()),
            pairs=tuple(
                PairRow(
                    from_run=runs[pair["from_run"]],
                    to_run=runs[pair["to_run"]],
                    loss_text=difference_text(pair["loss_difference"]),
                    validation_text=_validation_text(pair),
                    step_text=_time_difference(pair["seconds_per_step_difference"]),
                    total_text=_time_difference(pair["seconds_total_difference"]),
                )
                for pair in change.pairs
            ),
        )
        for change in changes(sweep.frames)
    ]


def _effect_rows(effects: pd.DataFrame) -> dict[tuple[str, str, str], tuple[EffectRow, ...]]:
    by_change: dict[tuple[str, str, str], list[EffectRow]] = {}
    for row in effects.to_dict("records"):
        if row["measure"] not in _MEASURES:
            continue
        low, high, deviations = (_float(row[n]) for n in ("low", "high", "in_deviations"))
        line = EffectRow(
            measure=_MEASURES[row["measure"]],
            mean=float(row["mean"]),
            text=_with_interval(row["mean"], low, high),
            over=f"{times(int(row['num_pairs']), 'pair')}, {times(int(row['num_seeds']), 'seed')}",
            lower=f"{row['num_lower']} of {row['num_pairs']}",
            deviations=NONE if deviations is None else f"{deviations:+.1f}",
            verdict=_EFFECTS[row["verdict"]],
            depends_on=row["depends_on"],
        )
        key = str(row["setting"]), str(row["from_value"]), str(row["to_value"])
        by_change.setdefault(key, []).append(line)
    return {key: tuple(lines) for key, lines in by_change.items()}


def _validation_text(record: Mapping[str, Any]) -> str:
    """Return the difference on held-out images, else on training ones, with its interval."""
    for split in analysis.SPLITS:
        names = (f"validation_{split}_{end}" for end in ("difference", "low", "high"))
        mean, low, high = (_float(record.get(name)) for name in names)
        if mean is not None:
            return _with_interval(mean, low, high)
    return NONE


def _time_difference(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    return f"{'-' if seconds < 0 else '+'}{seconds_text(abs(seconds))}"


def _with_interval(mean: float, low: float | None, high: float | None) -> str:
    interval = "" if low is None or high is None else f" ({low:+.3g} to {high:+.3g})"
    return f"{mean:+.3g}{interval}"


def _float(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and value == value else None
