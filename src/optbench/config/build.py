"""Hydra's tree of settings -> one frozen `RunConfig`, all problems at once; names for runs.

The YAML files hold every default; the dataclasses of `options` hold every type. A key is spelled
in the YAML, on the command line, in a run's config.yaml and in every table in one way.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from optbench.config import rules
from optbench.config.messages import first_line, unknown_key
from optbench.config.rules import check_sections
from optbench.errors import ConfigError, Problem
from optbench.lora.initial_weights import sized_by_file
from optbench.schema import OptimizerOptions, Prompt, RunConfig
from optbench.storage import resources

SETTINGS = "settings"  # the key of conf/ that lists a sweep's runs, and that no run has itself
LAUNCH = "launch"  # the key of conf/ that says how runs are made, and that no run has either
_SPELLED = {"target": "_target_"}  # field -> key, where Python would not like the key
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


def build_config(tree: DictConfig) -> RunConfig:
    """Return the config of one run, checked as far as that is possible without loading a base.

    Raises:
        ConfigError: With every unknown, missing, ill-typed, impossible and ineffective setting.
    """
    values, problems = _read_sections(tree)
    if problems:
        raise ConfigError(*problems)
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
        ConfigError: With every unknown, missing and ill-typed key of the group.
    """
    register_resolvers()
    problems: list[Problem] = []
    options = _read(kind, tree, name, where=name, problems=problems)
    if options is None or problems:
        raise ConfigError(*rules.without_repeats(problems))
    return typing.cast(_Options, options)


def build_options(kind: type[_Options], tree: DictConfig, *, where: str = "") -> _Options:
    """Return the settings of a command, or of the section `where`, that are all of one dataclass.

    Raises:
        ConfigError: With every unknown, missing and ill-typed setting.
    """
    register_resolvers()
    problems: list[Problem] = []
    options = _build(kind, tree, where=where, problems=problems)
    if options is None:
        raise ConfigError(*problems)
    return options


def _read_sections(tree: DictConfig) -> tuple[dict[str, Any], list[Problem]]:
    """Return the fields of `RunConfig`, None where one cannot be built, and every problem."""
    register_resolvers()
    problems: list[Problem] = []
    hints = typing.get_type_hints(RunConfig)
    problems += _unknown_keys(tree, list(hints), where="")
    values = {
        name: _read(hint, tree, name, where=name, problems=problems) for name, hint in hints.items()
    }
    problems += check_sections(values)
    if not problems:
        values["network"] = sized_by_file(values["network"])
    return values, rules.without_repeats(problems)


def config_yaml(config: RunConfig) -> str:
    """Return the config as YAML with every value resolved and every key spelled like its override.

    Read back through OmegaConf and `build_config` it gives an equal config.
    """
    return OmegaConf.to_yaml(OmegaConf.create(config_tree(config)))


def config_tree(config: RunConfig) -> dict[str, Any]:
    """Return the config as plain nested dictionaries and lists, keys spelled like overrides."""
    return plain_settings(config)


def plain_settings(options: Any) -> dict[str, Any]:
    """Return any options object as plain nested dictionaries, keys spelled like overrides."""
    plain = _plain(options)
    assert isinstance(plain, dict)
    return plain


def _when(given: Any, value: Any) -> Any:
    """Return a default that only means something where another setting is given."""
    return None if given is None else value


def _multiply(*factors: float) -> float:
    product = 1.0
    for factor in factors:
        product *= factor
    return product


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {
            _SPELLED.get(field.name, field.name): _plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(item, Prompt) for item in value):
            return {item.name: _without(_plain(item), "name") for item in value}
        return [_plain(item) for item in value]
    return value


def _without(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name != key}


def _read(hint: Any, node: DictConfig, key: str, *, where: str, problems: list[Problem]) -> Any:
    """Return the value of one key as its type wants it, or None after noting a problem."""
    if key not in node:
        problems.append(_missing(where))
        return None
    if OmegaConf.is_missing(node, key):
        problems.append(_missing(where))
        return None
    try:
        value = node[key]
    except OmegaConfBaseException as error:
        problems.append(
            Problem(
                where,
                f"a value that cannot be worked out ({first_line(error)})",
                _described(hint),
                f"write {where}=VALUE, or repair what it is computed from",
            )
        )
        return None
    return _convert(hint, value, where=where, problems=problems)


