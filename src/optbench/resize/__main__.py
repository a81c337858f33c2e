"""`python -m optbench.resize`: smaller LoRA files, exactly, and what every layer lost."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from optbench import launch, rundir
from optbench.cli import BAD_INPUT, DONE, NOT_ALL_DONE, STOPPED, asks_for_information
from optbench.composition import Asked, flags_first
from optbench.config import register_resolvers
from optbench.errors import OptbenchError
from optbench.refusals import print_problems
from optbench.resize.asking import CONFIG_NAME, AskedResize, compose_resizes
from optbench.rundir import RunDir

_WIDTH_WITHOUT_TERMINAL = 200


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0 all asked files are made, 1 some are not, 2 bad input, 130 stopped.

    The last line on the standard output is the folder of the resized files.
    """
    arguments = flags_first(sys.argv[1:] if argv is None else argv)
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    if asks_for_information(arguments):
        register_resolvers()
        return launch.call_hydra(arguments, lambda tree: None, config_name=CONFIG_NAME)
    try:
        asked = compose_resizes(arguments)
        _check_contents(asked)
    except OptbenchError as error:
        print_problems(error.problems, errors)
        return BAD_INPUT
    try:
        for run in asked.runs:
            _make(run)
    except KeyboardInterrupt:
        print("Stopped. The same command goes on with what is not done.", file=sys.stderr)
        return STOPPED
    return _conclude(asked)


def _check_contents(asked: Asked[AskedResize]) -> None:
    """Read every source that is still needed once, and refuse all that is wrong together."""
    from optbench.resize.making import is_made
    from optbench.resize.merging import check_sources

    needed = [run for run in asked.runs if not is_made(run)]
    check_sources([files for run in needed for files in run.sources.values()])


def _make(run: AskedResize) -> None:
    from optbench.resize.making import is_made, make_resize

    if not is_made(run) and rundir.read_status(run.run_dir).status != "running":
        launch.guard(run.run_dir, lambda: make_resize(run))


def _conclude(asked: Asked[AskedResize]) -> int:
    """Print what was made and what it kept, name what is not done, and return the exit code."""
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
    print(asked.sweep_dir)
    return NOT_ALL_DONE if undone else DONE


def _table(asked: Asked[AskedResize]) -> Table:
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
