"""What a race is made of: arms, points, rungs, seeds and budget; results and steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from optbench.analysis.outcomes import FORGETTING_PER_GAIN, FORGETTING_WEIGHT
from optbench.analysis.stats import Images

_SIGNIFICANT_DIGITS = 3  # of rates, as people type them

Phase = Literal["tune", "confirm"]
Failure = Literal["diverged", "out_of_memory", "failed"]
Unit = Literal["epochs", "hours"]


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """Where an arm may be trained: a multiple of its own rate, and values of the nuisance axes."""

    rate: float
    values: tuple[str, ...] = ()  # in the order of `RaceDesign.nuisance`


@dataclass(frozen=True, slots=True)
class Axis:
    """A nuisance axis beside the rate: tuned away, never answered about."""

    name: str  # an override's, as `network.dim`
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RaceDesign:
    """Everything that a race's decisions depend on beside its results."""

    arms: tuple[str, ...]  # names, unique
    rates: tuple[float, ...]  # multiples of each arm's own rate, rising by one factor
    rungs: tuple[int, ...] = (1, 2, 6)  # epochs, rising; the last is the run's length
    nuisance: tuple[Axis, ...] = ()  # without the rate
    rateless: tuple[str, ...] = ()  # arms that find their own rate and take no multiple
    eta: int = 3  # one in `eta` goes on from each rung
    near: float = 0.1  # of the leader's score: so near, nothing stops on the first rung
    near_later: float = 0.03  # the same on the rungs after it
    tie: float = 0.0025  # of the leader's score: so near, a rate counts as equally good
    most_finalists: int = 2  # of one arm, ties included
    widen_by: int = 2  # rates that every arm gets more where any arm's best is at an end
    most_widenings: int = 2
    confirm: tuple[int, int] = (2, 6)  # fresh seeds before the first look and at most
    alpha: float = 0.05  # of all looks together
    tuning_seed: int = 0
    fresh_seeds: tuple[int, ...] = (1, 2, 3, 4, 5, 6)  # the tuning seed never among them
    # Whether a rung's result is the run as it is there, or a branch that ends its schedule there.
    rung_schedule: Literal["run", "own"] = "run"
    budget: float | None = None  # in `unit`; None: without an end
    unit: Unit = "epochs"
    # Of one epoch, by arm, in `unit`; where none is given an epoch costs 1.
    epoch_cost: Mapping[str, float] = field(default_factory=dict)
    finish_cost: float = 0.0  # of a run of phase 2 beside its epochs: its images

    def __post_init__(self) -> None:
        """Refuse what cannot be raced.

        Raises:
            ValueError: If arms, rates, rungs or seeds contradict themselves.
        """
        if not self.arms or len({*self.arms}) < len(self.arms):
            raise ValueError("a race needs arms with names of their own")
        if not self.rates or any(not rate > 0 for rate in self.rates) or not _rises(self.rates):
            raise ValueError("rates are positive and rise")
        if not self.rungs or self.rungs[0] < 1 or not _rises(self.rungs):
            raise ValueError("rungs are epochs and rise")
        least, most = self.confirm
        if not 1 <= least <= most or most > len({*self.fresh_seeds}):
            raise ValueError("confirm is a least and a most number of the fresh seeds")
        if self.tuning_seed in self.fresh_seeds:
            raise ValueError("the tuning seed is no evidence, so it is no fresh seed")
        if self.eta < 2:
            raise ValueError("eta is 2 or more")

    @property
    def length(self) -> int:
        """The epochs of a whole run."""
        return self.rungs[-1]

    @property
    def num_looks(self) -> int:
        """How often the race may look at its fresh seeds: after the least number, then each."""
        return self.confirm[1] - self.confirm[0] + 1

    @property
    def look_confidence(self) -> float:
        """Of all intervals of one look together, so that all looks together have 1 - alpha."""
        return 1 - self.alpha / self.num_looks

    @property
    def ratio(self) -> float:
        """The factor between neighbouring rates; 1 for one rate."""
        steps = len(self.rates) - 1
        return (self.rates[-1] / self.rates[0]) ** (1 / steps) if steps else 1.0

    def points_of(self, arm: str) -> tuple[Point, ...]:
        """Return the points that an arm begins with."""
        rates = (1.0,) if arm in self.rateless else self.rates
        combinations = itertools.product(*(axis.values for axis in self.nuisance))
        return tuple(Point(rate, values) for values in combinations for rate in rates)

    def label(self, point: Point) -> str:
        """Return a point as it is said after the arm's name: `x1.5`, and its nuisance values."""
        words = [
            f"{axis.name}={value}" for axis, value in zip(self.nuisance, point.values, strict=True)
        ]
        return " ".join((f"x{point.rate:g}", *words))

    def cost(self, arm: str, num_epochs: float, *, finishes: bool = False) -> float:
        """Return what epochs of an arm cost in the budget's unit, and a finalist's end."""
        return self.epoch_cost.get(arm, 1.0) * num_epochs + self.finish_cost * finishes


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one run had reached after one epoch that is a rung, or how it ended before.

    A run has one result for each rung that it reached. `epoch` of a failure is the one it ended in.
    """

    arm: str
    point: Point
    seed: int
    epoch: int
    gain: float | None = None  # loss on held-out images below the base's own; higher is better
    forgetting: float | None = None  # loss on other subjects above the base's own
    # Parts of -score by kind of images and image, as of `optbench.analysis.Outcome.images`.
    images: Images = field(default_factory=dict)
    failure: Failure | None = None
    flaw: str = ""  # why its images are broken, where anything but forgetting says so

    @property
    def score(self) -> float:
        """G - F/4, higher is better; minus infinity where the run failed or has no numbers."""
        if self.failure or self.gain is None or not math.isfinite(self.gain):
            return -math.inf
        forgetting = self.forgetting or 0.0
        return (
            self.gain - FORGETTING_WEIGHT * forgetting if math.isfinite(forgetting) else -math.inf
        )

    @property
    def is_broken(self) -> bool:
        """Whether it adds more loss on other subjects than its gain is worth, or has a flaw."""
        forgets = self.forgetting is not None and self.gain is not None
        limit = FORGETTING_PER_GAIN * max(0.0, self.gain or 0.0)
        return bool(self.flaw) or (forgets and (self.forgetting or 0.0) > limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Train one run on until an epoch: a new run, or the same one continued."""

    arm: str
    point: Point
    seed: int
    until_epoch: int
    phase: Phase
    reason: str  # in words, as `sweep.log` and the page say it

    @property
    def is_final(self) -> bool:
        """Whether the run is a finalist's, whose images are rendered."""
        return self.phase == "confirm"


