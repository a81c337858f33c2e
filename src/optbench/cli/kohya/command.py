"""`python -m optbench export RUN` and `import FILE`: to kohya's trainer and back."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from optbench.analysis import read_config
from optbench.cli.kohya.export_script import export
from optbench.cli.kohya.import_script import convert, read_options
from optbench.config.messages import print_problems
from optbench.errors import OptbenchError
from optbench.storage.rundir import RunDir

_BAD_INPUT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Print the other trainer's command on standard output, and what it lacks beside it.

    Returns:
        0; 2 if the run or the file cannot be read.
    """
    parser = argparse.ArgumentParser(prog="python -m optbench.kohya", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    exporting = commands.add_parser("export", help="a run -> a script for kohya's trainer")
    exporting.add_argument("run", type=Path, help="a run's folder")
    importing = commands.add_parser("import", help="a kohya command or TOML -> a command of ours")
    importing.add_argument("file", type=Path, help="the file with the command or the TOML")
    asked = parser.parse_args(argv)
    try:
        if asked.command == "export":
            _export(asked.run)
        else:
            _import(asked.file)
    except OptbenchError as error:
        print_problems(error.problems, Console(stderr=True, soft_wrap=True, highlight=False))
        return _BAD_INPUT
    return 0


def _export(path: Path) -> None:
    exported = export(read_config(RunDir(path)), name=path.resolve().name)
    print(exported.script, end="")


def _import(file: Path) -> None:
    imported = convert(read_options(file))
    print("python -m optbench " + " ".join(shlex.quote(word) for word in imported.overrides))
    for title, sentences in (
        ("no equivalent here", imported.lost),
        ("kohya's default, written out", imported.assumed),
        ("not needed", imported.not_needed),
    ):
        for sentence in sentences:
            print(f"{title}: {sentence}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
