"""The state files that a run is resumed from: one format, one writer, one reader.

`last.pt` is the state after the last finished epoch and `previous.pt` the one before it, so that a
damaged file costs one epoch. `midway.pt` is the state after a step inside an epoch, written when
the process is asked to stop. A file is the SHA-256 of its rest, then what torch.save makes of a
dictionary. Nothing here loads torch before a state is read or written.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optbench.errors import LaterSchemaError, OptbenchError
from optbench.storage.disk import read_bytes, sync_folder
from optbench.storage.files import damaged, link_or_copy, write_pieces
from optbench.storage.rundir import SCHEMA, RunDir, of_later_optbench
from optbench.training.lane import FinishedEpoch, Lane, PartialEpoch

_LAST, _PREVIOUS, _PARTIAL = "last.pt", "previous.pt", "midway.pt"
_NUM_DIGEST_BYTES = 32
_PARTS = {"epoch", "step", "row", "network", "optimizer", "scaler"}


@dataclass(frozen=True, slots=True)
class State:
    """A state file, read and found to be what was written."""

    content: dict[str, Any]

    @property
    def finished(self) -> FinishedEpoch:
        """How far the run had come; of a state inside an epoch, that epoch and its last step."""
        content = self.content
        return FinishedEpoch(epoch=content["epoch"], step=content["step"], row=content["row"])

    def restore_into(self, lane: Lane) -> None:
        """Put network, optimizer and loss scale back, bit for bit.

        Raises:
            DamagedFileError: If it is the state of another recipe; then nothing has been changed.
        """
        lane.optimizer.load_state_dict(self.content["optimizer"])
        lane.network.load_state_dict(self.content["network"])
        if lane.scaler is not None:
            lane.scaler.load_state_dict(self.content["scaler"])
        lane.step = self.content["step"]


def write_state(run: RunDir, finished: FinishedEpoch, lane: Lane) -> None:
    """Write the state after an epoch; it takes the last one's place in one move.

    No generator is in it: every draw is keyed by its epoch and place.
    """
    pieces = _pieces(lane, epoch=finished.epoch, step=finished.step, row=finished.row)
    last = run.state_dir / _LAST
    if last.is_file():
        # A second name costs no copy where links can go. A kill before the write of the new state
        # leaves two names of one file; the next `link_or_copy` copes with that.
        link_or_copy(last, run.state_dir / _PREVIOUS)
        sync_folder(run.state_dir)
    write_pieces(last, pieces)


def write_partial_state(run: RunDir, lane: Lane) -> None:
    """Write the state after a step inside an epoch, with the global generators' too."""
    from optbench.training import global_rng

    rows, generators = lane.partial.rows, lane.partial.generators
    content = {"rows": rows, "generators": generators or global_rng.get_state()}
    last = rows[-1]
    pieces = _pieces(lane, epoch=last["epoch"], step=last["step"], row={}, **content)
    write_pieces(run.state_dir / _PARTIAL, pieces)


def _pieces(lane: Lane, **content: Any) -> list[bytes | memoryview]:
    """Return a state file's bytes: the digest, then the rest."""
    import torch

    content = {
        "schema": SCHEMA,
        **content,
        "network": lane.network.state_dict(),
        "optimizer": lane.optimizer.state_dict(),
        "scaler": None if lane.scaler is None else lane.scaler.state_dict(),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    blob = buffer.getbuffer()
    return [hashlib.sha256(blob).digest(), blob]


def state_files(run: RunDir) -> list[Path]:
    """Return the states after an epoch that are there, the latest first."""
    return [path for name in (_LAST, _PREVIOUS) if (path := run.state_dir / name).is_file()]


def partial_state_file(run: RunDir) -> Path:
    """Return where the state inside an epoch lies, if there is one."""
    return run.state_dir / _PARTIAL


def is_intact_state(path: Path) -> bool:
    """Return whether a state file is to the last bit what was written; needs no torch."""
    try:
        data = read_bytes(path)
    except OSError:
        return False  # cannot be read, or is something else than a file
    digest = hashlib.sha256(memoryview(data)[_NUM_DIGEST_BYTES:]).digest()
    return digest == data[:_NUM_DIGEST_BYTES]


def read_state(path: Path) -> State:
    """Return the state in a file.

    Raises:
        DamagedFileError: If it is not bit for bit what was written.
        LaterSchemaError: If a later optbench wrote it.
    """
    import torch

    data = read_bytes(path)
    digest, blob = data[:_NUM_DIGEST_BYTES], memoryview(data)[_NUM_DIGEST_BYTES:]
    # torch.load notices neither a wrong bit in a weight nor every cut-off file.
    if hashlib.sha256(blob).digest() != digest:
        found = f"{len(data)} bytes that are not what was written"
        raise damaged(path, found, "the state this run is resumed from")
    try:
        content = torch.load(io.BytesIO(blob), weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        # The digest is right, so somebody made this file: a folder from elsewhere is not trusted.
        raise damaged(path, "a pickle that holds more than tensors", "a state") from error
    if not isinstance(content, dict) or not content.keys() >= _PARTS:
        raise damaged(path, "a file without a state's parts", ", ".join(sorted(_PARTS)))
    schema = content.get("schema", SCHEMA)  # schema 1 said nothing of it at first
    if schema > SCHEMA:
        raise LaterSchemaError(of_later_optbench(path, schema))
    return State(content)


def restore_partial(run: RunDir, finished: FinishedEpoch, lane: Lane) -> None:
    """Restore the state inside the epoch after `finished`, if there is one and it fits.

    Call `recovery.set_aside_damaged_partial_state` first.
    """
    path = partial_state_file(run)
    if not path.is_file():
        return
    try:
        state = read_state(path)
    except OptbenchError:
        return  # of a later optbench
    content = state.content
    if content["epoch"] != finished.epoch + 1 or content["step"] <= finished.step:
        forget_partial_state(run)  # its epoch has been finished since, or the run begun anew
        return
    state.restore_into(lane)
    lane.partial = PartialEpoch(rows=content["rows"], generators=content["generators"])


def forget_partial_state(run: RunDir) -> None:
    """Remove the state inside an epoch, which that epoch's end has made worthless."""
    partial_state_file(run).unlink(missing_ok=True)


def forget_previous(run: RunDir) -> None:
    """Remove the state before the last: a run that is done needs no second one."""
    (run.state_dir / _PREVIOUS).unlink(missing_ok=True)
