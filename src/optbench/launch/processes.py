"""Train runs in processes of their own: memory, leaked state and crashes end with the run.

The child holds the run's lock and writes its status; here it is started, given a GPU and waited
for, and where it died before it could write a status, that is written here.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from optbench.errors import LockLostError
from optbench.launch.exit_status import judge, judge_exit
from optbench.records import Status
from optbench.schema import LaunchOptions, RunConfig
from optbench.storage import locks, rundir
from optbench.training.plan import RunPlan

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 60.0  # to finish a step, save and leave; a GPU's longest step is far below
_NUM_LAST_LINES = 12
_COMMAND = (sys.executable, "-m", "optbench.launch.worker")
_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunJob:
    """One run to train in a process of its own."""

    plan: RunPlan
    command: tuple[str, ...]  # the command line, for the run's provenance


@dataclass(slots=True, kw_only=True)
class _Child:
    job: RunJob
    process: subprocess.Popen[bytes]
    faults: IO[bytes]
    slot: int
    num_oom_kills: int


def gpus() -> tuple[str, ...]:
    """Return the GPUs this process may use, as CUDA_VISIBLE_DEVICES spells them; loads no torch."""
    visible = os.environ.get(_VISIBLE)
    if visible is not None:
        return tuple(gpu for gpu in visible.split(",") if gpu.strip() not in ("", "-1"))
    if shutil.which("nvidia-smi") is None:
        return ()
    try:
        listing = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    lines = listing.stdout.splitlines()
    # The slices of GPUs that are cut up have names of their own; whole ones go by number.
    slices = [line.rpartition("UUID: ")[2].rstrip(")") for line in lines if "MIG-" in line]
    whole = [line.partition(":")[0][4:] for line in lines if line.startswith("GPU ")]
    return tuple(slices or whole)


def needs_own_process(options: LaunchOptions, configs: Iterable[RunConfig]) -> bool:
    """Return whether every run gets a process of its own.

    `auto`: where a GPU is used, whose memory only a process's end gives back whole. On a CPU one
    process is faster: the base is loaded once.
    """
    if options.isolation != "auto":
        return options.isolation == "process"
    return any(config.train.device != "cpu" for config in configs) and bool(gpus())


def num_workers(options: LaunchOptions, configs: Sequence[RunConfig]) -> int:
    """Return how many runs are made at a time: as asked, else one per GPU."""
    if options.workers is not None:
        return options.workers
    return max(1, len(gpus())) if _may_choose_gpu(configs) else 1


def run_all(jobs: Sequence[RunJob], *, workers: int) -> None:
    """Train runs in processes, `workers` at a time; each has a status in the end.

    Raises:
        KeyboardInterrupt: If a person stopped it, after every child has saved and left.
    """
    waiting = deque(jobs)
    devices = gpus() if _may_choose_gpu([job.plan.config for job in jobs]) else ()
    free = list(range(workers))
    children: list[_Child] = []
    try:
        while waiting or children:
            while waiting and free:
                slot = free.pop(0)
                device = devices[slot % len(devices)] if devices else None
                job = waiting.popleft()
                try:
                    children.append(_start(job, slot=slot, device=device, is_alone=workers == 1))
                except OSError as error:  # no room for a temporary file, no process to be had
                    free.insert(0, slot)
                    _write_end(job.plan.run_dir, *judge(error))
            for child in [child for child in children if child.process.poll() is not None]:
                children.remove(child)
                free.append(child.slot)
                free.sort()
                _conclude(child)
            time.sleep(_POLL_SECONDS)
    finally:
        _stop(children)  # none are left unless this was stopped itself


def _may_choose_gpu(configs: Sequence[RunConfig]) -> bool:
    """Return whether no run names its own device."""
    return bool(configs) and all(config.train.device in ("auto", "cuda") for config in configs)


def _start(job: RunJob, *, slot: int, device: str | None, is_alone: bool) -> _Child:
    """Return the process of one run, started; its plan is pickled to its standard input."""
    environment = dict(os.environ)
    if device is not None:
        environment[_VISIBLE] = device
    if not is_alone:
        # Several moving bars on one screen cannot be read: rich then writes lines.
        environment |= {"TTY_COMPATIBLE": "0", "TTY_INTERACTIVE": "0"}
    faults = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the child has ended
    oom_kills = _num_oom_kills()
    process = subprocess.Popen(
        _COMMAND, stdin=subprocess.PIPE, env=environment, pass_fds=(faults.fileno(),)
    )
    request = {"job": job, "faults": faults.fileno(), "parent": os.getpid()}
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as stream:  # its exit code will tell
        stream.write(pickle.dumps(request))
    return _Child(job=job, process=process, faults=faults, slot=slot, num_oom_kills=oom_kills)


def _conclude(child: _Child) -> None:
    """Write the status of a run whose process died without writing one."""
    with child.faults as faults:
        faults.seek(0)
        text = faults.read().decode(errors="replace")
    code = child.process.returncode
    if code == 0:
        return
    run_dir = child.job.plan.run_dir
    status, reason = judge_exit(
        code,
        is_out_of_memory=_num_oom_kills() > child.num_oom_kills,
        last_words="\n".join(text.splitlines()[:_NUM_LAST_LINES]),
    )
    _write_end(run_dir, status, reason)


def _write_end(run_dir: Path, status: Status, reason: str) -> None:
    """Write how a run ended whose process could not, unless another worker has it already."""
    try:
        with locks.hold_lock(run_dir) as lock:
            if lock is not None:
                rundir.write_status(run_dir, status, reason, **rundir.read_status(run_dir).facts)
    except LockLostError:
        return
    except OSError:
        rundir.keep_unwritten(run_dir, status, reason)


def _stop(children: Sequence[_Child]) -> None:
    """Ask every child to save and leave, and end those that do not."""
    for child in children:
        child.process.terminate()
    deadline = time.monotonic() + _GRACE_SECONDS
    for child in children:
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            child.process.send_signal(signal.SIGKILL)
            child.process.wait()
        _conclude(child)


def _num_oom_kills() -> int:
    """Return how many processes this machine's kernel has killed for want of memory so far."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
