"""`python -m optbench.regularize`: a base's own pictures of a class, for regularization."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence

from rich.console import Console

from optbench import launch, rundir
from optbench.cli import BAD_INPUT, DONE, NOT_ALL_DONE, STOPPED, asks_for_information
from optbench.composition import Asked, flags_first
from optbench.config import register_resolvers
from optbench.errors import OptbenchError
from optbench.records import Status
from optbench.refusals import print_problems
from optbench.regularize.asking import CONFIG_NAME, AskedPictures, compose_pictures


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0 all pictures are made, 1 some are not, 2 bad input, 130 stopped.

    The last line on the standard output is the folder for `dataset.reg_dir`.
    """
    arguments = flags_first(sys.argv[1:] if argv is None else argv)
    if asks_for_information(arguments):
        register_resolvers()
        return launch.call_hydra(arguments, lambda tree: None, config_name=CONFIG_NAME)
    try:
        asked = compose_pictures(arguments)
    except OptbenchError as error:
        print_problems(error.problems, Console(stderr=True, soft_wrap=True, highlight=False))
        return BAD_INPUT
    try:
        for one in asked.runs:
            launch.guard(one.run_dir, functools.partial(_made, one))
    except KeyboardInterrupt:
        print("Stopped. The same command goes on with what is not done.", file=sys.stderr)
        return STOPPED
    return _conclude(asked)


def _made(asked: AskedPictures) -> Status:
    from optbench.regularize.making import make_pictures

    return make_pictures(asked)


def _conclude(asked: Asked[AskedPictures]) -> int:
    code = DONE
    for one in asked.runs:
        state = rundir.read_status(one.run_dir)
        if state.status != "done":
            print(f"{one.folder}: {state.status}: {state.reason}", file=sys.stderr)
            code = NOT_ALL_DONE
        else:
            print(f"{one.options.num_pictures} pictures in {one.folder}")
    print(asked.runs[0].options.dir)
    return code


if __name__ == "__main__":
    sys.exit(main())
