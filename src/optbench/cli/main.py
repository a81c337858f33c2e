"""`optbench NAME ...` runs one command; without a name the arguments are a training's."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

from optbench.cli.commands import COMMANDS, split_bare_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optbench.errors import Problem

_HELP = ("--help", "-h")


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code of the command that the first bare word names, else of a training.

    Without arguments, or with nothing but --help, prints the list of commands. Every command's
    module is imported only here, so that each costs what it needs alone.
    """
    for stream in (sys.stdout, sys.stderr):
        # A letter that the terminal does not have is written as its code, and ends nothing.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    bare_words, _ = split_bare_words(arguments)
    if bare_words and bare_words[0] in COMMANDS:
        name = bare_words.pop(0)
        arguments.remove(name)
    elif not arguments or arguments in (["--help"], ["-h"], ["help"]):
        from optbench.cli.help import print_overview

        print_overview()
        return 0
    elif arguments in (["--version"], ["version"]):
        from importlib.metadata import version

        print(f"optbench {version('optbench')}")
        return 0
    elif bare_words and not any(flag in arguments for flag in _HELP):
        from optbench.cli.command import refuse

        return refuse([_unknown_command(bare_words[0])])
    else:
        name = "train"
    if any(flag in arguments for flag in _HELP):
        from optbench.cli.help import print_help

        print_help(name, only=bare_words)
        return 0
    from importlib import import_module

    from optbench.cli.command import in_words

    command = import_module(COMMANDS[name].module).main
    return in_words(name, arguments, lambda: int(command(arguments)))


def _unknown_command(word: str) -> Problem:
    from pathlib import Path

    from optbench.errors import Problem, did_you_mean, near_names
    from optbench.storage.resources import command_line

    near = near_names(word, COMMANDS)
    fix = f"{command_line('--help')} lists the commands"
    if near:
        fix = did_you_mean([command_line(name) for name in near])
    elif word.endswith(".safetensors"):
        fix = f"to render it write {command_line('render', word)}"
    elif Path(word).is_dir():
        fix = f"to build its report write {command_line('report', word)}"
    return Problem(
        "the command line",
        f"{word!r}, which is neither a command nor a setting",
        f"one of {', '.join(COMMANDS)}, or settings as key=value",
        fix,
    )
