"""What is due in a race, and what it says: functions of its design and of what is on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from optbench.analysis.race.confirmation import Confirmation, confirm
from optbench.analysis.race.design import Point, RaceDesign, Result, Step
from optbench.analysis.race.ladder import Climb, climb, failure_words, is_at_an_end, next_batch
from optbench.analysis.race.verdict import (
    ArmTuning,
    ArmVerdict,
    Dropped,
    Ending,
    Finalist,
    RaceVerdict,
    Standing,
)


def next_steps(design: RaceDesign, results: Sequence[Result]) -> tuple[Step, ...]:
    """Return the steps that are due now, in any order; none: the race is over.

    All steps of one answer may run side by side. Ask again when they have ended, well or not: a
    failure is a result, too.
    """
    return verdicts(design, results).steps


def verdicts(design: RaceDesign, results: Sequence[Result]) -> RaceVerdict:
    """Return what a race says so far."""
    tuning_runs, fresh_runs = _sorted(design, results)
    climbs, left = _tune(design, tuning_runs)
    tunings = {arm: climbed.tuning for arm, climbed in climbs.items()}
    steps = [step for climbed in climbs.values() for step in climbed.steps]
    ending: Ending
    if steps:
        cost = sum(_step_cost(design, step, tuning_runs) for step in steps)
        is_affordable = cost <= left
        confirmation = Confirmation((), (), "running" if is_affordable else "budget")
        steps = steps if is_affordable else []
    else:
        finalists = [(arm, p) for arm, tuning in tunings.items() for p in tuning.finalists]
        confirmation = confirm(design, finalists, fresh_runs, left)
        if confirmation.ending == "budget" and not confirmation.looks:
            # What ties inside an arm is the first thing to save on.
            finalists = [(arm, t.best) for arm, t in tunings.items() if t.best is not None]
            confirmation = confirm(design, finalists, fresh_runs, left)
        steps = list(confirmation.steps)
    ending = confirmation.ending
    epochs_confirming = {
        arm: sum(
            r.epoch
            for (of_arm, _), by_seed in fresh_runs.items()
            if of_arm == arm
            for r in by_seed.values()
        )
        for arm in design.arms
    }
    num_finished = {
        arm: sum(len(by_seed) for (of_arm, _), by_seed in fresh_runs.items() if of_arm == arm)
        for arm in design.arms
    }
    spent = sum(
        design.cost(arm, tunings[arm].epochs + epochs_confirming[arm])
        + design.finish_cost * num_finished[arm]
        for arm in design.arms
    )
    return RaceVerdict(
        tunings=tunings,
        looks=confirmation.looks,
        arms=_arm_verdicts(tunings, confirmation, fresh_runs, epochs_confirming),
        ending=ending,
        steps=tuple(steps),
        spent=spent,
        epochs_tuning=sum(tuning.epochs for tuning in tunings.values()),
        epochs_confirming=float(sum(epochs_confirming.values())),
    )


_TuningRuns = Mapping[str, Mapping[Point, Mapping[int, Result]]]
_FreshRuns = Mapping[Finalist, Mapping[int, Result]]


def _sorted(design: RaceDesign, results: Sequence[Result]) -> tuple[_TuningRuns, _FreshRuns]:
    """Return results by what they count for; the tuning seed's are no evidence, and stay apart."""
    tuning: dict[str, dict[Point, dict[int, Result]]] = {arm: {} for arm in design.arms}
    fresh: dict[Finalist, dict[int, Result]] = {}
    for result in results:
        if result.arm not in tuning:
            continue
        if result.seed == design.tuning_seed:
            tuning[result.arm].setdefault(result.point, {})[result.epoch] = result
        elif result.seed in design.fresh_seeds and (
            result.epoch == design.length or result.failure
        ):
            fresh.setdefault((result.arm, result.point), {})[result.seed] = result
    return tuning, fresh


