"""A race is launched as its design asks, goes on after a kill, and ends with the same decisions.

The pipeline is stood in for: every run has the loss that a curve gives for its rate.
"""

from __future__ import annotations

import json
import math
import pickle
import sys
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from optbench.analysis.race import RaceVerdict, Step, read_race
from optbench.analysis.race.record import RACE_NAME
from optbench.cli import plan as plan_command
from optbench.cli.race import ending_lines, open_race
from optbench.config.build import config_yaml
from optbench.config.compose import SweepPlan, compose_runs
from optbench.errors import ConfigError, MissingPackageError, Problem
from optbench.launch import guard
from optbench.launch.race import RaceOnDisk, run_race
from optbench.storage import disk, files, rundir
from optbench.training.made_as import made_as
from optbench.training.plan import RunPlan

pytestmark = pytest.mark.usefixtures("fake_assets")
BEST_RATE = {"adamw": 1.0, "lion": 1.5, "sgdnesterov": 1.0}
GAIN = {"adamw": 0.030, "lion": 0.028, "sgdnesterov": 0.010}
NINE = ("-m", "sweep=race", "train.epochs=6", "optimizer=adamw,lion")
RACE = (*NINE, "race.rates=0.5:2:3", "race.confirm=2..3")


class Killed(BaseException):
    """Ends the command at once, as SIGKILL would."""


@dataclass(frozen=True)
class Call:
    optimizer: str
    rate: float
    seed: int
    dim: int
    first_epoch: int
    until: int
    renders: bool


@dataclass
class Pipeline:
    """Stands in for the training of runs."""

    calls: list[Call] = field(default_factory=list)
    before: Callable[[RunPlan], None] = lambda plan: None

    def run(self, plans: list[RunPlan], session: object) -> dict[str, Exception]:
        (plan,) = plans
        config, run = plan.config, rundir.RunDir(plan.run_dir)
        rundir.write_status(run.path, "running")
        trained = len(files.read_rows(run.epochs_path))
        until = min(plan.until_epoch or plan.num_epochs, plan.num_epochs)
        name = config.optimizer.name
        call = Call(
            name, config.lr_mult, config.seed, config.network.dim, trained, until,
            config.render.enabled,
        )  # fmt: skip
        self.calls.append(call)
        files.write_atomic(run.config_path, config_yaml(config))
        for epoch in range(trained + 1, until + 1):
            steps = [
                {"step": (epoch - 1) * plan.steps_per_epoch + step + 1, "epoch": epoch}
                for step in range(plan.steps_per_epoch)
            ]
            files.append_rows(run.steps_path, steps)
            if epoch == until:
                self.before(plan)
            row = {"epoch": epoch, "step": steps[-1]["step"], "seconds_train": 90.0}
            files.append_rows(run.epochs_path, [row])
        measured = {row["epoch"] for row in files.read_rows(run.validation_path)}
        if until not in measured:
            files.append_rows(run.validation_path, losses(plan, until))
        for path in guard.image_paths(run, config):
            files.write_atomic(path, b"")
        epochs = len(files.read_rows(run.epochs_path))
        if epochs < plan.num_epochs:
            rundir.write_status(
                run.path,
                "stopped",
                f"stopped at epoch {epochs} of {plan.num_epochs}",
                made_as=made_as(plan),
                epoch=epochs,
                step=epochs * plan.steps_per_epoch,
            )
        else:
            rundir.write_status(run.path, "done", made_as=made_as(plan))
        return {}


def losses(plan: RunPlan, epoch: int) -> list[files.Row]:
    """Return a run's validation rows: the gain falls off from the best rate and grows with time."""
    config = plan.config
    name = config.optimizer.name
    off = math.log(config.lr_mult / BEST_RATE[name]) ** 2
    luck = 1e-4 * math.sin(config.seed * 7 + len(name))
    gain = (GAIN[name] - 0.004 * off + luck) * (epoch / plan.num_epochs) ** 0.5
    gain += 1e-3 * (config.network.dim == 8)
    return [
        {
            "epoch": epoch,
            "image": f"{split}-{image}",
            "split": split,
            "timestep": 50,
            "loss": 0.1 - gain * (1 + image / 100) if split == "held_out" else 0.1,
            "base_loss": 0.1,
        }
        for split in ("held_out", "others")
        for image in range(6)
    ]


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pipeline:
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    stand_in = Pipeline()
    module: Any = types.ModuleType("optbench.pipeline")
    module.run = stand_in.run
    monkeypatch.setitem(sys.modules, "optbench.pipeline", module)
    return stand_in


