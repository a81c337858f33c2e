"""Print pip constraints that hold optbench's direct dependencies at the lowest versions it allows.

`make test-lowest` installs with them. torch stays the tested one (its older versions are not to be
had as CPU builds everywhere), and so do the tools the tests run with; what others need is free.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_ROOT = Path(__file__).resolve().parents[2]
_AS_TESTED = ("torch",)


def lowest_versions() -> Iterator[str]:
    """Yield one constraint for each direct dependency of the package, its recipes and its tests."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    tested = {
        canonicalize_name(line.partition("==")[0]): line
        for line in (_ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    }
    extras = project["optional-dependencies"]
    recipes = [name for group in extras["optimizers"] for name in Requirement(group).extras]
    product = [*project["dependencies"], *(text for name in recipes for text in extras[name])]
    for requirement in map(Requirement, product):
        lowest = [spec.version for spec in requirement.specifier if spec.operator == ">="]
        if requirement.name in _AS_TESTED:
            yield tested[requirement.name]
        else:
            yield f"{requirement.name}=={lowest[0]}" if lowest else str(requirement)
    for requirement in map(Requirement, extras["test"]):
        if requirement.name != "optbench":
            yield tested[canonicalize_name(requirement.name)]


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in lowest_versions())
