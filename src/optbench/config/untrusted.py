"""Refuse what files from elsewhere would make this process import or call, before it happens.

A recipe names a class, and Hydra calls what its own settings name; a file that is passed around
could name anything. Nothing here imports what it looks at.
"""

from __future__ import annotations

import errno
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException
from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser
from omegaconf.grammar_parser import parse

from optbench.config.build import RESOLVERS
from optbench.errors import Problem
from optbench.metrics.build import foreign_targets
from optbench.schema import MetricOptions, OptimizerOptions
from optbench.storage import resources
from optbench.storage.disk import read_text

# Nodes of `hydra` whose names are called: plugins and callbacks by Hydra, the rest by logging.
_CALLING = ("callbacks", "launcher", "sweeper", "hydra_logging", "job_logging")
_CALLED = ("_target_", "()", "class")
# Every name whole: hydra.utils has functions that import whatever they are given.
_TRUSTED = re.compile(
    r"hydra\._internal\.core_plugins\.basic_(launcher|sweeper)\.Basic(Launcher|Sweeper)"
    r"|hydra\.experimental\.callbacks\.\w+"
    r"|hydra_plugins\.hydra_(joblib_launcher|submitit_launcher|ray_launcher)\.\w+\.\w+"
    r"|hydra_plugins\.optbench_(list_sweeper\.ListSweeper|race_sweeper\.RaceSweeper|optuna_sweeper\.OptunaSweeper)"
    r"|logging\.(StreamHandler|FileHandler|NullHandler|Formatter)|colorlog\.ColoredFormatter"
)
_OUTPUT_DIR = "${hydra.runtime.output_dir}/"  # where the log files of Hydra's own settings go
# What a file may call while its values are worked out: none of it looks outside of the settings.
_PURE_RESOLVERS = frozenset(
    (*RESOLVERS, "oc.select", "oc.deprecated", "oc.dict.keys", "oc.dict.values")
)
_OTHER_BASE = re.compile(r"[-+]?(0[0-7_]+|[0-9_]+(:[0-5]?[0-9])+(\.[0-9_]*)?)")
_HYDRAS_RESOLVERS = frozenset(("hydra", "now", "python_version"))


@dataclass(frozen=True, slots=True)
class Typed:
    """The settings that a person typed: they were asked for, whatever they name."""

    keys: frozenset[str] = frozenset()

    @classmethod
    def of(cls, overrides: Iterable[Override]) -> Typed:
        """Return the settings of a command line's overrides."""
        return cls(
            frozenset(
                path
                for override in overrides
                for path, _ in leaves(override.value(), _key(override))
            )
        )

    def covers(self, where: str) -> bool:
        """Return whether a setting, or a whole that it is part of, was typed."""
        parts = where.split(".")
        return any(".".join(parts[:length]) in self.keys for length in range(1, len(parts) + 1))


def check_tree(tree: DictConfig, typed: Typed) -> list[Problem]:
    """Return everything in a composed tree that would call or look up what no file may ask for.

    Args:
        tree: What was composed, with Hydra's own settings; none of it has been acted on yet.
        typed: The settings that a person typed.
    """
    problems = list(_check_hydra(tree, typed))
    for where, text in leaves(OmegaConf.to_container(tree, resolve=False), ""):
        problems += _check_text(where, text, typed)
    return problems


def check_overrides(overrides: Iterable[Override], typed: Typed) -> list[Problem]:
    """Return the same of overrides that come out of a sweep's file."""
    problems: list[Problem] = []
    for override in overrides:
        key = _key(override)
        if re.match(r"hydra\b", key) and not typed.covers(key):
            problems.append(_untrusted_target(key, "a setting of Hydra's inside a sweep"))
        for where, text in leaves(override.value(), key):
            problems += _check_text(where, text, typed)
    return problems


def check_config_dir(folder: Path, config_names: Sequence[str]) -> list[Problem]:
    """Return what in a folder of config groups would be acted on while it is composed."""
    problems = [
        Problem(
            f"--config-dir {folder}",
            f"{name}.yaml, which would take the place of optbench's own",
            "config groups, each a folder: optimizer/mine.yaml",
            f"move {folder / name}.yaml away",
        )
        for name in config_names
        if (folder / f"{name}.yaml").is_file()
    ]
    for file in sorted(folder.rglob("*.yaml")):
        try:
            text = read_text(file)
            content = yaml.safe_load(text)
            problems += _check_numbers(file, yaml.compose(text, Loader=yaml.SafeLoader))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            # Hydra would wait for a named pipe; the rest is said where it is used.
            if isinstance(error, OSError) and error.errno == errno.EINVAL:
                found, fix = str(error.strerror), "remove it"
                problems.append(Problem(str(file), found, "a YAML file", fix))
            continue
        defaults = content.get("defaults") if isinstance(content, dict) else None
        for where, text in leaves(defaults, f"defaults of {file}"):
            problems += _check_text(where, text, Typed())
    return problems


def _check_numbers(file: Path, root: yaml.Node | None) -> Iterator[Problem]:
    """Yield a problem for every number that YAML reads in base 8 or base 60: 010, 1:30."""
    waiting: list[Any] = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif (
            isinstance(node, yaml.ScalarNode)
            and node.tag.endswith((":int", ":float"))
            and _OTHER_BASE.fullmatch(node.value)
        ):
            yield Problem(
                f"{file} line {node.start_mark.line + 1}",
                f"{node.value}, which YAML reads as {yaml.safe_load(node.value)}",
                "a decimal number without zeros in front, or text in quotes",
                f'write "{node.value}" for the text, or the number that is meant',
            )


