"""`optbench plan ...`: what a training would run, its cost, and everything wrong with it.

Takes the arguments of a training. Trains nothing, writes nothing, loads no weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from rich.table import Table

from optbench.cli.command import DONE, refuse, shown
from optbench.config.build import config_tree
from optbench.config.compose import CONFIG_NAME, SweepPlan, compose_runs, flags_first
from optbench.data import holdout_notice
from optbench.errors import OptbenchError
from optbench.launch import processes
from optbench.launch.estimate import Cost, bucket_counts, estimate
from optbench.launch.guard import is_finished
from optbench.lora.blocks import network_notices
from optbench.lora.initial_weights import initial_weights_notices
from optbench.models.text.tokens import token_counter
from optbench.optim.recipes import departures, rate_notices, unwise
from optbench.render.notices import cut_notices
from optbench.report.wording import seconds_text
from optbench.storage import rundir
from optbench.terminal import Terminal, output
from optbench.training.plan import RunPlan, holds_out

_MIB = 1 << 20


def main(arguments: Sequence[str]) -> int:
    """Print the plan of a command line; return 0, or 2 when something is wrong with it."""
    arguments = flags_first(arguments)
    if (code := shown(arguments, CONFIG_NAME)) is not None:
        return code
    try:
        plan = compose_runs(arguments, command="plan")
        costs = [estimate(run) for run in plan.runs]
    except OptbenchError as error:
        return refuse(error.problems)
    console = output()
    if plan.race is not None:
        # Imported here, because pandas takes half a second that other plans need not wait for.
        from optbench.cli.race import print_race

        num_workers, sentence = _workers(plan)
        print_race(console, plan, workers=num_workers)
        _print_notes(console, plan)
        _print_data(console, plan.runs)
        console.print(f"\nworkers: {sentence}")
        return DONE
    is_open = [not is_finished(run) for run in plan.runs]
    table = Table(title=str(plan.sweep_dir), title_justify="left", box=None)
    for title in ("run", "state", "steps", "epochs", "time", "disk"):
        table.add_column(title, justify="left" if title in ("run", "state") else "right")
    for run, cost, is_unfinished in zip(plan.runs, costs, is_open, strict=True):
        record = rundir.read_status(run.run_dir)
        state: str = record.reason if record.status == "stopped" else record.status
        if state == "pending":
            state = "to do"
        elif state == "done" and is_unfinished:
            state = "done, other images to render"
        table.add_row(
            run.name,
            state,
            str(cost.num_steps),
            str(cost.num_epochs),
            seconds_text(cost.seconds),
            f"{cost.disk_bytes / _MIB:.0f} MiB",
        )
    console.print(table)
    _print_notes(console, plan)
    _print_data(console, plan.runs)
    _print_sum(console, plan, list(itertools.compress(costs, is_open)))
    return DONE


def _print_notes(console: Terminal, plan: SweepPlan) -> None:
    """Print what each recipe does differently, so that nobody takes a rate of 1 for a mistake."""
    for name, recipe in {
        run.config.optimizer.name: run.config.optimizer for run in plan.runs
    }.items():
        for sentence in (*departures(recipe), *([recipe.note] if recipe.note else [])):
            console.print(f"  {name}: {sentence}")
    for sentence in dict.fromkeys(
        f"{config.optimizer.name}: {sentence}"
        for config in (run.config for run in plan.runs)
        for sentence in (
            *unwise(
                config.optimizer,
                lr_scheduler=config.lr_scheduler,
                max_grad_norm=config.train.max_grad_norm,
            ),
            *(
                ()
                if plan.raced or plan.search
                else rate_notices(config.optimizer, config.base, lr_mult=config.lr_mult)
            ),
        )
    ):
        console.print(f"  {sentence}")
    initial_weights = {
        f"{run.name}: {sentence}"
        for run in plan.runs
        for sentence in (
            *initial_weights_notices(run.config.network, run.initial_weights),
            *network_notices(run.config.network),
        )
    }
    for sentence in sorted(initial_weights):
        console.print(f"  {sentence}")
    if len({run.config.network.dim for run in plan.runs}) > 1:
        # Imported here, because pandas takes half a second that most plans need not wait for.
        from optbench.analysis import rank_trap, settings
        from optbench.report.rates import rank_trap_sentence

        trap = rank_trap(settings(config_tree(run.config)) for run in plan.runs)
        if trap is not None:
            console.print(f"  {rank_trap_sentence(trap)}")


def _print_data(console: Terminal, runs: Sequence[RunPlan]) -> None:
    """Print every data set once: folders, buckets, and the batches and steps they give."""
    by_dataset: dict[str, list[RunPlan]] = {}
    for run in runs:
        # Seeds that leave out different images of it share a data set.
        whole = run.dataset if run.held_out is None else run.held_out
        by_dataset.setdefault(whole.fingerprint, []).append(run)
    for same_data in by_dataset.values():
        dataset = same_data[0].dataset
        num_uses = sum(image.repeats for image in dataset.images)
        name = same_data[0].config.dataset.name
        console.print(f"\ndata set {name}: {len(dataset.images)} images, {num_uses} uses an epoch")
        for folder in dataset.folders:
            kind = "class images" if folder.is_regularization else "images"
            line = f"folder {folder.name}: {folder.num_images} {kind} x {folder.repeats}"
            if folder.is_regularization:
                line = f"regularization {line}, then balanced"
            else:
                line += f" = {folder.num_images * folder.repeats} uses"
            console.print(f"  {line}")
        batch_sizes = sorted({run.config.train.batch_size for run in same_data})
        for count in bucket_counts(dataset):
            width, height = count.bucket
            line = f"{count.num_images} images, {count.num_uses} uses an epoch"
            if count.num_class_images:
                class_counts = f"{count.num_class_images} and {count.num_class_uses}"
                line += f" ({class_counts} of them regularization)"
            batches = " or ".join(str(math.ceil(count.num_uses / size)) for size in batch_sizes)
            console.print(f"  bucket {width}x{height}: {line}, {batches} batches")
        for sentence in (*dataset.notices, *_cut_captions(same_data)):
            console.print(f"  {sentence}")
        for sentence in dict.fromkeys(
            f"seed {run.config.seed}: {holdout_notice(run.dataset, run.held_out)}"
            for run in same_data
            if holds_out(run.config.validate)
        ):
            console.print(f"  {sentence}")
        for sentence in dict.fromkeys(_epoch_line(run) for run in same_data):
            console.print(f"  {sentence}")


def _cut_captions(runs: Sequence[RunPlan]) -> Iterator[str]:
    """Yield a sentence per way to read captions of one data set that cuts some of them."""
    ways = {
        (run.config.base, run.config.dataset, run.config.train.max_token_length): run
        for run in runs
    }
    sentences: list[str] = []
    for (base, data, max_tokens), run in ways.items():
        if (count := token_counter(base)) is not None:
            sentences += cut_notices(
                run.dataset, data, lambda texts: [*map(count, texts)], max_tokens=max_tokens
            )
    yield from dict.fromkeys(sentences)


def _epoch_line(run: RunPlan) -> str:
    """Return the arithmetic of one epoch; a batch never mixes buckets, so the last may be short."""
    train, batches = run.config.train, run.num_batches_per_epoch
    line = f"steps an epoch: {run.steps_per_epoch}"
    line += f" ({batches} batches of up to {train.batch_size}"
    if train.gradient_accumulation > 1:
        line += f", {train.gradient_accumulation} to a step"
    return f"{line})"


def _print_sum(console: Terminal, plan: SweepPlan, costs: Sequence[Cost]) -> None:
    """Print the totals of the runs that are not done yet."""
    num_done = len(plan.runs) - len(costs)
    runs = "1 run" if len(plan.runs) == 1 else f"{len(plan.runs)} runs"
    console.print(f"\n{runs}: {num_done} done, {len(costs)} to do")
    seeds = sorted({run.config.seed for run in plan.runs})
    without = [s for s in seeds if not _renders(plan.runs, seed=s)]
    if plan.is_complete and without and len(without) < len(seeds):
        console.print(f"without images, for the losses alone: seed {', '.join(map(str, without))}")
    if plan.search is not None:
        options = plan.search.options
        studies = "" if options.studies == 1 else f"{options.studies} studies of "
        console.print(
            f"Optuna chooses {', '.join(plan.search.space)}: {studies}{options.trials} trials for "
            f"each of the runs above, which are examples; {plan.search.num_runs} at most"
        )
    elif not plan.is_complete:
        console.print("a sweeper plugin chooses the runs as it goes; the one above is an example")
    known = [cost.seconds for cost in costs if cost.seconds is not None]
    total = sum(known) if len(known) == len(costs) else None
    if total is None:
        console.print("time: unknown, as no run in this runs folder has trained this data set yet")
    else:
        console.print(
            f"time: {seconds_text(total)}, judged by earlier runs in the same runs folder"
        )
    num_workers, sentence = _workers(plan)
    console.print(f"workers: {sentence}")
    if num_workers > 1 and total is not None:
        wall = max([total / min(num_workers, max(1, len(costs))), *known])
        console.print(f"time with them: about {seconds_text(wall)}, if they do not slow each other")
    console.print(f"disk: about {sum(cost.disk_bytes for cost in costs) / _MIB:.0f} MiB")


def _renders(runs: Sequence[RunPlan], *, seed: int) -> bool:
    return any(run.config.render.enabled for run in runs if run.config.seed == seed)


def _workers(plan: SweepPlan) -> tuple[int, str]:
    """Return how many runs go at a time, and a sentence on who starts them."""
    configs = [run.config for run in plan.runs]
    if not plan.is_local:
        number = plan.at_a_time
        return number or 1, f"{number or 'as many as it likes'} at a time, by a launcher plugin"
    assert plan.launch is not None
    number = processes.num_workers(plan.launch, configs)
    if number == 1 and not processes.needs_own_process(plan.launch, configs):
        return 1, "one run after the other in one process (launch.isolation)"
    if number > 1 and not plan.is_complete and plan.race is None:
        number = 1  # the sweeper waits for a loss before it goes on
    devices = processes.gpus()
    on = f", on {len(devices)} GPU{'s' if len(devices) > 1 else ''}" if devices else ""
    return number, f"{number} at a time, each run in a process of its own{on}"
