"""Rank the settings of a sweep from its frames: leaders, ties, settings that cannot be compared."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from optbench.analysis import stats
from optbench.analysis.comparisons import GROUPS, TRAINING, known_records, short, shown
from optbench.analysis.frames import Frames
from optbench.analysis.outcomes import MEASURES, Outcome, Unlike, outcomes, varied
from optbench.analysis.stats import Interval, Standing
from optbench.errors import DatasetError, Problem

DONE = "done"
BROKEN = ("diverged", "failed", "out_of_memory")
RATES = ("lr_mult", "optimizer.lr", "optimizer.unet_lr", "optimizer.text_encoder_lr")
COSTS = ("seconds_per_step", "seconds_total", "peak_memory_bytes", "lora_bytes")

Verdict = Literal[
    "no_result",  # no finished run
    "not_compared",  # the runs were measured unlike
    "unsafe",  # lowest or not: a run of it diverged, failed or ran out of memory
    "unranked",  # one seed cannot be told from luck
    "lowest",
    "tied_lowest",
    "tied",  # the interval of the difference to the lowest includes 0
    "worse",  # ... excludes 0
    "worse_as_group",  # one of its values is worse over all other settings together
]
Conclusion = Literal[
    "nothing_finished",
    "one_setting",  # nothing to compare it with
    "not_comparable",  # the runs were measured unlike
    "one_seed",  # an order without evidence
    "clear",  # one setting leads
    "all_tied",
    "some_tied",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One combination of everything varied but the seed, with its runs."""

    label: str
    values: tuple[str, ...]  # in the order of `Standings.factors`
    runs: tuple[str, ...]
    statuses: Mapping[str, int]  # how many of its runs are done, diverged ...
    outcomes: tuple[Outcome, ...]  # of its finished runs, by the measure that decides
    standing: Standing | None  # None: no finished run, or a broken one among them
    medians: Mapping[str, float]  # over its finished runs, of `COSTS` and `MEASURES`
    was_busy: bool  # other work ran beside one of its runs: its seconds say little
    has_gpu: bool

    @property
    def num_seeds(self) -> int:
        """With how many seeds it was finished."""
        return len({outcome.seed for outcome in self.outcomes})

    @property
    def num_broken(self) -> int:
        """The number of its runs that diverged, failed or ran out of memory."""
        return sum(self.statuses.get(status, 0) for status in BROKEN)

    @property
    def num_unfinished(self) -> int:
        """The number of its runs that are running, interrupted or skipped."""
        return len(self.runs) - self.num_broken - self.statuses.get(DONE, 0)

    @property
    def mean(self) -> float:
        """The mean over its finished runs; NaN without any."""
        values = [outcome.value for outcome in self.outcomes]
        return sum(values) / len(values) if values else math.nan

    @property
    def interval(self) -> Interval | None:
        """The mean over seeds with its interval, of this setting alone; None without results."""
        values = [outcome.value for outcome in self.outcomes]
        return stats.mean_interval(values) if values else None


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorStanding:
    """The values of one setting compared, over all blocks that differ in nothing else."""

    factor: str
    standings: tuple[Standing, ...]
    is_over_seeds: bool  # else over the other settings, at one seed
    num_lower: Mapping[str, tuple[int, int]]  # of each value: blocks in which the best was lower


@dataclass(frozen=True, slots=True, kw_only=True)
class TiedValues:
    """Tied settings that are a product of values: what to choose, and what is free."""

    decisive: Mapping[str, tuple[str, ...]]  # of each such factor the values that are not worse
    indifferent: tuple[str, ...]  # factors of which every value is among the best


