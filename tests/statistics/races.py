"""Simulated races: fabricated curves of gain over epochs by rate, through the real decisions.

Ends of the curves by rate are those of AdamW and Lion on the embedded base
(docs/embedded-base.md), moved so that the best rate lies anywhere in the bracket, and not at one of
the rates that are tried.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from optbench.analysis.race import (
    Point,
    RaceDesign,
    RaceVerdict,
    Result,
    Step,
    rate_ladder,
    verdicts,
)

SIGMA = 1e-4  # of one run, as measured on held-out images of the embedded base
GAIN = 0.0326  # of AdamW at its best rate
DESIGN = RaceDesign(arms=("o0",), rates=rate_ladder(0.2, 5, 9))
# How soon a gain comes: so that of the rates that were measured here (0.3, 1, 1.7 and 3 times the
# own) the order at a third of the run is that of its end, and three times Lion's rate leads first.
_PACE = 12.0
# Gain at the end, by multiple of the best rate, as a share of the gain there.
_ENDS = {
    "adamw": {0.1: 0.83, 0.3: 0.95, 1: 1.0, 1.7: 0.98, 3: 0.4, 10: -8.0, 30: -26.0},
    "lion": {0.06: 0.6, 0.18: 0.877, 0.6: 0.984, 1: 1.0, 1.8: 0.937, 6: -4.0, 20: -20.0},
    "prodigy": {0.1: 0.16, 0.3: 0.94, 1: 1.0, 1.7: 0.97, 3: -0.5, 10: -26.0},
}
SHAPES = tuple(_ENDS)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """How one arm's gain grows, by rate; higher rates come sooner and break later."""

    shape: str
    best_rate: float  # where its gain at the end is highest
    top: float  # that gain

    def gain(self, rate: float, share: float) -> float:
        """Return the gain at a share of the run's length."""
        x = math.log(rate / self.best_rate)
        under, over = self._loss(x)
        progress = (1 - math.exp(-_PACE * share * math.exp(0.5 * x))) / (
            1 - math.exp(-_PACE * math.exp(0.5 * x))
        )
        return self.top * ((1 - under) * progress - over * math.sqrt(share))

    def end(self, rate: float) -> float:
        """Return the gain of a whole run."""
        return self.gain(rate, 1.0)

    def _loss(self, x: float) -> tuple[float, float]:
        """Return what is missing at the end for a rate too low, and for one too high."""
        spline = _SPLINES[self.shape]
        missing = 1 - float(spline(min(max(x, spline.x[0]), spline.x[-1])))
        return (missing, 0.0) if x < 0 else (0.0, missing)


_SPLINES = {
    shape: PchipInterpolator([math.log(rate) for rate in ends], list(ends.values()))
    for shape, ends in _ENDS.items()
}


