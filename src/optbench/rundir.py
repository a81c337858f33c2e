"""Names inside a run's folder, and the only ways anything of ours is written there.

Whole files are written atomically; records are appended as whole JSON lines. So a process that is
killed at any moment leaves a folder that can be read and continued.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast, get_args

from optbench.errors import DamagedFileError, Problem
from optbench.records import Cell, Status

SCHEMA = 1
METRICS_NAME = "metrics.jsonl"  # in a run's folder: one record per picture and metric
SILENCE_SECONDS = 600.0  # a run of another machine that wrote nothing for so long counts as dead
_HEARTBEAT_SECONDS = 60.0
Row = dict[str, Any]
FoundStatus = Status | Literal["pending"]

_NUM_FINGERPRINT_DIGITS = 16
_TMP_SUFFIX = ".tmp"


@dataclass(frozen=True, slots=True)
class RunDir:
    """Every path inside one run's folder (schema 1)."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name, which is its folder's."""
        return self.path.name

    @property
    def config_path(self) -> Path:
        """The run's whole config, resolved."""
        return self.path / "config.yaml"

    @property
    def provenance_path(self) -> Path:
        """Versions, hardware, command and what was really built."""
        return self.path / "provenance.json"

    @property
    def status_path(self) -> Path:
        """How the run ended or stands."""
        return self.path / "status.json"

    @property
    def steps_path(self) -> Path:
        """One record per optimizer update."""
        return self.path / "steps.jsonl"

    @property
    def layers_path(self) -> Path:
        """One record per layer and epoch."""
        return self.path / "layers.jsonl"

    @property
    def epochs_path(self) -> Path:
        """One record per epoch."""
        return self.path / "epochs.jsonl"

    @property
    def validation_path(self) -> Path:
        """One record per validated picture and draw."""
        return self.path / "validation.jsonl"

    @property
    def lora_dir(self) -> Path:
        """The LoRA files."""
        return self.path / "lora"

    @property
    def state_dir(self) -> Path:
        """What a killed run continues from."""
        return self.path / "state"

    @property
    def sheets_dir(self) -> Path:
        """One sheet per prompt: rows are epochs, columns are seeds."""
        return self.path / "sheets"

    @property
    def tensorboard_dir(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    def images_dir(self, epoch: int) -> Path:
        """The pictures after one epoch; epoch 0 is the base alone."""
        return self.path / "images" / f"epoch-{epoch:04d}"

    def image_path(self, cell: Cell) -> Path:
        """The picture of one cell."""
        return self.images_dir(cell.epoch) / cell.file_name

    def lora_path(self, epoch: int | None) -> Path:
        """The LoRA file of one epoch, or of the finished run for None."""
        suffix = "" if epoch is None else f"-{epoch:06d}"
        return self.lora_dir / f"{self.name}{suffix}.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusRecord:
    """What status.json says; `pending` where there is none."""

    status: FoundStatus
    reason: str
    updated: str  # UTC, ISO 8601; empty when pending
    facts: Mapping[str, Any] = field(default_factory=dict)
    process: Mapping[str, Any] = field(default_factory=dict)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that readers and crashes see the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    partial = path.with_name(f"{path.name}.{os.getpid()}{_TMP_SUFFIX}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


def clean_partial_files(folder: Path) -> int:
    """Remove what killed writers left behind in a run's folder; return how many files that were.

    Only for a folder nobody else is writing to: call it when a run starts or continues.
    """
    leftovers = [path for path in folder.rglob(f"*{_TMP_SUFFIX}") if path.is_file()]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically; numbers that are not finite become null."""
    write_atomic(path, json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's object.

    Raises:
        DamagedFileError: If the file is missing, unreadable or holds no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}", "a JSON object") from error
    if not isinstance(content, dict):
        raise _damaged(path, f"a JSON {type(content).__name__}", "a JSON object")
    return content


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append records as whole lines in one write, on disk when this returns.

    Numbers that are not finite become null, because NaN is no JSON. Half a line that a killed
    process left at the end is removed first.
    """
    text = "".join(_line(row) for row in rows)
    if not text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _drop_torn_line(path)
    with path.open("ab") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> list[Row]:
    """Return all whole records; none for a missing file; half a last line is left out.

    Raises:
        DamagedFileError: If any other line is no JSON object.
    """
    return list(_rows(path))


def truncate_rows(path: Path, *, max_epoch: int) -> int:
    """Drop the records after `max_epoch`, atomically; return how many were dropped.

    Raises:
        DamagedFileError: If a line is no JSON object, or a record does not say its epoch.
    """
    rows = read_rows(path)
    if not all(isinstance(row.get("epoch"), int) for row in rows):
        raise _damaged(path, "a record without its epoch", "an `epoch` in every record")
    kept = [row for row in rows if row["epoch"] <= max_epoch]
    if len(kept) < len(rows):
        write_atomic(path, "".join(_line(row) for row in kept))
    return len(rows) - len(kept)


def write_status(run_dir: Path, status: Status, reason: str = "", **facts: Any) -> None:
    """Write how a run stands; `running` also marks the writing process, to be seen dying."""
    if status not in get_args(Status):
        raise ValueError(f"unknown status {status!r}; expected one of {get_args(Status)}")
    content: Row = {
        "schema": SCHEMA,
        "status": status,
        "reason": reason,
        "updated": datetime.now(UTC).isoformat(timespec="seconds"),
        "facts": facts,
    }
    if status == "running":
        content["process"] = _process_mark(os.getpid())
    write_json(RunDir(run_dir).status_path, content)


@contextlib.contextmanager
def heartbeat(run_dir: Path) -> Iterator[None]:
    """Touch status.json every minute, so that a slow epoch does not look dead from elsewhere."""
    path = RunDir(run_dir).status_path
    is_over = threading.Event()

    def beat() -> None:
        while not is_over.wait(_HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(path)

    # A daemon: it must die with the process, and never keep it alive.
    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def read_status(run_dir: Path) -> StatusRecord:
    """Return how a run stands; `running` only while its process lives, else `interrupted`.

    A folder without status.json is `pending`; a damaged one counts as `interrupted`, because the
    same command goes on from there. On the machine and since the boot where the run was started,
    its process decides; seen from elsewhere, `SILENCE_SECONDS` without a new record do.
    """
    path = RunDir(run_dir).status_path
    if not path.is_file():
        return StatusRecord(status="pending", reason="", updated="")
    try:
        record = _status_record(path)
    except DamagedFileError as error:
        return StatusRecord(status="interrupted", reason=str(error), updated="")
    if record.status == "running" and not _is_alive(run_dir, record.process):
        reason = "its process ended without a word; the same command goes on from here"
        return dataclasses.replace(record, status="interrupted", reason=reason)
    return record


def fingerprint(content: Mapping[str, Any]) -> str:
    """Return 16 hex digits of a mapping's content, whatever the order of its keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_NUM_FINGERPRINT_DIGITS]


def _status_record(path: Path) -> StatusRecord:
    content = read_json(path)
    schema, status = content.get("schema"), content.get("status")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise _damaged(path, f"schema {schema!r}", f"schema {SCHEMA} or lower")
    if status not in get_args(Status):
        raise _damaged(path, f"status {status!r}", f"one of {', '.join(get_args(Status))}")
    facts, process = content.get("facts"), content.get("process")
    return StatusRecord(
        status=cast(Status, status),
        reason=str(content.get("reason", "")),
        updated=str(content.get("updated", "")),
        facts=facts if isinstance(facts, dict) else {},
        process=process if isinstance(process, dict) else {},
    )


def _process_mark(pid: int) -> Row:
    """Return what tells this process from every other one that had or will have its number."""
    return {"pid": pid, "started": _started(pid), "place": _place()}


def _is_alive(run_dir: Path, process: Mapping[str, Any]) -> bool:
    pid, place = process.get("pid"), _place()
    if isinstance(pid, int) and place and process.get("place") == place:
        return bool(process.get("started")) and _started(pid) == process.get("started")
    run = RunDir(run_dir)
    touched = [
        path.stat().st_mtime
        for path in (run.status_path, run.steps_path, run.epochs_path)
        if path.is_file()
    ]
    return bool(touched) and time.time() - max(touched) < SILENCE_SECONDS


def _started(pid: int) -> int | None:
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
    return hashlib.sha256(f"{boot} {namespace}".encode()).hexdigest()[:_NUM_FINGERPRINT_DIGITS]


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(_finite(row), separators=(",", ":"), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_finite(item) for item in value]
    return value


def _rows(path: Path) -> Iterator[Row]:
    if not path.is_file():
        return
    # Not splitlines: it would also split at separators inside strings.
    *lines, tail = path.read_bytes().split(b"\n")
    del tail  # empty, or half a line of a killed process
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise _damaged(path, f"{error} in line {number}", "one JSON object a line") from error
        if not isinstance(row, dict):
            raise _damaged(path, f"no object in line {number}", "one JSON object a line")
        yield row


def _drop_torn_line(path: Path) -> None:
    if not path.is_file() or path.stat().st_size == 0:
        return
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
    data = path.read_bytes()
    write_atomic(path, data[: data.rfind(b"\n") + 1])


def _sync_folder(folder: Path) -> None:
    # A rename is only safe from a power cut once the folder itself is on disk; not every file
    # system can do that.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _damaged(path: Path, found: str, expected: str) -> DamagedFileError:
    return DamagedFileError(
        Problem(
            found=found,
            expected=expected,
            where=str(path),
            fix="delete the run's folder and make the run again with the same command",
        )
    )
