"""`optbench doctor [RECIPE.yaml ...]`: what can run here; does a recipe pass the conformance suite?

Without an argument: versions, devices, and for every recipe of conf/optimizer whether it can run
here. With recipe files: the conformance suite that every shipped recipe passes, on each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from optbench.cli.command import DONE, refuse
from optbench.config.build import build_recipe
from optbench.config.compose import compose_recipe
from optbench.errors import OptbenchError
from optbench.optim.recipes import check_package, departures
from optbench.schema import OptimizerOptions
from optbench.storage import provenance, resources
from optbench.terminal import Terminal, output

_NOT_CONFORMING = 1
_PACKAGES = ("optbench", "diffusers", "transformers", "accelerate", "safetensors")


def main(arguments: Sequence[str]) -> int:
    """Print what can run here, or how recipes fare.

    Returns:
        0; 1 if a recipe does not do what it says; 2 if one cannot be read or built.
    """
    console = output()
    try:
        if arguments:
            return max([_examine(console, Path(argument)) for argument in arguments])
        files = sorted((resources.conf_dir() / "optimizer").glob("*.yaml"))
        _print_machine(console, {file.stem: build_recipe(compose_recipe(file)) for file in files})
    except OptbenchError as error:
        return refuse(error.problems)
    return DONE


def _examine(console: Terminal, file: Path) -> int:
    """Print one recipe's class, then how it fares in every conformance check."""
    recipe = build_recipe(compose_recipe(file))
    # Before anything of it is imported: a dotted path from a stranger is a program.
    console.print(f"{recipe.name}: importing and running {recipe.target}")
    problems = check_package(recipe)
    if problems:
        raise OptbenchError(*problems)
    if recipe.name != file.stem:
        console.print(f"  note: runs, tables and reports say {recipe.name}")
    for sentence in (*departures(recipe), *([recipe.note] if recipe.note else [])):
        console.print(f"  note: {sentence}")
    import torch

    from optbench.optim import conformance

    torch.set_num_threads(1)  # bitwise comparisons want one, and so small a task too
    num_failed = 0
    for name in conformance.RECIPE_CHECKS:
        violations = conformance.violations_of(name, recipe)
        console.print(Text.assemble(f"  {name}: ", ("no", "red") if violations else "yes"))
        for sentence in violations:
            console.print(f"    {sentence}")
        num_failed += bool(violations)
    if num_failed:
        verdict = ("fails the conformance suite", "red")
        console.print(Text.assemble("  ", verdict, f": {num_failed} checks"))
        return _NOT_CONFORMING
    folder = file.parent.resolve()
    config_dir = ["--config-dir", str(folder.parent)]
    if folder.name != "optimizer":
        console.print(f"  put it into a folder named optimizer: FOLDER/optimizer/{file.name}")
        config_dir = ["--config-dir", "FOLDER"]
    elif folder == resources.conf_dir() / "optimizer":
        config_dir = []
    command = resources.command_line("train", *config_dir, f"optimizer={file.stem}")
    console.print(Text.assemble("  ", ("passes the conformance suite", "green"), f": {command}"))
    return DONE


def _print_machine(console: Terminal, recipes: Mapping[str, OptimizerOptions]) -> None:
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
        here = problems[0].fix if problems else "yes"
        table.add_row(name, recipe.target, package, here)
    console.print(table)
