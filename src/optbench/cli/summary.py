"""The last words of a command: which runs are not done, why in one line each, and what goes on."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from optbench.storage import locks, rundir

_INDENT = "  "
_SHORTEST = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone:
    """One run that is not done."""

    name: str
    status: rundir.FolderStatus
    why: str  # one line


def undone_runs(run_dirs: Iterable[Path]) -> list[Undone]:
    """Return the runs that are not done, each with its reason's first line."""
    found = []
    for run_dir in run_dirs:
        record = rundir.read_status(run_dir)
        if record.status == "done":
            continue
        why = next(iter(record.reason.splitlines()), "")
        if record.status == "running":
            holder = locks.lock_holder(run_dir)
            why = f"{holder} is making it" if holder else "another process is making it"
        elif record.status == "pending":
            why = "not begun"
        found.append(Undone(name=run_dir.name, status=record.status, why=why))
    return found


def last_words(
    undone: Sequence[Undone], *, num_runs: int, arguments: Sequence[str], width: int | None
) -> list[str]:
    """Return the lines to leave on the screen; runs with one reason stand together under it.

    Args:
        undone: The runs that are not done.
        num_runs: How many were asked for.
        arguments: What was typed behind `python -m optbench`.
        width: Columns of the screen; None for a file or a pipe, where nothing is cut.
    """
    if not undone:
        return []
    lines = [f"{len(undone)} of {num_runs} runs are not done:"]
    groups: dict[tuple[str, str], list[str]] = {}
    for one in undone:
        groups.setdefault((one.status, one.why), []).append(one.name)
    for (status, why), names in groups.items():
        lines.append(_cut(f"{_INDENT}{status}: {why}", width))
        lines += [f"{_INDENT * 3}{name}" for name in names]  # whole, to be searched for
    if any(one.status in ("failed", "diverged", "out_of_memory", "skipped") for one in undone):
        lines.append("What to do about each stands in its status.json and in the report.")
    return [*lines, *how_to_go_on(arguments)]


def how_to_go_on(arguments: Sequence[str]) -> list[str]:
    """Return the command that makes what is not done, whole, to be copied."""
    return [
        "To go on with them (what is done is kept):",
        f"{_INDENT}python -m optbench {shlex.join(arguments)}".rstrip(),
    ]


def _cut(line: str, width: int | None) -> str:
    if width is None or len(line) <= max(width, _SHORTEST):
        return line
    return f"{line[: max(width, _SHORTEST) - 3]}..."