@dataclass(frozen=True, slots=True, kw_only=True)
class Standings:
    """Everything that is known about which settings are better."""

    measure: str  # of `MEASURES`
    factors: tuple[str, ...]
    settings: tuple[Setting, ...]  # from best to worst where ranked, others last
    by_factor: tuple[FactorStanding, ...]
    num_seeds: int  # of the least repeated setting that is finished
    unlike: tuple[Unlike, ...]  # in what finished runs were measured unlike
    deviation: float | None  # that the seed alone makes
    num_validated: int  # finished runs with a validation loss, where not all have one

    @property
    def finished(self) -> tuple[Setting, ...]:
        """The settings that have results."""
        return tuple(setting for setting in self.settings if setting.outcomes)

    @property
    def ordered(self) -> tuple[Setting, ...]:
        """The settings that have results, the lowest mean first, however little that says."""
        return tuple(sorted(self.finished, key=lambda setting: setting.mean))

    @property
    def is_comparable(self) -> bool:
        """Whether every finished run may be compared with every other."""
        return not self.unlike

    @property
    def is_ranked(self) -> bool:
        """Whether anything supports an order: two seeds or more, and losses that compare."""
        return self.is_comparable and self.num_seeds > 1 and len(self.finished) > 1

    @property
    def is_rate_tuned(self) -> bool:
        """Whether any learning rate was varied."""
        return any(name in self.factors for name in RATES)

    @property
    def best(self) -> tuple[Setting, ...]:
        """The settings that nothing shows to be worse than the best; all where none is ranked."""
        if not self.is_ranked:
            return self.finished
        not_worse = [s for s in self.finished if s.standing and not s.standing.is_worse]
        # A value that is worse over all other settings together is worse in each, if a single
        # setting is too noisy to show it; but never against what was measured as the lowest.
        worse_values = {
            (index, standing.name)
            for index, factor in enumerate(self.by_factor)
            for standing in factor.standings
            if standing.is_worse
        }
        return tuple(
            setting
            for setting in not_worse
            if setting is not_worse[0] or worse_values.isdisjoint(enumerate(setting.values))
        )

    @property
    def conclusion(self) -> Conclusion:
        """The result of the comparison, in one word."""
        if not self.finished:
            return "nothing_finished"
        if len(self.finished) == 1:
            return "one_setting"
        if not self.is_comparable:
            return "not_comparable"
        if not self.is_ranked:
            return "one_seed"
        if len(self.best) == 1:
            return "clear"
        return "all_tied" if len(self.best) == len(self.finished) else "some_tied"

    @property
    def lowest(self) -> Setting:
        """The finished setting with the lowest mean, of those without a broken run if any is."""
        sound = [setting for setting in self.ordered if not setting.num_broken]
        return sound[0] if sound else self.ordered[0]

    @property
    def chosen(self) -> tuple[Setting, ...]:
        """The settings that the results put first, with or without evidence for it."""
        return (self.lowest,) if self.conclusion == "one_seed" else self.best

    @property
    def closest_worse(self) -> Setting | None:
        """The first setting that is shown to be worse than the lowest."""
        worse = (s for s in self.finished if s.standing and s.standing.is_worse)
        return next(worse, None)

    @property
    def tied_values(self) -> TiedValues | None:
        """The best settings by their values, None where they are no product of values."""
        columns = [
            tuple(dict.fromkeys(column))
            for column in zip(*(setting.values for setting in self.best), strict=True)
        ]
        if len(columns) < 2 or math.prod(map(len, columns)) != len(self.best):
            return None
        decisive = {
            name: values
            for index, (name, values) in enumerate(zip(self.factors, columns, strict=True))
            if len(values) < len({setting.values[index] for setting in self.finished})
        }
        return TiedValues(
            decisive=decisive,
            indifferent=tuple(name for name in self.factors if name not in decisive),
        )

    def verdict(self, setting: Setting) -> Verdict:
        """Return how a setting did among the others."""
        standing = setting.standing
        if not setting.outcomes:
            return "no_result"
        if not self.is_comparable:
            return "not_compared"
        if setting.num_broken:
            return "unsafe"
        if not self.is_ranked:
            return "unranked"
        if standing and standing.is_best:
            return "lowest" if len(self.best) == 1 else "tied_lowest"
        if standing and standing.is_worse:
            return "worse"
        return "tied" if setting in self.best else "worse_as_group"


