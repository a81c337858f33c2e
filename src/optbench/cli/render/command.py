"""`python -m optbench render`: pictures and sheets of finished LoRA files, an X/Y/Z plot."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from optbench.cli.render.plan import CONFIG_NAME, AskedPlot, compose_plots, with_named_files
from optbench.cli.train import BAD_INPUT, DONE, NOT_ALL_DONE, STOPPED, asks_for_information
from optbench.config.build import register_resolvers
from optbench.config.compose import CommandPlan, flags_first
from optbench.config.messages import print_problems
from optbench.errors import OptbenchError
from optbench.launch import guard
from optbench.records import Status
from optbench.storage import rundir


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0 all sheets are made, 1 some are not, 2 bad input, 130 stopped.

    The last line on the standard output is the folder of the sheets.
    """
    arguments = flags_first(with_named_files(sys.argv[1:] if argv is None else argv))
    if asks_for_information(arguments):
        register_resolvers()
        return guard.call_hydra(arguments, lambda tree: None, config_name=CONFIG_NAME)
    try:
        asked = compose_plots(arguments)
        _check_files(asked)
    except OptbenchError as error:
        print_problems(error.problems, Console(stderr=True, soft_wrap=True, highlight=False))
        return BAD_INPUT
    try:
        for one in asked.runs:
            guard.guard(one.run_dir, functools.partial(_made, one))
    except KeyboardInterrupt:
        print("Stopped. The same command goes on with what is not done.", file=sys.stderr)
        return STOPPED
    return _conclude(asked)


def _check_files(asked: CommandPlan[AskedPlot]) -> None:
    from optbench.cli.render.run import check_files

    for one in asked.runs:
        check_files(one.plot)


def _made(asked: AskedPlot) -> Status:
    from optbench.cli.render.run import make_plot

    return make_plot(asked)


def _conclude(asked: CommandPlan[AskedPlot]) -> int:
    code = DONE
    for one in asked.runs:
        state = rundir.read_status(one.run_dir)
        if state.status != "done":
            print(f"{one.run_dir}: {state.status}: {state.reason}", file=sys.stderr)
            code = NOT_ALL_DONE
        else:
            print(Path(one.plot.options.dir) / "sheets" / one.run_dir.name)
    return code


if __name__ == "__main__":
    sys.exit(main())
