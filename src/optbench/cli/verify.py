"""`python -m optbench verify RUNS_DIR`: read every file of finished runs and say which are damaged.

A disk may rot what nobody reads for months. Nothing is changed but the status of a damaged run:
it is `interrupted` then, and the command that made its sweep makes again what is not whole.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from optbench.analysis import find_runs, is_run, no_runs, sweep_dirs
from optbench.config.messages import print_problems
from optbench.errors import OptbenchError
from optbench.storage import rundir
from optbench.storage.rundir import RunDir
from optbench.training.recovery import damage_of

_WHOLE = 0
_DAMAGED = 1
_BAD_INPUT = 2
_ENDED = ("done", "diverged", "failed", "out_of_memory", "skipped", "interrupted")


def main(argv: Sequence[str] | None = None) -> int:
    """Print every damaged file.

    Returns:
        0 if all is whole; 1 if something is not; 2 if there are no runs.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    console = Console(soft_wrap=True, highlight=False)
    try:
        runs = [run for one in arguments or ["runs"] for run in _runs(Path(one))]
    except OptbenchError as error:
        print_problems(error.problems, console)
        return _BAD_INPUT
    num_damaged = 0
    for run in runs:
        record = rundir.read_status(run.path)
        if record.status not in _ENDED or rundir.is_of_later_optbench(run.path):
            console.print(f"{escape(run.name)}: {record.status}, not looked at")
            continue
        found = list(damage_of(run))
        for line in found:
            console.print(f"{escape(run.name)}: [red]{escape(line)}[/]")
        if found and record.status == "done":
            reason = f"damaged: {'; '.join(found)}; the same command makes it again"
            rundir.write_status(run.path, "interrupted", reason, **record.facts)
        num_damaged += bool(found)
    console.print(f"{len(runs)} runs read, {num_damaged} with damaged files")
    return _DAMAGED if num_damaged else _WHOLE


def _runs(root: Path) -> list[RunDir]:
    found = [RunDir(run) for sweep in sweep_dirs(root) for run in find_runs(sweep)]
    if not found and is_run(root):
        found = [RunDir(root)]
    if not found:
        raise no_runs(root)
    return found


if __name__ == "__main__":
    sys.exit(main())