def race(*arguments: str) -> SweepPlan:
    """Run a race with a launcher that composes nothing again; return its plan."""
    plan = compose_runs(arguments)
    task = guard.RunTask(
        plans=[],
        sweep_dir=plan.sweep_dir,
        needs_own_process=False,
        command=("optbench", *arguments),
        working_dir=str(Path.cwd()),
        race=plan.race,
    )

    def launch(batch: list[list[str]], *, initial_job_idx: int) -> list[Any]:
        assert [[*run.overrides] for run in task.plans] == batch
        for run in task.plans:
            guard.run_guarded(run, task.session)
        return []

    disk.make_folder(plan.sweep_dir)
    run_race(task, launch)
    return plan


def state(plan: SweepPlan) -> RaceOnDisk:
    assert plan.race is not None
    return open_race(plan.race, plan.sweep_dir, workers=1)


def verdict(plan: SweepPlan) -> RaceVerdict:
    return state(plan).verdict()


def whole(calls: Iterable[Call]) -> set[tuple[str, float, int, int]]:
    """Return how far each run was trained in the end."""
    reached: dict[tuple[str, float, int], int] = {}
    for call in calls:
        key = (call.optimizer, call.rate, call.seed)
        reached[key] = max(call.until, reached.get(key, 0))
    return {(*key, until) for key, until in reached.items()}


def folder(plan: SweepPlan) -> dict[str, bytes]:
    """Return what a race's folder holds, without what says when and by which process."""
    kept = {}
    for path in sorted(plan.sweep_dir.rglob("*")):
        if path.is_file() and path.parent.name != "claims":
            content = path.read_bytes()
            if path.name == "status.json":
                record = json.loads(content)
                content = f"{record['status']} {record['reason']} {record['facts']}".encode()
            kept[str(path.relative_to(plan.sweep_dir))] = content
    return kept


def test_a_race_tunes_each_recipe_and_confirms_with_fresh_seeds(pipeline: Pipeline) -> None:
    plan = race(*NINE)
    tuning = [call for call in pipeline.calls if call.seed == 1234]
    first = [call for call in tuning if call.until == 1]
    assert len(first) == 18
    assert {call.rate for call in first} == {0.2, 0.299, 0.447, 0.669, 1, 1.5, 2.24, 3.34, 5}
    # A rung is the same run, continued.
    assert {(call.first_epoch, call.until) for call in tuning} == {(0, 1), (1, 2), (2, 6)}
    second = {(call.optimizer, call.rate) for call in tuning if call.until == 2}
    assert ("adamw", 1.0) in second
    assert ("lion", 1.5) in second
    assert ("adamw", 0.2) not in second
    result = verdict(plan)
    assert result.is_over
    assert result.tunings["adamw"].best == type(result.tunings["adamw"].finalists[0])(1.0)
    fresh = [call for call in pipeline.calls if call.seed != 1234]
    assert {call.seed for call in fresh} >= {1235, 1236}
    assert all((call.first_epoch, call.until) == (0, 6) for call in fresh)
    assert {(call.optimizer, call.rate) for call in fresh} >= {("adamw", 1.0), ("lion", 1.5)}
    # Only the first fresh seed of a finalist is to be looked at.
    assert {call.seed for call in pipeline.calls if call.renders} == {1235}
    lead = result.lead
    assert lead is not None
    assert lead.arm == "adamw"
    statuses = [rundir.read_status(plan.sweep_dir / name) for name in state(plan).runs]
    assert {record.status for record in statuses} == {"stopped", "done"}
    assert "stopped at epoch 1 of 6" in {record.reason for record in statuses}


