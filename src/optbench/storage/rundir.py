"""Name the files of a run's folder, and read and write its status and its config.

A process that is killed at any moment leaves a folder that can be read and resumed.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast, get_args

import yaml

from optbench.errors import DamagedFileError, Problem
from optbench.records import Cell, Status
from optbench.storage import locks
from optbench.storage.checksums import is_text
from optbench.storage.files import Row, damaged, read_json, read_sealed_text, write_json
from optbench.storage.process import is_alive, process_record

SCHEMA = 1
METRICS_NAME = "metrics.jsonl"  # in a run's folder: one record per image and metric
_EPOCH_FILE = re.compile(r".+-(\d{6})\.safetensors")
FolderStatus = Status | Literal["pending"]


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
        """The run's status, its reason and facts."""
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
        """One record per validated image and draw."""
        return self.path / "validation.jsonl"

    @property
    def validation_key_path(self) -> Path:
        """What the validation losses were measured with."""
        return self.path / "validated-as.json"

    @property
    def image_key_path(self) -> Path:
        """What the images were rendered with, besides the LoRA."""
        return self.path / "images" / "rendered-as.json"

    @property
    def files_path(self) -> Path:
        """One record per LoRA file: its SHA-256, so that damage is noticed."""
        return self.path / "files.jsonl"

    @property
    def lora_dir(self) -> Path:
        """The LoRA files."""
        return self.path / "lora"

    @property
    def state_dir(self) -> Path:
        """What a killed run resumes from."""
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
        """The images after one epoch; epoch 0 is the base model alone."""
        return self.path / "images" / f"epoch-{epoch:04d}"

    def earlier_images_dir(self, key: str) -> Path:
        """Images that were made with other prompts or render settings, as `images` has them."""
        return self.path / "images-earlier" / key

    def image_path(self, cell: Cell) -> Path:
        """The image of one cell."""
        return self.images_dir(cell.epoch) / cell.file_name

    def lora_path(self, epoch: int | None) -> Path:
        """The LoRA file of one epoch, or of the finished run for None."""
        suffix = "" if epoch is None else f"-{epoch:06d}"
        return self.lora_dir / f"{self.name}{suffix}.safetensors"

    def lora_files(self) -> dict[int, Path]:
        """Return the LoRA files there are, by epoch; the last one's bare name is left out."""
        files = {
            int(match[1]): path
            for path in self.lora_dir.glob("*.safetensors")
            if (match := _EPOCH_FILE.fullmatch(path.name))
        }
        return dict(sorted(files.items()))

    def recorded_lora(self, row: Mapping[str, Any]) -> Path | None:
        """Return the LoRA file of a record of `files_path`; None if it names one elsewhere."""
        name = str(row.get("file"))
        return self.lora_dir / name if Path(name).name == name else None


def epochs_named(epochs: Sequence[int]) -> str:
    """Return some epochs in words, runs of them as "2 to 5"."""
    parts: list[list[int]] = []
    for epoch in sorted(epochs):
        if parts and epoch == parts[-1][-1] + 1:
            parts[-1].append(epoch)
        else:
            parts.append([epoch])
    words = [f"{part[0]} to {part[-1]}" if part[1:] else str(part[0]) for part in parts]
    return f"epoch{'s' * (len(epochs) > 1)} {', '.join(words)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusRecord:
    """A run's status.json; `pending` where there is none."""

    status: FolderStatus
    reason: str
    updated: str  # UTC, ISO 8601; empty when pending
    facts: Mapping[str, Any] = field(default_factory=dict)
    process: Mapping[str, Any] = field(default_factory=dict)


def write_status(run_dir: Path, status: Status, reason: str = "", **facts: Any) -> None:
    """Write a run's status; `running` also records the writing process, to be seen dying."""
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
        content["process"] = process_record()
    write_json(RunDir(run_dir).status_path, content)
    _UNWRITTEN.pop(run_dir, None)


def keep_unwritten(run_dir: Path, status: Status, reason: str) -> None:
    """Keep how a run ended for `read_status` in this process, where a disk takes no status.json."""
    _UNWRITTEN[run_dir] = StatusRecord(status=status, reason=reason, updated="")


# Global because it is a fact about this process, which alone knows what it could not write down.
_UNWRITTEN: dict[Path, StatusRecord] = {}


