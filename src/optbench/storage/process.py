"""Identify a process beyond its PID, and tell from its record whether it still runs.

The record is written into a run's folder, where a worker on another machine may read it: machine,
boot and process namespace are hashes, so that no folder names the machine it was made on.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

_NUM_HASH_DIGITS = 16


def process_record(pid: int | None = None) -> dict[str, Any]:
    """Return what tells a process from every other that had or will have its PID.

    Args:
        pid: A process of this machine; None for this one.

    Returns:
        `pid`, `started` (clock ticks since boot), and hashes: `place` (boot and PID namespace),
        `machine`, `boot`. A hash that cannot be made here is an empty text.
    """
    pid = os.getpid() if pid is None else pid
    return {
        "pid": pid,
        "started": _start_ticks(pid),
        "place": place(),
        "machine": _machine(),
        "boot": _hash(_read_text("/proc/sys/kernel/random/boot_id")),
    }


def is_alive(record: Mapping[str, Any]) -> bool | None:
    """Return whether a recorded process runs; None where that cannot be told from here.

    In its PID namespace and since its boot, the process table decides. On its machine after
    another boot it is gone. From another machine or container only its silence can tell.
    """
    here = process_record()
    pid = record.get("pid")
    if isinstance(pid, int) and here["place"] and record.get("place") == here["place"]:
        return bool(record.get("started")) and _start_ticks(pid) == record.get("started")
    is_same_machine = here["machine"] and record.get("machine") == here["machine"]
    is_same_boot = not here["boot"] or record.get("boot") in (here["boot"], "", None)
    return False if is_same_machine and not is_same_boot else None


def is_this_process(record: Mapping[str, Any]) -> bool:
    """Return whether a record is this process's."""
    return record.get("pid") == os.getpid() and is_alive(record) is True


def _start_ticks(pid: int) -> int | None:
    """Return when a process was started, in clock ticks since boot; None once it is dead."""
    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        # psutil adds the boot time by the clock of the wall, which may be set at any moment; the
        # difference does not change with it. psutil 5 adds the boot time it read last, so it is
        # read first.
        boot = psutil.boot_time()
        seconds: float = process.create_time() - boot
        return round(seconds * os.sysconf("SC_CLK_TCK"))
    except psutil.Error:
        return None


def place() -> str:
    """Return a hash of this boot and PID namespace: PIDs can be compared within one."""
    boot = _read_text("/proc/sys/kernel/random/boot_id")
    try:
        namespace = Path("/proc/self/ns/pid").readlink()
    except OSError:
        return ""
    return _hash(f"{boot} {namespace}") if boot else ""


def _machine() -> str:
    """Return a hash that another machine does not have.

    Copied system images share the id in /etc, and containers the name `localhost`; both together
    are only shared by machines nobody could tell apart.
    """
    identity, name = _read_text("/etc/machine-id"), os.uname().nodename
    return _hash(f"{identity} {name}") if identity and name not in ("", "localhost") else ""


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_NUM_HASH_DIGITS] if text else ""
