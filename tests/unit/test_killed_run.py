"""A run killed before any of its writes ends, run again, as one that was never killed.

The real pipeline on the small base; only the base and the run's name are given to it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)
from tests.unit.small_training import SmallBase, global_state_kept
from tests.unit.test_trackers import Fake

from optbench import allocator, pipeline, rundir
from optbench.composition import compose_runs
from optbench.errors import DamagedFileError
from optbench.options import RunConfig
from optbench.records import SweepPlace
from optbench.rundir import RunDir
from optbench.train import Course, train_epochs

NUM_EPOCHS = 2
# Everything that writes into a run's folder while it trains, as the pipeline calls it.
WRITERS = (
    (pipeline, "save_lora"),
    (pipeline, "write_state"),
    (pipeline, "write_scalars"),
    (rundir, "append_rows"),
)
Write = tuple[str, int]  # which of them, and its how-manyeth call from 1


class Killed(BaseException):
    """Ends a run at once, as SIGKILL would."""


@pytest.fixture
def config(fake_assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Return a run of two epochs of five updates with dropout, on three pictures."""
    monkeypatch.setattr(pipeline, "_base", lambda *about: SmallBase())
    monkeypatch.setattr(allocator, "keep_freed_memory", lambda: False)  # lasts for the process
    (asked,) = compose_runs(
        [
            f"runs_dir={tmp_path / 'runs'}",
            f"cache_dir={tmp_path / 'cache'}",
            f"train.epochs={NUM_EPOCHS}",
            "network.dim=2",
            "dropout=network",
            "render=off",
        ]
    ).runs
    # A third of the time of so small a run; it is the same each time.
    monkeypatch.setattr(pipeline, "identify", lambda config: asked.identity)
    return asked.config


def make_run(config: RunConfig, sweep_dir: Path) -> RunDir:
    with global_state_kept():
        pipeline.run_one(config, SweepPlace(sweep_dir=sweep_dir, run_index=0, num_runs=1))
    return only_run(sweep_dir)


def only_run(sweep_dir: Path) -> RunDir:
    (folder,) = sweep_dir.iterdir()
    return RunDir(folder)


def make_run_killed(
    config: RunConfig, sweep_dir: Path, *, before: Write | None
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
            make_run(config, sweep_dir)
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
        for row in rundir.read_rows(path)
    ]


def curves(run: RunDir) -> list[list[tuple[int, float]]]:
    """Return what TensorBoard shows of the steps' and the epochs' loss."""
    read = EventAccumulator(str(run.tensorboard_dir), size_guidance={"scalars": 0}).Reload()
    names = set(read.Tags()["scalars"]) & {"loss", "mean_loss"}
    return [
        sorted((event.step, event.value) for event in read.Scalars(name)) for name in sorted(names)
    ]


def test_killed_before_any_write_it_ends_as_if_it_had_not_been(
    config: RunConfig, tmp_path: Path
) -> None:
    whole, writes = make_run_killed(config, tmp_path / "whole", before=None)
    assert {name for name, _ in writes} == {name for _, name in WRITERS}
    assert len(loras(whole)) == NUM_EPOCHS + 1
    for number, write in enumerate(writes):
        sweep_dir = tmp_path / str(number)
        killed, made = make_run_killed(config, sweep_dir, before=write)
        assert made == writes[:number]
        assert make_run(config, sweep_dir) == killed
        assert loras(killed) == loras(whole), write
        for name in ("steps.jsonl", "epochs.jsonl"):
            assert rows(killed.path / name) == rows(whole.path / name), write
        assert rundir.read_status(killed.path).status == "done"
        # Nothing is twice in TensorBoard either.
        for points in curves(killed):
            assert len(dict(points)) == len(points), write


def test_a_run_made_anew_is_not_twice_in_tensorboard(config: RunConfig, tmp_path: Path) -> None:
    """What the refusal of a damaged state tells people to do: delete it and start again."""
    whole = make_run(config, tmp_path / "whole")
    killed, _ = make_run_killed(config, tmp_path / "killed", before=("write_state", 2))
    for file in killed.state_dir.iterdir():
        file.unlink()
    make_run(config, tmp_path / "killed")
    assert curves(killed) == curves(whole)


