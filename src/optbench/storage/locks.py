"""Lock a run's folder: one worker at a time writes into it, over processes and machines.

A lock is a numbered file in `<run>/claims/`; the highest number is the one that counts. Taking a
run is creating the next number, which file systems - shared ones too - let exactly one worker do.
No lock file is ever removed, so a slow worker can never mistake an old situation for the present
one. A released lock or a dead worker's may be followed by the next number; a worker that slept
through that finds it before its next write.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optbench.errors import LockLostError, Problem
from optbench.storage import checksums, process
from optbench.storage.disk import make_folder, read_text, sync_folder
from optbench.storage.partial import partial_path, remove_abandoned

STALE_SECONDS = 600.0  # a worker of another machine without a heartbeat for so long counts as dead
_HEARTBEAT_SECONDS = 60.0
_FOLDER = "claims"
_STATUS_NAME = "status.json"  # of the run's folder; its process is the one that wrote it
_NAME = re.compile(r"(\d{6,})\.json")
_CANDIDATE_SUFFIX = ".new"
_WRITING_SECONDS = 1.0  # that a lock may be in the writing where the file system has no links


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLock:
    """The right to write into one run's folder, as long as no higher number exists."""

    run_dir: Path
    number: int  # from 1: how many workers have begun this run so far
    token: str

    @property
    def path(self) -> Path:
        """The lock's file."""
        return _lock_path(self.run_dir, self.number)

    def is_lost(self) -> bool:
        """Return whether another worker took the run over, or somebody removed its folder."""
        # Listed and not looked up: network file systems remember for a while that a file is
        # missing.
        return _last_number(self.run_dir) != self.number

    def release(self) -> None:
        """Let the next worker have the run, also on a full disk; a lost lock is left alone."""
        _HELD.pop(self.token, None)
        with contextlib.suppress(OSError):
            if self.is_lost():
                return
            partial = partial_path(self.path, _CANDIDATE_SUFFIX)
            try:
                _write(partial, _content(self.token, released=_now()))
                partial.replace(self.path)
                sync_folder(self.path.parent)
            except OSError:
                os.utime(self.path, (0, 0))  # a full disk has room for this
            finally:
                partial.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class LockHolder:
    """A living worker that has a run."""

    pid: int | None
    is_here: bool  # a process of this machine
    seconds_silent: float

    def __str__(self) -> str:
        """Return who it is, for a person."""
        if self.is_here:
            return f"process {self.pid} on this machine"
        return f"a worker on another machine (last heartbeat {self.seconds_silent:.0f} s ago)"


# The locks of this process by token, each from just before its file exists to its release. Global
# because it is a fact about the process: every write has to ask it, from whatever thread or
# library call it comes, and so has an attempt to lock a run a second time.
_HELD: dict[str, RunLock] = {}


