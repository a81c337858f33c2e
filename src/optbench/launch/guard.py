"""The run boundary: one run at a time, and nothing it does can stop or distort the others.

Hydra starts the runs; here every run is given its place, finished ones are left alone without
loading anything, and whatever goes wrong inside becomes a status with a reason.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from optbench.config.build import build_config, config_tree, register_resolvers
from optbench.config.compose import CONFIG_NAME, VERSION_BASE, AskedRuns, launch_listed
from optbench.config.identity import identify
from optbench.errors import ClaimLostError, DamagedFileError
from optbench.launch import processes
from optbench.launch.exit_status import judge
from optbench.launch.objective import objective
from optbench.records import Status, SweepPlace
from optbench.render.prompts import cells_of
from optbench.schema import RunConfig
from optbench.storage import locks, resources, rundir
from optbench.storage.rundir import read_config
from optbench.training import interrupt
from optbench.training.interrupt import StopAskedError


@dataclass(frozen=True, kw_only=True)
class RunTask:
    """What Hydra does with each composed run, in this process or in a worker's.

    Carries all it needs, because a worker has neither this process's memory nor its folder.
    """

    sweep_dir: Path
    num_runs: int
    is_apart: bool  # a process for each run
    command: tuple[str, ...]
    working_dir: str
    queue: list[processes.Errand] | None = (
        None  # not None: only noted here, to be made side by side
    )

    def __call__(self, tree: DictConfig) -> float | None:
        """Return the run's objective: its loss, inf where it went wrong, nan where it stands."""
        if Path.cwd() != Path(self.working_dir):
            os.chdir(self.working_dir)  # settings hold paths as they were typed
        job = HydraConfig.get().job
        run_index = 0 if OmegaConf.is_missing(job, "num") else int(job.num)
        place = SweepPlace(sweep_dir=self.sweep_dir, run_index=run_index, num_runs=self.num_runs)
        config = build_config(tree)
        run_dir = self.sweep_dir / identify(config).name
        errand = processes.Errand(run_dir=run_dir, config=config, place=place, command=self.command)
        if self.queue is not None:
            self.queue.append(errand)
            return None
        if self.is_apart and not is_finished(run_dir, config):
            with interrupt.listening():
                self._make_apart(errand)
        else:
            with _command_line(self.command[1:]):
                run_guarded(config, place)
        return objective(run_dir)

    def _make_apart(self, errand: processes.Errand) -> None:
        try:
            processes.make_all([errand], workers=1)
        except StopAskedError as stop:
            if not interrupt.hand_on(stop):
                raise

    def __reduce__(self) -> tuple[Callable[..., RunTask], tuple[dict[str, Any]]]:
        """Return how a worker's process makes it again: with what conf/ calls made known."""
        fields = dataclasses.fields(self)
        return _arrived, ({field.name: getattr(self, field.name) for field in fields},)


def _arrived(values: dict[str, Any]) -> RunTask:
    register_resolvers()
    return RunTask(**values)


def launch(arguments: Sequence[str], asked: AskedRuns) -> None:
    """Make every run of a command line that is not finished yet, through Hydra.

    Raises:
        KeyboardInterrupt: If a person stopped it; everything finished is kept.
    """
    if asked.is_whole and all(is_finished(run.run_dir, run.config) for run in asked.runs):
        return
    assert asked.launch is not None
    asked.sweep_dir.mkdir(parents=True, exist_ok=True)
    configs = [run.config for run in asked.runs]
    workers = processes.num_workers(asked.launch, configs)
    is_apart = processes.is_wanted(asked.launch, configs) or workers > 1
    # Side by side only where all runs are known and nobody waits for the loss of one.
    is_queued = is_apart and asked.is_local and asked.is_whole and workers > 1
    # Hydra leaves a multirun.yaml in this folder and makes no other.
    quoted = str(asked.sweep_dir).replace("\\", "\\\\").replace("'", "\\'")
    placed = [*arguments, f"hydra.sweep.dir='{quoted}'"]
    task = RunTask(
        sweep_dir=asked.sweep_dir,
        num_runs=len(asked.runs) if asked.is_whole else 0,
        is_apart=is_apart,
        command=("optbench", *placed),
        working_dir=str(Path.cwd()),
        queue=[] if is_queued else None,
    )
    if asked.is_listed:
        with _command_line(placed):
            launch_listed(placed, [run.overrides for run in asked.runs], task)
    else:
        call_hydra(placed, task)
    if task.queue:
        open_ones = [one for one in task.queue if not is_finished(one.run_dir, one.config)]
        processes.make_all(open_ones, workers=workers)


def call_hydra(
    arguments: Sequence[str],
    task: Callable[[DictConfig], object],
    *,
    config_name: str = CONFIG_NAME,
) -> int:
    """Return Hydra's exit code after it has done with `task` what the arguments say."""
    main = hydra.main(
        config_path=str(resources.conf_dir()), config_name=config_name, version_base=VERSION_BASE
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
        _read_records(run)
        return is_same and all(one.is_file() for one in _pictures(run, config))
    except DamagedFileError:
        return False  # the run itself will say what is wrong with its records


def _read_records(run: rundir.RunDir) -> None:
    """Read every record once, so that damage is noticed; a file that older versions lack is none.

    Raises:
        DamagedFileError: If a line is not what was written.
    """
    for path in (run.steps_path, run.layers_path, run.validation_path, run.files_path):
        rundir.read_rows(path)


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
        StopAskedError: The same, for SIGTERM.
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
        StopAskedError: The same, for SIGTERM.
    """
    # A folder from before there were claims may be in the hands of an older optbench.
    if rundir.read_status(run_dir).status == "running" and not locks.is_claimed(run_dir):
        return "running"
    with locks.holding(run_dir, beside=rundir.RunDir(run_dir).status_path) as claim:
        if claim is None:
            return "running"
        with interrupt.listening():
            return _guard(run_dir, work)


def _guard(run_dir: Path, work: Callable[[], Status]) -> Status:
    try:
        return work()
    except ClaimLostError as error:
        traceback.clear_frames(error.__traceback__)
        return "running"  # the folder is another worker's: not even a status may be written
    except StopAskedError as stop:
        _end(run_dir, "interrupted", f"{stop}; the same command goes on from here")
        if interrupt.hand_on(stop):
            return "interrupted"
        raise
    except KeyboardInterrupt:
        _end(run_dir, "interrupted", "stopped by Ctrl-C; the same command goes on from here")
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - one run's crash must not stop the others
        status, reason = judge(error)
        _end(run_dir, status, reason)
        # The traceback would keep the run's model and tensors alive for the rest of the sweep.
        traceback.clear_frames(error.__traceback__)
        return status
    finally:
        _free_memory()


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
