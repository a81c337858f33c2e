"""Word what Hydra refuses, with the nearest thing that exists, and print problems on screen."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError
from rich.text import Text

from optbench.config.quoting import for_shell, key_of_override, quoted
from optbench.errors import Problem, did_you_mean, near_names
from optbench.storage import resources
from optbench.storage.nested import flatten
from optbench.storage.secrets import hide_in_arguments
from optbench.terminal import Terminal

UNKNOWN_SETTING = "an unknown setting"  # what a key that does not exist is found to be


def explain_refusal(override: str, error: HydraException, tree: DictConfig) -> Problem:
    """Return why Hydra refused one override.

    Args:
        override: What was typed.
        error: What Hydra raised.
        tree: What the other overrides compose to, for the keys that exist.
    """
    if isinstance(error, MissingConfigException) and error.options is not None:
        return _unknown_option(override, list(error.options))
    key, _, option = override.lstrip("+~").partition("=")
    if isinstance(error.__cause__, GrammarParseError) and isinstance(
        OmegaConf.select(tree, key), DictConfig
    ):
        found = first_line(error)
        return Problem(f"{key}/{option}.yaml", found, "a file that composes", "correct that file")
    if override.startswith(("+", "~")) or OmegaConf.select(tree, key) is not None:
        return Problem(
            "the command line",
            hidden(override),
            "+key=value for a new key, key=value for an old one, ~key to delete one",
            first_line(error),
        )
    group = key.rpartition(".")[0]  # the deepest one of the key that exists
    while group and not isinstance(OmegaConf.select(tree, group), DictConfig):
        group = group.rpartition(".")[0]
    node = OmegaConf.select(tree, group) if group else tree
    siblings = [f"{group}.{name!s}" if group else str(name) for name in node if name != "hydra"]
    plain = OmegaConf.to_container(tree, resolve=False)
    assert isinstance(plain, dict)
    plain.pop("hydra", None)
    keys = flatten({str(name): value for name, value in plain.items()})
    return unknown_key(key, siblings, everywhere=list(keys))


def unknown_key(key: str, siblings: Sequence[str], *, everywhere: Sequence[str] = ()) -> Problem:
    """Return the problem of a key that does not exist, with the nearest ones that do.

    Args:
        key: The whole dotted key.
        siblings: The keys that exist in the same place.
        everywhere: All keys, to find one typed without its group, or with no dot behind it.
    """
    last = _last(key)
    near = [name for name in everywhere if _letters(name) == _letters(key)] or [
        name
        for part in near_names(last, [_last(name) for name in siblings])
        for name in siblings
        if _last(name) == part
    ]
    near = near or [name for name in everywhere if _last(name) == last]
    return Problem(
        key,
        UNKNOWN_SETTING,
        f"one of {', '.join(siblings)}",
        did_you_mean(near) or f"{resources.program()} train --help lists every setting",
    )


def unsupported_flag(name: str) -> Problem:
    """Return the problem of a flag of Hydra's that would replace optbench's own config."""
    return Problem(
        "the command line",
        f"--{name.replace('_', '-')}",
        "the config that ships with optbench, and groups of your own beside it",
        "put your files into a folder like conf/ and pass --config-dir FOLDER",
    )


def unquoted_text(key: str, text: str) -> Problem:
    """Return the problem of a prompt whose commas make it a list of values."""
    return Problem(
        key,
        f"{text}: its commas make it a list of values",
        "one text, in quotes that reach Hydra",
        f"write \"{key}='{text}'\", with both kinds of quotes",
    )


def needs_multirun(override: str, command: str) -> Problem:
    """Return the problem of several values for one run.

    Args:
        override: What was typed.
        command: The command it was typed behind; "" trains.
    """
    key, _, value = override.partition("=")
    fix = f"for a run of each value write {resources.command_line(command, '-m', override)} ..."
    if re.search(r"[A-Za-z]", value) and "(" not in value:
        fix += f"; for one text with a comma write {for_shell(f'{key}={quoted(value)}')}"
    return Problem(key, hidden(override), "one value, because this is one run", fix)


def unreadable_override(override: str, error: HydraException, *, where: str) -> Problem:
    """Return the problem of an override that Hydra's grammar cannot read.

    Args:
        override: What was typed.
        error: What Hydra says of it.
        where: Where it was typed, if it has no key.
    """
    key = key_of_override(override)
    value = override.partition("=")[2]
    if key is None or not value:
        return Problem(
            where,
            hidden(override),
            "key=value, group=option or key=value,value",
            f"write it as one word: key=value ({first_line(error)})",
        )
    if value.endswith(",") and value[0] not in "[{\"'":
        return Problem(
            key if where == "the command line" else f"{key} in {where}",
            hidden(override),
            "a value behind every comma, and no blank",
            f"write {for_shell(override.rstrip(','))},NEXT without a blank, or leave the comma out",
        )
    closing = {"[": "]", "{": "}"}.get(value[0], "")
    if closing and not value.endswith(closing):
        readable = override + closing
    else:
        readable = override.partition("=")[0] + "=" + quoted(value)
    return Problem(
        key if where == "the command line" else f"{key} in {where}",
        hidden(override),
        f"a value that Hydra can read, or a text in quotes that reach it ({first_line(error)})",
        f"write {for_shell(readable)}",
    )


def hidden(override: str) -> str:
    """Return an override as it is shown in a message, with secrets hidden."""
    return repr(hide_in_arguments([override])[0])


def list_of_options(group: str, override: str, options: Sequence[str]) -> Problem:
    """Return the problem of a list for a group, whose files Hydra would lay over each other."""
    values = ",".join(dict.fromkeys(options))
    several = len(set(options)) > 1
    return Problem(
        group,
        f"{override}: a list, whose files would be laid on top of each other as one run",
        "one option for each run",
        f"write -m {group}={values} for a run of each" if several else f"write {group}={values}",
    )


def not_a_string(key: str, value: object) -> Problem:
    """Return the problem of a list in a sweep file, which Hydra would take as one value."""
    values = value if isinstance(value, list) else [value]
    return Problem(
        f"hydra.sweeper.params.{key}",
        f"{value!r}",
        "a string; a YAML list would be one run with a list for a value",
        f'write {key}: "{",".join(str(item) for item in values)}"',
    )


def hydra_setting_in_sweep(key: str) -> Problem:
    """Return the problem of a sweep over a setting of Hydra's, which changes no run."""
    return Problem(
        f"hydra.sweeper.params.{key}",
        "a setting of Hydra's own",
        "settings of a run; what Hydra does is one for the whole command",
        f"take it out of the sweep's file, and type {key.lstrip('+~')}=VALUE if you want it",
    )