def rate_ladder(low: float, high: float, num: int) -> tuple[float, ...]:
    """Return rates that rise by one factor from `low` to `high`, to three digits."""
    if num == 1:
        return (_rounded(math.sqrt(low * high)),)
    return tuple(_rounded(low * (high / low) ** (k / (num - 1))) for k in range(num))


def rung_epochs(length: int, shares: Sequence[float] = (1 / 6, 1 / 3, 1.0)) -> tuple[int, ...]:
    """Return the epochs of the rungs of runs of this length; short runs have fewer."""
    return tuple(sorted({max(1, round(share * length)) for share in shares} | {length}))


def wider(rates: Sequence[float], ratio: float, num: int, *, upwards: bool) -> tuple[float, ...]:
    """Return so many rates beyond one end of a bracket."""
    end = max(rates) if upwards else min(rates)
    factor = ratio if upwards else 1 / ratio
    return tuple(_rounded(end * factor**k) for k in range(1, num + 1))


def between(rates: Sequence[float], best: float, ratio: float, num: int) -> tuple[float, ...]:
    """Return so many new rates around the best one, half-way to its neighbours, then nearer."""
    chosen: list[float] = []
    for halving in itertools.count(1):
        for sign in (1, -1):
            rate = _rounded(best * ratio ** (sign / 2**halving))
            if len(chosen) < num and rate not in {*rates, *chosen}:
                chosen.append(rate)
        if len(chosen) == num or halving > 8:
            return tuple(chosen)
    raise AssertionError


def _rounded(rate: float) -> float:
    return float(f"{rate:.{_SIGNIFICANT_DIGITS}g}")


def _rises(values: Sequence[float]) -> bool:
    return all(before < after for before, after in itertools.pairwise(values))
