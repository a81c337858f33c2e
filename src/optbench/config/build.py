"""Build one frozen, checked `RunConfig` from Hydra's tree; report every problem together.

The YAML files hold every default; `schema` holds every type and range, which pydantic checks. A
key is spelled in the YAML, on the command line, in a run's config.yaml and in every table in one
way.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf._utils import get_omega_conf_dumper
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, TypeAdapter, ValidationError

from optbench.config.explain import explain, missing, types_of
from optbench.config.messages import first_line, unknown_key
from optbench.config.rules import check_sections, without_repeats
from optbench.errors import ConfigError, Problem
from optbench.lora.initial_weights import ReadWeights, judge_initial_weights, sized_by_file
from optbench.schema import (
    MetricOptions,
    OptimizerOptions,
    Options,
    Place,
    Prompt,
    PromptOptions,
    RunConfig,
    is_place,
    key_of,
)
from optbench.storage import resources
from optbench.storage.secrets import hide_in_settings

SETTINGS = "settings"  # the key of conf/ that lists a sweep's runs, and that no run has itself
SEEDS = "seeds"  # the key of conf/ that says how many seeds each setting is trained with
LAUNCH = "launch"  # the key of conf/ that says how runs are made, and that no run has either
RACE = "race"  # the key of conf/ that says how a race is run, likewise
_OF_COMMAND = (SETTINGS, SEEDS, LAUNCH, RACE)
_ABSENT = object()
_Options = TypeVar("_Options")


def _shipped_validation(split: str, dataset_dir: str) -> str | None:
    """Return the drawings to validate on that ship for a data set; None for any but our own."""
    is_ours = dataset_dir == str(resources.asset("mirelle"))
    return str(resources.asset("validation") / split) if is_ours else None


def _raced(
    scales: Mapping[str, float | None] | None, otherwise: float, *, _root_: DictConfig
) -> float:
    """Return the scale that a race found for the recipe of a tree, else another one."""
    recipe = OmegaConf.select(_root_, "optimizer.name")
    scale = scales.get(recipe) if scales and isinstance(recipe, str) else None
    return otherwise if scale is None else scale


# The functions that conf/ calls by name. None of them looks outside of the settings and of what
# ships with optbench, so files of anyone may call them.
RESOLVERS: Mapping[str, Callable[..., Any]] = {
    "mul": lambda *factors: math.prod(factors, start=1.0),
    "pick": lambda key, choices: choices.get(key),
    "raced": _raced,
    "divided": lambda total, by: -(-total // by),
    # A default that only means something where another setting is given.
    "when": lambda given, value: None if given is None else value,
    "half": lambda value: value / 2,
    "optbench_asset": lambda name: str(resources.asset(name)),
    "optbench_validation": _shipped_validation,
    "optbench_root": lambda: str(resources.resource_root()),
    "optbench_sweeps": lambda *command: ", ".join(resources.sweep_names(*command)),
}


def register_resolvers() -> None:
    """Make the functions that conf/ calls known to OmegaConf; again is harmless."""
    for name, function in RESOLVERS.items():
        OmegaConf.register_new_resolver(name, function, replace=True)


def build_config(tree: DictConfig, read: ReadWeights | None = None) -> RunConfig:
    """Return the config of one run, checked as far as that is possible without loading a base.

    Args:
        tree: Hydra's, composed.
        read: LoRA files that other runs of the command continue; this run's joins them.

    Raises:
        ConfigError: With every unknown, missing, ill-typed, impossible and ineffective setting.
    """
    register_resolvers()
    hints = types_of(RunConfig)
    unknown = [str(key) for key in tree if key not in (*hints, *_OF_COMMAND)]
    problems = [unknown_key(key, list(hints)) for key in unknown]
    # Group by group, so that the rules between the intact ones are checked whatever else is wrong.
    values: dict[str, Any] = {}
    for name, hint in hints.items():
        values[name], wrong = _read(hint, tree, name)
        problems += wrong
    problems = _without_consequences(problems, tree)
    initial = None
    if values["network"] is not None:
        initial, wrong = judge_initial_weights(values["network"], read)
        initial = None if wrong else initial
        problems += wrong
    problems += check_sections(values, initial)
    if problems:
        raise ConfigError(*without_repeats(problems))
    values["network"] = sized_by_file(values["network"], initial)
    name, scales = values["optimizer"].name, values["base"].lr_scales
    values["base"] = dataclasses.replace(
        values["base"], lr_scales={name: scales[name]} if name in scales else {}
    )
    return RunConfig(**values)


def build_recipe(tree: DictConfig) -> OptimizerOptions:
    """Return the recipe of a composed tree alone, whatever else is in it.

    Raises:
        ConfigError: With every unknown, missing and ill-typed key of the recipe.
    """
    return build_group(OptimizerOptions, "optimizer", tree)


def build_group(kind: type[_Options], name: str, tree: DictConfig) -> _Options:
    """Return the settings of one config group of a composed tree, whatever else is in it.

    Raises:
        ConfigError: With every unknown, missing, ill-typed and impossible key of the group.
    """
    register_resolvers()
    options, problems = _read(kind, tree, name)
    if problems:
        raise ConfigError(*_without_consequences(problems, tree))
    return typing.cast(_Options, options)


def build_options(kind: type[_Options], tree: DictConfig) -> _Options:
    """Return the settings of a command, which are all of one dataclass.

    Raises:
        ConfigError: With every unknown, missing, ill-typed and impossible setting.
    """
    register_resolvers()
    problems: list[Problem] = []
    values = _plain_values(tree, "", problems)
    for key in _OF_COMMAND:
        values.pop(key, None)
    options, wrong = _validated(kind, values, "", problems)
    if wrong:
        raise ConfigError(*_without_consequences(wrong, tree))
    return typing.cast(_Options, options)


def check_value(hint: Any, value: object, where: str) -> list[Problem]:
    """Return what keeps a single value from being one of a type of `schema`."""
    return _validated(hint, value, where, [])[1]


def config_yaml(config: RunConfig) -> str:
    """Return the config as YAML with every value resolved and every key spelled like its override.

    Read back and built with `build_config` it gives an equal config, but for the secrets of
    trackers, which are in no file.
    """
    tree = config_tree(config)
    tree["tracker"] = hide_in_settings(tree["tracker"])
    return tree_yaml(tree)


def tree_yaml(tree: Mapping[str, Any]) -> str:
    """Return plain nested settings as OmegaConf writes them; a text with `${` in it is a text."""
    dumper = get_omega_conf_dumper()
    text: str = yaml.dump(
        dict(tree), default_flow_style=False, allow_unicode=True, sort_keys=False, Dumper=dumper
    )
    return text


def config_tree(options: Any) -> dict[str, Any]:
    """Return a config or its groups as plain nested dictionaries, keys spelled like overrides."""
    plain = _plain(options)
    assert isinstance(plain, dict)
    return plain


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {
            key_of(field.name): _plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        plain = [_plain(item) for item in value]
        # In YAML prompts are a mapping, so that one of them can be overridden by its name.
        if value and all(isinstance(item, Prompt) for item in value):
            return {prompt.pop("name"): prompt for prompt in plain}
        return plain
    return value


def _read(hint: Any, tree: DictConfig, key: str) -> tuple[Any, list[Problem]]:
    """Return the value of one key of the tree, None after a problem, and every problem in it."""
    problems: list[Problem] = []
    value = _whole_group(tree, key)
    if value is _ABSENT:
        value = _plain_value(tree, key, key, problems)
    return (None, problems) if value is _ABSENT else _validated(hint, value, key, problems)


def _whole_group(tree: DictConfig, key: str) -> Any:
    """Return a group in which everything has a value, resolved and plain; else _ABSENT.

    As `_plain_value` gives it, and several times as fast; that one finds what is wrong.
    """
    node = tree._get_node(key, validate_access=False)
    if not isinstance(node, DictConfig) or node._is_interpolation() or node._is_missing():
        return _ABSENT
    try:
        value = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException:
        return _ABSENT
    return value if _is_plain(value) else _ABSENT


def _is_plain(value: Any) -> bool:
    """Return whether a value is as JSON has it: nothing is left to be converted or refused."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)
    return value is None or isinstance(value, (bool, int, float))