def _tune(design: RaceDesign, runs: _TuningRuns) -> tuple[dict[str, Climb], float]:
    """Return every arm's ladder, and what of the budget is left after what they have trained."""
    batches: dict[str, list[Sequence[Point]]] = {
        arm: [design.points_of(arm)] for arm in design.arms
    }
    while True:
        climbs = {arm: climb(design, arm, batches[arm], runs[arm]) for arm in design.arms}
        spent = sum(design.cost(arm, climbed.tuning.epochs) for arm, climbed in climbs.items())
        left = math.inf if design.budget is None else design.budget - spent
        tunings = [climbed.tuning for climbed in climbs.values()]
        num_widened = max(len(of_arm) for of_arm in batches.values()) - 1
        if any(climbed.steps for climbed in climbs.values()):
            return climbs, left
        if num_widened >= design.most_widenings or not any(map(is_at_an_end, tunings)):
            return climbs, left
        more = {tuning.arm: next_batch(design, tuning) for tuning in tunings}
        # Of all new runs as if none were stopped, and of the first look.
        cost = sum(design.cost(arm, design.length * len(points)) for arm, points in more.items())
        first_look = sum(
            design.confirm[0] * design.cost(t.arm, design.length, finishes=True)
            for t in tunings
            if t.best is not None
        )
        is_begun = any(point in runs[arm] for arm, points in more.items() for point in points)
        if not any(more.values()) or (cost + first_look > left and not is_begun):
            return climbs, left
        for arm, points in more.items():
            batches[arm].append(points)


def _step_cost(design: RaceDesign, step: Step, runs: _TuningRuns) -> float:
    reached = max(runs[step.arm].get(step.point, {}), default=0)
    return design.cost(step.arm, step.until_epoch - reached)


def _arm_verdicts(
    tunings: Mapping[str, ArmTuning],
    confirmation: Confirmation,
    fresh_runs: _FreshRuns,
    epochs: Mapping[str, float],
) -> tuple[ArmVerdict, ...]:
    looks = confirmation.looks
    last = looks[-1] if looks else None
    dropped: dict[str, tuple[int, Dropped]] = {}
    for look in looks:
        for drop in look.dropped:
            arm = drop.finalist[0]
            if all(of_arm != arm for of_arm, _ in look.left):
                dropped.setdefault(arm, (look.number, drop))
    lead = last.lead if last else None
    verdicts = []
    for arm, tuning in tunings.items():
        finalists = [name for name in last.model.names if name[0] == arm] if last else []  # type: ignore[index]
        point, against, standing, reason = tuning.best, None, _early(tuning), ""
        if last is not None and finalists:
            usable = [f for f in finalists if f in last.left] or finalists
            best = min(usable, key=lambda name: float(last.model.means[last.model.place(name)]))
            point = best[1]  # type: ignore[index]
            if lead is not None and lead[0] != arm:
                leading = [f for f in last.left if f[0] == lead[0]] or [lead]
                against = last.model.difference_of_bests(leading, usable)
            standing = "lead" if lead is not None and lead[0] == arm else "tied"
        look_number = None
        if arm in dropped:
            look_number, drop = dropped[arm]
            standing = drop.why
            if against is None or against.low is None or against.low <= 0:
                against = drop.against_lead
            against = against if standing == "worse" else None
            reason = _why(drop, looks[look_number - 1].seeds, fresh_runs[drop.finalist])
        num_seeds = max(
            (len(by_seed) for (of_arm, _), by_seed in fresh_runs.items() if of_arm == arm),
            default=0,
        )
        verdicts.append(
            ArmVerdict(
                arm=arm,
                standing=standing,
                point=point,
                against_lead=against,
                num_seeds=num_seeds,
                epochs=float(epochs[arm]),
                dropped_at=look_number,
                reason=reason,
            )
        )
    order: dict[Standing, int] = {"lead": 0, "tied": 1, "worse": 2}

    def place(verdict: ArmVerdict) -> tuple[int, float, str]:
        mean = verdict.against_lead.mean if verdict.against_lead else 0.0
        return order.get(verdict.standing, 3), mean, verdict.arm

    return tuple(sorted(verdicts, key=place))


def _early(tuning: ArmTuning) -> Standing:
    """Return where an arm stands that no look has seen."""
    if not tuning.is_complete:
        return "untuned"
    if tuning.best is not None:
        return "untested"
    return "failed" if all(tried.fate == "failed" for tried in tuning.tried) else "broken"


def _why(drop: Dropped, seeds: Sequence[int], by_seed: Mapping[int, Result]) -> str:
    """Return in words why a look sent an arm home."""
    if drop.why == "worse":
        return f"worse with {len(seeds)} fresh seeds"
    if drop.why == "failed":
        failed = [(seed, by_seed[seed]) for seed in seeds if seed in by_seed]
        failed = [(seed, result) for seed, result in failed if not math.isfinite(result.score)]
        return "; ".join(f"{failure_words(result)} with seed {seed}" for seed, result in failed)
    flawed = [seed for seed in seeds if seed in by_seed and by_seed[seed].is_broken]
    reasons = [by_seed[seed].flaw or "forgets other subjects" for seed in flawed]
    return "; ".join(f"{why} with seed {seed}" for why, seed in zip(reasons, flawed, strict=True))
