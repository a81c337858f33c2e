"""Run a race: launch what its design asks for next, until it asks for nothing more.

Every decision is a function of what lies on disk (analysis/race): a race that was killed goes on by
the same command, with the same decisions. `race.json` says which run is which.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optbench.analysis.frames import load_runs
from optbench.analysis.race import (
    Point,
    RaceDesign,
    RaceRecord,
    RaceVerdict,
    Result,
    RunPlace,
    Step,
    fit_budget,
    plan_race,
    read_race,
    read_results,
    verdicts,
    write_race,
)
from optbench.config.race import RacePlan
from optbench.errors import DamagedFileError
from optbench.launch.estimate import estimate
from optbench.storage import files, rundir
from optbench.storage.rundir import RunDir
from optbench.terminal import tell
from optbench.training.plan import RunPlan

if TYPE_CHECKING:
    from optbench.launch.guard import RunTask

Launch = Callable[..., Sequence[Any]]  # Hydra's launcher: batches of overrides, the first's number
_POLL_SECONDS = 5.0
_AGAIN = ("failed", "out_of_memory", "skipped")  # what the same command tries once more
_SECONDS_PER_HOUR = 3600


@dataclass(slots=True, kw_only=True)
class RaceOnDisk:
    """A race and what lies in its folder."""

    plan: RacePlan
    sweep_dir: Path
    design: RaceDesign
    runs: dict[str, RunPlace] = field(default_factory=dict)
    tried: set[str] = field(default_factory=set)  # names of runs that this process has launched
    _results: tuple[Result, ...] | None = None  # as read last

    @classmethod
    def open(cls, plan: RacePlan, sweep_dir: Path, *, workers: int) -> RaceOnDisk:
        """Return a race as its folder has it; of another design's runs those that are this one's.

        A budget in hours keeps the costs it was begun with, so that decisions stay what they were.
        """
        race = cls(plan=plan, sweep_dir=sweep_dir, design=plan.design)
        try:
            record = read_race(sweep_dir)
        except DamagedFileError:
            record = None  # the runs themselves are found again by their names
        if record is not None:
            race.runs = {
                name: place
                for name, place in record.runs.items()
                if race.is_of_this_race(name, place)
            }
        if plan.design.unit == "hours":
            stored = {} if record is None else record.design.epoch_cost
            costs = {arm: stored.get(arm) or _hours(plan, arm, workers) for arm in plan.design.arms}
            race.design = dataclasses.replace(
                plan.design,
                epoch_cost={arm: cost for arm, cost in costs.items() if cost is not None},
                finish_cost=_image_hours(plan, workers)
                if record is None
                else record.design.finish_cost,
            )
        if not race.unpriced:
            race.design = fit_budget(race.design)
        return race

    @property
    def unpriced(self) -> list[str]:
        """The arms whose hours nobody knows yet, where the budget is in hours."""
        design = self.design
        is_needed = design.budget is not None and design.unit == "hours"
        return [arm for arm in design.arms if is_needed and arm not in design.epoch_cost]

    def hours(self, *, workers: int) -> dict[str, float] | None:
        """Return the hours of an epoch of each arm, as far as anything tells; None: not of all.

        Where the budget is in hours, those that it is counted in.
        """
        if self.design.unit == "hours" and not self.unpriced:
            return dict(self.design.epoch_cost)
        measured = _measured_hours(self, self.design.arms, workers)
        hours = {
            arm: measured.get(arm) or _hours(self.plan, arm, workers) for arm in self.design.arms
        }
        known = {arm: cost for arm, cost in hours.items() if cost is not None}
        return known if len(known) == len(hours) else None

    def is_of_this_race(self, name: str, place: RunPlace) -> bool:
        """Return whether a recorded run is what this command line would train at its place."""
        cell = (place.arm, place.point.values)
        is_known = cell in self.plan.cells and (
            place.seed == self.design.tuning_seed or place.seed in self.design.fresh_seeds
        )
        return is_known and self.plan.run(self._step(place, self.design.length)).name == name

    def write(self) -> None:
        """Write `race.json`."""
        write_race(
            self.sweep_dir,
            RaceRecord(design=self.design, runs=self.runs, overrides=self.plan.entries.arms),
        )

    def results(self) -> tuple[Result, ...]:
        """Return what every run had reached at its rungs.

        What failed by a fault that may be gone by now has no result until it is tried again.
        Read once, until `has_run` says that there is more.
        """
        if self._results is None:
            self._results = self._read_results()
        return self._results

    def has_run(self, names: Iterable[str]) -> None:
        """Note that these runs were tried, well or not."""
        self.tried |= {*names}
        self._results = None

    def _read_results(self) -> tuple[Result, ...]:
        folders = [self.sweep_dir / name for name in self.runs]
        folders = [folder for folder in folders if (folder / "status.json").is_file()]
        if not folders:
            return ()
        status = {folder.name: rundir.read_status(folder).status for folder in folders}
        counted = {
            name: place
            for name, place in self.runs.items()
            if status.get(name) not in _AGAIN or name in self.tried
        }
        frames = load_runs(self.sweep_dir, folders)
        results = read_results(frames, RaceRecord(design=self.design, runs=counted))
        # A recipe whose package is missing came to no result either.
        skipped = [counted[n] for n in counted if status.get(n) == "skipped"]
        return (
            *results,
            *(
                Result(arm=place.arm, point=place.point, seed=place.seed, epoch=1, failure="failed")
                for place in skipped
            ),
        )

    def verdict(self) -> RaceVerdict:
        """Return what the race says so far, and what is due."""
        return verdicts(self.design, self.results())

    def stale(self) -> list[Step]:
        """Return the steps that were taken and are no more what they were.

        A killed process left no status, a file was found corrupt, held-out images were edited: a
        decision must not rest on them.
        """
        from optbench.launch.guard import is_finished

        reached: dict[RunPlace, int] = {}
        by_place = {(place.arm, place.point, place.seed): place for place in self.runs.values()}
        failed = set()
        for result in self.results():
            place = by_place[result.arm, result.point, result.seed]
            reached[place] = max(result.epoch, reached.get(place, 0))
            if result.failure:
                failed.add(place)
        steps = [
            self._step(place, epoch) for place, epoch in reached.items() if place not in failed
        ]
        return [step for step in steps if not is_finished(self.plan.run(step))]

    def _step(self, place: RunPlace, epoch: int) -> Step:
        return Step(
            arm=place.arm,
            point=place.point,
            seed=place.seed,
            until_epoch=epoch,
            phase="tune" if place.seed == self.design.tuning_seed else "confirm",
            reason="it is not what it was",
        )


def run_race(task: RunTask, launch: Launch) -> list[Sequence[Any]]:
    """Launch the steps of a race until none is due, or one cannot be taken; return Hydra's jobs.

    Args:
        task: What Hydra does with each run; it knows the race.
        launch: The launcher's.
    """
    assert task.race is not None
    race = RaceOnDisk.open(task.race, task.sweep_dir, workers=task.workers)
    race.write()  # the report tells by it that this is a race
    jobs: list[Sequence[Any]] = []
    steps: Sequence[Step] = race.stale()
    while steps or (steps := _due(race, workers=task.workers)):
        plans = [race.plan.run(step) for step in steps]
        for step, plan in zip(steps, plans, strict=True):
            race.runs[plan.name] = RunPlace(arm=step.arm, point=step.point, seed=step.seed)
        race.write()
        for line in announcement(race.design, steps):
            tell(line)
        task.plans[:] = [
            dataclasses.replace(plan, run_index=index, num_runs=len(plans))
            for index, plan in enumerate(plans)
        ]
        batch = [list(plan.overrides) for plan in plans]
        returned = launch(batch, initial_job_idx=sum(map(len, jobs)))
        for job in returned:
            _ = job.return_value  # raises what a worker raised
        jobs.append(returned)
        task.run_queue()
        has_waited = _wait_for_others(plans)
        race.has_run(plan.name for plan in plans)
        # What another worker could not finish is due once more, and this one's by now.
        if _is_blocked(race, steps) and not has_waited:
            break
        steps = []
    return jobs


def _due(race: RaceOnDisk, *, workers: int) -> Sequence[Step]:
    """Return the steps that are due; first of all one for every arm whose cost is not known."""
    if not race.unpriced:
        return race.verdict().steps
    costs = {**race.design.epoch_cost, **_measured_hours(race, race.unpriced, workers)}
    race.design = dataclasses.replace(race.design, epoch_cost=costs)
    without_end = dataclasses.replace(race.design, budget=None, epoch_cost={})
    due = verdicts(without_end, race.results()).steps
    rates = race.design.rates
    middle = rates[len(rates) // 2]  # which no fitting leaves out
    steps = []
    for arm in race.unpriced:
        of_arm = [step for step in due if step.arm == arm]
        steps += sorted(of_arm, key=lambda step: abs(step.point.rate - middle))[:1]
    if not steps:
        # Those without a cost have no run that trained an epoch: they cost nothing more.
        costs |= dict.fromkeys(race.unpriced, 0.0)
        race.design = fit_budget(dataclasses.replace(race.design, epoch_cost=costs))
        race.write()
        return race.verdict().steps
    return steps


def announcement(design: RaceDesign, steps: Sequence[Step]) -> list[str]:
    """Return a line for every arm and what it trains next."""
    groups: dict[tuple[str, int, str, str], list[Step]] = {}
    for step in steps:
        groups.setdefault((step.arm, step.until_epoch, step.phase, step.reason), []).append(step)
    lines = []
    for (arm, epoch, phase, reason), of_group in groups.items():
        points = ", ".join(dict.fromkeys(_spelled(step.point) for step in of_group))
        until = f"until epoch {epoch} of {design.length}"
        seeds = ""
        if phase == "confirm":
            numbers = sorted({step.seed for step in of_group})
            seeds = f" with seed {', '.join(map(str, numbers))}"
        lines.append(f"race: {arm} {points} {until}{seeds} ({reason})")
    return lines


def _spelled(point: Point) -> str:
    return " ".join((f"x{point.rate:g}", *point.values))


def _wait_for_others(plans: Sequence[RunPlan]) -> bool:
    """Wait for the runs that other workers have, as all results decide; return whether any had."""
    has_waited = False
    while any(rundir.read_status(plan.run_dir).status == "running" for plan in plans):
        if not has_waited:
            tell("race: waiting for runs that another worker has")
            has_waited = True
        time.sleep(_POLL_SECONDS)
    return has_waited


def _is_blocked(race: RaceOnDisk, steps: Sequence[Step]) -> bool:
    """Return whether a step was tried and has no result, not even a failure: the race waits."""
    reached = {(result.arm, result.point, result.seed, result.epoch) for result in race.results()}
    failed = {
        (result.arm, result.point, result.seed) for result in race.results() if result.failure
    }
    return any(
        (step.arm, step.point, step.seed, step.until_epoch) not in reached
        and (step.arm, step.point, step.seed) not in failed
        for step in steps
    )


def _hours(plan: RacePlan, arm: str, workers: int) -> float | None:
    """Return the hours of an arm's epoch by earlier runs, all workers busy; None: unknown."""
    seconds = [
        seconds
        for (of_arm, _), run in plan.cells.items()
        if of_arm == arm and (seconds := _epoch_seconds(run, plan.design)) is not None
    ]
    return statistics.fmean(seconds) / _SECONDS_PER_HOUR / workers if seconds else None