def _convert(hint: Any, value: Any, *, where: str, problems: list[Problem]) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        kinds = [argument for argument in arguments if argument is not type(None)]
        fitting = [kind for kind in kinds if _looks_like(kind, value)]
        return _convert((fitting or kinds)[0], value, where=where, problems=problems)
    if dataclasses.is_dataclass(hint) and isinstance(value, DictConfig):
        return _build(typing.cast("type[Any]", hint), value, where=where, problems=problems)
    if origin is tuple and arguments[0] is Prompt and isinstance(value, DictConfig):
        return _build_prompts(value, where=where, problems=problems)
    if origin is tuple and isinstance(value, ListConfig):
        return _build_tuple(hint, value, where=where, problems=problems)
    if isinstance(value, DictConfig) and origin is not None and issubclass(origin, Mapping):
        return _container(value, where=where, problems=problems)
    if (origin is Literal and _is_choice(value, arguments)) or (
        hint in (bool, int, str) and type(value) is hint
    ):
        return value
    if hint is float and type(value) in (int, float):
        return float(value)
    problems.append(Problem(where, _shown(value), _described(hint), _retyped(hint, value, where)))
    return None


def _looks_like(kind: Any, value: object) -> bool:
    """Return whether one of several types is the one a value was meant for."""
    if typing.get_origin(kind) is tuple:
        return isinstance(value, ListConfig)
    return kind is str if isinstance(value, str) else kind in (int, float, bool)


def _build(
    kind: type[_Options], node: DictConfig, *, where: str, problems: list[Problem]
) -> _Options | None:
    """Return one options object, or None after noting everything wrong inside it."""
    own: list[Problem] = []
    hints = typing.get_type_hints(kind)
    keys = {_SPELLED.get(field, field): field for field in hints}
    own += _unknown_keys(node, list(keys), where=where)
    values = {
        field: _read(
            hints[field], node, key, where=f"{where}.{key}" if where else key, problems=own
        )
        for key, field in keys.items()
    }
    problems += own
    return None if own else kind(**values)


def _build_prompts(node: DictConfig, *, where: str, problems: list[Problem]) -> tuple[Prompt, ...]:
    """Return the prompts of a mapping from name to prompt, in the mapping's order."""
    built = []
    for name in node:
        named = OmegaConf.merge({"name": str(name)}, node[name])
        assert isinstance(named, DictConfig)
        built.append(_build(Prompt, named, where=f"{where}.{name!s}", problems=problems))
    return tuple(prompt for prompt in built if prompt is not None)


def _build_tuple(
    hint: Any, value: ListConfig, *, where: str, problems: list[Problem]
) -> tuple[Any, ...] | None:
    arguments = typing.get_args(hint)
    is_open = arguments[-1] is Ellipsis
    if not is_open and len(value) != len(arguments):
        problems.append(
            Problem(
                where,
                f"{len(value)} values: {_shown(value)}",
                _described(hint),
                f"write '{where}=[{','.join(['VALUE'] * len(arguments))}]'",
            )
        )
        return None
    return tuple(
        _convert(arguments[0 if is_open else index], item, where=where, problems=problems)
        for index, item in enumerate(value)
    )


def _container(value: DictConfig, *, where: str, problems: list[Problem]) -> Any:
    try:
        return OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        problems.append(
            Problem(
                where,
                f"a value that cannot be worked out ({first_line(error)})",
                "plain values",
                "give the missing argument a value",
            )
        )
        return None


def _unknown_keys(node: DictConfig, known: Sequence[str], *, where: str) -> list[Problem]:
    problems = []
    for key in node:
        if key in known or (not where and key in (SETTINGS, LAUNCH)):
            continue
        full = f"{where}.{key!s}" if where else str(key)
        problems.append(unknown_key(full, [f"{where}.{name}" if where else name for name in known]))
    return problems


def _missing(where: str) -> Problem:
    return Problem(where, "no value", "one: this setting has no default", f"write {where}=VALUE")


def _is_choice(value: object, choices: Sequence[object]) -> bool:
    return any(type(value) is type(choice) and value == choice for choice in choices)


def _described(hint: Any) -> str:
    """Return a type as a reader of YAML would call it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if hint in names:
        return names[hint]
    if origin in (Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _described(part) for part in arguments)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in arguments)
    if origin is tuple and arguments[0] is not Prompt:
        number = (
            "a list, each" if arguments[-1] is Ellipsis else f"a list of {len(arguments)}, each"
        )
        return f"{number} {_described(arguments[0])}"
    return "a group of settings"


def _retyped(hint: Any, value: object, where: str) -> str:
    if hint is str or typing.get_origin(hint) is Literal:
        return f"write {where}=VALUE; numbers and yes/no words in YAML need quotes"
    if isinstance(value, str) and "," in value:
        return "to run every value of the list, add -m"
    if isinstance(value, ListConfig):
        return f"one value only; to run each of them: -m {where}=A,B"
    return f"write {where}=VALUE"


def _shown(value: object) -> str:
    if isinstance(value, (DictConfig, ListConfig)):
        return str(OmegaConf.to_container(value))
    names = {None: "null", True: "true", False: "false"}
    return names[value] if value is None or isinstance(value, bool) else repr(value)
