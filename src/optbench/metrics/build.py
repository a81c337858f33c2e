"""Build the metrics of the group `metric`; report every problem together, loading nothing."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

from optbench.errors import ConfigError, OptbenchError, Problem
from optbench.metrics.contract import Metric
from optbench.schema import MetricOptions

_TARGET = "_target_"
_OURS = "optbench.metrics."
_MEMBERS = ("reference", "meanings", "settings", "bases", "measure")


def build_metrics(options: MetricOptions) -> dict[str, Metric]:
    """Return the metrics by the names that YAML gives them; none of them loads a model.

    Raises:
        ConfigError: With everything that `check_metric` finds.
    """
    built, problems = _built(options)
    if problems:
        raise ConfigError(*problems)
    return built


def check_metric(options: MetricOptions) -> list[Problem]:
    """Return a problem for every metric that is no class, or cannot take its arguments.

    Of a class that does not come with optbench only its package is looked for: importing a module
    runs it, and nobody has agreed to that yet.
    """
    return _built(options, imports_strangers=False)[1] if options.enabled else []


def foreign_targets(options: MetricOptions) -> dict[str, str]:
    """Return the classes that do not come with optbench, by the names of their metrics."""
    if not options.enabled:
        return {}
    targets = {
        name: entry[_TARGET]
        for name, entry in options.metrics.items()
        if isinstance(entry, Mapping) and isinstance(entry.get(_TARGET), str)
    }
    return {name: target for name, target in targets.items() if not target.startswith(_OURS)}


def _built(
    options: MetricOptions, *, imports_strangers: bool = True
) -> tuple[dict[str, Metric], list[Problem]]:
    built: dict[str, Metric] = {}
    problems: list[Problem] = []
    strangers = foreign_targets(options)
    for name, entry in options.metrics.items():
        if entry is None:
            continue
        if name in strangers:
            wrong = _check_package(strangers[name], f"metric.metrics.{name}._target_")
            problems += wrong
            if wrong or not imports_strangers:
                continue
        where = f"metric.metrics.{name}"
        try:
            metric = _metric(entry, where)
        except OptbenchError as error:
            problems += error.problems
            continue
        doubled = [
            number
            for number in metric.meanings
            if any(number in other.meanings for other in built.values())
        ]
        if doubled:
            fix = f"write {where}=null, or leave the other one out"
            problems.append(Problem(where, f"a second {doubled[0]}", "each number once", fix))
        built[name] = metric
    return built, problems


def _metric(entry: Any, where: str) -> Metric:
    if not isinstance(entry, Mapping) or not isinstance(entry.get(_TARGET), str):
        fix = f"write '{where}={{_target_: package.module.Class}}', or {where}=null for none"
        raise ConfigError(Problem(where, repr(entry), "a class and its arguments", fix))
    cls = _named_class(entry[_TARGET], f"{where}._target_")
    arguments = {str(key): value for key, value in entry.items() if key != _TARGET}
    try:
        inspect.signature(cls).bind(**arguments)
    except TypeError as error:
        known = ", ".join(inspect.signature(cls).parameters) or "none"
        fix = f"give {where} what it wants and nothing else"
        raise ConfigError(Problem(where, str(error), f"its arguments: {known}", fix)) from error
    return cast(Metric, cls(**arguments))


def _check_package(target: str, where: str) -> list[Problem]:
    """Return a problem if a class is of no package that is there; imports nothing."""
    root = target.partition(".")[0]
    if root in sys.stdlib_module_names:
        found, expected = f"{target}, of Python's own library", "a class that measures images"
        fix = f"write {where.removesuffix('._target_')}=null, unless you know who wrote it and why"
        return [Problem(where, found, expected, fix)]
    if "." in target and root and importlib.util.find_spec(root) is not None:
        return []
    expected = "the dotted path of a class that can be imported"
    fix = f"correct {target}, or install the package it is in: pip install PACKAGE"
    return [Problem(where, f"no package {root!r}, which has {target}", expected, fix)]


def _named_class(target: str, where: str) -> Callable[..., object]:
    module, _, name = target.rpartition(".")
    expected = "the dotted path of a class that can be imported"
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, ValueError) as error:
        fix = f"correct {target}, or install the package it is in: pip install PACKAGE"
        raise ConfigError(Problem(where, str(error), expected, fix)) from error
    except AttributeError as error:
        fix = f"correct the last word of {target}"
        raise ConfigError(Problem(where, f"no {name} in {module}", expected, fix)) from error
    missing = [name for name in _MEMBERS if name not in dir(cls) and name != "settings"]
    if missing:
        found = f"{target} without {', '.join(missing)}"
        fix = "give the class what optbench.metrics.contract.Metric lists"
        raise ConfigError(Problem(where, found, "a metric", fix))
    return cast("Callable[..., object]", cls)
