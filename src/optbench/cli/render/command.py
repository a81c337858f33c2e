"""`optbench render`: images and sheets from finished LoRA files, an X/Y/Z plot."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from optbench.cli.command import run_command
from optbench.cli.render.plan import CONFIG_NAME, PlotPlan, compose_plots, with_named_files
from optbench.config.compose import CommandPlan
from optbench.launch import guard
from optbench.storage import rundir


def main(arguments: Sequence[str]) -> int:
    """Return the exit code; the standard output names the folder of every plot's sheets."""
    return run_command(
        "render",
        with_named_files(arguments),
        config_name=CONFIG_NAME,
        compose=_compose,
        work=_render,
        finish=_finish,
        typed=arguments,
    )


def _compose(arguments: Sequence[str]) -> CommandPlan[PlotPlan]:
    plan = compose_plots(arguments)
    # Imported here: torch takes seconds that a mistyped command does not need.
    from optbench.cli.render.run import check_files

    for run in plan.runs:
        check_files(run.plot)
    return plan


def _render(plan: CommandPlan[PlotPlan]) -> None:
    from optbench.cli.render.run import make_plot

    for run in plan.runs:
        guard.guard(run.run_dir, functools.partial(make_plot, run))


def _finish(plan: CommandPlan[PlotPlan]) -> str | None:
    done = [run for run in plan.runs if rundir.read_status(run.run_dir).status == "done"]
    folders = [str(Path(run.plot.options.dir) / "sheets" / run.run_dir.name) for run in done]
    return "\n".join(folders) or None
