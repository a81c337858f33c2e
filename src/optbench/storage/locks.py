"""Who may write into a run's folder: one worker at a time, over processes and machines.

A claim is a numbered file in `<run>/claims/`; the highest number is the one that counts. Taking a
run is creating the next number, which file systems - shared ones too - let exactly one worker do.
No claim is ever removed, so a slow worker can never mistake an old situation for the present one.
A released or dead claim may be followed by the next number; a worker that slept through that finds
it before it writes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optbench.errors import ClaimLostError, Problem
from optbench.storage import locks

SILENCE_SECONDS = 600.0  # a worker of another machine that gave no sign for so long counts as dead
_BEAT_SECONDS = 60.0
_FOLDER = "claims"
_NAME = re.compile(r"(\d{6,})\.json")
_CANDIDATE_SUFFIX = ".new"
# File systems without hard links: exFAT, some network shares and containers' overlays.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to write into one run's folder, as long as no higher number exists."""

    run_dir: Path
    number: int  # from 1: how many workers have begun this run so far
    token: str

    @property
    def path(self) -> Path:
        """The file that stands for it."""
        return _path(self.run_dir, self.number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A living worker that has a run."""

    pid: int | None
    is_here: bool  # a process of this machine
    seconds_silent: float

    def __str__(self) -> str:
        """Return who it is, for a person."""
        if self.is_here:
            return f"process {self.pid} of this machine"
        return f"a worker elsewhere, last heard of {self.seconds_silent:.0f} s ago"


@dataclass(slots=True)
class _Held:
    """The claims this process has: every write into their folders asks them first."""

    claims: dict[str, Claim] = field(default_factory=dict)  # by absolute run folder
    tokens: set[str] = field(default_factory=set)  # from before their file exists to their release


_HELD = _Held()


@contextlib.contextmanager
def holding(run_dir: Path, *, beside: Path | None = None) -> Iterator[Claim | None]:
    """Hold a run while something is done in its folder; None where another worker has it.

    A thread of its own gives a sign of life every minute, by touching the claim, and the file
    `beside` it, so that a slow epoch does not look dead from elsewhere.
    """
    claim = take(run_dir)
    if claim is None:
        yield None
        return
    key = os.path.abspath(run_dir)  # noqa: PTH100 - resolve() would wait for a stalled share
    _HELD.claims[key] = claim
    is_over = threading.Event()

    def beat() -> None:
        while not is_over.wait(_BEAT_SECONDS):
            with contextlib.suppress(OSError):
                if is_lost(claim):
                    return
                os.utime(claim.path)
                if beside is not None:
                    os.utime(beside)

    # A daemon: it must die with the process, and never keep it alive.
    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield claim
    finally:
        is_over.set()
        thread.join()
        del _HELD.claims[key]
        release(claim)


def take(run_dir: Path) -> Claim | None:
    """Return the claim to a run, or None where a living worker has it or was a moment faster.

    Of any number of workers that try at once, exactly one gets it.
    """
    folder = run_dir / _FOLDER
    last = _last_number(folder)
    if last and _lives(_path(run_dir, last), now=time.time()) is True:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(8)
    content = json.dumps(_content(token), indent=2) + "\n"
    candidate = folder / f"{token}{_CANDIDATE_SUFFIX}"
    try:
        candidate.write_text(content, encoding="utf-8")
        # Times on a share are the server's: a file written just now is the clock to compare with.
        now = candidate.stat().st_mtime
        if last and _lives(_path(run_dir, last), now=now) is not False:
            return None
        claim = Claim(run_dir=run_dir, number=last + 1, token=token)
        _HELD.tokens.add(token)
        if not _create(claim.path, candidate, content):
            _HELD.tokens.discard(token)
            return None
        _sweep_candidates(folder, now=now)
        return claim
    finally:
        candidate.unlink(missing_ok=True)


def release(claim: Claim) -> None:
    """Let the next worker have the run, also on a disk that is full; a lost claim is let be."""
    _HELD.tokens.discard(claim.token)
    with contextlib.suppress(OSError):
        if is_lost(claim):
            return
        content = {**_content(claim.token), "released": _now()}
        text = json.dumps(content, indent=2) + "\n"
        partial = claim.path.with_name(f"{claim.token}{_CANDIDATE_SUFFIX}")
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(claim.path)
        except OSError:
            os.utime(claim.path, (0, 0))  # needs no room
        finally:
            partial.unlink(missing_ok=True)


def is_lost(claim: Claim) -> bool:
    """Return whether another worker took the run over, or somebody removed its folder."""
    # Listed and not looked up: network file systems remember for a while that a file is missing.
    return _last_number(claim.run_dir / _FOLDER) != claim.number


def confirm(path: Path) -> None:
    """Let a write into a folder pass unless this process held the folder's run and lost it.

    Raises:
        ClaimLostError: If another worker has taken the run over; nothing may be written then.
    """
    for key, claim in _HELD.claims.items():
        absolute = os.path.abspath(path)  # noqa: PTH100
        if absolute.startswith(key + os.sep) and is_lost(claim):
            raise ClaimLostError(
                Problem(
                    str(claim.run_dir),
                    "that another worker has taken this run over",
                    (
                        "a sign of life from this worker at least every "
                        f"{SILENCE_SECONDS / 60:.0f} minutes; it slept, or its share stalled"
                    ),
                    "nothing: the other worker goes on from the last whole epoch",
                )
            )


def is_claimed(run_dir: Path) -> bool:
    """Return whether anybody ever held this run, dead or alive."""
    return _last_number(run_dir / _FOLDER) > 0


def holder(run_dir: Path) -> Holder | None:
    """Return the living worker that has a run, or None; writes nothing."""
    last = _last_number(run_dir / _FOLDER)
    path = _path(run_dir, last)
    now = time.time()
    if not last or _lives(path, now=now) is False:
        return None
    marked = _read(path).get("process")
    process = marked if isinstance(marked, dict) else {}
    pid = process.get("pid")
    return Holder(
        pid=pid if isinstance(pid, int) else None,
        is_here=locks.is_alive(process) is True,
        seconds_silent=max(0.0, now - _touched(path)),
    )


def _create(path: Path, candidate: Path, content: str) -> bool:
    """Create a claim's file unless it exists; return whether this call did."""
    try:
        os.link(candidate, path)
        return True
    except FileExistsError:
        # A share may answer so to its own repeated request: whose token it is decides.
        return bool(_read(path).get("token") == json.loads(content)["token"])
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(content)
    return True


def _lives(path: Path, *, now: float) -> bool | None:
    """Return whether a claim's worker lives: True, False, or None while only its silence tells."""
    content, touched = _read(path), _touched(path)
    if "released" in content or touched == 0:
        return False
    marked = content.get("process")
    process: Mapping[str, Any] = marked if isinstance(marked, dict) else {}
    if locks.is_self(process):
        return content.get("token") in _HELD.tokens  # if not, its release failed
    known = locks.is_alive(process)
    if known is not None:
        return known
    return False if now - touched >= SILENCE_SECONDS else None


def _sweep_candidates(folder: Path, *, now: float) -> None:
    """Remove what workers killed in the middle of asking left behind, long ago."""
    for path in folder.glob(f"*{_CANDIDATE_SUFFIX}"):
        with contextlib.suppress(OSError):
            if now - path.stat().st_mtime >= SILENCE_SECONDS:
                path.unlink()


def _content(token: str) -> dict[str, Any]:
    return {"token": token, "begun": _now(), "process": locks.mark(os.getpid())}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _path(run_dir: Path, number: int) -> Path:
    return run_dir / _FOLDER / f"{number:06d}.json"


def _last_number(folder: Path) -> int:
    """Return the highest number in a folder of claims; 0 where there is none."""
    try:
        names = os.listdir(folder)  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return max((int(found[1]) for name in names if (found := _NAME.fullmatch(name))), default=0)


def _read(path: Path) -> dict[str, Any]:
    """Return what a claim says; nothing while it is being written or where it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _touched(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0  # its folder was removed


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
