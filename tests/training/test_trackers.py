"""Trackers: told every epoch once, refused in words, and never worth a run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking

from optbench.schema import TrackerOptions
from optbench.storage import files
from optbench.storage.rundir import RunDir
from optbench.training.trackers import check_tracker, tracked


class Fake:
    """A tracker of accelerate's kind that writes down what it is told."""

    told: list[tuple[int, dict[str, float]]] = []
    begun: list[tuple[str, dict[str, Any]]] = []
    settings: list[dict[str, object]] = []
    breaks_at = ""

    def __init__(self, project: str, **arguments: Any) -> None:
        self._about = (project, arguments)

    def start(self) -> None:
        self._break("start")
        self.begun.append(self._about)

    @property
    def tracker(self) -> Any:
        class Run:
            id = "known"

        return Run()

    def store_init_configuration(self, values: dict[str, object]) -> None:
        self.settings.append(values)

    def log(self, values: dict[str, float], step: int) -> None:
        self._break("log")
        self.told.append((step, values))

    def finish(self) -> None:
        self._break("finish")

    def _break(self, where: str) -> None:
        if self.breaks_at == where:
            raise ConnectionError(f"no {where}\nfor a reason")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    class Own(Fake):
        told: list[tuple[int, dict[str, float]]] = []
        begun: list[tuple[str, dict[str, Any]]] = []
        settings: list[dict[str, object]] = []

    monkeypatch.setattr(tracking, "WandBTracker", Own)
    monkeypatch.setattr(tracking, "TrackioTracker", Own)
    return Own


def options(*log_with: str, **changes: Any) -> TrackerOptions:
    settings: dict[str, Any] = {"log_tracker_name": None, "run_name": None, "args": {}}
    return TrackerOptions(log_with=log_with, **{**settings, **changes})


def new_run(folder: Path) -> RunDir:
    run = RunDir(folder / "adamw-1")
    files.write_json(run.provenance_path, {"notices": ["first"]})
    return run


def train_epoch(run: RunDir, epoch: int) -> None:
    steps = [{"step": 2 * epoch - 1 + i, "epoch": epoch, "loss": 0.5} for i in range(2)]
    files.append_rows(run.steps_path, steps)
    files.append_rows(run.epochs_path, [{"step": 2 * epoch, "epoch": epoch, "mean_loss": 0.25}])


def watch(run: RunDir, asked: TrackerOptions, *, epochs: tuple[int, ...]) -> list[str]:
    said: list[str] = []
    with tracked(asked, run, {"optimizer": {"lr": 1.0, "betas": [1, 2]}}, said.append) as trackers:
        trackers.log(run)
        for epoch in epochs:
            train_epoch(run, epoch)
            trackers.log(run)
            trackers.log(run)
    return said


def test_every_step_is_told_once_with_the_epochs_numbers_at_its_last(
    tmp_path: Path, fake: type[Fake]
) -> None:
    assert watch(new_run(tmp_path), options("wandb", run_name="mine"), epochs=(1, 2)) == []
    assert [step for step, _ in fake.told] == [1, 2, 3, 4]
    assert fake.told[1] == (2, {"epoch": 1, "loss": 0.5, "mean_loss": 0.25})
    ((project, arguments),) = fake.begun
    assert project == "optbench"
    assert arguments["name"] == "mine"
    assert fake.settings == [{"optimizer.lr": 1.0, "optimizer.betas": "[1, 2]"}]


def test_a_run_that_goes_on_doubles_nothing_and_is_the_same_run_there(
    tmp_path: Path, fake: type[Fake]
) -> None:
    run = new_run(tmp_path)
    watch(run, options("trackio"), epochs=(1,))
    train_epoch(run, 2)  # told by nobody: killed right before
    watch(run, options("trackio"), epochs=(3,))
    assert [step for step, _ in fake.told] == [1, 2, 3, 4, 5, 6]
    assert [arguments["resume"] for _, arguments in fake.begun] == ["never", "allow"]
    assert len(fake.settings) == 1
    watch(run, options("wandb"), epochs=())
    watch(run, options("wandb"), epochs=())
    assert fake.begun[-1][1]["id"] == "known"


def test_an_epoch_it_was_killed_in_is_not_told_again(
    tmp_path: Path, fake: type[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger is written first: half an epoch there is better than one and a half."""

    class Killed(BaseException):
        pass

    run = new_run(tmp_path)
    monkeypatch.setattr(fake, "log", lambda self, values, step: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        watch(run, options("wandb"), epochs=(1,))
    monkeypatch.undo()
    monkeypatch.setattr(tracking, "WandBTracker", fake)
    watch(run, options("wandb"), epochs=(2,))
    assert [step for step, _ in fake.told] == [3, 4]


@pytest.mark.parametrize("where", ["start", "log", "finish"])
def test_one_that_fails_is_a_notice_and_the_others_are_told_on(
    tmp_path: Path, fake: type[Fake], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Fake):
        breaks_at = where

    monkeypatch.setattr(tracking, "WandBTracker", Broken)
    run = new_run(tmp_path)
    (notice,) = watch(run, options("wandb", "trackio"), epochs=(1, 2))
    assert notice.startswith("wandb logging is disabled")
    assert notice.endswith(f"ConnectionError: no {where}")
    assert files.read_json(run.provenance_path)["notices"] == ["first", notice]
    assert [step for step, _ in fake.told] == [1, 2, 3, 4]


def test_without_trackers_nothing_is_written(tmp_path: Path, fake: type[Fake]) -> None:
    run = new_run(tmp_path)
    assert watch(run, options(), epochs=(1,)) == []
    assert not run.state_dir.exists()
    assert fake.begun == []


def test_what_cannot_be_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (problem,) = check_tracker(options("mlflow"))
    assert problem.fix.startswith("pip install mlflow")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert check_tracker(options("mlflow", "wandb", args={"wandb": {"mode": "offline"}})) == []
    (problem,) = check_tracker(options("tensorboard"))
    assert "TensorBoard's files are always there" in problem.expected
    for wrong in (
        options("wandb", "wandb"),
        options("wandb", args={"mlflow": {}}),
        options("wandb", args={"wandb": "offline"}),
        options(run_name="mine"),
        options(log_tracker_name="mine"),
    ):
        (problem,) = check_tracker(wrong)
        assert problem.where.startswith("tracker.")
    assert check_tracker(options()) == []
