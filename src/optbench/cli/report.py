"""`optbench report [RUNS_DIR ...]`: tables, sheets and page again, from the files alone.

With `--no-goal` a report shows no training images, now and later. With `--serve` it hands the pages
to a browser of another machine, with `--sheet` it draws a table of images as one PNG.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from optbench.analysis import no_runs, sweep_dirs
from optbench.cli.command import BAD_INPUT, DONE, folders_only, refuse
from optbench.config.messages import print_problems
from optbench.errors import OptbenchError, Problem
from optbench.launch.exit_status import disk_words
from optbench.report import build_report
from optbench.terminal import errors, link, say, tell, working

_SERVE, _PORT, _SHEET, _NO_GOAL = "--serve", "--port", "--sheet", "--no-goal"


def main(arguments: Sequence[str]) -> int:
    """Print the path of every report; return 0, or 2 with every problem on the standard error."""
    problems: list[Problem] = []
    try:
        words, flags = _split_flags(arguments)
        folders = folders_only(words, default="runs")
        port = _port(flags.get(_PORT))
    except OptbenchError as error:
        return refuse(error.problems)
    served: list[Path] = []
    for folder in folders:
        try:
            sweeps = sweep_dirs(folder)
            if not sweeps:
                raise no_runs(folder)
            for sweep_dir in sweeps:
                if _SHEET in flags:
                    from optbench.report.grid_sheet import draw_grid

                    say(draw_grid(sweep_dir, flags[_SHEET]))
                    continue
                if _NO_GOAL in flags:
                    from optbench.report.goal import leave_out

                    leave_out(sweep_dir / "report")
                with working(f"building the report of {sweep_dir}"):
                    page = build_report(sweep_dir)
                served.append(sweep_dir)
                if _SERVE not in flags:
                    say(link(page))
        except OptbenchError as error:
            problems += error.problems
        except OSError as error:
            fact, advice = disk_words(error)
            expected = "a folder that can be read and written"
            problems.append(
                Problem(str(folder), fact, expected, f"{advice}, then the same command")
            )
    if problems:
        what = "these sheets were not drawn" if _SHEET in flags else "these reports were not built"
        print_problems(problems, errors(), what=what)
    if _SERVE in flags and served:
        _serve(served, port)
    return BAD_INPUT if problems else DONE


def _split_flags(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the folders and the flags with their values, each `--flag=VALUE` or `--flag VALUE`."""
    words: list[str] = []
    flags: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, has_value, value = word.partition("=")
        if name in (_SERVE, _NO_GOAL) and not has_value:
            flags[name] = ""
        elif name in (_PORT, _SHEET):
            if not has_value and not rest:
                example = "8000" if name == _PORT else '"rows=run,columns=seed"'
                raise OptbenchError(
                    Problem(name, "no value", "one behind it", f"write {name} {example}")
                )
            flags[name] = value if has_value else rest.pop(0)
        else:
            words.append(word)
    if _PORT in flags and _SERVE not in flags:
        raise OptbenchError(
            Problem(_PORT, "a port", f"{_SERVE} beside it", f"add {_SERVE}, or leave {_PORT} out")
        )
    return words, flags


def _port(text: str | None) -> int | None:
    if text is None or (text.isdecimal() and 0 < int(text) < 2**16):
        return None if text is None else int(text)
    raise OptbenchError(Problem(_PORT, repr(text), "a number from 1 to 65535", "leave it out"))


def _serve(sweep_dirs: Sequence[Path], port: int | None) -> None:
    """Serve reports until Ctrl-C."""
    from optbench.report.serve import ReportServer, site_of

    try:
        server = ReportServer(site_of(sweep_dirs), port)
    except OSError as error:
        raise OptbenchError(
            Problem(f"{_PORT}={port}", str(error), "a free port", f"leave {_PORT} out")
        ) from error
    with server:
        for url in server.urls():
            say(url)
        if os.environ.get("SSH_CONNECTION"):
            tell("On the machine with the browser, type this first, then open the address there:")
        else:
            tell("From another machine, type this there first, then open the same address:")
        place = f"{getpass.getuser()}@{socket.gethostname()}"
        tell(f"  ssh -N -L {server.port}:127.0.0.1:{server.port} {place}")
        tell("Whoever has the address can see the images. Ctrl-C ends it.")
        server.serve_forever()
