"""`python -m optbench`: check the whole command line, make its runs, build the report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser
from rich.console import Console

from optbench import launch, rundir
from optbench.composition import AskedRuns, compose_runs, flags_first
from optbench.config import register_resolvers
from optbench.errors import OptbenchError
from optbench.refusals import print_problems

DONE = 0
NOT_ALL_DONE = 1
BAD_INPUT = 2
STOPPED = 130  # what shells give for Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0 all asked runs are done, 1 some are not, 2 bad input, 130 stopped.

    The last line on the standard output is the report's path.
    """
    arguments = flags_first(sys.argv[1:] if argv is None else argv)
    if asks_for_information(arguments):
        register_resolvers()
        return launch.call_hydra(arguments, lambda tree: None)
    try:
        asked = compose_runs(arguments)
    except OptbenchError as error:
        print_problems(error.problems, _errors())
        return BAD_INPUT
    try:
        launch.launch(arguments, asked)
    except KeyboardInterrupt:
        _print_error("Stopped. The same command goes on from the last whole epoch.")
        return STOPPED
    return _conclude(asked)


def _errors() -> Console:
    return Console(stderr=True, soft_wrap=True, highlight=False)


def asks_for_information(arguments: Sequence[str]) -> bool:
    """Return whether Hydra is only asked to show something: --help, --cfg, --info and the like."""
    parsed = get_args_parser().parse_args(list(arguments))
    return bool(
        parsed.help
        or parsed.hydra_help
        or parsed.cfg
        or parsed.info is not None
        or parsed.shell_completion
    )


def _conclude(asked: AskedRuns) -> int:
    """Build the report, name what is not done and why, and return the exit code."""
    from optbench.metrics.sweeps import measure_runs
    from optbench.report import build_report

    run_dirs = [run.run_dir for run in asked.runs] if asked.is_whole else _found(asked.sweep_dir)
    undone = []
    for run_dir in run_dirs:
        state = rundir.read_status(run_dir)
        if state.status != "done":
            undone.append(f"  {run_dir.name}: {state.status}: {state.reason}")
    for notice in measure_runs(run_dirs, asked.runs[0].config.metric).notices:
        _print_error(notice)
    try:
        report = build_report(asked.sweep_dir)
    except OptbenchError as error:
        print_problems(error.problems, _errors())
        return NOT_ALL_DONE
    if undone:
        _print_error(f"{len(undone)} of {len(run_dirs)} runs are not done:")
        for line in undone:
            _print_error(line)
    print(report)
    return NOT_ALL_DONE if undone else DONE


def _found(sweep_dir: Path) -> list[Path]:
    return sorted(path.parent for path in sweep_dir.glob("*/status.json"))


def _print_error(text: str) -> None:
    print(text, file=sys.stderr)
