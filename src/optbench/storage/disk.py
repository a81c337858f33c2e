"""Open regular files only, and put bytes and names on the disk."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from io import BufferedReader, BufferedWriter
from pathlib import Path

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a symbolic link",
}


def open_regular(path: Path, *, is_ours: bool = False) -> BufferedReader:
    """Return a file opened to be read, bytes; every file that others may have made is read so.

    Opening a named pipe would wait for ever, and reading a device may never end. A record or
    status of ours (`is_ours`) is never a symbolic link: a stranger's would lead to a private file.

    Raises:
        OSError: If it cannot be opened, or is a folder, named pipe, socket or device.
    """
    # Looked at before, for to open a device may do something, and after, for it may have changed.
    _refuse_special(path, path.lstat() if is_ours else path.stat())
    no_links = os.O_NOFOLLOW if is_ours else 0
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | no_links)
    try:
        _refuse_special(path, os.fstat(handle))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def open_to_append(path: Path) -> BufferedWriter:
    """Return a file of ours opened to be added to, made where there is none.

    Raises:
        OSError: As `open_regular`; also if it is a symbolic link, which could lead anywhere.
    """
    if path.is_symlink() or path.exists():
        _refuse_special(path, path.lstat())
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o666), "ab")


def check_regular(path: Path) -> Path:
    """Return the path of a file that a library opens itself.

    Raises:
        OSError: As `open_regular`.
    """
    open_regular(path).close()
    return path


def read_bytes(path: Path, *, is_ours: bool = False) -> bytes:
    """Return a regular file's content.

    Raises:
        OSError: As `open_regular`.
    """
    with open_regular(path, is_ours=is_ours) as file:
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
    """Make a folder and its parents, each name of them on the disk when this returns.

    Raises:
        OSError: Where the disk takes none, or a file is in its place or in that of a parent.
    """
    missing: list[Path] = []
    while not folder.is_dir():
        # Asked again: another worker may have made it meanwhile.
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
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
