"""`optbench import FILE...`: a training of another trainer -> a command of optbench, or a sweep."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path

from optbench.cli.command import BAD_INPUT, DONE, refuse
from optbench.cli.trainers.formats import convert, read
from optbench.cli.trainers.imported import Imported
from optbench.cli.trainers.options import READ_AT
from optbench.errors import OptbenchError, Problem
from optbench.storage.resources import command_line
from optbench.terminal import say, tell

_YAML = "--yaml"


def main(arguments: Sequence[str]) -> int:
    """Print our command on the standard output, and what it lacks on the standard error.

    Returns:
        0; 2 if a file cannot be read, or is for a family that cannot be trained here.
    """
    as_yaml = _YAML in arguments
    words = [word for word in arguments if word != _YAML]
    try:
        if not words or any(word.startswith("-") for word in words):
            raise OptbenchError(
                Problem(
                    "the command line",
                    f"{' '.join(arguments)!r}" if arguments else "no argument",
                    f"FILE..., and {_YAML} for a sweep's file instead of a command",
                    f"write {command_line('import', 'FILE')}",
                )
            )
        imported = convert([read(Path(word).expanduser()) for word in words])
    except OptbenchError as error:
        return refuse(error.problems)
    for one in imported:
        if as_yaml:
            say(sweep_file(one, name=Path(words[0]).stem))
        else:
            say(command_line("train", *one.overrides))
        _tell(one)
    return BAD_INPUT if any(one.refused for one in imported) else DONE


def sweep_file(imported: Imported, *, name: str) -> str:
    """Return a sweep's file that trains these settings, to be named like any file of sweep/."""
    quoted = shlex.join(imported.overrides)
    lines = textwrap.wrap(
        quoted,
        96,
        initial_indent="    ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    title = READ_AT[imported.trainer][0]
    safe = "".join(letter if letter.isalnum() else "_" for letter in name) or "imported"
    return "\n".join(
        [
            "# @package _global_",
            f"# Question: what does this training of {title} give here?",
            "hydra:",
            "  mode: MULTIRUN",
            "settings:",
            f"  {safe}: >-",
            *lines,
        ]
    )


def _tell(imported: Imported) -> None:
    title = READ_AT[imported.trainer][0]
    for heading, sentences in (
        ("refused", imported.refused),
        ("look at", imported.notes),
        ("no equivalent here", imported.lost),
        (f"not looked at by {title}", imported.ignored),
        (f"default of {title}, written out", imported.assumed),
        ("not needed", imported.not_needed),
    ):
        for sentence in sentences:
            tell(f"{heading}: {sentence}")
