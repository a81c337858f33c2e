"""Rank the settings of a sweep from its frames: leaders, ties, settings that cannot be compared."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from optbench.analysis import stats
from optbench.analysis.comparisons import GROUPS, TRAINING, known_records, short, shown
from optbench.analysis.frames import Frames
from optbench.analysis.gate import broken_runs
from optbench.analysis.outcome_model import BROKEN as BROKEN
from optbench.analysis.outcome_model import DONE as DONE
from optbench.analysis.outcome_model import fit_outcomes, forgetful_settings, unlike_others
from optbench.analysis.outcomes import MEASURES, SPLITS, Outcome, Unlike, outcomes, varied
from optbench.analysis.race import read_race, read_results, tuning_of, verdicts
from optbench.analysis.raced import RACE_NAME, TUNE
from optbench.analysis.rates import RATES as RATES
from optbench.analysis.rates import Rung, Tuning, rate_of, tunings
from optbench.analysis.stats import Interval, TwoWay
from optbench.errors import DamagedFileError, DatasetError, Problem

COSTS = (
    "seconds_per_step",
    "seconds_total",
    "peak_memory_bytes",
    "optimizer_state_bytes",
    "lora_bytes",
)

Verdict = Literal[
    "no_result",  # no finished run
    "not_compared",  # measured unlike most other settings
    "unsafe",  # lowest or not: a run of it diverged, failed or ran out of memory
    "broken",  # lowest or not: its images are (`Setting.broken`)
    "unranked",  # nothing tells luck from a difference to the one that leads
    "lowest",  # every other contender is shown to be worse
    "tied_lowest",
    "tied",  # the interval of the difference to the one that leads includes 0
    "worse",  # ... excludes 0
]
Conclusion = Literal[
    "nothing_finished",
    "all_broken",  # nothing that could be recommended
    "one_setting",  # nothing to compare it with
    "not_comparable",  # no more than half of the settings were measured alike
    "one_left",  # nothing else came to its end with every seed
    "one_seed",  # an order without evidence
    "clear",  # one contender leads
    "all_tied",
    "some_tied",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a setting, or a value at its best, compares with the one that leads; lower is better."""

    name: Hashable
    mean: float  # as if it had run with every seed
    num_values: int
    is_best: bool  # leads
    against_best: Interval | None  # minus the one that leads; None: it leads itself

    @property
    def is_worse(self) -> bool:
        """Whether the interval of the difference excludes 0."""
        return self.against_best is not None and self.against_best.excludes_zero

    @property
    def is_tied(self) -> bool:
        """Whether there is an interval, and it includes 0."""
        has_interval = self.against_best is not None and self.against_best.low is not None
        return has_interval and not self.is_worse


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One combination of everything varied but the seed, with its runs."""

    label: str
    values: tuple[str, ...]  # in the order of `Standings.factors`
    recipe: str
    lr_role: str  # optimizer.traits.lr_role; "" where a run does not say it
    rate_source: str  # a `rates.RateSource`; "" where a run does not say it
    runs: tuple[str, ...]
    statuses: Mapping[str, int]  # how many of its runs are done, diverged ...
    outcomes: tuple[Outcome, ...]  # of its finished runs, by the measure that decides
    standing: Standing | None  # None: no finished run, a failed one among them, or measured unlike
    interval: Interval | None  # of its mean alone, over seeds and images; None without results
    broken: tuple[str, ...] = ()  # why its LoRAs are broken; then it is never recommended
    medians: Mapping[str, float]  # over its finished runs, of `COSTS`, `MEASURES`, `SPLITS`
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


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorStanding:
    """The values of one setting, each at its best value of every other, the lowest first.

    Differences are of the least means of the two values, whichever settings have them; their
    intervals hold together with one another and with those of all pairs of settings, so the choice
    of the best is paid for. The differences themselves favour the value that more was tried of.
    """

    factor: str
    standings: tuple[Standing, ...]
    at_best: Mapping[str, str]  # of each value the label of its lowest setting
    num_tried: Mapping[str, int]  # of each value the number of settings it is the best of


@dataclass(frozen=True, slots=True, kw_only=True)
class Standings:
    """Everything that is known about which settings are better.

    All differences come from one model (`stats.fit_two_way`), and their intervals hold together
    with 95 %: the verdicts of settings, of values (`by_factor`) and of changes (`effects`) cannot
    contradict one another.
    """

    measure: str  # of `MEASURES`
    factors: tuple[str, ...]
    settings: tuple[Setting, ...]  # from best to worst where ranked, others last
    by_factor: tuple[FactorStanding, ...]
    num_seeds: int  # of the least repeated setting that is compared
    unlike: tuple[Unlike, ...]  # in what settings were measured unlike those that are compared
    deviation: float | None  # of one run with its seed's effect taken out: the unit of differences
    residual_degrees: float  # of that deviation
    num_images: int  # that the intervals take as a sample of all such images; 0: of seeds alone
    num_validated: int  # finished runs with a validation loss, where not all have one
    model: TwoWay | None  # by the settings' `values`; None: nothing is compared
    confidence: float = stats.CONFIDENCE  # of all intervals together; of a race, of one look
    raced: Mapping[str, Tuning] = dataclasses.field(default_factory=dict)  # of a race's runs

    @property
    def finished(self) -> tuple[Setting, ...]:
        """The settings that have results."""
        return tuple(setting for setting in self.settings if setting.outcomes)

    @property
    def ordered(self) -> tuple[Setting, ...]:
        """The settings that have results, the lowest mean first, however little that says."""
        return tuple(sorted(self.finished, key=lambda setting: setting.mean))

    @property
    def compared(self) -> tuple[Setting, ...]:
        """The settings that are compared with one another."""
        return tuple(setting for setting in self.settings if setting.standing)

    @property
    def is_comparable(self) -> bool:
        """Whether more than half of the settings were measured alike."""
        return bool(self.compared)

    @property
    def is_ranked(self) -> bool:
        """Whether luck is known for any two settings."""
        standings = [setting.standing for setting in self.settings]
        return any(s and s.against_best and s.against_best.low is not None for s in standings)

    @property
    def tunings(self) -> Mapping[str, Tuning]:
        """How far the rate of every finished setting was tuned, by its label."""
        moving = [index for index, name in enumerate(self.factors) if name in RATES]
        ladders = tunings(
            Rung(
                key=setting.label,
                rest=(
                    setting.recipe,
                    *(v for i, v in enumerate(setting.values) if i not in moving),
                ),
                rates=tuple(rate_of(setting.values[index]) for index in moving),
                lr_role=setting.lr_role,
                value=setting.mean,
            )
            for setting in self.finished
        )
        # A race tried other rates before, with the tuning seed.
        return ladders | {
            setting.label: self.raced[setting.runs[0]]
            for setting in self.finished
            if setting.runs[0] in self.raced
        }

    @property
    def lead(self) -> Setting | None:
        """The setting that all others are compared with: the lowest that can be recommended."""
        return next((s for s in self.settings if s.standing and s.standing.is_best), None)

    @property
    def contenders(self) -> tuple[Setting, ...]:
        """For every combination of what was asked about its best setting, lowest first.

        Rates are no question where anything else is varied: each optimizer counts at its best one.
        """
        question = [index for index, name in enumerate(self.factors) if name not in RATES]
        groups: dict[tuple[str, ...], Setting] = {}
        for setting in self.settings:
            if setting.standing:
                key = tuple(setting.values[index] for index in question) or setting.values
                best = groups.setdefault(key, setting)
                # One that can be recommended, then one that is not worse, before a lower mean.
                if (_is_out(setting), setting.standing.is_worse) < (
                    _is_out(best),
                    best.standing is not None and best.standing.is_worse,
                ):
                    groups[key] = setting
        return tuple(groups.values())

    @property
    def best(self) -> tuple[Setting, ...]:
        """The contenders that nothing shows to be worse than the lead; all where none is ranked.

        Never one that is broken.
        """
        if not self.is_ranked:
            return tuple(setting for setting in self.finished if not setting.broken)
        return tuple(
            setting
            for setting in self.contenders
            if (standing := setting.standing)
            and not setting.broken
            and (standing.is_best or standing.is_tied)
        )

    @property
    def conclusion(self) -> Conclusion:
        """The result of the comparison, in one word."""
        if not self.finished:
            return "nothing_finished"
        if all(setting.broken for setting in self.finished):
            return "all_broken"
        if len(self.finished) == 1:
            return "one_setting"
        if not self.is_comparable:
            return "not_comparable"
        if len(self.compared) == 1:
            return "one_left"
        if not self.is_ranked:
            return "one_seed"
        if len(self.best) == 1:
            return "clear"
        return "all_tied" if len(self.best) == len(self.contenders) else "some_tied"

    @property
    def lowest(self) -> Setting:
        """The finished setting of lowest mean, of those that can be recommended if any can."""
        return min(self.ordered, key=_is_out)

    @property
    def chosen(self) -> tuple[Setting, ...]:
        """The settings that the results put first, with or without evidence for it."""
        return (self.lowest,) if self.conclusion in ("one_seed", "one_left") else self.best

    @property
    def closest_worse(self) -> Setting | None:
        """The first contender that is shown to be worse than the lead."""
        worse = (s for s in self.contenders if s.standing and s.standing.is_worse)
        return next(worse, None)

    def smallest_difference(self, num_seeds: int | None = None) -> float | None:
        """Return the smallest true difference that is seen in most sweeps like this one.

        None where nothing is known of luck.

        Args:
            num_seeds: Of each setting; None: those that there are.
        """
        return self.model.detectable(num_seeds, confidence=self.confidence) if self.model else None

    def difference(self, first: Setting, second: Setting) -> Interval | None:
        """Return second minus first; None where they are not compared."""
        if not (self.model and first.standing and second.standing):
            return None
        return self.model.difference(first.values, second.values)

    def verdict(self, setting: Setting) -> Verdict:
        """Return how a setting did among the others."""
        standing = setting.standing
        if not setting.outcomes:
            return "not_compared" if setting.statuses.get(DONE) else "no_result"
        if setting.num_broken:
            return "unsafe"
        if standing is None:
            return "not_compared"
        if setting.broken:
            return "broken"
        if not self.is_ranked:
            return "unranked"
        if standing.is_best:
            return "lowest" if len(self.best) == 1 else "tied_lowest"
        if standing.is_worse:
            return "worse"
        return "tied" if standing.is_tied else "unranked"


def _is_out(setting: Setting) -> bool:
    """Return whether a setting is never recommended."""
    return bool(setting.num_broken or setting.broken)


def rank_settings(frames: Frames) -> Standings:
    """Return how the settings of a sweep's finished trainings compare; the sweep may still run.

    Of a race these are the finalists: its runs of the tuning seed chose the rates, and are no
    evidence for them.

    Raises:
        DatasetError: If the frames hold several sweeps; `frames.by_sweep()` has each alone.
    """
    runs = frames.runs[frames.runs["kind"] == TRAINING]
    runs = runs[runs["race_phase"] != TUNE]
    if runs["sweep"].nunique() > 1:
        raise DatasetError(
            Problem(
                str(frames.root),
                f"{runs['sweep'].nunique()} sweeps",
                "the runs of one sweep, because runs of different sweeps are not paired",
                "load one sweep's folder, or take one of `frames.by_sweep()`",
            )
        )
    rows = known_records(runs)
    measure, num_validated = _measure(rows, names := tuple(varied(runs)))
    raced, confidence = _raced(frames, runs)
    machines = {row["run"]: row for row in known_records(frames.machines)}
    return rank_outcomes(
        names,
        rows,
        outcomes(runs, frames.validation)[measure],
        measure=measure,
        busy={str(run) for run, machine in machines.items() if machine["was_busy"]},
        on_gpu={str(run) for run, machine in machines.items() if machine["has_gpu"]},
        broken=broken_runs(frames),
        num_validated=num_validated,
        raced=raced,
        confidence=confidence,
    )


def _raced(frames: Frames, runs: pd.DataFrame) -> tuple[dict[str, Tuning], float]:
    """Return how far a race tuned the rate of each run, and the confidence of one of its looks."""
    if not runs["race_phase"].notna().any():
        return {}, stats.CONFIDENCE
    sweep = str(runs["sweep"].iloc[0])
    places = (frames.root / sweep, frames.root, frames.root.parent)
    sweep_dir = next((place for place in places if (place / RACE_NAME).is_file()), frames.root)
    try:
        record = read_race(sweep_dir)
    except DamagedFileError:
        record = None
    if record is None:
        return {}, stats.CONFIDENCE
    verdict = verdicts(record.design, read_results(frames, record))
    of_arm = {arm: tuning_of(record.design, tuning) for arm, tuning in verdict.tunings.items()}
    tunings = {run: of_arm[place.arm] for run, place in record.runs.items() if place.arm in of_arm}
    return tunings, record.design.look_confidence


def rank_outcomes(
    names: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    run_outcomes: Sequence[Outcome],
    *,
    measure: str = "final_loss",
    busy: Collection[str] = (),
    on_gpu: Collection[str] = (),
    broken: Mapping[str, str] | None = None,
    num_validated: int = 0,
    raced: Mapping[str, Tuning] | None = None,
    confidence: float = stats.CONFIDENCE,
) -> Standings:
    """Return how settings compare by the outcomes of their runs.

    Args:
        names: What is varied.
        rows: Every run's values of `names`, with its `run`, `status`, costs and measures.
        run_outcomes: Of finished runs, by the measure that decides.
        measure: That measure.
        busy: Names of runs beside which the machine did other work.
        on_gpu: Names of runs on a machine with a GPU.
        broken: Of runs whose LoRA is broken the reason; such settings stay in every table, and are
            never recommended.
        num_validated: How many finished runs have a validation loss, where not all have one.
        raced: Of a race's runs, how far their rate was tuned before they ran.
        confidence: Of all intervals together: of a race, of one of its looks.
    """
    names = tuple(names)
    rows_of: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        rows_of.setdefault(tuple(shown(row.get(name)) for name in names), []).append(row)
    outcomes_of: dict[tuple[str, ...], list[Outcome]] = {key: [] for key in rows_of}
    for outcome in run_outcomes:
        outcomes_of.setdefault(outcome.settings, []).append(outcome)
    failed = {key for key, of_key in rows_of.items() if any(r["status"] in BROKEN for r in of_key)}
    forgetful = forgetful_settings(rows, names)
    model = fit_outcomes(run_outcomes, failed, measure, forgetful=forgetful, confidence=confidence)
    reasons = broken or {}
    settings = []
    for key, of_key in rows_of.items():
        finished = [row for row in of_key if row["status"] == DONE]
        numbers = {
            name: [float(v) for row in finished if isinstance(v := row.get(name), (int, float))]
            for name in (*COSTS, *MEASURES, *SPLITS.values())
        }
        values = [outcome.value for outcome in outcomes_of[key]]
        settings.append(
            Setting(
                label=label_of(names, key),
                values=key,
                recipe=str(of_key[0].get("optimizer") or ""),
                lr_role=str(of_key[0].get("optimizer.traits.lr_role") or ""),
                rate_source=str(of_key[0].get("rate_source") or ""),
                runs=tuple(str(row["run"]) for row in of_key),
                statuses=Counter(str(row["status"]) for row in of_key),
                outcomes=tuple(outcomes_of[key]),
                standing=None,
                interval=(model.mean(key) if model and key in model.names else None)
                or (stats.mean_interval(values) if values else None),
                medians={n: statistics.median(known) for n, known in numbers.items() if known},
                was_busy=any(str(row["run"]) in busy for row in of_key),
                has_gpu=any(str(row["run"]) in on_gpu for row in of_key),
                broken=tuple(
                    dict.fromkeys(
                        reasons[str(row["run"])] for row in of_key if str(row["run"]) in reasons
                    )
                ),
            )
        )
    if model:
        settings = _with_standings(settings, model)
    return Standings(
        measure=measure,
        factors=names,
        settings=tuple(settings),
        by_factor=tuple(_by_factor(name, i, settings, model) for i, name in enumerate(names))
        if model
        else (),
        num_seeds=min((s.num_seeds for s in settings if s.standing), default=0),
        unlike=unlike_others(run_outcomes),
        deviation=model.deviation if model else None,
        residual_degrees=model.residual_degrees if model else 0.0,
        num_images=model.num_images if model else 0,
        num_validated=num_validated,
        model=model,
        confidence=confidence,
        raced=raced or {},
    )


def _measure(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> tuple[str, int]:
    """Return the best measure of more than half of the settings, and how many runs have validation.

    A setting has it where all its finished runs have.
    """
    finished: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["status"] == DONE:
            finished.setdefault(tuple(shown(row.get(name)) for name in names), []).append(row)
    num_validated = 0
    measure = "final_loss"
    for name in reversed(list(MEASURES)):
        has = [[row.get(name) is not None for row in of_key] for of_key in finished.values()]
        if name != "final_loss":
            num_validated = max(num_validated, sum(map(sum, has)))
        if 2 * sum(map(all, has)) > len(has):
            measure = name
    return measure, num_validated


def _with_standings(settings: Sequence[Setting], model: TwoWay) -> list[Setting]:
    """Return the settings with their standings, from best to worst, those not compared last."""
    places = {name: place for place, name in enumerate(model.names)}
    compared = [setting for setting in settings if setting.values in places]
    lead = min(
        compared,
        # One that is known beside as many others as any, of those that can be recommended.
        key=lambda s: (
            _is_out(s),
            -int(np.isfinite(model.errors[places[s.values]]).sum()),
            model.means[places[s.values]],
        ),
    )
    standing_of = {
        setting.values: Standing(
            name=setting.values,
            mean=float(model.means[places[setting.values]]),
            num_values=len(setting.outcomes),
            is_best=setting is lead,
            against_best=None if setting is lead else model.difference(lead.values, setting.values),
        )
        for setting in compared
    }
    ranked = [
        dataclasses.replace(setting, standing=standing_of.get(setting.values))
        for setting in settings
    ]
    if model.residual_degrees or any(np.isfinite(model.errors[~np.eye(len(places), dtype=bool)])):
        ranked.sort(
            key=lambda s: (
                s.standing is None,
                not (s.standing and s.standing.is_best),
                s.standing.mean if s.standing else 0.0,
            )
        )
    return ranked


def compare_settings(frames: Frames) -> pd.DataFrame:
    """Return one row per sweep and setting: its verdict, difference to the lowest, and costs.

    A sweep may still be running: its unfinished runs count in `num_unfinished` alone. `verdict` is
    one of `Verdict`; `difference` to the lowest setting comes with its 95 % interval; `num_rates`
    are those tried of its recipe with everything else equal, and `rate_edge` is `lowest` or
    `highest` where the best of them is the last one tried; `is_on_frontier` of training time and
    loss.
    """
    rows = []
    for sweep, part in frames.by_sweep().items():
        standings = rank_settings(part)
        tunings_of = standings.tunings
        front = {setting.label for setting in frontier(standings, "seconds_total")}
        for setting in standings.settings:
            against = setting.standing.against_best if setting.standing else None
            tuning = tunings_of.get(setting.label)
            is_edge = tuning is not None and tuning.is_best and tuning.position != "inside"
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
                    "broken": "; ".join(setting.broken),
                    "is_rate_tuned": tuning is not None and tuning.is_tuned,
                    "num_rates": tuning.num_rates if tuning else 0,
                    "rate_edge": (tuning.position or "") if tuning and is_edge else "",
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
    "broken",
    "is_rate_tuned",
    "num_rates",
    "rate_edge",
    "is_on_frontier",
    "was_busy",
    *COSTS,
)


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


def _by_factor(
    factor: str, index: int, settings: Sequence[Setting], model: TwoWay
) -> FactorStanding:
    by_value: dict[str, list[Setting]] = {}
    for setting in settings:
        if setting.standing:
            by_value.setdefault(setting.values[index], []).append(setting)
    # A value is not judged by what nobody would use, nor by what luck is not known of.
    for value, of_value in by_value.items():
        usable = [setting for setting in of_value if not _is_out(setting)] or of_value
        known = [s for s in usable if _is_known(s)] or usable
        by_value[value] = sorted(known, key=lambda s: s.standing.mean if s.standing else 0.0)
    ordered = sorted(by_value, key=lambda value: _order(by_value[value][0]))
    lead = by_value[ordered[0]] if ordered else []
    standings = [
        Standing(
            name=value,
            mean=of_value[0].standing.mean if of_value[0].standing else math.nan,
            num_values=sum(len(setting.outcomes) for setting in of_value),
            is_best=of_value is lead,
            against_best=None
            if of_value is lead
            else model.difference_of_bests(
                [setting.values for setting in lead], [setting.values for setting in of_value]
            ),
        )
        for value in ordered
        for of_value in [by_value[value]]
    ]
    return FactorStanding(
        factor=factor,
        standings=tuple(standings),
        at_best={value: by_value[value][0].label for value in ordered},
        num_tried={value: len(by_value[value]) for value in ordered},
    )


def _order(setting: Setting) -> tuple[bool, bool, float]:
    standing = setting.standing
    is_lead = standing is not None and standing.is_best
    return _is_out(setting), not is_lead, standing.mean if standing else math.nan


def _is_known(setting: Setting) -> bool:
    """Return whether luck is known between a setting and the one that leads."""
    standing = setting.standing
    against = standing.against_best if standing else None
    return bool(standing and standing.is_best) or bool(against and against.low is not None)
