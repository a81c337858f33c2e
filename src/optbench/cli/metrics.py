"""`python -m optbench metrics RUNS_DIR... [metric=...]`: measure the pictures that are there."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from optbench.analysis import find_runs, is_run, no_runs, sweep_dirs
from optbench.config.build import build_group
from optbench.config.compose import CONFIG_NAME, compose_tree, hydra_session
from optbench.config.messages import print_problems
from optbench.errors import ConfigError, OptbenchError, Problem
from optbench.metrics.build import check_metric
from optbench.metrics.measure import measure_runs
from optbench.schema import MetricOptions

_FINE = 0
_BAD_INPUT = 2
_USAGE = """\
python -m optbench metrics RUNS_DIR... [metric=OPTION] [metric.KEY=VALUE ...]

Measures the pictures of runs from their files, again only where a picture or a metric changed;
trains and renders nothing. Options are files of conf/metric; docs/metrics.md says what the numbers
mean. Build the report again afterwards: python -m optbench report RUNS_DIR
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, or 2 with every problem on the standard error."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or {"-h", "--help"} & set(arguments):
        print(_USAGE, end="")
        return _FINE if arguments else _BAD_INPUT
    folders = [Path(one) for one in arguments if "=" not in one]
    overrides = [one for one in arguments if "=" in one]
    try:
        options = _options(overrides)
        run_dirs = [run_dir for folder in folders for run_dir in _runs(folder)]
        if not run_dirs:
            raise no_runs(Path("RUNS_DIR"))
    except OptbenchError as error:
        print_problems(error.problems, Console(stderr=True, soft_wrap=True, highlight=False))
        return _BAD_INPUT
    started = time.perf_counter()
    tally = measure_runs(run_dirs, options)
    for notice in tally.notices:
        print(notice, file=sys.stderr)
    seconds = time.perf_counter() - started
    print(
        f"{len(run_dirs)} runs: {tally.num_measured} measured, {tally.num_kept} as before, "
        f"{seconds:.1f} s (a picture counts once for each metric)"
    )
    return _FINE


def _runs(folder: Path) -> list[Path]:
    if is_run(folder):
        return [folder]
    found = [run_dir for sweep_dir in sweep_dirs(folder) for run_dir in find_runs(sweep_dir)]
    if not found:
        raise no_runs(folder)
    return found


def _options(overrides: Sequence[str]) -> MetricOptions:
    """Return the metrics that the overrides ask for; a command that measures is not off."""
    problems = [
        Problem(
            "the command line",
            repr(one),
            "settings of the metrics only; all others are in the runs' own configs",
            "leave it out, or write metric=..., metric.KEY=VALUE",
        )
        for one in overrides
        if one.lstrip("+~").partition("=")[0].partition(".")[0] != "metric"
    ]
    problems += [
        Problem("the command line", "metric=off", "something to measure", "leave it out")
        for one in overrides
        if one == "metric=off"
    ]
    if not problems:
        with hydra_session(None, CONFIG_NAME) as hydra:
            tree, _ = compose_tree(hydra, overrides, problems=problems)
    if problems:
        raise ConfigError(*problems)
    options = build_group(MetricOptions, "metric", tree)
    if wrong := check_metric(options):
        raise ConfigError(*wrong)
    return options


if __name__ == "__main__":
    sys.exit(main())
