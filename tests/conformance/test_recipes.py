"""Every recipe under conf/optimizer does what it says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from optbench import testing
from optbench.options import OptimizerOptions, OptimizerTraits

CONF = Path(__file__).resolve().parents[2] / "conf"
RECIPES = sorted((CONF / "optimizer").glob("*.yaml"))


def load_recipe(path: Path) -> OptimizerOptions:
    # As optbench.config registers it; alone, because recipes are checked without the rest.
    OmegaConf.register_new_resolver("mul", lambda *factors: math.prod(factors), replace=True)
    tree = OmegaConf.create({"base": {"lr_scale": 1.0}, "optimizer": OmegaConf.load(path)})
    plain: Any = OmegaConf.to_container(tree, resolve=True)
    settings = plain["optimizer"]
    settings["target"] = settings.pop("_target_")
    settings["traits"] = OptimizerTraits(**settings["traits"])
    return OptimizerOptions(**settings)


def test_all_recipes_are_found() -> None:
    expected = {
        "adafactor",
        "adamw",
        "adamw8bit",
        "adamwschedulefree",
        "came",
        "dadaptadam",
        "dadaptlion",
        "lion",
        "prodigy",
        "sgdnesterov",
    }
    assert expected <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_named_like_its_file(path: Path) -> None:
    assert load_recipe(path).name == path.stem


@pytest.mark.parametrize("check", testing.RECIPE_CHECKS)
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_conforms(path: Path, check: str) -> None:
    assert testing.RECIPE_CHECKS[check](load_recipe(path)) == []