def import_notices(
    recipes: Iterable[OptimizerOptions], metrics: Iterable[MetricOptions] = ()
) -> list[str]:
    """Return a sentence for each recipe and metric whose class does not come with optbench.

    To be printed before its module is imported: importing runs it.
    """
    shipped = shipped_targets()
    foreign = {recipe.target: recipe.name for recipe in recipes if recipe.target not in shipped}
    measuring = {target: name for one in metrics for name, target in foreign_targets(one).items()}
    return [
        f"recipe {name} imports and runs {target}, which no recipe that ships with optbench names"
        for target, name in foreign.items()
    ] + [
        f"metric {name} imports and runs {target}, which does not come with optbench"
        for target, name in measuring.items()
    ]


@functools.lru_cache(maxsize=1)
def shipped_targets() -> frozenset[str]:
    """Return the classes that recipes of ours name."""
    files = sorted((resources.conf_dir() / "optimizer").glob("*.yaml"))
    recipes = (yaml.safe_load(file.read_text(encoding="utf-8")) for file in files)
    return frozenset(str(recipe["_target_"]) for recipe in recipes if recipe.get("_target_"))


def _check_hydra(tree: DictConfig, typed: Typed) -> Iterator[Problem]:
    hydra = tree.get("hydra")
    if hydra is None:
        return
    for part in (name for name in _CALLING if name in hydra.keys()):  # noqa: SIM118 - unresolved
        for where, key, value in _walk(hydra, part, f"hydra.{part}"):
            if typed.covers(where):
                continue
            if isinstance(value, DictConfig | ListConfig):
                # A whole group that another setting gives could hold anything.
                yield _untrusted_target(where, "settings taken from elsewhere in the config")
            elif key in _CALLED and value is not None and not _TRUSTED.fullmatch(str(value)):
                yield _untrusted_target(where, str(value))
            elif key == "filename" and not _is_log_file(hydra, where):
                yield _untrusted_target(where, "a file that Hydra would write to")
    env_set = OmegaConf.select(hydra, "job.env_set")
    for name in env_set or ():
        where = f"hydra.job.env_set.{name}"
        if not typed.covers(where):
            yield _untrusted_target(where, "an environment variable")


def _is_log_file(hydra: DictConfig, where: str) -> bool:
    raw = OmegaConf.to_container(hydra, resolve=False)
    for key in where.split(".")[1:]:
        raw = raw[key] if isinstance(raw, dict) else raw[int(key)]  # type: ignore[index]
    return isinstance(raw, str) and raw.startswith(_OUTPUT_DIR) and ".." not in raw


def _walk(node: Any, key: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield what a node holds: its leaves, and groups that are only references to others."""
    if OmegaConf.is_missing(node, key):
        return
    raw = node._get_node(key)
    if raw is not None and raw._is_interpolation():
        try:
            value = node[key]
        except OmegaConfBaseException:
            value = None  # worked out when the run's folder is known: a path
        if isinstance(value, DictConfig | ListConfig) or key in (*_CALLED, "filename"):
            yield where, key, value
        return
    value = node[key]
    if isinstance(value, DictConfig):
        for name in value:
            yield from _walk(value, name, f"{where}.{name!s}")
    elif isinstance(value, ListConfig):
        for index in range(len(value)):
            yield from _walk(value, index, f"{where}.{index}")
    else:
        yield where, key, value


def _check_text(where: str, text: object, typed: Typed) -> Iterator[Problem]:
    """Yield a problem if a value would look outside of the settings while it is worked out."""
    if not isinstance(text, str) or "${" not in text or typed.covers(where):
        return
    of_hydra = _HYDRAS_RESOLVERS if where.startswith("hydra.") else frozenset()
    for name in _resolvers(text):
        if name not in _PURE_RESOLVERS | of_hydra:
            yield Problem(
                where,
                f"{text}, which looks up {name or 'what another setting names'}",
                "a file that reads nothing of this machine, because reports and images show it",
                f"write the value itself, or on the command line '{where}={text}'",
            )
            return


@functools.lru_cache(maxsize=4096)
def _resolvers(text: str) -> tuple[str, ...]:
    """Return the resolvers that OmegaConf would call for a text; "" for a name worked out there."""
    try:
        pending: list[Any] = [parse(text)]
    except GrammarParseError:
        return ()  # OmegaConf cannot work it out either
    names = []
    while pending:
        node = pending.pop()
        if isinstance(node, OmegaConfGrammarParser.InterpolationResolverContext):
            name: Any = node.resolverName()  # type: ignore[no-untyped-call]
            is_fixed = name is not None and not any(
                isinstance(part, OmegaConfGrammarParser.InterpolationContext)
                for part in name.getChildren()
            )
            names.append(name.getText() if is_fixed else "")
        pending += list(node.getChildren()) if hasattr(node, "getChildren") else []
    return tuple(names)


def leaves(value: Any, where: str, *, lists: bool = True) -> Iterator[tuple[str, Any]]:
    """Yield every single value of nested ones by its dotted key.

    Args:
        value: Nested mappings and lists.
        where: Its own key.
        lists: False: a list is a single value.
    """
    prefix = f"{where}." if where else ""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from leaves(item, f"{prefix}{name}", lists=lists)
    elif lists and isinstance(value, (list, tuple)) and value:
        for index, item in enumerate(value):
            yield from leaves(item, f"{prefix}{index}")
    else:
        yield where, value


def _key(override: Override) -> str:
    return (
        override.key_or_group.replace("/", ".")
        if override.key_or_group.startswith("hydra/")
        else override.key_or_group
    )


def _untrusted_target(where: str, target: str) -> Problem:
    return Problem(
        where,
        target,
        "what Hydra and its plugins bring along: anything else would be run here",
        f"look into your --config-dir; to run it all the same, type +{where}=... yourself",
    )