def _epoch_seconds(run: RunPlan, design: RaceDesign) -> float | None:
    """Return the seconds of an epoch, with its part of the validations; None: unknown."""
    whole = _without_images(run)
    every = dataclasses.replace(whole.config.validate, every_n_epochs=1)
    each = dataclasses.replace(whole, config=dataclasses.replace(whole.config, validate=every))
    cost, dense = estimate(whole), estimate(each)
    if cost.seconds is None or dense.seconds is None:
        return None
    validation = (dense.seconds - cost.seconds) / max(1, cost.num_epochs - 1)
    return (cost.seconds - validation) / cost.num_epochs + validation * _validations(design)


def _validations(design: RaceDesign) -> float:
    """Return how often a race validates for each epoch it trains: at every rung."""
    rows = [row for row in plan_race(design).rows if row.is_certain]
    return sum(row.num_runs for row in rows) / sum(row.num_epochs for row in rows)


def _image_hours(plan: RacePlan, workers: int) -> float:
    """Return the hours of images for each fresh run: those of one seed, shared by the first."""
    hours = []
    for run in plan.cells.values():
        whole, without = estimate(run).seconds, estimate(_without_images(run)).seconds
        if whole is not None and without is not None:
            hours.append((whole - without) / _SECONDS_PER_HOUR / workers)
    return statistics.fmean(hours) / plan.design.confirm[0] if hours else 0.0


def _without_images(run: RunPlan) -> RunPlan:
    render = dataclasses.replace(run.config.render, enabled=False)
    return dataclasses.replace(run, config=dataclasses.replace(run.config, render=render))


def _measured_hours(race: RaceOnDisk, arms: Sequence[str], workers: int) -> Mapping[str, float]:
    """Return the hours of an epoch of each arm that has trained any in this race."""
    hours = {}
    for arm in arms:
        rows = [
            row
            for name, place in race.runs.items()
            if place.arm == arm
            for row in files.readable_rows(RunDir(race.sweep_dir / name).epochs_path)[0]
        ]
        if rows:
            training = [_sum(row, ("seconds_train", "seconds_save")) for row in rows]
            validations = [v for row in rows if (v := _sum(row, ("seconds_validate",))) > 0]
            seconds = statistics.fmean(training)
            if validations:
                seconds += statistics.median(validations) * _validations(race.design)
            hours[arm] = seconds / _SECONDS_PER_HOUR / workers
    return hours


def _sum(row: files.Row, names: Sequence[str]) -> float:
    return sum(float(row.get(name) or 0.0) for name in names)
