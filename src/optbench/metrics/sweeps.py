"""Measuring many runs with one set of metrics, so that a model is loaded once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from optbench import rundir
from optbench.foreign import attempt
from optbench.metrics.building import build_metrics
from optbench.metrics.measuring import Tally, measure_run
from optbench.options import MetricOptions
from optbench.rundir import RunDir


def measure_runs(run_dirs: Iterable[Path], options: MetricOptions) -> Tally:
    """Bring every run's metrics.jsonl up to its pictures and return what that came to.

    Runs that are being trained right now are left for later. What cannot be measured is a notice.

    Raises:
        ConfigError: If the metrics cannot be built.
    """
    tally = Tally()
    if not options.enabled:
        return tally
    metrics = build_metrics(options)
    for run_dir in run_dirs:
        if rundir.read_status(run_dir).status == "running":
            tally.note(f"{run_dir.name} is being trained; its pictures can be measured afterwards")
            continue
        if why := attempt(lambda one=run_dir: measure_run(RunDir(one), metrics, tally)):  # type: ignore[misc]
            tally.note(f"{run_dir.name}: no numbers of its pictures: {why}")
    return tally
