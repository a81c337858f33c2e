"""`optbench export RUN_DIR --for=TRAINER`: a run -> a script for another trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from optbench.cli.command import DONE, one_path, refuse
from optbench.cli.trainers import ai_toolkit, diffusers, musubi, onetrainer, simpletuner
from optbench.cli.trainers.exported import Exported, Run
from optbench.cli.trainers.kohya import export_script
from optbench.errors import OptbenchError, Problem
from optbench.storage.provenance import run_facts
from optbench.storage.resources import command_line
from optbench.storage.rundir import RunDir, read_config
from optbench.terminal import say

EXPORTERS: Mapping[str, Callable[[Run], Exported]] = {
    "kohya": lambda run: export_script.export(
        run.config, name=run.name, total_steps=run.total_steps
    ),
    "musubi": musubi.export,
    "onetrainer": onetrainer.export,
    "ai-toolkit": ai_toolkit.export,
    "simpletuner": simpletuner.export,
    "diffusers": diffusers.export,
}
_FOR = "--for"


def main(arguments: Sequence[str]) -> int:
    """Print the script; return 0, or 2 if the run cannot be read or no such trainer is known."""
    try:
        trainer, words = _trainer(arguments)
        run_dir = one_path("export", "RUN_DIR", words)
        run = RunDir(run_dir)
        if not run.config_path.is_file():
            found = "a folder without config.yaml" if run_dir.is_dir() else "no such folder"
            raise OptbenchError(
                Problem(str(run_dir), found, "a run's folder", "give runs/SWEEP/RUN")
            )
        total_steps = run_facts(run.provenance_path).get("total_steps")
        config, name = read_config(run), run_dir.resolve().name
        exported = EXPORTERS[trainer](Run(config, name, total_steps))
    except OptbenchError as error:
        return refuse(error.problems)
    say(exported.script.rstrip("\n"))
    return DONE


def _trainer(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the trainer that is named, kohya's without one, and the other words.

    Raises:
        OptbenchError: If it is none that is known.
    """
    words, trainer = list(arguments), "kohya"
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name != _FOR:
            continue
        following = words[index + 1 : index + 2]
        trainer = value if equals else "".join(following)
        del words[index : index + (1 if equals else 2)]
        break
    if trainer not in EXPORTERS:
        raise OptbenchError(
            Problem(
                f"{_FOR} {trainer}".rstrip(),
                repr(trainer),
                f"one of {', '.join(EXPORTERS)}",
                f"write {command_line('export', 'RUN_DIR', '--for=onetrainer')}",
            )
        )
    return trainer, words
