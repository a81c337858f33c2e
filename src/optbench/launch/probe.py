"""The first touch of the folders that a command writes to: a share may stall, a disk be read-only.

A stalled network share holds whoever touches it for ever, in the kernel; so another process
touches it first, and is waited for only so long.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Protocol

from optbench.errors import OptbenchError, Problem
from optbench.schema import LaunchOptions, RunConfig

# Prints what is wrong, if anything; the folder may be there, or be made.
_TOUCH = """
import os, sys
folder = sys.argv[1]
try:
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, ".touched-" + str(os.getpid()))
    with open(path, "w") as file:
        file.write("optbench")
    os.unlink(path)
except OSError as error:
    print(error.strerror)
"""


class _Run(Protocol):
    @property
    def config(self) -> RunConfig: ...
    @property
    def run_dir(self) -> Path: ...


class _Asked(Protocol):
    @property
    def runs(self) -> tuple[_Run, ...]: ...
    @property
    def sweep_dir(self) -> Path: ...
    @property
    def launch(self) -> LaunchOptions | None: ...


def check_answering(asked: _Asked) -> None:
    """Return when the sweep's folder and the cache can be written to.

    Raises:
        OptbenchError: With every folder that does not answer in time or may not be written to.
    """
    limit = None if asked.launch is None else asked.launch.first_touch_seconds
    folders = {"runs_dir": asked.sweep_dir}
    for run in asked.runs:
        folders.setdefault("cache_dir", Path(run.config.cache_dir))
    problems = [
        problem
        for key, folder in folders.items()
        if (problem := _touched(folder, key=key, limit_seconds=limit))
    ]
    if problems:
        raise OptbenchError(*problems)


def _touched(folder: Path, *, key: str, limit_seconds: float | None) -> Problem | None:
    """Return what is wrong with a folder, or None."""
    process = subprocess.Popen(
        # Without site packages: this must be quick.
        [sys.executable, "-I", "-S", "-c", _TOUCH, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said, _ = process.communicate(timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=1)  # it may not die before the share answers
        return Problem(
            f"{key}={folder}",
            f"no answer for {limit_seconds:g} s",
            "a folder that can be written to",
            (
                "see that its network share is mounted and well, choose another folder, or wait "
                "longer with launch.first_touch_seconds=600"
            ),
        )
    if not said.strip():
        return None
    return Problem(
        f"{key}={folder}",
        said.strip().splitlines()[-1].lower(),
        "a folder that can be written to",
        f"repair its rights, make room, or write {key}=ANOTHER_FOLDER",
    )