def _plain_value(
    node: DictConfig | ListConfig, key: Any, where: str, problems: list[Problem]
) -> Any:
    """Return one value of a tree, resolved and plain, or _ABSENT after noting why there is none."""
    if (isinstance(node, DictConfig) and key not in node) or OmegaConf.is_missing(node, key):
        problems.append(missing(where))
        return _ABSENT
    try:
        value = node[key]
    except OmegaConfBaseException as error:
        problems.append(
            Problem(
                where,
                f"a value that cannot be worked out ({first_line(error)})",
                "a value",
                f"write {where}=VALUE, or repair what it is computed from",
            )
        )
        return _ABSENT
    return _plain_values(value, where, problems)


def _plain_values(value: Any, where: str, problems: list[Problem]) -> Any:
    """Return a value and all that is in it as JSON has them, without what cannot be read."""
    if isinstance(value, DictConfig):
        prefix = f"{where}." if where else ""
        items = {str(key): _plain_value(value, key, f"{prefix}{key!s}", problems) for key in value}
        return {key: item for key, item in items.items() if item is not _ABSENT}
    if isinstance(value, ListConfig):
        listed = [_plain_value(value, index, where, problems) for index in range(len(value))]
        return [item for item in listed if item is not _ABSENT]
    is_half_a_character = isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value)
    if (value is None or isinstance(value, (bool, int, float, str))) and not is_half_a_character:
        return value
    problems.append(
        Problem(where, ascii(value), "text, a number, true, false or null", f"write {where}=VALUE")
    )
    return _ABSENT


