"""Final summary: unfinished runs, one-line reasons, and the command that resumes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from optbench.storage import locks, resources, rundir
from optbench.storage.secrets import hide_in_arguments

_INDENT = "  "
_SHORTEST = 40


@dataclass(frozen=True, slots=True)
class UnfinishedRun:
    """One run that is not done."""

    name: str
    status: rundir.FolderStatus
    reason: str  # one line
    fix: str = ""  # what to do about it, one line; "" where the reason does not say


def unfinished_runs(run_dirs: Iterable[Path]) -> list[UnfinishedRun]:
    """Return the runs that have not come as far as they were to, each with its reason and a fix."""
    unfinished = []
    for run_dir in run_dirs:
        record = rundir.read_status(run_dir)
        if record.status in ("done", "stopped"):
            continue
        reason, *more = record.reason.splitlines() or [""]
        fix = next((line.strip() for line in more if line.strip().startswith("->")), "")
        if record.status == "running":
            reason = f"{locks.lock_holder(run_dir) or 'another process'} is working on it"
        elif record.status == "pending":
            reason = "not started"
        unfinished.append(UnfinishedRun(run_dir.name, record.status, reason, fix))
    return unfinished


def summary_lines(
    unfinished: Sequence[UnfinishedRun], *, num_runs: int, resume: str, width: int | None
) -> list[str]:
    """Return the lines to leave on the screen; runs with the same reason stand together under it.

    Args:
        unfinished: The runs that are not done.
        num_runs: How many the command line asks for.
        resume: The command that resumes them.
        width: Columns of the screen; None for a file or a pipe, where nothing is cut.
    """
    if not unfinished:
        return []
    are = "run is" if num_runs == 1 else "runs are"
    lines = [f"{len(unfinished)} of {num_runs} {are} not done:"]
    by_reason: dict[tuple[str, str, str], list[str]] = {}
    for run in unfinished:
        by_reason.setdefault((run.status, run.reason, run.fix), []).append(run.name)
    for (status, reason, fix), names in by_reason.items():
        line = f"{_INDENT}{status}: {reason}"
        if width is not None and len(line) > max(width, _SHORTEST):
            line = f"{line[: max(width, _SHORTEST) - 3]}..."
        lines.append(line)
        lines += [f"{_INDENT * 3}{name}" for name in names]  # whole, to be searched for
        lines += [f"{_INDENT}{fix}"] if fix else []
    return [*lines, "Resume with (finished runs are skipped):", f"{_INDENT}{resume}"]


def resume_command(name: str, arguments: Sequence[str]) -> str:
    """Return the command that resumes unfinished runs, whole, to be copied; secrets are `***`.

    Args:
        name: The command; "train" for a training.
        arguments: What was typed behind it.
    """
    typed = [word for word in arguments if not word.startswith("hydra.sweep.dir=")]
    return resources.command_line(name, *hide_in_arguments(typed))
