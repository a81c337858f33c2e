"""The run boundary: one run at a time, and nothing it does can stop or distort the others.

Hydra starts the runs; here every run is given its place, finished ones are left alone without
loading anything, and whatever goes wrong inside becomes a status with a reason.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from optbench import claims, paths, rundir
from optbench.composition import CONFIG_NAME, VERSION_BASE, AskedRuns, launch_listed
from optbench.config import build_config, config_tree
from optbench.errors import (
    ClaimLostError,
    DamagedFileError,
    DivergedError,
    MissingPackageError,
    OptbenchError,
)
from optbench.identity import identify
from optbench.options import RunConfig
from optbench.records import Status, SweepPlace
from optbench.render import cells_of
from optbench.stored import read_config

_NUM_TRACEBACK_LINES = 12


def launch(arguments: Sequence[str], asked: AskedRuns) -> None:
    """Make every run of a command line that is not finished yet, through Hydra.

    Raises:
        KeyboardInterrupt: If a person stopped it; everything finished is kept.
    """
    if asked.is_whole and all(is_finished(run.run_dir, run.config) for run in asked.runs):
        return
    asked.sweep_dir.mkdir(parents=True, exist_ok=True)
    num_runs = len(asked.runs) if asked.is_whole else 0

    def run_one_of_them(tree: DictConfig) -> str:
        job = HydraConfig.get().job
        run_index = 0 if OmegaConf.is_missing(job, "num") else int(job.num)
        place = SweepPlace(sweep_dir=asked.sweep_dir, run_index=run_index, num_runs=num_runs)
        return run_guarded(build_config(tree), place)

    # Hydra leaves a multirun.yaml in this folder and makes no other.
    quoted = str(asked.sweep_dir).replace("\\", "\\\\").replace("'", "\\'")
    placed = [*arguments, f"hydra.sweep.dir='{quoted}'"]
    if asked.is_listed:
        with _command_line(placed):
            launch_listed(placed, [run.overrides for run in asked.runs], run_one_of_them)
    else:
        call_hydra(placed, run_one_of_them)


def call_hydra(
    arguments: Sequence[str],
    task: Callable[[DictConfig], object],
    *,
    config_name: str = CONFIG_NAME,
) -> int:
    """Return Hydra's exit code after it has done with `task` what the arguments say."""
    main = hydra.main(
        config_path=str(paths.conf_dir()), config_name=config_name, version_base=VERSION_BASE
    )
    with _command_line(arguments):
        try:
            main(task)()
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else 1
    return 0


def is_finished(run_dir: Path, config: RunConfig) -> bool:
    """Return whether nothing is left to do: trained to the end, and rendered as asked now.

    A picture somebody deleted counts as left to do; a LoRA file does not, for it takes room.
    """
    run = rundir.RunDir(run_dir)
    if rundir.read_status(run_dir).status != "done":
        return False
    asked = config_tree(config)
    groups = ("prompts", "render", *(("validate",) if config.validate.enabled else ()))
    if config.validate.enabled and not run.validation_path.is_file():
        return False
    try:
        stored = read_config(run)
        is_same = all(stored.get(name) == asked[name] for name in groups)
        return (
            is_same and _has_records(run) and all(one.is_file() for one in _pictures(run, config))
        )
    except DamagedFileError:
        return False  # the run itself will say what is wrong with its records


def _has_records(run: rundir.RunDir) -> bool:
    """Read every record once, so that damage is noticed; a file that older versions lack is none.

    Raises:
        DamagedFileError: If a line is not what was written.
    """
    for path in (run.steps_path, run.layers_path, run.validation_path, run.files_path):
        rundir.read_rows(path)
    return bool(rundir.read_rows(run.steps_path))


def _pictures(run: rundir.RunDir, config: RunConfig) -> Iterator[Path]:
    """Yield where every picture of a finished run lies."""
    if not config.render.enabled:
        return
    epochs = [row.get("epoch", 0) for row in rundir.read_rows(run.epochs_path)]
    for epoch in (0, *epochs):
        for prompt in config.prompts.prompts:
            for cell in cells_of(prompt, config.render, epoch=epoch):
                yield run.image_path(cell)


def run_guarded(config: RunConfig, place: SweepPlace) -> Status:
    """Return how one run ended; whatever it raises becomes its status and its reason.

    Raises:
        KeyboardInterrupt: After the run is marked as interrupted, so that the sweep stops too.
    """
    run_dir = place.sweep_dir / identify(config).name
    if is_finished(run_dir, config):
        return "done"
    if rundir.is_of_later_optbench(run_dir):
        return "failed"  # and it keeps the status it has

    def run_it() -> Status:
        if is_finished(run_dir, config):
            return "done"  # by the worker that had it until now
        from optbench.pipeline import run_one

        return run_one(config, place)

    return guard(run_dir, run_it)


def guard(run_dir: Path, work: Callable[[], Status]) -> Status:
    """Return how some work in a run's folder ended; what it raises becomes status and reason.

    Where another worker has the run, or takes it over, it is left to it: "running".

    Raises:
        KeyboardInterrupt: After the run is marked as interrupted, so that the sweep stops too.
    """
    # A folder from before there were claims may be in the hands of an older optbench.
    if rundir.read_status(run_dir).status == "running" and not claims.is_claimed(run_dir):
        return "running"
    with claims.holding(run_dir, beside=rundir.RunDir(run_dir).status_path) as claim:
        return "running" if claim is None else _guard(run_dir, work)


def _guard(run_dir: Path, work: Callable[[], Status]) -> Status:
    try:
        return work()
    except ClaimLostError as error:
        traceback.clear_frames(error.__traceback__)
        return "running"  # the folder is another worker's: not even a status may be written
    except KeyboardInterrupt:
        _end(run_dir, "interrupted", "stopped by Ctrl-C; the same command goes on from here")
        raise
    except (Exception, SystemExit) as error:
        status, reason = judge(error)
        _end(run_dir, status, reason)
        # The traceback would keep the run's model and tensors alive for the rest of the sweep.
        traceback.clear_frames(error.__traceback__)
        return status
    finally:
        _free_memory()


def judge(error: BaseException) -> tuple[Status, str]:
    """Return the status and the reason that an exception leaves behind."""
    if isinstance(error, DivergedError):
        return "diverged", str(error)
    if isinstance(error, MissingPackageError):
        return "skipped", str(error)
    if isinstance(error, OptbenchError):
        return "failed", str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out_of_memory", f"{type(error).__name__}: {error}"
    lines = traceback.format_exception(error)
    tail = "".join(lines).splitlines()[-_NUM_TRACEBACK_LINES:]
    return "failed", "\n".join([f"{type(error).__name__}: {error}", *tail])


def _end(run_dir: Path, status: Status, reason: str) -> None:
    """Write how a run ended, beside the facts that are already known of it.

    Even this may fail: the folder may be another worker's by now, or gone, or have no room.
    """
    try:
        rundir.write_status(run_dir, status, reason, **rundir.read_status(run_dir).facts)
    except ClaimLostError:
        return
    except OSError as error:
        sys.stderr.write(f"{run_dir.name}: {status}: {reason}\n(status.json: {error})\n")


@contextlib.contextmanager
def _command_line(arguments: Sequence[str]) -> Iterator[None]:
    """Let Hydra, which reads sys.argv, see these arguments for a while."""
    before = sys.argv
    sys.argv = ["optbench", *arguments]
    try:
        yield
    finally:
        sys.argv = before


def _free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")  # never imported here: a finished sweep must not wait for it
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