def cannot_expand(error: HydraException) -> Problem:
    """Return the problem of values that Hydra's basic sweeper cannot list."""
    return Problem(
        "the command line or hydra.sweeper.params",
        first_line(error),
        "values that can be listed: key=a,b or choice(), range(), glob()",
        "write the values out: key=0.1,0.2,0.3",
    )


def empty_sweep(lines: Sequence[str]) -> Problem:
    """Return the problem of a sweep without a single run."""
    return Problem(
        " ".join(lines),
        "no run at all: a key is swept over no value",
        "at least one value per key",
        "check the pattern of glob(...) or the end of range(...)",
    )


def settings_without_names(settings: object) -> Problem:
    """Return the problem of listed settings that are no mapping from name to overrides."""
    return Problem(
        "settings",
        f"{settings!r}",
        "a name for every setting, with its overrides as text",
        'write settings: {lion: "optimizer=lion train.gradient_accumulation=4"}',
    )


def setting_not_typed(where: str, setting: object) -> Problem:
    """Return the problem of a listed setting that is not a text one could type."""
    text = setting
    if isinstance(setting, dict):
        text = " ".join(f"{key}={value}" for key, value in setting.items())
    elif isinstance(setting, list):
        text = " ".join(str(item) for item in setting)
    return Problem(
        where,
        "null" if setting is None else f"{setting!r}",
        "overrides as they are typed in a shell, in one text",
        f'write "{text or ""}", or "" for a setting without overrides; ~{where} leaves it out',
    )


def setting_out_of_place(where: str, key: str) -> Problem:
    """Return the problem of a listed setting that would change more than its own runs."""
    return Problem(
        where,
        f"{key} inside one setting of a list",
        "what one run is made from; this is of the whole sweep",
        f"write {key}=VALUE on the command line, for all settings",
    )


def setting_given_twice(where: str, key: str) -> Problem:
    """Return the problem of a key that a listed setting shares with the rest of the sweep."""
    return Problem(
        where,
        f"{key}, which is given outside the setting too, or twice in it",
        "one value for every key: the other would have no effect",
        f"give {key} once only: '~{where}' leaves the setting out, {where}='...' rewrites it",
    )


def settings_need_multirun(*, is_multirun: bool) -> Problem:
    """Return the problem of a list of settings for one run, or for a sweeper that chooses."""
    return Problem(
        "settings",
        "a list of settings with a sweeper plugin" if is_multirun else "a list, for one run",
        "a sweeper that makes every run of the list",
        "leave hydra/sweeper out" if is_multirun else "add -m, or hydra.mode=MULTIRUN",
    )


def no_number_of_seeds(number: object) -> Problem:
    """Return the problem of a number of seeds that is none."""
    return Problem(
        "seeds",
        f"{number!r}",
        "how many seeds each setting is trained with, from 1 on",
        "write seeds=2, or list the seeds themselves: -m seed=1,2",
    )