def read_status(run_dir: Path) -> StatusRecord:
    """Return a run's status; `running` only while its process lives, else `interrupted`.

    A folder without status.json is `pending`; a corrupt one counts as `interrupted`, because the
    same command resumes from there; one of a later optbench as `failed`, with the reason. On the
    machine and since the boot where the run was started, its process decides; seen from
    elsewhere, `locks.STALE_SECONDS` without a new record do.
    """
    if run_dir in _UNWRITTEN:
        return _UNWRITTEN[run_dir]
    path = RunDir(run_dir).status_path
    if not path.is_file():
        return StatusRecord(status="pending", reason="", updated="")
    try:
        record = _status_record(path)
    except DamagedFileError as error:
        return StatusRecord(status="interrupted", reason=str(error), updated="")
    if record.status == "running" and not _is_alive(run_dir, record.process):
        reason = "the process died without writing a status; rerun the same command to resume"
        return dataclasses.replace(record, status="interrupted", reason=reason)
    return record


def linked_folders(run_dir: Path) -> list[Path]:
    """Return which of a run's folders are symbolic links: what is written would go elsewhere."""
    if run_dir.is_symlink():
        return [run_dir]
    inside = [*run_dir.glob("*"), *run_dir.glob("images/*"), *run_dir.glob("thumbs/*")]
    return sorted(path for path in inside if path.is_symlink() and path.is_dir())


def linked_run(folder: Path) -> Problem:
    """Return the refusal of a folder of a run that is a symbolic link."""
    return Problem(
        str(folder),
        f"a symbolic link to {folder.readlink()}",
        "a run's own folder, because runs and reports are written into it",
        "remove the link and move the folder here, or link the sweep's folder as a whole",
    )


def of_later_optbench(path: Path, schema: int) -> Problem:
    """Return the refusal of a file whose schema this version does not know; it is left alone."""
    return Problem(
        str(path),
        f"schema {schema}, of a later optbench",
        f"schema {SCHEMA} or lower, which this one reads",
        "update optbench, or make the runs elsewhere: sweep_name=NAME",
    )


def is_of_later_optbench(run_dir: Path) -> bool:
    """Return whether a run's folder belongs to a later version, which must not be written into."""
    try:
        schema = read_json(RunDir(run_dir).status_path).get("schema")
    except DamagedFileError:
        return False
    return isinstance(schema, int) and schema > SCHEMA


def _status_record(path: Path) -> StatusRecord:
    content = read_json(path)
    schema, status = content.get("schema"), content.get("status")
    if not isinstance(schema, int):
        raise damaged(path, f"schema {schema!r}", f"schema {SCHEMA} or lower")
    if schema > SCHEMA:
        return StatusRecord(
            status="failed", reason=str(of_later_optbench(path, schema)), updated=""
        )
    if status not in get_args(Status):
        raise damaged(path, f"status {status!r}", f"one of {', '.join(get_args(Status))}")
    facts, process = content.get("facts"), content.get("process")
    return StatusRecord(
        status=cast(Status, status),
        reason=str(content.get("reason", "")),
        updated=str(content.get("updated", "")),
        facts=facts if isinstance(facts, dict) else {},
        process=process if isinstance(process, dict) else {},
    )


def _is_alive(run_dir: Path, process: Mapping[str, Any]) -> bool:
    if locks.was_ever_locked(run_dir):
        return locks.lock_holder(run_dir) is not None
    lives = is_alive(process)
    if lives is not None:
        return lives
    run = RunDir(run_dir)
    times = [
        path.stat().st_mtime
        for path in (run.status_path, run.steps_path, run.epochs_path)
        if path.is_file()
    ]
    return bool(times) and time.time() - max(times) < locks.STALE_SECONDS


class _PlainLoader(yaml.SafeLoader):
    """A SafeLoader without aliases, by which a short file can hold itself or a billion lines.

    Everything else is read as `yaml.safe_load` reads it, so `${...}` stays the text it is.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Return the next node unless it is an alias."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*name), which no config of ours has")
        return super().compose_node(parent, index)


def read_config(run: RunDir) -> dict[str, Any]:
    """Return a run's config as plain nested dictionaries.

    Raises:
        DamagedFileError: If the file is missing, or is not the YAML we wrote.
    """
    path, expected = run.config_path, "the run's config in YAML"
    text = read_sealed_text(path)
    try:
        content = yaml.load(text, Loader=_PlainLoader)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}", expected) from error
    if not isinstance(content, dict):
        raise damaged(path, f"a {type(content).__name__}", expected)
    if not is_text(content):
        raise damaged(path, "half a character in a text", expected)
    return content
