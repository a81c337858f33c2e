"""Open regular files only, and put bytes and names on the disk."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: Path) -> BinaryIO:
    """Return a file opened to be read, bytes; every file that others may have made is read so.

    Opening a named pipe would wait for ever, and reading a device may never end.

    Raises:
        OSError: If it cannot be opened, or is a folder, named pipe, socket or device.
    """
    # Looked at before, for to open a device may do something, and after, for it may have changed.
    _refuse_special(path, os.stat(path))  # noqa: PTH116 - beside fstat
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _refuse_special(path, os.fstat(handle))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def check_regular(path: Path) -> Path:
    """Return the path of a file that a library opens itself.

    Raises:
        OSError: As `open_regular`.
    """
    open_regular(path).close()
    return path


def read_bytes(path: Path) -> bytes:
    """Return a regular file's content.

    Raises:
        OSError: As `open_regular`.
    """
    with open_regular(path) as file:
        return file.read()


def read_text(path: Path, *, encoding: str = "utf-8") -> str:
    """Return a regular file's text, with line ends as Python has them.

    Raises:
        OSError: As `open_regular`.
        UnicodeDecodeError: If it is no text in this encoding.
    """
    text = read_bytes(path).decode(encoding)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, each name of them on the disk when this returns."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        if folder.parent == folder:
            break
        folder = folder.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        sync_folder(new.parent)


def sync_folder(folder: Path) -> None:
    """Put a folder's names on the disk, where the file system can do that.

    A rename is only safe from a power cut once the folder itself is on disk.
    """
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _refuse_special(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(errno.EINVAL, f"not a file: {kind} has its name", str(path))
