"""Keep a sweep's report up to date while it trains, at a bounded cost.

A thread looks every few seconds whether an epoch, an image or a status is new, and has the report
built again by a process of its own. All builds together may take `SHARE` of the time the sweep has
taken so far, so of a quick sweep some epochs share one build. Nothing that goes wrong here reaches
a run.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from optbench.config.build import config_yaml
from optbench.report import REPORT_NAME, WAITING_PAGE
from optbench.storage.files import write_atomic, write_sealed_text
from optbench.storage.resources import command_line
from optbench.storage.rundir import RunDir
from optbench.terminal import tell
from optbench.training.plan import RunPlan

SHARE = 0.02  # of the sweep's time, for the processor seconds of all builds
_FIRST_SECONDS = 4.0  # before the first build: a refusal or a finished sweep needs none
_LOOK_SECONDS = 2.0
_FILES = ("status.json", "epochs.jsonl", "validation.jsonl")
_COMMAND = (sys.executable, "-m", "optbench.report.rebuild")


def report_url(sweep_dir: Path) -> str:
    """Return the address of a sweep's report, which terminals make a link of."""
    return (sweep_dir / "report" / REPORT_NAME).resolve().as_uri()


@contextlib.contextmanager
def live_report(sweep_dir: Path, plans: Sequence[RunPlan]) -> Iterator[None]:
    """Keep the report of `sweep_dir` up to date inside of this context; print where it is.

    Args:
        sweep_dir: The sweep's folder, which exists.
        plans: The runs of the command, as far as they are known: those without a folder get one
            with their config in it, by which the report lists them as pending.
    """
    with contextlib.suppress(OSError):  # a disk's errors are the runs' to tell
        _list_pending(plans)
        page = sweep_dir / "report" / REPORT_NAME
        if not page.exists():
            page.parent.mkdir(exist_ok=True)
            write_atomic(page, WAITING_PAGE.read_bytes(), durable=False)
    tell(f"Report, renewed while the runs train: {report_url(sweep_dir)}")
    if os.environ.get("SSH_CONNECTION"):
        tell(f"  from another machine: {command_line('report', '--serve', str(sweep_dir))}")
    rebuilder = Rebuilder(sweep_dir)
    rebuilder.start()
    try:
        yield
    finally:
        rebuilder.stop()


def _list_pending(plans: Sequence[RunPlan]) -> None:
    for plan in plans:
        if not plan.run_dir.exists():
            plan.run_dir.mkdir(parents=True)
            write_sealed_text(RunDir(plan.run_dir).config_path, config_yaml(plan.config))


@dataclass(slots=True)
class Budget:
    """When the next build may begin, so that all of them stay below `SHARE` of the time."""

    begun: float
    spent: float = 0.0
    last_cost: float = 0.0
    num_builds: int = 0

    def allows(self, now: float) -> bool:
        """Return whether another build, if it costs what the last one did, is affordable."""
        elapsed = now - self.begun
        if self.num_builds == 0:
            return elapsed >= _FIRST_SECONDS
        return self.spent + self.last_cost <= SHARE * elapsed

    def charge(self, cpu_seconds: float) -> None:
        """Count what a build cost."""
        self.num_builds += 1
        self.last_cost = cpu_seconds
        self.spent += cpu_seconds


@dataclass(slots=True)
class Rebuilder:
    """Builds a sweep's report again and again in a thread, one build at a time."""

    sweep_dir: Path
    clock: Callable[[], float] = time.monotonic
    budget: Budget = field(init=False)
    _is_over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread = field(init=False)
    _process: subprocess.Popen[str] | None = None
    _complaints: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Prepare; nothing runs before `start`."""
        self.budget = Budget(begun=self.clock())
        # A daemon: it must die with the command, and never keep it alive.
        self._thread = threading.Thread(target=self._run, name="live report", daemon=True)

    def start(self) -> None:
        """Begin to look for news."""
        self._thread.start()

    def stop(self) -> None:
        """End the build that is going on, and return when nothing writes the report any more."""
        self._is_over.set()
        process = self._process
        if process is not None:
            process.terminate()
        self._thread.join()

    def _run(self) -> None:
        shown: object = None
        while True:
            before = time.perf_counter()
            state = sweep_state(self.sweep_dir)
            # A slow share is not asked again at once.
            looked = time.perf_counter() - before
            if state != shown and self.budget.allows(self.clock()):
                shown = state
                self.build()
            if self._is_over.wait(max(_LOOK_SECONDS, looked / SHARE)):
                return

    def build(self) -> None:
        """Build the report once, and say what went wrong, each thing once."""
        begun = self.clock()
        try:
            self._process = subprocess.Popen(
                [*_COMMAND, str(self.sweep_dir)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C is for the training, which ends it in order
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
            if self._is_over.is_set():
                self._process.terminate()
            output, errors = self._process.communicate()
        except OSError as error:
            self._complain(f"{type(error).__name__}: {error}", cost=0.0)
            return
        lines = output.splitlines()
        try:
            outcome = json.loads(lines[-1])
            cost, complaint = float(outcome["cpu_seconds"]), str(outcome["error"])
        except (IndexError, KeyError, TypeError, ValueError):
            code = self._process.returncode
            cost = self.clock() - begun
            complaint = errors.strip().rpartition("\n")[2] or f"exit code {code}"
        if self._is_over.is_set():
            return
        self._complain(complaint, cost=cost)

    def _complain(self, complaint: str, *, cost: float) -> None:
        self.budget.charge(cost)
        if complaint and complaint not in self._complaints:
            self._complaints.add(complaint)
            tell(f"The report is not up to date (the runs go on): {complaint}")


def sweep_state(sweep_dir: Path) -> object:
    """Return what is another value as soon as a run has a new status, epoch or image."""
    state: list[object] = []
    with contextlib.suppress(OSError):
        for run_dir in sorted(os.scandir(sweep_dir), key=lambda entry: entry.name):
            if run_dir.name == "report" or not run_dir.is_dir(follow_symlinks=False):
                continue
            places = [os.path.join(run_dir.path, name) for name in _FILES]  # noqa: PTH118
            images = os.path.join(run_dir.path, "images")  # noqa: PTH118
            with contextlib.suppress(OSError):
                places += [entry.path for entry in os.scandir(images) if entry.is_dir()]
            for place in places:
                with contextlib.suppress(OSError):
                    stat = os.stat(place)  # noqa: PTH116
                    # A heartbeat touches a status; only a new one is another file.
                    is_status = place.endswith(_FILES[0])
                    state.append((place, stat.st_ino, 0 if is_status else stat.st_mtime_ns))
    return state
