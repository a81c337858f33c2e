"""`optbench metrics [RUNS_DIR ...] [metric=...]`: measure the images of finished runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from optbench.analysis import runs_in
from optbench.cli.command import DONE, NOT_ALL_DONE, folders_only, refuse
from optbench.config.build import build_group
from optbench.config.compose import CONFIG_NAME, compose_tree
from optbench.config.composer import hydra_session
from optbench.config.untrusted import import_notices
from optbench.errors import ConfigError, OptbenchError, Problem
from optbench.metrics.build import check_metric
from optbench.metrics.measure import measure_runs
from optbench.report.wording import times
from optbench.schema import MetricOptions
from optbench.storage.resources import command_line
from optbench.terminal import say, tell, working


def main(arguments: Sequence[str]) -> int:
    """Return the exit code: 0, or 2 with every problem on the standard error."""
    overrides = [word for word in arguments if "=" in word and not Path(word).exists()]
    try:
        options = _options(overrides)
        folders = [word for word in arguments if word not in overrides]
        run_dirs = [
            run_dir
            for folder in folders_only(folders, default="runs")
            for run_dir in runs_in(folder)
        ]
        started = time.perf_counter()
        num_runs = times(len(run_dirs), "run")
        with working(f"measuring the images of {num_runs}") as show:
            tally = measure_runs(run_dirs, options, show=show)
    except OptbenchError as error:
        return refuse(error.problems)
    for notice in tally.notices:
        tell(notice)
    seconds = time.perf_counter() - started
    say(
        f"{num_runs}: {tally.num_measured} images measured, {tally.num_kept} reused, "
        f"{seconds:.1f} s (an image counts once for each metric)"
    )
    if tally.unwritten:
        tell(f"{len(tally.unwritten)} of {len(run_dirs)} runs are not measured. Then type:")
        tell(f"  {command_line('metrics', *arguments)}")
    return NOT_ALL_DONE if tally.unwritten else DONE


def _options(overrides: Sequence[str]) -> MetricOptions:
    """Return the metrics that the overrides ask for; a command that measures is not off."""
    problems = []
    for override in overrides:
        if override.lstrip("+~").partition("=")[0].partition(".")[0] != "metric":
            problems.append(
                Problem(
                    "the command line",
                    repr(override),
                    "settings of the metrics only; all others are in the runs' own configs",
                    "leave it out, or write metric=OPTION or metric.KEY=VALUE",
                )
            )
        elif override == "metric=off":
            problems.append(
                Problem("the command line", override, "something to measure", "leave it out")
            )
    if not problems:
        with hydra_session(None, CONFIG_NAME) as hydra:
            tree, _ = compose_tree(hydra, overrides, problems=problems)
    if problems:
        raise ConfigError(*problems)
    options = build_group(MetricOptions, "metric", tree)
    if wrong := check_metric(options):
        raise ConfigError(*wrong)
    for sentence in import_notices([], [options]):
        tell(sentence)
    return options