def test_a_run_of_a_race_has_the_name_of_the_same_run_elsewhere() -> None:
    plan = compose_runs(RACE)
    assert plan.race is not None
    point = plan.race.design.points_of("lion")[2]
    step = Step(
        arm="lion", point=point, seed=9, until_epoch=2, phase="tune", reason=""
    )  # fmt: skip
    run = plan.race.run(step)
    typed = ["optimizer=lion", "train.epochs=6", f"lr_mult={point.rate}", "seed=9", "render=few"]
    (same,) = compose_runs(typed).runs
    assert (run.name, run.changed_settings) == (same.name, same.changed_settings)
    assert run.config.train == same.config.train
    # What a launcher on another machine is given makes the same run.
    of_step = [word for word in run.overrides if not word.startswith(("sweep=", "race."))]
    assert compose_runs(of_step).runs[0].name == same.name


def test_a_task_travels_to_other_machines_with_what_is_due_and_without_the_race() -> None:
    plan = compose_runs(RACE)
    task = guard.RunTask(
        plans=[*plan.runs],
        sweep_dir=plan.sweep_dir,
        needs_own_process=False,
        command=("optbench",),
        working_dir=".",
        race=plan.race,
    )
    arrived = pickle.loads(pickle.dumps(task))
    assert arrived.race is None
    assert [run.name for run in arrived.plans] == [run.name for run in plan.runs]


def test_hydra_launches_a_race(pipeline: Pipeline) -> None:
    arguments = [*RACE, "optimizer=adamw", "race.rates=1:1:1", "race.confirm=2..2"]
    plan = compose_runs(arguments)
    guard.launch(arguments, plan)
    calls = [(call.seed, call.first_epoch, call.until) for call in pipeline.calls]
    assert calls[:3] == [(1234, 0, 1), (1234, 1, 2), (1234, 2, 6)]
    assert verdict(plan).is_over
    assert (plan.sweep_dir / "multirun.yaml").is_file()


def test_a_race_that_is_over_trains_nothing_more(pipeline: Pipeline) -> None:
    before = folder(race(*RACE))
    num_calls = len(pipeline.calls)
    assert folder(race(*RACE)) == before
    assert len(pipeline.calls) == num_calls


@pytest.mark.parametrize("part", [0.3, 0.9])
def test_killed_anywhere_it_goes_on_with_the_same_decisions(
    pipeline: Pipeline, part: float, tmp_path: Path
) -> None:
    undisturbed = folder(race(*RACE, f"runs_dir={tmp_path / 'whole'}"))
    calls = [*pipeline.calls]
    pipeline.calls.clear()
    killed_at = int(part * len(calls)) + 1

    def die(plan: RunPlan) -> None:
        if len(pipeline.calls) == killed_at:
            raise Killed

    pipeline.before = die
    arguments = (*RACE, f"runs_dir={tmp_path / 'killed'}")
    with pytest.raises(Killed):
        race(*arguments)
    pipeline.before = lambda plan: None
    # What a killed run had not recorded is cut off when it is resumed; the stand-in cannot.
    for steps in (tmp_path / "killed").rglob("steps.jsonl"):
        epochs = len(files.read_rows(steps.parent / "epochs.jsonl"))
        files.truncate_rows(steps, max_epoch=epochs)
    resumed = folder(race(*arguments))
    assert whole(pipeline.calls) == whole(calls)
    assert resumed.keys() == undisturbed.keys()
    for name, content in undisturbed.items():
        # A config says its own folder, multirun.yaml and race.json the command.
        if not name.endswith(".yaml") and name != RACE_NAME:
            assert resumed[name] == content, name
    ours, theirs = (read_race(tmp_path / which / "race") for which in ("killed", "whole"))
    assert ours is not None
    assert theirs is not None
    assert (ours.design, ours.runs) == (theirs.design, theirs.runs)


def test_a_decision_does_not_rest_on_what_was_lost(pipeline: Pipeline) -> None:
    plan = race(*RACE)
    tried = [tried for tuning in verdict(plan).tunings.values() for tried in tuning.tried]
    point = next(tried.point for tried in tried if tried.stopped_at == 1)
    name = next(
        name
        for name, place in state(plan).runs.items()
        if place.point == point
        and rundir.read_status(plan.sweep_dir / name).facts.get("epoch") == 1
    )
    validation = plan.sweep_dir / name / "validation.jsonl"
    kept = validation.read_bytes()
    validation.unlink()
    num_calls = len(pipeline.calls)
    race(*RACE)
    assert len(pipeline.calls) == num_calls + 1
    assert validation.read_bytes() == kept


