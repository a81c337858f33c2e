"""The pages that are made from other files are as those files are."""

from __future__ import annotations

import importlib.metadata
import math
from collections import Counter

import pytest

from tests.benchmarks import optimizer_costs


def test_the_table_of_optimizers_is_made_from_the_recipes() -> None:
    recipes = optimizer_costs.shipped_recipes()
    expected = optimizer_costs.page(recipes, optimizer_costs.read_costs())
    assert optimizer_costs.PAGE.read_text(encoding="utf-8") == expected, "type make docs"


def test_every_recipe_was_measured_with_the_package_that_is_installed() -> None:
    costs = optimizer_costs.read_costs()
    recipes = {recipe.name: recipe for recipe in optimizer_costs.shipped_recipes()}
    assert set(costs) == set(recipes)
    installed = {name: importlib.metadata.version(one.package) for name, one in recipes.items()}
    measured = {name: cost.version for name, cost in costs.items()}
    assert measured == {name: version.partition("+")[0] for name, version in installed.items()}


@pytest.mark.slow
def test_costs_are_measured_on_the_shapes_of_a_real_lora() -> None:
    numbers: Counter[str] = Counter()
    for part, shape in optimizer_costs.lora_shapes(8):
        numbers[part] += math.prod(shape)
    # Of SD1.x at dim 8, as kohya's trainer counts them.
    assert numbers == {"text_encoder": 1_327_104, "unet": 3_391_488}