def test_killed_between_its_state_and_tensorboard_a_run_loses_no_curve(
    config: RunConfig, tmp_path: Path
) -> None:
    whole, writes = make_run_killed(config, tmp_path / "whole", before=None)
    following = writes[writes.index(("write_state", 1)) + 1]
    killed, _ = make_run_killed(config, tmp_path / "killed", before=following)
    make_run(config, tmp_path / "killed")
    assert curves(killed) == curves(whole)


def test_a_run_takes_up_after_its_last_whole_epoch(config: RunConfig, tmp_path: Path) -> None:
    """The second epoch's LoRA and steps are there, its state is not: it is trained again."""
    run, _ = make_run_killed(config, tmp_path / "sweep", before=("write_state", 2))
    assert run.lora_path(2).is_file()
    assert [row["epoch"] for row in rows(run.steps_path)] == [1] * 5 + [2] * 5
    trained: list[Course] = []

    def noting(*given: Any, course: Course, **named: Any) -> Any:
        trained.append(course)
        return train_epochs(*given, course=course, **named)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pipeline, "train_epochs", noting)
        make_run(config, tmp_path / "sweep")
    (course,) = trained
    assert (course.first_epoch, course.first_step, course.total_steps) == (2, 5, 10)


def test_a_state_ahead_of_the_records_brings_them_up_to_it(
    config: RunConfig, tmp_path: Path
) -> None:
    """The second epoch's state is there, its record is not."""
    run, _ = make_run_killed(config, tmp_path / "sweep", before=("append_rows", 4))
    assert [row["epoch"] for row in rows(run.epochs_path)] == [1]
    make_run(config, tmp_path / "sweep")
    assert [row["epoch"] for row in rows(run.epochs_path)] == [1, 2]


def test_a_run_without_its_state_is_made_from_its_beginning(
    config: RunConfig, tmp_path: Path
) -> None:
    """Also where records and LoRA files of later epochs lie there already."""
    whole = make_run(config, tmp_path / "whole")
    killed, _ = make_run_killed(config, tmp_path / "killed", before=("append_rows", 4))
    for file in killed.state_dir.iterdir():
        file.unlink()
    make_run(config, tmp_path / "killed")
    assert loras(killed) == loras(whole)
    assert rows(killed.steps_path) == rows(whole.steps_path)
    assert rows(killed.epochs_path) == rows(whole.epochs_path)


def test_a_damaged_state_stops_the_run_and_touches_nothing(
    config: RunConfig, tmp_path: Path
) -> None:
    run, _ = make_run_killed(config, tmp_path / "sweep", before=("write_state", 2))
    (state,) = run.state_dir.iterdir()
    state.write_bytes(state.read_bytes()[:-100])
    before = (loras(run), rows(run.steps_path), rows(run.epochs_path))
    with pytest.raises(DamagedFileError, match="delete this file"):
        make_run(config, tmp_path / "sweep")
    assert (loras(run), rows(run.steps_path), rows(run.epochs_path)) == before


def test_rendering_what_the_folder_lacks_needs_the_lora_file(
    config: RunConfig, tmp_path: Path
) -> None:
    """A state ahead of the LoRA files: they are named, not made up."""
    run = make_run(config, tmp_path / "sweep")
    run.lora_path(2).unlink()
    render = replace(config.render, enabled=True, seeds=(1,), steps=1)
    with pytest.raises(DamagedFileError) as caught:
        make_run(replace(config, render=render), tmp_path / "sweep")
    assert caught.value.problems[0].where == str(run.lora_path(2))


def test_trackers_change_no_weight_and_a_failing_one_no_status(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Fake):
        breaks_at = "log"

    class Whole(Fake):
        told: list[tuple[int, dict[str, float]]] = []

    monkeypatch.setattr(tracking, "WandBTracker", Broken)
    monkeypatch.setattr(tracking, "TrackioTracker", Whole)
    asked = replace(config.tracker, log_with=("wandb", "trackio"))
    plain = make_run(config, tmp_path / "plain")
    watched = make_run(replace(config, tracker=asked), tmp_path / "watched")
    assert loras(watched) == loras(plain)
    assert rundir.read_status(watched.path).status == "done"
    steps = [row["step"] for row in rundir.read_rows(watched.steps_path)]
    assert [step for step, _ in Whole.told] == steps
    assert "mean_loss" in Whole.told[-1][1]
    notices = rundir.read_json(watched.provenance_path)["notices"]
    assert any("tracker wandb is told nothing more" in notice for notice in notices)
