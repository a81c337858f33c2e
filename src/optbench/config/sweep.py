"""Expand a command line of several runs: listed settings times the values swept over.

`hydra.sweeper.params` and `key=a,b` are Hydra's own product. `settings` is a list beside it: every
entry holds overrides as one would type them, and is one run of the sweep for each member of the
product. Hydra's grammar and Hydra's basic sweeper do the expanding, entry by entry.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from optbench.config import messages
from optbench.config.build import SEEDS, SETTINGS
from optbench.config.quoting import quoted
from optbench.errors import Problem

_MAX_NAME_LENGTH = 120
_NUM_HASH_DIGITS = 8
_SINGLE = "single"
_PROMPT_TEXT = re.compile(r"\+*prompts\.prompts\.[^.]+\.(text|negative)")
# What belongs to the whole command line, and to no single entry of a list.
_NOT_LISTED = re.compile(
    r"hydra([./].*)?|sweep|settings(\..*)?|seeds|sweep_name|runs_dir|cache_dir|launch(\..*)?|race(\..*)?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expanded:
    """One run's overrides, and the name of the listed setting they come from."""

    setting: str | None  # None: nothing is listed
    overrides: tuple[str, ...]


def listed_settings(tree: DictConfig) -> Any:
    """Return what the composed tree lists, as plain values; an empty mapping where nothing is."""
    node = tree.get(SETTINGS)
    return OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node or {}


def expand(
    loader: ConfigLoader, master: DictConfig, lines: Sequence[str], problems: list[Problem]
) -> tuple[list[Expanded], list[str]]:
    """Return every run's overrides, entry by entry of the list, and the keys swept over.

    With `seeds` above 1 all of them come again for each further seed, without images.

    Args:
        loader: Hydra's, which knows the options that `glob()` stands for.
        master: The sweep's composed tree, with the list.
        lines: The sweep's parameters and the command line's overrides, in this order.
        problems: Everything wrong is added to it.
    """
    shared = _of_runs(lines)
    listed = listed_settings(master)
    if not listed:
        product, keys = _product(loader, shared, problems)
        once = [Expanded(setting=None, overrides=tuple(run)) for run in product]
        return _with_further_seeds(once, keys, master, lines, problems), keys
    if not isinstance(listed, Mapping):
        problems.append(messages.settings_without_names(listed))
        return [], []
    shared_keys = {_key(line) for line in shared}
    runs: list[Expanded] = []
    swept: list[str] = []
    for name, text in listed.items():
        overrides = _entry(str(name), text, shared_keys, problems)
        if overrides is None:
            continue
        product, keys = _product(loader, [*shared, *overrides], problems)
        runs += [Expanded(setting=str(name), overrides=tuple(run)) for run in product]
        swept += [key for key in keys if key not in swept]
    return _with_further_seeds(runs, swept, master, lines, problems), [*swept, SETTINGS]


def num_seeds(tree: DictConfig, problems: list[Problem]) -> int:
    """Return how many seeds each setting is trained with; 1 after noting what else is there."""
    number = tree.get(SEEDS, 1)
    if isinstance(number, int) and not isinstance(number, bool) and number >= 1:
        return number
    problems.append(messages.no_number_of_seeds(number))
    return 1


def _with_further_seeds(
    runs: Sequence[Expanded],
    swept: Sequence[str],
    master: DictConfig,
    lines: Sequence[str],
    problems: list[Problem],
) -> list[Expanded]:
    number = num_seeds(master, problems)
    typed = [line for line in lines if _key(line) == SEEDS]
    problems += [
        messages.no_number_of_seeds(line) for line in typed if _override(line).is_sweep_override()
    ]
    if "seed" in swept:
        if number > 1 and typed:
            problems.append(messages.seeds_given_twice(number))
        return [*runs]  # listed seeds take the place of a file's number
    repeated = [*runs]
    for further in range(1, number):
        for run in runs:
            given = [line.partition("=")[2] for line in run.overrides if _key(line) == "seed"]
            first = given[-1] if given else str(master.seed)
            if first.isdecimal():  # any other is refused with the run itself
                overrides = (*run.overrides, f"seed={int(first) + further}", "render.enabled=false")
                repeated.append(Expanded(setting=run.setting, overrides=overrides))
    return repeated


def only_run(
    overrides: Sequence[str], problems: list[Problem], *, is_multirun: bool, command: str = ""
) -> tuple[list[Expanded], list[str]]:
    """Return one run's overrides, and the keys that a sweeper plugin will choose values for.

    Values to sweep are a problem where no sweeper takes them.
    """
    fixed: list[str] = []
    swept: list[str] = []
    for override in _of_runs(overrides):
        is_swept = _override(override).is_sweep_override()
        if is_swept and not is_multirun:
            problems.append(messages.needs_multirun(override, command))
        (swept if is_swept else fixed).append(override)
    return [Expanded(setting=None, overrides=tuple(fixed))], [_key(line) for line in swept]


def sweep_folder(swept: Sequence[str]) -> str:
    """Return a folder name for a sweep over these keys, never too long for a file system."""
    name = ",".join(key.replace("/", ".") for key in swept) or _SINGLE
    if len(name) <= _MAX_NAME_LENGTH:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:_NUM_HASH_DIGITS]
    return f"{name[:_MAX_NAME_LENGTH]}-{digest}"


