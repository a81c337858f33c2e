"""`python -m optbench`: check the whole command line, make its runs, build the report."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser
from rich.console import Console

from optbench.cli import summary
from optbench.config.build import register_resolvers
from optbench.config.compose import SweepPlan, check_untrusted_targets, compose_runs, flags_first
from optbench.config.messages import print_problems
from optbench.config.untrusted import import_sentences
from optbench.errors import OptbenchError
from optbench.launch import guard, probe
from optbench.training import interrupt

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
        try:
            check_untrusted_targets(arguments)
        except OptbenchError as error:
            print_problems(error.problems, _errors())
            return BAD_INPUT
        register_resolvers()
        return guard.call_hydra(arguments, lambda tree: None)
    try:
        asked = compose_runs(arguments)
    except OptbenchError as error:
        print_problems(error.problems, _errors())
        return BAD_INPUT
    for sentence in import_sentences(run.config.optimizer for run in asked.runs):
        _print_error(sentence)
    try:
        with interrupt.listening():
            probe.check_answering(asked)
            guard.launch(arguments, asked)
    except OptbenchError as error:
        print_problems(error.problems, _errors())
        return BAD_INPUT
    except interrupt.StopAskedError as stop:
        _print_error(f"Stopped: {stop}.")
        _tell_undone(asked, arguments)
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        _print_error("Stopped by Ctrl-C.")
        _tell_undone(asked, arguments)
        return STOPPED
    return _conclude(asked, arguments)


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


def _conclude(asked: SweepPlan, arguments: Sequence[str]) -> int:
    """Build the report, name what is not done and why, and return the exit code."""
    from optbench.metrics.measure import measure_runs
    from optbench.report import build_report

    run_dirs = [run.run_dir for run in asked.runs] if asked.is_complete else _found(asked.sweep_dir)
    for notice in measure_runs(run_dirs, asked.runs[0].config.metric).notices:
        _print_error(notice)
    try:
        report = build_report(asked.sweep_dir)
    except OptbenchError as error:
        print_problems(error.problems, _errors())
        report = None
    is_undone = _tell_undone(asked, arguments)
    if report is not None:
        print(report)
    return NOT_ALL_DONE if is_undone or report is None else DONE


def _tell_undone(asked: SweepPlan, arguments: Sequence[str]) -> bool:
    """Print what is not done and how to go on; return whether there is any such run."""
    run_dirs = [run.run_dir for run in asked.runs] if asked.is_complete else _found(asked.sweep_dir)
    left = summary.undone_runs(run_dirs)
    width = shutil.get_terminal_size().columns if sys.stderr.isatty() else None
    typed = [one for one in arguments if not one.startswith("hydra.sweep.dir=")]
    lines = summary.last_words(left, num_runs=len(run_dirs), arguments=typed, width=width)
    for line in lines:
        _print_error(line)
    return bool(left) or not run_dirs


def _found(sweep_dir: Path) -> list[Path]:
    return sorted(path.parent for path in sweep_dir.glob("*/status.json"))


def _print_error(text: str) -> None:
    print(text, file=sys.stderr)
