"""A race: which optimizer at its own best rate, on a budget, confirmed with fresh seeds.

Phase 1 tunes every arm (what is answered about: an optimizer, or any combination) by successive
halving over its own rates, with one tuning seed; arms never race one another there. Phase 2 trains
the best rate of every arm with fresh seeds and drops the losers, by the model of
`optbench.analysis.stats.fit_two_way`. Everything here is a function of what is on disk: a race that
was killed goes on with the same decisions.

    steps = next_steps(design, results)  # what is due now; empty: the race is over
    verdict = verdicts(design, results)  # who was stopped where and why, and who leads
"""

from optbench.analysis.race.budget import (
    More,
    PlanRow,
    RacePlan,
    fit_budget,
    plan_race,
    smallest_difference,
    what_more_buys,
)
from optbench.analysis.race.curves import ExpectedBest, best_of, expected_best, optimism
from optbench.analysis.race.decisions import next_steps, verdicts
from optbench.analysis.race.design import (
    Axis,
    Point,
    RaceDesign,
    Result,
    Step,
    rate_ladder,
    rung_epochs,
)
from optbench.analysis.race.record import RaceRecord, RunPlace, read_race, write_race
from optbench.analysis.race.results import read_results
from optbench.analysis.race.verdict import (
    ArmTuning,
    ArmVerdict,
    Fate,
    Look,
    RaceVerdict,
    Tried,
    tuning_of,
)

__all__ = [
    "ArmTuning",
    "ArmVerdict",
    "Axis",
    "ExpectedBest",
    "Fate",
    "Look",
    "More",
    "PlanRow",
    "Point",
    "RaceDesign",
    "RacePlan",
    "RaceRecord",
    "RaceVerdict",
    "Result",
    "RunPlace",
    "Step",
    "Tried",
    "best_of",
    "expected_best",
    "fit_budget",
    "next_steps",
    "optimism",
    "plan_race",
    "rate_ladder",
    "read_race",
    "read_results",
    "rung_epochs",
    "smallest_difference",
    "tuning_of",
    "verdicts",
    "what_more_buys",
    "write_race",
]
