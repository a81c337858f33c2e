"""Phase 1: successive halving over the points of one arm (Jamieson and Talwalkar 2016, 1502.07943).

A rung is the same run stopped and later continued. All draws are shared, so that points are
compared exactly, and the ladder spends its epochs on the rates that may win.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optbench.analysis.race.design import (
    Point,
    RaceDesign,
    Result,
    Step,
    between,
    wider,
)
from optbench.analysis.race.verdict import ArmTuning, Fate, Tried
from optbench.analysis.rates import Position

ByEpoch = Mapping[int, Result]


@dataclass(frozen=True, slots=True)
class Climb:
    """Where the ladder of one arm stands."""

    tuning: ArmTuning
    steps: tuple[Step, ...]  # due now


def climb(
    design: RaceDesign,
    arm: str,
    batches: Sequence[Sequence[Point]],
    results: Mapping[Point, ByEpoch],
) -> Climb:
    """Return how far an arm's ladder is.

    Every batch of points climbs the rungs among all that were ever there. When no sound run has
    reached the last rung, the best of those that were stopped goes on after all.

    Args:
        design: The race's.
        arm: Its name.
        batches: Points in the order they join: the bracket, then what widened it.
        results: With the tuning seed.
    """
    ladder = _Ladder(design, arm, results)
    for number, batch in enumerate(batches):
        ladder.add(number, batch)
        if ladder.steps:
            break
    if not ladder.steps:
        ladder.revive()
    return ladder.climb()


def next_batch(design: RaceDesign, tuning: ArmTuning) -> tuple[Point, ...]:
    """Return the points that an arm gets when brackets are widened: beyond its end, else nearer.

    All arms get as many, so that none is tuned longer because its bracket was ill chosen.
    """
    at = tuning.best or _lowest_diverged(tuning)
    if at is None or tuning.position is None:
        return ()
    rates = [tried.point.rate for tried in tuning.tried if tried.point.values == at.values]
    if tuning.position == "inside":
        chosen = between(rates, at.rate, design.ratio, design.widen_by)
    else:
        is_up = tuning.position == "highest"
        chosen = wider(rates, design.ratio, design.widen_by, upwards=is_up)
    return tuple(Point(rate, at.values) for rate in chosen)


def is_at_an_end(tuning: ArmTuning) -> bool:
    """Return whether a better rate may lie beyond those tried."""
    return tuning.position in ("lowest", "highest")


class _Ladder:
    def __init__(self, design: RaceDesign, arm: str, results: Mapping[Point, ByEpoch]) -> None:
        self.design, self.arm = design, arm
        self.steps: list[Step] = []
        self._results = results
        self._batch_of: dict[Point, int] = {}
        self._fates: dict[Point, tuple[Fate, int | None, str]] = {}

    def add(self, number: int, batch: Sequence[Point]) -> None:
        """Let a batch climb until a result is missing or the last rung is reached."""
        alive = [point for point in batch if point not in self._batch_of]
        for point in alive:
            self._batch_of[point] = number
            self._fates[point] = ("pending", None, "")
        why = "widen the bracket" if number else "tune the rate"
        for index, rung in enumerate(self.design.rungs):
            self._train(alive, rung, why)
            if self.steps:
                return
            alive = self._survivors(alive, index)
            why = f"among the best at epoch {rung}"

    def revive(self) -> None:
        """Let the best stopped point go on where no sound one has reached the last rung."""
        length = self.design.length
        while not any(self._is_sound(point, length) for point in self._results):
            stopped = [
                (max(self._reached(point)), self._score(point, max(self._reached(point))), point)
                for point, (fate, _, _) in self._fates.items()
                if fate == "stopped" and self._is_sound(point, max(self._reached(point)))
            ]
            if not stopped:
                return
            _, _, point = max(stopped, key=lambda entry: (*entry[:2], -entry[2].rate))
            self._fates[point] = ("pending", None, "")
            self._train([point], length, "what was better is broken or failed at the end")
            if self.steps:
                return
            self._survivors([point], len(self.design.rungs) - 1)

    def climb(self) -> Climb:
        """Return where the ladder stands."""
        is_complete = not self.steps and bool(self._batch_of)
        finalists = self._finalists() if is_complete else ()
        for point in finalists:
            self._fates[point] = ("finalist", None, "")
        tried = tuple(
            Tried(
                point=point,
                batch=batch,
                scores={epoch: self._score(point, epoch) for epoch in self._reached(point)},
                fate=self._fates[point][0],
                stopped_at=self._fates[point][1],
                reason=self._fates[point][2],
            )
            for point, batch in self._batch_of.items()
        )
        best = finalists[0] if finalists else None
        tuning = ArmTuning(
            arm=self.arm,
            tried=tried,
            best=best,
            position=self._position(best) if is_complete else None,
            finalists=finalists,
            is_complete=is_complete,
            epochs=float(sum(max(self._reached(point), default=0) for point in self._batch_of)),
        )
        return Climb(tuning, tuple(self.steps))

    def _train(self, points: Sequence[Point], rung: int, why: str) -> None:
        for point in points:
            if rung not in self._results.get(point, {}) and not self._failure(point):
                self.steps.append(
                    Step(
                        arm=self.arm,
                        point=point,
                        seed=self.design.tuning_seed,
                        until_epoch=rung,
                        phase="tune",
                        reason=why,
                    )
                )

    def _survivors(self, entrants: Sequence[Point], index: int) -> list[Point]:
        """Return who goes on from a rung, among all that ever reached it."""
        rung, is_last = self.design.rungs[index], index == len(self.design.rungs) - 1
        pool = [point for point in self._results if rung in self._results[point]]
        pool = [point for point in pool if point in self._batch_of and not self._failure(point)]
        sound = [point for point in pool if self._is_sound(point, rung)]
        ranked = sorted(sound or pool, key=lambda point: (-self._score(point, rung), point))
        lead = self._score(ranked[0], rung) if ranked else -math.inf
        most = math.ceil(len(pool) / self.design.eta)
        slack = (self.design.near if index == 0 else self.design.near_later) * abs(lead)
        alive = []
        for point in entrants:
            failure = self._failure(point)
            score = self._score(point, rung)
            place = ranked.index(point) + 1 if point in ranked else None
            if failure:
                self._fates[point] = ("failed", failure.epoch, failure_words(failure))
            elif is_last and place:
                self._fates[point] = ("finished", None, "")
            elif place is None:
                self._fates[point] = ("broken", rung, self._flaw(point, rung))
            elif place <= most or score >= lead - slack:
                alive.append(point)
            else:
                reason = f"place {place} of {len(pool)} at epoch {rung}"
                self._fates[point] = ("stopped", rung, reason)
        return alive

    def _finalists(self) -> tuple[Point, ...]:
        length = self.design.length
        whole = [point for point in self._results if self._is_sound(point, length)]
        ranked = sorted(whole, key=lambda point: (-self._score(point, length), point))
        if not ranked:
            return ()
        lead = self._score(ranked[0], length)
        near = [p for p in ranked if self._score(p, length) >= lead - self.design.tie * abs(lead)]
        return tuple(near[: self.design.most_finalists])

    def _position(self, best: Point | None) -> Position | None:
        values = best.values if best else None
        rates = {p.rate for p in self._batch_of if values is None or p.values == values}
        if len(rates) < 2:
            return None
        if best is None:
            diverged = all(
                (failure := self._failure(point)) and failure.failure == "diverged"
                for point in self._batch_of
            )
            return "lowest" if diverged else None
        return {min(rates): "lowest", max(rates): "highest"}.get(best.rate, "inside")  # type: ignore[return-value]

    def _reached(self, point: Point) -> list[int]:
        return sorted(self._results.get(point, {}))

    def _failure(self, point: Point) -> Result | None:
        results = self._results.get(point, {}).values()
        return next((result for result in results if result.failure), None)

    def _score(self, point: Point, epoch: int) -> float:
        result = self._results.get(point, {}).get(epoch)
        return result.score if result else -math.inf

    def _is_sound(self, point: Point, epoch: int) -> bool:
        result = self._results.get(point, {}).get(epoch)
        is_known = point in self._batch_of and result is not None and math.isfinite(result.score)
        return bool(is_known and result and not result.is_broken and not self._failure(point))

    def _flaw(self, point: Point, epoch: int) -> str:
        result = self._results[point][epoch]
        if result.flaw:
            return result.flaw
        if not math.isfinite(result.score):
            return f"no validation loss at epoch {epoch}"
        return f"forgets other subjects at epoch {epoch}"


def _lowest_diverged(tuning: ArmTuning) -> Point | None:
    is_all = tuning.tried and all(tried.fate == "failed" for tried in tuning.tried)
    return min(tried.point for tried in tuning.tried) if is_all else None


def failure_words(failure: Result) -> str:
    """Return how a run ended that has no score."""
    if failure.failure is None:
        return "has no validation loss"
    what = {"diverged": "diverged", "out_of_memory": "ran out of memory", "failed": "failed"}
    return f"{what[failure.failure]} in epoch {failure.epoch}"
