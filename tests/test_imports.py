"""What answers at once imports little: no torch to check a command, no pandas to start training."""

from __future__ import annotations

import subprocess
import sys

# In this order in one process: what a line must not load, no line before it has loaded.
STAGES = (
    (
        ("torch", "pandas", "numpy", "PIL", "hydra", "jinja2"),
        (
            "optbench.cli.main",
            "optbench.contracts",
            "optbench.lora.blocks",
            "optbench.metrics.build",
            "optbench.models.files.rules",
            "optbench.models.samplers",
            "optbench.models.text.prompt_grammar",
            "optbench.optim.recipes",
            "optbench.optim.schedules",
            "optbench.records",
            "optbench.report",
            "optbench.rng",
            "optbench.schema",
            "optbench.storage.rundir",
            "optbench.training.rules",
        ),
    ),
    (
        ("torch", "pandas", "hydra"),
        (
            "optbench.data",
            "optbench.launch.processes",
            "optbench.lora.initial_weights",
            "optbench.render.prompts",
            "optbench.render.sheet",
            "optbench.storage.provenance",
            "optbench.training.interrupt",
            "optbench.training.plan",
            "optbench.training.trackers",
        ),
    ),
    (
        ("torch", "pandas", "jinja2"),
        (
            "optbench.config.compose",
            "optbench.launch.guard",
            "optbench.launch.worker",
            "optbench.cli.train",
            "optbench.cli.plan",
            "optbench.cli.doctor",
            "optbench.cli.regularize",
            "optbench.cli.render.command",
            "optbench.cli.resize.command",
        ),
    ),
    (
        ("torch",),
        (
            "optbench.analysis",
            "optbench.metrics.measure",
            "optbench.report.page",
            "optbench.report.resize_section",
            "optbench.cli.verify",
            "optbench.cli.report",
            "optbench.cli.metrics",
        ),
    ),
)
CODE = f"""
import importlib, sys
for forbidden, modules in {STAGES!r}:
    for module in modules:
        importlib.import_module(module)
        for name in forbidden:
            if name in sys.modules:
                sys.exit(f"{{module}} imports {{name}}")
"""


def test_modules_import_no_more_than_they_need() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
