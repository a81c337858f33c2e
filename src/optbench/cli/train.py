"""`optbench [train] ...`: check the whole command line, train its runs, build the report."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from optbench.cli.command import run_command
from optbench.cli.live import live_report
from optbench.config.compose import CONFIG_NAME, SweepPlan, compose_runs, flags_first
from optbench.config.messages import print_problems
from optbench.config.untrusted import import_notices
from optbench.errors import DamagedFileError, OptbenchError
from optbench.launch import guard
from optbench.metrics.build import build_metrics, foreign_targets
from optbench.storage.resources import command_line
from optbench.storage.rundir import RunDir
from optbench.terminal import errors, link, say, tell, working


def main(arguments: Sequence[str]) -> int:
    """Return the exit code; the last line on the standard output is the report's path."""
    arguments = flags_first(arguments)
    return run_command(
        "train",
        arguments,
        config_name=CONFIG_NAME,
        compose=compose_runs,
        work=lambda plan: _train(plan, arguments),
        finish=_finish,
        conclude=_conclude,
    )


def _train(plan: SweepPlan, arguments: Sequence[str]) -> None:
    configs = [run.config for run in plan.runs]
    recipes, metrics = [config.optimizer for config in configs], configs[0].metric
    for sentence in import_notices(recipes, [metrics]):
        tell(sentence)
    if foreign_targets(metrics):
        build_metrics(metrics)  # before hours of training, rather than after
    guard.check_writable(plan)
    if plan.is_complete and all(guard.is_finished(run) for run in plan.runs):
        return
    with live_report(plan.sweep_dir, plan.runs if plan.is_complete else ()):
        tell("Loading PyTorch and the base model.")
        guard.launch(arguments, plan)


def _finish(plan: SweepPlan) -> str | None:
    """Measure the images, build the report and return its address; None if that is impossible."""
    # Imported here: pandas takes half a second that a refusal does not need.
    from optbench.metrics.measure import measure_runs

    run_dirs = [run.run_dir for run in plan.runs]
    if not plan.is_complete:
        run_dirs = sorted(path.parent for path in plan.sweep_dir.glob("*/status.json"))
    metric = plan.runs[0].config.metric
    if metric.enabled:
        with working("measuring the images") as show:
            tally = measure_runs(run_dirs, metric, show=show)
            if tally.num_measured:
                _log_metrics(run_dirs)
        for notice in tally.notices:
            tell(notice)
        if tally.unwritten and (page := _conclude(plan)) is not None:
            say(page)
            num = len(tally.unwritten)
            tell(f"The images of {num} of {len(run_dirs)} runs are not measured. Then type:")
            tell(f"  {command_line('metrics', str(plan.sweep_dir))}")
            return None
    return _conclude(plan)


def _log_metrics(run_dirs: Sequence[Path]) -> None:
    """Give TensorBoard the numbers of images, of runs that have its files."""
    from optbench.training.tensorboard import write_metrics

    for run_dir in run_dirs:
        if (run := RunDir(run_dir)).tensorboard_dir.is_dir():
            with contextlib.suppress(DamagedFileError):  # the report names it
                write_metrics(run)


def _conclude(plan: SweepPlan) -> str | None:
    """Build the report of what there is, print what it says and return its address."""
    from optbench.cli.closing import print_closing
    from optbench.report import build_report

    try:
        with working("building the report"):
            page = build_report(plan.sweep_dir)
    except OptbenchError as error:
        print_problems(error.problems, errors(), what="the report was not built")
        return None
    print_closing(page, errors())
    return link(page)
