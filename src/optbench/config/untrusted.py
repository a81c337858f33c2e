"""Refuse what files from elsewhere would make this process import or call, before it happens.

A recipe names a class, and Hydra calls what its own settings name; a file that is passed around
could name anything. Nothing here imports what it looks at.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from optbench.errors import Problem
from optbench.schema import OptimizerOptions
from optbench.storage import resources

# Nodes of `hydra` whose names are called: plugins and callbacks by Hydra, the rest by logging.
_CALLING = ("callbacks", "launcher", "sweeper", "hydra_logging", "job_logging")
_CALLED = ("_target_", "()", "class", "custom_search_space")  # the last is the Optuna plugin's
_TRUSTED = re.compile(
    r"(hydra|hydra_plugins|logging|colorlog|optuna)\.[\w.]+|optbench\.launch\.optuna\.\w+"
)
_ENVIRONMENT = re.compile(r"\$\{\s*oc\.(env|decode)\b|\$\{\s*hydra:")


def check_targets(tree: DictConfig, typed: Sequence[str]) -> list[Problem]:
    """Return everything in a composed tree that would call or look up what no file may ask for.

    Args:
        tree: What was composed, with Hydra's own settings; none of it has been acted on yet.
        typed: The command line's overrides: what a person typed is asked for.
    """
    line = " ".join(typed)
    return [*_check_hydra(tree, line), *_check_environment(tree, line)]


def import_notices(recipes: Iterable[OptimizerOptions]) -> list[str]:
    """Return a sentence for each recipe whose class no recipe of ours names.

    To be printed before its module is imported: importing runs it.
    """
    shipped = _shipped_targets()
    foreign = {recipe.target: recipe.name for recipe in recipes if recipe.target not in shipped}
    return [
        f"recipe {name} imports and runs {target}, which no recipe that ships with optbench names"
        for target, name in foreign.items()
    ]


@functools.lru_cache(maxsize=1)
def _shipped_targets() -> frozenset[str]:
    files = sorted((resources.conf_dir() / "optimizer").glob("*.yaml"))
    recipes = (yaml.safe_load(file.read_text(encoding="utf-8")) for file in files)
    return frozenset(str(recipe["_target_"]) for recipe in recipes if recipe.get("_target_"))


def _check_hydra(tree: DictConfig, line: str) -> Iterator[Problem]:
    hydra = tree.get("hydra")
    if hydra is None:
        return
    for part in (name for name in _CALLING if name in hydra.keys()):  # noqa: SIM118 - unresolved
        for where, key, value in _walk(hydra, part, f"hydra.{part}"):
            if isinstance(value, DictConfig | ListConfig) or (key not in _CALLED):
                # A whole group that another setting gives could hold anything.
                if isinstance(value, DictConfig | ListConfig) and where not in line:
                    yield _untrusted_target(where, "settings taken from elsewhere in the config")
            elif (
                value is not None and not _TRUSTED.fullmatch(str(value)) and str(value) not in line
            ):
                yield _untrusted_target(where, str(value))
    env_set = OmegaConf.select(hydra, "job.env_set")
    for name in env_set or ():
        if str(name) not in line:
            yield _untrusted_target(f"hydra.job.env_set.{name}", "an environment variable")


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
        if isinstance(value, DictConfig | ListConfig) or key in _CALLED:
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


def _check_environment(tree: DictConfig, line: str) -> Iterator[Problem]:
    recipe = tree.get("optimizer") if not OmegaConf.is_missing(tree, "optimizer") else None
    if not isinstance(recipe, DictConfig):
        return
    for where, text in _texts(OmegaConf.to_container(recipe, resolve=False), "optimizer"):
        if _ENVIRONMENT.search(text) and text not in line:
            yield Problem(
                where,
                text,
                "a recipe that reads nothing of this machine, because the report shows it",
                f"write the value itself, or on the command line '{where}={text}'",
            )


def _texts(value: Any, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(item, f"{where}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, f"{where}.{index}")
    elif isinstance(value, str):
        yield where, value


def _untrusted_target(where: str, target: str) -> Problem:
    return Problem(
        where,
        target,
        "what Hydra and its plugins bring along: anything else would be run here",
        f"look into your --config-dir; to run it all the same, type +{where}=... yourself",
    )