def parsable(
    overrides: Sequence[str], problems: list[Problem], *, where: str = "the command line"
) -> list[str]:
    """Return the overrides that obey Hydra's grammar, after noting those that do not."""
    good = []
    for override in overrides:
        try:
            _override(override)
        except HydraException as error:
            problems.append(messages.unreadable_override(override, error, where=where))
        else:
            good.append(override)
    return good


def with_quoted_texts(overrides: Sequence[str], problems: list[Problem]) -> list[str]:
    """Return the overrides with prompts as one text each, after noting those that are a list.

    A prompt full of commas looks like values to sweep; nobody sweeps prompts, which train nothing.
    """
    single = []
    for override in overrides:
        key, _, text = override.partition("=")
        if _PROMPT_TEXT.fullmatch(key) and _override(override).is_sweep_override():
            problems.append(messages.unquoted_text(key, text))
            override = f"{key}={quoted(text)}"
        single.append(override)
    return single


def named_by_setting(by_setting: Mapping[str | None, Sequence[Problem]]) -> list[Problem]:
    """Return every problem once, with the listed settings that have it unless all of them do.

    Args:
        by_setting: The problems of each listed setting's runs, also where there are none.
    """
    names: dict[Problem, list[str | None]] = {}
    for name, problems in by_setting.items():
        for problem in dict.fromkeys(problems):
            names.setdefault(problem, []).append(name)
    merged = []
    for problem, having in names.items():
        listed = [f"{SETTINGS}.{name}" for name in having if name is not None]
        is_shared = len(having) == len(by_setting) > 1
        if listed and not is_shared:
            problem = dataclasses.replace(problem, where=f"{problem.where} in {', '.join(listed)}")
        merged.append(problem)
    return merged


def _entry(
    name: str, text: object, shared_keys: set[str], problems: list[Problem]
) -> list[str] | None:
    """Return the overrides of one entry of the list, or None after noting what is wrong with it.

    Args:
        name: The entry's name.
        text: What it holds.
        shared_keys: The keys that the rest of the sweep gives.
        problems: Everything wrong is added to it.
    """
    where = f"{SETTINGS}.{name}"
    if not isinstance(text, str):
        problems.append(messages.setting_not_typed(where, text))
        return None
    wrong: list[Problem] = []
    try:
        words = shlex.split(text)
    except ValueError as error:
        problems.append(messages.setting_not_typed(where, f"{text} ({error})"))
        return None
    overrides = parsable(words, wrong, where=where)
    unquoted: list[Problem] = []
    overrides = with_quoted_texts(overrides, unquoted)
    wrong += [dataclasses.replace(text, where=f"{text.where} in {where}") for text in unquoted]
    keys = [_key(line) for line in overrides]
    wrong += [
        messages.setting_out_of_place(where, key) for key in keys if _NOT_LISTED.fullmatch(key)
    ]
    wrong += [
        messages.setting_given_twice(where, key)
        for key in dict.fromkeys(keys)
        if key in shared_keys or keys.count(key) > 1
    ]
    problems += wrong
    return None if wrong else overrides


def _product(
    loader: ConfigLoader, lines: Sequence[str], problems: list[Problem]
) -> tuple[list[list[str]], list[str]]:
    """Return every run's overrides as Hydra's basic sweeper makes them, and the swept keys."""
    try:
        parsed = OverridesParser.create(loader).parse_overrides(list(lines))
        (expanded,) = BasicSweeper.split_arguments(parsed, None)
    except HydraException as error:
        problems.append(messages.cannot_expand(error))
        return [], []
    if not expanded:
        problems.append(messages.empty_sweep(lines))
    last = {override.get_key_element(): override for override in parsed}
    return expanded, [key for key, override in last.items() if override.is_sweep_override()]


def sweep_params(master: DictConfig, problems: list[Problem]) -> list[str]:
    """Return what `hydra.sweeper.params` sweeps over, as lines of a command."""
    params = OmegaConf.to_container(master.hydra.sweeper.params or OmegaConf.create({}))
    assert isinstance(params, dict)
    lines = []
    for key, value in params.items():
        if is_hydras(str(key)):
            problems.append(messages.hydra_setting_in_sweep(str(key)))
        elif isinstance(value, str):
            lines.append(f"{key!s}={value}")
        else:
            problems.append(messages.not_a_string(str(key), value))
    return lines


def is_hydras(override: str) -> bool:
    """Return whether an override is one of Hydra's own settings."""
    return re.match(r"[+~]*hydra\b", override) is not None


def _of_runs(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that a run is made from: not Hydra's own, the list or the seeds."""
    return [
        override
        for override in overrides
        if not is_hydras(override)
        and re.split(r"[.=]", override.lstrip("+~"), maxsplit=1)[0] not in (SETTINGS, SEEDS)
    ]


def _key(override: str) -> str:
    return _override(override).get_key_element().lstrip("+~")


def _override(text: str) -> Override:
    return OverridesParser.create().parse_override(text)
