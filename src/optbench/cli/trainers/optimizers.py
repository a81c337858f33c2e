"""What other trainers call optimizers, and with which arguments they build them."""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any


@dataclass(frozen=True, slots=True)
class NamedOptimizer:
    """An optimizer as one trainer names it."""

    name: str
    recipe: str  # of conf/optimizer; empty: none of ours builds it
    target: str  # the class, where it is not the recipe's
    args: Mapping[str, Any]  # what that trainer gives the class where nothing else is said
    remark: str  # what differs from the class here


@functools.cache
def optimizers(trainer: str) -> Mapping[str, NamedOptimizer]:
    """Return a trainer's optimizers by name in small letters."""
    file = resources.files(__package__).joinpath("tables", "optimizers.csv")
    rows = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    return {
        row["name"].lower(): NamedOptimizer(
            row["name"], row["recipe"], row["target"], json.loads(row["args"]), row["remark"]
        )
        for row in rows
        if row["trainer"] == trainer
    }
