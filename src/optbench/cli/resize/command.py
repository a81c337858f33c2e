"""`optbench resize`: smaller LoRA files, exactly, and what every layer lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from optbench.cli.command import run_command
from optbench.cli.resize.plan import CONFIG_NAME, ResizePlan, plan_resizes
from optbench.config.compose import CommandPlan
from optbench.config.messages import print_problems
from optbench.errors import ConfigError, OptbenchError
from optbench.launch import guard
from optbench.storage import files, hashing, rundir
from optbench.storage.rundir import RunDir
from optbench.terminal import errors, output, tell

if TYPE_CHECKING:
    from optbench.cli.resize.evaluate import ResizeEvaluator


def main(arguments: Sequence[str]) -> int:
    """Return the exit code; the last line on the standard output is the report's path."""
    evaluators: list[ResizeEvaluator | None] = []

    def compose(words: Sequence[str]) -> CommandPlan[ResizePlan]:
        plan = plan_resizes(words)
        evaluators.append(_check_contents(plan))
        return plan

    return run_command(
        "resize",
        arguments,
        config_name=CONFIG_NAME,
        compose=compose,
        work=lambda plan: _resize(plan, evaluators[0]),
        finish=_finish,
    )


def _check_contents(plan: CommandPlan[ResizePlan]) -> ResizeEvaluator | None:
    """Read every source that is still needed once, and refuse all that is wrong together.

    Returns what images and losses are made with, or None where none are.
    """
    # Imported here and below: torch takes seconds that a mistyped command does not need.
    from optbench.cli.resize.evaluate import ResizeEvaluator, is_embedded, is_evaluated
    from optbench.cli.resize.run import is_done, is_original_due
    from optbench.lora.resize.merge import check_sources

    needed = [run for run in plan.runs if not is_done(run) or is_original_due(run)]
    groups = list(dict.fromkeys(sources for run in needed for sources in run.sources.values()))
    check_sources(groups)
    options = plan.runs[0].options
    if not needed or not is_evaluated(options):
        return None
    evaluator = ResizeEvaluator(options)
    problems = [problem for sources in groups for problem in evaluator.misfits(sources)]
    if not problems:
        return evaluator
    if not is_embedded(options.base):
        raise ConfigError(*problems)
    # The embedded base model is a default that nobody typed; the files are written all the same.
    tell(f"No images and no losses: {problems[0].found}.")
    tell(f"-> {problems[0].fix}")
    return None


def _resize(plan: CommandPlan[ResizePlan], evaluator: ResizeEvaluator | None) -> None:
    """Make what is not made, the originals first; one that fails stops no other."""
    from optbench.cli.resize.run import is_done, is_original_due, make_original, make_resize
    from optbench.lora.resize.svd_cache import SvdCache, svd_cache_folder

    todo = [run for run in plan.runs if not is_done(run)]
    # A decomposition that several runs need is kept until the last of them is done, and what a
    # killed command left is used up by the next one.
    svd_caches: dict[tuple[Path, ...], SvdCache] = {}
    counts = Counter(sources for run in todo for sources in run.sources.values())
    for run in todo:
        cache_dir = Path(run.options.cache_dir)
        for sources in run.sources.values():
            source = hashing.files_fingerprint(sources, cache_dir=cache_dir)
            folder = svd_cache_folder(cache_dir, source, run.options.weights)
            if counts[sources] > 1 or folder.is_dir():
                svd_caches[sources] = SvdCache(folder)
    if evaluator is not None:
        for run in {run.original_dir: run for run in plan.runs if is_original_due(run)}.values():
            tell(run.original_dir.name)
            guard.guard(run.original_dir, partial(make_original, run, evaluator))
    for number, run in enumerate(todo, start=1):
        if rundir.read_status(run.run_dir).status != "running":
            tell(f"{number} of {len(todo)}: {run.run_dir.name}")
            make = partial(make_resize, run, evaluator, svd_caches=svd_caches)
            guard.guard(run.run_dir, make)
    for svd_cache in svd_caches.values():
        svd_cache.clear()


def _finish(plan: CommandPlan[ResizePlan]) -> Path | None:
    """Print what was made and what it retained, build the report and return its path."""
    from optbench.report import build_report

    table = Table(title=str(plan.sweep_dir), title_justify="left", box=None)
    table.add_column("file")
    for title in ("epoch", "MB", "of source", "mean dim", "energy retained", "least of a layer"):
        table.add_column(title, justify="right")
    for run in plan.runs:
        for row in files.read_rows(RunDir(run.run_dir).epochs_path):
            table.add_row(
                run.run_dir.name,
                str(row["epoch"]),
                f"{row['lora_bytes'] / 1e6:.2f}",
                f"{row['lora_bytes'] / row['source_bytes']:.1%}",
                f"{row['mean_dim']:.1f}",
                f"{row['retained_energy']:.2%}",
                f"{row['least_retained_energy']:.2%}",
            )
    output().print(table)
    try:
        return build_report(plan.sweep_dir)
    except OptbenchError as error:
        print_problems(error.problems, errors(), what="the report was not built")
        return None
