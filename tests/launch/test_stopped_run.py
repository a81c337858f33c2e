"""A run that is trained up to an epoch and later continued is the run that was never stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from optbench.config.compose import compose_runs
from optbench.launch.guard import is_finished
from optbench.records import Status
from optbench.storage import files, rundir
from optbench.storage.rundir import RunDir
from optbench.training import memory, recovery
from optbench.training.plan import RunPlan
from tests.launch.test_killed_run import loras, make_run, rows

pytestmark = pytest.mark.usefixtures("fake_assets")
NUM_EPOCHS = 3


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunPlan:
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: False)  # lasts for the process
    (plan,) = compose_runs(
        [
            f"runs_dir={tmp_path / 'runs'}",
            f"cache_dir={tmp_path / 'cache'}",
            f"train.epochs={NUM_EPOCHS}",
            "network.dim=2",
            "dropout=network",
            "render=off",
        ]
    ).runs
    return plan


def until(plan: RunPlan, epoch: int | None, sweep_dir: Path) -> tuple[RunPlan, RunDir]:
    """Train a run until an epoch; return its plan and its folder."""
    going = replace(plan, until_epoch=epoch, sweep_dir=sweep_dir)
    assert not is_finished(going)
    run = make_run(going, sweep_dir)
    assert is_finished(going)
    return going, run


def status(run: RunDir) -> tuple[str, str]:
    record = rundir.read_status(run.path)
    return record.status, record.reason


def validated(run: RunDir) -> list[int]:
    return sorted({int(row["epoch"]) for row in files.read_rows(run.validation_path)})


def test_the_schedule_of_a_stopped_run_is_that_of_the_whole_one(
    plan: RunPlan, tmp_path: Path
) -> None:
    _, whole = until(plan, None, tmp_path / "whole")
    ends: list[tuple[str, str]] = []
    for epoch in (1, 2, NUM_EPOCHS):
        _, parts = until(plan, epoch, tmp_path / "parts")
        ends.append(status(parts))
        assert parts.lora_path(epoch).is_file()
        assert not parts.lora_path(epoch + 1).is_file()
    stopped: Status = "stopped"
    assert ends == [
        (stopped, "stopped at epoch 1 of 3"),
        (stopped, "stopped at epoch 2 of 3"),
        ("done", ""),
    ]
    assert loras(parts) == loras(whole)
    assert rows(parts.steps_path) == rows(whole.steps_path)
    assert rows(parts.layers_path) == rows(whole.layers_path)
    # What was measured of the whole run at its end is what was measured of this one.
    last = [row for row in rows(parts.validation_path) if row["epoch"] == NUM_EPOCHS]
    assert last == rows(whole.validation_path)
    assert validated(parts) == [1, 2, NUM_EPOCHS]
    measured = [
        row["epoch"] for row in rows(parts.epochs_path) if "validation_loss/held_out" in row
    ]
    assert measured == [1, 2, NUM_EPOCHS]


def test_a_run_that_has_gone_further_is_measured_where_it_would_have_stopped(
    plan: RunPlan, tmp_path: Path
) -> None:
    whole, run = until(plan, None, tmp_path / "parts")
    before = loras(run)
    until(plan, 1, tmp_path / "parts")
    assert validated(run) == [1, NUM_EPOCHS]
    assert is_finished(whole)
    assert status(run) == ("done", "")
    assert loras(run) == before


def test_verify_names_what_a_stopped_run_has_lost(plan: RunPlan, tmp_path: Path) -> None:
    going, run = until(plan, 2, tmp_path / "parts")
    assert [*recovery.damage_of(run)] == []
    lines = run.steps_path.read_text().splitlines(keepends=True)
    run.steps_path.write_text("".join(lines[:-1]))
    assert [*recovery.damage_of(run)] == ["steps.jsonl: 9 of 10 steps"]
    assert not is_finished(going)
    until(plan, 2, tmp_path / "parts")
    assert [*recovery.damage_of(run)] == []


def test_a_stopped_run_is_not_finished_for_a_command_without_an_end(
    plan: RunPlan, tmp_path: Path
) -> None:
    _, run = until(plan, 1, tmp_path / "parts")
    assert not is_finished(replace(plan, sweep_dir=tmp_path / "parts"))
    assert not is_finished(replace(plan, sweep_dir=tmp_path / "parts", until_epoch=2))
    assert rundir.read_status(run.path).facts["epoch"] == 1


def test_the_command_says_how_far_its_runs_are_trained(tmp_path: Path) -> None:
    where = [f"runs_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}"]
    whole, part = (
        compose_runs([*where, "train.epochs=4", *more]).runs[0]
        for more in ((), ("launch.until_epoch=2",))
    )
    assert part.name == whole.name
    assert part.until_epoch == 2
    assert part.last_step == 2 * part.steps_per_epoch < part.total_steps == whole.total_steps
