"""`python -m optbench verify RUNS_DIR`: read every file of finished runs and say which are damaged.

A disk may rot what nobody reads for months. Nothing is changed but the status of a damaged run:
it is `interrupted` then, and the command that made its sweep makes again what is not whole.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from optbench.analysis import find_runs, is_run, no_runs, sweep_dirs
from optbench.config.messages import print_problems
from optbench.errors import DamagedFileError, OptbenchError
from optbench.storage import files, hashing, rundir
from optbench.storage.rundir import RunDir, read_config

_WHOLE = 0
_DAMAGED = 1
_BAD_INPUT = 2
_NUM_DIGEST_BYTES = 32  # a state opens with the SHA-256 of its rest
_ENDED = ("done", "diverged", "failed", "out_of_memory", "skipped", "interrupted")


def main(argv: Sequence[str] | None = None) -> int:
    """Print every damaged file.

    Returns:
        0 if all is whole; 1 if something is not; 2 if there are no runs.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    console = Console(soft_wrap=True, highlight=False)
    try:
        runs = [run for one in arguments or ["runs"] for run in _runs(Path(one))]
    except OptbenchError as error:
        print_problems(error.problems, console)
        return _BAD_INPUT
    num_damaged = 0
    for run in runs:
        record = rundir.read_status(run.path)
        if record.status not in _ENDED or rundir.is_of_later_optbench(run.path):
            console.print(f"{escape(run.name)}: {record.status}, not looked at")
            continue
        found = list(damage_of(run))
        for line in found:
            console.print(f"{escape(run.name)}: [red]{escape(line)}[/]")
        if found and record.status == "done":
            reason = f"damaged: {'; '.join(found)}; the same command makes it again"
            rundir.write_status(run.path, "interrupted", reason, **record.facts)
        num_damaged += bool(found)
    console.print(f"{len(runs)} runs read, {num_damaged} with damaged files")
    return _DAMAGED if num_damaged else _WHOLE


def damage_of(run: RunDir) -> Iterator[str]:
    """Yield a sentence for every file of a run that is not what was written; changes nothing."""
    yield from _try(functools.partial(read_config, run))
    for path in sorted(run.path.glob("*.json")):
        yield from _try(functools.partial(rundir.read_json, path))
    for path in sorted(run.path.glob("*.jsonl")):
        yield from _try(functools.partial(rundir.read_rows, path))
    rows = files.readable_rows(run.files_path)[0]
    recorded = {row.get("file") for row in rows}
    if run.files_path.is_file():
        for path in sorted(run.lora_dir.glob(f"{run.name}*.safetensors")):
            if path.name not in recorded:
                yield f"{run.files_path.name}: no record of {path.name}"
    for row in rows:
        lora = run.recorded_lora(row)
        if lora is not None and lora.is_file() and hashing.file_sha256(lora) != row.get("sha256"):
            yield f"{lora.relative_to(run.path)}: other bytes than were written"
    for path in sorted(run.state_dir.glob("*.pt")):
        data = path.read_bytes()
        digest = hashlib.sha256(memoryview(data)[_NUM_DIGEST_BYTES:]).digest()
        if digest != data[:_NUM_DIGEST_BYTES]:
            yield f"{path.relative_to(run.path)}: other bytes than were written"
    for path in sorted(run.path.glob("images/*/*.png")):
        if not files.is_intact_png(path):
            yield f"{path.relative_to(run.path)}: not a whole PNG"


def _try(read: Callable[[], object]) -> Iterator[str]:
    try:
        read()
    except DamagedFileError as error:
        problem = error.problems[0]
        yield f"{Path(problem.where).name}: {problem.found}"


def _runs(root: Path) -> list[RunDir]:
    found = [RunDir(run) for sweep in sweep_dirs(root) for run in find_runs(sweep)]
    if not found and is_run(root):
        found = [RunDir(root)]
    if not found:
        raise no_runs(root)
    return found


if __name__ == "__main__":
    sys.exit(main())
