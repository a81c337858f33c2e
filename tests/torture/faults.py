"""Faults of the file system, at a chosen operation: a library preloaded into every command.

Linux with a C compiler; elsewhere the campaigns that need it say that they were skipped.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_SOURCE = Path(__file__).with_name("faults.c")
_ACTIONS = ("count", "kill", "fail once", "fail from", "short from", "slow")
Action = Literal["count", "kill", "fail once", "fail from", "short from", "slow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens at the operation of this number and, if it says so, at all that follow."""

    action: Action
    at: int = 1
    error: int = 0  # errno of a failure


def preload() -> None:
    """Start this program again with the library in it; return where that is done or impossible."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if is_loaded() or sys.platform != "linux" or compiler is None:
        return
    library = Path(tempfile.mkdtemp(prefix="torture-faults-")) / "faults.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(_SOURCE), "-ldl"], check=True
    )
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    os.execve(  # noqa: S606 - this very program
        sys.executable, [sys.executable, "-m", "tests.torture", *sys.argv[1:]], environment
    )


def is_loaded() -> bool:
    """Return whether the library is in this process."""
    return hasattr(ctypes.CDLL(None), "faults_arm")


def arm(folder: Path, fault: Fault) -> None:
    """Count this process's operations on files below a folder from now on; do what `fault` says."""
    ctypes.CDLL(None).faults_arm(
        os.fsencode(folder), _ACTIONS.index(fault.action), ctypes.c_long(fault.at), fault.error
    )


def counted() -> int:
    """Return how many operations there were since `arm`."""
    count = ctypes.CDLL(None).faults_counted
    count.restype = ctypes.c_long
    return int(count())


def hit() -> str:
    """Return the path that the operation of the fault was on; empty if it never came to it."""
    path = ctypes.CDLL(None).faults_hit
    path.restype = ctypes.c_char_p
    return os.fsdecode(path())
