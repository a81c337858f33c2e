"""What a race costs before it is run, what fits a budget, and what more of it would buy."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from optbench.analysis.race.design import RaceDesign, rate_ladder
from optbench.analysis.race.verdict import RaceVerdict
from optbench.analysis.stats import POWER, range_quantile, student_quantile

# What the rule of near scores and ties adds to the epochs of plain halving, in simulations and on
# the embedded base (docs/evidence.md).
_NEAR_AND_TIES = 1.35
_WIDEST_RATIO = 2.25  # between neighbouring rates: a usable range is half a decade wide
_FEWEST_RATES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """One stage of a race, for all arms together."""

    stage: str
    num_runs: int  # that are begun or continued in it
    until_epoch: int
    num_epochs: int
    cost: float  # in the budget's unit
    is_certain: bool  # not only where something asks for it
    # Between two arms, in deviations of a run, that most races would see after it; None: no look.
    smallest_difference: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RacePlan:
    """A race before it is run: its stages, and what it costs."""

    design: RaceDesign
    rows: tuple[PlanRow, ...]
    first_look: float  # expected cost until the first look at fresh seeds
    whole: float  # expected cost where all arms tie to the last seed
    plain: float  # what whole runs of every point and of every fresh seed would cost

    @property
    def fits(self) -> bool:
        """Whether the first look is within the budget."""
        return self.design.budget is None or self.first_look <= self.design.budget

    @property
    def num_runs(self) -> int:
        """The most runs, without widening: every point, and every fresh seed of every arm."""
        points = sum(len(self.design.points_of(arm)) for arm in self.design.arms)
        return points + len(self.design.arms) * self.design.confirm[1]


def plan_race(design: RaceDesign) -> RacePlan:
    """Return the stages of a race as they are expected: halving, then fresh seeds.

    Epochs of halving are those of exact thirds; near scores and ties add to them
    (`RacePlan.first_look` and `whole` have that in them).
    """
    rows: list[PlanRow] = []
    numbers = {arm: len(design.points_of(arm)) for arm in design.arms}
    left = dict(numbers)
    before = 0
    for rung in design.rungs:
        epochs = {arm: (rung - before) * num for arm, num in left.items()}
        rows.append(
            PlanRow(
                stage="tune" if not before else f"the best after epoch {before}",
                num_runs=sum(left.values()),
                until_epoch=rung,
                num_epochs=sum(epochs.values()),
                cost=sum(design.cost(arm, num) for arm, num in epochs.items()),
                is_certain=True,
            )
        )
        left = {arm: math.ceil(num / design.eta) for arm, num in left.items()}
        before = rung
    tuning = _NEAR_AND_TIES * sum(row.cost for row in rows)
    movable = [arm for arm in design.arms if len({p.rate for p in design.points_of(arm)}) > 1]
    if design.most_widenings and movable:
        num_runs = design.widen_by * len(movable)
        rows.append(
            PlanRow(
                stage="a best rate at an end: rates more for all",
                num_runs=num_runs,
                until_epoch=design.length,
                num_epochs=num_runs * design.length,
                cost=sum(design.cost(arm, design.widen_by * design.length) for arm in movable),
                is_certain=False,
            )
        )
    of_seed = sum(design.cost(arm, design.length, finishes=True) for arm in design.arms)
    least, most = design.confirm
    for num_seeds in range(least, most + 1):
        new = least if num_seeds == least else 1
        rows.append(
            PlanRow(
                stage=f"confirm with {num_seeds} fresh seeds",
                num_runs=new * len(design.arms),
                until_epoch=design.length,
                num_epochs=new * len(design.arms) * design.length,
                cost=new * of_seed,
                is_certain=num_seeds == least,
                smallest_difference=smallest_difference(
                    len(design.arms), num_seeds, design.look_confidence
                ),
            )
        )
    every_point = sum(design.cost(arm, design.length * num) for arm, num in numbers.items())
    return RacePlan(
        design=design,
        rows=tuple(rows),
        first_look=tuning + least * of_seed,
        whole=tuning + most * of_seed,
        plain=every_point + most * of_seed,
    )


def fit_budget(design: RaceDesign) -> RaceDesign:
    """Return the race that reaches its first look within the budget, with as many rates as fit.

    Seeds are not cut: a race ends where the next look would cost too much. Fewer rates keep the
    range they can: neighbours stay within a factor of 2.25. The least race is returned where none
    fits: `plan_race(...).fits` says so.
    """
    if design.budget is None or plan_race(design).fits:
        return design
    low, high = design.rates[0], design.rates[-1]
    middle = math.sqrt(low * high)
    smaller = design
    for num in range(len(design.rates) - 1, _FEWEST_RATES - 1, -1):
        if num % 2 == 0:
            continue  # the middle, each recipe's own rate, is always among them
        reach = min(high / middle, _WIDEST_RATIO ** ((num - 1) / 2))
        rates = rate_ladder(middle / reach, middle * reach, num)
        smaller = dataclasses.replace(design, rates=rates)
        if plan_race(smaller).fits:
            break
    return smaller


def smallest_difference(
    num_arms: int, num_seeds: int, confidence: float, power: float = POWER
) -> float | None:
    """Return the difference that is seen with this probability, in deviations of a run.

    It is that of images in hand; for others like them, images add their part (docs/evidence.md).
    None where nothing would be known of luck.
    """
    degrees = (num_arms - 1) * (num_seeds - 1)
    if degrees < 1:
        return None
    critical = range_quantile(confidence, num_arms, float(degrees)) / math.sqrt(2)
    return (critical + student_quantile(power, float(degrees))) * math.sqrt(2 / num_seeds)


@dataclass(frozen=True, slots=True, kw_only=True)
class More:
    """What more of a budget would buy a race that has ended."""

    amount: float  # in the budget's unit
    num_seeds: int  # more, of every arm that is left; 0: it reaches no look
    next_look: float  # cost of the next look
    smallest_now: float | None  # difference of scores that most races like this one would show
    smallest_then: float | None
    arms: tuple[str, ...]  # that are left


def what_more_buys(design: RaceDesign, verdict: RaceVerdict, amount: float) -> More:
    """Return what so much more would buy; before the first look, whether that is reached."""
    last = verdict.looks[-1] if verdict.looks else None
    if last is None:
        finalists = [(arm, tuning.best) for arm, tuning in verdict.tunings.items() if tuning.best]
        cost = sum(design.cost(arm, design.length, finishes=True) for arm, _ in finalists)
        needed = cost * design.confirm[0]
        if not all(tuning.is_complete for tuning in verdict.tunings.values()):
            needed = max(0.0, plan_race(design).first_look - verdict.spent)
        missing = max(0.0, needed - ((design.budget or 0.0) - verdict.spent))
        return More(
            amount=amount,
            num_seeds=design.confirm[0] if missing <= amount else 0,
            next_look=missing,
            smallest_now=None,
            smallest_then=None,
            arms=tuple(design.arms),
        )
    of_seed = sum(design.cost(arm, design.length, finishes=True) for arm, _ in last.left)
    slack = 0.0 if design.budget is None else max(0.0, design.budget - verdict.spent)
    num_seeds = int((amount + slack) / of_seed + 1e-9) if of_seed else 0
    in_hand = len(last.seeds)
    return More(
        amount=amount,
        num_seeds=num_seeds,
        next_look=max(0.0, of_seed - slack),
        smallest_now=last.model.detectable(confidence=last.confidence),
        smallest_then=last.model.detectable(in_hand + num_seeds, confidence=last.confidence)
        if num_seeds
        else None,
        arms=tuple(dict.fromkeys(arm for arm, _ in last.left)),
    )
