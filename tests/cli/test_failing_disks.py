"""A disk that fails around the runs: words, a command to go on with, an exit code, no traceback."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from optbench.cli import command, verify
from optbench.cli import main as cli
from optbench.config.compose import CommandPlan
from optbench.errors import ConfigError, DamagedFileError, Problem
from optbench.launch import guard
from optbench.records import Status
from optbench.storage import files, locks, rundir
from optbench.storage.rundir import RunDir
from tests.builders import image_runs

FULL = OSError(errno.ENOSPC, "No space left on device", "runs/a/file")


@dataclass(frozen=True)
class Run:
    overrides: tuple[str, ...]
    run_dir: Path


def plan_of(*run_dirs: Path) -> CommandPlan[Run]:
    return CommandPlan(
        runs=tuple(Run(overrides=(), run_dir=run_dir) for run_dir in run_dirs),
        sweep_dir=run_dirs[0].parent,
        is_complete=True,
        is_listed=False,
        launch=None,
        is_local=True,
    )


def done(run_dir: Path) -> Status:
    rundir.write_status(run_dir, "done")
    return "done"


def raising(error: BaseException) -> Callable[..., object]:
    def work(*ignored: object) -> object:
        raise error

    return work


def run_command(
    plan: CommandPlan[Run],
    *,
    work: Callable[[CommandPlan[Run]], object] = lambda plan: [done(r.run_dir) for r in plan.runs],
    finish: Callable[[CommandPlan[Run]], object] = lambda plan: "page",
) -> int:
    return command.run_command(
        "resize",
        ["source=my file.safetensors"],
        config_name="resize",
        compose=lambda words: plan,
        work=work,
        finish=finish,  # type: ignore[arg-type]
    )


def test_a_disk_that_fails_before_the_runs_is_told_with_what_is_undone_and_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(plan_of(tmp_path / "a"), work=raising(FULL)) == 1
    err = capsys.readouterr().err
    assert "No space left on device (runs/a/file)" in err
    assert "-> the disk is full; make room" in err
    assert "1 of 1 run is not done" in err
    assert "optbench resize 'source=my file.safetensors'" in err
    assert "Traceback" not in err


def test_a_disk_that_fails_after_the_runs_keeps_them_and_names_the_same_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(plan_of(tmp_path / "a"), finish=raising(FULL)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "after the runs" in err
    assert "the same command (what is finished is kept)" in err
    assert "optbench resize 'source=my file.safetensors'" in err


def test_a_run_that_cannot_be_locked_fails_and_the_others_are_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = tmp_path / "bad", tmp_path / "good"
    acquire = locks.acquire

    def full_for_bad(run_dir: Path) -> locks.RunLock | None:
        if run_dir == bad:
            raise FULL
        return acquire(run_dir)

    monkeypatch.setattr(locks, "acquire", full_for_bad)

    def work(plan: CommandPlan[Run]) -> None:
        for run in plan.runs:
            guard.guard(run.run_dir, lambda run=run: done(run.run_dir))  # type: ignore[misc]

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", raising(FULL))
        patch.setattr(rundir, "write_json", raising(FULL))
        guard.guard(bad, lambda: "done")
    assert rundir.read_status(bad).status == "failed"  # though no disk took it
    assert run_command(plan_of(bad, good), work=work) == 1
    assert rundir.read_status(good).status == "done"
    err = capsys.readouterr().err
    assert "failed: OSError: No space left on device" in err
    assert "-> the disk is full; make room, then the same command" in err


def test_a_status_that_no_disk_took_is_forgotten_when_one_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(rundir, "write_json", raising(FULL))
        assert guard.guard(tmp_path / "a", raising(ValueError("no"))) == "failed"  # type: ignore[arg-type]
    assert "ValueError: no" in rundir.read_status(tmp_path / "a").reason
    assert guard.guard(tmp_path / "a", lambda: done(tmp_path / "a")) == "done"
    assert rundir.read_status(tmp_path / "a").status == "done"


def test_a_run_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "sweep" / "run"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "elsewhere")
    assert guard.guard(link, lambda: done(link)) == "failed"
    assert "a symbolic link to" in rundir.read_status(link).reason
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("name", ["images", "images/epoch-0001", "state", "claims"])
def test_a_folder_of_a_run_that_is_a_link_is_not_written_into(tmp_path: Path, name: str) -> None:
    run_dir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (run_dir / name).parent.mkdir(parents=True)
    (run_dir / name).symlink_to(elsewhere)
    assert guard.guard(run_dir, lambda: done(run_dir)) == "failed"
    assert f"{name}: found a symbolic link" in rundir.read_status(run_dir).reason
    assert list(elsewhere.iterdir()) == []


def test_a_folder_that_vanishes_under_a_run_is_no_other_worker(tmp_path: Path) -> None:
    import shutil

    run_dir = tmp_path / "run"

    def work() -> Status:
        shutil.rmtree(run_dir)
        return done(run_dir)

    assert guard.guard(run_dir, work) == "failed"
    assert "its folder was removed while it was in use" in rundir.read_status(run_dir).reason


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (FULL, 1, "-> the disk is full; make room"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 1, "repair its rights"),
        (OSError(errno.EROFS, "Read-only file system", "x"), 1, "the disk is read-only"),
        (OSError("no number"), 1, "no number"),
        (KeyboardInterrupt(), 130, "Stopped by Ctrl-C."),
        (ConfigError(Problem("a", "b", "c", "d")), 2, "a: found b; expected c."),
        (DamagedFileError(Problem("f", "b", "c", "d")), 2, "f: found b"),
    ],
)
def test_every_command_has_one_boundary(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(verify, "main", raising(error))
    assert cli.main(["verify", "my runs"]) == code
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    if code == 1:
        assert "optbench verify 'my runs'" in err


def test_a_reader_that_leaves_is_no_error(capfd: pytest.CaptureFixture[str]) -> None:
    code = command.in_words("report", [], raising(BrokenPipeError(errno.EPIPE, "x")))  # type: ignore[arg-type]
    assert code == 141
    assert capfd.readouterr().err == ""


def finished(folder: Path) -> RunDir:
    """Return a finished training with all of its records."""
    run = image_runs.make_run(folder)
    files.write_sealed_text(run.config_path, run.config_path.read_text() + "optimizer: {name: a}\n")
    files.append_rows(run.steps_path, [{"epoch": 1, "step": 1}, {"epoch": 2, "step": 2}])
    files.append_rows(run.epochs_path, [{"epoch": 1}, {"epoch": 2}])
    files.append_rows(run.layers_path, [{"epoch": 1}, {"epoch": 2}])
    files.append_rows(run.files_path, [])
    files.write_rows(run.files_path, [{"epoch": 1, "file": "x", "sha256": "0"}])
    files.write_json(run.provenance_path, {"total_steps": 2})
    rundir.write_status(run.path, "done")
    return run


@pytest.mark.parametrize(
    "name", ["steps.jsonl", "epochs.jsonl", "layers.jsonl", "files.jsonl", "provenance.json"]
)
def test_a_finished_run_whose_records_are_gone_is_not_done(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished(tmp_path)
    assert verify.main([str(run.path)]) == 0
    (run.path / name).unlink()
    for _ in range(2):  # marked the first time, and seen again
        assert verify.main([str(run.path)]) == 1
        assert f"{name}: it is gone" in capsys.readouterr().out
    assert rundir.read_status(run.path).status == "interrupted"


def test_records_cut_off_after_a_whole_line_are_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished(tmp_path)
    files.write_rows(run.steps_path, files.read_rows(run.steps_path)[:1])
    assert verify.main([str(run.path)]) == 1
    assert "steps.jsonl: 1 of 2 steps" in capsys.readouterr().out


def test_a_run_of_an_older_version_without_checksums_is_done(tmp_path: Path) -> None:
    run = finished(tmp_path)
    run.epochs_path.write_text('{"epoch":1}\n{"epoch":2}\n')
    run.files_path.unlink()
    assert verify.main([str(run.path)]) == 0


def test_verify_reads_plots_and_class_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = image_runs.save(tmp_path / "renders" / "cells" / "a.png", image_runs.noise(1))
    image = image_runs.save(tmp_path / "classes" / "1_girl" / "1.png", image_runs.noise(2))
    files.write_json(tmp_path / "classes" / ".regularize" / "1_girl" / "settings.json", {})
    places = [str(tmp_path / "renders"), str(tmp_path / "classes")]
    assert verify.main(places) == 0
    for path in (cell, image):
        content = bytearray(path.read_bytes())
        content[60] ^= 1
        path.write_bytes(content)
    assert verify.main(places) == 1
    out = capsys.readouterr().out
    assert "a.png: not a whole PNG" in out
    assert "1.png: not a whole PNG" in out
    assert "2 folders of images read, 2 corrupt images" in out


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_run_that_may_not_be_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished(tmp_path)
    run.steps_path.chmod(0)
    assert verify.main([str(run.path)]) == 1
    assert "cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["steps.jsonl", "epochs.jsonl", "layers.jsonl", "files.jsonl"])
def test_a_finished_record_never_ends_within_a_line(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = finished(tmp_path).path / name
    path.write_bytes(path.read_bytes()[:-5])
    assert verify.main([str(path.parent)]) == 1
    out = capsys.readouterr().out
    assert f"{name}: its last line is cut off" in out
    assert "-> give the commands that made them again" in out


def test_a_named_pipe_among_config_files_is_refused_and_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "optimizer").mkdir()
    os.mkfifo(tmp_path / "optimizer" / "mine.yaml")
    assert cli.main(["plan", f"--config-dir={tmp_path}", "optimizer=mine"]) == 2
    err = capsys.readouterr().err
    assert "mine.yaml: found not a file: a named pipe has its name; expected a YAML file" in err
