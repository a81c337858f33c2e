"""`python -m optbench report RUNS_DIR...`: tables, sheets and page again, from the files alone."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from optbench.errors import OptbenchError, Problem, describe

_FINE = 0
_BAD_INPUT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Print the path of every report; return 0, or 2 with every problem on the standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m optbench report",
        description="Build the report of a sweep again from its folder; trains and loads nothing.",
    )
    parser.add_argument("runs_dir", nargs="+", help="a sweep's folder, or a folder of sweeps")
    asked = parser.parse_args(argv).runs_dir

    from optbench.analysis import no_runs, sweep_dirs
    from optbench.report import build_report

    problems: list[Problem] = []
    for name in asked:
        sweeps = sweep_dirs(Path(name))
        try:
            if not sweeps:
                raise no_runs(Path(name))
            for sweep_dir in sweeps:
                sys.stdout.write(f"{build_report(sweep_dir)}\n")
        except OptbenchError as error:
            problems += error.problems
        except OSError as error:
            problems.append(_cannot_write(name, error))
    if problems:
        sys.stderr.write(f"{describe(problems)}\n")
    return _BAD_INPUT if problems else _FINE


def _cannot_write(name: str, error: OSError) -> Problem:
    return Problem(
        name,
        f"{type(error).__name__}: {error}",
        "a folder that can be read and written",
        "free disk space, or correct the folder's permissions, and give the command again",
    )


if __name__ == "__main__":
    sys.exit(main())
