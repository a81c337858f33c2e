"""Which process this is, so that another one - here, elsewhere, or later - can tell if it lives."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NUM_HASH_DIGITS = 16


def mark(pid: int) -> dict[str, Any]:
    """Return what tells a process from every other that had or will have its number.

    Machine, boot and place are hashes: what is written into a run's folder names no machine.
    """
    return {
        "pid": pid,
        "started": started(pid),
        "place": _place(),
        "machine": _machine(),
        "boot": _boot(),
    }


def is_alive(marked: Mapping[str, Any]) -> bool | None:
    """Return whether a marked process lives; None where that cannot be told from here.

    On its machine and since its boot, the process table decides. On its machine after another
    boot it is gone. From another machine or another container only its silence can tell.
    """
    pid, place = marked.get("pid"), _place()
    if isinstance(pid, int) and place and marked.get("place") == place:
        return bool(marked.get("started")) and started(pid) == marked.get("started")
    machine, boot = _machine(), _boot()
    if (
        machine
        and boot
        and marked.get("machine") == machine
        and marked.get("boot") not in (boot, "", None)
    ):
        return False
    return None


def is_self(marked: Mapping[str, Any]) -> bool:
    """Return whether the marked process is this one."""
    return marked.get("pid") == os.getpid() and is_alive(marked) is True


def started(pid: int) -> int | None:
    """Return when a process was started, in clock ticks since boot; None without /proc or it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # The name in parentheses may hold spaces; state is the first word after it, and
        # field 22 of proc(5) the twentieth.
        state, *rest = stat.rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else int(rest[18])


def _place() -> str:
    """Return a hash of this boot and process namespace, or nothing where /proc tells neither."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = Path("/proc/self/ns/pid").readlink()
    except OSError:
        return ""
    return _hash(f"{boot} {namespace}")


def _boot() -> str:
    try:
        return _hash(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    except OSError:
        return ""


def _machine() -> str:
    """Return a hash that another machine does not have, or nothing where none can be made.

    Copied system images share the id in /etc, and containers the name `localhost`; both together
    are only shared by machines nobody could tell apart.
    """
    try:
        identity = Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
    name = os.uname().nodename
    return _hash(f"{identity} {name}") if identity and name not in ("", "localhost") else ""


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_NUM_HASH_DIGITS]
