"""The pages say what the program does: generated tables are current, printed commands are real."""

from __future__ import annotations

import importlib.metadata
import math
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

from optbench.cli.commands import COMMANDS
from optbench.cli.regularize import compose_images
from optbench.cli.render.plan import compose_plots
from optbench.cli.resize.plan import plan_resizes
from optbench.config.compose import compose_runs, flags_first
from optbench.errors import OptbenchError, Problem
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


_ROOT = Path(__file__).resolve().parents[1]
_PAGES = ("README.md", *(f"docs/{name}.md" for name in ("own-data", "bases", "scaling")))
_PROGRAM = re.compile(r"^ {4}(?:\.venv/bin/optbench|\.venv/bin/python -m optbench) (.*)$")
# What only a person's own folders could settle.
_YOURS = {"base.path", "base.vae", "dataset.dir", "dataset.reg_dir", "source", "lora", "y"}


def _printed_commands() -> list[str]:
    commands = []
    for page in _PAGES:
        text = (_ROOT / page).read_text("utf-8").replace("\\\n", " ")
        found = (_PROGRAM.match(line) for line in text.splitlines())
        commands += [match[1].replace(" ...", "") for match in found if match]
    return commands


@pytest.mark.parametrize("command", _printed_commands())
def test_a_printed_command_is_understood(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every setting in it exists and has a possible value; only files may be missing."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command, comments=True)
    name = words.pop(0) if words[0] in COMMANDS else "train"
    assert COMMANDS[name].config is not None or words or name == "doctor"
    composing = {"train": compose_runs, "plan": compose_runs, "resize": plan_resizes}
    composing |= {"render": compose_plots, "regularize": compose_images}
    if name not in composing or "--help" in words:
        return
    problems: tuple[Problem, ...] = ()
    try:
        composing[name](flags_first(words))
    except OptbenchError as error:
        problems = tuple(error.problems)
    assert not [one for one in problems if one.where.partition(" ")[0] not in _YOURS]


def test_the_famous_command_stands_in_the_readme() -> None:
    command = "python -m optbench -m optimizer=adamw,lion,dadaptlion network.dim=16,32,64,128"
    assert command in (_ROOT / "README.md").read_text("utf-8")
