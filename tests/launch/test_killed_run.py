"""A run killed before any of its writes ends, run again, as one that was never killed.

The real pipeline on the small base; only the base and the run's name are given to it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import tracking
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from optbench import pipeline
from optbench.config.compose import compose_runs
from optbench.errors import DivergedError
from optbench.launch.guard import is_finished
from optbench.records import StepRecord
from optbench.storage import files, rundir
from optbench.storage.rundir import RunDir
from optbench.training import interrupt, memory, progress, save
from optbench.training.interrupt import StopAskedError
from optbench.training.lane import Lane
from optbench.training.loop import train
from optbench.training.plan import RunPlan
from optbench.training.session import Session
from tests.builders.small_training import SmallBase, global_state_kept
from tests.training.test_trackers import Fake

NUM_EPOCHS = 2
# Everything that writes into a run's folder while it trains, as the pipeline calls it.
WRITERS = (
    (save, "save_lora"),
    (save, "write_state"),
    (save, "write_scalars"),
    (files, "append_rows"),
)
Write = tuple[str, int]  # which of them, and its how-manyeth call from 1


class Killed(BaseException):
    """Ends a run at once, as SIGKILL would."""


@pytest.fixture
def plan(fake_assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunPlan:
    """Return a run of two epochs of five updates with dropout, on three pictures."""
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


def small_session() -> Session:
    return Session(load_base=lambda *given, **named: SmallBase())


def make_run(plan: RunPlan, sweep_dir: Path) -> RunDir:
    with global_state_kept():
        errors = pipeline.run([replace(plan, sweep_dir=sweep_dir)], small_session())
    for error in errors.values():
        raise error
    return only_run(sweep_dir)


def changed(plan: RunPlan, **groups: Any) -> RunPlan:
    return replace(plan, config=replace(plan.config, **groups))


def only_run(sweep_dir: Path) -> RunDir:
    (folder,) = sweep_dir.iterdir()
    return RunDir(folder)


def make_run_killed(
    plan: RunPlan, sweep_dir: Path, *, before: Write | None
) -> tuple[RunDir, list[Write]]:
    """Make a run until just before one of its writes; return it and the writes it made."""
    made: list[Write] = []

    def dying(name: str, write: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        coming = (name, 1 + sum(one == name for one, _ in made))
        if coming == before:
            raise Killed
        made.append(coming)
        return write(*arguments, **named)

    with pytest.MonkeyPatch.context() as patched:
        for module, name in WRITERS:
            alive = getattr(module, name)
            patched.setattr(module, name, functools.partial(dying, name, alive))
        with contextlib.nullcontext() if before is None else pytest.raises(Killed):
            make_run(plan, sweep_dir)
    return only_run(sweep_dir), made


def loras(run: RunDir) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(run.lora_dir.iterdir())}


def rows(path: Path) -> list[dict[str, Any]]:
    """Return records without what differs between any two runs: seconds, memory and load."""
    return [
        {
            key: value
            for key, value in row.items()
            if not key.startswith("seconds") and key not in ("peak_memory_bytes", "load_average")
        }
        for row in files.read_rows(path)
    ]


def curves(run: RunDir) -> list[list[tuple[int, float]]]:
    """Return what TensorBoard shows of the steps' and the epochs' loss."""
    read = EventAccumulator(str(run.tensorboard_dir), size_guidance={"scalars": 0}).Reload()
    names = set(read.Tags()["scalars"]) & {"loss", "mean_loss"}
    return [
        sorted((event.step, event.value) for event in read.Scalars(name)) for name in sorted(names)
    ]


def test_killed_before_any_write_it_ends_as_if_it_had_not_been(
    plan: RunPlan, tmp_path: Path
) -> None:
    whole, writes = make_run_killed(plan, tmp_path / "whole", before=None)
    assert {name for name, _ in writes} == {name for _, name in WRITERS}
    assert len(loras(whole)) == NUM_EPOCHS + 1
    for number, write in enumerate(writes):
        sweep_dir = tmp_path / str(number)
        killed, made = make_run_killed(plan, sweep_dir, before=write)
        assert made == writes[:number]
        assert make_run(plan, sweep_dir) == killed
        assert loras(killed) == loras(whole), write
        for name in ("steps.jsonl", "epochs.jsonl"):
            assert rows(killed.path / name) == rows(whole.path / name), write
        assert rundir.read_status(killed.path).status == "done"
        # Nothing is twice in TensorBoard either.
        for points in curves(killed):
            assert len(dict(points)) == len(points), write


def test_a_run_made_anew_is_not_twice_in_tensorboard(plan: RunPlan, tmp_path: Path) -> None:
    """What the refusal of a damaged state tells people to do: delete it and start again."""
    whole = make_run(plan, tmp_path / "whole")
    killed, _ = make_run_killed(plan, tmp_path / "killed", before=("write_state", 2))
    for file in killed.state_dir.iterdir():
        file.unlink()
    make_run(plan, tmp_path / "killed")
    assert curves(killed) == curves(whole)


def test_killed_between_its_state_and_tensorboard_a_run_loses_no_curve(
    plan: RunPlan, tmp_path: Path
) -> None:
    whole, writes = make_run_killed(plan, tmp_path / "whole", before=None)
    following = writes[writes.index(("write_state", 1)) + 1]
    killed, _ = make_run_killed(plan, tmp_path / "killed", before=following)
    make_run(plan, tmp_path / "killed")
    assert curves(killed) == curves(whole)


def test_a_run_takes_up_after_its_last_whole_epoch(plan: RunPlan, tmp_path: Path) -> None:
    """The second epoch's LoRA and steps are there, its state is not: it is trained again."""
    run, _ = make_run_killed(plan, tmp_path / "sweep", before=("write_state", 2))
    assert run.lora_path(2).is_file()
    assert [row["epoch"] for row in rows(run.steps_path)] == [1] * 5 + [2] * 5
    _, drawn, begun = make_run_stopped(plan, tmp_path / "sweep", after=None)
    assert (begun, len(drawn)) == ((5, False), 5)


