"""Write files atomically and with checksums, and notice a corrupt one when it is read again.

Every file of a run is written here: whole files in one move, records as whole JSON lines. JSON
files carry their checksum in a last key, records in a last key per line, texts in a first comment.
Files of older versions have none and are read all the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from optbench.errors import DamagedFileError, Problem
from optbench.storage import locks
from optbench.storage.nested import map_values

Row = dict[str, Any]

_TMP_SUFFIX = ".tmp"
_DAMAGED_SUFFIX = ".damaged"
_FILE_CHECKSUM = "sha256"  # last key of a JSON file, first comment of a text
_LINE_CHECKSUM = "crc32"  # last key of a record
_LINE_END = re.compile(rb',"crc32":"([0-9a-f]{8})"\}')
_LINE_END_SHAPE = b',"crc32":"........"}'
_MIN_EQUAL_BYTES = 9  # of the 12 fixed ones of a line's end: then it was one, before it changed
_HEX_64 = re.compile(r"[0-9a-f]{64}")
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
    path.parent.mkdir(parents=True, exist_ok=True)
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
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(target)
    try:
        os.link(source, partial)
    except OSError:
        with source.open("rb") as file:
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
    data = path.read_bytes()
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


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically; numbers that are not finite become null."""
    plain = map_values(content, _as_json)
    with_checksum = {**plain, _FILE_CHECKSUM: _json_checksum(plain)}
    write_atomic(path, json.dumps(with_checksum, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's object, without its checksum.

    Raises:
        DamagedFileError: If the file is missing, unreadable, holds no object, or is not what was
            written.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}", "a JSON object") from error
    if not isinstance(content, dict):
        raise damaged(path, f"a JSON {type(content).__name__}", "a JSON object")
    if not is_text(content):
        raise damaged(path, "half a character in a text", "Unicode")
    # A checksum whose key is corrupt is one all the same: its value still looks like it.
    last = next(reversed(content.values()), None)
    if _FILE_CHECKSUM in content or (isinstance(last, str) and _HEX_64.fullmatch(last)):
        checksum = content.pop(_FILE_CHECKSUM, None)
        if checksum != _json_checksum(content):
            raise damaged(path, "other content than was written", "what its checksum says")
    return content


def write_sealed_text(path: Path, text: str) -> None:
    """Write a text atomically, under a first line with its checksum, a comment in YAML."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    write_atomic(path, f"# {_FILE_CHECKSUM} of what follows: {digest}\n{text}")


def read_sealed_text(path: Path) -> str:
    """Return a text without the line that has its checksum.

    Raises:
        DamagedFileError: If the file is missing, unreadable, or not what was written.
    """
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}", "a text in UTF-8") from error
    first, _, rest = text.partition("\n")
    if _FILE_CHECKSUM not in first and not _HEX_64.search(first):
        return text
    if first != f"# {_FILE_CHECKSUM} of what follows: {hashlib.sha256(rest.encode()).hexdigest()}":
        raise damaged(path, "another text than was written", "what its first line says")
    return rest


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append records as whole lines in one write, on disk when this returns.

    Numbers that are not finite become null, because NaN is no JSON. Half a line that a killed
    process left at the end is removed first.
    """
    text = "".join(_line(row) for row in rows)
    if not text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    locks.check_write(path)
    is_new = not path.is_file()
    _drop_torn_line(path)
    with path.open("ab") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
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


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file of records, atomically."""
    write_atomic(path, "".join(_line(row) for row in rows))


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


def is_text(content: object) -> bool:
    """Return whether all text in plain values can be written down: no half of a surrogate pair.

    JSON and YAML can spell such halves, and every table and page would stumble over them.
    """
    try:
        json.dumps(content, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return False
    return True


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


def _json_checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _line(row: Mapping[str, Any]) -> str:
    # What was read with its checksum may be written again without a second one.
    plain = {
        name: value for name, value in map_values(row, _as_json).items() if name != _LINE_CHECKSUM
    }
    text = json.dumps(plain, separators=(",", ":"), allow_nan=False)
    if not plain:
        return text + "\n"
    return f'{text[:-1]},"{_LINE_CHECKSUM}":"{zlib.crc32(text.encode()):08x}"}}\n'


def _as_json(value: Any) -> Any:
    """Return a value as our JSON files hold it: no infinity, no half of a surrogate pair."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str) and not value.isascii():
        return value.encode(errors="replace").decode()
    return value


def _partial(path: Path) -> Path:
    # Random, too: two machines may have processes of one number.
    return path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{_TMP_SUFFIX}")


def _rows(path: Path) -> Iterator[Row]:
    if not path.is_file():
        return
    # Not splitlines: it would also split at separators inside strings.
    *lines, tail = path.read_bytes().split(b"\n")
    del tail  # empty, or half a line of a killed process
    previous_has_checksum = False
    for number, line in enumerate(lines, start=1):
        has_checksum = _check_line(path, line, number)
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
        if not is_text(row):
            raise _damaged_line(path, "half a character", number)
        if has_checksum:
            del row[_LINE_CHECKSUM]
        yield row


def _check_line(path: Path, line: bytes, number: int) -> bool:
    """Return whether a record has a checksum, and that one right; older versions wrote none."""
    body, end = line[: -len(_LINE_END_SHAPE)], line[-len(_LINE_END_SHAPE) :]
    if len(end) < len(_LINE_END_SHAPE):
        return False
    match = _LINE_END.fullmatch(end)
    if match is not None and int(match[1], 16) == zlib.crc32(body + b"}"):
        return True
    pairs = zip(end, _LINE_END_SHAPE, strict=True)
    if sum(byte == fixed for byte, fixed in pairs if fixed != ord(".")) >= _MIN_EQUAL_BYTES:
        raise _damaged_line(path, "another record than was written", number)
    return False


def _damaged_line(path: Path, found: str, number: int) -> DamagedFileError:
    return damaged(path, f"{found} in line {number}", "one whole JSON object a line")


def _drop_torn_line(path: Path) -> None:
    if not path.is_file() or path.stat().st_size == 0:
        return
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
    data = path.read_bytes()
    write_atomic(path, data[: data.rfind(b"\n") + 1])
