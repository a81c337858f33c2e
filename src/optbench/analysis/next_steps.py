"""Gaps of a sweep's evidence and the runs that would close them: data without words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from optbench.analysis.comparisons import TRAINING, differing, known_records
from optbench.analysis.frames import Frames
from optbench.analysis.outcomes import OBJECTIVE, SPLITS
from optbench.analysis.raced import is_stopped_by_race
from optbench.analysis.rates import RATES, RankTrap, rank_trap
from optbench.analysis.standings import BROKEN, DONE, Setting, Standings
from optbench.analysis.superseded import superseded

ENOUGH_SEEDS = 3
_HELD_OUT = (OBJECTIVE, SPLITS["held_out"])  # measures of how well a LoRA does on other images
MANY_SEEDS = 6
RATE_LADDER = (0.3, 1.0, 3.0)
LOW_RATES = (0.1, 0.3, 1.0)
_PAUSES = ("seconds_validate", "seconds_save")

Reason = Literal[
    "superseded",
    "unfinished",
    "diverged",
    "out_of_memory",
    "nothing_to_compare",
    "no_held_out_validation",
    "few_seeds",
    "confirm_tuned",
    "rates_untuned",
    "dim_and_rate",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class NextStep:
    """One way to a surer answer: why, what to change in the sweep's commands, what that costs."""

    reason: Reason
    changes: tuple[tuple[str, ...], ...] = ((),)  # overrides; every entry is a command of its own
    settings: tuple[Setting, ...] = ()  # to be listed in place of what the sweep varies
    num_runs: int | None = None  # that would be trained
    seconds: float | None = None  # that they take one after the other, images left out
    num_seeds: int | None = None  # of each setting, afterwards
    smallest_difference: float | None = None  # that would show then


@dataclass(frozen=True, slots=True, kw_only=True)
class Untested:
    """Settings that a sweep did not vary, with the values they had."""

    rates: tuple[str, ...]  # recipes of which one rate was tried
    trap: RankTrap | None
    fixed: dict[str, tuple[str, ...]]  # "base" and "dataset", those of them that were not varied
    schedules: tuple[str, ...]  # where they were not varied
    num_steps: int | None  # where all finished runs trained as long
    ratings: bool  # nobody has scored its images


def next_steps(frames: Frames, standings: Standings) -> Iterator[NextStep]:
    """Yield the runs to make next, the most useful first."""
    runs = frames.runs[frames.runs["kind"] == TRAINING]
    is_race = runs["race_phase"].notna().any()
    rows = [row for row in known_records(runs) if not is_stopped_by_race(row)]
    statuses = {str(row["status"]) for row in rows}
    pace = _Pace(rows)
    stale = superseded(runs)
    if stale:
        yield NextStep(reason="superseded", num_runs=len(stale), seconds=pace.of(len(stale)))
    if statuses - {DONE, *BROKEN}:
        num_left = sum(row["status"] not in (DONE, *BROKEN) for row in rows)
        yield NextStep(reason="unfinished", num_runs=num_left, seconds=pace.of(num_left))
    if is_race:
        return  # its own command continues it, and high rates diverge where a race tries them
    diverged = {str(row.get("optimizer")) for row in rows if row["status"] == "diverged"}
    adjustable = sorted(diverged & _takes_rates(rows))
    if adjustable:
        change = _for_recipes(adjustable, rows, f"lr_mult={_values(LOW_RATES)}")
        yield NextStep(reason="diverged", changes=(change,))
    if "out_of_memory" in statuses:
        yield NextStep(reason="out_of_memory", changes=(("train.gradient_checkpointing=true",),))
    if len(standings.settings) == 1:
        recipe = str(rows[0].get("optimizer"))
        other = "lion" if recipe == "adamw" else "adamw"
        seeds = _more_seeds(rows, ENOUGH_SEEDS)
        yield NextStep(
            reason="nothing_to_compare",
            changes=((f"optimizer={recipe},{other}", f"seed={_values(seeds)}"),),
            num_runs=2 * ENOUGH_SEEDS - len({row.get("seed") for row in rows}),
            seconds=pace.of(2 * ENOUGH_SEEDS - 1),
            num_seeds=ENOUGH_SEEDS,
        )
    if standings.finished and standings.measure not in _HELD_OUT:
        num_done = sum(row["status"] == DONE for row in rows)
        yield NextStep(
            reason="no_held_out_validation", changes=(("validate=default",),), num_runs=num_done
        )
    yield from _more_evidence(rows, standings, pace)
    yield from _more_rates(rows, standings, pace)


def _more_evidence(
    rows: Sequence[Mapping[str, Any]], standings: Standings, pace: _Pace
) -> Iterator[NextStep]:
    is_settled = standings.is_ranked and len(standings.best) == 1
    if len(standings.finished) < 2 or (is_settled and standings.num_seeds >= ENOUGH_SEEDS):
        return
    aim = ENOUGH_SEEDS if standings.num_seeds < ENOUGH_SEEDS else MANY_SEEDS
    # Those there are come first, so that their runs are not lost.
    seeds = _more_seeds(rows, aim)
    if len(seeds) <= standings.num_seeds:
        return
    missing = {
        setting.label: len(seeds) - setting.num_seeds - setting.num_broken
        for setting in standings.settings
    }
    yield NextStep(
        reason="few_seeds",
        changes=((f"seed={_values(seeds)}", "render=off"),),
        num_runs=sum(missing.values()),
        seconds=pace.of_settings(standings, missing),
        num_seeds=len(seeds),
        smallest_difference=standings.smallest_difference(len(seeds)),
    )


