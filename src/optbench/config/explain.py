"""Word what pydantic refuses: where it is, what is there, what would fit, and what to type."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union

from annotated_types import Ge, Gt, Le, Lt

from optbench.config.messages import unknown_key
from optbench.errors import Problem, did_you_mean, near_names
from optbench.schema import Prompt, Words, key_of

_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def types_of(kind: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields by their keys, with their ranges."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {key_of(field.name): hints[field.name] for field in dataclasses.fields(kind)}


def explain(hint: Any, value: Any, where: str, error: Any) -> Problem:
    """Return one of pydantic's errors as a problem.

    Args:
        hint: The type that was read: a dataclass of `schema`, or the type of a single setting.
        value: What was to be of this type.
        where: The value's dotted key; "" for a whole command.
        error: One of `ValidationError.errors()`.
    """
    steps = list(error["loc"])
    if error["type"] == "missing" and isinstance(steps[-1], int):
        steps.pop()  # a list that is too short is wrong as a whole
    is_listed = False
    for step in steps:
        bare = _bare(hint)
        if dataclasses.is_dataclass(bare) and isinstance(step, str):
            known, group = types_of(bare), f"{where}." if where else ""
            where = f"{group}{step}"
            if step not in known:
                return unknown_key(where, [f"{group}{key}" for key in known])
            if step not in value:
                return missing(where)
            hint, value = known[step], value[step]
        elif typing.get_origin(bare) is Mapping and step in value:
            where, hint, value = f"{where}.{step}", typing.get_args(bare)[1], value[step]
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


def missing(where: str) -> Problem:
    """Return the problem of a setting that has no value anywhere."""
    return Problem(where, "no value", "one: this setting has no default", f"write {where}=VALUE")


def _shown(value: object) -> str:
    names = {None: "null", True: "true", False: "false"}
    return names[value] if value is None or isinstance(value, bool) else repr(value)
