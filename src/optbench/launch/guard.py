"""The run boundary: one run at a time, and nothing it does can stop or distort the others.

Hydra starts the runs; here each is handed its plan, finished ones are skipped without loading
anything, and whatever goes wrong inside becomes a status with a reason.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from optbench.config import messages
from optbench.config.build import (
    LAUNCH,
    build_config,
    build_group,
    config_tree,
    register_resolvers,
)
from optbench.config.compose import CONFIG_NAME, SweepPlan
from optbench.config.composer import VERSION_BASE
from optbench.config.identity import on_this_machine, plan_run
from optbench.config.quoting import quoted
from optbench.config.race import RacePlan
from optbench.errors import ConfigError, DamagedFileError, LockLostError, OptbenchError, Problem
from optbench.launch import processes
from optbench.launch.exit_status import judge
from optbench.launch.objective import objective
from optbench.launch.processes import RunJob
from optbench.lora.initial_weights import ReadWeights
from optbench.models.device import free_memory
from optbench.records import Status
from optbench.render.prompts import cells_of
from optbench.schema import LaunchOptions, RunConfig
from optbench.storage import disk, files, locks, nested, provenance, resources, rundir
from optbench.storage.rundir import read_config
from optbench.storage.secrets import hide_in_arguments, hide_in_settings
from optbench.training import interrupt, recovery
from optbench.training.interrupt import StopAskedError
from optbench.training.made_as import is_current, made_as
from optbench.training.plan import RunPlan
from optbench.training.session import Session

_HYDRA_RAISES = "HYDRA_FULL_ERROR"


@dataclass(frozen=True, kw_only=True)
class RunTask:
    """What Hydra does with each composed run, in this process or on a launcher plugin's machine.

    Carries all it needs, because a worker has neither this process's memory nor its folder.
    """

    # None where a sweeper plugin makes up the runs as it goes; of a race those that are due.
    plans: list[RunPlan]
    sweep_dir: Path
    needs_own_process: bool
    command: tuple[str, ...]
    working_dir: str
    workers: int = 1
    queue: list[RunJob] | None = None  # not None: only queued here, to be run side by side
    race: RacePlan | None = field(default=None, compare=False)
    session: Session = field(default_factory=Session, compare=False)  # of this process alone

    def __call__(self, tree: DictConfig) -> float | None:
        """Return the run's objective: its loss, inf where it failed, nan where it is unfinished."""
        if Path.cwd() != Path(self.working_dir):
            os.chdir(self.working_dir)  # settings hold paths as they were typed
        plan = self._plan(tree)
        job = RunJob(plan=plan, command=self.command)
        if self.queue is not None:
            self.queue.append(job)
            return None
        if self.needs_own_process and not is_finished(plan):
            with interrupt.listening():
                try:
                    processes.run_all([job], workers=1)
                except StopAskedError as stop:
                    if not interrupt.hand_on(stop):
                        raise
        else:
            with _command_line(self.command[1:]):
                run_guarded(plan, self.session)
        return objective(plan.run_dir, plan.until_epoch)

    def run_queue(self) -> None:
        """Train what was queued and is not finished, side by side."""
        if self.queue:
            unfinished = [job for job in self.queue if not is_finished(job.plan)]
            self.queue.clear()
            processes.run_all(unfinished, workers=self.workers)

    def _plan(self, tree: DictConfig) -> RunPlan:
        """Return the plan of the run that Hydra has just composed."""
        hydra_config = HydraConfig.get()
        overrides = tuple(hydra_config.overrides.task)
        for plan in self.plans:
            if plan.overrides == overrides:
                return plan
        job, read = hydra_config.job, ReadWeights()
        config = build_config(tree, read)
        options = build_group(LaunchOptions, LAUNCH, tree)
        return dataclasses.replace(
            on_this_machine(
                plan_run(config, sweep_dir=self.sweep_dir, overrides=overrides, read=read)
            ),
            until_epoch=options.until_epoch,
            run_index=0 if OmegaConf.is_missing(job, "num") else int(job.num),
            num_runs=0,
        )

    def __reduce__(self) -> tuple[Callable[..., RunTask], tuple[dict[str, Any]]]:
        """Return how a worker's process makes it again: with what conf/ calls made known."""
        here = ("session", "race")
        names = [part.name for part in dataclasses.fields(self) if part.name not in here]
        return _unpickled, ({name: getattr(self, name) for name in names},)


def _unpickled(values: dict[str, Any]) -> RunTask:
    register_resolvers()
    return RunTask(**values)