def _more_rates(
    rows: Sequence[Mapping[str, Any]], standings: Standings, pace: _Pace
) -> Iterator[NextStep]:
    if not standings.finished:
        return
    recipes = sorted({*untuned(standings)} & _takes_rates(rows))
    typed = {name for row in rows for name in str(row.get("changed") or "").split()}
    # A ladder of factors is of each recipe's own rate: not where a rate is given by hand.
    if recipes and not typed & {*RATES[1:]}:
        change = _for_recipes(recipes, rows, f"lr_mult={_values(RATE_LADDER)}")
        num_runs = (len(RATE_LADDER) - 1) * sum(
            setting.num_seeds for setting in standings.finished if setting.recipe in recipes
        )
        yield NextStep(
            reason="rates_untuned", changes=(change,), num_runs=num_runs, seconds=pace.of(num_runs)
        )
    trap = rank_trap(rows)
    if trap is not None and not typed & {"network.rslora", "network.alpha"}:
        num_runs = (2 * len(trap.dims) - 1) * max(
            1, sum(s.num_seeds for s in standings.finished) // len(trap.dims)
        )
        yield NextStep(
            reason="dim_and_rate", changes=trap.arms, num_runs=num_runs, seconds=pace.of(num_runs)
        )


def untested(frames: Frames, standings: Standings) -> Untested:
    """Return the settings and judgements that a sweep's answer cannot speak of."""
    runs = frames.runs[frames.runs["kind"] == TRAINING]
    factors = differing(runs) if len(runs) else []
    rows = known_records(runs)
    steps = {row.get("num_steps") for row in rows if row["status"] == DONE}
    is_length_varied = "train.epochs" in factors or "train.max_steps" in factors
    return Untested(
        rates=untuned(standings),
        trap=rank_trap(rows),
        fixed={
            name: tuple(sorted({str(row[name]) for row in rows if row.get(name)}))
            for name in ("base", "dataset")
            if name not in factors
        },
        schedules=tuple(
            sorted({str(row["lr_scheduler"]) for row in rows if row.get("lr_scheduler")})
        )
        if "lr_scheduler" not in factors
        else (),
        num_steps=int(next(iter(steps)) or 0) if len(steps) == 1 and not is_length_varied else None,
        ratings=not len(frames.scores) and not len(frames.votes),
    )


def untuned(standings: Standings) -> tuple[str, ...]:
    """Return the recipes of which any finished setting had one rate, of those that take one."""
    tunings = standings.tunings
    return tuple(
        dict.fromkeys(
            setting.recipe for setting in standings.finished if not tunings[setting.label].is_tuned
        )
    )


class _Pace:
    """How long runs of this sweep take, from those that are done; images are not counted."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._seconds = {
            str(row["run"]): float(row["seconds_total"])
            + sum(float(row.get(name) or 0.0) for name in _PAUSES)
            for row in rows
            if row["status"] == DONE and row.get("seconds_total")
        }

    def of(self, num_runs: int) -> float | None:
        """Return the seconds of so many runs like those there are; None without any."""
        if not self._seconds:
            return None
        return num_runs * sum(self._seconds.values()) / len(self._seconds)

    def of_settings(self, standings: Standings, counts: Mapping[str, int]) -> float | None:
        """Return the seconds of so many more runs of each setting, by its label."""
        if not self._seconds:
            return None
        mean = sum(self._seconds.values()) / len(self._seconds)
        total = 0.0
        for setting in standings.settings:
            known = [self._seconds[run] for run in setting.runs if run in self._seconds]
            each = sum(known) / len(known) if known else mean
            total += max(0, counts[setting.label]) * each
        return total


def _takes_rates(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the recipes that take a rate: a class that finds its own is refused one."""
    return {
        str(row.get("optimizer"))
        for row in rows
        if row.get("optimizer.traits.lr_role") != "automatic"
    }


def _for_recipes(
    recipes: Sequence[str], rows: Sequence[Mapping[str, Any]], *changes: str
) -> tuple[str, ...]:
    """Return changes for these recipes alone, where the sweep has others."""
    if {str(row.get("optimizer")) for row in rows} <= {*recipes}:
        return changes
    return (f"optimizer={','.join(recipes)}", *changes)


def _more_seeds(rows: Sequence[Mapping[str, Any]], aim: int) -> list[int]:
    seeds = sorted({seed for row in rows if isinstance(seed := row.get("seed"), int)})
    fresh = (seed for seed in range(1, 100) if seed not in {*seeds})
    while len(seeds) < aim:
        seeds.append(next(fresh))
    return seeds


def _values(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
