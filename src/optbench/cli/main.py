"""`optbench NAME ...` runs one command; without a name the arguments are a training's."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

# The module of every command; `train` is what runs without a name.
COMMANDS = {
    "train": "optbench.cli.train",
    "plan": "optbench.cli.plan",
    "report": "optbench.cli.report",
    "render": "optbench.cli.render.command",
    "resize": "optbench.cli.resize.command",
    "regularize": "optbench.cli.regularize",
    "metrics": "optbench.cli.metrics",
    "import": "optbench.cli.kohya.command",
    "export": "optbench.cli.kohya.command",
    "doctor": "optbench.cli.doctor",
    "verify": "optbench.cli.verify",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code of the command that the first argument names, else of a training."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    if name not in COMMANDS:
        name = "train"
    elif name not in ("import", "export"):
        arguments = arguments[1:]
    # Imported here: each command pays for what it needs alone.
    return int(importlib.import_module(COMMANDS[name]).main(arguments))
