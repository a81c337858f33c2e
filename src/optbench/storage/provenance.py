"""Record what a run was made with: versions, hardware, the code's commit, the command.

Nothing in it names the machine or the person: no host name, and the home folder is written `~`.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from optbench.storage.nested import map_values
from optbench.storage.secrets import hide_in_arguments

_GIT_TIMEOUT_SECONDS = 10
_GIT_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
_CHECKOUT = Path(__file__).resolve().parents[3]


def collect(
    *, packages: Sequence[str], command: Sequence[str], extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Return facts about this process, this machine and this command, as JSON holds them.

    Args:
        packages: Names of distributions whose versions count; a missing one is stored as null.
        command: The command line as it was typed; secrets in it are hidden.
        extra: Further keys, stored as they are with the home folder shortened; they win.
    """
    content: dict[str, Any] = {
        "optbench": package_version("optbench"),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": hide_in_arguments(command),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_model(),
        # In a container, a process may use fewer than there are.
        "num_cpus": (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count()
        ),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": _gpu_names(),
        "packages": {name: package_version(name) for name in packages},
        "git": git_state(_CHECKOUT),
        **extra,
    }
    shortened: dict[str, Any] = map_values(content, without_home)
    return shortened


def package_version(package: str) -> str | None:
    """Return the version of an installed distribution, or None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _gpu_names() -> list[str]:
    """Return the GPUs' names if torch is loaded already; never loads it for that."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


@functools.cache
def git_state(checkout: Path) -> Mapping[str, Any] | None:
    """Return commit and whether files differ from it; None outside a checkout of our own.

    Read once per process: the code in memory stays the same however the files are edited.
    """
    if not (checkout / ".git").exists():
        return None
    commit = _git(checkout, "rev-parse", "HEAD")
    changes = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    if commit is None or changes is None:
        return None
    return {"commit": commit, "is_dirty": bool(changes)}


def _git(checkout: Path, *arguments: str) -> str | None:
    # Inside a hook, these variables would lead git to the hook's repository.
    environment = {name: value for name, value in os.environ.items() if name not in _GIT_VARIABLES}
    try:
        result = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(checkout), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_SECONDS,
            check=False,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def without_home(value: Any) -> Any:
    """Return a text or path with the home folder written `~`; any other value as it is."""
    if not isinstance(value, (str, Path)):
        return value
    home, text = str(Path.home()), str(value)
    return text if home == "/" else re.sub(rf"{re.escape(home)}(?=/|$|\W)", "~", text)
