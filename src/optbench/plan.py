"""`python -m optbench.plan ...`: what a command would run, its cost, and what is wrong with it.

Takes the same arguments as `python -m optbench`. Trains nothing, writes nothing, loads no weights.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from optbench import rundir
from optbench.composition import AskedRun, AskedRuns, compose_runs, flags_first
from optbench.cost import Cost, bucket_counts, estimate, steps_per_epoch
from optbench.dataset import uncaptioned
from optbench.errors import OptbenchError
from optbench.launch import is_finished
from optbench.recipes import departures
from optbench.refusals import print_problems

_FINE = 0
_BAD_INPUT = 2
_MIB = 1 << 20
_WIDTH_WITHOUT_TERMINAL = 200


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan of a command line; return 0, or 2 when something is wrong with it."""
    arguments = flags_first(sys.argv[1:] if argv is None else argv)
    # A pipe has no width of its own, and a name cut at column 80 cannot be searched for.
    width = None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL
    console = Console(soft_wrap=True, highlight=False, width=width)
    try:
        asked = compose_runs(arguments)
        costs = [estimate(run.config, run.identity.dataset) for run in asked.runs]
    except OptbenchError as error:
        print_problems(error.problems, console)
        return _BAD_INPUT
    todo = [not is_finished(run.run_dir, run.config) for run in asked.runs]
    console.print(_table(asked, costs, todo))
    _print_departures(console, asked)
    _print_data(console, asked.runs)
    _print_sum(console, asked, [cost for cost, is_open in zip(costs, todo, strict=True) if is_open])
    return _FINE


def _table(asked: AskedRuns, costs: Sequence[Cost], todo: Sequence[bool]) -> Table:
    table = Table(title=str(asked.sweep_dir), title_justify="left", box=None)
    for title in ("run", "state", "steps", "epochs", "time", "disk"):
        table.add_column(title, justify="left" if title in ("run", "state") else "right")
    for run, cost, is_open in zip(asked.runs, costs, todo, strict=True):
        table.add_row(
            run.identity.name,
            _state(run, is_open=is_open),
            str(cost.num_steps),
            str(cost.num_epochs),
            _duration(cost.seconds),
            f"{cost.disk_bytes / _MIB:.0f} MiB",
        )
    return table


def _state(run: AskedRun, *, is_open: bool) -> str:
    status = rundir.read_status(run.run_dir)
    if status.status == "pending":
        return "to do"
    if status.status == "done" and is_open:
        return "done, other pictures to render"
    return status.status


def _print_departures(console: Console, asked: AskedRuns) -> None:
    """Print what each recipe does differently, so that nobody takes a rate of 1 for a mistake."""
    said = {run.config.optimizer.name: run.config.optimizer for run in asked.runs}
    for name, recipe in said.items():
        for sentence in (*departures(recipe), *([recipe.note] if recipe.note else [])):
            console.print(f"  {escape(name)}: {escape(sentence)}")


def _print_data(console: Console, runs: Sequence[AskedRun]) -> None:
    """Print every data set's buckets once."""
    for name, run in {run.config.dataset.name: run for run in runs}.items():
        console.print(f"\ndata set {escape(name)}: {len(run.identity.dataset.images)} pictures")
        for (width, height), (pictures, uses) in bucket_counts(run.identity.dataset).items():
            console.print(f"  bucket {width}x{height}: {pictures} pictures, {uses} uses an epoch")
        if sentence := uncaptioned(run.identity.dataset):
            console.print(f"  {escape(sentence)}")
    per_epoch = sorted({steps_per_epoch(run.config, run.identity.dataset) for run in runs})
    console.print(f"  steps an epoch: {', '.join(map(str, per_epoch))}")


def _print_sum(console: Console, asked: AskedRuns, costs: Sequence[Cost]) -> None:
    num_done = len(asked.runs) - len(costs)
    console.print(f"\n{len(asked.runs)} runs: {num_done} done, {len(costs)} to do")
    if not asked.is_whole:
        console.print("a sweeper plugin chooses the runs as it goes; the one above is an example")
    known = [cost.seconds for cost in costs if cost.seconds is not None]
    total = sum(known) if len(known) == len(costs) else None
    console.print(f"time: {_duration(total)}, judged by earlier runs in the same runs folder")
    console.print(f"disk: about {sum(cost.disk_bytes for cost in costs) / _MIB:.0f} MiB")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


if __name__ == "__main__":
    sys.exit(main())
