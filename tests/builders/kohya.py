"""Commands of kohya's trainer as our settings, for the tests that import them."""

from __future__ import annotations

import copy
import functools
import itertools
import tempfile
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, open_dict

from optbench.cli.trainers.imported import Imported
from optbench.cli.trainers.kohya.import_script import convert
from optbench.cli.trainers.kohya.read_script import read_training
from optbench.config.build import build_config, config_tree
from optbench.config.compose import compose_tree, hydra_session
from optbench.errors import Problem
from optbench.schema import RunConfig

SCRIPTS = {"sd15": "train_network.py", "sdxl": "sdxl_train_network.py"}


def imported(options: str, *, family: str = "sd15") -> Imported:
    """Return what a command with these options means."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "train.sh")
        file.write_text(f"accelerate launch {SCRIPTS[family]} {options}\n")
        return convert(read_training(file), folder=file.parent)


@functools.cache
def _composed(groups: tuple[str, ...]) -> DictConfig:
    problems: list[Problem] = []
    with hydra_session(None, "config") as hydra:
        tree, kept = compose_tree(hydra, list(groups), problems=problems)
    assert not problems, problems
    assert len(kept) == len(groups)
    with open_dict(tree):
        del tree["hydra"]
    return tree


def config_of(*overrides: str) -> RunConfig:
    """Return the checked settings of overrides, as Hydra applies them, groups first."""
    is_group = ["." not in override.partition("=")[0] for override in overrides]
    tree = copy.deepcopy(_composed(tuple(itertools.compress(overrides, is_group))))
    others = [override for override, group in zip(overrides, is_group, strict=True) if not group]
    parsed = OverridesParser.create().parse_overrides(others)
    ConfigLoaderImpl._apply_overrides_to_config(parsed, tree)
    return build_config(tree)


def tree_of(*overrides: str) -> dict[str, Any]:
    """Return the settings of overrides as a run's config.yaml holds them."""
    return config_tree(config_of(*overrides))


def runnable(overrides: list[str]) -> list[str]:
    """Return imported overrides with a checkpoint and images named, where none were.

    Tests that build them replace `rules.check_base`: there is no such checkpoint.
    """
    names = [override.partition("=")[0] for override in overrides]
    missing = {"base.path": "/models/base.safetensors", "dataset.dir": "/images"}
    return [*overrides, *(f"{key}={path}" for key, path in missing.items() if key not in names)]


@functools.cache
def imported_config(options: str, *, family: str = "sd15") -> RunConfig:
    """Return the settings that a command of kohya's trainer has here."""
    return config_of(*runnable(imported(options, family=family).overrides))
