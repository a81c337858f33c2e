"""A recipe from any file, composed as if it lay in conf/optimizer/."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from omegaconf import DictConfig

from optbench.composition import CONFIG_NAME, compose_tree, hydra_session
from optbench.errors import ConfigError, Problem

_OPTION_NAME = re.compile(r"[A-Za-z0-9_-]+")


def compose_recipe(file: Path) -> DictConfig:
    """Return the tree of a default run with a recipe from any file; base.lr_scale is 1.

    Raises:
        ConfigError: If the file is not there or is no YAML that Hydra can compose.
    """
    problems: list[Problem] = []
    if not (file.is_file() and file.suffix == ".yaml" and _OPTION_NAME.fullmatch(file.stem)):
        raise ConfigError(
            Problem(
                found=f"{file}, which is no such file",
                expected="a recipe NAME.yaml with letters, digits, _ and - in its name",
                where="the command line",
                fix="copy one of conf/optimizer/ and change it",
            )
        )
    with tempfile.TemporaryDirectory() as folder:
        # Hydra looks for optimizer/NAME.yaml; beside it may lie recipes it is based on.
        (Path(folder) / "optimizer").symlink_to(file.parent.resolve())
        with hydra_session(folder, CONFIG_NAME) as hydra:
            overrides = [f"optimizer={file.stem}", "base.lr_scale=1.0"]
            tree, _ = compose_tree(hydra, overrides, problems=problems)
    if problems:
        raise ConfigError(*problems)
    return tree
