"""`optbench report [RUNS_DIR ...]`: tables, sheets and page again, from the files alone."""

from __future__ import annotations

from collections.abc import Sequence

from optbench.analysis import no_runs, sweep_dirs
from optbench.cli.command import DONE, folders_only, refuse
from optbench.errors import OptbenchError, Problem
from optbench.report import build_report


def main(arguments: Sequence[str]) -> int:
    """Print the path of every report; return 0, or 2 with every problem on the standard error."""
    problems: list[Problem] = []
    try:
        folders = folders_only(arguments, default="runs")
    except OptbenchError as error:
        return refuse(error.problems)
    for folder in folders:
        try:
            sweeps = sweep_dirs(folder)
            if not sweeps:
                raise no_runs(folder)
            for sweep_dir in sweeps:
                print(build_report(sweep_dir))
        except OptbenchError as error:
            problems += error.problems
        except OSError as error:
            problems.append(
                Problem(
                    str(folder),
                    f"{type(error).__name__}: {error}",
                    "a folder that can be read and written",
                    "free disk space, or correct the folder's permissions, and try again",
                )
            )
    return refuse(problems) if problems else DONE
