"""Every recipe under conf/optimizer does what it says."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from optbench.config.build import build_recipe
from optbench.config.compose import compose_recipe
from optbench.optim import conformance
from optbench.schema import OptimizerOptions

CONF = Path(__file__).resolve().parents[2] / "conf"
ALIASES = {"dadaptation": "dadaptadam"}
FILES = sorted((CONF / "optimizer").glob("*.yaml"))
RECIPES = [path for path in FILES if path.stem not in ALIASES]
# Study G of the published comparisons, and what people use now.
CATALOGUE = [
    "adamw",
    "adamw8bit",
    "pagedadamw8bit",
    "pagedadamw32bit",
    "sgdnesterov",
    "sgdnesterov8bit",
    "adafactor",
    "adafactor_auto",
    "lion",
    "lion8bit",
    "pagedlion8bit",
    "dadaptadam",
    "dadaptadampreprint",
    "dadaptadan",
    "dadaptadanip",
    "dadaptsgd",
    "dadaptadagrad",
    "dadaptlion",
    "prodigy",
    "prodigyplus",
    "came",
    "radamschedulefree",
    "adamwschedulefree",
    "sgdschedulefree",
    "emonavi",
    "emofact",
    "emolynx",
    "muon",
    "soap",
    "adopt",
    "stableadamw",
    "ademamix8bit",
    "adamw_adv",
    "adopt_adv",
    "muon_adv",
]


@functools.cache
def load_recipe(path: Path) -> OptimizerOptions:
    return build_recipe(compose_recipe(path))


def test_the_whole_catalogue_is_there_each_recipe_named_like_its_file() -> None:
    assert sorted(CATALOGUE) == [path.stem for path in RECIPES]
    assert [load_recipe(path).name for path in RECIPES] == [path.stem for path in RECIPES]


@pytest.mark.parametrize("alias", ALIASES)
def test_alias_is_the_recipe_it_stands_for(alias: str) -> None:
    folder = CONF / "optimizer"
    assert load_recipe(folder / f"{alias}.yaml") == load_recipe(folder / f"{ALIASES[alias]}.yaml")


@pytest.mark.parametrize("check", conformance.RECIPE_CHECKS)
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_conforms(path: Path, check: str) -> None:
    assert conformance.RECIPE_CHECKS[check](load_recipe(path)) == []