@contextlib.contextmanager
def hold_lock(run_dir: Path, *, heartbeat_file: Path | None = None) -> Iterator[RunLock | None]:
    """Hold a run's lock while something is done in its folder; None where another worker has it.

    A thread of its own touches the lock's file every minute, and `heartbeat_file`, so that a slow
    epoch does not look dead from elsewhere.
    """
    lock = acquire(run_dir)
    if lock is None:
        yield None
        return
    is_over = threading.Event()

    def beat() -> None:
        while not is_over.wait(_HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                if lock.is_lost():
                    return
                os.utime(lock.path)
                if heartbeat_file is not None:
                    os.utime(heartbeat_file)

    # A daemon: it must die with the process, and never keep it alive.
    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield lock
    finally:
        is_over.set()
        thread.join()
        lock.release()


def acquire(run_dir: Path) -> RunLock | None:
    """Return a run's lock, or None where a living worker has it or was a moment faster.

    Of any number of workers that try at once, exactly one gets it.
    """
    last = _last_number(run_dir)
    if last and not _read(_lock_path(run_dir, last)):
        time.sleep(_WRITING_SECONDS)
    if last and _is_held(_lock_path(run_dir, last), now=time.time()) is True:
        return None
    lock = RunLock(run_dir=run_dir, number=last + 1, token=secrets.token_hex(8))
    make_folder(lock.path.parent)
    content = _content(lock.token)
    candidate = partial_path(lock.path, _CANDIDATE_SUFFIX)
    try:
        _write(candidate, content)
        # Times on a share are the server's: a file written just now is the clock to compare with.
        now = candidate.stat().st_mtime
        if last and _is_held(_lock_path(run_dir, last), now=now) is not False:
            return None
        _HELD[lock.token] = lock
        if not _create(lock.path, candidate, content):
            del _HELD[lock.token]
            return None
        sync_folder(lock.path.parent)
        remove_abandoned(lock.path.parent, _CANDIDATE_SUFFIX)
        return lock
    finally:
        candidate.unlink(missing_ok=True)


def check_write(path: Path) -> None:
    """Let a write pass unless it goes into a run's folder whose lock this process has lost.

    Raises:
        LockLostError: If another worker has taken the run over; nothing may be written then.
    """
    absolute = os.path.abspath(path)  # noqa: PTH100 - resolve() would wait for a stalled share
    for lock in tuple(_HELD.values()):
        folder = os.path.abspath(lock.run_dir)  # noqa: PTH100
        if not absolute.startswith(folder + os.sep) or not lock.is_lost():
            continue
        if not lock.path.parent.is_dir():
            raise OSError(errno.ENOENT, "its folder was removed while it was in use", folder)
        raise LockLostError(
            Problem(
                str(lock.run_dir),
                (
                    "that another worker has taken this run over, after "
                    f"{STALE_SECONDS / 60:.0f} minutes without a heartbeat from this one "
                    "(suspended, or its network share stalled)"
                ),
                "a run that no other worker writes into",
                "nothing to do: the other worker resumes from the last whole epoch",
            )
        )


def was_ever_locked(run_dir: Path) -> bool:
    """Return whether anybody ever held this run's lock, dead or alive."""
    return _last_number(run_dir) > 0


def lock_holder(run_dir: Path) -> LockHolder | None:
    """Return the living worker that has a run, or None; writes nothing."""
    last = _last_number(run_dir)
    path = _lock_path(run_dir, last)
    now = time.time()
    if not last or _is_held(path, now=now) is False:
        return None
    record = _process_of(path, _read(path))
    pid = record.get("pid")
    return LockHolder(
        pid=pid if isinstance(pid, int) else None,
        is_here=process.is_alive(record) is True,
        seconds_silent=max(0.0, now - _last_heartbeat(path)),
    )


def _create(path: Path, candidate: Path, content: str) -> bool:
    """Create a lock's file unless it exists; return whether this call did."""
    try:
        os.link(candidate, path)
        return True
    except OSError as error:
        # Whatever the reason: exFAT, network shares and containers' overlays have no links, and
        # say so with numbers of all kinds.
        if not isinstance(error, FileExistsError):
            try:
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            except FileExistsError:
                pass
            else:
                _fill(handle, path, content)
                return True
    # A share may answer so to its own repeated request: whose token it is decides.
    return bool(_read(path).get("token") == checksums.parse_json(content)["token"])


def _write(path: Path, content: str) -> None:
    """Write a file that will get a lock's name; its bytes are on the disk when this returns."""
    _fill(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666), path, content)


def _fill(handle: int, path: Path, content: str) -> None:
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(handle)
    except OSError:
        os.utime(path, (0, 0))  # nobody's, if it has a lock's name already
        raise


def _is_held(path: Path, *, now: float) -> bool | None:
    """Return whether a lock's worker lives: True, False, or None while only silence tells."""
    content, heartbeat = _read(path), _last_heartbeat(path)
    if "released" in content or heartbeat == 0:
        return False
    record = _process_of(path, content)
    if content and process.is_this_process(record):
        return content.get("token") in _HELD  # if not, its release failed
    is_alive = process.is_alive(record)
    if is_alive is not None:
        return is_alive
    return False if now - heartbeat >= STALE_SECONDS else None


def _content(token: str, **more: str) -> str:
    content = {"token": token, "begun": _now(), "process": process.process_record(), **more}
    return checksums.json_text(content)


def _process_of(path: Path, content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the record of a lock's process; of a lock that cannot be read, from the status.

    A power cut may leave an empty lock, and a bad disk a corrupt one. The run's status.json names
    the process that wrote it: if that one is dead, so is the worker.
    """
    content = content or _read(path.parent.parent / _STATUS_NAME)
    record = content.get("process")
    return record if isinstance(record, dict) else {}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _lock_path(run_dir: Path, number: int) -> Path:
    return run_dir / _FOLDER / f"{number:06d}.json"


def _last_number(run_dir: Path) -> int:
    """Return the highest number of a run's locks; 0 where there is none."""
    try:
        names = os.listdir(run_dir / _FOLDER)  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return max((int(match[1]) for name in names if (match := _NAME.fullmatch(name))), default=0)


def _read(path: Path) -> dict[str, Any]:
    """Return a lock's content; nothing while it is being written or where it is damaged."""
    try:
        return checksums.parse_json(read_text(path))
    except (OSError, ValueError, RecursionError):
        return {}


def _last_heartbeat(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0  # its folder was removed
