"""Turn an exception or an exit code into a run's status and a reason that says what to do."""

from __future__ import annotations

import errno
import signal
import traceback

from optbench.errors import (
    DivergedError,
    MissingPackageError,
    OptbenchError,
    is_out_of_memory,
)
from optbench.records import Status

_NUM_TRACEBACK_LINES = 12
_SAME_COMMAND = "rerun the same command to resume"
_RIGHTS = "this may not be written to or read; repair its rights or choose another folder"
_SHARE = "the disk or the network share went away; mount it again"
_DISK = {
    errno.ENOSPC: "the disk is full; make room",
    errno.EDQUOT: "the quota of this disk is used up; make room",
    errno.EFBIG: "the disk takes no file of this size; choose another folder",
    errno.EROFS: "the disk is read-only; mount it to be written to, or choose another folder",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.ENOENT: "this vanished while it was needed; see that its disk is there",
    errno.ENOTDIR: "a file is where a folder is needed; move it away",
    errno.EISDIR: "a folder is where a file is needed; move it away",
    errno.ENAMETOOLONG: "this name is too long for the disk; choose shorter folder names",
    errno.EMFILE: "too many files are open; raise the limit with ulimit -n 4096",
    errno.ENFILE: "too many files are open on this machine; end other programs",
    errno.EIO: "the disk or the network share does not answer as it should; see that it is whole",
    errno.ELOOP: "a symbolic link is where a file is needed; remove it",
    errno.EINVAL: "remove what is no plain file, or choose a folder on another disk",
    errno.ESTALE: _SHARE,
    errno.ENOTCONN: _SHARE,
    errno.ETIMEDOUT: _SHARE,
    errno.EHOSTDOWN: _SHARE,
    errno.ENODEV: _SHARE,
    errno.ENXIO: _SHARE,
}
# A crash is the program's fault and would come again; a kill came from outside.
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT)


def judge(error: BaseException) -> tuple[Status, str]:
    """Return the status and the reason that an exception leaves behind."""
    if isinstance(error, DivergedError):
        return "diverged", str(error)
    if isinstance(error, MissingPackageError):
        return "skipped", str(error)
    if isinstance(error, OptbenchError):
        return "failed", str(error)
    if isinstance(error, ImportError) and error.name:
        return "skipped", (
            f"{type(error).__name__}: {error}\n    -> pip install {error.name.partition('.')[0]}, "
            "then the same command"
        )
    if is_out_of_memory(error):
        is_host = isinstance(error, MemoryError) or "allocate memory" in str(error)
        advice = _LESS_HOST_MEMORY if is_host else _LESS_GPU_MEMORY
        return "out_of_memory", f"{type(error).__name__}: {error}\n    -> {advice}"
    if isinstance(error, OSError) and error.errno in _DISK:
        fact, advice = disk_words(error)
        return "failed", f"{fact}\n    -> {advice}, then the same command"
    lines = traceback.format_exception(error)
    tail = "".join(lines).splitlines()[-_NUM_TRACEBACK_LINES:]
    return "failed", "\n".join([f"{type(error).__name__}: {error}", *tail])


def disk_words(error: OSError) -> tuple[str, str]:
    """Return what a disk, share or system refused, and what to do about it."""
    what = f" ({error.filename})" if error.filename else ""
    fact = f"{type(error).__name__}: {error.strerror or error}{what}"
    return fact, _DISK.get(error.errno or 0, "see that the disk is there and can be written to")


_LESS_GPU_MEMORY = (
    "training changes no setting by itself, for that would be another run; try "
    "train.gradient_checkpointing=true, train.mixed_precision=bf16, or half train.batch_size with "
    "twice train.gradient_accumulation; see that nothing else runs on this GPU"
)
_LESS_HOST_MEMORY = (
    "try launch.isolation=process and launch.workers=1, a smaller train.batch_size, or end other "
    "programs"
)


def judge_exit(code: int, *, is_out_of_memory: bool, last_words: str) -> tuple[Status, str]:
    """Return the status and reason of a run whose process ended without leaving any.

    Args:
        code: As subprocess gives it: minus the signal's number, or what the process returned.
        is_out_of_memory: Whether the kernel killed a process meanwhile because memory ran out.
        last_words: What Python's fault handler wrote, if it could.
    """
    tail = f"\n{last_words}" if last_words else ""
    if code >= 0:
        return "failed", f"its process ended with exit code {code} and no status{tail}"
    try:
        name = signal.Signals(-code).name
        words = (signal.strsignal(-code) or name).lower()
    except ValueError:
        return "failed", f"its process was ended by signal {-code}{tail}"
    if -code == signal.SIGKILL and is_out_of_memory:
        reason = f"the kernel killed its process because host memory ran out ({name})"
        return "out_of_memory", f"{reason}\n    -> {_LESS_HOST_MEMORY}"
    if -code in _CRASHES:
        return "failed", f"its process crashed: {words} ({name}){tail}"
    return "interrupted", f"its process was ended from outside: {words} ({name}); {_SAME_COMMAND}"
