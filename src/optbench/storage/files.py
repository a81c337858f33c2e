"""Write files atomically and with checksums, and notice a corrupt one when it is read again.

Every file of a run is written here: whole files in one move, records as whole JSON lines. JSON
files carry their checksum in a last key, records in a last key per line, texts in a first comment.
Files of older versions have none and are read all the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from optbench.errors import DamagedFileError, Problem
from optbench.storage import checksums, locks
from optbench.storage.disk import (
    make_folder,
    open_regular,
    open_to_append,
    read_bytes,
    sync_folder,
)
from optbench.storage.partial import partial_path, remove_abandoned

Row = dict[str, Any]

_TMP_SUFFIX = ".tmp"
_DAMAGED_SUFFIX = ".damaged"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHUNK_BYTES = 2**20
_RERUN = "nothing to do: the same command sets it aside and makes it again"


def write_pieces(path: Path, pieces: Iterable[bytes | memoryview], *, durable: bool = True) -> str:
    """Write a file so that readers and crashes see the old one or the new one, never a part.

    The bytes are on the disk before the name points to them, and the name before this returns;
    not so with `durable=False`, for files that are made again when a power cut loses them.

    Returns:
        The SHA-256 of the whole file, in hex.
    """
    partial = _partial(path)
    digest = hashlib.sha256()
    try:
        with partial.open("wb") as file:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        locks.check_write(path)
        partial.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # the system's words name none for a write
        raise
    finally:
        partial.unlink(missing_ok=True)
    if durable:
        sync_folder(path.parent)
    return digest.hexdigest()


def write_atomic(path: Path, content: bytes | str, *, durable: bool = True) -> None:
    """Write a whole file, as `write_pieces`."""
    data = content.encode() if isinstance(content, str) else content
    write_pieces(path, [data], durable=durable)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name in one move, or copy it where the file system has no links."""
    partial = _partial(target)
    try:
        os.link(source, partial)
    except OSError:
        with open_regular(source) as file:
            write_pieces(target, iter(lambda: file.read(_CHUNK_BYTES), b""))
        return
    try:
        locks.check_write(target)
        partial.replace(target)
    finally:
        # Renaming one of two names of a file to the other does nothing, so both would stay.
        partial.unlink(missing_ok=True)
    sync_folder(target.parent)


def clean_partial_files(folder: Path) -> int:
    """Remove what killed writers left behind in a run's folder; return how many files.

    Only for a folder nobody else is writing to: call it when a run starts or resumes.
    """
    leftovers = [path for path in folder.rglob(f"*{_TMP_SUFFIX}") if path.is_file()]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)


def set_aside(path: Path) -> Path:
    """Rename a corrupt file, so that nothing reads it and a person can look at it.

    Returns:
        Its new path.
    """
    for number in range(1, 1000):
        aside = path.with_name(f"{path.name}{_DAMAGED_SUFFIX}{'' if number == 1 else number}")
        if not aside.exists():
            break
    locks.check_write(path)
    path.replace(aside)
    sync_folder(path.parent)
    return aside


def is_intact_png(path: Path) -> bool:
    """Return whether every chunk of a PNG is what was written.

    The format gives each chunk a checksum (CRC-32 of its type and content), so none of ours is
    needed.
    """
    try:
        data = read_bytes(path)
    except OSError:
        return False  # cannot be read, or is something else than a file
    start = len(_PNG_SIGNATURE)
    if not data.startswith(_PNG_SIGNATURE):
        return False
    while start < len(data):  # length (4 bytes), type (4), content, CRC (4)
        length = int.from_bytes(data[start : start + 4], "big")
        body = data[start + 4 : start + 8 + length]
        checksum = data[start + 8 + length : start + 12 + length]
        if len(checksum) < 4 or int.from_bytes(checksum, "big") != zlib.crc32(body):
            return False
        start += 12 + length
        if body[:4] == b"IEND":
            return start == len(data)
    return False


def set_aside_damaged_images(folder: Path) -> list[str]:
    """Rename images that are not intact; return a sentence for each."""
    notices = []
    for path in sorted(folder.rglob("*.png")):
        if not is_intact_png(path):
            aside = set_aside(path)
            notices.append(f"{path.name} was damaged; it is now {aside.name}, and made again")
    return notices


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically; numbers that are not finite become null."""
    write_atomic(path, checksums.json_text(content))


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's object, without its checksum.

    Raises:
        DamagedFileError: If the file is missing, unreadable, holds no object, or is not what was
            written.
    """
    try:
        return checksums.parse_json(read_bytes(path, is_ours=True).decode())
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}", "a JSON object") from error
    except ValueError as error:
        raise damaged(path, str(error), "a JSON object as it was written") from error