def rank_settings(frames: Frames) -> Standings:
    """Return how the settings of a sweep's finished trainings compare; the sweep may still run.

    Raises:
        DatasetError: If the frames hold several sweeps; `frames.by_sweep()` has each alone.
    """
    runs = frames.runs[frames.runs["kind"] == TRAINING]
    if runs["sweep"].nunique() > 1:
        raise DatasetError(
            Problem(
                str(frames.root),
                f"{runs['sweep'].nunique()} sweeps",
                "the runs of one sweep, because runs of different sweeps are not paired",
                "load one sweep's folder, or take one of `frames.by_sweep()`",
            )
        )
    names = tuple(varied(runs))
    measure, num_validated = _measure(runs)
    run_outcomes = outcomes(runs, frames.validation)[measure]
    rows_of: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in known_records(runs):
        rows_of.setdefault(tuple(shown(row.get(name)) for name in names), []).append(row)
    outcomes_of: dict[tuple[str, ...], list[Outcome]] = {key: [] for key in rows_of}
    for outcome in run_outcomes:
        outcomes_of.setdefault(outcome.settings, []).append(outcome)
    # What breaks for one seed of three is no winner, however low the other two are.
    broken = {key for key, rows in rows_of.items() if any(r["status"] in BROKEN for r in rows)}
    values: Mapping[Hashable, Mapping[Hashable, float]] = {
        key: {outcome.seed: outcome.value for outcome in of_key}
        for key, of_key in outcomes_of.items()
        if of_key and (key not in broken or broken >= {*rows_of})
    }
    standings = {standing.name: standing for standing in stats.standings(values)}
    machines = {row["run"]: row for row in known_records(frames.machines)}
    settings = []
    for key, rows in rows_of.items():
        finished = [row for row in rows if row["status"] == DONE]
        numbers = {
            name: [float(v) for row in finished if isinstance(v := row.get(name), (int, float))]
            for name in (*COSTS, *MEASURES)
        }
        settings.append(
            Setting(
                label=label_of(names, key),
                values=key,
                runs=tuple(str(row["run"]) for row in rows),
                statuses=Counter(str(row["status"]) for row in rows),
                outcomes=tuple(outcomes_of[key]),
                standing=standings.get(key),
                medians={n: statistics.median(known) for n, known in numbers.items() if known},
                was_busy=any(machines[row["run"]]["was_busy"] for row in rows),
                has_gpu=any(machines[row["run"]]["has_gpu"] for row in rows),
            )
        )
    num_seeds = min((setting.num_seeds for setting in settings if setting.outcomes), default=0)
    parts = zip(*(outcome.comparable for outcome in run_outcomes), strict=True)
    unlike = tuple(dict.fromkeys(part[0][0] for part in parts if len({*part}) > 1))
    if not unlike and num_seeds > 1:
        order = {name: place for place, name in enumerate(standings)}
        settings.sort(key=lambda setting: order.get(setting.values, len(order)))
    noise = stats.pooled_deviation(
        [[outcome.value for outcome in of_key] for of_key in outcomes_of.values()]
    )
    return Standings(
        measure=measure,
        factors=names,
        settings=tuple(settings),
        by_factor=tuple(_by_factor(name, index, run_outcomes) for index, name in enumerate(names)),
        num_seeds=num_seeds,
        unlike=unlike,
        deviation=noise[0] if noise else None,
        num_validated=num_validated,
    )


def compare_settings(frames: Frames) -> pd.DataFrame:
    """Return one row per sweep and setting: its verdict, difference to the lowest, and costs.

    A sweep may still be running: its unfinished runs count in `num_unfinished` alone. `verdict` is
    one of `Verdict`; `difference` to the lowest setting comes with its 95 % interval; `rate_edge`
    is `lowest` or `highest` where the best rate is the last one tried; `is_on_frontier` of
    training time and loss.
    """
    rows = []
    for sweep, part in frames.by_sweep().items():
        standings = rank_settings(part)
        edges = rate_edges(standings)
        front = {setting.label for setting in frontier(standings, "seconds_total")}
        for setting in standings.settings:
            standing = setting.standing if standings.is_comparable else None
            against = standing.against_best if standing else None
            rows.append(
                {
                    "sweep": sweep,
                    "setting": setting.label,
                    "verdict": standings.verdict(setting),
                    "measure": standings.measure,
                    "mean": setting.mean,
                    "difference": against.mean if against else None,
                    "low": against.low if against else None,
                    "high": against.high if against else None,
                    "num_seeds": setting.num_seeds,
                    "num_runs": len(setting.runs),
                    "num_broken": setting.num_broken,
                    "num_unfinished": setting.num_unfinished,
                    "is_rate_tuned": standings.is_rate_tuned,
                    "rate_edge": edge.end if (edge := edges.get(setting.label)) else "",
                    "is_on_frontier": setting.label in front,
                    "was_busy": setting.was_busy,
                    **{name: setting.medians.get(name) for name in COSTS},
                }
            )
    return pd.DataFrame(rows, columns=list(_COMPARED_COLUMNS))


