"""Resume a run: find the newest moment that its folder proves intact, and set damage aside.

Every record and file of ours carries a checksum. What does not have it is renamed, named in a
notice, and made again from the newest intact state before it, or from the beginning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from optbench.errors import DamagedFileError, OptbenchError
from optbench.storage import files, hashing, rundir
from optbench.storage.provenance import run_facts
from optbench.storage.rundir import RunDir
from optbench.training.lane import RunLane
from optbench.training.state import (
    State,
    is_intact_state,
    partial_state_file,
    read_state,
    restore_partial,
    state_files,
)

DAMAGED = "damaged: "  # begins the reason of a run that was done or stopped until it was verified
OTHER_BYTES = "other bytes than were written"


@dataclass(slots=True)
class ResumePoint:
    """From where a run is resumed, and what was found damaged on the way."""

    state: State | None = None  # None: from the beginning
    needs_lora: bool = False  # the epoch's LoRA file is to be written again, from the state
    notices: list[str] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        """The last intact epoch; 0: none."""
        return 0 if self.state is None else self.state.finished.epoch


def restore(lane: RunLane, *, image_folders: Iterable[Path]) -> None:
    """Bring a lane and its run's folder to one moment: an intact state, or the beginning.

    Raises:
        LaterSchemaError: If a later optbench wrote the state.
        DamagedFileError: If it is the state of another recipe.
    """
    from optbench.training.save import save_lora_files  # loads torch; `verify` does without

    run = lane.run
    files.clean_partial_files(run.path)
    point = find_resume_point(run)
    if point.state is not None:
        point.state.restore_into(lane)
        lane.finished = point.state.finished
    if point.needs_lora:
        files.truncate_rows(run.files_path, max_epoch=lane.finished.epoch - 1)
        save_lora_files(lane)
    for folder in image_folders:
        point.notices += files.set_aside_damaged_images(folder)
    point.notices += set_aside_damaged_partial_state(run)
    if lane.step < lane.plan.last_step:
        restore_partial(run, lane.finished, lane)
    lane.notices += point.notices


def find_resume_point(run: RunDir) -> ResumePoint:
    """Return the newest moment that the folder proves intact; cuts the records off after it.

    Raises:
        LaterSchemaError: If a later optbench wrote the state.
    """
    point = ResumePoint()
    limit = _sound_epochs(run, point.notices)
    lost = _lost_loras(run, point.notices)
    for path in state_files(run):
        try:
            state = read_state(path)
        except DamagedFileError as error:
            point.notices.append(_aside_sentence(error, files.set_aside(path)))
            continue
        epoch = state.finished.epoch
        short = _short_records(run, state, point.notices)
        # Its own LoRA file can be written again from a state, an earlier one's cannot.
        rewritten = lost | _unrecorded_loras(run, epoch, point.notices)
        if epoch <= min(limit, short) and all(other >= epoch for other in rewritten):
            point.state = state
            point.needs_lora = epoch in rewritten or not run.lora_path(epoch).is_file()
            break
    if point.notices:
        place = f"epoch {point.epoch}, the last intact one" if point.epoch else "the beginning"
        point.notices.append(f"resuming from {place}")
    # Of validation losses the intact lines are kept: they are measured again from the LoRA files.
    _mended_rows(run.validation_path, point.notices)
    for path in _records_of(run):
        files.truncate_rows(path, max_epoch=point.epoch)
    return point


def damage_of(run: RunDir) -> Iterator[str]:
    """Yield a sentence for every file of a run that is not what was written; changes nothing."""
    yield from _lost_records(run)
    readers: list[tuple[Path, Callable[[Path], object]]] = [
        (run.config_path, lambda _: rundir.read_config(run)),
        *((path, files.read_json) for path in sorted(run.path.glob("*.json"))),
        *((path, files.read_rows) for path in sorted(run.path.glob("*.jsonl"))),
    ]
    for path, read in readers:
        try:
            read(path)
        except DamagedFileError as error:
            problem = error.problems[0]
            yield f"{Path(problem.where).name}: {problem.found}"
    if run.files_path.is_file():
        recorded = {row.get("file") for row in files.readable_rows(run.files_path)[0]}
        for path in sorted(run.lora_dir.glob(f"{run.name}*.safetensors")):
            if path.name not in recorded:
                yield f"{run.files_path.name}: no record of {path.name}"
    for _, path in damaged_loras(run):
        yield f"{path.relative_to(run.path)}: {OTHER_BYTES}"
    for path in sorted(run.state_dir.glob("*.pt")):
        if not is_intact_state(path):
            yield f"{path.relative_to(run.path)}: {OTHER_BYTES}"
    for path in sorted(run.path.glob("images/*/*.png")):
        if not files.is_intact_png(path):
            yield f"{path.relative_to(run.path)}: not a whole PNG"


def _lost_records(run: RunDir) -> Iterator[str]:
    """Yield a sentence for every record that a run must have at its end and has not."""
    record = rundir.read_status(run.path)
    if record.status not in ("done", "stopped") and not record.reason.startswith(DAMAGED):
        return
    try:
        config = rundir.read_config(run)
    except DamagedFileError:
        return  # said by its reader
    is_training = "optimizer" in config
    needed = [run.epochs_path, run.provenance_path]
    needed += [run.steps_path, run.layers_path] if is_training else []
    # Records have had checksums as long as LoRA files have had records.
    rows, _ = files.readable_rows(run.epochs_path)
    if is_training and rows and files.have_checksums(run.epochs_path):
        needed.append(run.files_path)
    for path in needed:
        if not path.is_file():
            yield f"{path.name}: it is gone"
    if is_training:
        step = record.facts.get("step")  # of a run that was stopped
        yield from cut_records(run, num_steps=step if isinstance(step, int) else None)


def cut_records(run: RunDir, *, num_steps: int | None = None) -> Iterator[str]:
    """Yield a sentence for every record of a finished training that was cut off.

    A line without its end is what a killed process leaves; a finished one leaves none.

    Args:
        run: The run's folder.
        num_steps: How many updates it has; None: as its provenance says, if it does.
    """
    if num_steps is None:
        number = run_facts(run.provenance_path).get("total_steps")
        num_steps = number if isinstance(number, int) else None
    for path in _records_of(run):
        if path.is_file() and files.is_torn(path):
            yield f"{path.name}: its last line is cut off"
    steps, epochs, layers = (
        files.readable_rows(path)[0] for path in (run.steps_path, run.epochs_path, run.layers_path)
    )
    if num_steps is not None and len(steps) < num_steps:
        yield f"{run.steps_path.name}: {len(steps)} of {num_steps} steps"
    trained = sorted({row["epoch"] for row in steps if isinstance(row.get("epoch"), int)})
    recorded = {row.get("epoch") for row in epochs}
    if missing := [epoch for epoch in trained if epoch not in recorded]:
        yield f"{run.epochs_path.name}: no epoch {missing[0]} of {trained[-1]}"
    counts = [sum(row.get("epoch") == epoch for row in layers) for epoch in trained]
    if len(set(counts)) > 1:
        yield f"{run.layers_path.name}: records of some layers are gone"


def damaged_loras(run: RunDir) -> Iterator[tuple[int, Path]]:
    """Yield epoch and file of every LoRA that is not what its record says; changes nothing.

    People delete files to save room; a file that is there must be right.
    """
    for row in files.readable_rows(run.files_path)[0]:
        path = run.recorded_lora(row)
        if path is not None and path.is_file() and hashing.file_sha256(path) != row.get("sha256"):
            yield row["epoch"], path


def set_aside_damaged_partial_state(run: RunDir) -> list[str]:
    """Rename a state inside an epoch that is not what was written; return a sentence, or none."""
    path = partial_state_file(run)
    if path.is_file():
        try:
            read_state(path)
        except DamagedFileError as error:
            sentence = _aside_sentence(error, files.set_aside(path))
            return [f"{sentence}, and the steps after the last finished epoch are trained again"]
        except OptbenchError:
            pass  # of a later optbench
    return []


def _records_of(run: RunDir) -> tuple[Path, ...]:
    """Return the files of which every line says its epoch."""
    trained = (run.steps_path, run.layers_path, run.epochs_path, run.files_path)
    return (*trained, run.validation_path)


def _sound_epochs(run: RunDir, notices: list[str]) -> float:
    """Return up to which epoch no record is damaged; damaged files keep the lines before that."""
    limits = [math.inf]
    for path in _records_of(run)[:-1]:
        rows = _mended_rows(path, notices)
        if rows is not None:
            # The last epoch in it may be short of lines that came after the damaged one.
            limits.append(max((row["epoch"] for row in rows), default=1) - 1)
    return min(limits)


def _mended_rows(path: Path, notices: list[str]) -> list[files.Row] | None:
    """Return the lines that are left of a damaged file, None for one that is whole."""
    rows, error = files.readable_rows(path)
    numbered = [row for row in rows if isinstance(row.get("epoch"), int)]
    if error is None and len(numbered) == len(rows):
        return None
    error = error or files.damaged(path, "a record without its epoch", "an epoch in each")
    notices.append(_aside_sentence(error, files.set_aside(path)))
    files.write_rows(path, numbered)
    return numbered


def _short_records(run: RunDir, state: State, notices: list[str]) -> float:
    """Return the epoch up to which no line is missing: a file may be cut off after whole ones."""
    epoch, step = state.finished.epoch, state.finished.step
    limits = [math.inf]
    steps = files.read_rows(run.steps_path)
    whole = 0
    while whole < len(steps) and steps[whole].get("step") == whole + 1:
        whole += 1
    if whole < step:
        limits.append(steps[whole - 1]["epoch"] - 1 if whole else 0)
        notices.append(f"{run.steps_path.name} ends at step {whole} of {step}")
    epochs = {row["epoch"] for row in files.read_rows(run.epochs_path)}
    # The last one's record is written after its images, and lies in the state until then.
    if missing := sorted(set(range(1, epoch)) - epochs):
        limits.append(missing[0] - 1)
        notices.append(f"{run.epochs_path.name} has no epoch {missing[0]} of {epoch}")
    rows = files.read_rows(run.layers_path)
    counts = [sum(row["epoch"] == past for row in rows) for past in range(1, epoch + 1)]
    # Every epoch has as many records of layers as the first.
    if short := [past for past, count in enumerate(counts, start=1) if count < max(counts)]:
        limits.append(short[0] - 1)
        notices.append(f"{run.layers_path.name} lacks records of epoch {short[0]}")
    return min(limits)


def _lost_loras(run: RunDir, notices: list[str]) -> set[int]:
    """Set damaged LoRA files aside; return their epochs."""
    lost = set()
    for epoch, path in list(damaged_loras(run)):
        lost.add(epoch)
        error = files.damaged(path, OTHER_BYTES, "what its record says")
        notices.append(_aside_sentence(error, files.set_aside(path)))
    return lost


def _unrecorded_loras(run: RunDir, epoch: int, notices: list[str]) -> set[int]:
    """Return the epochs so far whose LoRA file lost its record: nothing proves it whole."""
    if not run.files_path.is_file():
        return set()  # a run from before there were records of files
    recorded = {row.get("file") for row in files.read_rows(run.files_path)}
    paths = {past: run.lora_path(past) for past in range(1, epoch + 1)}
    unrecorded = {
        past for past, path in paths.items() if path.is_file() and path.name not in recorded
    }
    last = run.lora_path(None)
    # Killed a moment before its state, a run has this file and no record of it, rightly.
    if (
        last.is_file()
        and last.name not in recorded
        and paths[epoch].is_file()
        and hashing.file_sha256(last) == hashing.file_sha256(paths[epoch])
    ):
        unrecorded.add(epoch)
    sentence = f"{run.files_path.name} has no record of epoch {min(unrecorded, default=0)}"
    if unrecorded and sentence not in notices:
        notices.append(sentence)
    return unrecorded


def _aside_sentence(error: DamagedFileError, aside: Path) -> str:
    problem = error.problems[0]
    return f"{Path(problem.where).name}: {problem.found}; it is now {aside.name}"
