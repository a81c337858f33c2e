"""`optbench verify [RUNS_DIR ...]`: read every file of finished runs and name the corrupt ones.

A disk may rot what nobody reads for months. Nothing is changed but the status of a damaged run:
it is `interrupted` then, and the command that made its sweep makes again what is corrupt.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape

from optbench.analysis import runs_in
from optbench.cli.command import DONE, folders_only, output, refuse
from optbench.errors import OptbenchError
from optbench.storage import rundir
from optbench.storage.rundir import RunDir
from optbench.training.recovery import damage_of

_CORRUPT = 1
_ENDED = ("done", "diverged", "failed", "out_of_memory", "skipped", "interrupted")


def main(arguments: Sequence[str]) -> int:
    """Print every corrupt file.

    Returns:
        0 if all are intact; 1 if one is not; 2 if there are no runs.
    """
    try:
        folders = folders_only(arguments, default="runs")
        runs = [RunDir(run_dir) for folder in folders for run_dir in runs_in(folder)]
    except OptbenchError as error:
        return refuse(error.problems)
    console = output()
    num_corrupt = 0
    for run in runs:
        record = rundir.read_status(run.path)
        # A run that was stopped while its base model was loading has no config yet.
        has_begun = run.config_path.is_file() or record.status == "done"
        if record.status not in _ENDED or not has_begun or rundir.is_of_later_optbench(run.path):
            console.print(f"{escape(run.name)}: {record.status}, not read")
            continue
        damage = list(damage_of(run))
        for line in damage:
            console.print(f"{escape(run.name)}: [red]{escape(line)}[/]")
        if damage and record.status == "done":
            reason = f"damaged: {'; '.join(damage)}; the same command makes it again"
            rundir.write_status(run.path, "interrupted", reason, **record.facts)
        num_corrupt += bool(damage)
    console.print(f"{len(runs)} runs read, {num_corrupt} with corrupt files")
    return _CORRUPT if num_corrupt else DONE
