"""`python -m optbench plan ...`: what a command would run, its cost, and what is wrong with it.

Takes the same arguments as `python -m optbench`. Trains nothing, writes nothing, loads no weights.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from optbench.cli.estimate import BucketCount, Cost, bucket_counts, estimate
from optbench.config.compose import SweepPlan, compose_runs, flags_first
from optbench.config.messages import print_problems
from optbench.errors import OptbenchError
from optbench.launch import processes
from optbench.launch.guard import is_finished
from optbench.lora.initial_weights import start_sentences
from optbench.optim.recipes import departures
from optbench.records import PictureFolder
from optbench.storage import rundir
from optbench.training.plan import RunPlan

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
        costs = [estimate(run) for run in asked.runs]
    except OptbenchError as error:
        print_problems(error.problems, console)
        return _BAD_INPUT
    todo = [not is_finished(run) for run in asked.runs]
    console.print(_table(asked, costs, todo))
    _print_departures(console, asked)
    _print_data(console, asked.runs)
    _print_sum(console, asked, [cost for cost, is_open in zip(costs, todo, strict=True) if is_open])
    return _FINE


def _table(asked: SweepPlan, costs: Sequence[Cost], todo: Sequence[bool]) -> Table:
    table = Table(title=str(asked.sweep_dir), title_justify="left", box=None)
    for title in ("run", "state", "steps", "epochs", "time", "disk"):
        table.add_column(title, justify="left" if title in ("run", "state") else "right")
    for run, cost, is_open in zip(asked.runs, costs, todo, strict=True):
        table.add_row(
            run.name,
            _state(run, is_open=is_open),
            str(cost.num_steps),
            str(cost.num_epochs),
            _duration(cost.seconds),
            f"{cost.disk_bytes / _MIB:.0f} MiB",
        )
    return table


def _state(run: RunPlan, *, is_open: bool) -> str:
    status = rundir.read_status(run.run_dir)
    if status.status == "pending":
        return "to do"
    if status.status == "done" and is_open:
        return "done, other pictures to render"
    return status.status


def _print_departures(console: Console, asked: SweepPlan) -> None:
    """Print what each recipe does differently, so that nobody takes a rate of 1 for a mistake."""
    said = {run.config.optimizer.name: run.config.optimizer for run in asked.runs}
    for name, recipe in said.items():
        for sentence in (*departures(recipe), *([recipe.note] if recipe.note else [])):
            console.print(f"  {escape(name)}: {escape(sentence)}")
    continued = {
        f"{run.name}: {sentence}"
        for run in asked.runs
        for sentence in start_sentences(run.config.network, run.initial_weights)
    }
    for sentence in sorted(continued):
        console.print(f"  {escape(sentence)}")


def _print_data(console: Console, runs: Sequence[RunPlan]) -> None:
    """Print every data set once: folders, buckets, and what batches and updates become of them."""
    by_data: dict[str, list[RunPlan]] = {}
    for run in runs:
        by_data.setdefault(run.dataset.fingerprint, []).append(run)
    for alike in by_data.values():
        dataset = alike[0].dataset
        num_uses = sum(image.repeats for image in dataset.images)
        name = escape(alike[0].config.dataset.name)
        console.print(
            f"\ndata set {name}: {len(dataset.images)} pictures, {num_uses} uses an epoch"
        )
        for folder in dataset.folders:
            console.print(f"  {escape(_folder_line(folder))}")
        sizes = sorted({run.config.train.batch_size for run in alike})
        for count in bucket_counts(dataset):
            console.print(f"  {_bucket_line(count, sizes)}")
        for sentence in dataset.notices:
            console.print(f"  {escape(sentence)}")
        for sentence in dict.fromkeys(_epoch_line(run) for run in alike):
            console.print(f"  {sentence}")


def _folder_line(folder: PictureFolder) -> str:
    kind = "class pictures" if folder.is_regularization else "pictures"
    times = f"{folder.num_pictures} {kind} x {folder.repeats}"
    if folder.is_regularization:
        return f"regularization folder {folder.name}: {times}, then balanced"
    return f"folder {folder.name}: {times} = {folder.num_pictures * folder.repeats} uses"


def _bucket_line(count: BucketCount, batch_sizes: Sequence[int]) -> str:
    width, height = count.bucket
    batches = " or ".join(str(math.ceil(count.num_uses / size)) for size in batch_sizes)
    line = f"bucket {width}x{height}: {count.num_pictures} pictures, {count.num_uses} uses an epoch"
    if count.num_class_pictures:
        line += f" ({count.num_class_pictures} and {count.num_class_uses} of them regularization)"
    return f"{line}, {batches} batches"


def _epoch_line(run: RunPlan) -> str:
    """Return the arithmetic of one epoch; a batch never mixes buckets, so the last may be short."""
    train, batches = run.config.train, run.num_batches_per_epoch
    line = f"steps an epoch: {run.steps_per_epoch}"
    line += f" ({batches} batches of up to {train.batch_size}"
    if train.gradient_accumulation > 1:
        line += f", {train.gradient_accumulation} to a step"
    return f"{line})"


def _print_sum(console: Console, asked: SweepPlan, costs: Sequence[Cost]) -> None:
    num_done = len(asked.runs) - len(costs)
    console.print(f"\n{len(asked.runs)} runs: {num_done} done, {len(costs)} to do")
    if not asked.is_complete:
        console.print("a sweeper plugin chooses the runs as it goes; the one above is an example")
    known = [cost.seconds for cost in costs if cost.seconds is not None]
    total = sum(known) if len(known) == len(costs) else None
    console.print(f"time: {_duration(total)}, judged by earlier runs in the same runs folder")
    workers, sentence = _workers(asked)
    console.print(f"workers: {sentence}")
    if workers > 1 and total is not None:
        wall = max([total / min(workers, max(1, len(costs))), *known])
        console.print(f"time with them: about {_duration(wall)}, if they do not slow each other")
    console.print(f"disk: about {sum(cost.disk_bytes for cost in costs) / _MIB:.0f} MiB")


def _workers(asked: SweepPlan) -> tuple[int, str]:
    """Return how many runs go at a time, and a sentence on who makes them."""
    configs = [run.config for run in asked.runs]
    if not asked.is_local:
        number = asked.at_a_time
        return number or 1, f"{number or 'as many as it likes'} at a time, by a launcher plugin"
    assert asked.launch is not None
    number = processes.num_workers(asked.launch, configs)
    if number == 1 and not processes.needs_own_process(asked.launch, configs):
        return 1, "one run after the other in one process (launch.isolation)"
    if number > 1 and not asked.is_complete:
        number = 1  # the sweeper waits for a loss before it goes on
    devices = processes.gpus()
    on = f", on {len(devices)} GPU{'s' if len(devices) > 1 else ''}" if devices else ""
    return number, f"{number} at a time, each run in a process of its own{on}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


if __name__ == "__main__":
    sys.exit(main())