def seeds_given_twice(number: int) -> Problem:
    """Return the problem of a number of seeds beside the seeds themselves."""
    return Problem(
        "seeds",
        f"{number} while seed lists its values",
        "a number of seeds, or the seeds themselves",
        "leave seeds out: each listed seed is trained, and renders images",
    )


def seeds_with_a_sweeper(number: int) -> Problem:
    """Return the problem of several seeds where a plugin makes up the runs."""
    return Problem(
        "seeds",
        f"{number} with a sweeper plugin, which chooses runs by their loss",
        "1: a seed is no setting to choose",
        "write seeds=1, and train what it found with -m seed=1,2,3",
    )


def equal_runs(first: str, second: str) -> Problem:
    """Return the problem of two runs that would train the same weights in one folder."""
    return Problem(
        "the sweep",
        f"{second!r}, the same weights as {first!r}",
        "runs that differ in a setting that affects the weights",
        "list every value once; to render with other prompts, use a sweep_name of its own",
    )


def several_sweeps(folders: Sequence[str]) -> Problem:
    """Return the problem of runs of one command in different sweep folders."""
    return Problem(
        "sweep_name and runs_dir",
        f"runs for {', '.join(folders)}",
        "one folder for all runs, so that they can be compared",
        "do not sweep over sweep_name or runs_dir",
    )


def no_config_dir(config_dir: str) -> Problem:
    """Return the problem of a folder of config groups that does not exist."""
    return Problem(
        "--config-dir",
        f"{config_dir}, where there is no folder",
        "a folder with config groups of your own",
        "give a folder that holds, for instance, optimizer/mine.yaml",
    )


def broken_file(error: HydraException) -> Problem:
    """Return the problem of config files that do not compose, whatever the command line says."""
    cause = error.__cause__ or error
    return Problem(
        "conf/, sweep/ or your --config-dir",
        " ".join(str(cause).split()),
        "config files that compose",
        f"repair the file; {resources.command_line('', '--info', 'searchpath')} lists all places",
    )


def unreadable_file(error: Exception) -> Problem:
    """Return the problem of a file that cannot be read, or that holds no YAML."""
    if isinstance(error, OSError):
        name = str(error.filename) if error.filename else "a file or folder"
        why = (error.strerror or str(error)).lower()
        fix = "correct its permissions, or choose another one"
        if error.errno == errno.ENAMETOOLONG:
            name, fix = (
                f"{name[:60]}...",
                "choose a shorter name: a part of a path has at most 255 bytes",
            )
        return Problem(name, why, "a file or folder that can be read", fix)
    if isinstance(error, UnicodeDecodeError):
        return Problem(
            "your --config-dir", str(error), "YAML files in UTF-8", "save the file as UTF-8"
        )
    mark = getattr(error, "problem_mark", None)
    where = f"{mark.name} line {mark.line + 1}" if mark is not None else "your --config-dir"
    said = getattr(error, "problem", None) or first_line(error)
    fix = "correct that line"
    if "\\t" in said:
        said, fix = "a tab where YAML has spaces", "replace the tab by spaces"
    return Problem(where, said, "YAML", fix)


def sweep_of_another_command(sweep: str, command: str) -> Problem:
    """Return the problem of a named sweep whose settings are another command's."""
    return Problem(
        "sweep",
        f"{sweep}, a sweep of `optbench {command or 'train'}`",
        "a sweep of this command",
        f"write {resources.command_line(command, f'sweep={sweep}')} ...",
    )


def first_line(error: Exception) -> str:
    """Return the first line of an error, or of its cause, that says something."""
    texts = [str(error), str(error.__cause__ or "")]
    lines = (line for text in texts for line in text.splitlines())
    return next((line for line in lines if line.strip()), type(error).__name__)


def _unknown_option(override: str, options: Sequence[str]) -> Problem:
    group, _, option = override.lstrip("+").partition("=")
    if group == "sweep":
        options = [*options, *(name for name in resources.sweep_names() if name not in options)]
    near = [f"{group}={name}" for name in near_names(option, options)]
    file = f"{group}/{option}.yaml"
    return Problem(
        group,
        f"an unknown option {option!r}",
        f"one of {', '.join(options)}",
        did_you_mean(near) or f"write {group}=OPTION, or add {file} to your --config-dir",
    )


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _letters(key: str) -> str:
    return key.replace(".", "").replace("_", "").lower()


def print_problems(
    problems: Sequence[Problem], terminal: Terminal, *, what: str = "nothing was run or written"
) -> None:
    """Print every problem: one sentence of what is wrong, and a line of what to type."""
    plural = "problem" if len(problems) == 1 else "problems"
    terminal.print(f"{len(problems)} {plural}; {what}.", style="bold red")
    for number, problem in enumerate(problems, start=1):
        where = (problem.where, "bold")
        terminal.print(Text.assemble(f"\n{number}. ", where, f": {problem.sentence}"))
        terminal.print(Text.assemble("   ", ("->", "green"), f" {problem.fix}"))
