"""`optbench report [RUNS_DIR ...]`: tables, sheets and page again, from the files alone."""

from __future__ import annotations

from collections.abc import Sequence

from optbench.analysis import no_runs, sweep_dirs
from optbench.cli.command import BAD_INPUT, DONE, folders_only, refuse
from optbench.config.messages import print_problems
from optbench.errors import OptbenchError, Problem
from optbench.launch.exit_status import disk_words
from optbench.report import build_report
from optbench.terminal import errors, link, say


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
                say(link(build_report(sweep_dir)))
        except OptbenchError as error:
            problems += error.problems
        except OSError as error:
            fact, advice = disk_words(error)
            expected = "a folder that can be read and written"
            problems.append(
                Problem(str(folder), fact, expected, f"{advice}, then the same command")
            )
    if problems:
        print_problems(problems, errors(), what="these reports were not built")
    return BAD_INPUT if problems else DONE