_COMPARED_COLUMNS = (
    "sweep",
    "setting",
    "verdict",
    "measure",
    "mean",
    "difference",
    "low",
    "high",
    "num_seeds",
    "num_runs",
    "num_broken",
    "num_unfinished",
    "is_rate_tuned",
    "rate_edge",
    "is_on_frontier",
    "was_busy",
    *COSTS,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RateEdge:
    """The best rate of a ladder is the last one that was tried: better ones may lie beyond."""

    factor: str
    end: Literal["lowest", "highest"]


def rate_edges(standings: Standings) -> dict[str, RateEdge]:
    """Return the settings that are best at the first or last rate tried, by their label.

    For each combination of the other settings the lowest rate or the highest one is best.
    """
    edges: dict[str, RateEdge] = {}
    for index, name in enumerate(standings.factors):
        if name not in RATES:
            continue
        ladders: dict[tuple[str, ...], list[Setting]] = {}
        for setting in standings.finished:
            rest = setting.values[:index] + setting.values[index + 1 :]
            ladders.setdefault(rest, []).append(setting)
        for ladder in ladders.values():
            by_rate = [(_rate(setting.values[index]), setting) for setting in ladder]
            rungs = [setting for _, setting in sorted(by_rate, key=lambda pair: pair[0])]
            best = min(rungs, key=lambda setting: setting.mean)
            if len(rungs) > 1 and best in (rungs[0], rungs[-1]):
                edges[best.label] = RateEdge(
                    factor=name, end="lowest" if best is rungs[0] else "highest"
                )
    return edges


def frontier(standings: Standings, cost: str) -> tuple[Setting, ...]:
    """Return the finished settings that no other beats in both cost and loss (Pareto), by cost."""
    priced = [
        (price, interval.mean, setting)
        for setting in standings.finished
        if (price := setting.medians.get(cost)) and (interval := setting.interval)
    ]
    front: list[Setting] = []
    lowest = math.inf
    for _, mean, setting in sorted(priced, key=lambda entry: entry[:2]):
        if mean < lowest:
            lowest = mean
            front.append(setting)
    return tuple(front)


def fastest(settings: Sequence[Setting]) -> Setting | None:
    """Return the setting with the fastest step, None where time was not measured undisturbed."""
    seconds = [setting.medians.get("seconds_per_step") for setting in settings]
    if any(known is None for known in seconds) or any(s.was_busy for s in settings):
        return None
    return min(settings, key=lambda setting: setting.medians["seconds_per_step"])


def label_of(factors: Sequence[str], values: Sequence[str]) -> str:
    """Return a short name of a setting: its recipe, and what else is varied with its name."""
    words = [
        value if name in GROUPS else f"{name}={short(name, value)}"
        for name, value in zip(factors, values, strict=True)
        if value != "null"
    ]
    return " ".join(words) or "the one setting"


def _rate(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return 0.0


def _measure(runs: pd.DataFrame) -> tuple[str, int]:
    """Return the best measure that all finished runs have, and how many have a validation loss."""
    finished = runs[runs["status"] == DONE]
    counts = {name: int(finished[name].notna().sum()) for name in MEASURES if name in finished}
    validated = max((count for name, count in counts.items() if name != "final_loss"), default=0)
    for name, count in counts.items():
        if len(finished) and count == len(finished):
            return name, validated
    return "final_loss", validated


def _by_factor(factor: str, index: int, run_outcomes: Sequence[Outcome]) -> FactorStanding:
    values: dict[Hashable, dict[Hashable, float]] = {}
    clusters: dict[Hashable, Hashable] = {}
    seeds = {outcome.seed for outcome in run_outcomes}
    for outcome in run_outcomes:
        rest = outcome.settings[:index] + outcome.settings[index + 1 :]
        block = (rest, outcome.seed, outcome.comparable)
        values.setdefault(outcome.settings[index], {})[block] = outcome.value
        clusters[block] = outcome.seed if len(seeds) > 1 else block
    standings = stats.standings(values, clusters)
    num_lower: dict[str, tuple[int, int]] = {}
    if standings:
        best = values[standings[0].name]
        for other in standings[1:]:
            both = [(best[at], value) for at, value in values[other.name].items() if at in best]
            num_lower[str(other.name)] = sum(low < high for low, high in both), len(both)
    return FactorStanding(
        factor=factor,
        standings=tuple(standings),
        is_over_seeds=len(seeds) > 1,
        num_lower=num_lower,
    )
