"""`python -m optbench resize`: smaller LoRA files, exactly, and what every layer lost."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from optbench.cli.resize.plan import CONFIG_NAME, ResizePlan, plan_resizes
from optbench.cli.train import BAD_INPUT, DONE, NOT_ALL_DONE, STOPPED, asks_for_information
from optbench.config.build import register_resolvers
from optbench.config.compose import CommandPlan, flags_first
from optbench.config.messages import print_problems
from optbench.errors import ConfigError, OptbenchError
from optbench.launch import guard
from optbench.storage import hashing, rundir
from optbench.storage.rundir import RunDir

if TYPE_CHECKING:
    from optbench.cli.resize.evaluate import ResizeEvaluator
    from optbench.lora.resize.svd_cache import SvdCache

_WIDTH_WITHOUT_TERMINAL = 200


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0 all asked files are made, 1 some are not, 2 bad input, 130 stopped.

    The last line on the standard output is the report's path.
    """
    arguments = flags_first(sys.argv[1:] if argv is None else argv)
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    if asks_for_information(arguments):
        register_resolvers()
        return guard.call_hydra(arguments, lambda tree: None, config_name=CONFIG_NAME)
    try:
        asked = plan_resizes(arguments)
        evaluator = _check_contents(asked)
    except OptbenchError as error:
        print_problems(error.problems, errors)
        return BAD_INPUT
    try:
        _make_all(asked, evaluator)
    except KeyboardInterrupt:
        print("Stopped. The same command goes on with what is not done.", file=sys.stderr)
        return STOPPED
    return _conclude(asked)


def _check_contents(asked: CommandPlan[ResizePlan]) -> ResizeEvaluator | None:
    """Read every source that is still needed once, and refuse all that is wrong together.

    Returns what pictures and losses are made with, or None where none are.
    """
    from optbench.cli.resize.evaluate import ResizeEvaluator, is_embedded, is_evaluated
    from optbench.cli.resize.run import is_done
    from optbench.lora.resize.merge import check_sources

    needed = [run for run in asked.runs if not is_done(run)]
    groups = list(dict.fromkeys(files for run in needed for files in run.sources.values()))
    check_sources(groups)
    options = asked.runs[0].options
    if not needed or not is_evaluated(options):
        return None
    evaluator = ResizeEvaluator(options)
    problems = [problem for files in groups for problem in evaluator.misfits(files)]
    if not problems:
        return evaluator
    if not is_embedded(options.base):
        raise ConfigError(*problems)
    # The embedded base is a default that nobody asked for; the files are made all the same.
    print(f"No pictures and no losses: {problems[0].found}.", file=sys.stderr)
    print(f"-> {problems[0].fix}", file=sys.stderr)
    return None


def _make_all(asked: CommandPlan[ResizePlan], evaluator: ResizeEvaluator | None) -> None:
    """Make what is not made, the originals first; one that fails stops no other."""
    from optbench.cli.resize.run import is_done, is_original_done, make_original, make_resize

    todo = [run for run in asked.runs if not is_done(run)]
    svd_caches = _svd_caches(todo)
    if evaluator is not None:
        for run in {one.original_dir: one for one in todo}.values():
            if not is_original_done(run):
                print(f"{run.original_dir.name}", file=sys.stderr)
                guard.guard(run.original_dir, partial(make_original, run, evaluator))
    for number, run in enumerate(todo, start=1):
        if rundir.read_status(run.run_dir).status != "running":
            print(f"{number} of {len(todo)}: {run.run_dir.name}", file=sys.stderr)
            make = partial(make_resize, run, evaluator, svd_caches=svd_caches)
            guard.guard(run.run_dir, make)
    for svd_cache in svd_caches.values():
        svd_cache.clear()


def _svd_caches(todo: Sequence[ResizePlan]) -> dict[tuple[Path, ...], SvdCache]:
    """Return a place to keep the decomposition of every source that is needed more than once."""
    from optbench.lora.resize.svd_cache import SvdCache, svd_cache_folder

    found = {}
    counts = Counter(files for run in todo for files in run.sources.values())
    for run in todo:
        cache_dir = Path(run.options.cache_dir)
        for files in run.sources.values():
            source = hashing.files_fingerprint(files, cache_dir=cache_dir)
            folder = svd_cache_folder(cache_dir, source, run.options.weights)
            # What a killed command left is used up by the next one.
            if counts[files] > 1 or folder.is_dir():
                found[files] = SvdCache(folder)
    return found


def _conclude(asked: CommandPlan[ResizePlan]) -> int:
    """Print what was made and what it kept, build the report, and return the exit code."""
    from optbench.report import build_report

    width = None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL
    Console(soft_wrap=True, highlight=False, width=width).print(_table(asked))
    undone = []
    for run in asked.runs:
        state = rundir.read_status(run.run_dir)
        if state.status != "done":
            undone.append(f"  {run.run_dir.name}: {state.status}: {state.reason}")
    if undone:
        print(f"{len(undone)} of {len(asked.runs)} are not done:", file=sys.stderr)
        print("\n".join(undone), file=sys.stderr)
    try:
        print(build_report(asked.sweep_dir))
    except OptbenchError as error:
        print_problems(error.problems, Console(stderr=True, soft_wrap=True, highlight=False))
        return NOT_ALL_DONE
    return NOT_ALL_DONE if undone else DONE


def _table(asked: CommandPlan[ResizePlan]) -> Table:
    table = Table(title=str(asked.sweep_dir), title_justify="left", box=None)
    for title in (
        "file",
        "epoch",
        "MB",
        "of source",
        "mean dim",
        "energy kept",
        "least of a layer",
    ):
        table.add_column(title, justify="left" if title == "file" else "right")
    for run in asked.runs:
        for row in _rows(run.run_dir):
            table.add_row(
                run.run_dir.name,
                str(row["epoch"]),
                f"{row['lora_bytes'] / 1e6:.2f}",
                f"{row['lora_bytes'] / row['source_bytes']:.1%}",
                f"{row['mean_dim']:.1f}",
                f"{row['retained_energy']:.2%}",
                f"{row['least_retained_energy']:.2%}",
            )
    return table


def _rows(run_dir: Path) -> list[rundir.Row]:
    return rundir.read_rows(RunDir(run_dir).epochs_path)


if __name__ == "__main__":
    sys.exit(main())
