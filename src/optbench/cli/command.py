"""Run a command that takes settings: compose them, print problems, do the work, leave with a code.

What differs between commands is handed in; flags, exit codes, Ctrl-C, the list of unfinished runs
and the command that resumes them are the same for all.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from optbench.cli import summary
from optbench.config.build import register_resolvers
from optbench.config.compose import CommandPlan, Planned, check_untrusted_targets, flags_first
from optbench.config.messages import print_problems
from optbench.errors import OptbenchError, Problem
from optbench.launch.exit_status import disk_words
from optbench.storage.resources import command_line
from optbench.terminal import errors, say, tell
from optbench.training import interrupt

DONE = 0
NOT_ALL_DONE = 1
BAD_INPUT = 2
_SIGNALLED = 128  # and the signal's number, as shells have it: 130 for Ctrl-C

_Run = TypeVar("_Run", bound=Planned)


def run_command(
    name: str,
    arguments: Sequence[str],
    *,
    config_name: str,
    compose: Callable[[Sequence[str]], CommandPlan[_Run]],
    work: Callable[[CommandPlan[_Run]], object],
    finish: Callable[[CommandPlan[_Run]], str | Path | None],
    conclude: Callable[[CommandPlan[_Run]], str | Path | None] | None = None,
    typed: Sequence[str] | None = None,
) -> int:
    """Return the exit code: 0 all runs are done, 1 some are not, 2 bad input, 130 after Ctrl-C.

    Args:
        name: The command, as it is typed.
        arguments: What was typed behind it, flags anywhere.
        config_name: The file of conf/ with its settings.
        compose: Returns everything the arguments ask for, checked; creates nothing.
        work: Does what is not done yet, each run under `guard`.
        finish: Prints what came of it and returns the last line of the standard output, the path
            that a person goes on with; None if there is nothing to show.
        conclude: Shows after Ctrl-C what there is so far, and returns the same line.
        typed: The words of the command that resumes; None: `arguments`.
    """
    typed = arguments if typed is None else typed
    arguments = flags_first(arguments)
    if (code := shown(arguments, config_name)) is not None:
        return code
    try:
        plan = compose(arguments)
    except OptbenchError as error:
        return refuse(error.problems)
    try:
        with interrupt.listening():
            work(plan)
    except OptbenchError as error:
        return refuse(error.problems)
    except KeyboardInterrupt as stop:
        code = _stopped(stop)
        last_line = conclude(plan) if conclude is not None else None
        _print_unfinished(name, plan, typed)
        if last_line is not None:
            say(last_line)
        return code
    except OSError as error:
        # What a run itself meets is its status; this is what lies between the runs.
        _print_disk_failure(error, "before every run was tried")
        if not _print_unfinished(name, plan, typed):
            _print_again(name, typed)
        return NOT_ALL_DONE
    try:
        last_line = finish(plan)
    except OSError as error:
        _print_disk_failure(error, "after the runs, so that its results are not all written")
        last_line = None
        if not _print_unfinished(name, plan, typed):
            _print_again(name, typed)
        return NOT_ALL_DONE
    is_unfinished = _print_unfinished(name, plan, typed)
    if last_line is not None:
        say(last_line)
    return NOT_ALL_DONE if is_unfinished or last_line is None else DONE


def in_words(name: str, arguments: Sequence[str], work: Callable[[], int]) -> int:
    """Return a command's exit code; what disks, pipes and people do to it ends it in words.

    The boundary of every command. Only a fault of the program leaves a traceback.
    """
    try:
        return work()
    except OptbenchError as error:
        print_problems(error.problems, errors(), what="the command ended here")
        return BAD_INPUT
    except KeyboardInterrupt as stop:
        return _stopped(stop)
    except BrokenPipeError:
        # Whoever read the output has gone, as `head` does; Python would say so once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _SIGNALLED + signal.SIGPIPE
    except OSError as error:
        _print_disk_failure(error, "and nothing after that was done")
        _print_again(name, arguments)
        return NOT_ALL_DONE


def refuse(problems: Sequence[Problem]) -> int:
    """Print problems on the standard error; return the exit code of bad input."""
    from optbench.cli.hints import with_hints  # reads tables that nothing else needs

    print_problems(with_hints(problems), errors())
    return BAD_INPUT


def _stopped(stop: KeyboardInterrupt) -> int:
    """Say what stopped a command and return its exit code."""
    number = getattr(stop, "signal_number", signal.SIGINT)
    by = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    tell(f"Stopped by {by}.")
    return int(_SIGNALLED + number)


def _print_disk_failure(error: OSError, when: str) -> None:
    fact, advice = disk_words(error)
    terminal = errors()
    terminal.print(f"A disk or the system stopped this command {when}.", style="bold red")
    terminal.print(f"  {fact}")
    terminal.print(f"  -> {advice}")


def _print_again(name: str, typed: Sequence[str]) -> None:
    tell("Then type the same command (what is finished is kept):")
    tell(f"  {summary.resume_command(name, typed)}")


def folders_only(arguments: Sequence[str], *, default: str) -> list[Path]:
    """Return the folders that a command without settings was given, or the default one.

    Raises:
        OptbenchError: If there is a flag or a setting among them.
    """
    problems = [
        Problem(
            "the command line",
            repr(word),
            "folders only, as this command has no flags and no settings",
            "leave it out",
        )
        for word in arguments
        if word.startswith("-") or ("=" in word and not Path(word).exists())
    ]
    if problems:
        raise OptbenchError(*problems)
    return [Path(word).expanduser() for word in arguments or [default]]


def one_path(name: str, word: str, arguments: Sequence[str]) -> Path:
    """Return the one file or folder that a command takes.

    Raises:
        OptbenchError: If there is none, or more than one word.
    """
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise OptbenchError(
            Problem(
                "the command line",
                f"{len(arguments)} arguments" if arguments else "no argument",
                f"one, {word}",
                f"write {command_line(name, word)}",
            )
        )
    return Path(arguments[0]).expanduser()


def shown(arguments: Sequence[str], config_name: str) -> int | None:
    """Let Hydra show what --cfg, --info and the like ask for; None if nothing of the kind is."""
    from hydra._internal.utils import get_args_parser

    parsed = get_args_parser().parse_args(list(arguments))
    if not (parsed.hydra_help or parsed.cfg or parsed.info is not None or parsed.shell_completion):
        return None
    from optbench.launch import guard

    try:
        check_untrusted_targets(arguments, config_name)
    except OptbenchError as error:
        return refuse(error.problems)
    register_resolvers()
    return guard.call_hydra(arguments, lambda tree: None, config_name=config_name)


def _print_unfinished(name: str, plan: CommandPlan[_Run], typed: Sequence[str]) -> bool:
    """Print which runs are not done, why, and what resumes them; return whether there are any."""
    run_dirs = [run.run_dir for run in plan.runs]
    if not plan.is_complete:  # a sweeper plugin chose the runs while it went
        run_dirs = sorted(path.parent for path in plan.sweep_dir.glob("*/status.json"))
    unfinished = summary.unfinished_runs(run_dirs)
    if plan.race is not None:
        return _print_race(name, plan, typed, unfinished, num_runs=len(run_dirs))
    lines = summary.summary_lines(
        unfinished,
        num_runs=len(run_dirs),
        resume=summary.resume_command(name, typed),
        width=shutil.get_terminal_size().columns if sys.stderr.isatty() else None,
    )
    for line in lines:
        tell(line)
    return bool(unfinished) or not run_dirs


def _print_race(
    name: str,
    plan: CommandPlan[_Run],
    typed: Sequence[str],
    unfinished: Sequence[summary.UnfinishedRun],
    *,
    num_runs: int,
) -> bool:
    """Print how a race ended, or what resumes it; return whether it is not over."""
    from optbench.cli.race import ending_lines, open_race  # pandas

    assert plan.race is not None
    race = open_race(plan.race, plan.sweep_dir, workers=1)
    # A rate that diverges is a result; what failed by a fault may go better the next time.
    open_runs = [run for run in unfinished if run.name in race.runs and run.status != "diverged"]
    num_due = len(race.verdict().steps)
    lines = summary.summary_lines(
        open_runs,
        num_runs=num_runs,
        resume=summary.resume_command(name, typed),
        width=shutil.get_terminal_size().columns if sys.stderr.isatty() else None,
    )
    if num_due and not open_runs:
        lines = [
            f"The race is not over: {num_due} runs are due. Go on with:",
            f"  {summary.resume_command(name, typed)}",
        ]
    for line in (*ending_lines(race), *lines):
        tell(line)
    return bool(open_runs or num_due)
