"""`optbench export RUN_DIR`: a run -> a script for kohya's trainer."""

from __future__ import annotations

from collections.abc import Sequence

from optbench.cli.command import DONE, one_path, refuse
from optbench.cli.trainers.kohya.export_script import export
from optbench.errors import OptbenchError, Problem
from optbench.storage.provenance import run_facts
from optbench.storage.rundir import RunDir, read_config


def main(arguments: Sequence[str]) -> int:
    """Print the script; return 0, or 2 if the run cannot be read."""
    try:
        run_dir = one_path("export", "RUN_DIR", arguments)
        run = RunDir(run_dir)
        if not run.config_path.is_file():
            found = "a folder without config.yaml" if run_dir.is_dir() else "no such folder"
            raise OptbenchError(
                Problem(str(run_dir), found, "a run's folder", "give runs/SWEEP/RUN")
            )
        total_steps = run_facts(run.provenance_path).get("total_steps")
        config, name = read_config(run), run_dir.resolve().name
        exported = export(config, name=name, total_steps=total_steps)
    except OptbenchError as error:
        return refuse(error.problems)
    print(exported.script, end="")
    return DONE
