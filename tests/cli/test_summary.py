"""The last lines of a command: unfinished runs, reasons, and how to resume."""

from __future__ import annotations

from pathlib import Path

from optbench.cli.summary import UnfinishedRun, resume_command, summary_lines, unfinished_runs
from optbench.storage import locks, resources, rundir


def test_runs_with_one_reason_stand_together_above_the_command_that_resumes() -> None:
    needs, fix = "lion needs lion-pytorch", "-> pip install lion-pytorch"
    unfinished = [
        UnfinishedRun("a-run-with-a-long-name-12345678", "skipped", needs, fix),
        UnfinishedRun("b", "failed", "x" * 200),
        UnfinishedRun("c", "skipped", needs, fix),
    ]
    resume = resume_command("train", ["-m", "a=[1, 2]", "hydra.sweep.dir=x"])
    assert resume == f"{resources.program()} -m 'a=[1, 2]'"
    for width in (80, 120):
        lines = summary_lines(unfinished, num_runs=40, resume="optbench", width=width)
        assert lines[0] == "3 of 40 runs are not done:"
        assert max(len(line) for line in lines) == width
        assert lines[1:5] == [
            "  skipped: lion needs lion-pytorch",
            "      a-run-with-a-long-name-12345678",
            "      c",
            "  -> pip install lion-pytorch",
        ]
        assert lines[-2:] == ["Resume with (finished runs are skipped):", "  optbench"]
    whole = summary_lines(unfinished, num_runs=40, resume="optbench", width=None)
    assert any("x" * 200 in line for line in whole)
    assert summary_lines([], num_runs=4, resume="optbench", width=80) == []


def test_an_unfinished_run_says_why_in_one_line(tmp_path: Path) -> None:
    rundir.write_status(tmp_path / "done", "done")
    rundir.write_status(tmp_path / "bad", "failed", "first line\n    -> do this\nthird")
    with locks.hold_lock(tmp_path / "mine"):
        rundir.write_status(tmp_path / "mine", "running")
        runs = unfinished_runs(tmp_path / name for name in ("done", "bad", "mine", "never"))
    assert [run.fix for run in runs] == ["-> do this", "", ""]
    assert [(run.status, run.reason.partition(" on ")[2] or run.reason) for run in runs] == [
        ("failed", "first line"),
        ("running", "this machine is working on it"),
        ("pending", "not started"),
    ]