@dataclass
class FabricatedRace:
    """A race whose runs are looked up instead of trained."""

    design: RaceDesign
    curves: dict[str, Curve]
    drawn: np.random.Generator
    num_images: int = 0
    failing: float = 0.0  # share of runs that diverge, whatever their rate
    results: list[Result] = field(default_factory=list)
    _luck: dict[tuple[str, Point, int], float] = field(default_factory=dict)
    _images: dict[tuple[str, float], NDArray[np.float64]] = field(default_factory=dict)

    def run(self, most_steps: int = 100) -> RaceVerdict:
        """Return what the race says at its end."""
        for _ in range(most_steps):
            verdict = verdicts(self.design, self.results)
            if verdict.is_over:
                return verdict
            self.results += [self.train(step) for step in verdict.steps]
        raise AssertionError("a race without an end")

    def run_batches(self, num: int) -> None:
        """Train so many batches of steps that are due at a time."""
        for _ in range(num):
            self.results += [self.train(step) for step in verdicts(self.design, self.results).steps]

    def train(self, step: Step) -> Result:
        """Return what a step leads to."""
        key = step.arm, step.point, step.seed
        place = {"arm": step.arm, "point": step.point, "seed": step.seed}
        curve, share = self.curves[step.arm], step.until_epoch / self.design.length
        if key not in self._luck:
            self._luck[key] = float(self.drawn.standard_normal())
            if self.failing and self.drawn.random() < self.failing:
                self._luck[key] = math.nan
        luck = SIGMA * self._luck[key]
        gain = curve.gain(step.point.rate, share)
        if math.isnan(luck) or gain < -10 * curve.top:
            return Result(**place, epoch=step.until_epoch, failure="diverged")  # type: ignore[arg-type]
        noise = 0.0 if share == 1 else SIGMA * float(self.drawn.standard_normal())
        over = max(0.0, curve.end(curve.best_rate) * share**0.5 - gain) / curve.top
        too_high = step.point.rate > curve.best_rate
        forgetting = max(0.0, gain) * (0.2 + (1.5 * over if too_high else 0.0))
        gain += luck + noise
        images = self._of_images(step, gain - forgetting / 4) if self.num_images else {}
        return Result(
            **place,  # type: ignore[arg-type]
            epoch=step.until_epoch,
            gain=gain,
            forgetting=forgetting,
            images={"held_out": images} if images else {},
        )

    def _of_images(self, step: Step, score: float) -> dict[str, float]:
        key = step.arm, step.point.rate
        if key not in self._images:
            parts = 2.1 * SIGMA * self.drawn.standard_normal(self.num_images)
            self._images[key] = parts
        return {f"image-{i}": -score + part for i, part in enumerate(self._images[key])}

    def true_score(self, arm: str, rate: float | None = None) -> float:
        """Return the score that an arm has without luck, at a rate or at its best."""
        curve = self.curves[arm]
        rates = [rate] if rate is not None else list(np.geomspace(0.02, 40, 400))
        quiet = FabricatedRace(
            design=self.design, curves=self.curves, drawn=np.random.default_rng(0)
        )

        def score(rate: float) -> float:
            point = Point(float(rate))
            step = Step(
                arm=arm,
                point=point,
                seed=99,
                until_epoch=self.design.length,
                phase="tune",
                reason="",
            )
            quiet._luck[arm, point, 99] = 0.0
            return quiet.train(step).score

        if rate is None:
            near = [curve.best_rate * factor for factor in (0.7, 0.8, 0.9, 0.95, 1.0, 1.05)]
            return max(map(score, [*rates, *near]))
        return score(rate)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What one race got right and wrong."""

    regrets: tuple[float, ...]  # of each arm's chosen rate, in scores
    tuning_epochs: tuple[float, ...]  # of each arm
    confirming_runs: int
    false_worse: bool  # an arm called worse whose finalist is truly no worse than the lead's
    unfair_worse: bool  # ... that is no worse than the lead at its true best rate
    right_winner: bool  # one arm is left, and it is truly the best
    lost_best: bool  # the truly best arm was dropped
    num_seeds: int
    is_widened: bool


def judge(race: FabricatedRace, verdict: RaceVerdict, slack: float = 0.0) -> Judged:
    """Return what a race got right; differences up to `slack` sigma are none."""
    best = {arm: race.true_score(arm) for arm in race.design.arms}
    chosen = {
        arm.arm: race.true_score(arm.arm, arm.point.rate) for arm in verdict.arms if arm.point
    }
    lead = verdict.lead
    worse = [arm.arm for arm in verdict.arms if arm.standing == "worse"]
    top = max(best.values())
    margin = slack * SIGMA + 1e-12
    return Judged(
        regrets=tuple(best[arm] - score for arm, score in chosen.items()),
        tuning_epochs=tuple(tuning.epochs for tuning in verdict.tunings.values()),
        confirming_runs=round(verdict.epochs_confirming / race.design.length),
        false_worse=bool(lead) and any(chosen[a] >= chosen[lead.arm] - margin for a in worse),  # type: ignore[union-attr]
        unfair_worse=bool(lead) and any(best[a] >= best[lead.arm] - margin for a in worse),  # type: ignore[union-attr]
        right_winner=verdict.ending == "one_left" and bool(lead) and best[lead.arm] >= top - margin,  # type: ignore[union-attr]
        lost_best=any(best[arm] >= top - margin for arm in worse),
        num_seeds=max(len(look.seeds) for look in verdict.looks) if verdict.looks else 0,
        is_widened=any(tuning.num_widenings for tuning in verdict.tunings.values()),
    )


def race_of(
    gaps: Sequence[float],
    drawn: np.random.Generator,
    design: RaceDesign,
    *,
    shapes: Sequence[str] = SHAPES,
    spread: float = math.log(3),
    num_images: int = 0,
    failing: float = 0.0,
    has_equal_curves: bool = False,
) -> FabricatedRace:
    """Return a race of arms that are behind the best by so many sigma, at their true best rates.

    Args:
        gaps: Of each arm, in sigma of a run.
        drawn: Where best rates lie, and luck.
        design: Arms are renamed after the gaps.
        shapes: Of the curves, in turn.
        spread: Of the best rate's logarithm about 0, either way.
        num_images: Of which each result has its parts; 0: none.
        failing: Share of runs that diverge.
        has_equal_curves: Whether all arms have one curve, with the best rate at their own, so that
            arms without a gap are equal at whatever rate is chosen.
    """
    arms = tuple(f"o{number}" for number in range(len(gaps)))
    curves = {
        arm: Curve(
            shape="adamw" if has_equal_curves else shapes[number % len(shapes)],
            best_rate=1.0 if has_equal_curves else math.exp(float(drawn.uniform(-spread, spread))),
            top=(GAIN - gap * SIGMA / 0.95),
        )
        for number, (arm, gap) in enumerate(zip(arms, gaps, strict=True))
    }
    return FabricatedRace(
        design=dataclasses.replace(design, arms=arms),
        curves=curves,
        drawn=drawn,
        num_images=num_images,
        failing=failing,
    )
