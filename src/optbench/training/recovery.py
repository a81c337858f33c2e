"""Where a run can go on from: its folder is read whole, and what is damaged is set aside.

Every record and file of ours carries a checksum. What does not have it is renamed, said in a
notice, and made again from the newest whole state before it, or from the beginning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from optbench.errors import DamagedFileError
from optbench.storage import files, hashing
from optbench.storage.rundir import RunDir
from optbench.training.state import State, read_state, state_files


@dataclass(slots=True)
class Standing:
    """From where a run goes on, and what was found damaged on the way."""

    state: State | None = None  # None: from the beginning
    is_lora_lost: bool = False  # the epoch's LoRA file is to be written again, from the state
    notices: list[str] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        """The last whole epoch; 0: none."""
        return 0 if self.state is None else self.state.progressed.epoch


def find_standing(run: RunDir) -> Standing:
    """Return the newest moment that the folder proves whole; cuts the records off after it.

    Raises:
        LaterSchemaError: If a later optbench wrote the state.
    """
    standing = Standing()
    limit = _sound_epochs(run, standing.notices)
    lost = _lost_loras(run, standing.notices)
    for path in state_files(run):
        state = _read(path, standing.notices)
        if state is None:
            continue
        epoch = state.progressed.epoch
        short = _short_records(run, state, standing.notices)
        # Its own LoRA file can be written again from a state, an earlier one's cannot.
        again = lost | _unrecorded_loras(run, epoch, standing.notices)
        if epoch <= min(limit, short) and all(one >= epoch for one in again):
            standing.state = state
            standing.is_lora_lost = epoch in again or not run.lora_path(epoch).is_file()
            break
    if standing.notices:
        place = f"epoch {standing.epoch}" if standing.epoch else "the beginning"
        standing.notices.append(f"this run goes on from {place}, the newest it has whole")
    _mend_validation(run, standing.notices)
    for path in _records_of(run):
        files.truncate_rows(path, max_epoch=standing.epoch)
    return standing


def set_aside_damaged_pictures(folder: Path) -> list[str]:
    """Rename pictures that are not whole; return a sentence for each."""
    notices = []
    for path in sorted(folder.rglob("*.png")):
        if not files.is_intact_png(path):
            aside = files.set_aside(path)
            notices.append(f"{path.name} was damaged; it is now {aside.name}, and made again")
    return notices


def _records_of(run: RunDir) -> tuple[Path, ...]:
    """Return the files of which every line says its epoch."""
    trained = (run.steps_path, run.layers_path, run.epochs_path, run.files_path)
    return (*trained, run.validation_path)


def _read(path: Path, notices: list[str]) -> State | None:
    """Return a whole state; any other is set aside."""
    try:
        return read_state(path)
    except DamagedFileError as error:
        notices.append(_said(error, files.set_aside(path)))
        return None


def _sound_epochs(run: RunDir, notices: list[str]) -> float:
    """Return up to which epoch no record is damaged; damaged files keep the lines before that."""
    limits = [math.inf]
    for path in _records_of(run)[:-1]:
        rows = _mended_rows(path, notices)
        if rows is not None:
            # The last epoch in it may be short of lines that came after the damaged one.
            limits.append(max((row["epoch"] for row in rows), default=1) - 1)
    return min(limits)


def _mend_validation(run: RunDir, notices: list[str]) -> None:
    """Keep the whole lines only: losses are measured again from the LoRA files."""
    _mended_rows(run.validation_path, notices)


def _mended_rows(path: Path, notices: list[str]) -> list[files.Row] | None:
    """Return the lines that are left of a damaged file, None for one that is whole."""
    rows, error = files.readable_rows(path)
    numbered = [row for row in rows if isinstance(row.get("epoch"), int)]
    if error is None and len(numbered) == len(rows):
        return None
    error = error or files.damaged(path, "a record without its epoch", "an epoch in each")
    notices.append(_said(error, files.set_aside(path)))
    files.write_rows(path, numbered)
    return numbered


def _short_records(run: RunDir, state: State, notices: list[str]) -> float:
    """Return the epoch up to which no line is missing: a file may be cut off after whole ones."""
    epoch, step = state.progressed.epoch, state.progressed.step
    limits = [math.inf]
    steps = files.read_rows(run.steps_path)
    whole = 0
    while whole < len(steps) and steps[whole].get("step") == whole + 1:
        whole += 1
    if whole < step:
        limits.append(steps[whole - 1]["epoch"] - 1 if whole else 0)
        notices.append(f"{run.steps_path.name} ends at step {whole} of {step}")
    epochs = {row["epoch"] for row in files.read_rows(run.epochs_path)}
    # The last one's record is written after its pictures, and lies in the state until then.
    if missing := sorted(set(range(1, epoch)) - epochs):
        limits.append(missing[0] - 1)
        notices.append(f"{run.epochs_path.name} has no epoch {missing[0]} of {epoch}")
    return min([*limits, *_short_epochs(run.layers_path, epoch, notices)])


def _short_epochs(path: Path, epoch: int, notices: list[str]) -> list[int]:
    """Return the last epoch before one that has fewer records than the first."""
    rows = files.read_rows(path)
    counts = [sum(row["epoch"] == one for row in rows) for one in range(1, epoch + 1)]
    short = [one for one, count in enumerate(counts, start=1) if count < max(counts)]
    if not short:
        return []
    notices.append(f"{path.name} lacks records of epoch {short[0]}")
    return [short[0] - 1]


def _lost_loras(run: RunDir, notices: list[str]) -> set[int]:
    """Return the epochs whose LoRA file is not what was written; deleted ones are no loss.

    People delete files to save room; a file that is there must be right.
    """
    lost = set()
    for row in files.read_rows(run.files_path):
        path = run.recorded_lora(row)
        if path is not None and path.is_file() and hashing.file_sha256(path) != row.get("sha256"):
            lost.add(row["epoch"])
            error = files.damaged(path, "other bytes than were written", "what its record says")
            notices.append(_said(error, files.set_aside(path)))
    return lost


def _unrecorded_loras(run: RunDir, epoch: int, notices: list[str]) -> set[int]:
    """Return the epochs so far whose LoRA file lost its record: nothing proves it whole."""
    if not run.files_path.is_file():
        return set()  # a run from before there were records of files
    recorded = {row.get("file") for row in files.read_rows(run.files_path)}
    paths = {one: run.lora_path(one) for one in range(1, epoch + 1)}
    found = {one for one, path in paths.items() if path.is_file() and path.name not in recorded}
    last = run.lora_path(None)
    # Killed a moment before its state, a run has this file and no record of it, rightly.
    if (
        last.is_file()
        and last.name not in recorded
        and paths[epoch].is_file()
        and hashing.file_sha256(last) == hashing.file_sha256(paths[epoch])
    ):
        found.add(epoch)
    sentence = f"{run.files_path.name} has no record of epoch {min(found, default=0)}"
    if found and sentence not in notices:
        notices.append(sentence)
    return found


def _said(error: DamagedFileError, aside: Path) -> str:
    problem = error.problems[0]
    return f"{Path(problem.where).name}: {problem.found}; it is now {aside.name}"