def _validated(
    hint: Any, value: Any, where: str, problems: Sequence[Problem] = ()
) -> tuple[Any, list[Problem]]:
    """Return a plain value as its type wants it, None after a problem, and every problem.

    Args:
        hint: A dataclass or another type of `schema`.
        value: What the tree has, resolved.
        where: The value's dotted key; "" for a whole command.
        problems: What was wrong with the value's parts already.
    """
    value = with_home(hint, _with_listed_prompts(hint, value))
    wrong: list[Problem] = []
    options = None
    try:
        # Pydantic's strict mode for JSON is what YAML wants too: a list may become a tuple, a
        # mapping a group, a whole number a float, and nothing else becomes anything else.
        options = _adapter(hint).validate_json(json.dumps(value))
    except ValidationError as error:
        wrong = [explain(hint, value, where, part) for part in error.errors(include_url=False)]
    noted = {problem.where for problem in problems}
    all_wrong = [*problems, *(item for item in dict.fromkeys(wrong) if item.where not in noted)]
    return (None, all_wrong) if all_wrong else (options, [])


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    is_group = dataclasses.is_dataclass(hint)  # which brings its own configuration
    config = typing.cast(ConfigDict, Options.__pydantic_config__)
    return TypeAdapter(hint, config=None if is_group else config)


def _with_listed_prompts(hint: Any, value: Any) -> Any:
    """Return a value with every mapping from name to prompt as a list of prompts with names."""
    if not (dataclasses.is_dataclass(hint) and isinstance(value, dict)):
        return value
    if hint is PromptOptions and isinstance(value.get("prompts"), dict):
        prompts = [
            {"name": name, **prompt} if isinstance(prompt, dict) else prompt
            for name, prompt in value["prompts"].items()
        ]
        return {**value, "prompts": prompts}
    hints = types_of(hint)
    return {key: _with_listed_prompts(hints.get(key), item) for key, item in value.items()}


def with_home(hint: Any, value: Any) -> Any:
    """Return a value in which every file or folder that begins with `~` has its whole path."""
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        hints = types_of(hint)
        value = {key: with_home(hints.get(key), item) for key, item in value.items()}
        if hint is MetricOptions and isinstance(value.get("metrics"), dict):
            # Of any class: what it calls its `path` is one.
            value["metrics"] = {
                name: {**entry, "path": with_home(Place, entry["path"])}
                if isinstance(entry, dict) and "path" in entry
                else entry
                for name, entry in value["metrics"].items()
            }
        return value
    if not is_place(hint):
        return value
    if isinstance(value, list):
        return [with_home(hint, item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) else value  # noqa: PTH111


def _without_consequences(problems: Sequence[Problem], tree: DictConfig) -> list[Problem]:
    """Return the problems but those of values that are computed from another wrong one.

    So dim 0 is one mistake, though the alpha that is half of it is not above 0 either.
    """
    plain = OmegaConf.to_container(tree, resolve=False)
    wrong = {problem.where for problem in problems}

    def is_consequence(where: str) -> bool:
        value: Any = plain
        for key in where.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, str) or "${" not in value:
            return False
        names = re.findall(r"[A-Za-z_][\w.]*", value)
        return any(
            place == name or place.startswith(f"{name}.") for place in wrong for name in names
        )

    return [problem for problem in problems if not is_consequence(problem.where)]
