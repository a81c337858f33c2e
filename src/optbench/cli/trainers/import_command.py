"""`optbench import FILE`: a command or TOML of kohya's trainer -> a command of optbench."""

from __future__ import annotations

from collections.abc import Sequence

from optbench.cli.command import DONE, one_path, refuse
from optbench.cli.trainers.kohya.import_script import convert
from optbench.cli.trainers.kohya.read_script import read_training
from optbench.errors import OptbenchError
from optbench.storage.resources import command_line
from optbench.terminal import say, tell


def main(arguments: Sequence[str]) -> int:
    """Print our command on the standard output, and what it lacks on the standard error.

    Returns:
        0; 2 if the file cannot be read.
    """
    try:
        file = one_path("import", "FILE", arguments)
        imported = convert(read_training(file), folder=file.parent)
    except OptbenchError as error:
        return refuse(error.problems)
    say(command_line("train", *imported.overrides))
    for title, sentences in (
        ("look at", imported.notes),
        ("no equivalent here", imported.lost),
        ("not looked at by kohya's trainer", imported.ignored),
        ("kohya's default, written out", imported.assumed),
        ("not needed", imported.not_needed),
    ):
        for sentence in sentences:
            tell(f"{title}: {sentence}")
    return DONE
