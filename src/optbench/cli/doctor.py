"""`python -m optbench doctor [RECIPE.yaml]`: what can run here; does a recipe keep its word?

Without an argument: versions, devices, and for every recipe of conf/optimizer whether it can run
here. With recipe files: the conformance suite that every shipped recipe passes, on each of them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from optbench.config.build import build_recipe
from optbench.config.compose import compose_recipe
from optbench.config.messages import print_problems
from optbench.errors import OptbenchError
from optbench.optim.recipes import check_package, departures
from optbench.schema import OptimizerOptions
from optbench.storage import provenance, resources

_FINE = 0
_BROKEN_WORD = 1
_BAD_INPUT = 2
_PACKAGES = ("optbench", "diffusers", "transformers", "accelerate", "safetensors")
_WIDTH_WITHOUT_TERMINAL = 200


def main(argv: Sequence[str] | None = None) -> int:
    """Print what can run here, or how recipes fare.

    Returns:
        0; 1 if a recipe does not do what it says; 2 if one cannot be read or built.
    """
    arguments = sys.argv[1:] if argv is None else argv
    width = None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL
    console = Console(soft_wrap=True, highlight=False, width=width)
    try:
        if arguments:
            return max([_examine(console, Path(argument)) for argument in arguments])
        _print_machine(console, _shipped_recipes())
    except OptbenchError as error:
        print_problems(error.problems, console)
        return _BAD_INPUT
    return _FINE


def _examine(console: Console, file: Path) -> int:
    """Print one recipe's class, then how it fares in every conformance check."""
    recipe = build_recipe(compose_recipe(file))
    # Before anything of it is imported: a dotted path from a stranger is a program.
    console.print(f"{escape(recipe.name)}: importing and running {escape(recipe.target)}")
    problems = check_package(recipe)
    if problems:
        raise OptbenchError(*problems)
    if recipe.name != file.stem:
        console.print(f"  note: runs, tables and reports say {escape(recipe.name)}")
    for sentence in (*departures(recipe), *([recipe.note] if recipe.note else [])):
        console.print(f"  note: {escape(sentence)}")
    broken = _conformance(console, recipe)
    if not broken:
        folder = file.parent.resolve()
        asked = (
            f"--config-dir {folder.parent} " if folder != resources.conf_dir() / "optimizer" else ""
        )
        if folder.name != "optimizer":
            console.print(f"  put it into a folder named optimizer: FOLDER/optimizer/{file.name}")
            asked = "--config-dir FOLDER "
        command = escape(f"python -m optbench {asked}optimizer={file.stem}")
        console.print(f"  [green]keeps its word[/]: {command}")
    return _BROKEN_WORD if broken else _FINE


def _conformance(console: Console, recipe: OptimizerOptions) -> int:
    """Return how many checks find something, after printing each of them."""
    import torch

    from optbench.optim import conformance

    torch.set_num_threads(1)  # bitwise comparisons want one, and so small a task too
    num_broken = 0
    for name in conformance.RECIPE_CHECKS:
        sentences = conformance.violations_of(name, recipe)
        console.print(f"  {name}: {'[red]no[/]' if sentences else 'yes'}")
        for sentence in sentences:
            console.print(f"    {escape(sentence)}")
        num_broken += bool(sentences)
    return num_broken


def _print_machine(console: Console, recipes: Mapping[str, OptimizerOptions]) -> None:
    """Print the machine, and every shipped recipe with whether it can run here, or why not."""
    import torch  # so that the GPUs are seen

    packages = {*_PACKAGES, *(recipe.package for recipe in recipes.values())}
    machine = provenance.collect(packages=sorted(packages), command=(), extra={})
    versions = machine["packages"]
    console.print(f"python {machine['python']}, {machine['platform']}")
    console.print(f"{machine['num_cpus']} cores of {machine['cpu']}")
    console.print(f"{', '.join(machine['gpus']) or 'no GPU'}; torch {torch.__version__}")
    for package in _PACKAGES:
        console.print(f"{package} {versions[package] or 'is not installed'}")
    table = Table(title="recipes", title_justify="left", box=None)
    for title in ("optimizer=", "class", "package", "here"):
        table.add_column(title, justify="left")
    for name, recipe in recipes.items():
        package = f"{recipe.package} {versions[recipe.package] or ''}"
        problems = check_package(recipe)
        here = escape(problems[0].fix) if problems else "yes"
        table.add_row(name, escape(recipe.target), package, here)
    console.print(table)


def _shipped_recipes() -> dict[str, OptimizerOptions]:
    files = sorted((resources.conf_dir() / "optimizer").glob("*.yaml"))
    return {file.stem: build_recipe(compose_recipe(file)) for file in files}


if __name__ == "__main__":
    sys.exit(main())
