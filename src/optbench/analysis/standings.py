"""Which settings stand where by their results, on what evidence, and at what price."""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from optbench import analysis
from optbench.analysis import MEASURES, Outcome, stats
from optbench.analysis.evidence import RunEvidence, SweepEvidence
from optbench.analysis.stats import Standing

DONE = "done"
BROKEN = ("diverged", "failed", "out_of_memory")
RATES = ("lr_mult", "optimizer.lr", "optimizer.unet_lr", "optimizer.text_encoder_lr")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One combination of everything varied but the seed, with its runs."""

    label: str
    values: tuple[str, ...]  # in the order of `Standings.factors`
    runs: tuple[RunEvidence, ...]
    outcomes: tuple[Outcome, ...]  # of its finished runs, by the measure that decides
    standing: Standing | None  # None: no finished run, or a broken one among them

    @property
    def seeds(self) -> int:
        """With how many seeds it was finished."""
        return len({outcome.seed for outcome in self.outcomes})

    @property
    def num_broken(self) -> int:
        """How many of its runs diverged, failed or ran out of memory."""
        return sum(run.row["status"] in BROKEN for run in self.runs)

    def cost(self, name: str) -> float | None:
        """Return the median over its finished runs of a column of the runs frame."""
        found = [run.row.get(name) for run in self.runs if run.row["status"] == DONE]
        known = [float(one) for one in found if isinstance(one, (int, float))]
        return statistics.median(known) if known else None


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorStanding:
    """How the values of one setting compare, over all blocks that differ in nothing else."""

    factor: str
    standings: tuple[Standing, ...]
    is_over_seeds: bool  # else over the other settings, at one seed
    num_lower: Mapping[str, tuple[int, int]]  # of each value: blocks in which the best was lower


@dataclass(frozen=True, slots=True, kw_only=True)
class Standings:
    """Everything that is known about which settings are better."""

    measure: str  # of `results.MEASURES`
    factors: tuple[str, ...]
    settings: tuple[Setting, ...]  # with finished runs from best to worst, others last
    by_factor: tuple[FactorStanding, ...]
    num_seeds: int  # of the least repeated setting that is finished
    is_comparable: bool  # all finished runs with all others
    deviation: float | None  # that the seed alone makes
    num_validated: int  # finished runs with a validation loss, where not all have one

    @property
    def finished(self) -> tuple[Setting, ...]:
        """The settings that have results."""
        return tuple(one for one in self.settings if one.outcomes)

    @property
    def is_ranked(self) -> bool:
        """Whether anything supports an order: two seeds or more, and losses that compare."""
        return self.is_comparable and self.num_seeds > 1 and len(self.finished) > 1

    @property
    def best(self) -> tuple[Setting, ...]:
        """The settings that nothing shows to be worse than the best; all where none is ranked."""
        if not self.is_ranked:
            return self.finished
        known = [one for one in self.finished if one.standing and not one.standing.is_worse]
        # A value that is worse over all other settings together is worse in each, if a single
        # setting is too noisy to show it; but never against what was measured as the lowest.
        return tuple(one for one in known if one is known[0] or not self._has_worse_value(one))

    def _has_worse_value(self, setting: Setting) -> bool:
        return any(
            one.is_worse and one.name == value
            for factor, value in zip(self.by_factor, setting.values, strict=True)
            for one in factor.standings
        )


def stand(trainings: SweepEvidence) -> Standings:
    """Return how the settings of a sweep's finished trainings stand."""
    frames = trainings.frames
    names = [run.run.name for run in trainings.runs]
    runs = frames.runs[frames.runs["run"].isin(names)]
    factors = tuple(analysis.varied(runs))
    measure, num_validated = _measure(runs)
    found = analysis.outcomes(runs, frames.validation)[measure]
    by_setting: dict[tuple[str, ...], list[RunEvidence]] = {}
    # In the order of the sweep, not of speed.
    for run in sorted(trainings.runs, key=lambda run: int(run.anchor.partition("-")[2])):
        key = tuple(analysis.shown(run.row.get(name)) for name in factors)
        by_setting.setdefault(key, []).append(run)
    of_setting: dict[tuple[str, ...], list[Outcome]] = {key: [] for key in by_setting}
    for outcome in found:
        of_setting.setdefault(outcome.settings, []).append(outcome)
    is_comparable = len({outcome.comparable for outcome in found}) <= 1
    # What breaks for one seed of three is no winner, however low the other two are.
    broken = {
        key for key, own in by_setting.items() if any(run.row["status"] in BROKEN for run in own)
    }
    values: Mapping[Hashable, Mapping[Hashable, float]] = {
        key: {one.seed: one.value for one in own}
        for key, own in of_setting.items()
        if own and (key not in broken or broken >= {*by_setting})
    }
    standings = {one.name: one for one in stats.standings(values)}
    settings = [
        Setting(
            label=label_of(factors, key),
            values=key,
            runs=tuple(own),
            outcomes=tuple(of_setting[key]),
            standing=standings.get(key),
        )
        for key, own in by_setting.items()
    ]
    num_seeds = min((one.seeds for one in settings if one.outcomes), default=0)
    if is_comparable and num_seeds > 1:
        order = {name: place for place, name in enumerate(standings)}
        settings.sort(key=lambda one: order.get(one.values, len(order)))
    noise = stats.pooled_deviation([[one.value for one in own] for own in of_setting.values()])
    return Standings(
        measure=measure,
        factors=factors,
        settings=tuple(settings),
        by_factor=tuple(_by_factor(name, index, found) for index, name in enumerate(factors)),
        num_seeds=num_seeds,
        is_comparable=is_comparable,
        deviation=noise[0] if noise else None,
        num_validated=num_validated,
    )


def label_of(factors: Sequence[str], values: Sequence[str]) -> str:
    """Return a short name of a setting: its recipe, and what else is varied with its name."""
    words = [
        value if name in analysis.GROUPS else f"{name}={analysis.short(name, value)}"
        for name, value in zip(factors, values, strict=True)
        if value != "null"
    ]
    return " ".join(words) or "the one setting"


def _measure(runs: pd.DataFrame) -> tuple[str, int]:
    """Return the best measure that all finished runs have, and how many have a validation loss."""
    done = runs[runs["status"] == DONE]
    counts = {name: int(done[name].notna().sum()) for name in MEASURES if name in done}
    validated = max((count for name, count in counts.items() if name != "final_loss"), default=0)
    for name, count in counts.items():
        if len(done) and count == len(done):
            return name, validated
    return "final_loss", validated


def _by_factor(factor: str, index: int, found: Sequence[Outcome]) -> FactorStanding:
    values: dict[Hashable, dict[Hashable, float]] = {}
    clusters: dict[Hashable, Hashable] = {}
    seeds = {outcome.seed for outcome in found}
    for one in found:
        rest = one.settings[:index] + one.settings[index + 1 :]
        block = (rest, one.seed, one.comparable)
        values.setdefault(one.settings[index], {})[block] = one.value
        clusters[block] = one.seed if len(seeds) > 1 else block
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
