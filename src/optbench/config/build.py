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
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union

from annotated_types import Ge, Gt, Le, Lt
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, TypeAdapter, ValidationError

from optbench.config.messages import first_line, unknown_key
from optbench.config.rules import check_sections, without_repeats
from optbench.errors import ConfigError, Problem, did_you_mean, near_names
from optbench.lora.initial_weights import ReadWeights, judge_initial_weights, sized_by_file
from optbench.schema import (
    OptimizerOptions,
    Options,
    Prompt,
    PromptOptions,
    RunConfig,
    Words,
    key_of,
)
from optbench.storage import resources

SETTINGS = "settings"  # the key of conf/ that lists a sweep's runs, and that no run has itself
LAUNCH = "launch"  # the key of conf/ that says how runs are made, and that no run has either
_ABSENT = object()
_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_Options = TypeVar("_Options")


def register_resolvers() -> None:
    """Make the functions that conf/ calls known to OmegaConf; again is harmless."""
    OmegaConf.register_new_resolver("mul", _multiply, replace=True)
    OmegaConf.register_new_resolver("pick", lambda key, choices: choices.get(key), replace=True)
    OmegaConf.register_new_resolver("divided", lambda all_, by: -(-all_ // by), replace=True)
    OmegaConf.register_new_resolver("when", _when, replace=True)
    OmegaConf.register_new_resolver("half", lambda value: value / 2, replace=True)
    OmegaConf.register_new_resolver(
        "optbench_asset", lambda name: str(resources.asset(name)), replace=True
    )
    OmegaConf.register_new_resolver(
        "optbench_root", lambda: str(resources.resource_root()), replace=True
    )
    OmegaConf.register_new_resolver(
        "optbench_sweeps", lambda *command: ", ".join(resources.sweep_names(*command)), replace=True
    )


def build_config(tree: DictConfig, read: ReadWeights | None = None) -> RunConfig:
    """Return the config of one run, checked as far as that is possible without loading a base.

    Args:
        tree: Hydra's, composed.
        read: LoRA files that other runs of the command continue; this run's joins them.

    Raises:
        ConfigError: With every unknown, missing, ill-typed, impossible and ineffective setting.
    """
    register_resolvers()
    hints = _hints(RunConfig)
    unknown = [str(key) for key in tree if key not in (*hints, SETTINGS, LAUNCH)]
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
    for key in (SETTINGS, LAUNCH):
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

    Read back through OmegaConf and `build_config` it gives an equal config.
    """
    return OmegaConf.to_yaml(OmegaConf.create(config_tree(config)))


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
    value = _plain_value(tree, key, key, problems)
    return (None, problems) if value is _ABSENT else _validated(hint, value, key, problems)


def _plain_value(
    node: DictConfig | ListConfig, key: Any, where: str, problems: list[Problem]
) -> Any:
    """Return one value of a tree, resolved and plain, or _ABSENT after noting why there is none."""
    if (isinstance(node, DictConfig) and key not in node) or OmegaConf.is_missing(node, key):
        problems.append(_missing(where))
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
    value = _with_listed_prompts(hint, value)
    wrong: list[Problem] = []
    options = None
    try:
        # Pydantic's strict mode for JSON is what YAML wants too: a list may become a tuple, a
        # mapping a group, a whole number a float, and nothing else becomes anything else.
        options = _adapter(hint).validate_json(json.dumps(value))
    except ValidationError as error:
        wrong = [_problem(hint, value, where, part) for part in error.errors(include_url=False)]
    noted = {problem.where for problem in problems}
    all_wrong = [*problems, *(one for one in dict.fromkeys(wrong) if one.where not in noted)]
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
    hints = _hints(hint)
    return {key: _with_listed_prompts(hints.get(key), item) for key, item in value.items()}


def _hints(kind: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields by their keys, with their ranges."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {key_of(field.name): hints[field.name] for field in dataclasses.fields(kind)}


def _problem(hint: Any, value: Any, where: str, error: Any) -> Problem:
    """Return one of pydantic's errors as a problem: where it is, what is there, what would fit."""
    steps = list(error["loc"])
    if error["type"] == "missing" and isinstance(steps[-1], int):
        steps.pop()  # a list that is too short is wrong as a whole
    is_listed = False
    for step in steps:
        bare = _bare(hint)
        if dataclasses.is_dataclass(bare) and isinstance(step, str):
            known, group = _hints(bare), f"{where}." if where else ""
            where = f"{group}{step}"
            if step not in known:
                return unknown_key(where, [f"{group}{key}" for key in known])
            if step not in value:
                return _missing(where)
            hint, value = known[step], value[step]
        elif typing.get_origin(bare) is tuple and isinstance(step, int):
            arguments = typing.get_args(bare)
            hint, value = arguments[0 if arguments[-1] is Ellipsis else step], value[step]
            is_listed = not (dataclasses.is_dataclass(hint) and isinstance(value, dict))
            if not is_listed:
                where = f"{where}.{value.get('name', step)}"
        else:
            break  # the parts of a union, each of which has its own error: one problem for all
    fix = f"replace {_shown(value)} in {where}" if is_listed else _fix(hint, value, where)
    return Problem(where, _shown(value), _described(hint, value), fix)


def _bare(hint: Any) -> Any:
    """Return a type without its range and without null; a union of several others as it is."""
    if typing.get_origin(hint) is Annotated:
        return _bare(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (Union, types.UnionType):
        others = [part for part in typing.get_args(hint) if part is not types.NoneType]
        return _bare(others[0]) if len(others) == 1 else hint
    return hint


def _words(hint: Any) -> Words | None:
    """Return what `schema` says of a type, or of what it is besides null."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        return next((part for part in parts if isinstance(part, Words)), None)
    is_union = typing.get_origin(hint) in (Union, types.UnionType)
    return next((words for part in parts if (words := _words(part))), None) if is_union else None


def _described(hint: Any, value: object = None) -> str:
    """Return a type and its range as a reader of YAML would call them."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _KINDS:
        is_finite = not isinstance(value, float) or math.isfinite(value)
        return _KINDS[hint] if is_finite else f"a finite {_KINDS[hint].removeprefix('a ')}"
    if hint is types.NoneType:
        return "null"
    if origin is Annotated:
        words = _words(hint)
        return words.expected if words else _described(arguments[0], value) + _range(arguments[1:])
    if origin in (Union, types.UnionType):
        return ", or ".join(_described(part, value) for part in arguments)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in arguments)
    if origin is tuple and _bare(arguments[0]) is not Prompt:
        number = "" if arguments[-1] is Ellipsis else f" of {len(arguments)}"
        return f"a list{number}, each {_described(arguments[0])}"
    return "a group of settings"


def _range(bounds: Sequence[Any]) -> str:
    words = {Gt: "above {gt}", Ge: "of {ge} or more", Lt: "below {lt}", Le: "up to {le}"}
    if {type(bound) for bound in bounds} in ({Ge, Lt}, {Ge, Le}):
        words = {Ge: "from {ge}", Le: "to {le}", Lt: "up to, but not including, {lt}"}
    return "".join(f" {words[type(bound)].format(**dataclasses.asdict(bound))}" for bound in bounds)


def _fix(hint: Any, value: object, where: str) -> str:
    """Return what to type instead of a value that is not of a type."""
    bare, words = _bare(hint), _words(hint)
    is_choice = typing.get_origin(bare) is Literal
    if isinstance(value, list) and (bare in _KINDS or is_choice):
        return f"one value only; to run each of them: -m {where}=A,B"
    if isinstance(value, str) and "," in value and bare in (int, float, bool):
        return "to run every value of the list, add -m"
    if is_choice and isinstance(value, str):
        near = near_names(value, [str(choice) for choice in typing.get_args(bare)])
        if near:
            return did_you_mean([f"{where}={name}" for name in near])
    if bare is str and not isinstance(value, str):
        return f"write {where}=VALUE; numbers and yes/no words in YAML need quotes"
    if words:
        return words.fix.format(key=where)
    if bare is bool:
        return f"write {where}=true or {where}=false"
    if is_choice:
        return f"write {where}={typing.get_args(bare)[0]}"
    if types.NoneType in typing.get_args(hint):
        return f"write {where}=null, or {_described(typing.get_args(hint)[0])}"
    bounds = typing.get_args(hint)[1:]
    if any(isinstance(bound, (Lt, Le)) for bound in bounds):
        return f"write {where}=0.1"
    if bounds and typing.get_origin(hint) is Annotated:
        return f"write {where}={1 if isinstance(bounds[0], Gt) else bounds[0].ge}"
    return f"write {where}=VALUE"


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
        return not wrong.isdisjoint(re.findall(r"[A-Za-z_][\w.]*", value))

    return [problem for problem in problems if not is_consequence(problem.where)]


def _missing(where: str) -> Problem:
    return Problem(where, "no value", "one: this setting has no default", f"write {where}=VALUE")


def _shown(value: object) -> str:
    names = {None: "null", True: "true", False: "false"}
    return names[value] if value is None or isinstance(value, bool) else repr(value)


def _when(given: Any, value: Any) -> Any:
    """Return a default that only means something where another setting is given."""
    return None if given is None else value


def _multiply(*factors: float) -> float:
    return math.prod(factors, start=1.0)