def write_sealed_text(path: Path, text: str) -> None:
    """Write a text atomically, under a first line with its checksum, a comment in YAML."""
    write_atomic(path, checksums.sealed(text))


def read_sealed_text(path: Path) -> str:
    """Return a text without the line that has its checksum.

    Raises:
        DamagedFileError: If the file is missing, unreadable, or not what was written.
    """
    try:
        return checksums.unsealed(read_bytes(path, is_ours=True).decode())
    except (OSError, UnicodeDecodeError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}", "a text in UTF-8") from error
    except ValueError as error:
        raise damaged(path, str(error), "what its first line says") from error


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append records as whole lines in one write, on disk when this returns.

    Numbers that are not finite become null, because NaN is no JSON. Half a line that a killed
    process left at the end is removed first.
    """
    text = "".join(checksums.line(row) for row in rows)
    if not text:
        return
    make_folder(path.parent)
    locks.check_write(path)
    is_new = not path.is_file()
    _drop_torn_line(path)
    try:
        with open_to_append(path) as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    if is_new:
        sync_folder(path.parent)


def read_rows(path: Path) -> list[Row]:
    """Return all whole records; none for a missing file; half a last line is left out.

    Raises:
        DamagedFileError: If any other line is no JSON object, or not what was written.
    """
    return list(_rows(path))


def readable_rows(path: Path) -> tuple[list[Row], DamagedFileError | None]:
    """Return the records before the first corrupt line, and what is wrong with that line."""
    rows: list[Row] = []
    try:
        for row in _rows(path):
            rows.append(row)
    except DamagedFileError as error:
        return rows, error
    return rows, None


def is_torn(path: Path) -> bool:
    """Return whether a file of records ends within a line, as a killed process leaves it."""
    with open_regular(path) as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def have_checksums(path: Path) -> bool:
    """Return whether a file's records carry checksums; those of the first version do not."""
    first = read_bytes(path).partition(b"\n")[0]
    try:
        return checksums.has_right_checksum(first)
    except ValueError:
        return True  # a wrong one


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file of records, atomically."""
    write_atomic(path, "".join(checksums.line(row) for row in rows))


def truncate_rows(path: Path, *, max_epoch: int) -> int:
    """Drop the records after `max_epoch`, atomically; return how many were dropped.

    Raises:
        DamagedFileError: If a line is corrupt, or a record does not say its epoch.
    """
    rows = read_rows(path)
    if not all(isinstance(row.get("epoch"), int) for row in rows):
        raise damaged(path, "a record without its epoch", "an `epoch` in every record")
    remaining = [row for row in rows if row["epoch"] <= max_epoch]
    if len(remaining) < len(rows):
        write_rows(path, remaining)
    return len(rows) - len(remaining)


def damaged(path: Path, found: str, expected: str, fix: str = _RERUN) -> DamagedFileError:
    """Return the refusal of a file of ours that is not what was written."""
    return DamagedFileError(Problem(str(path), found, expected, fix))


def _partial(path: Path) -> Path:
    """Return where a file is written before it gets its name; its folder is there then.

    What killed processes left in this folder goes first: they cannot do it themselves.
    """
    folder = path.parent
    make_folder(folder)
    if folder not in _SWEPT:
        _SWEPT.add(folder)
        remove_abandoned(folder, _TMP_SUFFIX)
    return partial_path(path, _TMP_SUFFIX)


_SWEPT: set[Path] = set()  # folders where this process has removed what others abandoned


def _rows(path: Path) -> Iterator[Row]:
    if not path.is_file():
        return
    # Not splitlines: it would also split at separators inside strings.
    *lines, tail = read_bytes(path, is_ours=True).split(b"\n")
    del tail  # empty, or half a line of a killed process
    previous_has_checksum = False
    for number, line in enumerate(lines, start=1):
        try:
            has_checksum = checksums.has_right_checksum(line)
        except ValueError as error:
            raise _damaged_line(path, str(error), number) from error
        # An older version's records may be followed by ours, never the other way round.
        if previous_has_checksum and not has_checksum:
            raise _damaged_line(path, "no checksum", number)
        previous_has_checksum = has_checksum
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _damaged_line(path, str(error), number) from error
        if not isinstance(row, dict):
            raise _damaged_line(path, "no object", number)
        if not checksums.is_text(row):
            raise _damaged_line(path, "half a character", number)
        if has_checksum:
            del row[checksums.LINE_KEY]
        yield row


def _damaged_line(path: Path, found: str, number: int) -> DamagedFileError:
    return damaged(path, f"{found} in line {number}", "one whole JSON object a line")


def _drop_torn_line(path: Path) -> None:
    if path.is_file() and is_torn(path):
        data = read_bytes(path)
        write_atomic(path, data[: data.rfind(b"\n") + 1])
