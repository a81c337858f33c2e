"""Say what a setting of another trainer is called here, when somebody types it out of habit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from optbench.cli.trainers.options import READ_AT, Option, table
from optbench.config.messages import UNKNOWN_SETTING
from optbench.errors import Problem
from optbench.storage import resources

# What everybody calls these, whichever trainer they come from.
_COMMON = {
    "rank": "network.dim",
    "lora_rank": "network.dim",
    "dim": "network.dim",
    "alpha": "network.alpha",
    "lr": "optimizer.lr",
    "epochs": "train.epochs",
    "steps": "train.max_steps",
    "batch_size": "train.batch_size",
    "scheduler": "lr_scheduler",
    "model": "base.path",
    "dataset_dir": "dataset.dir",
    "data_dir": "dataset.dir",
}
_OURS = "a setting of optbench"
# What one would otherwise ask next.
_MORE = {
    "optimizer.lr": "; lr_mult=0.3,1,3 tries multiples of each recipe's own rate",
    "optimizer": "; the recipes are in docs/optimizers.md",
    "base.path": ", with base=sd15, sd2 or sdxl",
    "dataset.dir": ", with dataset=folder",
}


def with_hints(problems: Sequence[Problem]) -> list[Problem]:
    """Return the problems, unknown settings that another trainer knows with what they are here."""
    return [
        dataclasses.replace(problem, expected=_OURS, fix=hint)
        if problem.found == UNKNOWN_SETTING and (hint := _hint(problem))
        else problem
        for problem in problems
    ]


def _hint(problem: Problem) -> str:
    key = problem.where.removeprefix("--")
    last = key.rpartition(".")[2]
    if last != key and problem.fix.startswith("did you mean"):
        return ""  # the group is ours, and so is the name that was meant
    if ours := _COMMON.get(last):
        return f"write {ours}=VALUE{_MORE.get(ours, '')}"
    for trainer, option in _options(key, last):
        if option.ours and not option.ours.startswith("-"):
            ours = option.ours.replace("|", " or ")
            return f"{_their(trainer)} {option.name} is {ours}=VALUE here{_MORE.get(ours, '')}"
        if option.how == "unneeded":
            why = option.remark or option.meaning
            return f"leave it out: {_their(trainer)} {option.name} is not needed here ({why})"
        if option.how == "missing":
            doc = f"; {option.remark}" if option.remark else ""
            return f"leave it out: {_their(trainer)} {option.name} has no equivalent here{doc}"
        return (
            f"{_their(trainer)} {option.name} is read from a script or file: write "
            f"{resources.command_line('import', 'FILE')}"
        )
    return ""


def _options(key: str, last: str) -> Iterator[tuple[str, Option]]:
    for name, (trainer, _) in READ_AT.items():
        options = table(name)
        if (option := options.get(key) or options.get(last)) is not None:
            yield trainer, option


def _their(trainer: str) -> str:
    """Return a trainer's name before the name of an option: kohya's network_dim."""
    if trainer.startswith("kohya"):
        return "kohya's"
    return trainer if "'" in trainer else f"{trainer}'s"


def flag_problem(word: str, value: str = "") -> Problem:
    """Return the problem of a setting that was typed as a flag, as other trainers take them.

    Args:
        word: The flag, with its value if it has one behind an equals sign.
        value: What was typed behind it, if that is its value.
    """
    name, _, written = word.lstrip("-").partition("=")
    is_ours = (resources.conf_dir() / name.partition(".")[0]).is_dir()
    hint = "" if is_ours else _hint(Problem(name, UNKNOWN_SETTING, "", ""))
    write = f"write {name}={written or value or 'VALUE'}"
    return Problem(
        word,
        "a flag",
        "settings as key=value, without dashes",
        hint or f"{write}; {resources.program()} --help lists what there is",
    )