def test_runs_that_another_worker_has_are_waited_for_and_taken_over(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = compose_runs([*RACE, "optimizer=adamw"]).runs
    assert first.until_epoch is None
    rundir.write_status(first.run_dir, "running")  # of a worker that writes no locks

    def die(seconds: float) -> None:
        rundir.write_status(first.run_dir, "interrupted", "it died")

    monkeypatch.setattr("optbench.launch.race.time.sleep", die)
    plan = race(*RACE, "optimizer=adamw")
    assert verdict(plan).is_over
    own_rate = [call for call in pipeline.calls if (call.rate, call.seed) == (1.0, 1234)]
    assert own_rate[0].until == 1


def test_a_corrupt_record_of_a_race_is_made_again_from_its_runs(pipeline: Pipeline) -> None:
    plan = race(*RACE)
    path = plan.sweep_dir / RACE_NAME
    path.write_bytes(path.read_bytes()[:-20])
    num_calls = len(pipeline.calls)
    assert verdict(race(*RACE)).is_over
    assert len(pipeline.calls) == num_calls


def test_a_nuisance_axis_is_tuned_away_and_others_are_answered_about(pipeline: Pipeline) -> None:
    swept = ["network.dim=8,16", "lr_scheduler=cosine,constant"]
    plan = compose_runs([*RACE, *swept, "race.nuisance=lr_mult,network.dim"])
    assert plan.race is not None
    design = plan.race.design
    assert design.arms == (
        "adamw lr_scheduler=cosine",
        "adamw lr_scheduler=constant",
        "lion lr_scheduler=cosine",
        "lion lr_scheduler=constant",
    )
    assert [(axis.name, axis.values) for axis in design.nuisance] == [("network.dim", ("8", "16"))]
    plan = race(*RACE, "network.dim=8,16", "race.nuisance=[network.dim]")
    result = verdict(plan)
    assert {arm.arm for arm in result.arms} == {"adamw", "lion"}
    assert {arm.point.values for arm in result.arms if arm.point} == {("8",)}
    assert {call.dim for call in pipeline.calls if call.seed == 1234} == {8, 16}
    assert {call.dim for call in pipeline.calls if call.seed != 1234} == {8}


def test_listed_settings_and_a_single_recipe_race_too() -> None:
    listed = 'settings={a: "optimizer=adamw", b: "optimizer=lion network.dim=8"}'
    plan = compose_runs(["-m", "hydra/sweeper=optbench_race", listed])
    assert plan.race is not None
    assert plan.race.design.arms == ("a", "b")
    plan = compose_runs(["-m", "hydra/sweeper=optbench_race", "optimizer=lion"])
    assert plan.race is not None
    assert plan.race.design.arms == ("lion",)
    rateless = compose_runs([*RACE, "optimizer=adamw,adafactor_auto", "lr_scheduler=constant",
                             "train.max_grad_norm=0"])  # fmt: skip
    assert rateless.race is not None
    assert rateless.race.design.rateless == ("adafactor_auto",)


def test_rungs_are_epochs_or_shares_and_the_end_is_the_last() -> None:
    def rungs(*more: str) -> tuple[int, ...]:
        plan = compose_runs([*RACE, *more])
        assert plan.race is not None
        return plan.race.design.rungs

    assert rungs() == (1, 2, 6)
    assert rungs("train.epochs=12") == (2, 4, 12)
    assert rungs("race.rungs=1,3") == (1, 3, 6)
    assert rungs("race.rungs=[0.5]") == (3, 6)
    assert rungs("train.epochs=1") == (1,)


def test_a_budget_in_epochs_ends_the_race_and_more_goes_on(pipeline: Pipeline) -> None:
    plan = race(*RACE, "race.budget=20ep")
    result = verdict(plan)
    spent = sum(call.until - call.first_epoch for call in pipeline.calls)
    assert result.ending == "budget"
    assert spent <= 20
    lines = ending_lines(state(plan))
    assert "budget is spent" in lines[0]
    assert any("more would" in line for line in lines)
    assert verdict(race(*RACE)).ending != "budget"


def test_a_budget_in_hours_is_priced_by_the_first_epochs(pipeline: Pipeline) -> None:
    plan = race(*RACE, "race.budget=30min")  # 20 epochs of 90 seconds
    first, second, *_ = pipeline.calls
    # One epoch of each recipe at its own rate tells what it costs.
    assert {(c.optimizer, c.rate, c.until) for c in (first, second)} == {
        ("adamw", 1.0, 1),
        ("lion", 1.0, 1),
    }
    design = state(plan).design
    assert design.epoch_cost == {"adamw": 90 / 3600, "lion": 90 / 3600}
    spent = sum(call.until - call.first_epoch for call in pipeline.calls)
    assert spent <= 20
    # The same command makes the same decisions, whatever epochs take by now.
    pipeline.calls.clear()
    race(*RACE, "race.budget=30min")
    assert pipeline.calls == []


def test_a_recipe_without_its_package_ends_for_itself(pipeline: Pipeline) -> None:
    def lack(plan: RunPlan) -> None:
        if plan.config.optimizer.name == "lion":
            raise MissingPackageError(Problem("lion", "no package", "one", "install it"))

    pipeline.before = lack
    plan = race(*RACE)
    result = verdict(plan)
    assert {arm.arm: arm.standing for arm in result.arms}["lion"] == "failed"
    assert result.lead is not None
    pipeline.before = lambda plan: None
    assert {arm.arm: arm.standing for arm in verdict(race(*RACE)).arms}["lion"] != "failed"


def test_a_race_of_other_settings_does_not_take_the_results_of_this_one(
    pipeline: Pipeline,
) -> None:
    race(*RACE)
    pipeline.calls.clear()
    plan = race(*RACE, "network.dim=8")
    begun = {(call.optimizer, call.rate) for call in pipeline.calls if call.first_epoch == 0}
    bracket = {(name, rate) for name in ("adamw", "lion") for rate in (0.5, 1.0, 2.0)}
    assert begun >= bracket
    assert {call.dim for call in pipeline.calls} == {8}
    assert {plan.sweep_dir / name for name in state(plan).runs} < set(plan.sweep_dir.iterdir())
    # One recipe more joins later, and what is there stays.
    pipeline.calls.clear()
    race(*RACE, "optimizer=adamw,lion,sgdnesterov")
    begun = {(call.optimizer, call.rate) for call in pipeline.calls if call.first_epoch == 0}
    assert begun >= {("sgdnesterov", rate) for rate in (0.5, 1.0, 2.0)}
    assert not begun & bracket


def test_everything_wrong_with_a_race_is_said_at_once() -> None:
    arguments = [*RACE, "lr_mult=0.3,1", "seed=1,2", "race.rates=5:1:3", "race.confirm=1..2",
                 "race.rung_schedule=own", "race.nuisance=network.dim"]  # fmt: skip
    said = problems(arguments)
    assert said == {
        "lr_mult", "seed", "race.rates", "race.confirm", "race.rung_schedule", "race.nuisance"
    }  # fmt: skip
    assert problems([*RACE, "validate=off"]) == {"validate"}
    assert problems([*RACE, "train.epochs=2,4"]) == {"train.epochs"}
    assert problems([*RACE, "race.rungs=1,8"]) == {"race.rungs"}
    assert problems([*RACE, "seeds=3"]) == {"seeds"}
    assert problems([*RACE, "launch.until_epoch=2"]) == {"launch.until_epoch"}
    assert problems([*RACE, "race.budget=3x", "race.eta=1"]) == {"race.budget", "race.eta"}
    assert problems(["-m", "optimizer=adamw,lion", "race.budget=3h"]) == {"race.budget"}


def problems(arguments: list[str]) -> set[str]:
    with pytest.raises(ConfigError) as error:
        compose_runs(arguments)
    return {problem.where.partition(" ")[0] for problem in error.value.problems}


def test_plan_shows_a_race_before_and_amid_it(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan_command.main([*RACE, "race.budget=15ep"]) == 0
    before = capsys.readouterr().out
    for words in ("A race of adamw, lion", "first look", "too little", "time: unknown"):
        assert words in before
    assert not Path("runs").exists()
    race(*RACE, "race.budget=15ep")
    plan_command.main([*RACE, "race.budget=15ep"])
    after = capsys.readouterr().out
    assert "so far: " in after
    assert "The budget is spent" in after
    plan_command.main([*RACE])
    assert "next: " in capsys.readouterr().out