def check_writable(sweep: SweepPlan) -> None:
    """Make the sweep's folder and the cache, and return when both can be written to.

    Raises:
        OptbenchError: With every folder that cannot.
    """
    folders = {"runs_dir": sweep.sweep_dir}
    for plan in sweep.runs:
        folders.setdefault("cache_dir", Path(plan.config.cache_dir))
    problems = []
    for key, folder in folders.items():
        try:
            disk.make_folder(folder)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            problems.append(
                Problem(
                    f"{key}={folder}",
                    (error.strerror or str(error)).lower(),
                    "a folder that can be written to",
                    f"repair its rights, make room, or write {key}=ANOTHER_FOLDER",
                )
            )
    if problems:
        raise OptbenchError(*problems)


def launch(arguments: Sequence[str], sweep: SweepPlan) -> None:
    """Train every run of a command line that is not finished yet, through Hydra.

    Raises:
        KeyboardInterrupt: If a person stopped it; everything finished is kept.
    """
    if sweep.is_complete and all(is_finished(plan) for plan in sweep.runs):
        return
    assert sweep.launch is not None
    disk.make_folder(sweep.sweep_dir)
    configs = [plan.config for plan in sweep.runs]
    workers = processes.num_workers(sweep.launch, configs)
    needs_own_process = processes.needs_own_process(sweep.launch, configs) or workers > 1
    # Side by side only where all runs are known and nobody waits for the loss of one.
    is_known = sweep.is_complete or sweep.race is not None or sweep.search is not None
    is_queued = needs_own_process and sweep.is_local and is_known and workers > 1
    # Hydra leaves a multirun.yaml in this folder and makes no other.
    placed_arguments = [*arguments, f"hydra.sweep.dir={quoted(str(sweep.sweep_dir))}"]
    task = RunTask(
        plans=list(sweep.runs) if sweep.is_complete else [],
        sweep_dir=sweep.sweep_dir,
        needs_own_process=needs_own_process,
        command=("optbench", *placed_arguments),
        working_dir=str(Path.cwd()),
        workers=workers if sweep.is_local else sweep.at_a_time or 1,
        queue=[] if is_queued else None,
        race=sweep.race,
    )
    is_chosen = any(argument.startswith("hydra/sweeper=") for argument in arguments)
    sweeper = ["hydra/sweeper=list"] if sweep.is_listed and not is_chosen else []
    if sweep.is_listed:
        sweeper.append("hydra.mode=MULTIRUN")  # several seeds make a sweep of a single setting
    try:
        with _hydra_raises():
            call_hydra([*placed_arguments, *sweeper], task)
    finally:
        _hide_secrets(sweep.sweep_dir / "multirun.yaml")
    task.run_queue()


def _hide_secrets(file: Path) -> None:
    """Rewrite what Hydra wrote of the command without the secrets that were typed."""
    try:
        tree = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        assert isinstance(tree, dict)
        hidden = hide_in_settings(tree)
        overrides = nested.section(hidden, "hydra", "overrides")
        if overrides:
            hidden["hydra"]["overrides"] = {
                kind: hide_in_arguments(words) for kind, words in overrides.items()
            }
        if hidden != tree:
            files.write_atomic(file, OmegaConf.to_yaml(OmegaConf.create(hidden)))
    except (OSError, OmegaConfBaseException, yaml.YAMLError):
        return  # a launcher plugin writes none


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


@contextlib.contextmanager
def _hydra_raises() -> Iterator[None]:
    """Let Hydra raise what it cannot do, for instance write its files, and print no traceback."""
    before = os.environ.get(_HYDRA_RAISES)
    os.environ[_HYDRA_RAISES] = "1"
    try:
        yield
    except HydraException as error:
        raise ConfigError(messages.broken_file(error)) from error
    finally:
        os.environ.pop(_HYDRA_RAISES)
        if before is not None:
            os.environ[_HYDRA_RAISES] = before


def is_finished(plan: RunPlan) -> bool:
    """Return whether nothing is left to do: trained, measured and rendered as the plan says now.

    A run that is to go until an epoch may be stopped there, or have gone further.

    An image somebody deleted counts as left to do; a LoRA file does not, for it takes room. So do
    losses and images that were made from something else than they would be made from now.
    """
    run, config = rundir.RunDir(plan.run_dir), plan.config
    record = rundir.read_status(run.path)
    num_steps = plan.total_steps
    if record.status == "stopped" and plan.until_epoch is not None:
        if int(record.facts.get("epoch", 0)) < plan.until_epoch:
            return False
        num_steps = int(record.facts.get("step", 0))
    elif record.status != "done":
        return False
    if not is_current(record.facts, made_as(plan)):
        return False
    if provenance.belongs_to_another(run.provenance_path, plan.weights_fingerprint):
        return False
    if config.validate.enabled and not run.validation_path.is_file():
        return False
    settings = config_tree(config)
    groups = ("prompts", "render", *(("validate",) if config.validate.enabled else ()))
    try:
        stored = read_config(run)
        # Read once, so that damage is noticed; a file that older versions lack has no rows.
        for path in (run.steps_path, run.layers_path, run.files_path):
            files.read_rows(path)
        losses = files.read_rows(run.validation_path)
        if any(recovery.cut_records(run, num_steps=num_steps)):
            return False
        if config.validate.enabled and plan.until_epoch is not None:
            epoch = min(plan.until_epoch, plan.num_epochs)
            if all(row.get("epoch") != epoch for row in losses):
                return False
        return all(stored.get(name) == settings[name] for name in groups) and all(
            path.is_file() for path in image_paths(run, config)
        )
    except DamagedFileError:
        return False  # the run itself will say what is wrong with its records


