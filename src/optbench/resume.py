"""What a killed run goes on from: everything after its last whole epoch, in one file.

The epoch before it is kept beside it while the run trains, so that a damaged file costs one epoch.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from optbench.contracts import Network, StepOptimizer
from optbench.errors import LaterSchemaError
from optbench.files import damaged, sync_folder, write_pieces
from optbench.rundir import SCHEMA, RunDir, of_later_optbench

if TYPE_CHECKING:
    from accelerate import Accelerator

_LAST, _PREVIOUS = "last.pt", "previous.pt"
_NUM_DIGEST_BYTES = 32
_PARTS = {"epoch", "step", "row", "network", "optimizer", "scaler"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressed:
    """How far a run has come, in whole epochs."""

    epoch: int  # the last whole one; 0: none
    step: int
    row: dict[str, Any] | None = None  # that epoch's record, before its pictures


@dataclass(frozen=True, slots=True)
class State:
    """A whole state file, read and found to be what was written."""

    content: dict[str, Any]

    @property
    def progressed(self) -> Progressed:
        """How far the run had come."""
        content = self.content
        return Progressed(epoch=content["epoch"], step=content["step"], row=content["row"])

    def put_back(
        self, network: Network, optimizer: StepOptimizer, accelerator: Accelerator
    ) -> None:
        """Go on exactly from here.

        Raises:
            DamagedFileError: If it is the state of another recipe; then nothing has been changed.
        """
        optimizer.load_state_dict(self.content["optimizer"])
        network.load_state_dict(self.content["network"])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(self.content["scaler"])


def write_state(
    run: RunDir,
    progressed: Progressed,
    network: Network,
    optimizer: StepOptimizer,
    accelerator: Accelerator,
) -> None:
    """Keep the training point after an epoch; it takes the last one's place in one move.

    No generator is kept: every draw is keyed by its epoch and place.
    """
    scaler = accelerator.scaler
    buffer = io.BytesIO()
    content = {
        "schema": SCHEMA,
        "epoch": progressed.epoch,
        "step": progressed.step,
        "row": progressed.row,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
    }
    torch.save(content, buffer)
    _keep_previous(run)
    blob = buffer.getbuffer()
    write_pieces(run.state_dir / _LAST, [hashlib.sha256(blob).digest(), blob])


def state_files(run: RunDir) -> list[Path]:
    """Return the state files that are there, the latest first."""
    return [path for name in (_LAST, _PREVIOUS) if (path := run.state_dir / name).is_file()]


def read_state(path: Path) -> State:
    """Return the state in a file.

    Raises:
        DamagedFileError: If it is not bit for bit what was written.
        LaterSchemaError: If a later optbench wrote it.
    """
    data = path.read_bytes()
    digest, blob = data[:_NUM_DIGEST_BYTES], memoryview(data)[_NUM_DIGEST_BYTES:]
    # torch.load notices neither a wrong bit in a weight nor every cut-off file.
    if hashlib.sha256(blob).digest() != digest:
        found = f"{len(data)} bytes that are not what was written"
        raise damaged(path, found, "the state this run goes on from")
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


def forget_previous(run: RunDir) -> None:
    """Remove the state before the last: a run that is done needs no second one."""
    (run.state_dir / _PREVIOUS).unlink(missing_ok=True)


def _keep_previous(run: RunDir) -> None:
    """Give the last state a second name, which costs no copy where links can go."""
    last, previous = run.state_dir / _LAST, run.state_dir / _PREVIOUS
    if not last.is_file():
        return
    second = run.state_dir / f"{_PREVIOUS}.{os.getpid()}.tmp"
    try:
        try:
            os.link(last, second)
        except OSError:
            shutil.copyfile(last, second)
        second.replace(previous)
    finally:
        second.unlink(missing_ok=True)  # two names of one file do not replace each other
    sync_folder(run.state_dir)
