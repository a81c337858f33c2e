"""What is left of a run that went wrong: words that help, an objective, the last screen."""

from __future__ import annotations

import errno
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from optbench.errors import OptbenchError
from optbench.launch import guard
from optbench.launch.exit_status import judge
from optbench.launch.objective import objective
from optbench.records import Status
from optbench.storage import files, rundir


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (MemoryError(), "out_of_memory", "-> try launch.isolation=process"),
        (RuntimeError("CUDA error: out of memory"), "out_of_memory", "gradient_checkpointing"),
        (
            RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"),
            "out_of_memory",
            "training changes no setting",
        ),
        (RuntimeError("other"), "failed", "RuntimeError: other"),
        (ModuleNotFoundError("No module named 'b'", name="b.c"), "skipped", "pip install b,"),
        (ImportError("circular"), "failed", "circular"),
        (OSError(errno.ENOSPC, "No space left", "f"), "failed", "the disk is full; make room"),
        (OSError(errno.EDQUOT, "Quota", "f"), "failed", "quota of this disk"),
        (PermissionError(errno.EACCES, "Denied", "f"), "failed", "may not be written to"),
        (OSError(errno.ESTALE, "Stale", "f"), "failed", "mount it again"),
        (OSError("no number"), "failed", "no number"),
    ],
)
def test_an_exception_becomes_a_status_and_says_what_to_do(
    error: Exception, status: str, said: str
) -> None:
    found, reason = judge(error)
    assert found == status
    assert said in reason


def finished(run_dir: Path, status: Status, **row: Any) -> Path:
    files.append_rows(run_dir / "epochs.jsonl", [{"epoch": 2, **row}, {"epoch": 1, "mean_loss": 9}])
    rundir.write_status(run_dir, status)
    return run_dir


def test_the_objective_is_the_best_measured_loss_of_the_last_epoch(tmp_path: Path) -> None:
    losses = {"mean_loss": 3.0, "validation_loss/training": 2.0, "validation_loss/held_out": 1.0}
    for index, (key, value) in enumerate(losses.items()):
        known = dict(list(losses.items())[: index + 1])
        assert objective(finished(tmp_path / key.replace("/", "_"), "done", **known)) == value
    known |= {"validation_loss/held_out": -1.0, "validation_loss/others": 0.5}
    assert objective(finished(tmp_path / "others", "done", **known)) == pytest.approx(-0.875)


def test_a_broken_lora_has_the_worst_objective_once_it_is_finished(tmp_path: Path) -> None:
    known = {"mean_loss": 3.0, "validation_loss/held_out": -1.0, "validation_loss/others": 0.7}
    assert objective(finished(tmp_path / "broken", "done", **known)) == math.inf
    assert objective(finished(tmp_path / "early", "stopped", **known), 2) == pytest.approx(-0.825)


def test_a_rung_has_the_loss_of_its_own_epoch(tmp_path: Path) -> None:
    run = finished(tmp_path / "stopped", "stopped", mean_loss=3.0)
    assert math.isnan(objective(run))
    assert objective(run, 1) == 9
    assert objective(run, 2) == 3


def test_a_run_without_an_end_has_no_objective_and_a_bad_one_the_worst(tmp_path: Path) -> None:
    assert math.isnan(objective(tmp_path / "nothing"))
    bad: tuple[Status, ...] = ("diverged", "failed", "out_of_memory", "skipped")
    for status in bad:
        assert objective(finished(tmp_path / status, status, mean_loss=1.0)) == math.inf
    assert math.isnan(objective(finished(tmp_path / "cut", "interrupted", mean_loss=1.0)))
    assert objective(finished(tmp_path / "black", "done", mean_loss=None)) == math.inf


def asked(folder: Path) -> Any:
    config = SimpleNamespace(cache_dir=str(folder / "cache"))
    return SimpleNamespace(sweep_dir=folder / "runs", runs=(SimpleNamespace(config=config),))


def test_folders_that_can_be_written_to_are_made_and_left_empty(tmp_path: Path) -> None:
    guard.check_writable(asked(tmp_path))
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["cache", "runs"]


def test_folders_that_cannot_be_made_are_told_together(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OptbenchError) as caught:
        guard.check_writable(asked(tmp_path / "file"))
    first, second = caught.value.problems
    assert first.where.startswith("runs_dir=")
    assert second.where.startswith("cache_dir=")
    assert "not a directory" in first.found


LISTENER = """
import os, signal, sys
from optbench.training import interrupt
signal.signal(signal.SIGTERM, signal.SIG_IGN)
said = []
with interrupt.listening():
    try:
        with interrupt.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            said.append("waits")
            assert interrupt.is_asked()
            with interrupt.at_once():
                said.append("never")
    except interrupt.StopAskedError as stop:
        said.append(stop.name)
    interrupt._ASKED.signal_number = None
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        said.append("never")
    except interrupt.StopAskedError:
        said.append("at once")
    interrupt._ASKED.signal_number = None
    try:
        with interrupt.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            said.append("never")
    except interrupt.StopAskedError:
        said.append("the second at once")
assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
print(said)
"""


def test_a_stop_waits_for_the_steps_end_and_for_nothing_else() -> None:
    source = str(Path(guard.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", LISTENER],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": source},
        check=False,
    )
    assert done.stdout == "['waits', 'SIGTERM', 'at once', 'the second at once']\n", done.stderr


HOSTED = """
import os, signal, sys
from pathlib import Path
from optbench.launch import guard
from optbench.storage import rundir
from optbench.training import interrupt
run = Path(sys.argv[1])
def requeue(number, frame):
    print("queued again after", rundir.read_status(run).status, flush=True)
    sys.exit(7)
requeue.__module__ = "submitit.core.job_environment"
signal.signal(signal.SIGUSR2, requeue)
def work():
    rundir.write_status(run, "running")
    with interrupt.deferred():
        os.kill(os.getpid(), getattr(signal, sys.argv[2]))
        print("step ended", flush=True)
        interrupt.raise_if_asked()
print(guard.guard(run, work))
"""


@pytest.mark.parametrize(
    ("number", "code", "last"),
    [("SIGUSR2", 7, "queued again after interrupted"), ("SIGTERM", 0, "interrupted")],
)
def test_on_a_cluster_the_run_is_saved_before_its_job_is_queued_again(
    tmp_path: Path, number: str, code: int, last: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HOSTED, str(tmp_path / "run"), number],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(Path(guard.__file__).parents[2])},
        check=False,
    )
    assert (done.returncode, done.stdout.splitlines()) == (code, ["step ended", last]), done.stderr
    assert rundir.read_status(tmp_path / "run").status == "interrupted"