def test_a_state_ahead_of_the_records_brings_them_up_to_it(plan: RunPlan, tmp_path: Path) -> None:
    """The second epoch's state is there, its record is not."""
    run, _ = make_run_killed(plan, tmp_path / "sweep", before=("append_rows", 8))
    assert [row["epoch"] for row in rows(run.epochs_path)] == [1]
    make_run(plan, tmp_path / "sweep")
    assert [row["epoch"] for row in rows(run.epochs_path)] == [1, 2]


def test_a_run_without_its_state_is_made_from_its_beginning(plan: RunPlan, tmp_path: Path) -> None:
    """Also where records and LoRA files of later epochs lie there already."""
    whole = make_run(plan, tmp_path / "whole")
    killed, _ = make_run_killed(plan, tmp_path / "killed", before=("append_rows", 8))
    for file in killed.state_dir.iterdir():
        file.unlink()
    make_run(plan, tmp_path / "killed")
    assert loras(killed) == loras(whole)
    assert rows(killed.steps_path) == rows(whole.steps_path)
    assert rows(killed.epochs_path) == rows(whole.epochs_path)


def test_epochs_whose_lora_files_are_gone_are_left_and_named(
    plan: RunPlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Deleted to save room: only the last one can be written again, and is rendered."""
    run = make_run(plan, tmp_path / "sweep")
    whole = loras(run)
    run.lora_path(1).unlink()
    run.lora_path(2).unlink()
    render = replace(plan.config.render, enabled=True, seeds=(1,), steps=1)
    rendered = changed(plan, render=render)
    make_run(rendered, tmp_path / "sweep")
    screen = capsys.readouterr()
    assert "epoch 1 not rendered: the LoRA file is gone" in screen.out + screen.err
    assert not run.lora_path(1).is_file()
    assert run.lora_path(2).read_bytes() == whole[run.lora_path(2).name]
    assert not list(run.images_dir(1).glob("*.png"))
    assert list(run.images_dir(2).glob("*.png"))
    assert is_finished(replace(rendered, sweep_dir=tmp_path / "sweep"))
    next(run.images_dir(2).glob("*.png")).unlink()
    assert not is_finished(replace(rendered, sweep_dir=tmp_path / "sweep"))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_asked_to_stop_after_any_step_it_goes_on_from_there_to_the_same_bits(
    plan: RunPlan, tmp_path: Path, accumulation: int
) -> None:
    train = replace(plan.config.train, gradient_accumulation=accumulation)
    plan = changed(plan, train=train)
    whole, drawn, _ = make_run_stopped(plan, tmp_path / "whole", after=None)
    num_steps = len(drawn)
    assert num_steps == {1: 10, 2: 6}[accumulation]
    for step in range(1, num_steps + 1):
        sweep_dir = tmp_path / str(step)
        run, before, _ = make_run_stopped(plan, sweep_dir, after=step)
        is_within = step % (num_steps // NUM_EPOCHS) != 0
        assert (run.state_dir / "midway.pt").is_file() == is_within
        run, after, begun = make_run_stopped(plan, sweep_dir, after=None)
        assert before + after == drawn, step
        if step < num_steps:
            assert begun == (step, is_within)
        assert loras(run) == loras(whole), step
        for name in ("steps.jsonl", "epochs.jsonl"):
            assert rows(run.path / name) == rows(whole.path / name), step
        assert not (run.state_dir / "midway.pt").exists()


def test_a_damaged_point_inside_an_epoch_costs_that_epochs_steps_only(
    plan: RunPlan, tmp_path: Path
) -> None:
    whole = make_run(plan, tmp_path / "whole")
    run, _, _ = make_run_stopped(plan, tmp_path / "cut", after=8)
    path = run.state_dir / "midway.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    _, after, begun = make_run_stopped(plan, tmp_path / "cut", after=None)
    assert (begun, len(after)) == ((5, False), 5)
    assert loras(run) == loras(whole)
    assert path.with_name("midway.pt.damaged").is_file()
    told = json.loads((run.path / "provenance.json").read_text())["notices"]
    assert any("midway.pt.damaged" in one and "trained again" in one for one in told)


def make_run_stopped(
    plan: RunPlan, sweep_dir: Path, *, after: int | None
) -> tuple[RunDir, list[float], tuple[int, bool]]:
    """Make a run, asked to stop after a step; return it and a library's draws at every step.

    Also return the step it began at, and whether inside an epoch.
    """
    drawn: list[float] = []
    begun: list[tuple[int, bool]] = []

    def hear(bar: progress.RunProgress, record: StepRecord) -> None:
        draws = (torch.rand(()).item(), random.random(), np.random.rand())
        drawn.append(sum(draws))
        if record.step == after:
            interrupt._hear(signal.SIGTERM, None)

    def noting(base: SmallBase, lanes: list[Lane], *given: Any, **named: Any) -> Any:
        begun.append((lanes[0].step, bool(lanes[0].partial.rows)))
        return train(base, lanes, *given, **named)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(progress.RunProgress, "advance", hear)
        patched.setattr(pipeline, "train", noting)
        patched.setattr(interrupt, "_ASKED", interrupt._Asked())
        stops = contextlib.nullcontext() if after is None else pytest.raises(StopAskedError)
        with stops:
            make_run(plan, sweep_dir)
    return only_run(sweep_dir), drawn, begun[0]


def test_trackers_change_no_weight_and_a_failing_one_no_status(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Fake):
        breaks_at = "log"

    class Whole(Fake):
        told: list[tuple[int, dict[str, float]]] = []

    monkeypatch.setattr(tracking, "WandBTracker", Broken)
    monkeypatch.setattr(tracking, "TrackioTracker", Whole)
    tracker = replace(plan.config.tracker, log_with=("wandb", "trackio"))
    plain = make_run(plan, tmp_path / "plain")
    watched = make_run(changed(plan, tracker=tracker), tmp_path / "watched")
    assert loras(watched) == loras(plain)
    assert rundir.read_status(watched.path).status == "done"
    steps = [row["step"] for row in files.read_rows(watched.steps_path)]
    assert [step for step, _ in Whole.told] == steps
    assert "mean_loss" in Whole.told[-1][1]
    notices = files.read_json(watched.provenance_path)["notices"]
    assert any("wandb logging is disabled" in notice for notice in notices)


def test_two_runs_in_one_pass_leave_the_folders_of_two_single_ones(
    plan: RunPlan, tmp_path: Path
) -> None:
    """Also where one of them was killed before, and where one ends in NaN."""
    render = replace(plan.config.render, enabled=True, seeds=(1,), steps=1)
    first = changed(plan, render=render)
    second = replace(
        changed(first, lr_mult=0.5, network=replace(plan.config.network, dim=3)),
        name="other",
        run_index=1,
    )
    for each in (first, second):
        make_run(each, tmp_path / each.name)
    make_run_killed(second, tmp_path / "together", before=("write_state", 2))
    together = [replace(each, sweep_dir=tmp_path / "together") for each in (first, second)]
    with global_state_kept():
        assert pipeline.run(together, small_session()) == {}
    for each in together:
        alone, run = only_run(tmp_path / each.name), RunDir(each.run_dir)
        assert contents(run) == contents(alone)
        assert loras(run) == loras(alone)
        assert rundir.read_status(run.path).status == "done"
        for name in ("steps.jsonl", "epochs.jsonl", "layers.jsonl", "files.jsonl"):
            assert rows(run.path / name) == rows(alone.path / name), name


def contents(run: RunDir) -> list[str]:
    """Return the names of everything in a run's folder but TensorBoard's, which hold the time."""
    names = (path.relative_to(run.path) for path in run.path.rglob("*") if path.is_file())
    return sorted(str(name) for name in names if name.parts[0] != "tensorboard")


def test_a_run_that_diverges_leaves_the_pass_and_the_other_ends_as_alone(
    plan: RunPlan, tmp_path: Path
) -> None:
    wild = replace(changed(plan, lr_mult=1e30), name="wild", run_index=1)
    alone = make_run(plan, tmp_path / "alone")
    together = [replace(each, sweep_dir=tmp_path / "together") for each in (plan, wild)]
    with global_state_kept():
        errors = pipeline.run(together, small_session())
    assert {name: type(error) for name, error in errors.items()} == {"wild": DivergedError}
    assert loras(RunDir(together[0].run_dir)) == loras(alone)
    assert rundir.read_status(together[0].run_dir).status == "done"
