"""What a race says: how every arm was tuned, what each look saw, and who leads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from optbench.analysis.race.design import Point, RaceDesign, Step
from optbench.analysis.rates import Position, Tuning
from optbench.analysis.stats import Interval, TwoWay

Finalist = tuple[str, Point]  # an arm at one of its points
Fate = Literal[
    "pending",  # not yet at its next rung
    "stopped",  # others of its arm were better at the same epoch
    "broken",  # stopped for its images, or for what it forgets
    "failed",  # diverged, out of memory, or stopped with an error
    "finished",  # reached the last rung
    "finalist",  # ... and is trained with fresh seeds
]
Standing = Literal[
    "lead",
    "tied",  # not shown to be worse than the lead
    "worse",
    "broken",  # its images are, for at least one seed, or at every rate
    "failed",
    "untested",  # tuned, and not yet run with the fresh seeds
    "untuned",  # not yet at the end of its ladder
]
Ending = Literal[
    "running",
    "one_left",  # one arm leads
    "tied",  # as many seeds as were planned do not tell the rest apart
    "budget",  # the next step would have cost more than is left
    "none_left",  # no arm has a rate that could be recommended
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One point of an arm's ladder, with the tuning seed."""

    point: Point
    batch: int  # 0: the first bracket; from 1: widenings
    scores: Mapping[int, float]  # G - F/4 by epoch, of the rungs reached; -inf where it failed
    fate: Fate
    stopped_at: int | None  # the epoch; None while it is pending and for whole runs
    reason: str  # in words; empty for what was never stopped


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmTuning:
    """Phase 1 of one arm."""

    arm: str
    tried: tuple[Tried, ...]  # in the order they were begun
    best: Point | None  # None: not yet known, or no rate is usable
    position: Position | None  # of the best rate among those tried; None: one rate
    finalists: tuple[Point, ...]  # the best, and what ties with it
    is_complete: bool
    epochs: float  # that its runs of the tuning seed have trained

    @property
    def num_rates(self) -> int:
        """How many rates were tried."""
        return len({tried.point.rate for tried in self.tried})

    @property
    def num_widenings(self) -> int:
        """How often its bracket was widened, or refined because another one's was."""
        return max((tried.batch for tried in self.tried), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A finalist that a look sent home."""

    finalist: Finalist
    why: Literal["worse", "broken", "failed"]
    lead: Finalist | None  # of that look
    against_lead: Interval | None  # of -score: above 0 is worse than the lead


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What was known after so many fresh seeds; intervals are of -score, lower is better."""

    number: int  # from 1
    seeds: tuple[int, ...]
    confidence: float  # of all intervals of this look together
    model: TwoWay  # names are finalists
    lead: Finalist | None
    dropped: tuple[Dropped, ...]
    left: tuple[Finalist, ...]  # go on


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmVerdict:
    """Where an arm stands against the one that leads."""

    arm: str
    standing: Standing
    point: Point | None  # its best by the fresh seeds; by the tuning seed before there are any
    against_lead: Interval | None  # of -score: above 0 is worse than the lead
    num_seeds: int  # fresh ones that it ran with
    epochs: float  # that its runs of the fresh seeds have trained
    dropped_at: int | None  # the look
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RaceVerdict:
    """All that a race says."""

    tunings: Mapping[str, ArmTuning]
    looks: tuple[Look, ...]
    arms: tuple[ArmVerdict, ...]  # best first
    ending: Ending
    steps: tuple[Step, ...]  # due now
    spent: float  # in the budget's unit
    epochs_tuning: float
    epochs_confirming: float

    @property
    def is_over(self) -> bool:
        """Whether nothing more is due."""
        return self.ending != "running"

    @property
    def lead(self) -> ArmVerdict | None:
        """The arm that leads, alone or among ties."""
        return next((arm for arm in self.arms if arm.standing == "lead"), None)

    @property
    def tied(self) -> Sequence[ArmVerdict]:
        """The arms that are not shown to be worse than the one that leads."""
        return [arm for arm in self.arms if arm.standing == "tied"]


def tuning_of(design: RaceDesign, tuning: ArmTuning) -> Tuning:
    """Return how far a race tuned the rate of an arm, in the words of a ladder of whole runs."""
    return Tuning(
        num_rates=max(1, tuning.num_rates),
        spacing=(design.ratio, design.ratio) if tuning.num_rates > 1 else None,
        position=tuning.position,
        is_best=True,
        is_automatic=tuning.arm in design.rateless,
    )
