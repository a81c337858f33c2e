"""`optbench NAME ...` runs one command; without a name the arguments are a training's."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

from optbench.cli.commands import COMMANDS, split_bare_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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
    # The bars of model libraries are gone before one can read them, and break our own lines.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
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

        return refuse(_flag_problems(arguments) or [_unknown_word(bare_words[0], arguments)])
    else:
        name = "train"
    if any(flag in arguments for flag in _HELP):
        from optbench.cli.help import print_help

        print_help(name, only=bare_words)
        return 0
    if COMMANDS[name].config is not None and (problems := _flag_problems(arguments)):
        from optbench.cli.command import refuse

        return refuse(problems)
    from importlib import import_module

    from optbench.cli.command import in_words

    command = import_module(COMMANDS[name].module).main
    return in_words(name, arguments, lambda: int(command(arguments)))


def _flag_problems(arguments: Sequence[str]) -> list[Problem]:
    """Return the problems of flags that Hydra does not know: other trainers' settings are such."""
    flags = [word for word in arguments if word.startswith("--") and len(word) > len("--")]
    if not flags:
        return []
    from hydra._internal.utils import get_args_parser

    known = get_args_parser()._option_string_actions
    problems = []
    for place, word in enumerate(arguments):
        if word not in flags or _is_short_for(word.partition("=")[0], known):
            continue
        from optbench.cli.hints import flag_problem

        following = arguments[place + 1] if place + 1 < len(arguments) else ""
        problems.append(flag_problem(word, following if following.isidentifier() else ""))
    return problems


def _is_short_for(flag: str, known: Iterable[str]) -> bool:
    return any(name.startswith(flag) for name in known)


def _unknown_word(word: str, arguments: Sequence[str]) -> Problem:
    from optbench.errors import Problem

    place = arguments.index(word)
    if place and "=" in arguments[place - 1] and arguments[place - 1].endswith(","):
        before = arguments[place - 1]
        return Problem(
            before.partition("=")[0],
            f"{before} {word}, with a blank behind the comma",
            "values without blanks between them",
            f"write {before}{word}",
        )
    return _unknown_command(word)


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
