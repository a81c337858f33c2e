"""Train the one run that standard input describes: `python -m optbench.launch.worker`."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import pickle
import signal
import sys

from optbench.launch import guard
from optbench.launch.processes import RunJob
from optbench.storage import rundir
from optbench.terminal import tell
from optbench.training import interrupt
from optbench.training.session import Session

_PR_SET_PDEATHSIG = 1  # prctl(2)


def main() -> int:
    """Return 0 when the run has a status, whichever; anything else is judged by the parent."""
    # Ctrl-C reaches every process of the terminal; the parent passes it on as SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    request = pickle.load(sys.stdin.buffer)  # noqa: S301 - our own parent wrote it
    faulthandler.enable(file=request["faults"])
    if sys.platform == "linux":  # the kernel ends this process, in order, when its parent dies
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != request["parent"]:  # it had died before
            os.kill(os.getpid(), signal.SIGTERM)
    job: RunJob = request["job"]
    sys.argv = list(job.command)
    try:
        with interrupt.listening():
            guard.run_guarded(job.plan, Session())
    except interrupt.StopAskedError:
        return 0  # its status says so
    record = rundir.read_status(job.plan.run_dir)
    if not record.updated and record.status != "pending":  # a status that no disk took
        tell(f"{job.plan.name}: {record.status}: {record.reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