def image_paths(run: rundir.RunDir, config: RunConfig) -> Iterator[Path]:
    """Yield where every image of a finished run lies that can be rendered.

    Earlier epochs cannot once somebody has deleted their LoRA files; the last one's file is
    written again from the run's state.
    """
    if not config.render.enabled:
        return
    epochs = [row.get("epoch", 0) for row in files.read_rows(run.epochs_path)]
    with_lora = [epoch for epoch in epochs[:-1] if run.lora_path(epoch).is_file()]
    for epoch in (0, *with_lora, *epochs[-1:]):
        for prompt in config.prompts.prompts:
            for cell in cells_of(prompt, config.render, epoch=epoch):
                yield run.image_path(cell)


def run_guarded(plan: RunPlan, session: Session) -> Status:
    """Return how one run ended; whatever it raises becomes its status and its reason.

    Raises:
        KeyboardInterrupt: After the run is marked as interrupted, so that the sweep stops too.
        StopAskedError: The same, for SIGTERM.
    """
    try:
        if is_finished(plan):
            return "done"
    except OSError as error:
        return _end_by(error, plan.run_dir)
    if rundir.is_of_later_optbench(plan.run_dir):
        return "failed"  # and it keeps the status it has

    def train() -> Status:
        if is_finished(plan):
            return "done"  # by the worker that had it until now
        from optbench.pipeline import run  # loads torch

        for error in run([plan], session).values():
            raise error
        return "stopped" if rundir.read_status(plan.run_dir).status == "stopped" else "done"

    return guard(plan.run_dir, train)


def guard(run_dir: Path, work: Callable[[], Status]) -> Status:
    """Return how some work in a run's folder ended; what it raises becomes status and reason.

    Where another worker has the run, or takes it over, it is left to it: "running".

    Raises:
        KeyboardInterrupt: After the run is marked as interrupted, so that the sweep stops too.
        StopAskedError: The same, for SIGTERM.
    """
    if links := rundir.linked_folders(run_dir):
        return _end_by(OptbenchError(*map(rundir.linked_run, links)), run_dir)
    try:
        # A folder from before there were locks may be in the hands of an older optbench.
        if rundir.read_status(run_dir).status == "running" and not locks.was_ever_locked(run_dir):
            return "running"
        with locks.hold_lock(run_dir, heartbeat_file=rundir.RunDir(run_dir).status_path) as lock:
            if lock is None:
                return "running"
            with interrupt.listening():
                return _guard(run_dir, work)
    except OSError as error:
        # The lock's: what `work` raises is judged inside. The other runs of a sweep are tried.
        return _end_by(error, run_dir)


def _guard(run_dir: Path, work: Callable[[], Status]) -> Status:
    try:
        return work()
    except LockLostError as error:
        traceback.clear_frames(error.__traceback__)
        return "running"  # the folder is another worker's: not even a status may be written
    except StopAskedError as stop:
        _end(run_dir, "interrupted", f"{stop}; rerun the same command to resume")
        if interrupt.hand_on(stop):
            return "interrupted"
        raise
    except KeyboardInterrupt:
        _end(run_dir, "interrupted", "stopped by Ctrl-C; rerun the same command to resume")
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - one run's crash must not stop the others
        status = _end_by(error, run_dir)
        # The traceback would keep the run's model and tensors alive for the rest of the sweep.
        traceback.clear_frames(error.__traceback__)
        return status
    finally:
        free_memory()


def _end_by(error: BaseException, run_dir: Path) -> Status:
    status, reason = judge(error)
    _end(run_dir, status, reason)
    return status


def _end(run_dir: Path, status: Status, reason: str) -> None:
    """Write how a run ended, beside the facts that are already known of it.

    Even this may fail: the folder may be another worker's by now, or gone, or have no room. Then
    this process at least knows it, for its last words.
    """
    if run_dir.is_symlink():
        rundir.keep_unwritten(run_dir, status, reason)
        return
    try:
        rundir.write_status(run_dir, status, reason, **rundir.read_status(run_dir).facts)
    except LockLostError:
        return
    except OSError:
        rundir.keep_unwritten(run_dir, status, reason)


@contextlib.contextmanager
def _command_line(arguments: Sequence[str]) -> Iterator[None]:
    """Let Hydra, which reads sys.argv, see these arguments for a while."""
    before = sys.argv
    sys.argv = ["optbench", *arguments]
    try:
        yield
    finally:
        sys.argv = before
